"""A text table: its header says what its columns are, and its rows are read by Arrow, or one by one.

Arrow reads nearly every file, batch by batch, without holding it. What has quotes or odd lines is read row by row.
"""

import csv
import io
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv as arrow_csv

from llamafactory_ext.errors import GdshError, excerpt

from .layout import SAMPLE, Layout, TableOptions, find_layout, find_separator
from .textfiles import Scan


Floats = npt.NDArray[np.float64]

_BLOCK = 1 << 20  # bytes
_LONGEST_ROW = 1 << 20  # characters
_MISSING = [
    "",
    "#N/A",
    "#N/A N/A",
    "#NA",
    "N/A",
    "NA",
    "NULL",
    "NaN",
    "n/a",
    "nan",
    "null",
    "None",
    "Bad",
    "bad",
    "BAD",
]


class TextTable:
    """A text table: its header is read, its rows can be."""

    def __init__(self, found: Scan, options: TableOptions) -> None:
        self.scan, self.options = found, options
        first, _, rest = found.head.partition("\n")
        self.has_sep = first.strip().strip('"').lower().startswith("sep=") and len(first.strip().strip('"')) <= 5
        mark = first.strip().strip('"')[4:] or "\t"
        self.separator = mark if self.has_sep else find_separator(first.split("\r")[0])
        sample = _sample(rest if self.has_sep else found.head, self.separator, found.is_whole)
        header = sample[0] if sample else []
        tail = _sample(found.tail, self.separator, True)
        head = [row for row in sample[1:] if any(cell.strip() for cell in row)]
        tail = [row for row in (tail[1:] if found.is_whole else tail) if any(cell.strip() for cell in row)]
        self.layout: Layout = find_layout(header, head, tail[-3:], options)
        self.extra: list[tuple[str, str]] = []
        if self.separator != ",":
            self.extra.append(("layout", f"fields parted by {self.separator!r}"))
        if found.encoding == "utf-16":
            self.extra.append(("layout", "UTF-16"))

    @property
    def is_plain(self) -> bool:
        """Whether Arrow may read it: no quotes, no odd line ends, and no column alone, whose blank lines are rows."""
        found = self.scan
        return (
            found.encoding != "utf-16"
            and not found.has_quotes
            and found.returns in (0, found.pairs)
            and len(self.layout.names) > 1
            and not self.layout.totals
        )

    def batches(self) -> Iterator[tuple[Floats, dict[str, pa.Array]]]:
        """Read the table by Arrow.

        Raises:
            pa.ArrowInvalid: a line with more or fewer fields than the header, or a cell that Arrow can't read.
        """
        names = [str(number) for number in range(len(self.layout.names))]
        places = {"time": self.layout.time, "quality": self.layout.quality, "tag": self.layout.tag}
        others = {key: str(place) for key, place in places.items() if place is not None and place != self.layout.value}
        value = str(self.layout.value)
        types: dict[str, Any] = {value: pa.float64(), **dict.fromkeys(others.values(), pa.binary())}
        whole = self.scan.data is not None  # then no thread need read ahead, which takes longer than to read
        with self.scan.open() as file:
            reader = (arrow_csv.read_csv if whole else arrow_csv.open_csv)(
                pa.py_buffer(self.scan.data) if whole else file,
                read_options=arrow_csv.ReadOptions(
                    use_threads=False,
                    column_names=names,
                    skip_rows=1 + self.has_sep + self.layout.units,
                    block_size=_BLOCK,
                ),
                parse_options=arrow_csv.ParseOptions(delimiter=self.separator, quote_char=False),
                convert_options=arrow_csv.ConvertOptions(
                    include_columns=list(types),
                    column_types=types,
                    null_values=[*_MISSING, *self.options.missing_values],
                ),
            )
            for batch in reader.to_batches() if whole else reader:
                column = batch.column(0)
                # Not to_numpy(), which imports pandas: longer than a hundred files take. A copy: Arrow's is read-only.
                values = np.array(np.from_dlpack(column.fill_null(float("nan")) if column.null_count else column))
                yield values, {key: batch.column(list(types).index(name)) for key, name in others.items()}

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yields each row and the line that it ends in.

        Raises:
            GdshError: malformed CSV, a row with too many fields or characters, or no rows.
        """
        with io.TextIOWrapper(self.scan.open(), encoding=self.scan.encoding, newline="") as file:
            lines = _Lines(file)
            reader = csv.reader(lines, strict=True, delimiter=self.separator)
            held: deque[tuple[int, list[str]]] = deque()
            try:
                if self.has_sep:
                    next(reader)
                next(reader)
                for number, row in enumerate(_without_blank_lines(reader, len(self.layout.names))):
                    lines.room = _LONGEST_ROW
                    if number >= self.layout.units:
                        held.append((reader.line_num, row))
                    if len(held) > self.layout.totals:
                        yield held.popleft()
            except csv.Error as error:
                raise GdshError(
                    f"malformed CSV at line {reader.line_num}: {error}; close its quotes, or export it anew"
                ) from error


class _Lines:
    """The lines of a text, for a reader of rows: a row may have many lines, but has an end."""

    def __init__(self, file: io.TextIOBase) -> None:
        self.file, self.room, self.begun = file, _LONGEST_ROW, False

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self.file.readline(self.room + 1)
        self.room -= len(line)
        if self.room < 0:
            raise GdshError(f"a row of more than {_LONGEST_ROW:,} characters; close its quotes, or export it anew")
        if not line:
            raise StopIteration
        if not self.begun:
            line, self.begun = line.removeprefix("\ufeff"), True
        return line


def _sample(text: str, separator: str, is_whole: bool) -> list[list[str]]:
    """The first rows of a text; what is malformed is seen when all is read."""
    rows: list[list[str]] = []
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
            rows.append(row)
            if len(rows) > SAMPLE:
                return rows
    except csv.Error:
        return rows
    return rows if is_whole or len(rows) < 2 else rows[:-1]  # the last one may be cut


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
