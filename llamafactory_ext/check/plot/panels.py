"""Panels: one series each, thinned to what can be seen, with the labels and findings of its record."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llamafactory_ext.check.labels import Label
from llamafactory_ext.series import FloatArray


POINTS = 1000
"""About as many points are drawn of a series."""

_CROWD = 60  # labels


@dataclass(frozen=True)
class Panel:
    """What is drawn of one series."""

    length: int
    """Points of the whole series."""
    at: NDArray[np.int64]
    """The indices that are drawn, rising."""
    values: FloatArray
    """Their values."""
    labels: tuple[Label, ...]
    """Those that fit the series, widest first, so that narrow ones end up on top."""
    peaks: tuple[float, ...] = field(default=())
    """For each label, the value to mark: that of a single point; nan for intervals."""

    @property
    def crowded(self) -> bool:
        """Whether there are so many labels that marks must be small, or they would hide the series."""
        return len(self.labels) > _CROWD


def make_panel(series: FloatArray, labels: Sequence[Label]) -> Panel:
    """Returns the panel of one series, ``series`` of shape ``[length]``."""
    fit = [one for one in labels if 0 <= one.start <= one.end < len(series)]
    fit.sort(key=lambda one: one.start - one.end)
    single = [one.start for one in fit if one.start == one.end]
    at = np.union1d(thin(series), np.array(single, dtype=np.int64))
    peaks = tuple(float(series[one.start]) if one.start == one.end else np.nan for one in fit)
    return Panel(len(series), at, series[at], tuple(fit), peaks)


def thin(series: FloatArray, points: int = POINTS) -> NDArray[np.int64]:
    """Returns the indices of at most `points` values that draw the same line.

    M4, which keeps the first, last, lowest and highest value of every bin: MinMaxLTTB picks one value a bin, and may
    leave out the very spike that a label is about.
    """
    if len(series) <= points:
        return np.arange(len(series), dtype=np.int64)
    from tsdownsample import M4Downsampler

    return np.unique(M4Downsampler().downsample(series, n_out=points // 4 * 4)).astype(np.int64)


def value_range(panel: Panel) -> tuple[float, float]:
    """Returns lowest and highest value to draw, apart from one another even for a constant series."""
    low, high = float(panel.values.min()), float(panel.values.max())
    if high > low:
        return low, high
    margin = abs(low) / 2 or 1.0
    return low - margin, high + margin
