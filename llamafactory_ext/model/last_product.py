"""A layer that is computed again for its backward pass does without its last product.

A checkpointed layer runs twice. The second time only what its backward pass needs is looked at, and the result of
``down_proj``, the layer's last and one of its three largest products, is not: where the projection is frozen, its own
gradient needs its weight alone. So nothing is computed in its place, a quarter of the second run of a layer of
ChatTS-14B; in 4 bit the weight is not written out for it, either. Gradients are the same to the bit.

That a layer runs for the second time is known from autograd, in whose backward pass it does. Of checkpoints that are
not reentrant torch itself leaves out what comes after the last tensor that is needed; here they are not touched.
"""

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.module_tracker import ModuleTracker


_BACKWARD = ModuleTracker()


def skip_last_products(model: Any) -> int:
    """Lets checkpointed layers of the language model skip them; returns how many do.

    Those whose last projection is trained, or carries an adapter, need its result, or may: they are left as they are.

    Arguments:
        model: with reentrant checkpoints, and with its adapter, if it gets one: the language model inside of it.
    """
    layers = [layer for layer in model.model.layers if layer.gradient_checkpointing and _is_plain(layer.mlp.down_proj)]
    for layer in layers:
        layer.mlp.down_proj.forward = functools.partial(_run, layer.mlp.down_proj)
    return len(layers)


def _is_plain(linear: nn.Module) -> bool:
    known = type(linear) is nn.Linear or (hasattr(linear, "compute_dtype") and hasattr(linear.weight, "quant_state"))
    return bool(known) and not any(weight.requires_grad for weight in linear.parameters())


def _run(linear: Any, inputs: torch.Tensor) -> torch.Tensor:
    if _BACKWARD.is_bw and torch.is_grad_enabled() and inputs.requires_grad:
        skipped: torch.Tensor = _Skipped.apply(inputs, linear)
        return skipped
    found: torch.Tensor = type(linear).forward(linear, inputs)
    return found


class _Skipped(torch.autograd.Function):  # type: ignore[misc]
    """The product's place in the graph, with numbers that nobody reads."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, linear: Any) -> torch.Tensor:
        kind, quantised = inputs.device.type, type(linear) is not nn.Linear
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype
        ctx.dtype, ctx.compute_dtype = inputs.dtype, (linear.compute_dtype or inputs.dtype) if quantised else dtype
        # As it is now: a layer's weights may have come for this pass only.
        ctx.weight, ctx.state = linear.weight.data, linear.weight.quant_state if quantised else None
        return inputs.new_empty(*inputs.shape[:-1], linear.out_features, dtype=inputs.dtype if quantised else dtype)

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None]:
        slope = slope.to(ctx.compute_dtype)
        weight = written_out(ctx.weight, ctx.state, slope.dtype)
        if ctx.state is None:  # as autograd multiplies; the other way is bitsandbytes'
            return (slope.flatten(0, -2) @ weight).view(*slope.shape[:-1], -1).to(ctx.dtype), None
        return (slope @ weight).to(ctx.dtype), None


def written_out(weight: torch.Tensor, state: Any, dtype: torch.dtype) -> torch.Tensor:
    """Returns the weight as it is computed with, ``[out, in]``; ``state`` is bitsandbytes' of one in 4 bit."""
    if state is not None:
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(weight.view(-1, 1), state)
    return weight.to(dtype)
