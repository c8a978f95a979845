"""SDPA on cards older than Ampere.

For grouped queries transformers tells torch to repeat keys and values itself (``enable_gqa``). Of torch's kernels only
FlashAttention's can, which needs sm_80; on a Turing card torch falls back, without a word, to one that writes
heads x tokens x tokens scores in float32 (huggingface/transformers issue 48633, seen on a T4). Repeated beforehand,
keys and values go through the memory-efficient kernel, in float16 with sums in float32. Same values, but for rounding.
"""

from types import SimpleNamespace
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface


SDPA_REPEATED = "sdpa_repeated"
_FIRST_WITH_FLASH = (8, 0)


def sdpa_repeated(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """As transformers' SDPA, with keys and values ``[batch, kv_heads, length, head_dim]`` repeated to all heads."""
    groups = module.num_key_value_groups
    as_if_ungrouped = SimpleNamespace(is_causal=module.is_causal)
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    result: tuple[torch.Tensor, None] = AttentionInterface()["sdpa"](
        as_if_ungrouped, query, key, value, *args, **kwargs
    )
    return result


AttentionInterface.register(SDPA_REPEATED, sdpa_repeated)
AttentionMaskInterface.register(SDPA_REPEATED, AttentionMaskInterface()["sdpa"])


def suits(capability: tuple[int, int] | None) -> bool:
    """True where a card of this compute capability is better off with :func:`sdpa_repeated`."""
    return capability is not None and capability < _FIRST_WITH_FLASH


def use_where_it_suits(model: Any, capability: tuple[int, int] | None) -> bool:
    """Switches a model from SDPA to the repeating one where its card wants it; returns whether it did."""
    if model.config._attn_implementation != "sdpa" or not suits(capability):
        return False
    model.set_attn_implementation(SDPA_REPEATED)
    return True
