"""Tables: one column of a CSV file as a series, every row in its place, and what is to be known of it.

Nearly every file is read by Arrow, batch by batch: memory holds the column, never the file. What Arrow refuses,
or what has quotes or odd lines, is read row by row, twice: to see how its numbers are written, and to read them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llamafactory_ext.errors import GdshError, excerpt

from .columns import Watch
from .layout import Layout, TableOptions
from .numerals import Notation
from .text_table import Floats, TextTable
from .textfiles import Scan, opened, scan
from .workbooks import read_parquet, write_as_csv


MAX_ROWS = 1 << 27
"""Lines of a file, blank ones among them: four years of seconds."""

_BATCH = 1 << 16  # rows

Remark = tuple[str, str]
"""Kind and text."""


@dataclass(frozen=True, eq=False)
class Series:
    """One series, in the units of its file."""

    values: Floats
    """Shape (rows,), all finite."""
    gaps: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Rows that held no value and were interpolated, ascending."""
    remarks: tuple[Remark, ...] = ()
    """What is not as usual: ``column``, ``notation``, ``layout``, ``quality``: read so; ``quality_unused``, ``time``,
    ``sentinel``: perhaps wrong."""

    @property
    def filled(self) -> int:
        """How many rows were interpolated."""
        return len(self.gaps)

    def filled_within(self, start: int, end: int) -> int:
        """How many rows from `start` to `end`, both counted, were interpolated."""
        first, after = np.searchsorted(self.gaps, [start, end + 1])
        return int(after - first)


def read_series(path: str | Path, options: TableOptions = TableOptions()) -> Series:  # noqa: B008 - it is frozen
    """Read one column of a table with a header: CSV with commas, semicolons or tabs, Excel, Parquet.

    A row whose cell is empty or a word (Bad, NaN) keeps its place, so that the answers' intervals stay true, and takes
    the linear interpolation by row between its finite neighbours (before the first and after the last: theirs).
    Numbers are what Python's `float` reads, less the underscores that only Python allows, and what `numerals` reads.

    Raises:
        GdshError: unreadable, malformed, no column that is meant, several series, no rows, no number in any row, a
            cell with digits that is no number, or larger than `textfiles.MAX_TABLE`, `MAX_ROWS` or `MAX_COLUMNS`.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".parquet":
            values, remarks = _read_parquet(path, options)
        else:
            data = write_as_csv(path) if path.suffix.lower() == ".xlsx" else None
            values, remarks = _read_table(scan(path, data), options)
    except GdshError as error:
        said, name = str(error), repr(str(path))
        joined = f"{name} {said}" if said.startswith(("is ", "has ", "holds ")) else f"{name}: {said}"
        raise GdshError(said if said.startswith(name) else joined) from error
    good = np.isfinite(values)
    if good.all():
        return Series(values, remarks=tuple(remarks))
    gaps = np.flatnonzero(~good)
    values[gaps] = np.interp(gaps, np.flatnonzero(good), values[good])
    return Series(values, gaps, tuple(remarks))


def read_times(path: str | Path, options: TableOptions = TableOptions()) -> pa.Array | None:  # noqa: B008 - frozen
    """The cells of the time column as the file writes them, one for each row of `read_series`, as `large_string`.

    Returns:
        None where the table has no such column, or where it is that of the values.

    Raises:
        GdshError: as `read_series`, of which this is the second look.
    """
    path = Path(path)
    if path.suffix.lower() == ".parquet":
        with opened(path):
            return _time_cells(*read_parquet(path, options), "utf-8")
    table = TextTable(scan(path, write_as_csv(path) if path.suffix.lower() == ".xlsx" else None), options)
    if table.is_plain:
        with suppress(pa.ArrowInvalid):
            return _time_cells(table.layout, table.batches(), table.scan.encoding)
    return _time_cells(table.layout, _row_batches(table, None), "utf-8")


def _time_cells(
    layout: Layout, batches: Iterable[tuple[Floats, dict[str, pa.Array]]], encoding: str
) -> pa.Array | None:
    if layout.time is None or layout.time == layout.value:
        return None
    parts = []
    for _, others in batches:
        column = others["time"]
        if pa.types.is_binary(column.type) and encoding != "utf-8":
            column = pa.array([cell.decode(encoding) for cell in column.to_pylist()], type=pa.large_string())
        parts.append(column.cast(pa.large_string()).fill_null(""))
    return pa.chunked_array(parts, type=pa.large_string()).combine_chunks()


def _read_parquet(path: Path, options: TableOptions) -> tuple[Floats, list[Remark]]:
    with opened(path):
        layout, batches = read_parquet(path, options)
        return _collect(batches, Watch(layout, options), options, lambda: "no number")


def _read_table(found: Scan, options: TableOptions) -> tuple[Floats, list[Remark]]:
    lines = max(found.newlines, found.returns)
    if not found.head.strip():
        raise GdshError("is empty; expected a header with a column 'value' and rows below it")
    if found.has_nul:
        raise GdshError("holds NUL characters; expected a text file: save it as UTF-8 CSV")
    if lines > MAX_ROWS + 1:
        raise GdshError(f"has {lines:,} lines; at most {MAX_ROWS:,} rows are read: split or thin it")
    table = TextTable(found, options)
    if table.is_plain:
        try:
            values, remarks = _collect(table.batches(), Watch(table.layout, options), options, lambda: "")
            if np.isfinite(values).any() and not np.isinf(values).any():
                return values, [*table.extra, *remarks]
        except (pa.ArrowInvalid, _NoRows):
            pass
    return _read_rows(table, options)


def _collect(
    batches: Iterable[tuple[Floats, dict[str, Any]]], watch: Watch, options: TableOptions, first: Callable[[], str]
) -> tuple[Floats, list[Remark]]:
    """Put batches of values together, less those that stand for no value, and hear what else there is to say."""
    missing = [float(text) for text in options.missing_values if _is_float(text)]
    parts = []
    for values, others in batches:
        for number in missing:
            values[values == number] = np.nan
        watch.see(values, others)
        parts.append(values)
    if not sum(map(len, parts)):
        raise _NoRows("a header, but no rows; expected a row for each point in time: export the series anew")
    values = np.concatenate(parts)
    del parts
    if first() and not np.isfinite(values).any():
        raise GdshError(
            f"no finite number in {len(values)} rows of {watch.layout.names[watch.layout.value]!r}, the first cell is "
            f"{first()}; write plain numbers there, or leave the record out"
        )
    return values, [*watch.layout.remarks, *watch.remarks(values)]


class _NoRows(GdshError):
    """A table without rows; Arrow may see none where blank lines are rows."""


def _read_rows(table: TextTable, options: TableOptions) -> tuple[Floats, list[Remark]]:
    """Read a table row by row, twice."""
    place = table.layout.value
    notation = Notation(frozenset(options.missing_values))
    first = None
    for line, row in table.rows():
        cell = row[place] if place < len(row) else ""
        first = cell if first is None else first
        notation.see(cell, line)
    notation.settle()
    watch = Watch(table.layout, options)
    shown = excerpt(first or "")
    values, remarks = _collect(_row_batches(table, notation), watch, options, lambda: shown)
    return values, [*table.extra, *remarks, *([("notation", notation.remark)] if notation.remark else [])]


def _row_batches(table: TextTable, notation: Notation | None) -> Iterator[tuple[Floats, dict[str, pa.Array]]]:
    """The rows of a table; without a notation what stands beside the values only."""
    layout = table.layout
    places = {"time": layout.time, "quality": layout.quality, "tag": layout.tag}
    others = {key: place for key, place in places.items() if place is not None and place != layout.value}
    rows: list[list[str]] = []
    for _, row in table.rows():
        rows.append(row)
        if len(rows) == _BATCH:
            yield _batch(rows, layout.value, others, notation)
            rows = []
    if rows:
        yield _batch(rows, layout.value, others, notation)


def _batch(
    rows: Sequence[list[str]], value: int, others: dict[str, int], notation: Notation | None
) -> tuple[Floats, dict[str, pa.Array]]:
    def column(place: int) -> list[str]:
        return [row[place] if place < len(row) else "" for row in rows]

    values = np.array([notation.read(cell) for cell in column(value)] if notation else [], dtype=np.float64)
    return values, {key: pa.array(column(place), type=pa.string()) for key, place in others.items()}


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
