"""A checkpoint's weights against its config, by the headers of its files: before memory is taken for either.

Without this a config that promises more than the files hold is believed: transformers makes what is missing, of any
size, of random numbers.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .adapters import refuse_hidden_adapter
from .source import find_file


_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""In the order in which transformers takes them."""

_EMBEDDING = "model.embed_tokens.weight"
_SHARD = re.compile(r"\w[\w.-]*\.(safetensors|bin)")
_PACKED = 32  # weights in one number of a quantised file, at most: bits of an int32

Shapes = dict[str, tuple[Path, list[int]]]


def check_weights(config: Any, source: str | Path, **hub: Any) -> None:
    """Compares the sizes that ``config`` names with those of the files that transformers will load.

    Arguments:
        source: folder or hub name; what a hub holds is downloaded now, to where it is loaded from later.
        hub: ``cache_dir``, ``revision``, ``token``.

    Raises:
        ValueError: names file, weight and key; or a file is damaged, or an adapter lies among them.
        pickle.UnpicklingError: a file of torch's older form holds more than weights.
    """
    refuse_hidden_adapter(str(source), **hub)
    found: Shapes = {}
    for file in weight_files(source, **hub):
        found |= _read_safetensors(file) if file.name.endswith(".safetensors") else _read_pickled(file)
    if not found:  # transformers says that better
        return
    faults = list(_faults(config, found, source))
    if faults:
        raise ValueError(f"{source}: config.json and weights differ: " + "; ".join(faults) + ".")


def weight_files(source: str | Path, **hub: Any) -> list[Path]:
    """Returns the files of weights that transformers takes, in the order of their names; none where there are none.

    Raises:
        ValueError: an index that is none, or names a file that is not there.
    """
    for name in _FILES:
        file = find_file(source, name, **hub)
        if file is None:
            continue
        if not name.endswith(".json"):
            return [file]
        shards = [(shard, find_file(source, shard, **hub)) for shard in _shards(file)]
        missing = [shard for shard, path in shards if path is None]
        if missing:
            raise ValueError(f"{file} names {missing[0]}, which is not beside it; download it again.")
        return [path for _, path in shards if path is not None]
    return []


def _shards(index: Path) -> list[str]:
    """Returns the files that an index names, all of them beside it."""
    try:
        names = list(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as err:
        raise ValueError(f"{index} is no index of weights ({type(err).__name__}: {err}); download it again.") from err
    strange = [name for name in names if not (isinstance(name, str) and _SHARD.fullmatch(name))]
    if strange or not names:
        shown = f"{strange[0]!r:.60}" if strange else "no files"
        raise ValueError(f"{index} names {shown}; expected the names of files of weights beside it.")
    return sorted(set(names))


def _read_safetensors(file: Path) -> Shapes:
    try:
        with safe_open(file, "pt") as weights:
            return {name: (file, weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as err:
        raise ValueError(f"{file} is no safetensors file, or not all of it ({err}); download it again.") from err


def _read_pickled(file: Path) -> Shapes:
    """Shapes of a file in torch's older form; the numbers themselves stay where they are."""
    try:
        try:
            found = torch.load(file, map_location="meta", weights_only=True, mmap=True)
        except RuntimeError:  # the form before zip archives, or no form at all
            found = torch.load(file, map_location="meta", weights_only=True)
    except (EOFError, OSError, RuntimeError) as err:
        raise ValueError(f"{file} holds no weights, or not all of them ({err}); download it again.") from err
    if not isinstance(found, dict) or not all(isinstance(one, torch.Tensor) for one in found.values()):
        raise ValueError(f"{file} holds something else than weights by their names; download it again.")
    return {str(name): (file, list(one.shape)) for name, one in found.items()}


def _faults(config: Any, found: Shapes, source: str | Path) -> Iterator[str]:
    quantised = bool(getattr(config, "quantization_config", None))
    numbers = {int(match[1]) for name in found if (match := re.match(r"(?:model\.)?layers\.(\d{1,9})\.", name))}
    layers = 1 + max(numbers, default=-1)
    if layers != config.num_hidden_layers:
        yield f"num_hidden_layers is {config.num_hidden_layers}, the files hold {layers} layers"
    for name, shape, keys in _expected(config):
        file, there = found.get(name) or found.get(name.removeprefix("model.")) or (Path(source), None)
        if there is None and name == _EMBEDDING:
            yield f"the files hold no {name}"
        elif there not in (None, shape) and (name == _EMBEDDING or not quantised):
            yield f"{file.name} holds {name} of {there}, expected {shape} by {keys}"
    held = sum(math.prod(shape) for _, shape in found.values()) * (_PACKED if quantised else 1)
    if held < (named := _count(config)):
        yield f"the files hold {held:,} numbers, expected at least {named:,} by the sizes of the language model"


def _count(config: Any) -> int:
    """Weights of the language model's matrices, less the head, which may be the embedding."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 2 * (config.num_attention_heads + config.num_key_value_heads) * width
    layer = config.hidden_size * (3 * config.intermediate_size + attention)
    return int(config.vocab_size * config.hidden_size + config.num_hidden_layers * layer)


def _expected(config: Any) -> Iterator[tuple[str, list[int], str]]:
    """Yields weights that all sizes show in: name, shape, and the keys of the config that it follows from."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    width = getattr(config, "head_dim", None) or hidden // heads
    layer = "model.layers.0"
    yield _EMBEDDING, [config.vocab_size, hidden], "vocab_size, hidden_size"
    yield f"{layer}.mlp.up_proj.weight", [config.intermediate_size, hidden], "intermediate_size, hidden_size"
    yield f"{layer}.self_attn.q_proj.weight", [heads * width, hidden], "num_attention_heads, head_dim, hidden_size"
    rows = config.num_key_value_heads * width
    yield f"{layer}.self_attn.k_proj.weight", [rows, hidden], "num_key_value_heads, head_dim, hidden_size"
    section = config.ts
    width = section["patch_size"] * (1 + section["embedding_dim"] * bool(section.get("use_position_embedding")))
    yield "ts_encoder.mlp.0.weight", [hidden, width], "ts.patch_size, ts.embedding_dim, hidden_size"
    places = [section["max_sequence_length"] + 1, section["embedding_dim"]]
    yield "ts_encoder.position_embedding.weight", places, "ts.max_sequence_length, ts.embedding_dim"
