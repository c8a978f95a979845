"""What would stop a run for other reasons than memory, looked at before it starts: programs, folders, disk."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llamafactory_ext.errors import UsageError
from llamafactory_ext.toolbox.plan.cards import Card
from llamafactory_ext.toolbox.plan.memory import Settings
from llamafactory_ext.toolbox.plan.memory_weights import optimiser_bytes, trained_parameters
from llamafactory_ext.toolbox.plan.recipe import Recipe
from llamafactory_ext.toolbox.plan.shape import Shape
from llamafactory_ext.training.whole_checkpoints import last_whole


_AMPERE = (8, 0)
_SECONDS = 20  # nvidia-smi takes a few where no daemon keeps the driver loaded
_MIB_IN_USE = 300  # more than an idle card shows
_TOKENIZER = 12 * 2**20  # saved with each checkpoint; Qwen's
_FINAL = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
_SAVE_STEPS = 500  # the Trainer's default
_MALLOC = "MALLOC_MMAP_THRESHOLD_"  # glibc's, from which size on a block is the system's again once it is freed
_LARGE = 10**9  # parameters


@dataclass(frozen=True)
class Check:
    """What was looked at; a fault would stop the run."""

    level: Literal["ok", "warning", "fault"]
    text: str


def check(recipe: Recipe, card: Card, steps: int) -> list[Check]:
    """Looks at programs, card, folders and disk."""
    found = [*_programs(recipe, card), *_precision(recipe, card), *_checkpoints(recipe)]
    return [*found, *_malloc(recipe, card), *_model(recipe), *_output(recipe, steps), *_disk(recipe, card, steps)]


def _programs(recipe: Recipe, card: Card) -> Iterator[Check]:
    import torch

    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}"
    if card.device == "cuda" and card.found:
        yield Check("ok", f"{versions}; {card.name}, sm_{''.join(map(str, card.capability or ()))}")
    elif card.device == "cuda":
        yield Check("warning", f"{versions}; no card is in this machine: what needs one was not looked at")
    yield from _driver(versions, torch.cuda.is_available())
    if recipe.get("quantization_bit") is not None:
        yield _needs("bitsandbytes", "quantization_bit", "pip install '.[train]'")
    if recipe.get("deepspeed") is not None:
        yield _needs("deepspeed", "deepspeed", "pip install '.[train,deepspeed]'")
        try:
            stage = recipe.deepspeed.get("zero_optimization", {}).get("stage", 0)
            yield Check("ok", f"DeepSpeed's configuration: ZeRO stage {stage}")
        except UsageError as err:
            yield Check("fault", str(err))
    if recipe.get("flash_attn") == "fa2":
        yield _needs("flash_attn", "flash_attn: fa2", "flash_attn: sdpa, which needs nothing")
    if recipe.get("enable_liger_kernel"):
        yield Check("warning", "enable_liger_kernel: LLaMA-Factory does not know ChatTS there, and does without it")


def _driver(versions: str, usable: bool) -> Iterator[Check]:
    """What NVIDIA's own tool reports of driver and cards, where it is installed."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return
    query = [program, "--query-gpu=driver_version,name,memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as err:
        yield Check("warning", f"nvidia-smi finds no card ({err}); is the driver loaded?")
        return
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.count(",") == 2]
    for driver, name, used in rows:
        if not usable and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
            fix = "install a newer driver, or a torch made for an older CUDA"
            yield Check("fault", f"{name}, driver {driver}: {versions} can't use it: {fix}")
        elif used.isdigit() and int(used) > _MIB_IN_USE:
            yield Check("warning", f"{name}, driver {driver}: {int(used) / 1024:.1f} GiB are in use: end what uses it")
        else:
            yield Check("ok", f"{name}, driver {driver}")


def _malloc(recipe: Recipe, card: Card) -> Iterator[Check]:
    """By itself glibc raises that size to 32 MiB, and the gaps that smaller blocks leave fit few that come after."""
    glibc = platform.libc_ver()[0] == "glibc"
    if card.device == "cpu" and glibc and recipe.shape.parameters > _LARGE and _MALLOC not in os.environ:
        said = "glibc keeps freed memory; over 40 % more than planned was measured"
        yield Check("warning", f"{said}: start the run with {_MALLOC}=131072 in its environment")


def _checkpoints(recipe: Recipe) -> Iterator[Check]:
    without, layers = recipe.get("layers_without_checkpoints", 0), recipe.shape.layers
    if without and recipe.get("disable_gradient_checkpointing", False):
        yield Check("fault", "layers_without_checkpoints and disable_gradient_checkpointing are both set: remove one")
    elif without >= layers:
        fix = "disable_gradient_checkpointing=true layers_without_checkpoints=0"
        yield Check("fault", f"layers_without_checkpoints is {without}, the model has {layers} layers: {fix}")
    streamed = recipe.get("stream_layers", 0)
    if streamed > layers:
        yield Check("fault", f"stream_layers is {streamed}, the model has {layers} layers: stream_layers={layers}")
    if streamed and (without or recipe.get("disable_gradient_checkpointing", False)):
        yield Check("fault", "stream_layers needs gradient checkpoints in all layers: remove one of them")


def _needs(module: str, key: str, fix: str) -> Check:
    if importlib.util.find_spec(module) is None:
        return Check("fault", f"`{key}` needs {module}, which is not installed: {fix}")
    return Check("ok", f"{module} {importlib.metadata.version(module)}")


def _precision(recipe: Recipe, card: Card) -> Iterator[Check]:
    older = card.capability is not None and card.capability < _AMPERE
    name = f"{card.name} (sm_{''.join(map(str, card.capability or ()))})"
    for key in ("bf16", "pure_bf16"):
        if recipe.get(key, False) and older:
            yield Check("fault", f"{name} has no bfloat16: fp16=true {key}=false")
    if recipe.get("flash_attn") == "fa2" and older:
        yield Check("fault", f"{name} has no FlashAttention-2: flash_attn=sdpa")
    if recipe.get("fp16", False) and recipe.get("bf16", False):
        yield Check("fault", "fp16 and bf16 are both set: remove one")
    elif recipe.get("fp16", False) and card.device == "cpu":
        yield Check("fault", "transformers refuses fp16 on a CPU: fp16=false")
    elif card.device == "cpu" and recipe.settings("cpu", 1).compute_dtype == "float16":
        yield Check("warning", "the checkpoint is float16, which a CPU computes in slowly: bf16=true use_cpu=true")
    elif recipe.get("fp16", False) and card.capability is not None and not older:
        yield Check("warning", f"{name} has bfloat16, which does not overflow: fp16=false bf16=true")
    elif recipe.get("fp16", False) and not recipe.get("upcast_layernorm", False):
        yield Check("warning", "fp16 without upcast_layernorm: faster; stops with a message should Qwen2 overflow")


def _model(recipe: Recipe) -> Iterator[Check]:
    folder = Path(recipe.model)
    if folder.is_dir():
        there = list(folder.glob("*.safetensors")) or list(folder.glob("*.bin"))
        yield (
            Check("ok", f"model: {folder}") if there else Check("fault", f"{folder} holds no weights (*.safetensors)")
        )
    elif recipe.config is None:
        yield Check("warning", f"model: {recipe.model} can't be reached; dimensions are those known by its name")
    else:
        yield Check("ok", f"model: {recipe.model}, to be downloaded if it is not cached")


def _output(recipe: Recipe, steps: int) -> Iterator[Check]:
    folder = recipe.output
    existing = _existing(folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        yield Check("fault", f"output_dir {folder}: {existing} can't be written; name another output_dir")
        return
    if existing != folder or not any(folder.iterdir()):
        yield Check("ok", f"output_dir {folder}: new")
        return
    if recipe.get("overwrite_output_dir", False):
        yield Check("warning", f"output_dir {folder} is in use and will be overwritten")
        return
    last = last_whole(folder)
    if last is None:
        left = {"trainer_state.json", "adapter_model.safetensors", "model.safetensors"} & {
            p.name for p in folder.iterdir()
        }
        level: Literal["warning", "fault"] = "fault" if left else "warning"
        yield Check(
            level, f"output_dir {folder} holds files and no checkpoint: name another, or overwrite_output_dir=true"
        )
        return
    another = _differs(recipe, _read(folder / "chatts_run.json"))
    if another:
        text = f"output_dir {folder} holds a run with {', '.join(another)}: name another, or overwrite_output_dir=true"
        yield Check("fault", text)
        return
    base = _read(last / "adapter_config.json").get("base_model_name_or_path")
    if base is not None and base != recipe.model:
        yield Check("fault", f"output_dir {folder} is a run of {base}, this is one of {recipe.model}: name another")
        return
    ended = _read(folder / "trainer_state.json").get("global_step")
    final = any((folder / name).exists() for name in _FINAL)
    if isinstance(ended, int) and ended >= steps and final:
        fix = "raise num_train_epochs or max_steps, overwrite_output_dir=true, or name another"
        yield Check("fault", f"output_dir {folder}: the run has ended at step {ended}, no step is left: {fix}")
        return
    step = _read(last / "trainer_state.json").get("global_step")
    yield Check(
        "warning", f"output_dir {folder}: the run resumes from step {step}; overwrite_output_dir=true starts over"
    )


def _differs(recipe: Recipe, before: dict[str, Any]) -> list[str]:
    """Returns what the recipe sets otherwise than the run in its folder was; training compares the rest."""
    found = []
    names = recipe.get("dataset", None)
    wanted = names.split(",") if isinstance(names, str) else names or []
    held = list(before.get("data", {}).get("dataset", {}))
    if held and wanted and {name.strip() for name in wanted} != set(held):
        found.append(f"dataset {', '.join(held)} (here {', '.join(wanted)})")
    for part in ("data", "method"):
        for key, value in before.get(part, {}).items():
            now = recipe.get(key, None)
            if key != "dataset" and now is not None and isinstance(value, int | float | str) and not _same(value, now):
                found.append(f"{key} {value} (here {now})")
    return found


def _same(one: object, other: object) -> bool:
    try:
        return float(str(one)) == float(str(other))
    except ValueError:
        return str(one).lower() == str(other).lower()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _checkpoint_bytes(recipe: Recipe, shape: Shape, settings: Settings) -> int:
    """Returns the size of one checkpoint: trained weights in float32, the optimizer's states, the tokenizer."""
    states = 0 if recipe.get("save_only_model", False) else optimiser_bytes(shape, settings)
    weights = 4 * trained_parameters(shape, settings)
    return weights + states + _TOKENIZER


def checkpoints_kept(recipe: Recipe, steps: int) -> int:
    """Returns how many checkpoints lie in `output_dir` at most; a new one is written before the oldest one goes."""
    every = recipe.get("save_steps", _SAVE_STEPS)
    written = -(-steps // every) if isinstance(every, int) and every > 0 else steps
    limit = recipe.get("save_total_limit")
    return written if limit is None else min(written, int(limit) + 1)


def disk_needed(recipe: Recipe, card: Card, steps: int) -> dict[str, float]:
    """Returns GiB by part, and what is free where `output_dir` will be."""
    shape = recipe.shape
    each = _checkpoint_bytes(recipe, shape, recipe.settings(card.device, 1))
    parts = {"checkpoints": each * checkpoints_kept(recipe, steps), "result": each}
    if not _is_here(recipe):
        parts["download"] = 2 * shape.parameters
    free = shutil.disk_usage(_existing(recipe.output)).free
    return {name: size / 2**30 for name, size in parts.items()} | {"free": free / 2**30}


def _disk(recipe: Recipe, card: Card, steps: int) -> Iterator[Check]:
    """Names the folder that is too small: that of the download, or `output_dir`, which may be on the same disk."""
    try:
        disk = disk_needed(recipe, card, steps)
    except UsageError:  # DeepSpeed's configuration, a fault already
        return
    ours, download = disk["checkpoints"] + disk["result"], disk.get("download", 0.0)
    cache = Path(recipe.get("cache_dir") or _hub_cache()).expanduser()
    room = shutil.disk_usage(_existing(cache)).free / 2**30
    together = _existing(cache).stat().st_dev == _existing(recipe.output).stat().st_dev
    if download > room:
        yield Check(
            "fault",
            f"disk: the download takes {download:.1f} GiB, {cache} has {room:.1f}: set HF_HOME or cache_dir to more",
        )
    elif ours + (download if together else 0) > disk["free"]:
        beside = f" beside the download's {download:.1f}" if together and download else ""
        yield Check(
            "fault",
            f"disk: checkpoints and result take {ours:.1f} GiB{beside}, {recipe.output} has {disk['free']:.1f}: "
            "lower save_total_limit, or name another output_dir",
        )


def _existing(folder: Path) -> Path:
    """Returns the folder, or the nearest one above it that is there."""
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())


def _hub_cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _is_here(recipe: Recipe) -> bool:
    """Whether the weights are a folder, or in the hub's cache, whole or not."""
    if Path(recipe.model).is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    places = {"cache_dir": recipe.get("cache_dir"), "revision": recipe.get("model_revision")}
    names = ("model.safetensors.index.json", "model.safetensors")
    try:
        return any(isinstance(try_to_load_from_cache(recipe.model, name, **places), str) for name in names)
    except HFValidationError:  # a path, which is not there
        return False
