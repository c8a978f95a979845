"""Draws plant-like series and puts anomalies into them, each exactly in its interval and nowhere else."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


Values = NDArray[np.float64]
Interval = tuple[int, int]  # first and last index, 0-based, both counted


@dataclass(frozen=True)
class Shape:
    """One anomaly type: how long it lasts, what it does, and the remark an annotator would leave."""

    length: tuple[int, int]  # shortest and longest, in points
    change: Callable[[Values, float, float], Values]  # (stretch, level, height) -> the stretch with the anomaly
    reason: str


def _rise(count: int) -> Values:
    """From just above 0 to 1 in `count` steps."""
    return np.linspace(0, 1, count + 1)[1:]


def _tent(count: int) -> Values:
    """Up to 1 in the middle and down again, never 0."""
    inner: Values = 1 - np.abs(np.linspace(-1, 1, count + 2))[1:-1]
    return inner


def _zigzag(count: int) -> Values:
    return np.where(np.arange(count) // 2 % 2 == 0, 1.0, -1.0)


def _up_down(count: int) -> Values:
    return np.where(np.arange(count) < count / 2, 1.0, -1.0)


SHAPES: dict[str, Shape] = {
    "点异常": Shape((1, 1), lambda x, level, height: x + 1.5 * height, "单个点远离前后数值"),
    "上行尖峰": Shape((4, 20), lambda x, level, height: x + height * _tent(len(x)), "短时冲高后回落"),
    "下行尖峰": Shape((4, 20), lambda x, level, height: x - height * _tent(len(x)), "短时跌落后恢复"),
    "双向尖峰": Shape((4, 20), lambda x, level, height: x + height * _up_down(len(x)), "先冲高再跌落"),
    "阶跃上升": Shape((30, 90), lambda x, level, height: x + height, "数值整体抬高一级"),
    "阶跃下降": Shape((30, 90), lambda x, level, height: x - height, "数值整体降低一级"),
    "突然漂移": Shape((40, 100), lambda x, level, height: x + height * np.sqrt(_rise(len(x))), "很快偏离原有水平"),
    "缓慢漂移": Shape((60, 120), lambda x, level, height: x + height * _rise(len(x)), "逐渐偏离原有水平"),
    "区间异常": Shape((30, 90), lambda x, level, height: np.full_like(x, level - height), "整段数值停住不动"),
    "震荡区间": Shape((30, 90), lambda x, level, height: x + height * _zigzag(len(x)), "整段来回快速摆动"),
    "上下文异常": Shape((30, 90), lambda x, level, height: 2 * level - x, "数值在量程内但与所处周期相反"),
}


def _smooth(stretch: Values) -> Values:
    places = np.linspace(-1, 1, len(stretch))
    fitted = np.polynomial.polynomial.polyfit(places, stretch, 3)
    return np.asarray(np.polynomial.polynomial.polyval(places, fitted), dtype=np.float64)


def _fast(stretch: Values, level: float, height: float) -> Values:
    cycles: Values = np.sin(2 * np.pi * 3 * np.arange(len(stretch)) / len(stretch))
    return level + height / 6 * cycles + stretch - _smooth(stretch)


def _tilt(stretch: Values, level: float, height: float) -> Values:
    towards = -1 if stretch.mean() > level else 1
    return stretch + towards * height * 0.35 * _rise(len(stretch))


# What stays within the range of the series, so that no fence around its values finds it. The rhythm is a sixth of the
# height of the shapes above, the noise a 24th.
INCONSPICUOUS: dict[str, Shape] = {
    "数值冻结": Shape((40, 120), lambda x, level, height: np.full_like(x, x.mean()), "量程内数值停住不动"),
    "节奏改变": Shape((40, 120), _fast, "波动幅度不变但明显变快"),
    "噪声增大": Shape((40, 120), lambda x, level, height: 4 * x - 3 * _smooth(x), "趋势不变但噪声变大"),
    "趋势改变": Shape((40, 120), _tilt, "量程内逐渐偏离原有节奏"),
}
ALL_SHAPES = SHAPES | INCONSPICUOUS


def draw_intervals(
    kinds: tuple[str, ...], length: int, rng: np.random.Generator, shrink: float = 1.0
) -> list[Interval]:
    """Give each anomaly of `kinds` an interval in its own part of a series of `length` points.

    Intervals are `shrink` times as long as `ALL_SHAPES` says, for series shorter than GDSH's.
    """
    part = length // len(kinds)
    intervals = []
    for place, kind in enumerate(kinds):
        shortest, longest = (max(1, round(points * shrink)) for points in ALL_SHAPES[kind].length)
        count = int(rng.integers(shortest, longest + 1))
        start = place * part + int(rng.integers(2, part - count - 2))
        intervals.append((start, start + count - 1))
    return intervals


def draw_series(
    kinds: tuple[str, ...], intervals: list[Interval], length: int, rng: np.random.Generator, shrink: float = 1.0
) -> tuple[Values, Values]:
    """Draw a daily rhythm with noise; return it without and with the anomalies, `[length]` each.

    A day is `shrink` times as long as in a series of GDSH's length.
    """
    level = float(np.round(rng.uniform(20, 400), 1))
    noise = level * 0.004
    day = shrink * rng.uniform(180, 320)
    rhythm = 4 * noise * np.sin(2 * np.pi * np.arange(length) / day + rng.uniform(0, 6))
    normal: Values = level + rhythm + noise * rng.standard_normal(length)
    values = normal.copy()
    for kind, (start, end) in zip(kinds, intervals, strict=True):
        values[start : end + 1] = ALL_SHAPES[kind].change(normal[start : end + 1], level, 24 * noise)
    return normal, values


def draw_gaps(intervals: list[Interval], length: int, rng: np.random.Generator) -> dict[int, str]:
    """Choose cells without a number, as a historian leaves them, outside of every interval: index -> cell text."""
    taken = {index for start, end in intervals for index in range(start - 1, end + 2)}
    start = int(rng.integers(5, length - 15))
    cells = {start + step: "" for step in range(6)} | {int(rng.integers(length)): "Bad" for _ in range(4)}
    return {index: text for index, text in sorted(cells.items()) if index not in taken}
