"""Text and series to model inputs, without LLaMA-Factory; inside it, what the template must know of a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BatchFeature

from llamafactory_ext.series import MARKER, as_series, encode, expand

from .config import read_config
from .published import copy_published_tokenizer


class ChatTSProcessor:
    """Holds what of a checkpoint's config decides the text: patch size and the longest series that it can place.

    Not a ``ProcessorMixin``: that would write a ``processor_class`` of ours into saved checkpoints, which the
    published loaders then could not find.
    """

    def __init__(self, config: Any, tokenizer: Any = None) -> None:
        self.tokenizer = tokenizer
        self.name_or_path: str = config.name_or_path
        self.patch_size: int = config.ts["patch_size"]
        self.max_series_length: int = config.ts["max_sequence_length"]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, without its files' ``auto_map``: that code was not executed, and saving looks for it."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        if tokenizer is not None:
            tokenizer.init_kwargs.pop("auto_map", None)
        self._tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, path: str, **kwargs: Any) -> "ChatTSProcessor":
        """Loads tokenizer and config of a ChatTS checkpoint.

        Raises:
            ValueError: the checkpoint's config carries no ``ts`` section.
        """
        config = read_config(path, **kwargs)
        if config is None:
            raise ValueError(f"{path} is no ChatTS checkpoint: its config.json has no `ts` section.")
        return cls(config, AutoTokenizer.from_pretrained(path, **kwargs))

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Saves the tokenizer, as published where it has not changed; the rest stands in the model's config."""
        self.tokenizer.save_pretrained(folder, **kwargs)
        copy_published_tokenizer(self.name_or_path, self.tokenizer, Path(folder))

    def __call__(
        self, text: str | Sequence[str], timeseries: Sequence[Any] = (), padding_side: str = "left", **kwargs: Any
    ) -> BatchFeature:
        """Returns ``input_ids``, ``attention_mask`` and ``timeseries`` for ``forward`` or ``generate``.

        Arguments:
            text: prompts with one ``<ts><ts/>`` for each series.
            timeseries: the series of all prompts in order, each a list of numbers.
            kwargs: for the tokenizer (``padding=True`` for several prompts).

        Raises:
            ValueError: markers and series differ in number, or a series can't be encoded.
        """
        texts = [text] if isinstance(text, str) else list(text)
        series = [as_series(values) for values in timeseries]
        longest = max((len(values) for values in series), default=0)
        if longest > self.max_series_length:  # the encoder has no embedding for what lies beyond
            raise ValueError(f"found a series of {longest} points; expected at most {self.max_series_length}")
        markers = sum(prompt.count(MARKER) for prompt in texts)
        if markers != len(series):
            raise ValueError(f"found {markers} {MARKER} and {len(series)} series; expected one marker for each series")
        rest = iter(series)
        texts = ["".join(self._parts(prompt, rest)) for prompt in texts]
        kwargs.setdefault("return_token_type_ids", False)  # `generate` refuses what the model has no use for
        inputs = self.tokenizer(texts, padding_side=padding_side, return_tensors="pt", **kwargs)
        if series:
            inputs["timeseries"] = torch.from_numpy(encode(series))
        return BatchFeature(dict(inputs))

    def _parts(self, prompt: str, series: Any) -> list[str]:
        first, *others = prompt.split(MARKER)
        return [first] + [expand(next(series), self.patch_size) + part for part in others]
