"""What the columns and the odd rows of a table are: time, tags, labels, values; a row of units, rows of totals."""

import re
from dataclasses import dataclass
from itertools import takewhile

import pandas as pd

from llamafactory_ext.errors import GdshError, excerpt
from llamafactory_ext.gdsh.layout import SAMPLE, count_totals, count_units

from .times import NAMES, looks_like_time


UNITS, TOTALS = "row of units below the header", "row of totals at the end"

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


def without_units(frame: pd.DataFrame, how: Reading) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Returns a table without the row of units below its header, and that there was one."""
    names = list(frame.columns)
    time = how.time_column or next((name for name in names if name.strip().lower() in NAMES), "")
    if time not in names or not count_units(_texts(frame.head(SAMPLE)), names.index(time)):
        return frame, ()
    rest = frame[1:].reset_index(drop=True)
    return rest.infer_objects(), (UNITS,)


def number_of_totals(frame: pd.DataFrame, time: str) -> int:
    """Returns how many rows at a table's end are totals, which have no time."""
    place = list(frame.columns).index(time)
    undated = takewhile(lambda row: not re.search(r"\d", row[place]), reversed(_texts(frame.tail(SAMPLE))))
    return count_totals(list(undated)[::-1], None)


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
