"""Parts of a model that are read into CPU memory, while all the rest is read onto its device.

transformers takes a map from parts to devices. It then hands the model to accelerate, which would copy what lies in
CPU memory onto the device, whole, whenever it is used; that is undone, since the parts named here know better.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import BitsAndBytesConfig


EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
# A map with an entry for the whole model would have accelerate move all of it to the device first.
_PARTS = (EMBEDDING, "model.layers", "model.norm", "model.rotary_emb", HEAD, "ts_encoder")


def split(device_map: Any, on_cpu: tuple[str, ...]) -> dict[str, Any] | None:
    """Returns a map that reads the parts in ``on_cpu`` into CPU memory; None where they need no map of their own.

    Arguments:
        device_map: as ``from_pretrained`` takes it; only a map of the whole model to one device other than the CPU
            is split.
    """
    if not on_cpu or not isinstance(device_map, dict) or list(device_map) != [""]:
        return None
    device = device_map[""]
    if torch.device(device).type == "cpu":
        return None
    return {part: "cpu" if part in on_cpu else device for part in _PARTS}


def read_apart(read: Callable[..., Any], device_map: dict[str, Any], **kwargs: Any) -> Any:
    """Returns what ``read`` reads with a map that :func:`split` made, without accelerate's hooks in it."""
    from accelerate.hooks import remove_hook_from_module  # transformers asks for it with a map; vLLM comes without

    quantisation = kwargs.get("quantization_config")
    with _parts_may_stay(quantisation), _without_a_word_of_meta():
        model = read(device_map=device_map, **kwargs)
    remove_hook_from_module(model, recurse=True)
    (device,) = {where for where in device_map.values() if where != "cpu"}
    model.hf_device_map = {"": device}  # what Trainer and accelerate look at: it trains on this one
    return model


@contextmanager
def _parts_may_stay(quantisation: Any) -> Iterator[None]:
    """bitsandbytes is told that the parts in CPU memory, which it does not quantise, are there on purpose."""
    if not isinstance(quantisation, BitsAndBytesConfig):
        yield
        return
    before = quantisation.llm_int8_enable_fp32_cpu_offload
    quantisation.llm_int8_enable_fp32_cpu_offload = True
    try:
        yield
    finally:
        quantisation.llm_int8_enable_fp32_cpu_offload = before


@contextmanager
def _without_a_word_of_meta() -> Iterator[None]:
    """accelerate warns that some weights are on the meta device; they are not when this is over."""

    def other(record: logging.LogRecord) -> bool:
        return "meta device" not in record.getMessage()

    logger = logging.getLogger("accelerate.big_modeling")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)
