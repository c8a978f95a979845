"""Adapters: vLLM applies LoRA to the language model alone, and on a CPU only with a slot to spare.

vLLM's CPU kernels give a request without an adapter, whose index is -1, the last slot's: right as long as that one is
empty. So there has to be one slot more than adapters.
"""

import functools
from pathlib import Path
from typing import Any

from safetensors import safe_open


_MERGE = (
    "merge it first: llamafactory-cli export yaml/export.yaml model_name_or_path=MODEL adapter_name_or_path={folder} "
    "export_dir=MERGED, and name MERGED as the model"
)
_slots: list[int] = []  # that are there, on a CPU
_loaded: set[str] = set()


def install() -> None:
    """Wraps ``LoRAModel.from_local_checkpoint``, once."""
    from vllm.lora.lora_model import LoRAModel

    load = LoRAModel.from_local_checkpoint
    if hasattr(load, "__wrapped__"):
        return

    @functools.wraps(load)
    def load_checked(lora_dir: str, *args: Any, **kwargs: Any) -> Any:
        refuse_encoder_weights(lora_dir)
        if _slots and len(_loaded | {lora_dir}) >= _slots[-1]:
            raise ValueError(_too_few(len(_loaded | {lora_dir})))
        _loaded.add(lora_dir)
        return load(lora_dir, *args, **kwargs)

    LoRAModel.from_local_checkpoint = load_checked


def refuse_encoder_weights(folder: str | Path) -> None:
    """Raises ValueError where an adapter holds weights of the encoder."""
    file = Path(folder) / "adapter_model.safetensors"
    if not file.is_file():
        return
    with safe_open(file, "pt") as weights:
        held = [name for name in weights.keys() if ".ts_encoder." in name]  # noqa: SIM118
    if held:
        raise ValueError(
            f"{file} changes the series' encoder ({held[0]}, …), and vLLM applies adapters to the language model "
            "alone; " + _MERGE.format(folder=folder)
        )


def check_lora(config: Any) -> None:
    """Raises ValueError where requests with and without an adapter would be mixed up, whatever is loaded.

    Arguments:
        config: vLLM's LoRA configuration; None without ``--enable-lora``.
    """
    from vllm.platforms import current_platform

    _loaded.clear()
    _slots[:] = [config.max_loras] if config is not None and current_platform.is_cpu() else []
    if _slots and _slots[0] < 2:
        raise ValueError(_too_few(1))


def _too_few(adapters: int) -> str:
    return (
        f"found {_slots[-1]} slots for {adapters} adapters; on a CPU vLLM would answer requests without an adapter by "
        f"the one in the last slot: start it with --max-loras {adapters + 1} or more"
    )
