"""Writes the grafted checkpoint: one shard after another in memory, the folder whole or not at all.

Shards that nothing is added to are copied byte by byte; the encoder is a shard of its own.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from llamafactory_ext.errors import UsageError
from llamafactory_ext.files import scratch_beside
from llamafactory_ext.model import read_config
from llamafactory_ext.model.config import name_as_before
from llamafactory_ext.model.published import TOKENIZER_FILES, copy_files
from llamafactory_ext.model.weights import check_weights
from llamafactory_ext.toolbox.grafting.encoder import (
    PREFIX,
    Weights,
    draw_encoder,
    fit_width,
    read_encoder,
    read_section,
)
from llamafactory_ext.toolbox.grafting.markers import add_markers
from llamafactory_ext.toolbox.grafting.source import EMBEDDING, HEAD, Source, read_source


_OTHER_FILES = ("generation_config.json", "LICENSE")
_MODEL_TYPES = {"qwen2": "chatts", "qwen3": "qwen3ts"}
_MULTIPLE = 64  # rows of an enlarged embedding: a multiple that matrix kernels like, as Qwen's own are
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Grafted:
    """What was done: ids of ``<ts>`` and ``<ts/>``, rows added to the embedding, the encoder's weights in number.

    ``taken_dtype`` and ``taken_width``: another ChatTS's encoder's, as it was; it is written in ``dtype``.
    ``difference``: of one that was made to fit another width, see ``fit_width``; ``None`` otherwise.
    """

    family: str
    ids: tuple[int, int]
    added_rows: int
    section: dict[str, Any]
    encoder_weights: int
    dtype: torch.dtype
    taken_dtype: torch.dtype | None
    taken_width: int | None
    difference: float | None


def make_section(patch_size: int, layers: int, embedding_dim: int, max_length: int) -> dict[str, Any]:
    """Returns a ``ts`` section with the published keys, but for ``hidden_size``, which is the language model's."""
    return {
        "embedding_dim": embedding_dim,
        "max_length": max_length,
        "max_sequence_length": max_length,
        "num_features": 2,
        "num_layers": layers,
        "patch_size": patch_size,
        "use_position_embedding": True,
        "use_position_idx": False,
    }


def graft(
    folder: Path,
    out: Path,
    section: dict[str, Any],
    seed: int = 0,
    encoder_from: Path | None = None,
) -> Grafted:
    """Writes the ChatTS that is made of the Qwen in ``folder`` to ``out``.

    Arguments:
        section: from ``make_section``; not read where ``encoder_from``, another ChatTS, says what encoder it is.

    Raises:
        UsageError: ``out`` holds something.
        ValueError: one of the checkpoints can't be used; nothing was written.
        OSError: a file can't be read or written; nothing is left behind.
    """
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise UsageError(f"{out} exists and is no empty folder; name another one with --out")
    theirs = None if encoder_from is None else read_section(encoder_from)
    source = read_source(folder, theirs or section)
    section = {**(theirs or section), "hidden_size": source.width}
    if theirs is None and source.family == "qwen3":
        section["use_layer_norm"] = False  # as the published one says
    difference, taken_dtype = None, None
    if encoder_from is None or theirs is None:
        encoder = draw_encoder(section, seed)
    else:
        encoder = read_encoder(encoder_from, theirs)
        taken_dtype = encoder["mlp.0.weight"].dtype
        if theirs["hidden_size"] != source.width:
            encoder, difference = fit_width(encoder, theirs, source.width, seed)
    with scratch_beside(out) as scratch:
        new = scratch / "new"
        new.mkdir()
        copy_files(str(folder), [*TOKENIZER_FILES, *_OTHER_FILES], new)
        _write_json(new / "config.json", _config(source, section, (0, 0), source.rows))  # for AutoTokenizer
        ids = add_markers(folder, new, source.rows)
        rows = source.rows if max(ids) < source.rows else -(-(max(ids) + 1) // _MULTIPLE) * _MULTIPLE
        _write_json(new / "config.json", _config(source, section, ids, rows))
        _write_weights(source, new, rows, encoder)
        config = read_config(str(new))
        if config is None:
            raise ValueError(f"{folder}: its config.json does not take a `ts` section")
        check_weights(config, new)
        new.rename(out)
    return Grafted(
        family=source.family,
        ids=ids,
        added_rows=rows - source.rows,
        section=section,
        encoder_weights=sum(weight.numel() for weight in encoder.values()),
        dtype=source.dtype,
        taken_dtype=taken_dtype,
        taken_width=None if theirs is None else theirs["hidden_size"],
        difference=difference,
    )


def _config(source: Source, section: dict[str, Any], ids: tuple[int, int], rows: int) -> dict[str, Any]:
    config = {key: value for key, value in source.config.items() if key != "auto_map"}
    config |= {"architectures": [f"{source.family.capitalize()}TSForCausalLM"], "ignore_index": -100}
    config |= {"model_type": _MODEL_TYPES[source.family], "ts": section, "vocab_size": rows}
    config |= {"ts_token_start_index": ids[0], "ts_token_end_index": ids[1]}
    name_as_before(config)
    return dict(sorted(config.items()))


def _write_weights(source: Source, folder: Path, rows: int, encoder: Weights) -> None:
    """Writes all shards and their index; the embedding and the head get as many rows as the vocabulary has now."""
    total = len(source.files) + 1
    places: dict[str, str] = {}
    size = 0
    for number in range(1, total + 1):
        path = folder / f"model-{number:05}-of-{total:05}.safetensors"
        if number == total:
            own = {PREFIX + name: weight.to(source.dtype).contiguous() for name, weight in encoder.items()}
            save_file(own, path, metadata={"format": "pt"})
        else:
            _write_shard(source.files[number - 1], path, rows)
        with safe_open(path, "pt") as written:
            places |= dict.fromkeys(written.keys(), path.name)
        with path.open("rb") as file:  # an integer of 8 bytes, the header of that length, the weights
            size += path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_shard(file: Path, path: Path, rows: int) -> None:
    with safe_open(file, "pt") as held:
        names = list(held.keys())
        short = [name for name in (EMBEDDING, HEAD) if name in names and held.get_slice(name).get_shape()[0] < rows]
        if short:
            weights = {name: held.get_tensor(name) for name in names}
            weights |= {name: _enlarged(weights[name], rows) for name in short}
            save_file(weights, path, metadata=held.metadata() or {"format": "pt"})
            return
    shutil.copyfile(file, path)


def _enlarged(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """Appends rows that are the mean of all: a token's logit is then never above those of all others."""
    sums = [piece.float().sum(0) for piece in weight.split(_ROWS_AT_ONCE)]
    mean = (torch.stack(sums).sum(0) / len(weight)).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows - len(weight), -1)])


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
