"""Mini comes with the package, is small, opens as any checkpoint does, and reads series that it has not seen."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest


pytest.importorskip("torch")
pytest.importorskip("transformers")

import held_out
import torch
from safetensors import safe_open
from transformers import AutoTokenizer
from verdict import judge

from llamafactory_ext.gdsh.readings import read_answer
from llamafactory_ext.model import ChatTSProcessor, Qwen2TSForCausalLM
from llamafactory_ext.toolbox.demo.data import PROMPT
from llamafactory_ext.toolbox.demo.model import SPECIAL_TOKENS
from llamafactory_ext.toolbox.demo.series import ALL_SHAPES
from llamafactory_ext.toolbox.demo.writing import MINI, write_mini
from llamafactory_ext.toolbox.evaluate.detail import ious, matches


RECORDS = 60


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "mini"
    write_mini(folder)
    return folder


def answers(folder: Path, records: list[dict[str, Any]]) -> list[str]:
    """Greedy answers, one batch, left padding."""
    model = Qwen2TSForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    processor = ChatTSProcessor.from_pretrained(str(folder))
    prompts = [
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{record['input']}<|im_end|>\n<|im_start|>assistant\n"
        for record in records
    ]
    inputs: Any = processor(prompts, timeseries=[record["timeseries"][0] for record in records], padding=True)
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=110, do_sample=False, eos_token_id=end)
    texts: list[str] = processor.tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], True)
    return texts


def event_f1(records: list[dict[str, Any]], texts: list[str]) -> float:
    hits = both = 0
    for record, text in zip(records, texts, strict=True):
        labels, found = (
            [(one.start, one.end) for one in read_answer(said).anomalies] for said in (record["output"], text)
        )
        hits, both = hits + matches(ious(labels, found) >= 0.3), both + len(labels) + len(found)
    return 2 * hits / both


def test_is_small() -> None:
    files = [path for path in MINI.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4_000_000
    with safe_open(MINI / "model.safetensors", "pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118
    assert 1_000_000 < sum(int(np.prod(shape)) for shape in shapes) < 2_000_000
    config = json.loads((MINI / "config.json").read_text("utf-8"))
    assert config["hidden_size"] // config["num_attention_heads"] in (32, 64)  # what vLLM's CPU attention takes
    assert config["ts"]["max_sequence_length"] >= 1024


def test_any_text_goes_there_and_back(mini: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(mini)
    for text in (PROMPT, "数据集：12345 点 -3.1416|scaling=1.0 🙂\n", "Übergröße, naïve", *ALL_SHAPES):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("2025") == ["2", "0", "2", "5"]
    assert [tokenizer.tokenize(text) for text in SPECIAL_TOKENS] == [[text] for text in SPECIAL_TOKENS]


def test_reads_series_that_it_has_not_seen(mini: Path) -> None:
    records = held_out.draw("test", RECORDS, 0, every_type=True)
    short = [one for one in records if len(one["timeseries"][0]) <= 512]
    texts = answers(mini, short)
    assert sum(
        text == json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")) for text in texts
    ) == len(texts)
    assert event_f1(short, texts) >= 0.8
    exchanged = held_out.exchange_series(short)
    assert event_f1(exchanged, answers(mini, exchanged)) < 0.5


def test_verdict_asks_for_more_than_chance_and_detectors_reach() -> None:
    def scores(f1: float, **baselines: float) -> dict[str, Any]:
        return {
            "event_f1": f1 + 0.02,
            "event_f1_iou30": f1,
            "baselines": {name: {"event_f1_iou30": one} for name, one in baselines.items()},
        }

    def missed(f1: float, control: float, **baselines: float) -> list[str]:
        return [name for name, _, reached in judge(scores(f1, **baselines), scores(control)) if not reached]

    assert missed(0.96, 0.25, random=0.29, zscore=0.1, iqr=0.65) == []
    assert missed(0.96, 0.33, random=0.29, zscore=0.1, iqr=0.65) == ["3 x series exchanged"]
    assert missed(0.96, 0.25, random=0.33, zscore=0.1, iqr=0.71) == ["3 x random", "iqr"]
    assert missed(0.65, 0.1, random=0.1, zscore=0.66, iqr=0.3) == [
        "wanted of event_f1",
        "wanted of event_f1_iou30",
        "zscore",
    ]
    assert missed(0.87, 0.25, random=0.25, zscore=0.1, iqr=0.65) == ["wanted of event_f1"]
