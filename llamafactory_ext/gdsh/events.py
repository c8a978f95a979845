"""Event-wise counts: labelled and predicted intervals, each matched at most once.

A label and a prediction that share at least one point can be matched, one to one, and as many pairs as possible are
(maximum bipartite matching, by scipy). The usual "overlaps any" (Hundman et al. 2018, arXiv:1802.04431) counts a
prediction of the whole series as a hit for every label in it, and any number of pieces of one label as right. Here the
second piece of a split prediction is a false alarm, and the second label under a merged one is a miss. Where no
prediction overlaps two labels and no label two predictions, both ways count the same.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching


Interval = tuple[int, int]
"""First and last index, 0-based, both counted."""


class Counts(NamedTuple):
    """What was found and what was not; over several records it is their sum."""

    hits: int
    """True positives: matched pairs."""
    false_alarms: int
    """False positives: predictions without a label."""
    misses: int
    """False negatives: labels without a prediction."""


class Agreement(NamedTuple):
    """Each from 0 to 1."""

    precision: float
    recall: float
    f1: float


def event_counts(labels: Iterable[Interval], predictions: Iterable[Interval]) -> Counts:
    """Count hits, false alarms and misses of one series; an interval that is named twice counts once."""
    wanted, found = sorted(set(labels)), sorted(set(predictions))
    hits = matches(_touching(wanted, found))
    return Counts(hits, len(found) - hits, len(wanted) - hits)


def total(counts: Iterable[Counts]) -> Counts:
    """Sum counts over records."""
    columns = list(zip(*counts, strict=True)) or [(), (), ()]
    return Counts(*map(sum, columns))


def agreement(hits: float, false_alarms: float, misses: float) -> Agreement:
    """Precision, recall and F1 of counts.

    Nothing to find and nothing found is right: all three are 1. Where only one of the two is empty all three are 0:
    precision has no value without predictions, nor recall without labels, and 0 can't flatter.
    """
    if not hits:
        right = float(not false_alarms and not misses)
        return Agreement(right, right, right)
    return Agreement(
        hits / (hits + false_alarms), hits / (hits + misses), 2 * hits / (2 * hits + false_alarms + misses)
    )


def overlap(one: Interval, other: Interval) -> bool:
    """Whether two intervals share at least one point."""
    return one[0] <= other[1] and other[0] <= one[1]


def matches(allowed: NDArray[np.bool_]) -> int:
    """As many labels and predictions as can be matched one to one.

    Arguments:
        allowed: which pairs may be matched; shape [labels, predictions].
    """
    if not allowed.any():
        return 0
    return int((maximum_bipartite_matching(csr_array(allowed), perm_type="column") >= 0).sum())


def _touching(labels: Sequence[Interval], predictions: Sequence[Interval]) -> NDArray[np.bool_]:
    wanted, found = np.array(labels).reshape(-1, 1, 2), np.array(predictions).reshape(1, -1, 2)
    return np.asarray((wanted[..., 0] <= found[..., 1]) & (found[..., 0] <= wanted[..., 1]))
