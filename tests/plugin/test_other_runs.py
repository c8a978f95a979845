"""What does not need the plugin runs as if it were not there; what only brushes it works too."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Gdsh, annotation, log_history, run_cli


RECIPE = {
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "dataset": "text",
    "output_dir": "out",
    "per_device_train_batch_size": 2,
    "learning_rate": 0.01,
    "max_steps": 4,
    "logging_steps": 1,
    "report_to": "none",
    "seed": 1,
    "use_cpu": True,
}


@pytest.fixture(scope="module")
def text_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    rows = [{"instruction": f"count {i}", "input": "", "output": f"{i} {i + 1}"} for i in range(8)]
    (folder / "text.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps({"text": {"file_name": "text.json"}}))
    return folder


@pytest.fixture(scope="module")
def plain_qwen2(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has nothing to do with series, with the demo's tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("qwen2")
    tokenizer = AutoTokenizer.from_pretrained(demo / "model")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer) + 8,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def losses(cwd: Path, recipe: dict[str, Any], **environment: str) -> list[float]:
    cwd.mkdir()
    (cwd / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    run = run_cli("train", "recipe.yaml", cwd=cwd, **environment)
    assert run.returncode == 0, (run.stdout + run.stderr)[-8000:]
    return [entry["loss"] for entry in log_history(cwd / "out") if "loss" in entry]


def test_another_model_and_template_train_as_without_the_plugin(
    text_data: Path, plain_qwen2: Path, tmp_path: Path
) -> None:
    recipe = {**RECIPE, "model_name_or_path": str(plain_qwen2), "dataset_dir": str(text_data), "template": "qwen"}
    with_plugin = losses(tmp_path / "on", recipe)
    without = losses(tmp_path / "off", recipe, LLAMAFACTORY_EXT="0")
    assert len(with_plugin) == 4
    assert with_plugin == without


def test_text_beside_series(text_data: Path, demo: Path, tmp_path: Path) -> None:
    """Text records and series in one run, through our template, two processes: some batches hold no series at all."""
    data = Gdsh(tmp_path / "data")
    data.csv("a.csv", range(30))
    data.records(*[annotation()] * 2)
    info = {"a": data.entry, "text": {"file_name": str(text_data / "text.json")}}
    (data.folder / "dataset_info.json").write_text(json.dumps(info))
    recipe = {**RECIPE, "model_name_or_path": str(demo / "model"), "dataset_dir": str(data.folder)}
    recipe |= {"template": "chatts", "dataset": "a,text", "per_device_train_batch_size": 1, "lora_target": "all"}
    found = losses(tmp_path / "run", recipe, FORCE_TORCHRUN="1", NPROC_PER_NODE="2")
    assert len(found) == 4
    assert all(0 < loss < 20 for loss in found)


@pytest.mark.parametrize("model_type", ["qwen2", "chatts"])
def test_published_checkpoint_without_its_code(model_type: str, demo: Path, tmp_path: Path) -> None:
    """As published: `auto_map` to Python files beside it, a processor that is remote code. None of it is executed."""
    model = tmp_path / "published"
    shutil.copytree(demo / "model", model)
    for module in ("configuration_x", "modeling_x", "processing_x"):
        (model / f"{module}.py").write_text(
            f"open({str(tmp_path / 'executed')!r}, 'w')\nraise SystemExit('executed')\n"
        )
    auto_map = {
        "AutoConfig": "configuration_x.C",
        "AutoModel": "modeling_x.M",
        "AutoModelForCausalLM": "modeling_x.M",
        "AutoProcessor": "processing_x.P",
    }
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": model_type, "auto_map": auto_map}))
    (model / "processor_config.json").write_text(
        json.dumps({"processor_class": "P", "auto_map": {"AutoProcessor": "processing_x.P"}})
    )
    data = Gdsh(tmp_path / "data")
    data.csv("a.csv", range(30))
    data.records(*[annotation()] * 2)
    recipe = {**RECIPE, "model_name_or_path": str(model), "dataset_dir": str(data.folder), "dataset": "a"}
    found = losses(tmp_path / "run", {**recipe, "template": "chatts", "max_steps": 1, "lora_target": "q_proj"})
    assert 0 < found[0] < 20

    export = {"model_name_or_path": str(model), "adapter_name_or_path": "out", "template": "chatts"}
    (tmp_path / "run" / "export.yaml").write_text(json.dumps({**export, "export_dir": "merged", "export_size": 1}))
    run = run_cli("export", "export.yaml", cwd=tmp_path / "run")
    assert run.returncode == 0, (run.stdout + run.stderr)[-8000:]
    merged = tmp_path / "run" / "merged"
    exported = json.loads((merged / "config.json").read_text())
    kept = {key: exported[key] for key in ("model_type", "auto_map", "architectures", "ts", "rope_theta")}
    assert kept == {
        **{key: config[key] for key in kept if key in config},
        "model_type": model_type,
        "auto_map": auto_map,
    }
    for module in ("configuration_x", "modeling_x", "processing_x"):
        assert (merged / f"{module}.py").read_bytes() == (model / f"{module}.py").read_bytes()
    assert not (tmp_path / "executed").exists()
