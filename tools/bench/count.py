"""Counts what is alive at the peak of a step, tensor by tensor, computing nothing, and prints it beside the plan.

python tools/bench/count.py
python tools/bench/count.py yaml/2080ti_qlora.yaml layers_without_checkpoints=2 --layers 4 --tokens 1241

Fake tensors stand in for real ones: they have a shape and a storage of some size, and no numbers. Model class, LoRA
(PEFT), gradient checkpoints (LLaMA-Factory's) and levers are the real ones. 4-bit layers are stood in for: each of
their products, forward and backward, has its weight written out beside it. All lies on a fake CPU, since autograd
asks for a card's driver where tensors lie on a card; SDPA saves there what a card's memory-efficient kernel saves,
and keys and values are repeated as on Turing. Not counted: what a kernel takes inside, CUDA's context, the
allocator's rounding, padded batches, ZeRO. Loading is replayed: weights in the order of their names, as
transformers reads them, each quantised before the next is read.
"""

import argparse
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the published shapes are known: no hub is asked for them

import llamafactory.hparams  # noqa: F401 - first: trl takes what is not installed for there without its correction
import torch
from alive import Alive, Linear4bit, write_out
from llamafactory.model.model_utils.checkpointing import prepare_model_for_training
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._subclasses import FakeTensorMode
from transformers import masking_utils

from llamafactory_ext.errors import UsageError
from llamafactory_ext.model import FAMILIES, last_product, modeling
from llamafactory_ext.model.attention import SDPA_REPEATED
from llamafactory_ext.model.copying import Copier, Copy
from llamafactory_ext.model.float16 import guard_last_projections
from llamafactory_ext.model.keep_less import keep_less
from llamafactory_ext.model.streamed_head import stream_head
from llamafactory_ext.model.streamed_layers import LayerStream
from llamafactory_ext.toolbox.cli.terminal import DONE, FAULTS, USAGE, complain, run, say
from llamafactory_ext.toolbox.plan.memory import Load, Settings, on_device, while_loading
from llamafactory_ext.toolbox.plan.recipe import Recipe
from llamafactory_ext.toolbox.plan.shape import Shape
from llamafactory_ext.toolbox.session.recipe import read_recipe


MIB = 2**20
MOST_OFF = 0.03
_ON_THEIR_WAY = "layers on their way"
_STAY = ("quantised weights", "weights", "embedding", "head", "encoder", "adapter", "gradients", "optimiser")
_NOT_COUNTED = ("context", "reserve")
_RECIPES = Path(__file__).parents[2] / "yaml"
_LOADS = {"160": Load(160, 40, 20), "1241": Load(1241, 120, 625), "4096": Load(4096, 600, 2500)}


def _lay_out(shape: Shape, settings: Settings) -> Any:
    """Returns the model as loaded, but for 4 bit."""
    config, family = FAMILIES["qwen3" if shape.qk_norm else "qwen2"]
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


def _quantise(linear: nn.Linear, settings: Settings) -> Linear4bit:
    return Linear4bit(linear, getattr(torch, settings.compute_dtype), settings.double_quantization)


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
    keep_less(model)
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
    if "lm_head" in name and settings.stream_head:
        return ""
    kind = "weights" if settings.quantization_bit is None else "quantised weights"
    return "encoder" if "ts_encoder" in name else "head" if "lm_head" in name else kind


def count_step(shape: Shape, settings: Settings, load: Load) -> Counter[str]:
    """Returns the bytes alive at the peak of a step that is not the first one, by part."""
    alive, start_copy = Alive(load), Copier.start

    def to_cpu(tensor: torch.Tensor) -> torch.Tensor:
        with alive.belongs_to(""):
            return tensor.clone()

    def start(self: Copier, tensors: Any, rooms: Any = None) -> Copy:
        with alive.belongs_to(_ON_THEIR_WAY):
            return start_copy(self, tensors, rooms)

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
                if name == "weight" and isinstance(module, Linear4bit):
                    module.weight.quant_state = module  # it has one: it is in 4 bit
        base = model if settings.full else model.get_base_model()
        if settings.stream_head:
            stream_head(base)
        if settings.stream_layers:
            LayerStream(base, settings.stream_layers)
        if settings.keeps_less:
            last_product.skip_last_products(base)
        alive.at_peak = +alive.now  # without what was there before it left
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
        stack.enter_context(mock.patch.object(Copier, "start", start))
        stack.enter_context(mock.patch.object(last_product, "written_out", write_out))
        # For fake tensors transformers writes out a causal mask, which it leaves to SDPA in training.
        stack.enter_context(mock.patch.object(masking_utils, "is_tracing", lambda *_: False))
        cpu_autocast = torch.is_autocast_enabled  # PEFT asks about a card's
        stack.enter_context(mock.patch.object(torch, "is_autocast_enabled", lambda kind="cpu": cpu_autocast(kind)))
        with torch.autocast("cpu", getattr(torch, settings.compute_dtype), enabled=settings.mixed_precision):
            loss = model(input_ids=ids, labels=labels, timeseries=series).loss
        alive.part = "backward pass"
        loss.backward()
    return alive.at_peak


def count_loading(shape: Shape, settings: Settings) -> Counter[str]:
    """Returns the bytes alive at the peak while a checkpoint is loaded, by part; no layer has left the device yet."""
    alive, kept = Alive(Load(0, 0, 0)), []
    settings = replace(settings, finetuning_type="lora")
    with torch.device("meta"):
        model = _lay_out(shape, settings)
    linear = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    with FakeTensorMode():
        for name, weight in sorted(model.named_parameters()):
            part, quantised = _part_of(name, settings), settings.quantization_bit and name.startswith("model.")
            read = torch.empty(weight.shape, dtype=weight.dtype)
            if not (quantised and name in linear):
                alive.add(read, part)
                kept.append(read)
                continue
            alive.add(read, "weight being read")
            with torch.device("meta"):
                small = _quantise(linear[name], settings)
            for one in [small.weight, *small.buffers()]:
                kept.append(torch.empty(one.shape, dtype=one.dtype))
                alive.add(kept[-1], part)
    return alive.at_peak


def compare(
    shape: Shape, settings: Settings, load: Load | None
) -> tuple[float, float, list[tuple[str, float, float]]]:
    """Returns plan and count in MiB, and both by part: of loading in all, of a step beyond what stays."""
    plan = while_loading(shape, settings) if load is None else on_device(shape, settings, load)
    count = count_loading(shape, settings) if load is None else count_step(shape, settings, load)
    names = [
        name for name in dict.fromkeys([*plan, *count]) if name not in _NOT_COUNTED and (plan.get(name) or count[name])
    ]
    parts = [(name, plan.get(name, 0) / MIB, count[name] / MIB) for name in names]
    summed = [row for row in parts if load is None or row[0] not in _STAY]
    return sum(row[1] for row in summed), sum(row[2] for row in summed), parts


def standard_cases(layers: tuple[int, ...] = (4, 48)) -> Iterator[tuple[str, Shape, Settings, Load | None]]:
    """Yields name, shape, settings and load (None: the start) of the recipes for one card, and of their levers."""
    main, safe, small = "2080ti_qlora", "2080ti_qlora_safe", "8gb_qlora"
    changed = {
        f"{small} model_name_or_path=ChatTS-8B": (small, {"model_name_or_path": "ChatTS-8B"}),
        f"{main} lora_target=all": (main, {"lora_target": "all"}),
        f"{main} flash_attn=disabled": (main, {"flash_attn": "disabled"}),
        f"{safe} layers_without_checkpoints=2": (
            safe,
            {"layers_without_checkpoints": 2, "offload_checkpoints": False},
        ),
        f"{main} layers_without_checkpoints=2": (main, {"layers_without_checkpoints": 2}),
        f"{safe} offload_checkpoints=false": (safe, {"offload_checkpoints": False}),
        f"{main} model_name_or_path=ChatTS-8B": (main, {"model_name_or_path": "ChatTS-8B"}),
    }
    files = {path.stem: (path.stem, {}) for path in sorted(_RECIPES.glob("*qlora*.yaml"))}
    for name, (stem, changes) in {**files, **changed}.items():
        path = _RECIPES / f"{stem}.yaml"
        recipe = Recipe(path, {**read_recipe(path), **changes})
        for depth in layers:
            shape, settings = replace(recipe.shape, layers=depth), recipe.settings("cuda", 1)
            settings = replace(settings, stream_layers=-(-settings.stream_layers * depth // recipe.shape.layers))
            for tokens, load in _LOADS.items():
                yield f"{name}, {tokens} tokens, {depth} layers", shape, settings, load
            yield f"{name}, load, {depth} layers", shape, settings, None


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python tools/bench/count.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", type=Path, help="a step with it, part by part; default: standard cases")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe")
    parser.add_argument("--layers", type=int, help="of the decoder; default: the model's; standard cases: 4 and 48")
    parser.add_argument("--tokens", type=int, default=1241, help="of the record; default: 1241")
    parser.add_argument("--labels", type=int, default=120, help="tokens of the answer; default: 120")
    parser.add_argument("--patches", type=int, default=625, help="of the series, among the tokens; default: 625")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write case, plan_mib and count_mib here, too")
    return parser.parse_args()


def main() -> int:
    given = _parse()
    logging.disable(logging.INFO)
    if given.recipe is None:
        cases = list(standard_cases(*([(given.layers,)] if given.layers else [])))
    else:
        try:
            recipe = Recipe(given.recipe, read_recipe(given.recipe, given.overrides))
            shape, settings = recipe.shape, recipe.settings("cuda", 1)
        except UsageError as err:
            complain(f"error: {err}")
            return USAGE
        if settings.zero_stage or settings.quantization_bit == 8:
            complain(f"error: {given.recipe} has DeepSpeed or 8-bit weights, which are not counted")
            return USAGE
        shape = replace(shape, layers=given.layers or shape.layers)
        load = Load(given.tokens, given.labels, given.patches)
        name = f"{' '.join([given.recipe.stem, *given.overrides])}, "
        cases = [(f"{name}{given.tokens} tokens, {shape.layers} layers", shape, settings, load)]
        cases += [(f"{name}load, {shape.layers} layers", shape, settings, None)]
    rows, off = [], 0.0
    say("MiB: of a step beyond what stays (weights, adapter, gradients, optimiser), while loading in all.\n")
    say("| case | plan | count | plan off by |\n|---|---|---|---|")
    for name, shape, settings, load in cases:
        plan, count, parts = compare(shape, settings, load)
        rows.append({"case": name, "plan_mib": round(plan, 1), "count_mib": round(count, 1)})
        off = max(off, abs(plan / count - 1))
        say(f"| {name} | {plan:.0f} | {count:.0f} | {100 * (plan / count - 1):+.1f} % |")
        for part, planned, counted in parts if given.recipe else []:
            say(f"|     {part} | {planned:.1f} | {counted:.1f} | |")
    say(f"\nPlan and count differ by {100 * off:.1f} % at most; {100 * MOST_OFF:.0f} % are allowed.")
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return DONE if off <= MOST_OFF else FAULTS


if __name__ == "__main__":
    run(main)
