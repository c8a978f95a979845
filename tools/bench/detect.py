"""Series through `detect` by vLLM and by transformers, in batches and one at a time; in `make vllm`'s environment.

    .venv-vllm/bin/python tools/bench/detect.py [--series 200] [--rounds 2] [--layers 12]

The model is asked about series of 200 points, by one engine after the other, again and again, so that what else the
machine does meets all of them. `--layers` takes random weights of width 512 instead of the shipped model: 12 are 30
million, and answers go on until `--max-new-tokens`. Prints ratios of wall-clock and of CPU time, whether the answers
are equal, and what detect does itself beside its engine. Models are opened before.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any


os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "CUDA_VISIBLE_DEVICES": ""}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

from llamafactory_ext.toolbox.cli import detect as command
from llamafactory_ext.toolbox.demo.model import Size, write_model
from llamafactory_ext.toolbox.demo.writing import MINI
from llamafactory_ext.toolbox.detect.engines import Answer, Question, Settings, open_engine


ONE = "one at a time"
BATCHES = {"vllm": 256, "transformers": 16, ONE: 1}


def clocks() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


class Timed:
    """An engine, and how long it was asked: wall clock and CPU."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.took, self.tokens = inner, np.zeros(2), 0

    def ask(self, questions: Sequence[Question], *more: Any) -> list[Answer]:
        begun = clocks()
        answers: list[Answer] = self.inner.ask(questions, *more)
        self.took += clocks() - begun
        self.tokens += sum(len(one.tokens) for one in answers)
        return answers


def write_plant(folder: Path, series: int, points: int, seed: int) -> None:
    times, rng = pd.date_range("2025-03-01", periods=points, freq="min"), np.random.default_rng(seed)
    folder.mkdir()
    for number in range(series):
        values = rng.normal(0, 0.1, points)
        start = int(rng.integers(10, points - 50))
        values[start : start + int(rng.integers(1, 40))] += rng.normal(0, 3)
        frame = pd.DataFrame({"time": times, "value": values.round(3)})
        frame.to_csv(folder / f"s{number:04}.csv", index=False)


def detect(engine: Timed, model: str, batch: int, plant: Path, out: Path) -> tuple[np.ndarray, list[Any]]:
    command.open_engine = lambda name, settings: engine  # type: ignore[assignment]
    sys.argv = ["detect", str(plant), "--model", model, "--out", str(out), "--window", "0", "--batch", str(batch)]
    begun = clocks()
    command.main()
    took = clocks() - begun
    return took, [json.loads(line) for line in (out / "detections.jsonl").read_text("utf-8").splitlines()]


def compare(found: list[Any], expected: list[Any]) -> str:
    """Says how many answers are equal, and how far confidences are from one another."""
    same = [one["answers"] == other["answers"] for one, other in zip(found, expected, strict=True)]
    sure = [
        abs(one["confidence"] - other["confidence"])
        for left, right, equal in zip(found, expected, same, strict=True)
        for one, other in zip(left["intervals"], right["intervals"], strict=False)
        if equal and one["confidence"] is not None
    ]
    return f"{sum(same)} of {len(same)} answers equal, their confidences within {max(sure, default=0.0):.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--model", default=str(MINI), help="default: the shipped small model")
    parser.add_argument("--layers", type=int, default=0, help="random weights of width 512, so many layers deep")
    parser.add_argument("--max-new-tokens", type=int, default=120, help="1: what the questions alone take")
    parser.add_argument("--free", action="store_true", help="without the grammar")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.layers:
            given.model = str(Path(folder, "model"))
            write_model(Path(given.model), size=Size(512, given.layers, heads=8))
        return measure(given, Path(folder))


def measure(given: argparse.Namespace, folder: Path) -> int:
    common = Settings(given.model, max_new_tokens=given.max_new_tokens, constrained=not given.free)
    settings = {name: replace(common, batch=batch) for name, batch in BATCHES.items()}
    made = {name: open_engine("vllm" if name == "vllm" else "transformers", one) for name, one in settings.items()}
    whole: dict[str, list[np.ndarray]] = defaultdict(list)
    asked: dict[str, list[np.ndarray]] = defaultdict(list)
    for turn in range(given.rounds + 1):
        plant = folder / f"plant{turn}"  # of its own: vLLM remembers what it was asked
        write_plant(plant, given.series if turn else 16, given.points, turn)
        said = {}
        for name, engine in made.items():
            timed = Timed(engine)
            out = folder / f"{name}-{turn}".replace(" ", "-")
            took, said[name] = detect(timed, given.model, BATCHES[name], plant, out)
            if turn:  # the first one warms up
                whole[name].append(took)
                asked[name].append(timed.took)
                print(f"{name}: {compare(said[name], said['vllm'])}")
            print(f"{name}: {took[0]:.1f} s, {took[1]:.1f} s of CPU, {timed.tokens} tokens", flush=True)
    vllm = np.array(whole["vllm"])
    for name in ("transformers", ONE):
        ratios = np.array(whole[name]) / vllm
        print(f"vLLM against {name}: {ratios[:, 0].round(1)} by wall clock, {ratios[:, 1].round(1)} by CPU")
    for name in BATCHES:
        own = np.array(whole[name]) / np.array(asked[name]) - 1
        print(f"detect's own work beside {name}: {(100 * own[:, 1]).round(1)} % by CPU")
    return 0


if __name__ == "__main__":
    sys.exit(main())
