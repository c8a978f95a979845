"""Counts what is alive at the peak of a step, tensor by tensor and without computing it, and prints it beside the plan.

python tools/bench/count.py
python tools/bench/count.py yaml/2080ti_qlora.yaml layers_without_checkpoints=2 --layers 4 --tokens 1241

Fake tensors stand in for real ones: they have a shape and a storage of some size, and no numbers. Model class, LoRA
(PEFT), gradient checkpoints (LLaMA-Factory's) and levers are the real ones. 4-bit layers are stood in for: each of
their products, forward and backward, has its weight written out beside it. All lies on a fake CPU, since autograd asks
for a card's driver where tensors lie on a card; SDPA saves there what a card's memory-efficient kernel saves, and keys
and values are repeated as on Turing. Not counted: what a kernel takes inside, CUDA's context, the allocator's rounding,
padded batches, ZeRO. Loading is replayed: weights in the order of their names, as transformers reads them, each
quantised before the next is read.
"""

import argparse
import json
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import bitsandbytes
import torch
from llamafactory.model.model_utils.checkpointing import prepare_model_for_training
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from llamafactory_ext.model import Qwen2TSConfig, Qwen2TSForCausalLM, Qwen3TSConfig, Qwen3TSForCausalLM, modeling
from llamafactory_ext.model.attention import SDPA_REPEATED
from llamafactory_ext.model.float16 import guard_last_projections
from llamafactory_ext.toolbox.cli.terminal import DONE, FAULTS, USAGE, complain, run, say
from llamafactory_ext.toolbox.plan.memory import Load, Settings, on_device, while_loading
from llamafactory_ext.toolbox.plan.recipe import Recipe
from llamafactory_ext.toolbox.plan.shape import KNOWN, Shape


MIB = 2**20
MOST_OFF = 0.03
_NOT_COUNTED = ("context", "reserve")
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


class _Linear4bit(bitsandbytes.nn.Linear4bit):  # type: ignore[misc]
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


def _lay_out(shape: Shape, settings: Settings) -> Any:
    """Returns the model as loaded, but for 4 bit."""
    config, family = (Qwen3TSConfig, Qwen3TSForCausalLM) if shape.qk_norm else (Qwen2TSConfig, Qwen2TSForCausalLM)
    section = {
        "patch_size": shape.patch_size, "embedding_dim": shape.embedding_dim, "num_layers": shape.encoder_layers,
        "max_sequence_length": shape.max_sequence_length, "hidden_size": shape.hidden_size,
        "use_position_embedding": shape.use_position_embedding,
    }  # fmt: skip
    made = config(
        hidden_size=shape.hidden_size, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim, intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size, tie_word_embeddings=shape.tied, attention_bias=shape.attention_bias, ts=section,
        ts_token_start_index=shape.vocab_size - 2, ts_token_end_index=shape.vocab_size - 1, use_cache=False,
        attn_implementation="eager" if settings.attention == "eager" else "sdpa",
    )  # fmt: skip
    model = family(made).to(torch.float32 if settings.full else getattr(torch, settings.weight_dtype))
    if settings.device == "cuda" and settings.attention != "eager":
        model.set_attn_implementation(SDPA_REPEATED)
    return model.requires_grad_(settings.full).train()


def _quantise(linear: nn.Linear, settings: Settings) -> _Linear4bit:
    return _Linear4bit(linear, getattr(torch, settings.compute_dtype), settings.double_quantization)


def _prepare(shape: Shape, settings: Settings) -> Any:
    """Returns the model as LLaMA-Factory and `training.levers` make it ready."""
    model = _lay_out(shape, settings)
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name, module in linear if settings.quantization_bit else []:
        if name.startswith("model."):
            model.set_submodule(name, _quantise(module, settings))
    model.is_loaded_in_4bit = settings.quantization_bit == 4  # PEFT asks
    model.offload_checkpoints = settings.offload_checkpoints
    if settings.float32_between_layers and settings.compute_dtype == "float16":
        guard_last_projections(model)
    for layer in model.model.layers[shape.layers - settings.layers_without_checkpoints :]:
        layer.gradient_checkpointing = False
    prepare_model_for_training(
        model,
        SimpleNamespace(
            upcast_layernorm=settings.upcast_layernorm, disable_gradient_checkpointing=not settings.checkpointing,
            use_unsloth_gc=False, use_reentrant_gc=True, upcast_lmhead_output=False,
        ),
    )  # fmt: skip
    for layer in model.model.layers[shape.layers - settings.layers_without_checkpoints :]:
        layer.gradient_checkpointing = False
    if settings.full:
        model.ts_encoder.requires_grad_(settings.train_encoder)
        return model
    targets = [name for name, _ in linear if settings.train_encoder and name.startswith("ts_encoder.")]
    targets += [name for name, _ in linear if name.startswith("model.") and settings.trains(name.rpartition(".")[2])]
    wrapped = get_peft_model(model, LoraConfig(r=settings.lora_rank, target_modules=targets, task_type="CAUSAL_LM"))
    return wrapped.train()


def _part_of(name: str, settings: Settings) -> str:
    if "lora_" in name:
        return "adapter"
    if "embed_tokens" in name:
        return "" if settings.embedding_on_cpu and settings.device == "cuda" else "embedding"
    kind = "weights" if settings.quantization_bit is None else "quantised weights"
    return "encoder" if "ts_encoder" in name else "head" if "lm_head" in name else kind


def count_step(shape: Shape, settings: Settings, load: Load) -> Counter[str]:
    """Returns the bytes alive at the peak of a step that is not the first one, by part."""
    alive = Alive(load)

    def to_cpu(tensor: torch.Tensor) -> torch.Tensor:
        with alive.belongs_to(""):
            return tensor.clone()

    def offload(**_: Any) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(to_cpu, torch.clone)

    with ExitStack() as stack:
        with torch.device("meta"):
            model = _prepare(shape, settings)
        stack.enter_context(FakeTensorMode())
        for path, module in model.named_modules():
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                alive.add(fake, _part_of(f"{path}.{name}", settings))
                is_weight = isinstance(tensor, nn.Parameter)
                setattr(module, name, nn.Parameter(fake, tensor.requires_grad) if is_weight else fake)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        for weight in trained:
            weight.grad = torch.zeros_like(weight)
            alive.add(weight.grad, "gradients")
        optimiser = torch.optim.AdamW(trained)
        optimiser.step()
        for state in optimiser.state.values():
            for tensor in state.values():
                alive.add(tensor, "optimiser")
        alive.name_parts(model)
        series = torch.empty(1, 2 * shape.patch_size * load.patches, 1)
        ids, labels = (torch.zeros(load.rows, load.tokens // load.rows, dtype=torch.long) for _ in range(2))
        stack.enter_context(alive)
        stack.enter_context(mock.patch.object(modeling, "save_on_cpu", offload))
        # For fake tensors transformers writes out a causal mask, which it leaves to SDPA in training.
        stack.enter_context(mock.patch.object(masking_utils, "is_tracing", lambda *_: False))
        cpu_autocast = torch.is_autocast_enabled  # PEFT asks about a card's
        stack.enter_context(mock.patch.object(torch, "is_autocast_enabled", lambda kind="cpu": cpu_autocast(kind)))
        with torch.autocast("cpu", getattr(torch, settings.compute_dtype), enabled=settings.mixed_precision):
            loss = model(input_ids=ids, labels=labels, timeseries=series).loss
        alive.part = "backward pass"
        loss.backward()
    return alive.at_peak
