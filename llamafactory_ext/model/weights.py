"""A checkpoint's weights against its config, by the headers of its files: before memory is taken for either.

Without this a config that promises more than the files hold is believed: transformers makes what is missing, of any
size, of random numbers.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open


LARGEST_RANK = 4096


def check_adapter(folder: Path) -> None:
    """Checks what an adapter's ``adapter_config.json`` lets PEFT build, which is made before its weights are read.

    Raises:
        ValueError: names file and key.
    """
    file = folder / "adapter_config.json"
    if not file.is_file():  # PEFT says that better
        return
    try:
        found = json.loads(file.read_bytes())
        ranks = {"r": found.get("r", 8), **(found.get("rank_pattern") or {})}
    except (ValueError, RecursionError, AttributeError, TypeError) as err:
        raise ValueError(f"{file} is no adapter's configuration ({err}); download it again.") from err
    for key, rank in ranks.items():
        if not isinstance(rank, int) or not 1 <= rank <= LARGEST_RANK:
            raise ValueError(
                f"{file} can't be used: {key} is {rank!r:.60}, expected an integer from 1 to {LARGEST_RANK}."
            )
    if found.get("layer_replication") is not None:
        raise ValueError(f"{file} can't be used: layer_replication makes a model of other layers; take the key out.")


def check_weights(config: Any, folder: Path) -> None:
    """Compares the sizes that ``config`` names with those of the safetensors files in ``folder``, if there are any.

    Raises:
        ValueError: names file, weight and key; or a file is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    found: dict[str, tuple[Path, list[int]]] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as weights:
                found |= {name: (file, weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as err:
            raise ValueError(f"{file} is no safetensors file, or not all of it ({err}); download it again.") from err
    if getattr(config, "quantization_config", None) or not any(name.startswith("model.layers.") for name in found):
        return
    faults = list(_faults(config, found, folder))
    if faults:
        raise ValueError(f"{folder}: config.json and weights differ: " + "; ".join(faults) + ".")


def _faults(config: Any, found: dict[str, tuple[Path, list[int]]], folder: Path) -> Iterator[str]:
    layers = 1 + max(int(name.split(".")[2]) for name in found if name.startswith("model.layers."))
    if layers != config.num_hidden_layers:
        yield f"num_hidden_layers is {config.num_hidden_layers}, the files hold {layers} layers"
    for name, shape, keys in _expected(config):
        file, there = found.get(name, (folder, shape))
        if there != shape:
            yield f"{file.name} holds {name} of {there}, expected {shape} by {keys}"


def _expected(config: Any) -> Iterator[tuple[str, list[int], str]]:
    """Yields weights that all sizes show in: name, shape, and the keys of the config that it follows from."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    width = getattr(config, "head_dim", None) or hidden // heads
    layer = "model.layers.0"
    yield "model.embed_tokens.weight", [config.vocab_size, hidden], "vocab_size, hidden_size"
    yield f"{layer}.mlp.up_proj.weight", [config.intermediate_size, hidden], "intermediate_size, hidden_size"
    yield f"{layer}.self_attn.q_proj.weight", [heads * width, hidden], "num_attention_heads, head_dim, hidden_size"
    rows = config.num_key_value_heads * width
    yield f"{layer}.self_attn.k_proj.weight", [rows, hidden], "num_key_value_heads, head_dim, hidden_size"
    section = config.ts
    width = section["patch_size"] * (1 + section["embedding_dim"] * bool(section.get("use_position_embedding")))
    yield "ts_encoder.mlp.0.weight", [hidden, width], "ts.patch_size, ts.embedding_dim, hidden_size"
    places = [section["max_sequence_length"] + 1, section["embedding_dim"]]
    yield "ts_encoder.position_embedding.weight", places, "ts.max_sequence_length, ts.embedding_dim"
