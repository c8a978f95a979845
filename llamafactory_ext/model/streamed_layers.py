"""Decoder layers whose quantised weights lie in CPU memory, and come to the device when they are used.

A layer's come while its neighbour computes, in either direction, and leave when another layer begins: its backward
pass, which follows the second forward pass of a gradient checkpoint, is over by then. The layers are spread, so that
one layer's room is enough on the device for up to half of them.

Price: the weights cross the bus twice a step (ChatTS-14B: 132 MiB a layer, 11 ms at 12 GB/s), beside computing.
"""

import functools
from typing import Any

import torch
from torch import nn

from .copying import Copier, Copy, pin


def spread(layers: int, streamed: int) -> list[int]:
    """Returns the numbers of the streamed layers, at equal distances."""
    return [(2 * place + 1) * layers // (2 * streamed) for place in range(streamed)]


class LayerStream:
    """The streamed layers of one model.

    Attributes:
        size: bytes that lie in CPU memory.
    """

    def __init__(self, model: Any, count: int) -> None:
        """Takes the weights of ``count`` layers off the model's device.

        Raises:
            ValueError: they are not in 4 bit.
        """
        layers, device = model.model.layers, model.device
        self._projections = {number: _in_4_bit(layers[number]) for number in spread(len(layers), count)}
        if not all(self._projections.values()):
            raise ValueError("`stream_layers` needs weights in 4 bit: `quantization_bit: 4`; or remove the key.")
        self._copier, self._last = Copier(device), len(layers) - 1
        self._kept: dict[int, list[torch.Tensor]] = {}
        self._here: dict[int, Copy] = {}
        for number, projections in self._projections.items():
            self._kept[number] = [module.weight.data.to("cpu", copy=True) for module in projections]
            self._leave(number)
        kept = [tensor for tensors in self._kept.values() for tensor in tensors]
        pin(kept, device)
        self.size = sum(tensor.numel() * tensor.element_size() for tensor in kept)
        for number, layer in enumerate(layers):
            # Attention comes first. Not the layer itself: since transformers 5.23 a checkpoint passes its hooks by.
            layer.self_attn.register_forward_pre_hook(functools.partial(self._enter, number))

    def _enter(self, number: int, attention: nn.Module, inputs: Any) -> None:
        """A layer begins: its weights are there, its neighbour's are on their way, all others leave."""
        following = number + (1 if number > self._last else -1)  # the last one again: the backward pass begins
        self._last = number
        for other in [other for other in self._here if other not in (number, following)]:
            self._leave(other)
        if number in self._projections:
            for module, copy in zip(self._projections[number], self._come(number).wait(), strict=True):
                module.weight.data = copy
        if following in self._projections:
            self._come(following)

    def _come(self, number: int) -> Copy:
        if number not in self._here:
            self._here[number] = self._copier.start(self._kept[number])
        return self._here[number]

    def _leave(self, number: int) -> None:
        """Puts something of the same shape, type and device in place of the weights that takes no memory."""
        self._here.pop(number, None)
        for module in self._projections[number]:
            nothing = torch.zeros((), dtype=module.weight.dtype, device=module.weight.device)
            module.weight.data = nothing.expand(module.weight.shape)


def _in_4_bit(layer: nn.Module) -> list[Any]:
    found = []
    for module in layer.modules():
        weight = dict(module.named_parameters(recurse=False)).get("weight")  # LoRA's layers hand out another's
        if getattr(weight, "quant_state", None) is not None:
            found.append(module)
    for module in found:
        module.support_avx512bf16_for_cpu = False  # on a CPU bitsandbytes would repack weights, and keep those
    return found
