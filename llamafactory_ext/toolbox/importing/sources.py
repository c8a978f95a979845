"""Tables of series, of any dialect: one sensor a file, a column a sensor, or long with a column of tags."""

import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import pandas as pd

from llamafactory_ext.errors import GdshError, excerpt
from llamafactory_ext.gdsh.layout import SAMPLE, count_totals, count_units

from .times import NAMES, Axis, is_number, looks_like_time


UNITS, TOTALS = "row of units below the header", "row of totals at the end"
SUFFIXES = (".csv", ".csv.gz", ".tsv", ".txt", ".txt.gz", ".xlsx", ".parquet")

_TAGS = {
    "tag",
    "tags",
    "tagname",
    "tag_name",
    "name",
    "point",
    "sensor",
    "item",
    "metric",
    "kpi id",
    "series",
    "测点",
    "位号",
    "点名",
    "名称",
}
_LABELS = {
    "is_anomaly",
    "anomaly",
    "label",
    "labels",
    "anomaly_label",
    "is_outlier",
    "outlier",
    "is_attack",
    "异常",
    "标签",
    "是否异常",
}
_QUALITY = {"quality", "status", "category", "质量", "质量码"}
_VALUES = {"value", "values", "data", "val", "值", "数值"}


@dataclass(frozen=True)
class Reading:
    """How tables are to be read; what is empty is found out."""

    value_column: str = ""
    time_column: str = ""
    label_column: str = ""
    tag_column: str = ""
    names: str = ""
    """``file``: series are called after their file and column; empty: after their column where there are several."""


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


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are; empty where there is none."""

    time: str
    tag: str
    label: str
    series: tuple[str, ...]
    unused: tuple[str, ...]
    perhaps_tags: tuple[str, ...] = ()
    """Columns called as tags are, which held only one in what was looked at."""


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
    totals = _count_totals(frame, found.time) if found.time else 0
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


def without_units(frame: pd.DataFrame, how: Reading) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Returns a table without the row of units below its header, and that there was one."""
    names = list(frame.columns)
    time = how.time_column or next((name for name in names if name.strip().lower() in NAMES), "")
    if time not in names or not count_units(_texts(frame.head(SAMPLE)), names.index(time)):
        return frame, ()
    rest = frame[1:].reset_index(drop=True)
    return rest.infer_objects(), (UNITS,)


def _count_totals(frame: pd.DataFrame, time: str) -> int:
    place = list(frame.columns).index(time)
    undated = takewhile(lambda row: not re.search(r"\d", row[place]), reversed(_texts(frame.tail(SAMPLE))))
    return count_totals(list(undated)[::-1], None)


def find_columns(frame: pd.DataFrame, how: Reading) -> Columns:
    """Finds out what the columns of a table are.

    Raises:
        GdshError: one that `how` names is not there, or none can be a series.
    """
    names = [str(name) for name in frame.columns]
    time = _named(names, how.time_column, "--time-column") or next(
        (name for name in names if looks_like_time(name, frame[name].head(20))), ""
    )
    tag = _named(names, how.tag_column, "--tag-column") or _tag_column(frame, names, time)
    label = _named(names, how.label_column, "--labels column:") or (
        "" if tag else next((name for name in names if name.strip().lower() in _LABELS and _is_flag(frame[name])), "")
    )
    rest = [name for name in names if name not in (time, tag, label)]
    chosen = _value_columns(frame, rest, how)
    unused = tuple(name for name in rest if name not in chosen and not _is_row_number(frame[name], name))
    called = tuple(name for name in rest if name.strip().lower() in _TAGS and name not in chosen)
    return Columns(time, tag, label, tuple(chosen), unused, called)


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


def _value_columns(frame: pd.DataFrame, names: list[str], how: Reading) -> list[str]:
    if how.value_column:
        return [_named(names, how.value_column, "--value-column")]
    exact = [name for name in names if name.strip().lower() in _VALUES]
    numeric = [
        name
        for name in names
        if not _is_row_number(frame[name], name)
        and name.strip().lower() not in _QUALITY
        and _mostly_numbers(frame[name])
    ]
    if len(exact) == 1 and (exact[0] in numeric or _has_digits(frame[exact[0]]).any()):  # most may be missing
        return exact
    if not numeric:
        raise GdshError(f"no column of numbers in {excerpt(names)}; name the series with --value-column")
    return numeric


def _named(names: list[str], wanted: str, option: str) -> str:
    if wanted and wanted not in names:
        raise GdshError(f"no column {wanted!r} ({option}), only {excerpt(names)}; correct the name")
    return wanted


def _tag_column(frame: pd.DataFrame, names: list[str], time: str) -> str:
    """A column of texts, called as tags are, that holds more than one and comes back to each."""
    for name in names:
        if name != time and name.strip().lower() in _TAGS and not pd.api.types.is_numeric_dtype(frame[name]):
            several = frame[name].nunique()
            if 1 < several < len(frame):
                return name
    return ""


def _mostly_numbers(cells: pd.Series) -> bool:
    if pd.api.types.is_numeric_dtype(cells):
        return bool(cells.notna().any())
    return bool(_has_digits(cells).mean() > 0.5)


def _has_digits(cells: pd.Series) -> pd.Series:
    return cells.dropna().astype(str).head(200).str.contains(r"\d")


def _is_flag(cells: pd.Series) -> bool:
    return set(pd.unique(cells.dropna())) <= {0, 1, "0", "1"}


def _is_row_number(cells: pd.Series, name: str) -> bool:
    unnamed = not name.strip() or name.startswith("Unnamed:") or name.strip().lower() in ("index", "idx", "序号")
    return unnamed and pd.api.types.is_integer_dtype(cells) and bool((cells.diff().dropna() == 1).all())


def _texts(frame: pd.DataFrame) -> list[list[str]]:
    return [["" if pd.isna(cell) else str(cell) for cell in row] for row in frame.itertuples(index=False)]


def _at(frame: pd.DataFrame, name: str) -> pd.Series | None:
    return frame[name] if name else None


def safe_name(name: str) -> str:
    """A name that can be a file's on any system."""
    return re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", name).strip() or "series"
