"""The encoder's weights: drawn at random, or another ChatTS's, made to fit another width.

The published layout has one width, the language model's, for all of the encoder's layers. A wider encoder can do all
that a narrower one does: its further units lead nowhere at first. A narrower one can't, and keeps the units with the
largest weights. At the end stands a random projection that keeps lengths, since the dimensions of two language models
have nothing to do with one another.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from llamafactory_ext.model import TimeSeriesEncoder, read_config
from llamafactory_ext.model.weights import check_weights, weight_files
from llamafactory_ext.series import encode


Weights = dict[str, Tensor]
PREFIX = "ts_encoder."

_PROBES, _PROBE_LENGTH = 32, 256


def draw_encoder(section: dict[str, Any], seed: int) -> Weights:
    """Draws weights after Glorot and Bengio (2010), uniformly; biases are zero. The same seed gives the same ones."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, shape in _shapes(section).items():
        drawn[name] = torch.zeros(shape)
        if len(shape) == 2:
            nn.init.xavier_uniform_(drawn[name], generator=generator)
    return drawn


def read_section(folder: Path) -> dict[str, Any]:
    """Returns the ``ts`` section of a ChatTS checkpoint.

    Raises:
        ValueError: it is none, or its encoder can't be read.
    """
    config = read_config(str(folder)) if folder.is_dir() else None
    if config is None:
        raise ValueError(f"{folder} is no ChatTS checkpoint: it has no config.json with a `ts` section")
    check_weights(config, folder)
    return dict(config.ts)  # type: ignore[call-overload, no-any-return]


def read_encoder(folder: Path, section: dict[str, Any]) -> Weights:
    """Reads the encoder's weights alone, under their names without ``ts_encoder.``; raises ValueError."""
    found: Weights = {}
    for file in weight_files(folder):
        if file.suffix != ".safetensors":
            raise ValueError(f"{folder} holds no safetensors; save it again with transformers, which writes them")
        with safe_open(file, "pt") as weights:
            own = [name for name in weights.keys() if name.startswith(PREFIX)]  # noqa: SIM118
            found |= {name.removeprefix(PREFIX): weights.get_tensor(name) for name in own}
    wanted = _shapes(section)
    for name in sorted({*found, *wanted}):
        shape = tuple(found[name].shape) if name in found else None
        if shape != wanted.get(name) or not found[name].is_floating_point():
            expected = wanted.get(name) or "none of that name"
            raise ValueError(f"{folder}: {PREFIX}{name} is {shape or 'missing'}; expected {expected}")
    return found


def fit_width(weights: Weights, section: dict[str, Any], width: int, seed: int) -> tuple[Weights, float]:
    """Makes an encoder fit another width.

    Arguments:
        weights, section: the encoder as it was.
        width: the new ``hidden_size``.

    Returns:
        Its weights in float32, and by how much its outputs differ from the projected ones of the encoder as it was,
        on random walks, as a share of their size: nothing but rounding where it was made wider.

    Raises:
        ValueError: it ends with a norm, which no projection passes through.
    """
    if section.get("use_layer_norm"):
        raise ValueError("its encoder ends with a norm (use_layer_norm), which can't be fitted to another width")
    old = section["hidden_size"]
    new_section = {**section, "hidden_size": width}
    weights = {name: weight.float() for name, weight in weights.items()}
    fitted = draw_encoder(new_section, seed)
    generator = torch.Generator().manual_seed(seed)
    square = torch.empty(max(width, old), min(width, old))
    nn.init.orthogonal_(square, generator=generator)
    projection = square if width > old else square.T * (old / width) ** 0.5

    layers = [2 * index for index in range(section["num_layers"])]
    if "position_embedding.weight" in weights:
        fitted["position_embedding.weight"] = weights["position_embedding.weight"]
    before: Tensor | None = None  # units of the layer before that are kept; None: all of the inputs
    for index in layers:
        weight, bias = weights[f"mlp.{index}.weight"], weights[f"mlp.{index}.bias"]
        kept = torch.arange(old) if width >= old else _largest(weights, index, width)
        if index == layers[-1]:
            weight, bias, kept = projection @ weight, projection @ bias, torch.arange(width)
        columns = torch.arange(weight.shape[1]) if before is None else before
        new = fitted[f"mlp.{index}.weight"]
        new[: len(kept), len(columns) :] = 0  # what is new may read all, and is read by nothing yet
        new[: len(kept), : len(columns)] = weight[kept][:, columns]
        fitted[f"mlp.{index}.bias"][: len(kept)] = bias[kept]
        before = kept
    wanted = _outputs(weights, section, seed) @ projection.T
    return fitted, float((_outputs(fitted, new_section, seed) - wanted).norm() / wanted.norm())


def _largest(weights: Weights, index: int, count: int) -> Tensor:
    """Returns the units of a layer whose weights, going in and out, are the largest, in their order."""
    size = weights[f"mlp.{index}.weight"].norm(dim=1)
    if (following := weights.get(f"mlp.{index + 2}.weight")) is not None:
        size = size * following.norm(dim=0)
    return size.topk(count).indices.sort().values


def _outputs(weights: Weights, section: dict[str, Any], seed: int) -> Tensor:
    with torch.device("meta"):
        encoder = TimeSeriesEncoder(section)
    encoder.load_state_dict(weights, assign=True)
    length = min(_PROBE_LENGTH, section["max_sequence_length"])
    walks = np.random.default_rng(seed).standard_normal((_PROBES, length)).cumsum(axis=1)
    with torch.no_grad():
        outputs: Tensor = encoder(torch.from_numpy(encode(list(walks))))[0]
    return outputs


def _shapes(section: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(weight.shape) for name, weight in TimeSeriesEncoder(section).state_dict().items()}
