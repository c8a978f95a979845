"""Random ChatTS models for the benchmark: made on their device, weight by weight, and wrapped as training wraps them.

No checkpoint is read. A model is laid out without memory first, then each weight is drawn and, in 4 bit, quantised at
once: more than the finished model and one weight is never held.
"""

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from published import PublishedQwen2, PublishedQwen3
from torch import nn
from transformers import Qwen2ForCausalLM, Qwen3ForCausalLM

from llamafactory_ext.model import FAMILIES
from llamafactory_ext.model.keep_less import keep_less
from llamafactory_ext.model.last_product import skip_last_products
from llamafactory_ext.model.modeling import ChatTSMixin


WAYS = ("ours", "published", "plain")
RANK = 8
TARGETS = ("q_proj", "k_proj", "v_proj")
_SPREAD = 0.02  # of random weights, as transformers draws them


def build_model(
    way: str, config: dict[str, Any], *, device: str, dtype: torch.dtype, quantised: bool = False, seed: int = 0
) -> Any:
    """Return a model of random weights, the same for all ways; without LoRA, all of it frozen.

    Arguments:
        way: one of `WAYS`; "plain" is the language model alone, transformers' own.
        config: the keys of a checkpoint's ``config.json``.
        dtype: of all weights but those in 4 bit; these are computed in it.
        quantised: the decoder's linear layers in 4 bit (NF4, double quantisation), not encoder and head.
    """
    family = "qwen3" if "Qwen3" in config["architectures"][0] else "qwen2"
    config_class, ours = FAMILIES[family]
    classes = {
        "ours": {family: ours},
        "published": {"qwen2": PublishedQwen2, "qwen3": PublishedQwen3},
        "plain": {"qwen2": Qwen2ForCausalLM, "qwen3": Qwen3ForCausalLM},
    }
    settings = config_class.from_dict(config)
    settings._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = classes[way][family](settings).to(dtype)
    generator = torch.Generator(device).manual_seed(seed)
    for path, module in list(model.named_modules()):  # in the order of their definition, which both ways share
        for name, weight in list(module.named_parameters(recurse=False)):
            drawn = torch.empty(weight.shape, dtype=dtype, device=device)
            if weight.ndim == 1:
                drawn.fill_(0 if name == "bias" else 1)
            else:
                drawn.normal_(0, _SPREAD, generator=generator)
            setattr(module, name, nn.Parameter(drawn, requires_grad=False))
        if quantised and isinstance(module, nn.Linear) and path.startswith("model."):
            model.set_submodule(path, _quantise(module))
    # The one module whose values are neither weights nor in a state dict.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=settings, device=torch.device(device))
    model.is_loaded_in_4bit = quantised  # PEFT asks
    return model


def _quantise(linear: nn.Linear) -> nn.Module:
    """Return the layer in 4 bit; its own weight is let go."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    weight, device = linear.weight.data, linear.weight.device
    small = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=weight.dtype,
        quant_type="nf4",
        device="meta",
    )
    small.bias, linear.weight = linear.bias, None
    small.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True).to(device)
    return small


def add_lora(model: Any, checkpointing: bool = True) -> Any:
    """Return the model as LLaMA-Factory trains it: LoRA in float32, by default gradient checkpoints for each layer.

    LoRA sits on query, key and value of every layer and on the encoder's linear layers.
    """
    encoder = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("ts_encoder.")
    ]
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=[*TARGETS, *encoder]
    )
    if isinstance(model, ChatTSMixin):
        keep_less(model)
    torch.manual_seed(0)  # all ways get the same adapter
    wrapped = get_peft_model(model, lora)
    for weight in wrapped.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    if isinstance(model, ChatTSMixin):
        skip_last_products(model)
    model.config.use_cache = False
    return wrapped.train()
