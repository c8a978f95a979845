"""How the encoder is trained: LoRA on its layers, frozen on request, a learning rate of its own.

Wraps ``patch_target_modules`` and ``get_forbidden_modules`` of ``llamafactory.model.adapter`` and
``create_custom_optimizer`` of ``llamafactory.train.sft.trainer``.
"""

import functools
from typing import Any

import torch
from llamafactory.extras import logging
from torch import nn
from transformers import Trainer

from llamafactory_ext.model import is_chatts


logger = logging.get_logger("llamafactory.ext")

_ENCODER = "ts_encoder"


def install_targets(upstream: Any) -> str | None:
    """Adds the encoder's linear layers, by their full names, to LoRA's targets."""
    patch_target_modules = upstream.patch_target_modules

    @functools.wraps(patch_target_modules)
    def patch_with_encoder(model: Any, finetuning_args: Any, target_modules: list[str]) -> Any:
        if not is_chatts(model.config):
            return patch_target_modules(model, finetuning_args, target_modules)
        linear = [
            name for name, module in model.named_modules() if isinstance(module, nn.Linear) and _in_encoder(name)
        ]
        # `lora_target: all` finds the encoder's layers as "0", "2", …, which would match every decoder layer.
        targets = [name for name in target_modules if not name.isdigit() and name not in linear]
        if finetuning_args.train_timeseries_modules:
            targets += linear
            logger.info_rank0(f"LoRA on the time-series encoder: {', '.join(linear)}.")
        return patch_target_modules(model, finetuning_args, targets)

    upstream.patch_target_modules = patch_with_encoder
    return "wrapped"


def install_freezing(upstream: Any) -> str | None:
    """Forbids training the encoder where ``train_timeseries_modules`` is false."""
    get_forbidden_modules = upstream.get_forbidden_modules

    @functools.wraps(get_forbidden_modules)
    def forbid_encoder(config: Any, finetuning_args: Any) -> set[str]:
        forbidden: set[str] = set(get_forbidden_modules(config, finetuning_args))
        if is_chatts(config) and not finetuning_args.train_timeseries_modules:
            forbidden.add(_ENCODER)
        return forbidden

    upstream.get_forbidden_modules = forbid_encoder
    return "wrapped"


def train_whole(model: Any) -> None:
    """Trains all of the encoder in freeze tuning, in the type of what else is trained.

    Upstream picks layers by their numbers, which are those of some of the encoder's layers, too.
    """
    dtype = next((weight.dtype for weight in model.parameters() if weight.requires_grad), torch.float32)
    for weight in model.get_submodule(_ENCODER).parameters():
        weight.data = weight.data.to(dtype)
        weight.requires_grad_(True)


def install_optimizer(upstream: Any) -> str | None:
    """Gives the encoder a parameter group of its own where ``timeseries_sft_lr`` is set."""
    create_custom_optimizer = upstream.create_custom_optimizer

    @functools.wraps(create_custom_optimizer)
    def create_with_encoder_lr(model: Any, training_args: Any, finetuning_args: Any, *args: Any, **kwargs: Any) -> Any:
        optimizer = create_custom_optimizer(model, training_args, finetuning_args, *args, **kwargs)
        encoder_lr = getattr(finetuning_args, "timeseries_sft_lr", None)
        if encoder_lr is None:
            return optimizer
        if optimizer is not None:
            raise ValueError(
                "`timeseries_sft_lr` does not work with the optimizer that was chosen (GaLore, LoRA+, BAdam, …); "
                "remove one of them."
            )
        return optimizer_with_encoder_lr(model, training_args, encoder_lr)

    upstream.create_custom_optimizer = create_with_encoder_lr
    return "wrapped"


def optimizer_with_encoder_lr(model: nn.Module, training_args: Any, encoder_lr: float) -> Any:
    """Returns the optimizer that the Trainer would make, with the encoder's parameters at ``encoder_lr``.

    Raises:
        ValueError: nothing of the encoder is trained.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    encoder = [name for name in trained if _in_encoder(name)]
    if not encoder:
        raise ValueError("`timeseries_sft_lr` is set but no parameter of a time-series encoder is trained; remove it.")
    optimizer_class, optimizer_kwargs = Trainer.get_optimizer_cls_and_kwargs(training_args, model)
    if optimizer_kwargs.keys() & {"params", "model", "optimizer_dict"}:
        raise ValueError(
            "`timeseries_sft_lr` does not work with the `optim` that was chosen, which groups parameters itself; "
            "remove one of them."
        )
    decaying = set(Trainer.get_decay_parameter_names(None, model))  # takes nothing from the instance
    groups = []
    for in_encoder in (False, True):  # the language model first: the Trainer logs the first group's rate
        for decays in (True, False):
            names = [name for name in trained if (name in encoder) == in_encoder and (name in decaying) == decays]
            if names:
                group: dict[str, Any] = {"params": [trained[name] for name in names]}
                group["weight_decay"] = training_args.weight_decay if decays else 0.0
                groups.append(group | ({"lr": encoder_lr} if in_encoder else {}))
    count = sum(trained[name].numel() for name in encoder)
    logger.info_rank0(
        f"Learning rate of the time-series encoder: {encoder_lr} ({count:,} parameters in {len(encoder)} tensors); "
        f"of the rest: {training_args.learning_rate}."
    )
    return optimizer_class(groups, **optimizer_kwargs)


def _in_encoder(name: str) -> bool:
    return _ENCODER in name.split(".")
