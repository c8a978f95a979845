"""VUS: volume under the surface of range-based precision and recall (Paparrizos et al., PVLDB 15(11), 2022).

As TSB-AD counts it (PyPI `tsb-ad` 1.5, `generate_curve`), whose leaderboard names this score first: labels get slopes
of 0 to `window` points, thresholds are 250 of the sorted scores, and the area is the mean over all windows. The same
numbers some hundred times faster: only points on slopes differ from one window to the next.

aeon's function of the same name follows an older version of the authors' code and differs: its slopes start one point
later, and it joins the curve of precision by straight lines, which gives a constant score half of the volume.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


THRESHOLDS = 250
WINDOW = 100


class Volume(NamedTuple):
    """Each from 0 to 1."""

    pr: float
    roc: float


def window_of(length: int) -> int:
    """The longest slope: TSB-AD's 100 points, a tenth of a series of less than 1,000."""
    return min(WINDOW, length // 10)


def volume(labels: NDArray[np.int64], scores: NDArray[np.float64], window: int) -> Volume | None:
    """VUS-PR and VUS-ROC of one series.

    Arguments:
        labels: 1 inside of a label, else 0; shape [length].
        scores: the more, the more anomalous; finite, shape [length].

    Returns:
        None where all points or none are labelled: there is nothing to tell apart.
    """
    length, labelled = len(labels), int(labels.sum())
    if labelled in (0, length):
        return None
    edges = np.flatnonzero(np.diff(labels, prepend=0, append=0))
    bounds = list(zip(edges[::2].tolist(), (edges[1::2] - 1).tolist(), strict=True))
    ascending = np.sort(scores)
    levels = ascending[::-1][np.linspace(0, length - 1, THRESHOLDS).astype(np.int64)]
    predicted = length - np.searchsorted(ascending, levels)
    inside = _above(labels[None], scores, levels)[0]
    near, slopes = _slopes(labels, bounds, window)
    on_slopes = _above(slopes, scores[near], levels)
    right, wanted = inside + on_slopes, labelled + on_slopes / 2
    recall = np.minimum(right / wanted, 1) * _existence(bounds, scores, levels, window)
    false = (predicted - right) / (length - wanted)
    ends = np.zeros((window + 1, 1)), np.ones((window + 1, 1))
    curve, base = np.hstack([ends[0], recall, ends[1]]), np.hstack([ends[0], false, ends[1]])
    roc = (np.diff(base) * (curve[:, 1:] + curve[:, :-1]) / 2).sum(axis=1).mean()
    pr = (np.diff(curve[:, :-1]) * right / predicted).sum(axis=1).mean()
    return Volume(float(pr), float(roc))


def _above(
    weights: NDArray[np.generic], scores: NDArray[np.float64], levels: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Sums of weights, shape [rows, points], over the points that reach each level; shape [rows, levels]."""
    order = np.argsort(-scores, kind="stable")
    sums = np.cumsum(weights[:, order], axis=1, dtype=np.float64)
    sums = np.hstack([np.zeros((len(weights), 1)), sums])
    return np.asarray(sums[:, np.searchsorted(-scores[order], -levels, side="right")])


def _slopes(
    labels: NDArray[np.int64], bounds: list[tuple[int, int]], window: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The points beside labels, and how much of a label each is, for each window; shape [window + 1, points]."""
    length, half = len(labels), window // 2
    sizes, distances = np.arange(window + 1)[:, None], np.arange(1, half + 1)[None]
    fall = np.where(distances <= sizes // 2, np.sqrt(np.maximum(1 - distances / np.maximum(sizes, 1), 0)), 0)
    weights, reached = np.zeros((window + 1, length)), np.zeros(length, dtype=np.bool_)
    for start, end in bounds:
        after, before = min(half, length - 1 - end), min(half, start)
        weights[:, end + 1 : end + 1 + after] += fall[:, :after]
        weights[:, start - before : start] += fall[:, :before][:, ::-1]
        reached[start - before : end + 1 + after] = True
    near = np.flatnonzero(reached & (labels == 0))
    return near, np.minimum(weights[:, near], 1)


def _existence(
    bounds: list[tuple[int, int]], scores: NDArray[np.float64], levels: NDArray[np.float64], window: int
) -> NDArray[np.float64]:
    """The share of labels, slopes included, that a level reaches; those whose slopes meet are one."""
    rows = []
    for half in range(window // 2 + 1):
        highest: list[float] = []
        first = bounds[0][0]
        for (_, end), (start, _) in zip(bounds, [*bounds[1:], (len(scores) + 2 * half + 1, 0)], strict=True):
            if end + half < start - half:
                highest.append(scores[max(first - half, 0) : end + half + 1].max())
                first = start
        rows.append((np.array(highest)[:, None] >= levels).mean(axis=0))
    return np.asarray(np.array(rows)[np.arange(window + 1) // 2])
