"""Bytes that a training run takes, on its device and in the machine's memory, part by part.

Arithmetic over what transformers 5.5, PEFT 0.18, bitsandbytes 0.50 and torch 2.11 keep; `tools/bench/bench.py`
compares it with what is measured. On a CPU it was; on cards it was not.
"""

from dataclasses import replace

from .memory_step import (
    encoder_activation_bytes,
    final_norm_bytes,
    forward_bytes,
    input_bytes,
    kept_bytes,
    labels_at_once,
    layer_bytes,
    loss_bytes,
    residual_bytes,
)
from .memory_weights import (
    Load,
    Settings,
    adapter_bytes,
    embedding_bytes,
    encoder_bytes,
    gradient_bytes,
    head_bytes,
    layers_away,
    layers_on_their_way,
    offloaded_weight_bytes,
    optimiser_bytes,
    pinned,
    weight_bytes,
)
from .shape import Shape


__all__ = ["Load", "Settings", "at_worst", "on_device", "on_host", "while_loading"]

_CUDA_CONTEXT = int(0.45 * 2**30)  # context, cuBLAS workspaces: an assumption, not measured
_INTERPRETER = int(0.94 * 2**30)  # a process that has imported LLaMA-Factory: measured (CPU)
_FRAGMENTATION = 0.1  # of what comes and goes in a step, on a card: an assumption, not measured


def at_worst(shape: Shape, load: Load) -> Load:
    """Returns a load whose labels fill a piece of the loss, if there are so many.

    Labels are taken in equal pieces, so that 240 can need less than 220: some other batch of the run may have those.
    """
    most = labels_at_once(shape.vocab_size)
    return replace(load, labels=load.labels // most * most) if load.labels > most else load


def on_device(shape: Shape, settings: Settings, load: Load) -> dict[str, int]:
    """Returns the bytes at the peak of a step, by part; they add up to it.

    A step peaks around the loss, or in the backward pass of a layer, not in both: "largest layer" is the latter,
    "logits" what the former takes beyond it (0 where it stays below). Both hold beside "checkpoints" and
    "encoder activations", which wait for their backward pass.
    """
    cuda = settings.device == "cuda"
    layer, loss = layer_bytes(shape, settings, load), loss_bytes(shape, settings, load)
    loss = max(loss, forward_bytes(shape, settings, load), final_norm_bytes(shape, settings, load))
    checkpoints = input_bytes(shape, settings, load) + kept_bytes(shape, settings, load)
    coming = layers_on_their_way(shape, settings)  # in a layer, not where the loss is taken
    series, rest = encoder_activation_bytes(shape, settings, load), max(0, loss - layer - coming)
    weights = weight_bytes(shape, settings) - layers_away(shape, settings)
    return {
        "weights" if settings.quantization_bit is None else "quantised weights": weights,
        "embedding": 0 if _embedding_on_host(shape, settings) else embedding_bytes(shape, settings),
        "head": 0 if _head_on_host(shape, settings) else head_bytes(shape, settings),
        "encoder": encoder_bytes(shape, settings),
        "adapter": adapter_bytes(shape, settings),
        "gradients": gradient_bytes(shape, settings),
        "optimiser": 0 if _optimiser_on_host(settings) else optimiser_bytes(shape, settings),
        "encoder activations": series,
        "layers on their way": coming,
        "checkpoints": checkpoints,
        "largest layer": layer,
        "logits": rest,
        "context": _CUDA_CONTEXT if cuda else _INTERPRETER,
        "reserve": int(_FRAGMENTATION * (series + checkpoints + layer + rest)) if cuda else 0,
    }


def while_loading(shape: Shape, settings: Settings) -> dict[str, int]:
    """Returns the bytes on the device at the peak of loading, by part.

    All weights lie there, or all but the encoder's, read last, with one as it was read beside what it became. What
    `embedding_on_cpu` and `stream_head` name is read into CPU memory; streamed layers leave afterwards. "reserve": a
    card's allocator keeps the room of what was read, and the encoder may not fit into it; an assumption, not
    measured. Of ZeRO-3's weights each process has its share only, and that is in a step, too.
    """
    context = _CUDA_CONTEXT if settings.device == "cuda" else _INTERPRETER
    if settings.zero_stage == 3:
        return {"context": context}
    read = replace(settings, finetuning_type="lora", upcast_layernorm=False)
    encoder = encoder_bytes(shape, read)
    largest = max(width * out for width, out in shape.linears.values()) * settings.weight_bytes
    return {
        "weights" if settings.quantization_bit is None else "quantised weights": weight_bytes(shape, read),
        "embedding": 0 if _embedding_on_host(shape, read) else embedding_bytes(shape, read),
        "head": 0 if _head_on_host(shape, read) else head_bytes(shape, read),
        "encoder": encoder,
        "weight being read": max(0, largest - encoder),
        "context": context,
        "reserve": min(largest, encoder) if settings.device == "cuda" else 0,
    }


def on_host(shape: Shape, settings: Settings, load: Load) -> dict[str, int]:
    """Returns the bytes in the machine's memory, all its processes together, by part; an upper bound is their sum.

    On a CPU the device is that memory: what `on_device` returns is then in "training".
    """
    processes = settings.processes
    if settings.device == "cpu":
        return {"training": processes * sum(on_device(shape, settings, load).values())}
    offloaded = settings.offload_checkpoints and settings.checkpointing
    paged = _optimiser_on_host(settings)
    streamed = layers_away(shape, settings) + _head_on_host(shape, settings) * head_bytes(shape, settings)
    return {
        "processes": processes * _INTERPRETER,
        "while loading": _loading_bytes(shape, settings),
        "offloaded weights": offloaded_weight_bytes(shape, settings),
        "embedding": processes * _embedding_on_host(shape, settings) * embedding_bytes(shape, settings),
        "streamed weights": processes * streamed,
        "checkpoints": processes * offloaded * shape.layers * pinned(residual_bytes(shape, settings, load)),
        "optimiser": processes * paged * optimiser_bytes(shape, settings),
    }


def _embedding_on_host(shape: Shape, settings: Settings) -> bool:
    """A head that shares the table keeps it on the device; and on a CPU the device is the host."""
    return settings.embedding_on_cpu and not shape.tied and settings.device == "cuda"


def _head_on_host(shape: Shape, settings: Settings) -> bool:
    return settings.stream_head and not shape.tied and settings.device == "cuda"


def _optimiser_on_host(settings: Settings) -> bool:
    """Paged states leave the card when something else wants the room, which is at the peak."""
    away = settings.offload_optimizer or settings.optimizer.startswith("paged_")
    return away and settings.device == "cuda"


def _loading_bytes(shape: Shape, settings: Settings) -> int:
    """What is held while a checkpoint is read.

    transformers reads tensor by tensor, but with ZeRO-3 all files before the first weight is passed on: mapped, so
    that processes share them and the system can take them back, at the price of reading again.
    """
    if settings.zero_stage == 3:
        return 2 * shape.parameters
    return 2 * settings.processes * 2 * max(shape.embedding_parameters, *(i * o for i, o in shape.linears.values()))
