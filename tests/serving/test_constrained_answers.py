"""The key `constrained_answers` through chat, server and predict: answers are JSON of anomalies within their series.

Asked for a trend, the shipped small model answers with a number: answers about anomalies come of the key alone.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from llamafactory_ext.gdsh import read_anomalies
from llamafactory_ext.toolbox.demo.writing import MINI


pytest.importorskip("xgrammar")

TREND, TEXT = "What is the trend of this series?", "What is the trend?"


def steps(length: int, seed: int) -> list[float]:
    values = np.random.default_rng(seed).normal(0, 0.1, length)
    values[length // 3 : length // 3 + 10] += 3
    return [round(float(value), 3) for value in values]


SERIES = [steps(200, 0), steps(90, 1)]


@pytest.fixture(scope="module")
def chat() -> Any:
    from llamafactory.chat import ChatModel

    keys = {"model_name_or_path": str(MINI), "template": "chatts", "infer_backend": "huggingface"}
    return ChatModel({**keys, "infer_dtype": "float32", "constrained_answers": True})


def ask(chat: Any, text: str, *series: list[float]) -> str:
    (answer,) = chat.chat(
        [{"role": "user", "content": text}], audios=list(series) or None, do_sample=False, max_new_tokens=100
    )
    return str(answer.response_text)


def check(text: str, series: list[float]) -> None:
    """JSON of anomalies by the reader of labels, within the series."""
    anomalies, without = read_anomalies(text)
    assert anomalies and not without
    assert all(0 <= one.start <= one.end < len(series) for one in anomalies)


def test_chat(chat: Any) -> None:
    answers = [ask(chat, f"<audio>{TREND}", series) for series in SERIES]
    for answer, series in zip(answers, SERIES, strict=True):
        check(answer, series)
    assert answers[0] != answers[1]
    assert not ask(chat, TEXT).startswith('{"status"')  # without a series it is not for anomalies that one asks
    grammars, chat.engine.model.grammars = chat.engine.model.grammars, None
    try:
        assert not ask(chat, f"<audio>{TREND}", SERIES[0]).startswith('{"status"')
    finally:
        chat.engine.model.grammars = grammars


@pytest.mark.parametrize("stream", [False, True])
def test_server(chat: Any, stream: bool) -> None:
    from fastapi.testclient import TestClient
    from llamafactory.api import app

    url = "data:application/json," + json.dumps(SERIES[1])
    content = [{"type": "audio_url", "audio_url": {"url": url}}, {"type": "text", "text": TREND}]
    body = {"model": "chatts", "messages": [{"role": "user", "content": content}], "stream": stream}
    body |= {"temperature": 0, "max_tokens": 100}
    client = TestClient(app.create_app(chat), base_url="http://127.0.0.1:8000")
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    if stream:
        lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
        answer = "".join(json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines)
    else:
        answer = response.json()["choices"][0]["message"]["content"]
    check(answer, SERIES[1])
    assert answer == ask(chat, f"<audio>{TREND}", SERIES[1])


def test_predict(chat: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of two records with series and one without, which stays free."""
    from llamafactory.train.tuner import run_exp

    questions = [(f"<ts><ts/>{TREND}", [SERIES[0]]), (TEXT, []), (f"<ts><ts/>{TREND}", [SERIES[1]])]
    records = [{"input": text, "output": "?", "timeseries": series} for text, series in questions]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    columns = {"prompt": "input", "response": "output", "timeseries": "timeseries"}
    info = {"a": {"file_name": "a.jsonl", "formatting": "chatts", "columns": columns}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    keys = [f"model_name_or_path={MINI}", "adapter_name_or_path=null", "quantization_bit=null", "infer_dtype=float32"]
    keys += [f"dataset_dir={tmp_path}", "eval_dataset=a", "cutoff_len=900", "max_new_tokens=100", "output_dir=out"]
    keys += ["embedding_on_cpu=false", "preprocessing_num_workers=null", "cache_dir=cache", "constrained_answers=true"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["llamafactory-cli", str(ROOT / "yaml" / "predict.yaml"), *keys])
    run_exp()
    lines = (tmp_path / "out" / "generated_predictions.jsonl").read_text("utf-8").splitlines()
    answers = [json.loads(line)["predict"] for line in lines]
    assert answers[0] == ask(chat, f"<audio>{TREND}", SERIES[0])
    assert answers[2] == ask(chat, f"<audio>{TREND}", SERIES[1])
    assert not answers[1].startswith('{"status"')
