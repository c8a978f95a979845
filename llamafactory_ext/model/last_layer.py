"""The last layer's feed-forward part, run only for tokens whose output is read.

What stands behind attention in the last layer works on each token by itself, and where the loss alone is wanted, only
tokens that a kept label follows are looked at: one in ten for an answer about a series of some thousand points. Price:
two copies of those rows. The tokens that are left out pass by the feed-forward part unchanged, and are not read.

The rows come to the layer as a keyword, like everything that a layer is told: gradient checkpointing hands it the same
keywords when it runs the layer a second time, whatever has run in between. They are taken where the layer hands them
to its attention, which comes first: since transformers 5.23 a checkpoint repeats ``forward`` alone, without hooks of
the layer's own.
"""

import functools
from typing import Any

import torch
from torch import nn


def read_rows_only(layer: nn.Module) -> None:
    """Lets ``layer`` take ``read_rows``: indices into ``[batch * length]``, or None.

    It has an attention ``self_attn``, which it hands its keywords, and an ``mlp`` after it.

    They must not be empty: quantised projections refuse that.
    """
    layer.self_attn.register_forward_pre_hook(functools.partial(_take_rows, layer.mlp), with_kwargs=True)
    layer.mlp.register_forward_pre_hook(_select)
    layer.mlp.register_forward_hook(_put_back)


def _take_rows(
    mlp: Any, attention: Any, inputs: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    mlp.read_rows = kwargs.pop("read_rows", None)
    return inputs, kwargs


def _select(mlp: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
    if getattr(mlp, "read_rows", None) is None:
        return None
    (hidden,) = inputs
    mlp.whole_shape = hidden.shape
    return (hidden.flatten(0, 1).index_select(0, mlp.read_rows.to(hidden.device)),)


def _put_back(mlp: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor | None:
    if getattr(mlp, "read_rows", None) is None:
        return None
    rows, mlp.read_rows = mlp.read_rows.to(output.device), None
    whole = output.new_zeros(mlp.whole_shape.numel() // output.shape[-1], output.shape[-1])
    return whole.index_put((rows,), output).view(mlp.whole_shape)
