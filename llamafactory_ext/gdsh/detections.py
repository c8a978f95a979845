"""Intervals that a detector found: CSV or JSON lines with series, start, end; confidence, type, reason where known.

    series,start,end,confidence
    TI_7.PV,120,131,0.8

A line an interval, 0-based, both ends counted, in any order. A line without start and end says that its series was
looked at, and the confidence how sure it is that there is nothing.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafactory_ext.errors import GdshError
from llamafactory_ext.gdsh.dialects import unique_keys


_MAX_LINE = 1 << 24  # characters: more is no interval
_NEEDED = ("series", "start", "end")
_EXPECTED = "expected series, start, end, and confidence or type besides"


@dataclass(frozen=True)
class Detection:
    """One line.

    Attributes:
        place: file and line, for messages.
        series: as the line names it.
        interval: first and last row; None where nothing was found.
        confidence: None where the line says none.
        fields: type and reason, as far as they are given.
    """

    place: str
    series: str
    interval: tuple[int, int] | None
    confidence: float | None
    fields: dict[str, str]


def read_detections(path: Path) -> Iterator[Detection]:
    """Yields what each line says.

    Raises:
        GdshError: no such file, columns that are missing, or a line that is no interval; names file and line.
    """
    for place, row in _rows(path):
        if not isinstance(row.get("series"), str) or not row["series"]:
            raise GdshError(f"{place} names no series: found {row.get('series')!r:.60}; {_EXPECTED}")
        sure = row.get("confidence") not in (None, "")
        yield Detection(
            place,
            row["series"],
            _interval(place, row),
            _number(place, row, "confidence", float) if sure else None,
            {key: str(row[key]) for key in ("type", "reason") if row.get(key)},
        )


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                reader = csv.DictReader(file, strict=True)
                missing = [name for name in _NEEDED if name not in (reader.fieldnames or ())]
                if missing:
                    columns = ", ".join(reader.fieldnames or ()) or "none"
                    raise GdshError(f"{path} has no column {', '.join(missing)}; found {columns}; {_EXPECTED}")
                for row in reader:
                    yield f"{path}, line {reader.line_num}", row
                return
            for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE), ""), 1):
                if line.strip():
                    yield f"{path}, line {number}", _object(path, number, line)
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise GdshError(f"{path} can't be read: {getattr(err, 'strerror', None) or err}; {_EXPECTED}") from err


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as err:
        raise GdshError(f"{path} can't be read: {err}; {_EXPECTED}") from err
    if not isinstance(found, dict):
        raise GdshError(f"{path}, line {number} is no JSON object; {_EXPECTED}")
    return found


def _interval(place: str, row: dict[str, Any]) -> tuple[int, int] | None:
    if row.get("start") == row.get("end") == "":
        return None
    start, end = (_number(place, row, key, int) for key in ("start", "end"))
    if not 0 <= start <= end:
        raise GdshError(f"{place}: start {start} and end {end}; expected rows from 0, and no end before its start")
    return start, end


def _number(place: str, row: dict[str, Any], key: str, kind: type) -> Any:
    value = row.get(key)
    try:
        if isinstance(value, bool) or (isinstance(value, float) and kind is int):
            raise ValueError
        found = kind(value)
        if not abs(found) < float("inf"):
            raise ValueError
    except (TypeError, ValueError) as err:
        expected = "a whole number" if kind is int else "a number"
        raise GdshError(f"{place}: {key} is {value!r:.60}; expected {expected}") from err
    return found
