"""Pieces: what of a series is asked about at once, and the way back from an answer to the series' own rows.

As in `prepare`: windows first, then thinning. The rule by which windows' intervals are joined: intervals of one type
that share a row become one, from the first row of any to the last row of any; so do two that meet where one window
ends and the next begins. Intervals of other types stay, and a series that was asked about whole keeps its answer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from llamafactory_ext.toolbox.prepare.resampling import choose_rows, lay_windows


Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """An interval, both ends counted: rows of a piece, later of the series."""

    start: int
    end: int
    type: str = ""
    reason: str = ""
    confidence: float | None = None


@dataclass(frozen=True, eq=False)
class Piece:
    """What is asked about at once."""

    values: Floats
    """Shape (points,)."""
    rows: npt.NDArray[np.int64]
    """Of the series, one for each point; grows."""

    @property
    def first(self) -> int:
        return int(self.rows[0])

    @property
    def last(self) -> int:
        return int(self.rows[-1])

    def back(self, one: Found) -> Found:
        """Returns an interval of points as one of the series' rows."""
        return replace(one, start=int(self.rows[one.start]), end=int(self.rows[one.end]))


def cut(values: Floats, window: int | None, stride: int | None, points: int | None) -> list[Piece]:
    """Cuts a series; see the module."""
    spans = [(0, len(values))] if window is None else lay_windows(len(values), window, stride or window)
    pieces = []
    for start, stop in spans:
        part = values[start:stop]
        rows = None if points is None else choose_rows([part], points)
        kept = np.arange(len(part), dtype=np.int64) if rows is None else rows
        pieces.append(Piece(part[kept], kept + start))
    return pieces


def join(found: Iterable[Found], spans: Sequence[tuple[int, int]]) -> list[Found]:
    """Joins the intervals of a series' pieces, in rows of the series; sorted.

    A joined interval takes reason and confidence of its most confident part, the first of equals.

    Arguments:
        spans: first and last row of each piece.
    """
    ordered = sorted(found, key=lambda one: (one.type, one.start, one.end))
    if len(spans) < 2:
        return _sorted(dict.fromkeys(ordered))
    ends, starts = {last for _, last in spans}, {first for first, _ in spans}
    joined: list[Found] = []
    for one in ordered:
        before = joined[-1] if joined and joined[-1].type == one.type else None
        meets = before is not None and one.start == before.end + 1 and before.end in ends and one.start in starts
        if before is None or not (one.start <= before.end or meets):
            joined.append(one)
            continue
        best = max(before, one, key=lambda part: -1.0 if part.confidence is None else part.confidence)
        joined[-1] = replace(best, start=before.start, end=max(before.end, one.end))
    return _sorted(joined)


def _sorted(found: Iterable[Found]) -> list[Found]:
    return sorted(found, key=lambda one: (one.start, one.end, one.type))
