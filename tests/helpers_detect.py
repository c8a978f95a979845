"""A plant's folder, and an engine that answers at once."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llamafactory_ext.toolbox.detect.engines import Answer, Question


class Stub:
    """Says of each series that its highest value is an anomaly; its confidence is made of its place."""

    def __init__(self, wait: float = 0.0) -> None:
        self.asked: list[list[int]] = []
        self.wait = wait

    @property
    def points(self) -> list[int]:
        """Of all questions, in order."""
        return [points for asked in self.asked for points in asked]

    def ask(self, questions: Sequence[Question], temperature: float = 0.0, seed: int = 0) -> list[Answer]:
        self.asked.append([question.points for question in questions])
        time.sleep(self.wait)
        return [self._answer(question.series[0]) for question in questions]

    def _answer(self, values: np.ndarray) -> Answer:
        if len(values) == 13:
            raise ValueError("a question of 13 points")
        place = int(values.argmax())
        entries = [] if values.max() < 0.5 else [{"interval": [place, min(place + 1, len(values) - 1)], "type": "高"}]
        text = json.dumps({"status": "success", "detected_anomalies": entries}, ensure_ascii=False)
        return Answer(text, (text,), (-0.01 * place,))


def write_series(path: Path, length: int, seed: int, **more: Any) -> Path:
    """One sensor a file, a minute a row, one clear peak."""
    values = np.round(np.random.default_rng(seed).random(length) / 4, 4)
    values[seed * 7 % length] = 1 + seed
    times = pd.date_range("2025-03-01 08:00", periods=length, freq="min").strftime("%Y-%m-%d %H:%M:%S")
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"time": times, "value": values, **more}).to_csv(path, index=False)
    return path


def results(out: Path) -> dict[str, bytes]:
    """The files of results by name."""
    kept = [
        "detections.csv",
        "detections.jsonl",
        "failed.csv",
        "index.html",
        *sorted(str(one.relative_to(out)) for one in out.glob("masks/*")),
    ]
    return {name: (out / name).read_bytes() for name in kept if (out / name).exists()}
