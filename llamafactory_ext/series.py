"""What ChatTS makes of a series before the model: scaling, the text in front of it, the tensor values.

Pure numpy. The formulas are those of the published processor (NetManAIOps/ChatTS, ``sp_encoding``); every number here
is one that the model sees.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


FloatArray = NDArray[np.float64]

MARKER = "<ts><ts/>"
"""Stands for one series in a message."""

PATCH_TOKEN = "<ts>"
"""The token that the text repeats once a patch, and whose embedding the model overwrites."""

_LIMIT = 3.0  # a scaled series stays within ±3 of its mean


class SeriesError(ValueError):
    """A series that can't be encoded; the message says why and what to do."""


def as_series(values: Any) -> FloatArray:
    """Returns one series as a float64 vector of shape ``[length]``.

    Raises:
        SeriesError: no points, not one-dimensional, or values that are not finite numbers. One NaN would poison the
            mean, and through it every patch.
    """
    try:
        series = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as err:  # OverflowError: an integer beyond float64
        raise SeriesError(
            f"found a series that is not a list of numbers ({err}); expected e.g. [0.5, 1, 2.25]"
        ) from err
    if series.ndim != 1:
        raise SeriesError(f"found a series of shape {list(series.shape)}; expected one list of numbers")
    if series.size == 0:
        raise SeriesError("found a series without points; expected at least one")
    if not np.isfinite(series).all():
        bad = np.flatnonzero(~np.isfinite(series))
        raise SeriesError(
            f"found {bad.size} values that are not finite numbers, the first at index {bad[0]}; "
            "expected finite numbers: interpolate them, so that later indices still match the labels"
        )
    return series


def refuse_encoded(series: FloatArray) -> None:
    """Refuses what `encode` gives, scaled values and a mask of ones in turn: it would be scaled a second time.

    Raises:
        SeriesError: the series looks so.
    """
    values, mask = series[0::2], series[1::2]
    if len(series) < 8 or len(values) != len(mask):
        return
    ones = int((mask == 1).sum())  # behind them what fills a shorter series up: zeros
    fits = (mask[:ones] == 1).all() and not mask[ones:].any() and not values[ones:].any()
    if ones >= 4 and fits and np.abs(values).max() <= _LIMIT + 0.01 and len(np.unique(values[:ones])) > 2:
        raise SeriesError(
            f"found a series of {len(series)} numbers of which every second one is 1: scaled values and their mask, "
            "as the model takes them; expected the series as it was measured: take it from before the processor, "
            "or every second number times the scaling, less the offset"
        )


def scale(series: FloatArray) -> tuple[FloatArray, float, float]:
    """Returns the scaled series and the ``offset`` and ``scaling`` that the prompt tells.

    ``y = x - mean(x)``; where any ``|y| >= 3``, ``scaling = max|y| / 3`` and ``y`` is divided by it, else
    ``scaling = 1``. ``offset = -mean(x)``.

    Raises:
        SeriesError: values so large that their mean or range overflows float64.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.mean(series)
        centred = series - mean
    peak = np.max(np.abs(centred))
    if not np.isfinite(peak):
        raise SeriesError("found values whose mean or range overflows; expected numbers well below 1e308: rescale")
    scaling = 1.0
    if peak >= _LIMIT:
        scaling = float(peak / _LIMIT)
        centred = centred / scaling
    return centred, float(-mean), scaling


def describe(series: FloatArray) -> str:
    """Returns the text that tells the model what scaling took away, to stand in front of the patches."""
    _, offset, scaling = scale(series)
    # The first of equal extremes, as Python's max and min take it: 0.0 and -0.0 are equal but print differently.
    high, low = series[series.argmax()], series[series.argmin()]
    return (
        f"[offset={offset:.4f}|scaling={scaling:.4f}|length={len(series)}|max={high:.4f}|"
        f"min={low:.4f}|left={series[0]:.4f}|right={series[-1]:.4f}]"
    )


def patch_count(length: int, patch_size: int) -> int:
    """Returns how many patches, and so how many tokens, a series of ``length`` points takes."""
    return -(-length // patch_size)


def expand(series: FloatArray, patch_size: int) -> str:
    """Returns the text that replaces a series' marker: its description and one ``<ts>`` a patch."""
    return describe(series) + PATCH_TOKEN * patch_count(len(series), patch_size)


def encode(batch: Iterable[Sequence[float] | FloatArray]) -> NDArray[np.float16]:
    """Returns the tensor values of several series, shape ``[series, 2 * longest, 1]``.

    Scaled value and a mask of ones alternate (``y0, 1, y1, 1, …``); shorter series are filled up with zeros. Rounded
    to float16 by way of float32, as torch does it for the published processor: the model was trained on such values.
    """
    scaled = [scale(as_series(series))[0] for series in batch]
    longest = max((len(y) for y in scaled), default=0)
    values = np.zeros((len(scaled), longest, 2), dtype=np.float16)
    for row, y in zip(values, scaled, strict=True):
        row[: len(y), 0] = y.astype(np.float32)
        row[: len(y), 1] = 1
    return values.reshape(len(scaled), 2 * longest, 1)
