"""Decoder layers that keep less for their backward pass: what is quick to compute is computed there again.

Of ``act(gate) * up`` autograd keeps gate, act(gate) and up, and of an RMSNorm's input in half precision a float32
copy. Here the MLP keeps gate and up, and a norm its input as it came. The same operations run on the same numbers, so
that loss and gradients are the same to the bit. Price: elementwise passes, under one per cent of a step by arithmetic.
"""

import functools
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN


_SILU = (nn.SiLU, type(ACT2FN["silu"]))


def keep_less(model: Any) -> int:
    """Lets MLPs and norms of the language model keep less; returns the number of its layers.

    Of other libraries' kernels in their place nothing is known: they are left as they are.
    """
    runs = {"Qwen2MLP": _run_mlp, "Qwen3MLP": _run_mlp, "Qwen2RMSNorm": _run_norm, "Qwen3RMSNorm": _run_norm}
    for module in [*model.model.layers.modules(), model.model.norm]:
        if run := runs.get(type(module).__name__):
            module.forward = functools.partial(run, module)
    return len(model.model.layers)


def _run_mlp(mlp: Any, hidden: torch.Tensor) -> torch.Tensor:
    """As transformers' Qwen2MLP and Qwen3MLP."""
    if isinstance(mlp.act_fn, _SILU):
        hidden = mlp.down_proj(_Gated.apply(mlp.gate_proj(hidden), mlp.up_proj(hidden)))
    else:
        hidden = type(mlp).forward(mlp, hidden)
    return hidden


def _run_norm(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    if hidden.dtype == torch.float32 or norm.weight.requires_grad:
        found: torch.Tensor = type(norm).forward(norm, hidden)
        return found
    normed: torch.Tensor = _Normed.apply(hidden, norm)
    return normed


class _Gated(torch.autograd.Function):  # type: ignore[misc]
    """``silu(gate) * up``."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return nn.functional.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        room = nn.functional.silu(gate)
        of_up = slope * room
        torch.mul(slope, up, out=room)
        torch.ops.aten.silu_backward.grad_input(room, gate, grad_input=room)  # as autograd; in place of its input
        return room, of_up


class _Normed(torch.autograd.Function):  # type: ignore[misc]
    """transformers' RMSNorm of half precision, whose weight is not trained."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, norm: Any) -> torch.Tensor:
        ctx.norm = norm
        ctx.save_for_backward(hidden)
        found: torch.Tensor = type(norm).forward(norm, hidden)
        return found

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Autograd's operations in place where it would write anew; in between all is float32."""
        (hidden,) = ctx.saved_tensors
        copy = hidden.float()
        root = torch.rsqrt(copy.pow(2).mean(-1, keepdim=True) + ctx.norm.variance_epsilon)
        slope = (slope * ctx.norm.weight).to(hidden.dtype).float()
        of_root = (slope * copy).sum(-1, keepdim=True)
        of_mean = -0.5 * of_root * root.pow(3) / hidden.shape[-1]
        return slope.mul_(root).add_(copy.mul_(2).mul_(of_mean)).to(hidden.dtype), None
