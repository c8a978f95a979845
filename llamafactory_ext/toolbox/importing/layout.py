"""GDSH's layout: ``json/NAME.json``, ``timeseries/NAME/*.csv`` and ``dataset_info.json``, written and read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import csv as arrow_csv

from llamafactory_ext.errors import GdshError
from llamafactory_ext.gdsh import Anomaly, SeriesFile, index_series, parse_answer, read_anomalies, write_answer
from llamafactory_ext.gdsh.records import read_records

from .sources import Table


PROMPTS = {
    "zh": "<image>\n请找出这条时间序列中的异常区间，只输出JSON："
    "每个异常给出区间[start, end]（从0开始的行号，两端都算）和类型。",
    "en": "<image>\nFind the anomalies of this time series. Answer in JSON only: for each one its interval [start, "
    "end] (rows from 0, both ends counted) and its type.",
}


@dataclass(frozen=True)
class Labelled:
    """One series of a data set in GDSH's layout."""

    name: str
    file: SeriesFile
    anomalies: tuple[Anomaly, ...] | None
    """None where the record has no answer."""
    record: Mapping[str, Any]


def write_series(table: Table, path: Path, begin: bool = True) -> None:
    """Writes a series as CSV, the cells of its time column as they were; without `begin`, below what is there."""
    columns: dict[str, Any] = {}
    if table.time is not None:
        columns["time"] = _texts(table.time)
    numeric = pd.api.types.is_numeric_dtype(table.values)
    columns["value"] = pa.array(table.values, from_pandas=True) if numeric else _texts(table.values)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = arrow_csv.WriteOptions(quoting_style="needed", include_header=begin)
    with path.open("wb" if begin else "ab") as file:
        arrow_csv.write_csv(pa.table(columns), file, options)


def make_record(name: str, prompt: str, anomalies: Sequence[Anomaly] | None, **more: Any) -> dict[str, Any]:
    """Returns an annotation record; its answer is empty without labels (None): to be asked about, not trained on."""
    answer = "" if anomalies is None else write_answer(anomalies)
    turns = [{"from": "user", "value": prompt}, {"from": "assistant", "value": answer}]
    return {"image": f"{name}.jpg", "conversations": turns, "name": name, **more}


def write_records(records: Sequence[Mapping[str, Any]], folder: Path, name: str) -> None:
    """Writes the annotations and an entry for them into a folder that holds the series already."""
    (folder / "json").mkdir(parents=True, exist_ok=True)
    text = json.dumps(records, ensure_ascii=False, indent=1)
    (folder / "json" / f"{name}.json").write_text(f"{text}\n", "utf-8")
    entry = {"file_name": f"json/{name}.json", "formatting": "gdsh", "folder": f"timeseries/{name}"}
    (folder / "dataset_info.json").write_text(json.dumps({name: entry}, ensure_ascii=False, indent=2) + "\n", "utf-8")


def read_layout(folder: Path) -> Iterator[Labelled]:
    """Yields the series of a folder with ``json/`` and ``timeseries/``, each with what its record says.

    Raises:
        GdshError: a record that can't be read; names file and record.
    """
    files = sorted((folder / "json").glob("*.json*")) if (folder / "json").is_dir() else []
    if not files:
        raise GdshError(f"{folder} has no json/*.json; expected a folder in GDSH's layout, or a detections.csv")
    for file in files:
        group = folder / "timeseries" / file.stem
        index = index_series(group if group.is_dir() else folder / "timeseries")
        for number, record in enumerate(read_records(file)):
            try:
                yield _labelled(record, index)
            except (GdshError, KeyError, TypeError, IndexError) as err:
                raise GdshError(f"{file}: record {number}: {err}") from err


def _labelled(record: Any, index: Any) -> Labelled:
    picture = record["image"] if isinstance(record["image"], str) else record["image"][0]
    found = index.find(picture)
    answers = [turn["value"] for turn in record["conversations"] if turn["from"] == "assistant"]
    anomalies = None
    if answers and answers[-1]:
        anomalies = tuple(read_anomalies(parse_answer(answers[-1]).text)[0])
    return Labelled(record.get("name") or found.stem, found, anomalies, record)


def _texts(cells: pd.Series) -> Any:
    if pd.api.types.is_datetime64_any_dtype(cells):
        return pa.array([one.isoformat(sep=" ") for one in cells], pa.string())
    return pa.array(cells.where(cells.notna(), "").astype(str), pa.string())
