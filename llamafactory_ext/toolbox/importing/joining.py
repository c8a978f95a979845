"""Exports of one sensor, joined by time: monthly files whose last day is the next one's first.

Where two of them cover the same time they must say the same, row by row: what differs there may be another sensor.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from llamafactory_ext.errors import GdshError, excerpt

from .large import Dates
from .sources import Table
from .times import Axis, read_times


def by_name(tables: Iterable[Table]) -> dict[str, list[Table]]:
    """Returns the tables of each name, in order."""
    found: dict[str, list[Table]] = {}
    for table in tables:
        found.setdefault(table.name, []).append(table)
    return found


def join_tables(tables: list[Table], dates: Dates) -> Table:
    """Joins the tables of one name; `repeated` counts rows that came twice.

    Raises:
        GdshError: they have no times, or times of another kind, or differ where they overlap; names file and row.
    """
    if len(tables) == 1:
        return tables[0]
    parts = sorted(((*_rows(table, dates), table) for table in tables), key=lambda part: part[0]["at"].iloc[0])
    joined, axis, first = parts[0]
    for rows, other, table in parts[1:]:
        if (other.kind, other.zoned, other.rule) != (axis.kind, axis.zoned, axis.rule):
            raise GdshError(
                f"{table.file}: series {table.name!r}: its times are read by {other.rule!r}, those of {first.file} by "
                f"{axis.rule!r}; expected one way of writing: export them alike, or leave one out"
            )
        if (table.label is None) != (first.label is None):
            raise GdshError(
                f"{table.file}: series {table.name!r}: either it or {first.file} has no column of labels; expected "
                "one in both: export them alike"
            )
        joined = _append(joined, rows, axis, table.name)
    label = None if first.label is None else joined["label"]
    found = Table(first.name, first.file, joined["value"], joined["time"], label, first.column)
    found.unused = tuple(dict.fromkeys(name for table in tables for name in table.unused))
    found.left_out = tuple(what for table in tables for what in table.left_out)
    found.joined, found.repeated = len(tables), sum(table.count for table in tables) - found.count
    return found


def _rows(table: Table, dates: Dates) -> tuple[pd.DataFrame, Axis]:
    """Returns the rows of a table, times rising, each with its file and row, and the axis."""
    if table.time is None:
        raise GdshError(
            f"{table.file}: series {table.name!r} is in several files and has no column of times to join them by; "
            "name it with --time-column, or leave one out"
        )
    axis = read_times(table.time, dates.order, dates.timezone)
    if axis.turn:
        raise GdshError(f"{table.file}: series {table.name!r}: {axis.turn}")
    columns: dict[str, Any] = {"at": axis.values, "time": table.time.array, "value": table.values.array}
    columns |= {"label": "" if table.label is None else table.label.array, "file": str(table.file)}
    rows = pd.DataFrame(columns).assign(row=np.arange(table.count))
    falls = len(rows) > 1 and axis.values[0] > axis.values[-1]
    return (rows[::-1] if falls else rows), axis


def _append(joined: pd.DataFrame, rows: pd.DataFrame, axis: Axis, name: str) -> pd.DataFrame:
    """Returns both, the rows that they share once.

    Raises:
        GdshError: they differ in the time that both cover; names the first row that does.
    """
    begin, end = rows["at"].iloc[0], min(rows["at"].iloc[-1], joined["at"].iloc[-1])
    known = joined[(joined["at"] >= begin) & (joined["at"] <= end)].reset_index(drop=True)
    again = rows[rows["at"] <= end].reset_index(drop=True)
    both = min(len(known), len(again))
    differs = np.zeros(both, dtype=bool)
    for column in ("at", "value", "label"):
        differs |= ~_equal(known[column][:both], again[column][:both])
    if differs.any() or len(known) != len(again):
        place = int(np.argmax(differs)) if differs.any() else both
        told = [_told(part, place, axis) for part in (again, known)]
        raise GdshError(
            f"{rows['file'].iloc[0]}: series {name!r}: two exports differ where they overlap: {told[0]}, but "
            f"{told[1]}; expected the same rows in both: export one of them anew, leave it out, or tell two sensors "
            "apart with --names file"
        )
    return pd.concat([joined, rows[len(again) :]], ignore_index=True)


def _equal(one: pd.Series, other: pd.Series) -> Any:
    same = (one.astype(str) == other.astype(str)) | (one.isna() & other.isna())
    return (same | (pd.to_numeric(one, errors="coerce") == pd.to_numeric(other, errors="coerce"))).to_numpy()


def _told(part: pd.DataFrame, place: int, axis: Axis) -> str:
    if place >= len(part):
        last = part.iloc[-1]
        return f"{last['file']} has no further row up to there (the last is {last['row']}, {axis.show(last['at'])})"
    row = part.iloc[place]
    label = f", label {excerpt(str(row['label']))}" if str(row["label"]) else ""
    return f"row {row['row']} of {row['file']} has {excerpt(str(row['value']))} at {axis.show(row['at'])}{label}"
