"""What else would stop a run: programs, precision, folders, disk; and files and time."""

import json
import os
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers_model import config_dict
from helpers_plan import GIB, Make

from llamafactory_ext.toolbox.plan.cards import CARDS, Card
from llamafactory_ext.toolbox.plan.preflight import Check, _differs, _driver, check, checkpoints_kept, disk_needed
from llamafactory_ext.toolbox.plan.recipe import Recipe
from llamafactory_ext.toolbox.plan.shape import KNOWN, Shape
from llamafactory_ext.toolbox.plan.steps import seconds


SHAPE = KNOWN["chatts-14b"]


pytestmark = pytest.mark.usefixtures("no_network")


# Files and time


@pytest.mark.parametrize(
    ("keys", "steps", "kept"),
    [
        ({}, 500, 1),  # the Trainer's default, 500 steps
        ({}, 501, 2),
        ({"save_steps": 50}, 81, 2),
        ({"save_steps": 50, "save_total_limit": 5}, 81, 2),
        ({"save_steps": 10, "save_total_limit": 3}, 81, 4),
        ({"save_steps": 10, "save_total_limit": 0}, 81, 1),
        ({"save_steps": 1}, 81, 81),
        ({"save_steps": 0}, 81, 81),  # no number of steps: as many as there can be
        ({"save_steps": 0.1}, 81, 81),
    ],
)
def test_checkpoints_on_disk(make: Make, keys: dict[str, Any], steps: int, kept: int) -> None:
    assert checkpoints_kept(make(**keys), steps) == kept


TRAINED = 8 * (48 * 22_528 + 46_216)
"""Weights of the plain recipe's adapter, of rank 8; see `test_adapter_gradients_and_optimiser_of_the_main_recipe`."""


@pytest.mark.parametrize(
    ("keys", "each"),
    [
        ({}, (4 + 8) * TRAINED),  # float32, and Adam's two moments
        ({"optim": "paged_adamw_8bit"}, (4 + 2) * TRAINED),
        ({"save_only_model": True}, 4 * TRAINED),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, (4 + 12) * TRAINED),  # and its own float32 weights
    ],
)
def test_disk_by_part(make: Make, keys: dict[str, Any], each: int) -> None:
    """Two checkpoints of 600 steps and the result, each with a tokenizer of 12 MiB; the weights in 16 bit."""
    each += 12 * 1024 * 1024
    expected = {"checkpoints": 2 * each, "result": each, "download": 2 * 14_876_137_488, "free": 1000 * GIB}
    assert disk_needed(make(**keys), CARDS["2080ti"], 600) == {name: size / GIB for name, size in expected.items()}


def disk(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, free: dict[str, float]) -> dict[str, str]:
    """What is said of the disk where a folder whose path holds a word has so many GiB."""
    room = lambda folder: SimpleNamespace(free=int(GIB * next(v for k, v in free.items() if k in str(folder))))  # noqa: E731
    monkeypatch.setattr("shutil.disk_usage", room)
    return {text: level for text, level in said(recipe).items() if text.startswith("disk: ")}


def test_the_folder_that_is_too_small_is_named(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir()
    recipe = make(cache_dir=str(tmp_path / "cache"))
    download = 2 * SHAPE.parameters / GIB
    assert disk(recipe, monkeypatch, {"": 1000}) == {}
    (text,) = disk(recipe, monkeypatch, {"cache": 5, "": 1000})
    assert text == (
        f"disk: the download takes {download:.1f} GiB, {tmp_path / 'cache'} has 5.0: set HF_HOME or cache_dir to more"
    )
    (text,) = disk(recipe, monkeypatch, {"": download + 0.1})  # one disk for both
    assert "beside the download's 27.7" in text and text.endswith("lower save_total_limit, or name another output_dir")
    snapshot = tmp_path / "cache" / "models--none--ChatTS-14B"
    (snapshot / "snapshots" / "abc").mkdir(parents=True)
    (snapshot / "refs").mkdir()
    (snapshot / "refs" / "main").write_text("abc")
    (snapshot / "snapshots" / "abc" / "model.safetensors.index.json").write_text("{}")
    assert disk(recipe, monkeypatch, {"cache": 5, "": 1000}) == {}, "it has been downloaded"
    (snapshot / "snapshots" / "abc" / "model.safetensors.index.json").rename(
        snapshot / "snapshots" / "abc" / "model.safetensors"
    )
    (text,) = disk(recipe, monkeypatch, {"": 0})
    assert text == (
        f"disk: checkpoints and result take 0.2 GiB, {tmp_path / 'out'} has 0.0: "
        "lower save_total_limit, or name another output_dir"
    )


def test_a_disk_may_be_filled_to_its_last_byte(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One checkpoint and the result, beside the download where that lies on the same disk; /proc is another."""
    ours, download = 2 * (12 * TRAINED + 12 * 1024 * 1024), 2 * 14_876_137_488
    apart = make(cache_dir="/proc/cache")
    together = make(model_name_or_path="a/path/to/ChatTS-14B", cache_dir=str(tmp_path))
    for recipe, out, cache in ((apart, ours, download), (together, ours + download, ours + download)):
        assert disk(recipe, monkeypatch, {"/proc": cache / GIB, "": out / GIB}) == {}
        (text,) = disk(recipe, monkeypatch, {"/proc": cache / GIB, "": (out - 1) / GIB})
        assert text.startswith("disk: checkpoints and result take 0.2 GiB") and ("beside" in text) == (out > ours)
    (text,) = disk(apart, monkeypatch, {"/proc": (download - 1) / GIB, "": ours / GIB})
    assert text.startswith("disk: the download takes 27.7 GiB, /proc/cache has 27.7: ")


def test_time_only_where_it_was_measured(tmp_path: Path) -> None:
    assert seconds("RTX 2080Ti", SHAPE, 4, 1e6) is None
    row = {"card": "RTX 2080Ti", "layers": 48, "hidden_size": 5120, "quantization_bit": 4, "tokens_per_second": 100}
    (tmp_path / "rates.json").write_text(json.dumps([row]))
    assert seconds("RTX 2080Ti", SHAPE, 4, 1e6, tmp_path / "rates.json") == 10_000
    assert seconds("RTX 2080Ti", SHAPE, None, 1e6, tmp_path / "rates.json") is None


# Pre-flight


def said(recipe: Recipe, card: Card = CARDS["2080ti"]) -> dict[str, str]:
    return {one.text: one.level for one in check(recipe, card, 1)}


A100, UNKNOWN, CPU = CARDS["a100"], Card("card of 24 GiB", 24.0), Card("CPU", 24.0, found=True, device="cpu")
BOTH = ("fault", "fp16 and bf16 are both set: remove one")
OVERFLOW = ("warning", "fp16 without upcast_layernorm: faster; stops with a message should Qwen2 overflow")
NO_BFLOAT16 = "RTX 2080Ti (sm_75) has no bfloat16: fp16=true {}=false"
NO_FLASH = "`flash_attn: fa2` needs flash_attn, which is not installed: flash_attn: sdpa, which needs nothing"
NOT_STREAMED = ("fault", "stream_layers needs gradient checkpoints in all layers: remove one of them")
KEPT = (
    "warning",
    "glibc keeps freed memory; over 40 % more than planned was measured: start the run with "
    "MALLOC_MMAP_THRESHOLD_=131072 in its environment",
)
LIGER = "enable_liger_kernel: LLaMA-Factory does not know ChatTS there, and does without it"


def rest(recipe: Recipe, card: Card) -> list[tuple[str, str]]:
    """All that is said but for what is asserted by `test_all_that_is_looked_at`."""
    usual = ("torch ", "bitsandbytes ", "deepspeed ", "model: ", "output_dir ")
    return [(one.level, one.text) for one in check(recipe, card, 1) if not one.text.startswith(usual)]


@pytest.mark.parametrize(
    ("keys", "card", "expected"),
    [
        ({}, CARDS["2080ti"], [OVERFLOW]),
        ({}, UNKNOWN, [OVERFLOW]),
        ({"upcast_layernorm": True}, CARDS["2080ti"], []),
        ({}, A100, [("warning", "A100, 40 GB (sm_80) has bfloat16, which does not overflow: fp16=false bf16=true")]),
        ({}, CPU, [("fault", "transformers refuses fp16 on a CPU: fp16=false"), KEPT]),
        ({"bf16": True, "fp16": False}, CARDS["2080ti"], [("fault", NO_BFLOAT16.format("bf16"))]),
        ({"pure_bf16": True, "fp16": False}, CARDS["2080ti"], [("fault", NO_BFLOAT16.format("pure_bf16"))]),
        ({"bf16": True}, CARDS["2080ti"], [("fault", NO_BFLOAT16.format("bf16")), BOTH]),
        ({"bf16": True}, CPU, [BOTH, KEPT]),
        ({"bf16": True, "fp16": False}, A100, []),
        ({"bf16": True, "fp16": False}, UNKNOWN, []),
        ({"bf16": True, "fp16": False}, CPU, [KEPT]),
        ({"fp16": False}, A100, []),
        (
            {"fp16": False},
            CPU,
            [
                ("warning", "the checkpoint is float16, which a CPU computes in slowly: bf16=true use_cpu=true"),
                KEPT,
            ],
        ),
        ({"flash_attn": "fa2", "bf16": True, "fp16": False}, A100, [("fault", NO_FLASH)]),
        (
            {"flash_attn": "fa2", "upcast_layernorm": True},
            CARDS["2080ti"],
            [("fault", NO_FLASH), ("fault", "RTX 2080Ti (sm_75) has no FlashAttention-2: flash_attn=sdpa")],
        ),
        ({"enable_liger_kernel": True}, UNKNOWN, [("warning", LIGER), OVERFLOW]),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, UNKNOWN,
         [("ok", "DeepSpeed's configuration: ZeRO stage 3"), OVERFLOW]),
        ({"deepspeed": {"bf16": {}}}, UNKNOWN, [("ok", "DeepSpeed's configuration: ZeRO stage 0"), OVERFLOW]),
    ],
)  # fmt: skip
def test_programs_and_precision(
    make: Make, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], card: Card, expected: list[tuple[str, str]]
) -> None:
    monkeypatch.setenv("PATH", "")  # no nvidia-smi
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # as where it is not installed
    assert rest(make(**keys), card) == expected


@pytest.mark.parametrize(
    ("parameters", "libc", "value", "said"),
    [
        (10**9 + 1, "glibc", None, True),
        (10**9, "glibc", None, False),
        (10**9 + 1, "", None, False),
        (10**9 + 1, "glibc", "131072", False),
    ],
)
def test_what_a_cpus_heap_keeps(
    make: Make, monkeypatch: pytest.MonkeyPatch, parameters: int, libc: str, value: str | None, said: bool
) -> None:
    monkeypatch.setattr(Shape, "parameters", parameters)
    monkeypatch.setattr("platform.libc_ver", lambda: (libc, "2.36"))
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    if value:
        monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", value)
    assert (KEPT in rest(make(bf16=True, fp16=False), CPU)) is said
    assert KEPT not in rest(make(), A100)


def test_all_that_is_looked_at(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    torch_here = f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}"
    absent = Check("warning", f"{torch_here}; no card is in this machine: what needs one was not looked at")
    four_bit = Check("ok", f"bitsandbytes {version('bitsandbytes')}")
    expected = [
        Check(*OVERFLOW),
        Check("warning", "model: none/ChatTS-14B can't be reached; dimensions are those known by its name"),
        Check("ok", f"output_dir {tmp_path / 'out'}: new"),
    ]
    assert check(make(), CARDS["2080ti"], 1) == [absent, four_bit, *expected]
    here = replace(CARDS["2080ti"], found=True)
    found = Check("ok", f"{torch_here}; RTX 2080Ti, sm_75")
    assert check(make(quantization_bit=None), here, 1) == [found, *expected]
    zero = {"deepspeed": {"zero_optimization": {"stage": 2}}}
    assert check(make(**zero), here, 1)[2] == Check("ok", f"deepspeed {version('deepspeed')}")
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    assert check(make(fp16=False, bf16=True), CPU, 1) == [four_bit, *expected[1:]], "nothing of cards"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"layers_without_checkpoints": 47}, []),
        (
            {"layers_without_checkpoints": 48},
            [("fault", "layers_without_checkpoints is 48, the model has 48 layers: "
              "disable_gradient_checkpointing=true layers_without_checkpoints=0")],
        ),
        ({"disable_gradient_checkpointing": True}, []),
        (
            {"disable_gradient_checkpointing": True, "layers_without_checkpoints": 1},
            [("fault", "layers_without_checkpoints and disable_gradient_checkpointing are both set: remove one")],
        ),
        ({"stream_layers": 48}, []),
        (
            {"stream_layers": 49},
            [("fault", "stream_layers is 49, the model has 48 layers: stream_layers=48")],
        ),
        ({"stream_layers": 1, "layers_without_checkpoints": 1}, [NOT_STREAMED]),
        ({"stream_layers": 1, "disable_gradient_checkpointing": True}, [NOT_STREAMED]),
    ],
)  # fmt: skip
def test_layers_without_checkpoints(
    make: Make, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert rest(make(upcast_layernorm=True, **keys), CARDS["2080ti"]) == expected


def test_weights_of_the_model(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamafactory_ext.toolbox.plan.recipe._config_of", lambda *_: config_dict("qwen2"))
    folder = tmp_path / "model"
    folder.mkdir()
    recipe = make(model_name_or_path=str(folder))
    assert said(recipe)[f"{folder} holds no weights (*.safetensors)"] == "fault"
    assert "download" not in disk_needed(recipe, CARDS["2080ti"], 1)
    for name in ("pytorch_model.bin", "model.safetensors"):
        (folder / name).touch()
        assert said(recipe)[f"model: {folder}"] == "ok"
        (folder / name).unlink()
    cached = said(make(model_name_or_path="some/where"))
    assert cached["model: some/where, to be downloaded if it is not cached"] == "ok"


def test_deepspeed_that_can_not_be_read(make: Make, tmp_path: Path) -> None:
    (text,) = [text for text, level in said(make(deepspeed=str(tmp_path / "no.json"))).items() if level == "fault"]
    assert "no.json can't be read" in text and "expected a JSON file" in text


CARD = "GeForce RTX 2080 Ti, driver 470.82.01"


@pytest.mark.parametrize(
    ("prints", "visible", "usable", "expected"),
    [
        ("11", "0", False, ("fault", f"{CARD}: torch 2 can't use it: "
         "install a newer driver, or a torch made for an older CUDA")),
        ("11", "", False, ("ok", CARD)),  # hidden on purpose
        ("11", "0", True, ("ok", CARD)),
        ("300", "0", True, ("ok", CARD)),  # the most that an idle card shows
        ("301", "0", True, ("warning", f"{CARD}: 0.3 GiB are in use: end what uses it")),
        ("2048", "0", True, ("warning", f"{CARD}: 2.0 GiB are in use: end what uses it")),
        ("[N/A]", "0", True, ("ok", CARD)),
    ],
)  # fmt: skip
def test_driver(
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prints: str,
    visible: str,
    usable: bool,
    expected: tuple[str, str],
) -> None:
    """A stand-in for nvidia-smi, which is not where there is no card; what is no row of three is passed over."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho no, row\necho\necho '470.82.01, GeForce RTX 2080 Ti, {prints}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [(one.level, one.text) for one in _driver("torch 2", usable)] == [expected]
    assert sum(", driver 470.82.01" in line for line in said(make())) == 1
    program.write_text("#!/bin/sh\nexit 9\n")
    assert said(make())[next(line for line in said(make()) if "nvidia-smi finds no card" in line)] == "warning"


NO_CHECKPOINT = " holds files and no checkpoint: name another, or overwrite_output_dir=true"
RESUMES = ("warning", ": the run resumes from step 50; overwrite_output_dir=true starts over")
ENDED = (
    "fault",
    ": the run has ended at step 50, no step is left: "
    "raise num_train_epochs or max_steps, overwrite_output_dir=true, or name another",
)
STEP_50 = '{"global_step": 50}'
SAVED = {"checkpoint-50/trainer_state.json": STEP_50}
BASE = "checkpoint-50/adapter_config.json"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ("ok", ": new")),
        ({"notes.txt": ""}, ("warning", NO_CHECKPOINT)),
        *(
            ({name: "{}"}, ("fault", NO_CHECKPOINT))
            for name in ("trainer_state.json", "adapter_model.safetensors", "model.safetensors")
        ),
        (SAVED, RESUMES),
        ({**SAVED, "trainer_state.json": STEP_50}, RESUMES),  # killed before its result was written
        ({**SAVED, "model.safetensors": ""}, RESUMES),
        *(
            ({**SAVED, "trainer_state.json": STEP_50, name: ""}, ENDED)
            for name in ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
        ),
        ({**SAVED, "trainer_state.json": '{"global_step": 49}', "model.safetensors": ""}, RESUMES),
        ({**SAVED, "trainer_state.json": '{"global_step": "50"}', "model.safetensors": ""}, RESUMES),
        ({**SAVED, "trainer_state.json": "{", "chatts_run.json": "[]", "model.safetensors": ""}, RESUMES),
        ({**SAVED, BASE: '{"base_model_name_or_path": "none/ChatTS-14B"}'}, RESUMES),
        (
            {**SAVED, BASE: '{"base_model_name_or_path": "other/model"}'},
            ("fault", " is a run of other/model, this is one of none/ChatTS-14B: name another"),
        ),
        (
            {**SAVED, "chatts_run.json": '{"method": {"lora_rank": 16}}'},
            ("fault", " holds a run with lora_rank 16 (here 8): name another, or overwrite_output_dir=true"),
        ),
    ],
)
def test_what_lies_in_the_output_folder(
    make: Make, tmp_path: Path, files: dict[str, str], expected: tuple[str, str]
) -> None:
    out = tmp_path / "out"
    for name, text in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    out.mkdir(exist_ok=True)
    found = [one for one in check(make(lora_rank=8), A100, 50) if one.text.startswith("output_dir ")]
    assert found == [Check(expected[0], f"output_dir {out}{expected[1]}")]  # type: ignore[arg-type]


def test_an_output_folder_that_can_not_be_written(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))  # root may write anywhere
    out = tmp_path / "out"
    text = f"output_dir {out}: {tmp_path} can't be written; name another output_dir"
    assert [text for text in said(make()) if text.startswith("output_dir ")] == [text]
    assert said(make())[text] == "fault"
    monkeypatch.undo()
    out.touch()
    within = make(output_dir=str(out / "deeper"))
    assert said(within)[f"output_dir {out / 'deeper'}: {out} can't be written; name another output_dir"] == "fault"


def test_an_output_folder_that_is_overwritten(make: Make, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    recipe = make(overwrite_output_dir=True)
    assert said(recipe)[f"output_dir {tmp_path / 'out'}: new"] == "ok"
    (tmp_path / "out" / "notes.txt").touch()
    assert said(recipe)[f"output_dir {tmp_path / 'out'} is in use and will be overwritten"] == "warning"


@pytest.mark.parametrize(
    ("before", "keys", "expected"),
    [
        ({}, {"dataset": "a"}, []),
        ({"data": {"dataset": {}}}, {"dataset": "a"}, []),
        ({"data": {"dataset": {"a": {}, "b": {}}}}, {}, []),
        ({"data": {"dataset": {"a": {}, "b": {}}}}, {"dataset": "b, a"}, []),
        ({"data": {"dataset": {"a": {}, "b": {}}}}, {"dataset": "a"}, ["dataset a, b (here a)"]),
        ({"data": {"dataset": {"a": {}}}}, {"dataset": ["a", "c"]}, ["dataset a (here a, c)"]),
        ({"data": {"cutoff_len": 4096, "seed": 1}}, {"cutoff_len": "4096.0", "seed": 2}, ["seed 1 (here 2)"]),
        ({"method": {"learning_rate": 1e-4}}, {"learning_rate": "1.0e-4"}, []),
        ({"method": {"fp16": True, "optim": "SGD"}}, {"fp16": "true", "optim": "sgd"}, []),
        ({"method": {"optim": "sgd", "lora_alpha": 8}}, {}, ["optim sgd (here adamw_torch)"]),
        ({"method": {"lora_target": ["q_proj"], "fp16": True}}, {"fp16": False}, ["fp16 True (here False)"]),
    ],
)
def test_what_a_run_in_the_folder_had_otherwise(
    make: Make, before: dict[str, Any], keys: dict[str, Any], expected: list[str]
) -> None:
    """Keys that only one of both sets are compared by training, which knows the defaults."""
    assert _differs(make(**keys), before) == expected
