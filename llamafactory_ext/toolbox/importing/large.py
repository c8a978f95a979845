"""Text tables too large to be held whole: read piece by piece, each series written as its rows come.

Of a series its times (8 bytes a row) and the marks of a column of labels (2 bytes a row) stay in memory.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llamafactory_ext.errors import GdshError, excerpt

from .columns import Columns, Reading, find_columns, without_units
from .labels import plain_marks
from .layout import write_series
from .sources import Table, csv_options, reading, refuse_equal_names, safe_name, series_name
from .times import Axis, read_times, turn_at


LARGE = 1 << 27
"""Bytes of a file from which on it is read in pieces; packed ones count eightfold."""

_PIECE = 1 << 17  # rows
_LOOKED_AT = 10_000  # rows, to find out what the columns are


@dataclass(frozen=True)
class Dates:
    """How a column of times is to be read."""

    order: str = ""
    timezone: str | None = None


@dataclass
class _Growing:
    """One series, as far as it was read."""

    rows: int = 0
    times: Any = None
    axis: Axis | None = None
    turn: str = ""
    marks: Any = field(default_factory=lambda: array("h"))
    names: dict[str, int] = field(default_factory=dict)

    def add_times(self, cells: pd.Series, dates: Dates) -> None:
        """Takes the times of further rows.

        Raises:
            GdshError: they can't be read, or not as those before.
        """
        axis = read_times(cells, dates.order, dates.timezone, self.rows)
        if self.axis is None:
            self.axis, self.times = axis, array("q" if axis.kind == "time" else "d")
        known = self.axis
        if (axis.kind, axis.zoned, axis.rule) != (known.kind, known.zoned, known.rule):
            raise GdshError(
                f"the times are read by {known.rule!r} up to row {self.rows - 1} and by {axis.rule!r} after it; "
                "expected one way of writing: export the file anew, or say --dates day-first or month-first"
            )
        if self.times:
            before, after = self.times[-1], axis.values[0]
            steps = [self.times[-1] - self.times[0], after - before, axis.values[-1] - after]
            if min(steps) < 0 < max(steps):
                self.turn = self.turn or turn_at(self.rows, axis.show(after), axis.show(before))
        self.turn = self.turn or axis.turn
        self.times.frombytes(np.ascontiguousarray(axis.values).tobytes())

    def add_marks(self, cells: pd.Series) -> None:
        """Takes the labels of further rows."""
        codes, names = pd.factorize(plain_marks(cells))
        places = [self.names.setdefault(name, len(self.names)) for name in names]
        if len(self.names) > np.iinfo(np.int16).max:
            raise GdshError(f"the column of labels {cells.name!r} holds over 32,767 names; expected 0 and 1, or types")
        self.marks.frombytes(np.array(places, dtype=np.int16)[codes].tobytes())

    def table(self, name: str, path: Path, column: str, unused: tuple[str, ...], shared: "_Growing") -> Table:
        """Returns what is known of the series, its cells apart; `shared` has times and marks."""
        found, axis = Table(name, path, pd.Series(dtype=object), column=column, unused=unused), shared.axis
        found.count = self.rows
        if axis is not None:
            values = np.frombuffer(shared.times, dtype=np.int64 if axis.kind == "time" else np.float64)
            found.axis = Axis(values, axis.kind, axis.zoned, axis.timezone, axis.rule, shared.turn)
        if shared.names:
            marks = np.frombuffer(shared.marks, dtype=np.int16)
            found.label = pd.Series(pd.Categorical.from_codes(marks, list(shared.names)))
        return found


def is_large(path: Path) -> bool:
    """Whether a file is one to be read in pieces."""
    name = path.name.lower()
    if name.endswith((".xlsx", ".parquet")):
        return False
    return path.stat().st_size * (8 if name.endswith(".gz") else 1) > LARGE


def copy_tables(path: Path, how: Reading, folder: Path, dates: Dates) -> Iterator[Table]:
    """Writes the series of a file to `folder`, each as NAME.csv, its cells as they were; then yields them.

    Raises:
        GdshError: what `read_tables` raises, or that tags begin where none were looked for; names no file.
    """
    options = csv_options(path)
    with reading():
        head, left_out = without_units(pd.read_csv(path, **options, nrows=_LOOKED_AT), how)
    found = find_columns(head, how)
    wanted = [one for one in (found.time, found.tag, found.label, *found.series, *found.perhaps_tags) if one]
    options |= {"dtype": str, "usecols": lambda name: name in wanted, "chunksize": _PIECE}
    growing: dict[tuple[str, str], _Growing] = {}
    shared: dict[str, _Growing] = {}
    names: dict[str, tuple[str, str]] = {}
    with reading(), pd.read_csv(path, **options) as pieces:
        for number, piece in enumerate(pieces):
            if left_out and not number:
                piece = piece[1:]
            _refuse_tags(piece, found, head)
            for tag, part in piece.groupby(found.tag, sort=False) if found.tag else [("", piece)]:
                known = shared.setdefault(str(tag), _Growing())
                if found.time:
                    known.add_times(part[found.time], dates)
                if found.label:
                    known.add_marks(part[found.label])
                known.rows += len(part)
                for column in found.series:
                    name = safe_name(str(tag)) if found.tag else series_name(path, column, found, how)
                    one = growing.setdefault((str(tag), column), _Growing())
                    if names.setdefault(name, (str(tag), column)) != (str(tag), column):
                        refuse_equal_names([(name, path)] * 2)
                    table = Table(name, path, part[column], part[found.time] if found.time else None)
                    write_series(table, folder / f"{name}.csv", begin=not one.rows)
                    one.rows += len(part)
    for (tag, column), one in growing.items():
        name = safe_name(tag) if found.tag else series_name(path, column, found, how)
        table = one.table(name, path, column, found.unused, shared[tag])
        table.left_out = left_out
        yield table


def _refuse_tags(piece: pd.DataFrame, found: Columns, head: pd.DataFrame) -> None:
    """A column of tags was constant where the columns were looked at: rows of a second sensor come later."""
    for name in found.perhaps_tags if not found.tag else ():
        first = head[name].iloc[0]
        others = piece[name][piece[name].notna() & (piece[name].str.strip() != str(first).strip())]
        if len(others) and not pd.api.types.is_numeric_dtype(head[name]):
            raise GdshError(
                f"the column {name!r} has {excerpt(first)} in its first rows and {excerpt(others.iloc[0])} in row "
                f"{others.index[0]}; if it names sensors, say --tag-column {name}, else take the column out"
            )
