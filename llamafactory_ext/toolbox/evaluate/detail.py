"""What separates detectors where event F1 does not: places, early warning, false alarms, types, and VUS.

Affiliation F1 lies between 0.77 and 0.89 for every method of TSB-AD's table, and event F1 counts one common point as a
hit. Here a hit at an IoU (intersection over union, as in the detection of objects) of 0.3 or 0.5 has to lie where its
label lies.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from llamafactory_ext.gdsh.events import Interval, matches
from llamafactory_ext.toolbox.evaluate.volume import volume, window_of


Mask = NDArray[np.int64]
FloatArray = NDArray[np.float64]


class Detail(NamedTuple):
    """Sums of one record, ready to be added over records."""

    hits_iou30: float = 0.0
    hits_iou50: float = 0.0
    """Matched pairs with at least this IoU, as many as can be matched one to one."""
    pairs: float = 0.0
    """Matched pairs that overlap: as many as can be, and of those matchings the one with the largest `iou`."""
    iou: float = 0.0
    """Sum over these pairs."""
    typed: float = 0.0
    """Those whose label names a type."""
    right_type: float = 0.0
    """Those whose prediction names the same one."""
    found: float = 0.0
    """Labels that at least one prediction overlaps."""
    delay: float = 0.0
    """Sum over these, in points: from the label's start to the first point of it that is predicted."""
    length: float = 0.0
    normal: float = 0.0
    """1 for a record without label."""
    normal_false_alarms: float = 0.0
    volumes: float = 0.0
    """1 for a record that has VUS: some of its points are labelled, but not all."""
    vus_pr: float = 0.0
    vus_roc: float = 0.0


Types = Mapping[Interval, frozenset[str]]


def detail(
    labels: Sequence[Interval],
    predictions: Sequence[Interval],
    wanted: Mask,
    scores: FloatArray,
    false_alarms: int,
    types: tuple[Types, Types] = ({}, {}),
) -> Detail:
    """Compare the intervals of one record.

    Arguments:
        labels: each once, as are `predictions`.
        wanted: 1 inside of a label, else 0; shape [length].
        scores: how sure each point is said to be anomalous; shape [length].
        types: what labels and predictions are said to be.
    """
    iou = ious(labels, predictions)
    # every further pair is worth more than all that IoU can be
    rows, columns = linear_sum_assignment((iou > 0) * (min(iou.shape) + 1.0) + iou, maximize=True)
    chosen = [(row, column) for row, column in zip(rows, columns, strict=True) if iou[row, column] > 0]
    named = [(types[0].get(labels[row], frozenset()), types[1].get(predictions[column])) for row, column in chosen]
    delays = [_delay(label, predictions) for label in labels]
    volumes = volume(wanted, scores, window_of(len(wanted)))
    return Detail(
        hits_iou30=matches(iou >= 0.3),
        hits_iou50=matches(iou >= 0.5),
        pairs=len(chosen),
        iou=float(sum(iou[row, column] for row, column in chosen)),
        typed=sum(bool(wanted_types) for wanted_types, _ in named),
        right_type=sum(bool(wanted_types & (said or frozenset())) for wanted_types, said in named),
        found=sum(one is not None for one in delays),
        delay=sum(one for one in delays if one is not None),
        length=len(wanted),
        normal=float(not labels),
        normal_false_alarms=0 if labels else false_alarms,
        volumes=float(volumes is not None),
        vus_pr=volumes.pr if volumes else 0.0,
        vus_roc=volumes.roc if volumes else 0.0,
    )


def heights(intervals: Mapping[Interval, float], length: int) -> FloatArray:
    """How sure each point is said to be anomalous: the highest of the intervals that it lies in, else 0."""
    found = np.zeros(length)
    for (start, end), height in intervals.items():
        found[start : end + 1] = np.maximum(found[start : end + 1], height)
    return found


def ious(labels: Sequence[Interval], predictions: Sequence[Interval]) -> FloatArray:
    """Shape [labels, predictions]."""
    one, other = np.array(labels).reshape(-1, 1, 2), np.array(predictions).reshape(1, -1, 2)
    common = np.minimum(one[..., 1], other[..., 1]) - np.maximum(one[..., 0], other[..., 0]) + 1
    either = one[..., 1] - one[..., 0] + other[..., 1] - other[..., 0] + 2 - common
    return np.asarray(np.maximum(common, 0) / either, dtype=np.float64)


def _delay(label: Interval, predictions: Sequence[Interval]) -> int | None:
    starts = [max(start - label[0], 0) for start, end in predictions if start <= label[1] and end >= label[0]]
    return min(starts, default=None)
