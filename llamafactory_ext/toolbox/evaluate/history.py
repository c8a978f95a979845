"""The history of a golden set: one JSON line an evaluation, and the curve of those of the same data."""

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamafactory_ext.files import write_whole
from llamafactory_ext.toolbox.evaluate.judging import Evaluation
from llamafactory_ext.toolbox.evaluate.predictions import EvaluateError
from llamafactory_ext.toolbox.evaluate.tallies import titles


def data_of(found: Evaluation) -> str:
    """Returns what tells the labelled records of an evaluation from others: a digest of lengths and labels."""
    records = [[one.length, sorted([mark.start, mark.end, mark.type] for mark in one.labels)] for one in found.records]
    return hashlib.sha256(json.dumps(records).encode()).hexdigest()[:12]


def read_history(path: Path, data: str) -> list[dict[str, Any]]:
    """Read the lines of the same data, in their order.

    Raises:
        EvaluateError: a file that another program wrote, or a line that is cut off.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines if line.strip()]
        return [one for one in found if one["data"] == data and isinstance(one["scores"], dict)]
    except (OSError, ValueError, TypeError, KeyError) as err:
        raise EvaluateError(f"{path} is no history of scores: {err}; name another file, or remove the line") from err


def add_line(path: Path, found: Evaluation, name: str, dataset: str) -> list[dict[str, Any]]:
    """Add an evaluation to a history, and return all lines of its data, this one last.

    Raises:
        EvaluateError: see `read_history`.
        OSError: it can't be written.
    """
    data = data_of(found)
    before = read_history(path, data)
    scores = {key: found.scores.get(key) for key in titles()}
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    line = {"date": date, "name": name, "dataset": dataset, "data": data, "records": len(found.records)}
    line["scores"] = scores
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    separator = "\n" if old and not old.endswith("\n") else ""
    write_whole(path, [old, separator, json.dumps(line, ensure_ascii=False), "\n"])
    return [*before, line]


def curve(lines: Sequence[Mapping[str, Any]], key: str = "event_f1_iou30") -> NDArray[np.float64]:
    """Returns one score of each line; NaN where it has none."""
    return np.array([one["scores"].get(key) for one in lines], dtype=np.float64)
