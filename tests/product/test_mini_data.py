"""What mini learns from is right: anomalies where the answers say, types as the prompt asks, held-out series apart.

That mini reads series stands in `test_mini.py`; that it can be made anew, in an hour and a half: `make mini`.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest


pytest.importorskip("tokenizers")
pytest.importorskip("torch")

import held_out
import torch
import train_mini
from tokenizers import Tokenizer

from llamafactory_ext.gdsh import write_answer as prepared_answer
from llamafactory_ext.gdsh.readings import STRICT, read_answer
from llamafactory_ext.model import Qwen3TSForCausalLM
from llamafactory_ext.toolbox.demo import wordings
from llamafactory_ext.toolbox.demo.components import RHYTHMIC, UNSTEADY, draw_background, draw_places, fitting, put_in
from llamafactory_ext.toolbox.demo.series import ALL_SHAPES


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    rng = np.random.default_rng(11)
    return [wordings.draw_record(rng) for _ in range(600)]


def named(record: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(record["output"]).get("detected_anomalies", [])
    return found


@pytest.mark.parametrize("kind", ALL_SHAPES)
def test_anomaly_changes_its_interval_and_nothing_else(kind: str) -> None:
    rng = np.random.default_rng(5)
    seen = 0
    for _ in range(60):
        length = wordings.draw_length(rng)
        background = draw_background(length, rng)
        if not fitting(background, (kind,)):
            continue
        kinds = (kind,) * max(1, min(3, length // 48))
        places = draw_places(kinds, length, rng)
        changed = np.flatnonzero(put_in(background, kinds, places, rng) != background.values)
        labelled = [index for start, end in places for index in range(start, end + 1)]
        assert set(changed) <= set(labelled)
        assert len(changed) >= 0.9 * len(labelled)
        assert all(0 < start <= end < length - 1 for start, end in places)
        seen += 1
    assert seen > 10


def test_a_background_shows_only_what_can_be_told() -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        background = draw_background(256, rng)
        possible = fitting(background, tuple(ALL_SHAPES))
        assert bool(set(RHYTHMIC) & set(possible)) == (background.period >= 40)
        assert bool(set(UNSTEADY) & set(possible)) != bool(background.wander.any())


def test_answers_are_as_prepare_writes_them(records: list[dict[str, Any]]) -> None:
    seen = 0
    for record in records:
        if "detected_anomalies" in record["output"]:
            reading = read_answer(record["output"])
            assert reading.form == STRICT
            assert prepared_answer(reading.anomalies, compact=True) == record["output"]
            seen += 1
    assert seen > 400


def test_only_types_that_count_are_answered() -> None:
    rng = np.random.default_rng(4)
    listed = 0
    for _ in range(400):
        record, counted = wordings.draw_detection(rng)
        assert {one["type"] for one in named(record) if "type" in one} <= set(counted)
        if len(counted) < len(ALL_SHAPES):
            text = record["input"]
            excluding = re.search("不算异常：|属于正常操作|Ignore", text) and "其他不算异常" not in text
            missing = set(ALL_SHAPES) - set(counted)
            assert all(kind in text for kind in (missing if excluding else counted))
            listed += 1
    assert 60 < listed < 160


def test_every_task_length_and_type_occurs(records: list[dict[str, Any]]) -> None:
    keys = Counter(next(iter(json.loads(record["output"]))) for record in records)
    assert {"status", "index", "trend", "higher", "anomalous", "max", "length"} <= set(keys)
    assert 0.82 < keys["status"] / len(records) < 0.94
    lengths = [len(series) for record in records for series in record["timeseries"]]
    assert 64 <= min(lengths) < 80 and 1000 < max(lengths) <= 1024
    assert {one["type"] for record in records for one in named(record) if "type" in one} == set(ALL_SHAPES)
    assert {len(named(record)) for record in records} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("word", ["最大值", "maximum"])
def test_places_are_the_series_own(word: str, records: list[dict[str, Any]]) -> None:
    asked = [record for record in records if word in record["input"] and "index" in record["output"]]
    assert asked
    for record in asked:
        (series,) = record["timeseries"]
        assert series[json.loads(record["output"])["index"]] == max(series)


def test_same_seed_same_records_and_held_out_ones_are_others() -> None:
    once, again = (held_out.draw("plain", 20, 0, True) for _ in range(2))
    other = held_out.draw("plain", 20, 1, True)
    assert once == again != other
    assert held_out.draw("asked", 5, 0, False) != once[:5]
    control = held_out.exchange_series(once)
    assert all(
        a["timeseries"] != b["timeseries"] and a["output"] == b["output"] for a, b in zip(once, control, strict=True)
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mini") / "model"
    folder.mkdir()
    train_mini.write_start(folder, 0, "qwen2")
    train_mini.write_checkpoint(train_mini.start_model(folder, 0, "qwen2"), folder)
    return folder


def test_tokens_are_those_of_llamafactory(start: Path, tmp_path: Path, tokenise: Any) -> None:
    """The training loop has its own way to tokens; adapters and answers go LLaMA-Factory's."""
    rng = np.random.default_rng(8)
    drawn = [wordings.draw_record(rng, 512) for _ in range(25)]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in drawn)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    entry = {"a": {"file_name": "a.jsonl", "columns": held_out.COLUMNS}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entry))
    module = tokenise(tmp_path, "a", start, cutoff_len=1024)
    tokenizer = Tokenizer.from_file(str(start / "tokenizer.json"))
    for record, row in zip(drawn, module["train_dataset"], strict=True):
        ids, prompt, series = train_mini.tokenise(record, tokenizer)
        assert ids == row["input_ids"]
        assert [-100] * prompt + ids[prompt:] == row["labels"]
        batch = train_mini.collate([(ids, prompt, series)])
        assert torch.equal(batch["timeseries"], torch.from_numpy(train_mini.encode(record["timeseries"])).float())


def test_a_pool_is_cut_into_batches_of_a_size(start: Path) -> None:
    tokenizer = Tokenizer.from_file(str(start / "tokenizer.json"))
    samples = train_mini.draw_pool((0, 90, 0), tokenizer)
    batches = train_mini.cut(samples)
    assert [sample for batch in batches for sample in batch] == samples and len(batches) == train_mini.STEPS
    tokens = [sum(len(ids) for ids, _, _ in batch) for batch in batches]
    assert max(tokens) < 1.3 * min(tokens)
    assert train_mini.draw_pool((0, 90, 0), tokenizer) == samples != train_mini.draw_pool((0, 90, 1), tokenizer)


def test_the_other_family_starts_and_reads_a_batch(tmp_path: Path) -> None:
    train_mini.write_start(tmp_path, 0, "qwen3")
    model = train_mini.start_model(tmp_path, 0, "qwen3")
    assert type(model) is Qwen3TSForCausalLM
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    samples = [train_mini.tokenise(wordings.draw_record(np.random.default_rng(1), 64), tokenizer)]
    loss = model(**train_mini.collate(samples), use_cache=False).loss.detach()
    assert 4 < float(loss) < 10, "near log(768) before anything is learnt"
