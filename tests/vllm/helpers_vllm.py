"""What the tests of the plugin for vLLM share; they run by `make vllm` and are not collected elsewhere."""

import os
from pathlib import Path
from typing import Any

import pytest


os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # an engine in this process: faults are seen as they are
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

FAMILIES = ("qwen2", "qwen3")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each family whose answers differ by series. Heads of 32: vLLM has no CPU code for 16."""
    from llamafactory_ext.toolbox.demo.model import Size, write_model

    folder = tmp_path_factory.mktemp("checkpoints")
    for family in FAMILIES:
        write_model(folder / family, family=family, size=Size(width=128, deviation=0.15))  # type: ignore[arg-type]
    return {family: folder / family for family in FAMILIES}


def open_llm(folder: Path, **settings: Any) -> Any:
    from vllm import LLM

    defaults = {"dtype": "float32", "enforce_eager": True, "max_model_len": 4096, "max_num_batched_tokens": 4096}
    return LLM(str(folder), max_num_seqs=8, limit_mm_per_prompt={"audio": 8}, **{**defaults, **settings})


def chat(text: str) -> str:
    """A question as template `chatts` writes it."""
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    return f"{system}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
