"""What makes a run smaller or keeps it finite, applied between loading the model and adding the adapter.

Wraps ``init_adapter`` of ``llamafactory.model.loader``. None of it changes a result beyond float rounding.
"""

import functools
from typing import Any

import torch
from llamafactory.extras import logging
from transformers import AutoTokenizer
from transformers.integrations import deepspeed_config, is_fsdp_enabled

from llamafactory_ext.model import is_chatts
from llamafactory_ext.model.attention import use_where_it_suits
from llamafactory_ext.model.constrained import Grammars
from llamafactory_ext.model.float16 import guard_last_projections, match_half_precision, upcast_norms
from llamafactory_ext.model.host_embedding import keep_out_of_ddp, move_embedding_to_cpu
from llamafactory_ext.model.keep_less import keep_less
from llamafactory_ext.model.last_product import skip_last_products
from llamafactory_ext.model.streamed_head import stream_head
from llamafactory_ext.model.streamed_layers import LayerStream
from llamafactory_ext.plugin.relevance import is_our_run
from llamafactory_ext.training.encoder import train_whole
from llamafactory_ext.training.runs import begin_training


logger = logging.get_logger("llamafactory.ext")


def install(upstream: Any) -> str | None:
    """Wraps ``init_adapter``."""
    init_adapter = upstream.init_adapter

    @functools.wraps(init_adapter)
    def init_with_levers(config: Any, model: Any, model_args: Any, finetuning_args: Any, is_trainable: bool) -> Any:
        if not is_chatts(config):
            return init_adapter(config, model, model_args, finetuning_args, is_trainable)
        if is_trainable and is_our_run(model_args):
            begin_training()
        model.returns_logits = _wants_logits(finetuning_args)
        _fit_card(model)
        if is_trainable:
            _keep_layout(model)
        elif model_args.export_dir is None:  # what is exported says what was published
            model.generation_config.use_cache = True  # a checkpoint's may say false, or nothing
        if getattr(finetuning_args, "constrained_answers", False):
            _constrain(model, model_args)
        # A reference model comes with arguments of upstream's own class, which lacks our keys: no lever for it.
        moves_embedding = getattr(finetuning_args, "embedding_on_cpu", False)
        if moves_embedding:
            _move_embedding(model)
        _fit_precision(model, model_args, is_trainable)  # casts weight by weight, so the largest one has left before
        streams = _stream(model, model_args, finetuning_args, is_trainable)
        lean = is_trainable and deepspeed_config() is None and not is_fsdp_enabled()  # those gather a module's weights
        if lean:
            keep_less(model)
        if is_trainable and finetuning_args.offload_checkpoints:
            _offload_checkpoints(model, model_args)
        if is_trainable and finetuning_args.layers_without_checkpoints:
            _keep_last_layers(model, model_args, finetuning_args.layers_without_checkpoints)
        adapted = init_adapter(config, model, model_args, finetuning_args, is_trainable)
        if lean and model_args.use_reentrant_gc and not model_args.use_unsloth_gc:
            skip_last_products(model)
        if is_trainable and finetuning_args.finetuning_type == "freeze" and finetuning_args.train_timeseries_modules:
            train_whole(adapted)
        if (moves_embedding or streams) and is_trainable:
            keep_out_of_ddp(adapted)
        return adapted

    upstream.init_adapter = init_with_levers
    return "wrapped"


def _wants_logits(finetuning_args: Any) -> bool | None:
    """Returns whether whole logits are wanted beside a loss; None leaves it to the model."""
    if finetuning_args.stage in ("rm", "ppo"):  # trl's value head looks at them, whatever it is asked for
        return True
    if finetuning_args.stage != "sft":
        return None
    return bool(finetuning_args.compute_accuracy or getattr(finetuning_args, "use_asft_loss", False))


def _constrain(model: Any, model_args: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, revision=model_args.model_revision)
    try:
        model.grammars = Grammars(tokenizer, model.config.vocab_size)
    except ModuleNotFoundError as err:
        raise ValueError(
            f"`constrained_answers` needs {err.name}: pip install 'llamafactory-ext[detect]', or remove the key."
        ) from err
    vars(model).pop("generate", None)  # upstream binds transformers' own to a model whose class has another
    logger.info_rank0("Answers about series are kept to JSON of anomalies.")


def _fit_card(model: Any) -> None:
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    if use_where_it_suits(model, capability):
        logger.info_rank0("SDPA on a card older than Ampere: keys and values are repeated, to keep its small kernel.")


def _fit_precision(model: Any, model_args: Any, is_trainable: bool) -> None:
    if deepspeed_config() is not None:  # it casts the whole model itself
        return
    cast = match_half_precision(model, model_args.compute_dtype)
    if cast:
        logger.info_rank0(f"{cast} frozen weights in the other half precision cast to {model_args.compute_dtype}.")
    quantised = getattr(model, "quantization_method", None) is not None
    if quantised and model_args.upcast_layernorm and model_args.compute_dtype == torch.float16:
        if not is_trainable:  # upstream does it for training only, and what was trained so may need it to answer
            upcast_norms(model)
        count = guard_last_projections(model)
        logger.info_rank0(f"{count} down projections are kept within float16's range.")


def _keep_layout(model: Any) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights in evaluation for a CPU's AVX512: the next step would fail."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _refuse_other_placement(key: str) -> None:
    if deepspeed_config() is not None or is_fsdp_enabled():
        raise ValueError(f"`{key}` does not go with DeepSpeed or FSDP, which place weights themselves; remove it.")


def _move_embedding(model: Any) -> None:
    _refuse_other_placement("embedding_on_cpu")
    size = move_embedding_to_cpu(model)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    logger.info_rank0(f"The embedding table stays in CPU memory: {size / 2**20:,.1f} MiB less on the card.")


def _stream(model: Any, model_args: Any, finetuning_args: Any, is_trainable: bool) -> bool:
    """Lets head and layers come from CPU memory where they are asked to; returns whether any do."""
    # As of the embedding: a reference model's arguments lack the keys. What is exported is wanted whole.
    head, layers = (getattr(finetuning_args, key, 0) for key in ("stream_head", "stream_layers"))
    if not (head or layers) or model_args.export_dir is not None:
        return False
    if head:
        _refuse_other_placement("stream_head")
        size = stream_head(model)
        logger.info_rank0(f"The head comes from CPU memory piece by piece: {size / 2**20:,.1f} MiB less on the card.")
    if layers:
        _refuse_other_placement("stream_layers")
        if is_trainable:
            _require_checkpoints("stream_layers", model_args)
        if layers > len(model.model.layers):
            raise ValueError(f"`stream_layers` is {layers}; the model has {len(model.model.layers)} layers.")
        size = LayerStream(model, layers).size
        logger.info_rank0(f"{layers} layers come from CPU memory: {size / 2**20:,.1f} MiB less on the card.")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return True


def _require_checkpoints(key: str, model_args: Any) -> None:
    if model_args.disable_gradient_checkpointing or not model_args.use_reentrant_gc or model_args.use_unsloth_gc:
        raise ValueError(
            f"`{key}` needs gradient checkpointing as it is by default; remove it, or "
            "`disable_gradient_checkpointing`, `use_reentrant_gc: false` and `use_unsloth_gc`."
        )


def _offload_checkpoints(model: Any, model_args: Any) -> None:
    _require_checkpoints("offload_checkpoints", model_args)
    model.offload_checkpoints = True
    logger.info_rank0("The layers' checkpoints wait for the backward pass in CPU memory.")


def _keep_last_layers(model: Any, model_args: Any, count: int) -> None:
    """Leaves gradient checkpoints out in the last layers, whose backward pass comes first."""
    layers = model.model.layers
    if model_args.disable_gradient_checkpointing or count >= len(layers):
        raise ValueError(
            f"`layers_without_checkpoints` is {count}; expected less than the model's {len(layers)} layers, with "
            "gradient checkpoints in the others. For none at all: `disable_gradient_checkpointing: true` alone."
        )
    for layer in layers[-count:]:
        layer.gradient_checkpointing = False
    logger.info_rank0(f"The last {count} of {len(layers)} layers are computed once a step, without checkpoints.")
