"""The Qwen that is grafted on: what it must be, found out by its config and the headers of its files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import Qwen2Config, Qwen3Config

from llamafactory_ext.model.limits import check_config
from llamafactory_ext.model.weights import check_weights, weight_files


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

_CONFIGS: dict[str, Any] = {"qwen2": Qwen2Config, "qwen3": Qwen3Config}


@dataclass(frozen=True)
class Source:
    """A plain Qwen2, Qwen2.5 or Qwen3 in a folder.

    ``config`` is its ``config.json``; ``family`` "qwen2" or "qwen3"; ``rows`` those of the embedding (and the head's);
    ``dtype`` the embedding's.
    """

    folder: Path
    config: dict[str, Any]
    family: str
    files: list[Path]
    rows: int
    width: int
    dtype: torch.dtype


def read_source(folder: Path, section: dict[str, Any]) -> Source:
    """Looks at a checkpoint, without reading its weights.

    Arguments:
        section: the ``ts`` section to come, without ``hidden_size``.

    Raises:
        ValueError: it is no Qwen that can be grafted on; one line that says why, and what would be.
    """
    config = _read_config(folder)
    family = str(config["model_type"])
    stated = {**config, "ts": {**section, "hidden_size": config.get("hidden_size")}, "ts_token_start_index": 0}
    check_config(stated, f"{folder}/config.json")
    files = weight_files(folder)
    if not files or any(file.suffix != ".safetensors" for file in files):
        raise ValueError(f"{folder} holds no safetensors; save it again with transformers, which writes them")
    known = _CONFIGS[family].from_dict(config)
    known.ts = stated["ts"]
    check_weights(known, folder)
    shapes: dict[str, list[int]] = {}
    for file in files:
        with safe_open(file, "pt") as weights:
            names = set(weights.keys())
            shapes |= {name: weights.get_slice(name).get_shape() for name in names & {EMBEDDING, HEAD}}
            if EMBEDDING in names:
                dtype = weights.get_slice(EMBEDDING)[:1].dtype
    if EMBEDDING not in shapes:
        raise ValueError(
            f"{folder}: the files hold no {EMBEDDING}; expected a model with its head, not its base alone"
        )
    if HEAD not in shapes and not known.tie_word_embeddings:
        raise ValueError(f"{folder}: the files hold no {HEAD}, and config.json does not tie it to the embedding")
    if shapes.get(HEAD, shapes[EMBEDDING]) != shapes[EMBEDDING]:
        raise ValueError(f"{folder}: {HEAD} is of {shapes[HEAD]}, expected {shapes[EMBEDDING]} as the embedding")
    rows, width = shapes[EMBEDDING]
    return Source(folder, config, family, files, rows, width, dtype)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no config.json; expected the folder of a downloaded Qwen2, Qwen2.5 or Qwen3")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as err:
        raise ValueError(f"{path} is no JSON ({err}); download it again") from err
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no object; download it again")
    names, kind = config.get("architectures"), config.get("model_type")
    if config.get("ts") is not None or "TSFor" in str(names):
        raise ValueError(f"{folder} is a ChatTS already; train it as it is")
    expected = [f"{str(kind).capitalize()}ForCausalLM"]
    if str(kind) not in _CONFIGS or names not in (None, expected):
        raise ValueError(
            f"{folder} is {names or 'a model'} of type {kind!r:.60}; expected a Qwen2ForCausalLM or Qwen3ForCausalLM"
        )
    if config.get("quantization_config") is not None:
        raise ValueError(f"{folder} is quantised; take the checkpoint in 16 bit, training quantises by itself")
    return config
