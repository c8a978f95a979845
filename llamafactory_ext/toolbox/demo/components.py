"""Draws series of many kinds, with anomalies of any type of `ALL_SHAPES`: what mini learns to read.

`series.py` draws one kind of plant; here levels, noise, rhythms, sizes and lengths vary, so that what is learnt holds
for series of others, too.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamafactory_ext.toolbox.demo.series import ALL_SHAPES, SHAPES, Interval, Values


RHYTHMIC = ("上下文异常", "节奏改变", "趋势改变")  # they change a rhythm, and need one
UNSTEADY = ("阶跃上升", "阶跃下降", "突然漂移", "缓慢漂移")  # a level that wanders does the same by itself
CONTEXT = "上下文异常"


@dataclass(frozen=True)
class Background:
    """A series without anomalies, in its parts; all `[length]`."""

    level: float
    rhythm: Values
    fast: Values
    """The same rhythm, running faster: what a change of rhythm shows in its interval."""
    wander: Values
    noise: Values
    deviation: float
    """Of the noise."""
    swing: float
    """How far the series moves by itself, the noise aside or not at all."""
    period: float
    """Of the rhythm, in points; 0: there is none."""

    @property
    def values(self) -> Values:
        return self.level + self.rhythm + self.wander + self.noise


def draw_background(length: int, rng: np.random.Generator) -> Background:
    """Draw a background: with a rhythm (most of them), level with noise, or wandering."""
    unit = float(10 ** rng.uniform(-0.7, 2))  # of the noise
    level = float(rng.choice([-1, 1], p=[0.08, 0.92]) * unit * 10 ** rng.uniform(0.5, 3))
    kind = rng.choice(["rhythm", "level", "wander"], p=[0.68, 0.17, 0.15])
    noise = unit * rng.standard_normal(length)
    none = np.zeros(length)
    if kind == "level":
        return Background(level, none, none, none, noise, unit, 3 * unit, 0)
    if kind == "wander":
        swing = unit * rng.uniform(2, 5)
        return Background(level, none, none, swing * _walk(length, rng), noise, unit, swing, 0)
    swing = unit * rng.uniform(2.5, 7)
    period = float(np.exp(rng.uniform(np.log(24), np.log(max(40, min(400, 1.3 * length))))))
    phase, sharpness = rng.uniform(0, 2 * np.pi), rng.choice([0.0, rng.uniform(0, 0.4)])
    faster = rng.uniform(2.5, 4)
    turns = 2 * np.pi * np.arange(length) / period

    def wave(angle: NDArray[np.floating[Any]]) -> Values:
        return np.asarray(swing * (np.sin(angle) + sharpness * np.sin(2 * angle + phase)), dtype=np.float64)

    return Background(level, wave(turns + phase), wave(faster * turns + phase), none, noise, unit, swing, period)


def _walk(length: int, rng: np.random.Generator) -> Values:
    """A level that wanders, of deviation 1 and smooth from one point to the next."""
    memory = rng.uniform(0.93, 0.99)
    steps = np.sqrt(1 - memory**2) * rng.standard_normal(length)
    walk = np.empty(length)
    here = rng.standard_normal()
    for index, step in enumerate(steps.tolist()):
        here = memory * here + step
        walk[index] = here
    return walk


def fitting(background: Background, kinds: tuple[str, ...]) -> tuple[str, ...]:
    """The types that such a background can show so that they can be told."""
    wanders = bool(background.wander.any())
    return tuple(
        kind
        for kind in kinds
        if not (kind in RHYTHMIC and background.period < 40) and not (kind in UNSTEADY and wanders)
    )


def draw_places(kinds: tuple[str, ...], length: int, rng: np.random.Generator) -> list[Interval]:
    """Give each anomaly an interval in its own part of the series; their lengths grow with that of the series."""
    part = length // len(kinds)
    stretch = float(np.clip(length / 512, 0.25, 1.4) * rng.uniform(0.7, 1.3))
    places = []
    for number, kind in enumerate(kinds):
        shortest, longest = ALL_SHAPES[kind].length
        if longest > 1:
            fewest = 3 if longest <= 20 else 12
            low = max(fewest, round(shortest * stretch))
            high = max(low, round(longest * stretch))
            count = min(int(rng.integers(low, high + 1)), part - 6)
        else:
            count = 1
        start = number * part + int(rng.integers(2, part - count - 2))
        places.append((start, start + count - 1))
    return places


def put_in(background: Background, kinds: tuple[str, ...], places: list[Interval], rng: np.random.Generator) -> Values:
    """Return the background's series with the anomalies, each exactly in its interval and nowhere else."""
    normal = background.values
    values = normal.copy()
    for kind, (start, end) in zip(kinds, places, strict=True):
        inside = slice(start, end + 1)
        values[inside] = _changed(kind, background, normal[inside], inside, rng)
    return values


def _changed(kind: str, background: Background, stretch: Values, inside: slice, rng: np.random.Generator) -> Values:
    swing, count = background.swing, len(stretch)
    height = 6 * swing * rng.uniform(0.7, 1.4)
    match kind:
        case "噪声增大":
            louder = background.deviation * rng.uniform(2.5, 5) * rng.standard_normal(count)
            return np.asarray(stretch + louder, dtype=np.float64)
        case "节奏改变":
            return background.level + background.fast[inside] + background.noise[inside]
        case "趋势改变":
            towards = -1 if stretch.mean() > background.level else 1
            rise: Values = np.linspace(0, 1, count + 1)[1:]
            return stretch + towards * swing * rng.uniform(1.8, 3) * rise
        case "数值冻结":
            return np.full_like(stretch, stretch[0] if rng.random() < 0.5 else stretch.mean())
        case "上下文异常":
            return 2 * background.level - stretch
        case _:
            return SHAPES[kind].change(stretch, background.level, height)
