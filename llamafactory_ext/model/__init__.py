"""ChatTS as a native transformers model: config, encoder, both families, processor.

Registered with ``AutoConfig`` and ``AutoModelForCausalLM`` under the model types that are its own (``chatts``,
``qwen3ts``). Checkpoints that carry a ``ts`` section under another model type are recognised by :func:`read_config`.
"""

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM

from .config import Qwen2TSConfig, Qwen3TSConfig, is_chatts, read_config
from .encoder import TimeSeriesEncoder
from .modeling import Qwen2TSForCausalLM, Qwen3TSForCausalLM
from .processor import ChatTSProcessor


FAMILIES: dict[str, tuple[Any, Any]] = {
    "qwen2": (Qwen2TSConfig, Qwen2TSForCausalLM),
    "qwen3": (Qwen3TSConfig, Qwen3TSForCausalLM),
}
"""Config and model of each language model that ChatTS is made over."""

__all__ = [
    "FAMILIES",
    "ChatTSProcessor",
    "Qwen2TSConfig",
    "Qwen2TSForCausalLM",
    "Qwen3TSConfig",
    "Qwen3TSForCausalLM",
    "TimeSeriesEncoder",
    "is_chatts",
    "read_config",
]

for _config, _model in FAMILIES.values():
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForCausalLM.register(_config, _model, exist_ok=True)
