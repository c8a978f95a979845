"""Panels: one series each, thinned to what can be seen, with the labels and findings of its record."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llamafactory_ext.series import FloatArray
from llamafactory_ext.toolbox.pages.thinning import thin
from llamafactory_ext.toolbox.session.labels import Label


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
