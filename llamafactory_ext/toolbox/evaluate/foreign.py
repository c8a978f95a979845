"""Predictions of other detectors: CSV or JSON lines with series, start, end, and a confidence and a type if there are.

    series,start,end,confidence
    TI_7.PV,120,131,0.8

One line an interval, 0-based, both ends counted, in any order. A series is named as its CSV file is, with or without
folder and suffix; a record of a data set without files as "record 12". A series that no line
names, or one without start and end, was found to be without anomalies.
"""

import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from llamafactory_ext.gdsh.dialects import unique_keys
from llamafactory_ext.toolbox.evaluate.points import Source
from llamafactory_ext.toolbox.evaluate.predictions import MAX_LINE, EvaluateError, Prediction


NEEDED = ("series", "start", "end")
_SUFFIXES = (".csv", ".jpg", ".png")
_ADVICE = "expected series, start, end, and confidence or type besides"


def is_foreign(path: Path) -> bool:
    """Whether a file holds intervals, one a line, and not a predict run's answers."""
    if path.suffix.lower() == ".csv":
        return True
    try:
        with path.open(encoding="utf-8") as file:
            found = json.loads(next((line for line in iter(lambda: file.readline(MAX_LINE), "") if line.strip()), ""))
    except (OSError, ValueError, RecursionError):
        return False  # reading it says what is wrong
    return isinstance(found, dict) and "series" in found and "predict" not in found


def read_foreign(path: Path, sources: Sequence[Source], dataset: str) -> list[Prediction]:
    """Read intervals and join them to the records of a data set by name.

    Raises:
        EvaluateError: a line that is no interval, or a series that the data set does not hold exactly once.
    """
    places: defaultdict[str, list[int]] = defaultdict(list)
    for index, source in enumerate(sources):
        places[source.name or f"record {index}"].append(index)
    entries: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for place, row in _rows(path):
        name, entry = _entry(place, row)
        found = places.get(name) or places.get(_stem(name), [])
        if len(found) != 1:
            there = "none" if not found else f"{len(found)}, as of windows of one series"
            some = ", ".join(list(places)[:3])
            raise EvaluateError(
                f"{place}: series {name!r}: {there} of the {len(sources)} records in {dataset} has that name; "
                f"expected one of them, such as {some}"
            )
        if entry:
            entries[found[0]].append(entry)
    return [
        Prediction(index, "", _answer(entries[index]), source.answer, tuple(map(len, source.series)))
        for index, source in enumerate(sources)
    ]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                reader = csv.DictReader(file, strict=True)
                missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
                if missing:
                    columns = ", ".join(reader.fieldnames or ()) or "none"
                    raise EvaluateError(f"{path} has no column {', '.join(missing)}; found {columns}; {_ADVICE}")
                for row in reader:
                    yield f"{path}, line {reader.line_num}", row
                return
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), ""), 1):
                if line.strip():
                    found = json.loads(line, object_pairs_hook=unique_keys)
                    if not isinstance(found, dict):
                        raise EvaluateError(f"{path}, line {number} is no JSON object; {_ADVICE}")
                    yield f"{path}, line {number}", found
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, RecursionError) as err:
        raise EvaluateError(f"{path} can't be read: {getattr(err, 'strerror', None) or err}; {_ADVICE}") from err


def _entry(place: str, row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if not isinstance(row.get("series"), str) or not row["series"]:
        raise EvaluateError(f"{place} names no series: found {row.get('series')!r:.60}; {_ADVICE}")
    if row.get("start") == row.get("end") == "":  # detect says so that it was asked about, and how sure it is
        return row["series"], {}
    start, end = (_number(place, row, key, int) for key in ("start", "end"))
    if not 0 <= start <= end:
        raise EvaluateError(f"{place}: start {start} and end {end}; expected rows from 0, and no end before its start")
    entry: dict[str, Any] = {"interval": [start, end]}
    if row.get("type"):
        entry["type"] = str(row["type"])
    if row.get("confidence") not in (None, ""):
        entry["confidence"] = _number(place, row, "confidence", float)
    return row["series"], entry


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
        raise EvaluateError(f"{place}: {key} is {value!r:.60}; expected {expected}") from err
    return found


def _stem(name: str) -> str:
    pure = PurePath(name.replace("\\", "/"))
    return pure.stem if pure.suffix.lower() in _SUFFIXES else pure.name


def _answer(entries: list[dict[str, Any]]) -> str:
    return json.dumps({"status": "success", "detected_anomalies": entries}, ensure_ascii=False)
