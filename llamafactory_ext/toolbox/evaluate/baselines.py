"""Baselines: what it takes to be better than a guess, and than a rule that needs no model.

random  as many intervals as the record has labels, of the same lengths, at random places; it is told their number
        and lengths, which a model is not. Scores are means over `SEEDS` draws.
zscore  points further than 3 standard deviations from the mean of a centred window: a twentieth of the series, at
        least 11 points (in fewer no point can be that far)
iqr     points beyond Tukey's fences: 1.5 interquartile ranges below the first or above the third quartile of the
        whole series

Of the two rules' points, runs with gaps of at most a hundredth of the series become one interval: a detector that
flickers would otherwise be charged with a false alarm for every piece. Several series of a record: a point that is
flagged in any of them.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from llamafactory_ext.gdsh.events import Interval


FloatArray = NDArray[np.float64]
Flags = NDArray[np.bool_]

SEEDS = 10
_DEVIATIONS = 3.0
_FENCE = 1.5


def random_intervals(labels: Sequence[Interval], length: int, rng: np.random.Generator) -> list[Interval]:
    """Draw intervals of the labels' lengths; each place where one fits is equally likely."""
    sizes = [end - start + 1 for start, end in labels]
    starts = [int(rng.integers(0, length - size + 1)) for size in sizes]
    return [(start, start + size - 1) for start, size in zip(starts, sizes, strict=True)]


def flagged_intervals(series: Sequence[FloatArray], rule: Callable[[FloatArray], Flags]) -> list[Interval]:
    """Apply a rule to all series of a record, each of shape [length]."""
    flags = np.zeros(max(map(len, series), default=0), dtype=np.bool_)
    for one in series:
        flags[: len(one)] |= rule(one)
    return _runs(flags, gap=len(flags) // 100)


def zscore(series: FloatArray) -> Flags:
    """Flag points far from the mean of the window around them."""
    import pandas as pd

    window = max(11, len(series) // 20)
    rolling = pd.Series(series).rolling(window, center=True, min_periods=1)
    distance = np.abs(series - rolling.mean().to_numpy())
    return np.asarray(distance > _DEVIATIONS * rolling.std(ddof=0).to_numpy(), dtype=np.bool_)


def iqr(series: FloatArray) -> Flags:
    """Flag points beyond Tukey's fences."""
    low, high = np.quantile(series, [0.25, 0.75])
    fence = _FENCE * (high - low)
    return np.asarray((series < low - fence) | (series > high + fence), dtype=np.bool_)


RULES: dict[str, Callable[[FloatArray], Flags]] = {"zscore": zscore, "iqr": iqr}


def _runs(flags: Flags, gap: int) -> list[Interval]:
    """The runs of flagged points; those with at most `gap` points between them are one."""
    places = np.flatnonzero(flags)
    if not len(places):
        return []
    cuts = np.flatnonzero(np.diff(places) > gap + 1) + 1
    bounds = [0, *cuts.tolist(), len(places)]
    return [(int(places[first]), int(places[last - 1])) for first, last in pairwise(bounds)]
