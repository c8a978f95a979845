"""Real records, where they lie beside the checkout: ChatTS's own samples, and annotations of one plant."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SHARED_RECORDS, Gdsh, log_history, run_cli


pytestmark = pytest.mark.skipif(not SHARED_RECORDS.is_dir(), reason=f"the real records are not at {SHARED_RECORDS}")

IGNORED = -100


def train(cwd: Path, **keys: Any) -> list[float]:
    recipe = {"stage": "sft", "do_train": True, "finetuning_type": "lora", "template": "chatts", "max_steps": 2}
    recipe |= {"lora_target": "q_proj,k_proj,v_proj", "per_device_train_batch_size": 1, "logging_steps": 1}
    recipe |= {"output_dir": "out", "report_to": "none", "cutoff_len": 8192, "use_cpu": True}
    (cwd / "recipe.yaml").write_text(json.dumps({**recipe, **keys}))
    run = run_cli("train", "recipe.yaml", cwd=cwd)
    assert run.returncode == 0, (run.stdout + run.stderr)[-8000:]
    return [entry["loss"] for entry in log_history(cwd / "out") if "loss" in entry]


@pytest.mark.parametrize("quantisation", [{}, {"quantization_bit": 4}], ids=["lora", "4-bit"])
def test_published_samples_train_through_the_usual_entry(
    quantisation: dict[str, Any], demo: Path, tmp_path: Path
) -> None:
    entry = {
        "chatts_dev": {
            "file_name": str(SHARED_RECORDS / "chatts_dev.jsonl"),
            "columns": {"prompt": "input", "response": "output", "timeseries": "timeseries"},
        }
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(entry))
    keys = {"model_name_or_path": str(demo / "model"), "dataset_dir": ".", "dataset": "chatts_dev", **quantisation}
    losses = train(tmp_path, **keys)
    assert len(losses) == 2
    assert all(0 < loss < 20 for loss in losses)


@pytest.fixture
def annotations(tmp_path: Path) -> Gdsh:
    """The annotations as they stand, with a series made up for each name."""
    records = json.loads((SHARED_RECORDS / "all_conversations.json").read_text(encoding="utf-8"))
    data = Gdsh(tmp_path / "data")
    rng = np.random.default_rng(0)
    for number, record in enumerate(records):
        stem = record["image"].rpartition("/")[2].removesuffix(".jpg")
        prefix = ("", "数据集")[number % 2]
        data.csv(f"{prefix}{stem}.csv", rng.normal(size=5000).round(4).tolist(), folder="zhlh")
    data.entry["folder"] = "timeseries/zhlh"
    return data.records(*records)


def test_all_intervals_are_in_the_labels(annotations: Gdsh, tokenise: Callable[..., Any]) -> None:
    run = tokenise(annotations.folder, cutoff_len=200_000)
    rows = run["train_dataset"]
    assert len(rows) == 99
    found = 0
    for row in rows:
        labels = [label for label in row["labels"] if label != IGNORED]
        reply = json.loads(run["tokenizer"].decode(labels).removesuffix("<|im_end|>\n"))
        assert reply["status"] == "success"
        found += len(reply["detected_anomalies"])
        assert all(len(entry["interval"]) == 2 for entry in reply["detected_anomalies"])
    assert found == 1845


def test_annotations_train_as_they_stand(annotations: Gdsh, demo: Path, tmp_path: Path) -> None:
    keys = {"model_name_or_path": str(demo / "model"), "dataset_dir": str(annotations.folder), "dataset": "a"}
    losses = train(tmp_path, **{**keys, "cutoff_len": 200_000})  # the longest answer has 51,683 characters
    assert len(losses) == 2
    assert all(0 < loss < 20 for loss in losses)
