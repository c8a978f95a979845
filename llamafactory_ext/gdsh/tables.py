"""Tables: the `value` column of a CSV file as a series, every row in its place."""

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv as arrow_csv

from llamafactory_ext.errors import GdshError, excerpt

from .textfiles import read_text


COLUMN = "value"
MAX_COLUMNS = 4096
MAX_ROWS = 1 << 22
"""Lines of a file, blank ones among them: as many points as any checkpoint may place."""

_LONGEST_ROW = 1 << 20  # characters


@dataclass(frozen=True, eq=False)
class Series:
    """One series, in the units of its CSV file."""

    values: npt.NDArray[np.float64]
    """Shape (rows,), all finite."""
    filled: int
    """Rows whose cell held no finite number and that were interpolated."""


def read_series(path: str | Path) -> Series:
    """Read the `value` column of a CSV file with a header.

    A row whose cell is no finite number keeps its place, so that the answers' intervals stay true, and takes
    the linear interpolation by row between its finite neighbours (before the first and after the last: theirs).
    Numbers are what Python's `float` reads, less the underscores that only Python allows.

    Raises:
        GdshError: unreadable, malformed, no or two `value` columns, no rows, no number in any row, or larger than
            `MAX_BYTES`, `MAX_ROWS` or `MAX_COLUMNS`.
    """
    text = read_text(path)
    if not text.strip():
        raise GdshError(f"{str(path)!r} is empty; expected a header with a column {COLUMN!r} and rows below it")
    if "\0" in text:
        raise GdshError(f"{str(path)!r} holds NUL characters; expected a text file: save it as UTF-8 CSV")
    lines = max(text.count("\n"), text.count("\r"))
    if lines > MAX_ROWS + 1:
        raise GdshError(f"{str(path)!r} has {lines:,} lines; at most {MAX_ROWS:,} rows are read: split or thin it")
    try:
        values = _plain_values(text)
        if values is None or not np.isfinite(values).any():
            values = _numbers(_value_cells(text))
    except GdshError as error:
        raise GdshError(f"{str(path)!r}: {error}") from error
    good = np.isfinite(values)
    rows = np.arange(len(values))
    values[~good] = np.interp(rows[~good], rows[good], values[good])
    return Series(values, int((~good).sum()))


def _plain_values(text: str) -> npt.NDArray[np.float64] | None:
    """Read a table without quotes whose lines have as many fields as the header: nearly every file.

    Arrow refuses every cell that Python's `float` refuses, and a few more; then, and where a line is odd, None:
    the slow way decides. Four times as fast as that.
    """
    header, _, body = text.partition("\n")
    if header.count(",") >= MAX_COLUMNS:
        return None
    names = [name.strip() for name in header.split(",")]
    if names.count(COLUMN) != 1 or len(names) == 1 or '"' in text or "\r" in text.replace("\r\n", "\n"):
        return None
    columns = [str(number) for number in range(len(names))]
    wanted = columns[names.index(COLUMN)]
    try:
        table = arrow_csv.read_csv(
            pa.py_buffer(body.encode()),
            read_options=arrow_csv.ReadOptions(use_threads=False, column_names=columns),
            convert_options=arrow_csv.ConvertOptions(include_columns=[wanted], column_types={wanted: pa.float64()}),
        )
    except pa.ArrowInvalid:
        return None
    chunks = table.column(0).chunks
    if table.column(0).null_count:  # empty cells, NA
        chunks = [chunk.fill_null(float("nan")) for chunk in chunks]
    # Not to_numpy(), which imports pandas: longer than a hundred files take. A copy, since Arrow's is read-only.
    return np.concatenate([np.from_dlpack(chunk) for chunk in chunks]) if table.num_rows else None


class _Lines:
    """The lines of a text, for a reader of rows: a row may have many lines, but has an end."""

    def __init__(self, text: str) -> None:
        self.rest = io.StringIO(text, newline="")
        self.room = _LONGEST_ROW

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self.rest.readline(self.room + 1)
        self.room -= len(line)
        if self.room < 0:
            raise GdshError(f"a row of more than {_LONGEST_ROW:,} characters; close its quotes, or export it anew")
        if not line:
            raise StopIteration
        return line


def _value_cells(text: str) -> list[str]:
    lines = _Lines(text)
    reader = csv.reader(lines, strict=True)
    cells: list[str] = []
    try:
        header = [name.strip() for name in next(reader)]
        place = _value_place(header)
        for row in _without_blank_lines(reader, len(header)):
            lines.room = _LONGEST_ROW
            cells.append(row[place] if place < len(row) else "")
    except csv.Error as error:
        raise GdshError(
            f"malformed CSV at line {reader.line_num}: {error}; close its quotes, or export it anew"
        ) from error
    if not cells:
        raise GdshError("a header, but no rows; expected a row for each point in time: export the series anew")
    return cells


def _value_place(header: list[str]) -> int:
    if len(header) > MAX_COLUMNS:
        raise GdshError(f"{len(header):,} columns; at most {MAX_COLUMNS:,} are read: leave out all but {COLUMN!r}")
    if header.count(COLUMN) != 1:
        found = "no column" if COLUMN not in header else f"{header.count(COLUMN)} columns"
        raise GdshError(
            f"{found} {COLUMN!r} in the header {excerpt(header)}; "
            f"name exactly one column {COLUMN!r}, separated by commas"
        )
    return header.index(COLUMN)


def _without_blank_lines(rows: Iterable[list[str]], width: int) -> Iterator[list[str]]:
    """Yield the lines that are rows, and refuse the rows that have too many fields.

    In a table of one column a blank line between two rows is an empty cell; in a wider one it is no row.
    """
    blank = 0
    for number, row in enumerate(rows):
        if not row or (len(row) == 1 and row[0].isspace()):
            blank += 1
            continue
        if len(row) > width:
            raise GdshError(
                f"row {number} has {len(row)} fields, the header {width}: {excerpt(row)}; "
                "put quotes round a field that holds a comma, or export the file anew"
            )
        if width == 1:
            yield from [[""]] * blank
        blank = 0
        yield row


def _numbers(cells: list[str]) -> npt.NDArray[np.float64]:
    values = np.array(list(map(_number, cells)), dtype=np.float64)
    if not np.isfinite(values).any():
        raise GdshError(
            f"no finite number in {len(cells)} rows of {COLUMN!r}, the first cell is "
            f"{excerpt(cells[0])}; write plain numbers there, or leave the record out"
        )
    return values


def _number(cell: str) -> float:
    try:
        return float(cell) if "_" not in cell else float("nan")
    except ValueError:
        return float("nan")
