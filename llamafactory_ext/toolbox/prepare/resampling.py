"""Resampling: long series made shorter by thinning or by windows, and their intervals moved along.

Thinning is MinMaxLTTB of tsdownsample. It looks at values alone, never at labels: a model that is asked later has
none, and must see series of the same kind as it was trained on. MinMaxLTTB was preferred to M4 by measuring both on
200 series of 5000 points with 11 anomalies each, drawn by `toolbox/demo/series.py`:

    points  method      anomalies with a point inside  rows an interval grows  error of interpolation / std
    1000    MinMaxLTTB  100 %                          2.2                     0.48
    1000    M4          100 %                          7.7                     0.56
     500    MinMaxLTTB  100 %                          5.8                     0.56
     500    M4           99.95 %                       17.8                    0.67

M4 keeps the lowest and highest row of each of its bins, and so the tops of narrow spikes a little better (on average
100 % of their height, against 99 %), but it spends its points in pairs that often coincide or touch: the steps
between them are less even, and intervals have to grow further to the next one.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from llamafactory_ext.gdsh import Anomaly, GdshError


Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_FEWEST = 3  # points that the method needs of each series


def choose_rows(series: Sequence[Floats], points: int) -> Indices | None:
    """Choose the rows to keep of series of equal length; None where they are short enough as they are.

    All series share one choice, so that they stay aligned: the union of what each of them needs.

    Args:
        series: each of shape (rows,).
        points: how many rows may stay, at least 8.

    Returns:
        Rows, sorted, each once, at most `points`; the first and the last are always among them.

    Raises:
        GdshError: as `check_alignment`.
    """
    if max(map(len, series)) <= points:
        return None
    check_alignment(series, window=None, points=points)
    from tsdownsample import MinMaxLTTBDownsampler  # only here: start-up is quicker without

    chosen = [
        MinMaxLTTBDownsampler().downsample(np.ascontiguousarray(values), n_out=points // len(series))
        for values in series
    ]
    return np.unique(np.concatenate(chosen).astype(np.int64))


def thin_anomalies(anomalies: Sequence[Anomaly], rows: Indices) -> tuple[list[Anomaly], int]:
    """Move intervals to the places that their rows take among the kept `rows` (shape (points,), sorted).

    An interval starts at the last kept row that is not after its start, and ends at the first that is not before
    its end: it covers what it covered, and grows by less than one step on either side.

    Returns:
        The anomalies, and how many of them have no kept row inside, so that only their neighbours are seen.
    """
    starts = np.array([anomaly.start for anomaly in anomalies], dtype=np.int64)
    ends = np.array([anomaly.end for anomaly in anomalies], dtype=np.int64)
    first = np.searchsorted(rows, starts, side="right") - 1
    last = np.searchsorted(rows, ends, side="left")
    inside = np.searchsorted(rows, ends, side="right") - np.searchsorted(rows, starts, side="left")
    moved = [
        replace(anomaly, start=int(start), end=int(end))
        for anomaly, start, end in zip(anomalies, first, last, strict=True)
    ]
    return moved, int((inside == 0).sum())


def lay_windows(length: int, window: int, stride: int) -> list[tuple[int, int]]:
    """Lay windows over a series of `length` rows, every `stride` rows and once more at its end if rows are left.

    Returns:
        (start, stop) of each, `stop` not counted; one window where the series is no longer than that.
    """
    if length <= window:
        return [(0, length)]
    starts = list(range(0, length - window + 1, stride))
    if starts[-1] + window < length:
        starts.append(length - window)
    return [(start, start + window) for start in starts]


def cut_anomalies(anomalies: Sequence[Anomaly], start: int, stop: int) -> list[Anomaly]:
    """Clip intervals to the rows `start` to `stop` (not counted), count them from `start`, drop those outside."""
    return [
        replace(anomaly, start=max(anomaly.start, start) - start, end=min(anomaly.end, stop - 1) - start)
        for anomaly in anomalies
        if anomaly.start < stop and anomaly.end >= start
    ]


def choose_normal(normal: Sequence[int], most: int | None) -> list[int]:
    """Choose at most `most` of the places `normal`, spread evenly; all where `most` is None."""
    if most is None or len(normal) <= most:
        return list(normal)
    return [normal[(2 * turn + 1) * len(normal) // (2 * most)] for turn in range(most)]


def check_alignment(series: Sequence[Floats], *, window: int | None, points: int | None) -> None:
    """Check that one choice of rows fits all series of a record, where rows have to be chosen at all.

    Raises:
        GdshError: series of unequal length, or too many for so few points.
    """
    lengths = sorted({len(values) for values in series})
    if lengths[-1] <= min(limit for limit in (window, points, lengths[-1]) if limit is not None):
        return
    if len(lengths) > 1:
        raise GdshError(
            f"series of {' and '.join(map(str, lengths))} rows in one record; expected equal lengths, as one choice "
            "of rows must fit all of them: prepare this record without --max-points and --window"
        )
    rows = lengths[-1] if window is None else min(window, lengths[-1])
    if points is not None and rows > points and points // len(series) < _FEWEST:
        raise GdshError(
            f"{len(series)} series share {points} points; expected {_FEWEST} or more for each: raise --max-points"
        )
