"""Predictions of other detectors: their intervals, joined to the records of a data set.

A series is named as its CSV file is, with or without folder and suffix; a record of a data set without files as
"record 12". A series that no line names, or one without start and end, was found to be without anomalies.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from llamafactory_ext.errors import GdshError
from llamafactory_ext.gdsh.detections import Detection, read_detections
from llamafactory_ext.toolbox.evaluate.points import Source
from llamafactory_ext.toolbox.evaluate.predictions import MAX_LINE, EvaluateError, Prediction


_SUFFIXES = (".csv", ".jpg", ".png")


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
    for one in _detections(path):
        found = places.get(one.series) or places.get(_stem(one.series), [])
        if len(found) != 1:
            there = "none" if not found else f"{len(found)}, as of windows of one series"
            some = ", ".join(list(places)[:3])
            raise EvaluateError(
                f"{one.place}: series {one.series!r}: {there} of the {len(sources)} records in {dataset} has that "
                f"name; expected one of them, such as {some}"
            )
        if one.interval:
            sure = {} if one.confidence is None else {"confidence": one.confidence}
            entries[found[0]].append({"interval": list(one.interval), **one.fields, **sure})
    return [
        Prediction(index, "", _answer(entries[index]), source.answer, tuple(map(len, source.series)))
        for index, source in enumerate(sources)
    ]


def _detections(path: Path) -> Iterator[Detection]:
    try:
        yield from read_detections(path)
    except GdshError as err:
        raise EvaluateError(str(err)) from err


def _stem(name: str) -> str:
    pure = PurePath(name.replace("\\", "/"))
    return pure.stem if pure.suffix.lower() in _SUFFIXES else pure.name


def _answer(entries: list[dict[str, Any]]) -> str:
    return json.dumps({"status": "success", "detected_anomalies": entries}, ensure_ascii=False)
