"""Layout: how a table is laid out, found out from its first lines and its last ones."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass

from llamafactory_ext.errors import GdshError, excerpt


COLUMN = "value"
MAX_COLUMNS = 4096
SAMPLE = 50
"""Rows at the beginning by which columns are judged."""

# Names of columns, as `_name` gives them.
# fmt: off
_TIMES = frozenset({
    "date", "time", "datetime", "timestamp", "ts", "t", "时间", "日期", "时间戳", "采集时间", "日期时间", "采样时间",
})
_QUALITIES = frozenset({
    "quality", "qualitycode", "qual", "qc", "opcquality", "质量", "质量码", "质量戳", "质量位", "品质", "数据质量",
})
_TAGS = frozenset({
    "tag", "tagname", "tagid", "pointname", "pointid", "sensor", "sensorid", "sensorname", "位号", "点名", "测点",
    "测点名", "测点名称", "测点编号", "变量名", "item", "itemid",
})
_COUNTERS = frozenset({"", "index", "idx", "id", "no", "row", "序号", "编号", "行号", "unnamed:0"})
_LABELS = frozenset({"label", "labels", "isanomaly", "anomaly", "anomalies", "标签", "异常"})
# fmt: on
_TOTAL = re.compile(
    r"\s*(?:grand )?(?:total|sum|mean|average|avg|count|合计|总计|小计|平均|平均值|总和|汇总)\b.*", re.I
)


@dataclass(frozen=True)
class TableOptions:
    """What a data set's entry says of its tables."""

    value_column: str | None = None
    """None: ``value``, else the only column with numbers."""
    quality_column: str | None = None
    """Whose words (Good, Bad) or OPC codes (192, 0) say which values are missing."""
    missing_values: tuple[str, ...] = ()
    """Numbers and texts that stand for no value."""


@dataclass(frozen=True)
class Layout:
    """Where in a table what stands."""

    names: tuple[str, ...]
    value: int
    """Place of the value column; the same of others, None where there is none."""
    time: int | None
    quality: int | None
    tag: int | None
    units: int = 0
    """Rows of units below the header."""
    totals: int = 0
    """Rows at the end that sum up the others."""
    remarks: tuple[tuple[str, str], ...] = ()
    """Kind and text of each thing that is not as usual."""


def find_layout(
    header: Sequence[str], head: Sequence[Sequence[str]], tail: Sequence[Sequence[str]], options: TableOptions
) -> Layout:
    """Find the layout of a table from its header, its first rows and its last ones.

    Raises:
        GdshError: too many columns, no or two columns of the wanted name, or several that may be the values.
    """
    names = [name.strip() for name in header]
    if len(names) > MAX_COLUMNS:
        raise GdshError(f"{len(names):,} columns; at most {MAX_COLUMNS:,} are read: leave out all but {COLUMN!r}")
    keys = [re.sub(r"[\s_.]+", "", name.casefold()) for name in names]
    time = next((place for place, key in enumerate(keys) if key in _TIMES), None)
    units = count_units(head, time)
    value, said = _value_place(names, keys, head[units:], options.value_column)
    quality = _named(names, options.quality_column) if options.quality_column else _first(keys, _QUALITIES)
    remarks = [("column", said)] if said else []
    if units:
        remarks.append(("layout", f"{units} row of units below the header left out: {excerpt(list(head[0]))}"))
    totals = count_totals(tail, value)
    if totals:
        remarks.append(("layout", f"{totals} row of totals at the end left out: {excerpt(list(tail[-1]))}"))
    return Layout(tuple(names), value, time, quality, _first(keys, _TAGS), units, totals, tuple(remarks))


def is_number(cell: str) -> bool:
    """Whether a cell looks like a number, in whatever notation."""
    return bool(re.match(r"[\s(]*[+\-\u2212]?[.,]?\d", cell)) and not re.search(r"\d[-/:]\d", cell)


def _first(keys: Sequence[str], wanted: frozenset[str]) -> int | None:
    return next((place for place, key in enumerate(keys) if key in wanted), None)


def _named(names: Sequence[str], wanted: str) -> int:
    if names.count(wanted) != 1:
        found = "no column" if wanted not in names else f"{names.count(wanted)} columns"
        raise GdshError(f"{found} {wanted!r} in the header {excerpt(list(names))}; name exactly one column {wanted!r}")
    return names.index(wanted)


def _value_place(
    names: list[str], keys: list[str], head: Sequence[Sequence[str]], wanted: str | None
) -> tuple[int, str]:
    """The place of the values, and what is to be said where they are called otherwise than usual."""
    if wanted is not None:
        return _named(names, wanted), ""
    if COLUMN in names:
        return _named(names, COLUMN), ""
    spelt = [place for place, key in enumerate(keys) if key == COLUMN]
    others = _TIMES | _QUALITIES | _TAGS | _COUNTERS | _LABELS
    numeric = spelt or [place for place, key in enumerate(keys) if key not in others and _has_numbers(head, place)]
    if len(numeric) == 1:
        return numeric[0], f"the values are those of the column {names[numeric[0]]!r}, the only one with numbers"
    found = f"; {excerpt([names[place] for place in numeric])} hold numbers" if numeric else ""
    raise GdshError(
        f"no column {COLUMN!r} in the header {excerpt(names)}{found}; name exactly one column {COLUMN!r}, or set "
        "`value_column` (--value-column) to the one that is meant; a table with a column for each sensor is taken "
        "apart by `llamafactory-ext import`"
    )


def _has_numbers(head: Sequence[Sequence[str]], place: int) -> bool:
    cells = [row[place] for row in head if place < len(row) and row[place].strip()]
    numbers = sum(map(is_number, cells))
    return numbers > 0 and 2 * numbers >= len(cells) and all(is_number(c) or not re.search(r"\d", c) for c in cells)


def count_totals(tail: Sequence[Sequence[str]], value: int | None) -> int:
    """Returns how many of the last rows sum up the others, as a word in a column beside the values says."""
    totals = 0
    for row in reversed(tail):
        if not any(_TOTAL.fullmatch(cell) for place, cell in enumerate(row) if place != value):
            break
        totals += 1
    return totals


def count_units(head: Sequence[Sequence[str]], time: int | None) -> int:
    """Returns 1 where the first row names units: no cell of it has a number, the time's neither, as all others do."""
    head = head[: len(head) - count_totals(head, None)]  # of a table so short that both ends are looked at
    if time is None or len(head) < 2:
        return 0
    times = [bool(re.search(r"\d", row[time])) if time < len(row) else False for row in head]
    first = [cell.strip() for cell in head[0]]
    bare = not any(is_number(cell) for cell in first) and any(first)
    return int(bare and not times[0] and all(times[1:]))


def find_separator(line: str) -> str:
    """The character between the fields of a header: comma, semicolon or tab."""
    counts = {mark: line.count(mark) for mark in ",;\t"}
    try:
        names = {mark: [name.strip() for name in next(csv.reader([line], delimiter=mark))] for mark in counts}
    except (csv.Error, StopIteration):
        return ","
    if COLUMN in names[","]:
        return ","
    for mark in ";\t":
        if COLUMN in names[mark] or counts[mark] > counts[","]:
            return mark
    return ","
