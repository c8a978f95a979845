"""Scores of one record: how well predicted intervals agree with labelled ones, in four ways.

events       one-to-one matches of overlapping intervals, counted (see `events`)
points       points inside of intervals, counted
range        precision and recall of Tatbul et al. (NeurIPS 2018, arXiv:1803.03639) by aeon: recall without existence
             reward (alpha 0), flat bias, and an interval in n pieces is worth 1/n (cardinality "reciprocal")
affiliation  precision and recall of Huet et al. (KDD 2022, doi:10.1145/3534678.3539339) by telemeval, which carries
             the authors' own code

The last two see a series as points with and without anomaly, so intervals that touch or overlap are one there.
Point-adjusted scores are left out on purpose: a random guess does well by them (Kim et al., AAAI 2022).

Empty sides, in one place (`_empty`), since the packages differ there (aeon 0, telemeval an error or no value): neither
labels nor predictions is 1, only one of them is 0, for precision, recall and F1 alike. An answer that can't be read is
never right: it counts as no predictions, and where there are no labels either as one false alarm of one point, so that
it fails in sums as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from llamafactory_ext.gdsh.events import Agreement, Counts, Interval, agreement, event_counts
from llamafactory_ext.toolbox.evaluate.detail import Detail, FloatArray, Mask, Types, detail


PACKAGES = ("aeon", "telemeval")

NOTHING_RIGHT = Agreement(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class RecordScores:
    """One record, or what it has of one anomaly type."""

    events: Counts
    points: Counts
    range: Agreement
    affiliation: Agreement
    detail: Detail = field(default=Detail(), compare=False)

    @property
    def f1(self) -> dict[str, float]:
        """The four F1 of this record alone."""
        return {
            "event_f1": agreement(*self.events).f1,
            "range_f1": self.range.f1,
            "affiliation_f1": self.affiliation.f1,
            "point_f1": agreement(*self.points).f1,
        }


def unreadable(found: RecordScores) -> RecordScores:
    """What is left of the scores of no prediction, where that was no answer."""
    one = found.detail._replace(vus_pr=0.0, vus_roc=0.0, normal_false_alarms=found.detail.normal)
    wrong = replace(found, range=NOTHING_RIGHT, affiliation=NOTHING_RIGHT, detail=one)
    if found.events.misses:
        return wrong
    return replace(wrong, events=Counts(0, 1, 0), points=Counts(0, 1, 0))


def score(
    labels: Sequence[Interval],
    predictions: Sequence[Interval],
    length: int,
    outside: int = 0,
    *,
    types: tuple[Types, Types] = ({}, {}),
    scores: FloatArray | None = None,
) -> RecordScores:
    """Compare the intervals of one record, all of them within its `length` points.

    Arguments:
        outside: predictions besides that share no point with the series: false alarms among events, and a reason
            why the record is not "nothing found"; points, ranges and affiliation have no place for them.
        types: of labels and predictions, for `Detail.right_type`.
        scores: of each point, for VUS; None: 1 inside of a prediction, else 0.
    """
    found = event_counts(labels, predictions)
    found = found._replace(false_alarms=found.false_alarms + outside)
    wanted, guessed = mask(labels, length), mask(predictions, length)
    both = int((wanted & guessed).sum())
    points = Counts(both, int(guessed.sum()) - both, int(wanted.sum()) - both)
    sure = guessed.astype(np.float64) if scores is None else scores
    finer = detail(sorted(set(labels)), sorted(set(predictions)), wanted, sure, found.false_alarms, types)
    if not labels or not predictions:
        empty = _empty(bool(labels), bool(predictions) or outside > 0)
        return RecordScores(found, points, empty, empty, finer)
    return RecordScores(found, points, _range(wanted, guessed), _affiliation(wanted, guessed), finer)


def mask(intervals: Sequence[Interval], length: int) -> Mask:
    """Mark the points of a series that lie in an interval."""
    marked = np.zeros(length, dtype=np.int64)
    for start, end in intervals:
        marked[start : end + 1] = 1
    return marked


def _empty(labels: bool, predictions: bool) -> Agreement:
    right = float(not labels and not predictions)
    return Agreement(right, right, right)


def _range(labels: Mask, predictions: Mask) -> Agreement:
    from aeon.benchmarking.metrics.anomaly_detection import range_precision, range_recall

    # aeon returns 0 for a prediction without a normal point; one more at the end changes nothing else.
    labels, predictions = np.append(labels, 0), np.append(predictions, 0)
    precision = float(range_precision(labels, predictions, cardinality="reciprocal", bias="flat"))
    recall = float(range_recall(labels, predictions, alpha=0, cardinality="reciprocal", bias="flat"))
    return Agreement(precision, recall, _harmonic_mean(precision, recall))


def _affiliation(labels: Mask, predictions: Mask) -> Agreement:
    import pandas as pd
    from telemeval import score_affiliation

    # Its frames, with the index as nanoseconds. All labels have one ID: it merges them anyway, and groups are slow.
    edges = np.flatnonzero(np.diff(labels, prepend=0, append=0)).astype("datetime64[ns]")
    step = np.timedelta64(1, "ns")
    wanted = pd.DataFrame({"ID": "labels", "StartTime": edges[::2], "EndTime": edges[1::2] - step})
    time = np.arange(len(predictions)).astype("datetime64[ns]")
    guessed = pd.DataFrame({"Timestamp": time, "Score": predictions})
    found = score_affiliation({"global_labels": wanted, "global_predictions": guessed}, beta=1)
    return Agreement(*(float(found[f"affiliation_{part}"]) for part in ("precision", "recall", "fbeta")))


def _harmonic_mean(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
