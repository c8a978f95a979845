"""The recipes, read as files: known keys, one order, values that agree, a header that says how to run them.

That they train is tested elsewhere, by running them.
"""

import json
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import yaml


ROOT = Path(__file__).resolve().parents[2]
RECIPES = [path for path in sorted((ROOT / "yaml").glob("*.yaml")) if "\ndo_train: true" in path.read_text("utf-8")]
STAGES = [path for path in RECIPES if path.stem in ("align", "sft_mixed")]
GDSH = [path for path in RECIPES if path not in STAGES and not path.stem.startswith("cpu_demo")]
SECTIONS = ["### model", "### method", "### dataset", "### output", "### train", "### eval"]

# Keys that the package adds, with their defaults.
OURS = {"timeseries_sft_lr": None, "train_timeseries_modules": True, "overlong_records": "error"}

# What every recipe for GDSH trains with, whether it says so or leaves it to a default.
AGREED = {
    "model_name_or_path": "bytedance-research/ChatTS-14B",
    "trust_remote_code": False,
    "flash_attn": "sdpa",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_target": "q_proj,k_proj,v_proj",
    "train_timeseries_modules": True,
    "timeseries_sft_lr": 1e-4,
    "dataset": "gdsh",
    "dataset_dir": "dataset_info",
    "template": "chatts",
    "cutoff_len": 4096,
    "overlong_records": "error",
    "logging_steps": 1,
    "save_steps": 50,
    "plot_loss": True,
    "save_only_model": False,
    "report_to": "none",
    "learning_rate": 1e-4,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.05,
    "fp16": True,
}
FOUR_BIT = {
    "quantization_bit": 4,
    "quantization_method": "bnb",
    "quantization_type": "nf4",
    "double_quantization": True,
}


def read(path: Path) -> dict[str, Any]:
    recipe = yaml.safe_load(path.read_text("utf-8"))
    assert isinstance(recipe, dict)
    return recipe


def header(path: Path) -> str:
    return path.read_text("utf-8").split("### model")[0]


@pytest.fixture(scope="module")
def defaults() -> dict[str, Any]:
    """Every key that LLaMA-Factory or the package knows, with its default (None where a factory makes it)."""
    parser = pytest.importorskip("llamafactory.hparams.parser")

    def all_fields() -> Iterator[Field[Any]]:
        for arguments in parser._TRAIN_ARGS:
            yield from fields(arguments)

    known = {field.name: None if field.default is MISSING else field.default for field in all_fields() if field.init}
    return {key: value.value if isinstance(value, Enum) else value for key, value in (OURS | known).items()}


def named(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[path.stem for path in paths])


def test_every_recipe_is_there() -> None:
    assert {path.stem for path in RECIPES} == {
        "2080ti_qlora",
        "2080ti_qlora_safe",
        "2080ti_simple",
        "3060_qlora",
        "3090_deepspeed_fp16",
        "8gb_qlora",
        "a100_deepspeed_fp16",
        "align",
        "cpu_demo",
        "sft_mixed",
    }


def test_folder_does_not_hide_pyyaml() -> None:
    assert not (ROOT / "yaml" / "__init__.py").exists()


@named(RECIPES)
def test_sections_come_in_upstreams_order(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert [line for line in lines if line.startswith("###")] == SECTIONS
    assert max(map(len, lines)) <= 119


@named(RECIPES)
def test_no_key_twice(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    keys = [line.split(":")[0] for line in lines if line and not line.startswith("#")]
    assert len(set(keys)) == len(keys) == len(read(path))


@named(RECIPES)
def test_header_says_what_it_needs_and_how_to_run_it(path: Path) -> None:
    text = header(path)
    for start in ("# Needs:", "# Run", "# Override", "# Resume:", "# Siblings:", "# Measured:"):
        assert any(line.startswith(start) for line in text.splitlines()), start
    assert f"llamafactory-cli train yaml/{path.name}" in text
    for other in RECIPES:
        assert other == path or f"llamafactory-cli train yaml/{other.name}" not in text


@named(RECIPES)
def test_a_killed_run_goes_on(path: Path, defaults: dict[str, Any]) -> None:
    """One checkpoint is whole while the next is written, with all that is needed to go on; the header says how."""
    effective = defaults | read(path)
    assert effective["save_total_limit"] is None or effective["save_total_limit"] > 1
    assert effective["save_strategy"] == "steps" and not effective["save_only_model"]
    over = "overwrite_output_dir=false" if effective["overwrite_output_dir"] else "give the same command again"
    assert f"# Resume: {over}" in header(path)


@named(RECIPES)
def test_every_key_is_known(path: Path, defaults: dict[str, Any]) -> None:
    assert set(read(path)) <= set(defaults)


@named(GDSH)
def test_values_agree(path: Path, defaults: dict[str, Any]) -> None:
    effective = defaults | read(path)
    agreed = AGREED if "deepspeed" in path.stem else AGREED | FOUR_BIT
    assert {key: effective[key] for key in agreed} == agreed
    assert effective["lora_alpha"] in (None, 16)  # LLaMA-Factory's default is twice the rank
    assert effective["per_device_train_batch_size"] * effective["gradient_accumulation_steps"] == 16


@named(GDSH)
def test_output_folder_is_its_own(path: Path) -> None:
    assert read(path)["output_dir"] == f"saves/chatts-14b/{path.stem}"


def test_shortest_recipe_repeats_no_default(defaults: dict[str, Any]) -> None:
    recipe = read(ROOT / "yaml" / "2080ti_simple.yaml")
    kept = {"report_to"}  # its default differs among the supported versions of transformers
    assert [key for key, value in recipe.items() if defaults[key] == value and key not in kept] == []


@named([path for path in GDSH if path.stem.startswith("2080ti")])
def test_turing_has_neither_bfloat16_nor_flash_attention_2(path: Path) -> None:
    recipe = read(path)
    assert recipe["fp16"] is True and recipe["flash_attn"] == "sdpa"
    assert not {"bf16", "pure_bf16", "tf32"} & set(recipe)


@named(RECIPES)
def test_several_cards_are_told_of(path: Path) -> None:
    recipe, text = read(path), header(path)
    if "deepspeed" in recipe or path.stem == "2080ti_qlora_safe":
        assert "FORCE_TORCHRUN=1 NPROC_PER_NODE=2" in text
        halved = recipe["gradient_accumulation_steps"] // 2
        assert f"yaml/{path.name} gradient_accumulation_steps={halved}" in text


@named(RECIPES)
def test_named_files_exist(path: Path) -> None:
    recipe = read(path)
    info = json.loads((ROOT / recipe["dataset_dir"] / "dataset_info.json").read_text("ascii"))
    assert info.keys() >= set(recipe["dataset"].split(","))
    if "deepspeed" in recipe:
        settings = json.loads((ROOT / recipe["deepspeed"]).read_text("ascii"))
        zero = settings["zero_optimization"]
        assert zero["stage"] == 3
        assert zero["offload_param"]["device"] == zero["offload_optimizer"]["device"] == "cpu"
        assert settings["fp16"]["enabled"] == settings["train_batch_size"] == "auto"


PUBLISHED = {  # the two scripts of ChatTS-Training, but for paths and what this machine has of cards and cores
    "align": {"dataset": "align_256,ift", "interleave_probs": "0.9,0.1", "max_steps": 1000},
    "sft_mixed": {
        "dataset": "sft,ift,align_random",
        "interleave_probs": "0.6,0.2,0.2",
        "max_steps": 400,
        "finetuning_type": "full",
        "learning_rate": 1e-5,
        "timeseries_sft_lr": 1e-5,
    },
}
IN_BOTH = {
    "stage": "sft",
    "do_train": True,
    "mix_strategy": "interleave_over",
    "template": "chatts",
    "cutoff_len": 10000,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 32,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.02,
    "logging_steps": 1,
    "save_steps": 100,
    "plot_loss": True,
    "fp16": True,
}


@named(STAGES)
def test_stages_are_the_published_ones(path: Path) -> None:
    recipe = read(path)
    wanted = IN_BOTH | PUBLISHED[path.stem]
    assert {key: recipe.get(key) for key in wanted} == wanted
    assert "save_safetensors" not in recipe  # transformers 5 refuses it
    assert recipe["output_dir"] == f"saves/chatts-0.5b/{path.stem}"


def test_second_stage_goes_on_from_the_first() -> None:
    first, second = (read(ROOT / "yaml" / f"{name}.yaml") for name in ("align", "sft_mixed"))
    assert second["model_name_or_path"] == first["output_dir"]
    assert (first["finetuning_type"], first["freeze_trainable_layers"]) == ("freeze", 0)  # the encoder alone


@pytest.mark.parametrize("name", ["align_256", "align_random", "ift", "sft", "chatts_tune"])
def test_chatts_entries_are_the_fields_word_for_word(name: str) -> None:
    info = json.loads((ROOT / "dataset_info" / "dataset_info.json").read_text("ascii"))
    assert info[name]["columns"] == {"prompt": "input", "response": "output", "timeseries": "timeseries"}
    assert set(info[name]) == {"file_name", "columns"}
    assert info[name]["file_name"] == f"../data/{name}/train.jsonl"
