"""What is alive while nothing is computed: storages of fake tensors, followed, and a stand-in for layers in 4 bit."""

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from llamafactory_ext.toolbox.plan.memory import Load


_aten = torch.ops.aten


class Alive(TorchDispatchMode):  # type: ignore[misc]
    """Follows each storage from its creation to its end.

    Attributes:
        at_peak: bytes by part, when there were most.
        part: what is created now belongs to it; "" is in CPU memory and not counted.
    """

    def __init__(self, load: Load) -> None:
        super().__init__()
        self.load = load
        self.now: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        self.part = "rest"
        self._known: dict[int, Any] = {}

    def add(self, tensor: torch.Tensor, part: str) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes() if part else 0
        if key in self._known:
            return

        def end(_: Any) -> None:
            del self._known[key]
            self.now[part] -= size

        self._known[key] = weakref.ref(storage, end)
        self.now[part] += size
        if self.now.total() > self.at_peak.total():
            self.at_peak = +self.now

    @contextmanager
    def belongs_to(self, part: str) -> Iterator[None]:
        before, self.part = self.part, part
        yield
        self.part = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation; where its result depends on numbers, which there are none of, those of the load hold."""
        if func is _aten._local_scalar_dense.default:
            return True if args[0].dtype == torch.bool else self.load.patches
        if func is _aten.nonzero.default:
            found = args[0].new_empty((self.load.labels, args[0].ndim), dtype=torch.long)
        elif func is _aten.index.Tensor and args[1][0].dtype == torch.bool:
            found = args[0].new_empty((self.load.patches, *args[0].shape[args[1][0].ndim :]))
        else:
            found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, tuple | list) else [found]:
            if isinstance(one, torch.Tensor):
                self.add(one, self.part)
        return found

    def name_parts(self, model: nn.Module) -> None:
        """Lets what a module creates belong to it: to the kind of module, for the decoder's layers are all alike."""
        parts = {"lm_head": "loss", "mlp": "MLP", "self_attn": "attention", "layers": "between the layers"}
        for name, module in model.named_modules():
            last = next((part for part in reversed(name.split(".")) if not part.isdigit()), "")
            part = "encoder activations" if "ts_encoder" in name else "norms" if "norm" in last else parts.get(last)
            if part:
                self._follow(module, part)

    def _follow(self, module: nn.Module, part: str) -> None:
        callers: list[str] = []

        def enter(*_: Any) -> None:
            callers.append(self.part)
            self.part = part

        def leave(*_: Any) -> None:
            self.part = callers.pop()

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)


class _Product(torch.autograd.Function):  # type: ignore[misc]
    """A product with a weight in 4 bit, of which nothing is saved; each time the weight is written out first."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, layer: Any) -> torch.Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(inputs.dtype)
        return nn.functional.linear(inputs, layer.write_out(inputs), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient @ ctx.layer.write_out(gradient), None


class Linear4bit(bitsandbytes.nn.Linear4bit):  # type: ignore[misc]
    """What bitsandbytes' layer holds and computes, for tensors that hold nothing; PEFT takes it for that layer."""

    def __init__(self, linear: nn.Linear, compute_dtype: torch.dtype, double: bool) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.compute_dtype, size = compute_dtype, linear.weight.numel()
        self.weight = nn.Parameter(torch.empty(size // 2, 1, dtype=torch.uint8), requires_grad=False)
        self.weight.compress_statistics, self.weight.quant_type = double, "nf4"  # PEFT asks
        self.register_buffer("scales", torch.empty(size // 64, dtype=torch.uint8 if double else torch.float32))
        self.register_buffer("scales_of_scales", torch.empty(size // 64 // 256) if double else None)

    def write_out(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_empty(self.out_features, self.in_features)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return _Product.apply(inputs.to(self.compute_dtype), self).to(inputs.dtype)


def write_out(weight: torch.Tensor, layer: Linear4bit | None, dtype: torch.dtype) -> torch.Tensor:
    return weight.to(dtype) if layer is None else layer.write_out(weight.new_empty(0, dtype=dtype))
