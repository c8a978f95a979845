"""Tables of series, of any dialect: one sensor a file, a column a sensor, or long with a column of tags."""

import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from llamafactory_ext.errors import GdshError

from .columns import TOTALS, Columns, Reading, find_columns, number_of_totals, without_units
from .times import Axis, is_number


SUFFIXES = (".csv", ".csv.gz", ".tsv", ".txt", ".txt.gz", ".xlsx", ".parquet")


@dataclass(eq=False)
class Table:
    """One series, its cells as they stand in the file."""

    name: str
    file: Path
    values: pd.Series
    time: pd.Series | None = None
    label: pd.Series | None = None
    column: str = ""
    unused: tuple[str, ...] = ()
    """Columns of the file that nothing was taken from."""
    axis: Axis | None = field(default=None, repr=False)
    """Its times, where they were read with it."""
    left_out: tuple[str, ...] = ()
    """Rows of the file that hold no values: what they are, once for each."""
    joined: int = 1
    """How many files it comes from."""
    repeated: int = 0
    """Rows of those files that another one of them had already."""
    count: int = -1
    """How many rows it has: those of `values`, but for a series that was never held whole."""

    def __post_init__(self) -> None:
        if self.count < 0:
            self.count = len(self.values)


def table_files(paths: Iterable[Path]) -> list[Path]:
    """Returns the files of tables among files and folders, in order; hidden ones are passed over.

    Raises:
        GdshError: a path that is not there.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = (
                one for one in sorted(path.rglob("*")) if not any(part.startswith(".") for part in one.parts[-3:])
            )
            found += [one for one in below if one.is_file() and one.name.lower().endswith(SUFFIXES)]
        elif path.is_file():
            found.append(path)
        else:
            raise GdshError(f"{path}: no such file or folder; correct the path")
    return found


def stem(path: Path) -> str:
    """Returns a table's file name without the ending that says its form."""
    name = path.name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def read_tables(path: Path, how: Reading) -> Iterator[Table]:
    """Yields the series of one file.

    Raises:
        GdshError: which column is the series can't be told, or the file can't be read; names no file.
    """
    frame = _frame(path)
    if frame.empty:
        raise GdshError("a header, but no rows; expected a row for each point in time: export the series anew")
    frame, left_out = without_units(frame, how)
    found = find_columns(frame, how)
    totals = number_of_totals(frame, found.time) if found.time else 0
    frame, left_out = frame[: len(frame) - totals], left_out + (TOTALS,) * totals
    for column in found.series:
        if found.tag:
            for one, rows in frame.groupby(found.tag, sort=False).groups.items():
                part = frame.loc[rows]
                time, label = _at(part, found.time), _at(part, found.label)
                yield Table(safe_name(str(one)), path, part[column], time, label, column, found.unused, None, left_out)
        else:
            name, time, label = series_name(path, column, found, how), _at(frame, found.time), _at(frame, found.label)
            yield Table(name, path, frame[column], time, label, column, found.unused, None, left_out)


def series_name(path: Path, column: str, found: Columns, how: Reading) -> str:
    """Returns the name of a series that has a column to itself."""
    several = len(found.series) > 1
    return safe_name(stem(path) if not several else f"{stem(path)}_{column}" if how.names == "file" else column)


def refuse_equal_names(tables: Iterable[tuple[str, Path]], joins: bool = False) -> None:
    """Raises GdshError where two series have one name: two sensors, or two exports of one that overlap.

    Arguments:
        joins: those that can be joined have been.
    """
    seen: dict[str, Path] = {}
    for name, path in tables:
        if name in seen:
            where = f"twice in {path}" if seen[name] == path else f"in {seen[name]} and in {path}"
            fix = "join exports of one sensor with --join"
            fix = "join them before, since so large a file is read in pieces" if joins else fix
            raise GdshError(
                f"the series {name!r} is {where}; expected every name once: leave one out, {fix}, or tell sensors "
                "apart by their files' names (--names file)"
            )
        seen[name] = path


def _frame(path: Path) -> pd.DataFrame:
    lower = path.name.lower()
    with reading():
        if lower.endswith(".parquet"):
            frame = pd.read_parquet(path)
            frame = frame.reset_index() if frame.index.name else frame
        elif lower.endswith(".xlsx"):
            frame = pd.read_excel(path)
        else:
            return _csv(path)
    frame.columns = frame.columns.map(str)  # tags that are numbers
    return frame


@contextmanager
def reading() -> Iterator[None]:
    """Raises GdshError instead of what pandas raises about a table."""
    try:
        yield
    except GdshError:
        raise
    except ImportError as err:
        raise GdshError(
            f"needs {err.name or 'openpyxl'} to be read: pip install {err.name or 'openpyxl'}, or save it as CSV"
        ) from err
    except (ValueError, OSError, UnicodeError, pd.errors.ParserError, csv.Error) as err:
        raise GdshError(f"can't be read as a table ({' '.join(str(err).split())[:200]}); export it anew") from err


def _csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, **csv_options(path), low_memory=False)


def csv_options(path: Path) -> dict[str, Any]:
    """Returns how pandas is to read a text table: its separator, encoding and packing.

    Raises:
        GdshError: it is empty or no text.
    """
    packed = "gzip" if path.name.lower().endswith(".gz") else None
    encoding, head = _head(path, packed)
    lines = [line for line in head.splitlines() if line.strip()]
    if not lines:
        raise GdshError("is empty; expected a header and rows")
    options: dict[str, Any] = {"encoding": encoding, "compression": packed}
    if all(is_number(line) for line in lines[:5]):  # one value a line and no header, as UCR's archive has it
        return options | {"header": None, "names": ["value"]}
    skipped = 1 if lines[0].lower().startswith("sep=") else 0
    mark = lines[0][4:5] if skipped else max(";\t,|", key=lines[0].count)
    options |= {"sep": mark, "skiprows": skipped, "skipinitialspace": True}
    return options | {"keep_default_na": False, "na_values": [""]}


def _head(path: Path, packed: str | None) -> tuple[str, str]:
    import gzip

    with gzip.open(path) if packed else path.open("rb") as file:
        data = file.read(1 << 16)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16", data.decode("utf-16", errors="ignore")
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return encoding, data[: data.rfind(b"\n") + 1 or None].decode(encoding)
        except UnicodeDecodeError:
            continue
    raise GdshError("is neither UTF-8 nor GB18030 nor UTF-16 text; save it as UTF-8")


def _at(frame: pd.DataFrame, name: str) -> pd.Series | None:
    return frame[name] if name else None


def safe_name(name: str) -> str:
    """A name that can be a file's on any system."""
    return re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", name).strip() or "series"
