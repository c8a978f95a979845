"""Every recipe for two optimizer steps on a CPU, through the real command line, or what it calls, in this process.

Overridden are model, data set, step count, output and the precision that a CPU lacks; 4 bit is real bitsandbytes,
several processes are real torchrun over gloo, ZeRO-3 with offload is real DeepSpeed.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Gdsh, annotation, answer, log_history, run_cli
from safetensors.torch import load_file

from llamafactory_ext.training.whole_checkpoints import first_fault


PLAIN = ("2080ti_qlora",)
HERE = ("2080ti_simple", "3060_qlora")
TORCHRUN = ("2080ti_qlora_safe",)
SMALL = "8gb_qlora"
STAGES = ("align", "sft_mixed")
DEEPSPEED = ("3090_deepspeed_fp16", "a100_deepspeed_fp16")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set: series of unequal length, one or two of them in a record."""
    data = Gdsh(tmp_path_factory.mktemp("recipes") / "data")
    data.csv("a.csv", [i % 7 for i in range(60)])
    data.csv("b.csv", [0.5, "", 3, -400])
    records = [annotation("a.jpg", answer((2, 3))), annotation(["a.jpg", "b.jpg"], user="<image> <image>")] * 4
    return data.records(*records).folder


def train(recipe: str, data: Path, model: Path, cwd: Path, *more: str, **environment: str) -> Path:
    """Runs a recipe for two steps and returns its output folder."""
    (cwd / "yaml").symlink_to(ROOT / "yaml")  # recipes name DeepSpeed's config relative to the working directory
    keys = [f"model_name_or_path={model}", "dataset=a", f"dataset_dir={data}", "max_steps=2", "output_dir=out"]
    precision = ["fp16=false", "bf16=false"]
    run = run_cli("train", f"yaml/{recipe}.yaml", *keys, *precision, *more, cwd=cwd, timeout=1200, **environment)
    assert run.returncode == 0, (run.stdout + run.stderr)[-8000:]
    return cwd / "out"


def train_here(patch: pytest.MonkeyPatch, recipe: str, cwd: Path, *keys: str) -> Path:
    """The same without a process of its own, which imports for most of its time."""
    from llamafactory.train.tuner import run_exp

    keys += ("fp16=false", "max_steps=2", "output_dir=out", "preprocessing_num_workers=null", "cache_dir=cache")
    patch.chdir(cwd)
    patch.setattr(sys, "argv", ["llamafactory-cli", str(ROOT / "yaml" / f"{recipe}.yaml"), *keys])
    run_exp()
    return cwd / "out"


def check_adapter(output: Path) -> None:
    """Two steps were logged with finite loss; adapter, plot and a checkpoint that can be resumed are there."""
    losses = [entry["loss"] for entry in log_history(output) if "loss" in entry]
    assert len(losses) == 2
    assert all(0 < loss < 20 for loss in losses)
    weights = load_file(output / "adapter_model.safetensors")
    trained = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in weights}
    encoder = {f"ts_encoder.mlp.{layer}" for layer in (0, 2, 4, 6, 8)}
    attention = {f"model.layers.{n}.self_attn.{part}_proj" for n in (0, 1) for part in "qkv"}
    assert trained == encoder | attention
    moved = {name for name, weight in weights.items() if "lora_B" in name and bool(weight.abs().sum() > 0)}
    assert moved == {name for name in weights if "lora_B" in name}  # B starts at zero: every one of them has learnt
    assert (output / "training_loss.png").stat().st_size > 0
    assert json.loads((output / "adapter_config.json").read_text())["r"] == 8


@pytest.mark.parametrize("recipe", PLAIN)
def test_one_process(recipe: str, data: Path, demo: Path, tmp_path: Path) -> None:
    output = train(recipe, data, demo / "model", tmp_path)
    check_adapter(output)
    assert (output / "checkpoint-2" / "optimizer.pt").exists()


@pytest.mark.parametrize("recipe", TORCHRUN)
def test_two_processes(recipe: str, data: Path, demo: Path, tmp_path: Path) -> None:
    keys = "gradient_accumulation_steps=8"  # the recipe's own advice for two cards
    check_adapter(train(recipe, data, demo / "model", tmp_path, keys, FORCE_TORCHRUN="1", NPROC_PER_NODE="2"))


@pytest.mark.parametrize("recipe", DEEPSPEED)
def test_deepspeed(recipe: str, data: Path, demo: Path, tmp_path: Path) -> None:
    output = train(recipe, data, demo / "model", tmp_path, FORCE_TORCHRUN="1", NPROC_PER_NODE="1")
    check_adapter(output)
    assert first_fault(output / "checkpoint-2") is None  # DeepSpeed's own layout


@pytest.mark.parametrize("recipe", HERE)
def test_in_this_process(recipe: str, data: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = (f"model_name_or_path={demo / 'model'}", "dataset=a", f"dataset_dir={data}")
    check_adapter(train_here(monkeypatch, recipe, tmp_path, *keys))


def test_other_family(data: Path, qwen3_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = (f"model_name_or_path={qwen3_model}", "dataset=a", f"dataset_dir={data}")
    check_adapter(train_here(monkeypatch, "2080ti_qlora", tmp_path, *keys))


def write_stages(folder: Path) -> None:
    """The published data sets' names and columns; each has questions of its own."""
    info = {}
    for number, name in enumerate(("align_256", "align_random", "ift", "sft")):
        series = [[float((place * (number + 2)) % 9) for place in range(40)]]
        record = {"input": f"<ts><ts/> {name}?", "output": f"answer {number}", "timeseries": series}
        lines = json.dumps(record, ensure_ascii=False) + "\n"
        (folder / f"{name}.jsonl").write_text(lines * 8, "utf-8")
        columns = {"prompt": "input", "response": "output", "timeseries": "timeseries"}
        info[name] = {"file_name": f"{name}.jsonl", "columns": columns}
    (folder / "dataset_info.json").write_text(json.dumps(info), "utf-8")


def moved(before: Path, after: Path) -> set[str]:
    """Names of the weights that differ."""
    old, new = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name].to(old[name].dtype))}


@pytest.mark.parametrize(
    ("recipe", "more", "expected"),
    [
        ("align", (), "encoder"),
        ("align", ("finetuning_type=full", "learning_rate=1.0e-5"), "all"),  # the head's advice
        ("sft_mixed", (), "all"),
    ],
)
def test_stages(
    recipe: str, more: tuple[str, ...], expected: str, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mix of data sets; the first stage leaves every weight of the language model as it is, to the bit."""
    write_stages(tmp_path)
    keys = (f"model_name_or_path={demo / 'model'}", f"dataset_dir={tmp_path}", "gradient_accumulation_steps=2")
    output = train_here(monkeypatch, recipe, tmp_path, *keys, *more)
    losses = [entry["loss"] for entry in log_history(output) if "loss" in entry]
    assert len(losses) == 2 and all(0 < loss < 20 for loss in losses)
    changed = moved(demo / "model", output)
    encoder = {name for name in load_file(output / "model.safetensors") if name.startswith("ts_encoder.")}
    assert {name for name in encoder if "mlp" in name} <= changed
    assert (changed <= encoder) is (expected == "encoder")
    assert first_fault(output / "checkpoint-2") is None


def test_demo_recipe(demo: Path, tmp_path: Path) -> None:
    keys = [f"model_name_or_path={demo / 'model'}", f"dataset_dir={demo / 'data'}", "output_dir=out"]
    run = run_cli("train", str(ROOT / "yaml" / "cpu_demo.yaml"), *keys, cwd=tmp_path)
    assert run.returncode == 0, (run.stdout + run.stderr)[-8000:]
    losses = [entry["loss"] for entry in log_history(tmp_path / "out") if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    before, after = load_file(demo / "model" / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert any(name.startswith("ts_encoder") for name in moved)
    assert (tmp_path / "out" / "training_loss.png").stat().st_size > 0


def test_every_lever_changes_nothing(data: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe for 8 GB against the main one, on the demo's two layers of which one is streamed."""
    found = []
    for recipe, more in (("2080ti_qlora", ()), (SMALL, ("stream_layers=1",))):
        (tmp_path / recipe).mkdir()
        keys = (f"model_name_or_path={demo / 'model'}", "dataset=a", f"dataset_dir={data}", *more)
        output = train_here(monkeypatch, recipe, tmp_path / recipe, *keys)
        check_adapter(output)
        losses = [entry[key] for entry in log_history(output) if "loss" in entry for key in ("loss", "grad_norm")]
        found.append((losses, load_file(output / "adapter_model.safetensors")))
    (losses, weights), (expected, theirs) = found
    assert losses == pytest.approx(expected, rel=1e-3)
    for name, weight in weights.items():  # Adam makes a whole step of a gradient that is rounding alone
        off = (weight - theirs[name]).abs().mean()
        assert float(off) <= 0.02 * float(theirs[name].abs().mean()), name


def test_every_recipe_is_run() -> None:
    trained = {path.stem for path in (ROOT / "yaml").glob("*.yaml") if "\ndo_train: true" in path.read_text("utf-8")}
    assert trained == {SMALL, *PLAIN, *HERE, *TORCHRUN, *DEEPSPEED, *STAGES, "cpu_demo"}
