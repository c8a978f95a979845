"""From a data set in GDSH's layout, or from detections, to what people correct labels in: pre-labels."""

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from llamafactory_ext.errors import GdshError
from llamafactory_ext.files import write_whole
from llamafactory_ext.gdsh import Anomaly
from llamafactory_ext.gdsh.detections import Detection, read_detections

from .layout import Labelled, make_record


def _frame(one: Labelled) -> pd.DataFrame:
    return pd.read_csv(one.file.path, keep_default_na=False, na_values=[""])


def _times(one: Labelled) -> list[str] | None:
    frame = _frame(one)
    name = next((column for column in ("time", "date", "timestamp") if column in frame), None)
    return None if name is None else [str(cell) for cell in frame[name]]


def to_label_studio(series: Iterable[Labelled], out: Path) -> Path:
    """A list of tasks with predictions, to be imported by Label Studio; bounds are times where the series has them."""
    tasks = []
    for one in series:
        times = _times(one)
        results = []
        for number, anomaly in enumerate(one.anomalies or ()):
            bounds = [anomaly.start, anomaly.end] if times is None else [times[anomaly.start], times[anomaly.end]]
            value: dict[str, Any] = {"start": bounds[0], "end": bounds[1], "instant": anomaly.start == anomaly.end}
            value["timeserieslabels"] = [anomaly.type]
            results.append(
                {"id": f"p{number}", "type": "timeserieslabels", "from_name": "label", "to_name": "ts", "value": value}
            )
        prediction = {"model_version": "llamafactory_ext", "result": results}
        tasks.append({"data": {"csv": f"{one.name}.csv"}, "predictions": [prediction]})
    return _write_json(out / "label_studio.json", tasks)


def to_annotator(series: Iterable[Labelled], out: Path) -> Path:
    """One JSON a series, as the annotator writes it; rows, both ends counted."""
    for one in series:
        annotations = []
        for number, kind in enumerate(dict.fromkeys(anomaly.type for anomaly in one.anomalies or ())):
            segments = [
                {"start": a.start, "end": a.end, "count": a.end - a.start + 1} | _remarks(a)
                for a in one.anomalies or ()
                if a.type == kind
            ]
            annotations.append({"label": {"id": f"label_{number}", "text": kind}, "segments": segments})
        content = {"filename": f"{one.name}.csv", "overall_attribute": {}, "annotations": annotations}
        _write_json(out / f"{one.name}.csv.json", content)
    return out


def to_windows(series: Iterable[Labelled], out: Path) -> Path:
    """``{file: [[start, end], …]}`` in rows; types have no place there."""
    found = {f"{one.name}.csv": [[a.start, a.end] for a in one.anomalies or ()] for one in series}
    return _write_json(out / "windows.json", found)


def to_column(series: Iterable[Labelled], out: Path) -> Path:
    """Each CSV again with a column ``label``: the type inside of an anomaly, 0 elsewhere.

    Raises:
        GdshError: two anomalies of a series overlap or touch with one type: a column can't hold both.
    """
    for one in series:
        frame = _frame(one)
        marks: list[str] = ["0"] * len(frame)
        for anomaly in sorted(one.anomalies or (), key=lambda a: a.start):
            kind = anomaly.type or "1"
            held = marks[anomaly.start : anomaly.end + 1]
            touching = anomaly.start > 0 and marks[anomaly.start - 1] == kind
            if any(mark != "0" for mark in held) or touching:
                raise GdshError(
                    f"{one.name}: the interval [{anomaly.start}, {anomaly.end}] overlaps another one, or touches one "
                    "of its type; a column can't hold both: choose --to annotator"
                )
            marks[anomaly.start : anomaly.end + 1] = [kind] * len(held)
        frame["label"] = marks
        write_whole(out / f"{one.name}.csv", [frame.to_csv(index=False, lineterminator="\n")])
    return out


def to_gdsh(series: Iterable[Labelled], out: Path) -> Path:
    """Annotation records, a JSON list."""
    return _write_json(out / "gdsh.json", [dict(one.record) for one in series])


FORMS: Mapping[str, Callable[[Iterable[Labelled], Path], Path]] = {
    "label-studio": to_label_studio,
    "annotator": to_annotator,
    "windows": to_windows,
    "column": to_column,
    "gdsh": to_gdsh,
}

LOST = {
    "windows": "types and remarks are left out: this form has no place for them",
    "column": "remarks are left out: this form has no place for them",
    "label-studio": "remarks are left out: this form has no place for them",
}


def replace_anomalies(series: Sequence[Labelled], detections: Path) -> list[Labelled]:
    """Returns the series with the intervals of a ``detections.csv`` (series, start, end, type) in place of their own.

    Raises:
        GdshError: a line that is no interval, a series that is not there, or a row that it does not have.
    """
    groups: dict[str, list[Detection]] = {one.name: [] for one in series}
    for line in read_detections(detections):
        if line.series not in groups:
            raise GdshError(f"{line.place} names {line.series!r}, which is no series of the data; correct it")
        if line.interval:
            groups[line.series].append(line)
    found = []
    for one in series:
        rows = len(_frame(one)) if groups[one.name] else 0
        for line in groups[one.name]:
            if line.interval and line.interval[1] >= rows:
                raise GdshError(
                    f"{line.place}: [{line.interval[0]}, {line.interval[1]}] does not fit the {rows} rows of series "
                    f"{one.name!r}; expected at most {rows - 1}: give it the series that it was made on"
                )
        anomalies = tuple(Anomaly(*line.interval, dict(line.fields)) for line in groups[one.name] if line.interval)
        prompt = next(turn["value"] for turn in one.record["conversations"] if turn["from"] == "user")
        found.append(replace(one, anomalies=anomalies, record=make_record(one.name, prompt, anomalies)))
    return found


def choose(series: Sequence[Labelled], detections: Path, count: int, seed: int | None = None) -> list[Labelled]:
    """Returns the `count` series whose correction teaches most: those with the least confident detection.

    A series counts by its least confident interval, or by the row without interval that says how sure the model was
    that there is none; series of which nothing is said come last. With `seed` they are drawn by chance, to compare.

    Raises:
        GdshError: the detections can't be read, or say no confidence.
    """
    if seed is not None:
        return sorted(random.Random(seed).sample(list(series), min(count, len(series))), key=lambda one: one.name)
    least: dict[str, float] = {}
    for line in read_detections(detections):
        if line.confidence is not None:
            least[line.series] = min(line.confidence, least.get(line.series, line.confidence))
    if not least:
        raise GdshError(
            f"{detections} has no column 'confidence' with numbers; detect writes one, or add --random SEED"
        )
    return sorted(series, key=lambda one: (least.get(one.name, 2.0), one.name))[:count]


def _remarks(anomaly: Anomaly) -> dict[str, object]:
    return {key: value for key, value in anomaly.fields.items() if key != "type"}


def _write_json(path: Path, content: Any) -> Path:
    write_whole(path, [json.dumps(content, ensure_ascii=False, indent=1), "\n"])
    return path
