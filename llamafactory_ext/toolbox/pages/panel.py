"""A series as it is drawn: where its line, the bars of its intervals and the numbers of its axes lie.

Places along the series are in percent of the width, heights in pixels: so letters and strokes keep their size while
the width follows the screen, from a phone to a wide one. Index i of n takes the i-th of n equal parts of the width.
Labels lie above the series and predictions below, so that agreement is a column from top to bottom.
"""

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llamafactory_ext.series import FloatArray
from llamafactory_ext.toolbox.session.tokens import round_step


LABEL, GUESS = "label", "guess"
"""Lanes, and classes of what lies in them: labels and predictions."""

PADDING = 6.0
"""Pixels that the line keeps from the plot's edges."""

ACROSS, DOWN = 4000, 1000
"""Units of the part that stretches with the width (the viewBox in the template); whole numbers keep the page small."""

_NAMES = {LABEL: "labels", GUESS: "predicted"}
_LANE, _GAP = 12, 4  # heights of a row of bars, and of what lies between it and the plot
_PLOT, _BARE = 120, 16  # height of the plot, with a series and without
_TIME = len("2025-01-01 00:00")
_AXIS = 18  # below everything, for the numbers
_POINTS = 1000  # drawn of a series, about
_CROWD = 60  # single points: large marks of more would hide the series
_ZOOMED = 100_000  # rows of a series that can be zoomed: more would make the page too heavy
_REASON = 300  # characters in a tooltip


class Interval(Protocol):
    """A label or a prediction: 0-based, both ends counted."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def type(self) -> str: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True)
class Bar:
    """One interval."""

    left: float
    width: float
    colour: str
    """Class of its colour, empty for that of its lane."""
    tip: str
    index: int
    """Its first."""
    last: int
    dot: float | None
    """Where the value of a single point lies, in pixels from the top; else None."""


@dataclass(frozen=True)
class Lane:
    """A row of bars."""

    kind: str
    name: str
    y: int
    bars: list[Bar]
    tint: tuple[float, float]
    """Upper edge and height of what is coloured in the plot."""
    radius: float
    """Of marks on single points."""


@dataclass(frozen=True)
class Panel:
    """One series with its axes and lanes."""

    title: str
    number: str
    """Tells its parts from those of other panels of the page."""
    caption: str
    length: int
    lanes: list[Lane]
    top: int
    plot: int
    """Upper edge and height of the plot."""
    bottom: int
    columns: Sequence[tuple[float, int | str]]
    """Places and indices of vertical lines, or what is written there in place of an index."""
    rows: list[tuple[float, float]]
    """Places and values of horizontal lines."""
    line: str
    """Points of the line, empty without finite values."""
    is_dot: bool
    """Whether it has a single one."""
    values: str = ""
    """What can be zoomed: 16 bits a row from the lowest (0) to the highest (65534), 65535 for none; base64."""

    @property
    def height(self) -> int:
        return self.bottom + _AXIS

    def with_times(self, time: Callable[[int], str]) -> "Panel":
        """Returns the panel with times on its axis, at every second line; without times, as it is."""
        named = [
            (place, time(index)[:_TIME] if isinstance(index, int) else index) for place, index in self.columns[::2]
        ]
        return replace(self, columns=named) if named and named[0][1] else self


def make_panels(
    name: str,
    number: str,
    length: int,
    lanes: Mapping[str, Sequence[Interval]],
    all_series: Sequence[FloatArray],
    colours: Mapping[str, str] | None = None,
    most: int | None = None,
) -> Iterator[Panel]:
    """Yields a panel for each series of a record, with its number where there are several; see `make_panel`."""
    count = len(all_series)
    for place, series in enumerate(all_series[:most]):
        which = f"series {place + 1} of {count}" if count > 1 else ""
        title = f"{name}, {which}" if which else name
        axis = max(length, len(series))
        yield make_panel(title, f"{number}-{place}", axis, lanes, series, colours, which)


def make_panel(
    title: str,
    number: str,
    length: int,
    lanes: Mapping[str, Sequence[Interval]],
    series: FloatArray | None = None,
    colours: Mapping[str, str] | None = None,
    caption: str = "",
) -> Panel:
    """Returns one panel.

    Arguments:
        length: points of the axis.
        lanes: what lies in `LABEL` and, where there are predictions, in `GUESS`; what shares no point with the axis is
            not drawn.
        series: shape ``[points]``, not longer than the axis; values that are not finite are left out of the line.
        colours: classes by anomaly type.
    """
    values = np.array([]) if series is None else series
    at = np.flatnonzero(np.isfinite(values))
    low, high = value_range(values[at]) if len(at) else (0.0, 1.0)
    plot, top = _PLOT if len(at) else _BARE, _LANE + _GAP

    def down(value: Any) -> Any:
        return PADDING + (1 - _share(value, low, high)) * (plot - 2 * PADDING)

    drawn = []
    for place, (kind, given) in enumerate(lanes.items()):
        bars = list(_bars(given, length, values, colours or {}, lambda value: top + down(value)))
        large = sum(bar.dot is not None for bar in bars) <= _CROWD
        radius = (3.5 if large else 2) if kind == LABEL else (5.5 if large else 3)
        share = plot / len(lanes)
        y = place * (top + plot + _GAP)
        drawn.append(Lane(kind, _NAMES[kind], y, bars, (top + place * share, share), radius))
    dots = [bar.index for lane in drawn for bar in lane.bars if bar.dot is not None]
    kept = np.union1d(at[thin(values[at])], np.array(dots, dtype=np.int64))  # what is marked is on the line
    across = np.rint((kept + 0.5) / length * ACROSS).astype(int).tolist()
    below = np.rint(down(values[kept]) / plot * DOWN).astype(int).tolist()
    pairs = [f"{x},{y}" for x, y in zip(across, below, strict=True)]
    return Panel(
        title=title,
        number=number,
        caption=caption,
        length=length,
        lanes=drawn,
        top=top,
        plot=plot,
        bottom=top + plot + (len(lanes) - 1) * (_GAP + _LANE),
        columns=[((one + 0.5) / length * 100, one) for one in range(0, length, round_step(length / 8))],
        rows=[(top + down(one), one) for one in (low, low / 2 + high / 2, high)] if len(at) else [],
        line=" ".join(pairs * 2 if len(pairs) == 1 else pairs),  # a line of no length is drawn, a point is not
        is_dot=len(pairs) == 1,
        values=_packed(values, low, high) if len(at) and 1 < len(values) <= _ZOOMED else "",
    )


def _packed(values: FloatArray, low: float, high: float) -> str:
    finite = np.isfinite(values)
    levels = np.full(len(values), 65535, dtype="<u2")
    levels[finite] = np.rint(_share(values[finite], low, high) * 65534)
    return base64.b64encode(levels.tobytes()).decode()


def _bars(
    given: Iterable[Interval],
    length: int,
    values: FloatArray,
    colours: Mapping[str, str],
    down: Callable[[float], float],
) -> Iterator[Bar]:
    """Yields those that share a point with the axis, widest first, so that narrow ones end up on top."""
    for one in sorted(given, key=lambda one: one.start - one.end):
        start, end = max(one.start, 0), min(one.end, length - 1)
        if start > end:
            continue
        single = 0 <= one.start == one.end < len(values) and np.isfinite(values[one.start])
        dot = down(float(values[one.start])) if single else None
        left, width = start / length * 100, (end + 1 - start) / length * 100
        yield Bar(left, width, colours.get(one.type, ""), _tip(one), start, end, dot)


def thin(series: FloatArray, points: int = _POINTS) -> NDArray[np.int64]:
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


def _share(value: Any, low: float, high: float) -> Any:
    """Where values lie between the lowest (0) and the highest (1)."""
    # Halved first: the range of values near the largest float would overflow.
    return (value / 2 - low / 2) / (high / 2 - low / 2)


def _tip(one: Interval) -> str:
    reason = one.reason if len(one.reason) <= _REASON else f"{one.reason[:_REASON]}…"
    return "\n".join(filter(None, (f"{one.type or '(no type)'} [{one.start}, {one.end}]", reason)))
