"""Which points of a series are drawn, and the range of values to draw them in."""

import numpy as np
from numpy.typing import NDArray

from llamafactory_ext.series import FloatArray


POINTS = 1000
"""About as many points are drawn of a series."""


def thin(series: FloatArray, points: int = POINTS) -> NDArray[np.int64]:
    """Returns the indices of at most `points` values that draw the same line.

    M4, which keeps the first, last, lowest and highest value of every bin: MinMaxLTTB picks one value a bin, and may
    leave out the very spike that a label is about.
    """
    if len(series) <= points:
        return np.arange(len(series), dtype=np.int64)
    from tsdownsample import M4Downsampler

    return np.unique(M4Downsampler().downsample(series, n_out=points // 4 * 4)).astype(np.int64)


def value_range(values: FloatArray) -> tuple[float, float]:
    """Returns lowest and highest value to draw, apart from one another even for a constant series."""
    low, high = float(values.min()), float(values.max())
    if high > low:
        return low, high
    margin = abs(low) / 2 or 1.0
    return low - margin, high + margin


def share(value: float, low: float, high: float) -> float:
    """Returns where a value lies between the lowest (0) and the highest (1)."""
    # Halved first: the range of values near the largest float would overflow.
    return (value / 2 - low / 2) / (high / 2 - low / 2)
