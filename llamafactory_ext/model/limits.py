"""What a checkpoint's ``config.json`` may say: found out before a tokenizer or a weight is loaded.

A checkpoint comes from anywhere. Sizes are bounded by several times those of any published model, so that a wrong
number is reported by its key and not by a machine that has run out of memory; and what names code is not followed.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers.activations import ACT2FN


_ENCODER = {"patch_size": 4096, "embedding_dim": 4096, "hidden_size": 65536, "num_layers": 64}
_ENCODER["max_sequence_length"] = 1 << 22
_ENCODER_WEIGHTS = 1 << 32
"""All of the encoder's: forty times as many as ChatTS-14B's encoder has."""

_LANGUAGE_MODEL = {"vocab_size": 1 << 22, "hidden_size": 65536, "intermediate_size": 1 << 20, "head_dim": 4096}
_LANGUAGE_MODEL |= {"num_hidden_layers": 1024, "num_attention_heads": 1024, "num_key_value_heads": 1024}
_LANGUAGE_MODEL |= {"max_position_embeddings": 1 << 26}

_MAY_BE_NULL = ("head_dim", "num_key_value_heads")
_NUMBERS = ("rope_theta", "rms_norm_eps", "initializer_range")
_SWITCHES = ("tie_word_embeddings", "use_cache", "use_sliding_window", "attention_bias")
# `_attn_implementation_internal`, `_experts_implementation`, …: with a slash transformers takes what such a key names
# for a kernel of a hub, to be fetched and executed.
_IMPLEMENTATION = "implementation"
_IMPLEMENTATION_NAME = re.compile(r"\w+")


def check_config(config: Mapping[str, Any], place: str = "config.json of this ChatTS checkpoint") -> None:
    """Raises ValueError, all faults in one message, where a model can't be built of ``config``, or should not be."""
    if config.get("ts") is None:  # transformers builds an empty config to find the defaults
        return
    faults = [*_language_model(config), *_names(config)]
    if isinstance(config["ts"], dict):
        faults = [*_encoder(config["ts"], config), *faults]
    else:
        faults.append(f"ts is {_shown(config['ts'])}, expected an object")
    if faults:
        raise ValueError(f"{place} can't be used: " + "; ".join(faults) + ".")


def _encoder(section: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    sound = True
    for key, largest in _ENCODER.items():
        if not _is_whole(section.get(key), 1, largest):
            sound = False
            yield f"ts.{key} is {_shown(section.get(key))}, expected an integer from 1 to {largest}"
    if section.get("num_features", 2) != 2:
        yield f"ts.num_features is {_shown(section['num_features'])}, expected 2 (value and mask)"
    if section.get("use_position_idx", False):
        yield "ts.use_position_idx is true, which no published checkpoint uses and this model does not know"
    for key in ("use_position_embedding", "use_layer_norm"):
        if not isinstance(section.get(key, False), bool):
            yield f"ts.{key} is {_shown(section[key])}, expected true or false"
    width = config.get("hidden_size")
    if width is not None and section.get("hidden_size") != width:
        yield f"ts.hidden_size is {_shown(section.get('hidden_size'))}, expected the language model's {_shown(width)}"
    if sound and (count := _encoder_weights(section)) > _ENCODER_WEIGHTS:
        sizes = "ts.patch_size, embedding_dim, num_layers and max_sequence_length"
        yield f"{sizes} make an encoder of {count:,} weights, expected at most {_ENCODER_WEIGHTS:,}"
    ids = {key: config.get(key) for key in ("ts_token_start_index", "ts_token_end_index")}
    if not isinstance(ids["ts_token_start_index"], int):
        yield "ts_token_start_index is missing, expected the id of the token <ts>"
    vocabulary = config.get("vocab_size")
    for key, value in ids.items():
        if isinstance(value, int) and isinstance(vocabulary, int) and not 0 <= value < vocabulary:
            yield f"{key} is {_shown(value)}, expected an id below vocab_size, {_shown(vocabulary)}"


def _encoder_weights(section: Mapping[str, Any]) -> int:
    width, patch = section["hidden_size"], section["patch_size"]
    positions = (section["max_sequence_length"] + 1 + patch * width) * section["embedding_dim"]
    return int(positions + patch * width + (section["num_layers"] - 1) * width * width)


def _language_model(config: Mapping[str, Any]) -> Iterator[str]:
    sizes: dict[str, int] = {}
    for key, largest in _LANGUAGE_MODEL.items():
        value = config.get(key)
        if _is_whole(value, 1, largest):
            sizes[key] = int(config[key])
        elif value is not None or (key in config and key not in _MAY_BE_NULL):
            yield f"{key} is {_shown(value)}, expected an integer from 1 to {largest}"
    hidden, heads = sizes.get("hidden_size", 0), sizes.get("num_attention_heads")
    if heads is not None:
        shared = sizes.get("num_key_value_heads", heads)
        if "head_dim" not in sizes and hidden % heads:
            yield f"hidden_size is {hidden}, expected a multiple of num_attention_heads, {heads}"
        if heads % shared:
            yield f"num_attention_heads is {heads}, expected a multiple of num_key_value_heads, {shared}"
    padding, vocabulary = config.get("pad_token_id"), sizes.get("vocab_size")
    if padding is not None and (not isinstance(padding, int) or (vocabulary and not -1 <= padding < vocabulary)):
        yield f"pad_token_id is {_shown(padding)}, expected an id below vocab_size, {vocabulary}"
    for key in _NUMBERS:
        value = config.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
            yield f"{key} is {_shown(value)}, expected a number above 0"
    for key in _SWITCHES:
        if not isinstance(config.get(key), bool | None):
            yield f"{key} is {_shown(config[key])}, expected true or false"


def _names(config: Mapping[str, Any]) -> Iterator[str]:
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        yield f"architectures is {_shown(names)}, expected a list of names"
    action = config.get("hidden_act")
    if action is not None and (not isinstance(action, str) or action not in ACT2FN):
        yield f"hidden_act is {_shown(action)}, expected a name that transformers knows, such as 'silu'"
    for key in ("dtype", "torch_dtype"):
        kind = config.get(key)
        named = kind if isinstance(kind, torch.dtype) else getattr(torch, str(kind).removeprefix("torch."), None)
        if kind not in (None, "auto") and not isinstance(named, torch.dtype):
            yield f"{key} is {_shown(kind)}, expected the name of a torch type, such as 'bfloat16'"
    for key, name in config.items():
        plain = isinstance(name, str) and _IMPLEMENTATION_NAME.fullmatch(name)
        if _IMPLEMENTATION in str(key).lower() and name is not None and not plain:
            yield f"{key!s:.60} is {_shown(name)}, which would be fetched and executed; take the key out"
    if config.get("transformers_weights") is not None:
        named = _shown(config["transformers_weights"])
        yield f"transformers_weights is {named}, weights under a name of their own; take the key out"
    modules = config.get("auto_map")
    if modules is not None and not _is_auto_map(modules):
        yield f"auto_map is {_shown(modules)}, expected names of classes by their task"


def _is_auto_map(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    names = [name for names in value.values() for name in (names if isinstance(names, list) else [names])]
    return all(isinstance(name, str | None) for name in names)


def _is_whole(value: Any, smallest: int, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and smallest <= value <= largest


def _shown(value: Any) -> str:
    return f"{value!r:.60}"
