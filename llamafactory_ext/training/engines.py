"""What a ChatTS run can't be computed with: engines that would drop the encoder, versions with a known fault.

Read in LLaMA-Factory 0.9.5 and its main branch at ff6d4d1: Megatron's workflows take ``model_type: qwen2`` for the
whole model, KTransformers and hyper-parallel replace layers of architectures that they know.
"""

import importlib.metadata
from collections.abc import Iterator
from typing import Any

from llamafactory.extras import logging
from llamafactory.extras.misc import is_env_enabled


logger = logging.get_logger("llamafactory.ext")

_BY_VARIABLE = {"USE_MCA": "Megatron (mcore_adapter)", "USE_MEGATRON_BRIDGE": "Megatron Bridge"}
_BY_KEY = {"use_kt": "KTransformers", "use_hyper_parallel": "hyper-parallel"}


def refuse_other_engines(*arguments: Any) -> None:
    """Called for runs with template ``chatts``, with what arguments are known by then.

    Raises:
        ValueError: the run asks for an engine that does not know ChatTS.
    """
    asked = [f"{name}=1 ({engine})" for name, engine in _BY_VARIABLE.items() if is_env_enabled(name)]
    asked += [
        f"`{key}: true` ({engine})"
        for key, engine in _BY_KEY.items()
        if any(getattr(one, key, False) for one in arguments)
    ]
    if asked:
        raise ValueError(
            f"{', '.join(asked)} does not know ChatTS and would leave its series encoder out: remove it, and train "
            "with torchrun or DeepSpeed (`FORCE_TORCHRUN=1`, `deepspeed`)."
        )


def report_known_faults(flash_attention: bool, accumulation: int) -> None:
    """Logs what the installed transformers does wrong in such a run, and the fix."""
    for fault in known_faults(importlib.metadata.version("transformers"), flash_attention, accumulation):
        logger.warning_rank0(fault)


def known_faults(transformers: str, flash_attention: bool, accumulation: int) -> Iterator[str]:
    """Yields a line for each fault of this version that the run meets.

    Arguments:
        flash_attention: whether attention is FlashAttention-2's (`flash_attn: fa2`).
        accumulation: `gradient_accumulation_steps`.
    """
    from packaging.version import Version  # comes with transformers

    version = Version(transformers).release
    if version == (5, 6, 0) and flash_attention:
        yield (
            "transformers 5.6.0 fails with FlashAttention-2 ('NoneType' object has no attribute 'to'): "
            "pip install transformers==5.5.4, or `flash_attn: sdpa`."
        )
    if (5, 2) <= version < (5, 5, 4) and accumulation > 1:
        yield (
            f"transformers {transformers} divides gradients by `gradient_accumulation_steps` ({accumulation}) twice, "
            "so that norms are too small and clipping too rare: pip install transformers==5.5.4."
        )
