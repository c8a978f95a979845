"""What an adapter's ``adapter_config.json`` may say: PEFT acts on it before it reads a weight.

It imports modules that are named there, tries regular expressions on every layer's name and builds matrices of any
rank. So LoRA alone is opened, over plain names; a key that is not known here has to be empty.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .source import find_file


CONFIG = "adapter_config.json"
LARGEST_RANK = 4096

_WEIGHTS = "adapter_model.safetensors"
_UNNAMED_RANK = 64  # builds next to nothing, whatever the file holds
_MOST_NAMES = 4096
_NAME = re.compile(r"[\w.-]{1,255}")
_NAMES = ("target_modules", "modules_to_save", "exclude_modules", "target_parameters")
_START = re.compile(r"gaussian|olora|orthogonal|pissa(_niter_\d{1,2})?")
_NUMBERS = ("lora_alpha", "lora_dropout", "qalora_group_size")
_HARMLESS = {"base_model_name_or_path", "revision", "task_type", "peft_version", "bias", "auto_mapping"}
_HARMLESS |= {"fan_in_fan_out", "inference_mode", "use_rslora", "use_dora", "lora_bias", "ensure_weight_tying"}


def check_adapter(source: str, subfolder: str = "", **hub: Any) -> None:
    """Checks an adapter before PEFT opens it.

    Arguments:
        source: folder or hub name, as ``PeftModel.from_pretrained`` takes it.
        hub: ``cache_dir``, ``revision``, ``token``.

    Raises:
        ValueError: all faults in one line, with file and keys.
    """
    place = {"subfolder": subfolder, **hub}
    file = find_file(source, CONFIG, **place)
    if file is None:  # PEFT says that better
        return
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as err:
        raise ValueError(f"{file} is no adapter's configuration ({err}); download it again.") from err
    if not isinstance(found, dict):
        raise ValueError(f"{file} is no adapter's configuration, but a {type(found).__name__}; download it again.")
    faults = list(_faults(found)) or list(_rank_faults(found, find_file(source, _WEIGHTS, **place)))
    if faults:
        raise ValueError(f"{file} can't be used: " + "; ".join(faults[:8]) + ".")


def refuse_hidden_adapter(source: str, **hub: Any) -> None:
    """Refuses an adapter among a model's files, which transformers would add, with the model that it names.

    Raises:
        ValueError: there is one.
    """
    file = find_file(source, CONFIG, **hub)
    if file is not None:
        raise ValueError(
            f"{file} makes an adapter of this checkpoint; expected a model by itself: take the file out, and name the "
            "adapter by `adapter_name_or_path`."
        )


def _faults(found: dict[str, Any]) -> Iterator[str]:
    for key, value in {"peft_type": None, "target_modules": None, "r": 8, **found}.items():
        expected = _expected(key, value)
        if expected:
            yield f"{key!s:.60} is {value!r:.60}, expected {expected}"
    for key in ("rank_pattern", "alpha_pattern"):
        for name, value in _items(found.get(key)):
            fits = _is_rank(value) if key == "rank_pattern" else _is_number(value)
            if not (_is_name(name) and fits):
                expected = f"an integer from 1 to {LARGEST_RANK}" if key == "rank_pattern" else "a number"
                yield f"{key}: {name!s:.60} is {value!r:.60}, expected the name of a layer, and {expected}"


def _expected(key: str, value: Any) -> str | None:
    """Returns what is expected of a key whose value is something else."""
    if key == "peft_type":
        return None if value == "LORA" else "LORA, which is what the recipes train"
    if key == "r":
        return None if _is_rank(value) else f"an integer from 1 to {LARGEST_RANK}"
    if key in _NAMES:
        fits = isinstance(value, list) and len(value) <= _MOST_NAMES and all(map(_is_name, value))
        return None if fits or (value is None and key != "target_modules") else "a list of plain names"
    if key in ("rank_pattern", "alpha_pattern"):
        fits = value is None or (isinstance(value, dict) and len(value) <= _MOST_NAMES)
        return None if fits else "an object of layers' names"
    if key == "init_lora_weights":
        fits = isinstance(value, bool | None) or (isinstance(value, str) and _START.fullmatch(value) is not None)
        return None if fits else "true, false or a way that needs no data"
    if key == "megatron_core":
        return None if value in (None, "megatron.core") else "nothing: a module of that name would be imported"
    if key in _NUMBERS:
        return None if value is None or _is_number(value) else "a number"
    if key in _HARMLESS:
        return None
    return (
        None if (not value and not isinstance(value, int | float)) or value is False else "nothing; take the key out"
    )


def _rank_faults(found: dict[str, Any], weights: Path | None) -> Iterator[str]:
    """Yields what declares larger matrices than the weights' file holds."""
    if weights is None:
        return
    held = _UNNAMED_RANK
    try:
        with safe_open(weights, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                if ".lora_A." in name or ".lora_embedding_A" in name:
                    held = max(held, file.get_slice(name).get_shape()[0])
    except (SafetensorError, OSError) as err:
        raise ValueError(f"{weights} is no safetensors file, or not all of it ({err}); download it again.") from err
    for key, rank in [("r", found.get("r", 8)), *_items(found.get("rank_pattern"))]:
        if rank > held:
            yield f"{key} is {rank}, the largest rank that {weights.name} holds is {held}"


def _items(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items())[:_MOST_NAMES] if isinstance(value, dict) else []


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_RANK


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
