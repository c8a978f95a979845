"""Float16 where its range ends at 65,504.

With activations made as large as Qwen2's are known to get (biases of the keys in the hundreds, a few channels of the
hidden states in the ten thousands and more), these overflow: attention scores where they are written out in float16
(eager), not in SDPA, whose kernels sum in float32; the output of a layer's last projection; the hidden states between
layers. The first needs SDPA, the last float32 between the layers (``upcast_layernorm``), which alone does not help,
and the second what is done here. tests/test_float16.py shows each.
"""

from typing import Any

import torch
from torch import nn


_SHIFT = 2.0**-6
"""A power of two: it changes exponents, not digits, of all but the smallest numbers."""


def match_half_precision(model: nn.Module, compute_dtype: torch.dtype) -> int:
    """Casts frozen weights in the other half precision to ``compute_dtype``.

    Autocast would cast them at every use: the head of ChatTS-14B alone is 1.45 GiB, and again that much on a card.

    Returns:
        The number of weights that were cast.
    """
    halves = {torch.float16, torch.bfloat16}
    if compute_dtype not in halves:
        return 0
    others = [weight for weight in model.parameters() if weight.dtype in halves - {compute_dtype}]
    for weight in others:
        weight.data = weight.data.to(compute_dtype)
    return len(others)


def upcast_norms(model: nn.Module) -> None:
    """Casts the layer norms to float32: what they write is float32 then, and so are the hidden states between layers.

    The cache of keys and values is float32 too, twice its size.
    """
    for name, weight in model.named_parameters():
        if weight.ndim == 1 and "norm" in name:
            weight.data = weight.data.float()


def guard_last_projections(model: Any) -> int:
    """Lets each layer's ``down_proj`` compute on a smaller scale: its product fits float16 up to 4 million.

    Input and output must be float32 (they are, where the layer norms' weights are); in between, bitsandbytes computes
    in float16, to which the smaller input is cast as it is made. Price: an elementwise pass over both.

    Returns:
        The number of projections.
    """
    layers = model.model.layers
    for layer in layers:
        layer.mlp.down_proj.register_forward_pre_hook(_make_smaller)
        layer.mlp.down_proj.register_forward_hook(_make_larger)
    return len(layers)


def _make_smaller(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    (hidden,) = inputs
    return (_Scaled.apply(hidden.float(), _SHIFT, torch.float16),)


def _make_larger(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return _Scaled.apply(output.float(), 1 / _SHIFT, torch.float32)


class _Scaled(torch.autograd.Function):  # type: ignore[misc]
    """A multiple whose gradient is passed on as it is: the two factors around a projection cancel.

    Otherwise the gradient would go through the projection on the larger scale, and overflow there instead.
    """

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, factor: float, dtype: torch.dtype) -> torch.Tensor:
        # A card rounds while it writes; no float32 multiple lies beside it.
        return torch.mul(tensor, factor, out=torch.empty_like(tensor, dtype=dtype))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradient.float(), None, None
