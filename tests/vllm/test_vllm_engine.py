"""`detect --engine vllm` on the shipped small model: the answers and confidences of the engine over transformers."""

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_vllm import open_llm  # noqa: F401  sets what vLLM reads from the environment

from llamafactory_ext.toolbox.cli import detect as command
from llamafactory_ext.toolbox.demo.writing import MINI
from llamafactory_ext.toolbox.detect.engines import Engine, Question, Settings, open_engine


PROMPT = "<ts><ts/>\n请找出异常区间，用JSON回答。"


def steps(length: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(0, 0.1, length)
    values[length // 3 : length // 3 + 10] += 3
    return np.round(values, 3)


SERIES = [steps(length, seed) for seed, length in enumerate((40, 64, 200, 333, 1000, 90, 8, 150))]
SMALL = {"max_num_seqs": 8, "max_model_len": 1024}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return open_engine("vllm", Settings(str(MINI), max_new_tokens=120, more=tuple(SMALL.items())))


def test_answers_are_those_of_the_engine_over_transformers(engine: Any) -> None:
    asked = [Question(PROMPT, (one,)) for one in SERIES]
    expected = open_engine("transformers", Settings(str(MINI), max_new_tokens=120, batch=8)).ask(asked)
    found = engine.ask(asked)
    assert len({one.text for one in found}) > 5 and all(one.is_whole for one in found)
    for one, other in zip(found, expected, strict=True):
        assert (one.text, one.tokens, one.is_whole) == (other.text, other.tokens, other.is_whole)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_what_it_refuses_is_named_and_the_others_are_answered(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, values in enumerate([*SERIES[:3], np.arange(9000.0)]):
        path = tmp_path / "plant" / f"s{number}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("value\n" + "\n".join(map(str, values)) + "\n")
    monkeypatch.setattr(command, "open_engine", lambda name, settings: engine)
    arguments = [str(tmp_path / "plant"), "--model", str(MINI), "--out", str(tmp_path / "out"), "--window", "0"]
    monkeypatch.setattr(sys, "argv", ["detect", *arguments, "--engine", "vllm"])
    before = dict(os.environ)
    try:
        assert command.main() == 1
    finally:
        os.environ.clear()
        os.environ.update(before)
    with (tmp_path / "out" / "failed.csv").open(encoding="utf-8", newline="") as file:
        failed = {row["series"]: row["reason"] for row in csv.DictReader(file)}
    assert "could not be asked: found a series of 9000 points" in failed["s3"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "detections.jsonl").open(encoding="utf-8")]
    assert all(bool(one["answers"][0]["text"]) == (one["series"] != "s3") for one in lines)
