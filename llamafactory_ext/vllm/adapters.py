"""Adapters: vLLM applies LoRA to the language model alone, and on a CPU to every request of a batch or to none."""

import functools
from pathlib import Path
from typing import Any

from safetensors import safe_open


_MERGE = (
    "merge it first: llamafactory-cli export yaml/export.yaml model_name_or_path=MODEL adapter_name_or_path={folder} "
    "export_dir=MERGED, and name MERGED as the model"
)


def install() -> None:
    """Wraps ``LoRAModel.from_local_checkpoint``, once."""
    from vllm.lora.lora_model import LoRAModel

    load = LoRAModel.from_local_checkpoint
    if hasattr(load, "__wrapped__"):
        return

    @functools.wraps(load)
    def load_without_encoder(lora_dir: str, *args: Any, **kwargs: Any) -> Any:
        refuse_encoder_weights(lora_dir)
        return load(lora_dir, *args, **kwargs)

    LoRAModel.from_local_checkpoint = load_without_encoder


def refuse_encoder_weights(folder: str | Path) -> None:
    """Raises ValueError where an adapter holds weights of the encoder."""
    file = Path(folder) / "adapter_model.safetensors"
    if not file.is_file():
        return
    with safe_open(file, "pt") as weights:
        held = [name for name in weights.keys() if ".ts_encoder." in name]  # noqa: SIM118
    if held:
        raise ValueError(
            f"{file} changes the series' encoder ({held[0]}, …), and vLLM applies adapters to the language model alone; "
            + _MERGE.format(folder=folder)
        )


def check_lora(config: Any) -> None:
    """Raises ValueError where requests with and without an adapter could meet in one batch and be mixed up.

    vLLM's CPU kernels give a request without an adapter, whose index is -1, the last slot's: right as long as that is
    empty, so there has to be one slot more than adapters.
    """
    from vllm.platforms import current_platform

    if config is not None and current_platform.is_cpu() and config.max_loras < 2:
        raise ValueError("on a CPU: --max-loras of adapters + 1")
