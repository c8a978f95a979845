"""Engines: what answers questions about series. Each is opened once and asked in batches."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from llamafactory_ext.errors import UsageError
from llamafactory_ext.gdsh import refuse_control_tokens


ENGINES = {
    "transformers": ("transformers_engine", "TransformersEngine"),
    "vllm": ("vllm_engine", "VllmEngine"),
    "ray": ("ray_engine", "RayEngine"),
}
SYSTEM = "You are a helpful assistant."  # that of template `chatts`


@dataclass(frozen=True, eq=False)
class Question:
    """One question."""

    prompt: str
    """The user's text, with one marker ``<ts><ts/>`` for each series."""
    series: tuple[npt.NDArray[np.float64], ...]
    """Each of shape (points,), finite."""

    @property
    def points(self) -> int:
        """Of the longest series: what intervals are about."""
        return max(map(len, self.series))


@dataclass(frozen=True)
class Answer:
    """What the model said."""

    text: str
    tokens: tuple[str, ...]
    """The text of each token that was generated, the end apart; together they are `text`."""
    logprobs: tuple[float, ...]
    """Of each token, among those that were allowed there; natural logarithm."""
    is_whole: bool = True
    """Whether the model ended it, and not the limit of tokens."""


class Engine(Protocol):
    """Asks a model."""

    def ask(self, questions: Sequence[Question], temperature: float = 0.0, seed: int = 0) -> list[Answer]:
        """Returns an answer to each question; greedy at temperature 0.

        Raises:
            ValueError: a question that the model can't be asked (longer than it can place).
        """
        ...


@dataclass(frozen=True)
class Settings:
    """How an engine is opened."""

    model: str
    """Folder or hub name of a ChatTS checkpoint."""
    adapter: str = ""
    system: str = SYSTEM
    """For `chat_text`."""
    max_new_tokens: int = 1024
    constrained: bool = True
    """Answers are kept to the grammar of answers about anomalies."""
    dtype: str = "auto"
    quantization_bit: int | None = None
    batch: int = 16
    more: tuple[tuple[str, Any], ...] = ()
    """Of the engine's own."""


def chat_text(prompt: str, system: str = SYSTEM) -> str:
    """Returns a question as template ``chatts`` writes it, up to where the answer begins."""
    refuse_control_tokens(prompt)
    refuse_control_tokens(system)
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def open_engine(name: str, settings: Settings) -> Engine:
    """Opens an engine by its name.

    Raises:
        UsageError: there is no such engine, what it needs is not installed, or the model can't be opened.
    """
    if name not in ENGINES:
        raise UsageError(f"there is no engine {name!r}; there are {', '.join(ENGINES)}")
    module, made = ENGINES[name]
    try:
        return cast(Engine, getattr(importlib.import_module(f"{__package__}.{module}"), made)(settings))
    except ModuleNotFoundError as missing:
        is_grammar = missing.name == "xgrammar"
        way = "pip install 'llamafactory-ext[detect]', or --free" if is_grammar else "see docs/detect.md"
        raise UsageError(f"engine {name} needs {missing.name}, which is not installed here: {way}") from missing
