"""A prompt's tokens and its series, as vLLM wants them: in its slot for audio, the only one that takes numbers.

vLLM replaces the marker's tokens by one ``<ts>`` a patch. The description in front of them is text, and a text is
tokenised as a whole: spliced in as tokens it could split " [" in two, where training saw one token. So it is written
into the prompt before vLLM looks for markers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import AudioProcessorItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ProcessorInputs,
    PromptReplacement,
)

from llamafactory_ext.series import MARKER, FloatArray, SeriesError, as_series, describe, encode, patch_count


def series_of(data: Any) -> list[FloatArray]:
    """Returns the series of one request.

    Arguments:
        data: one series or a list of them, each of numbers.

    Raises:
        VLLMValidationError: one of them is no series.
    """
    holds_series = isinstance(data, list | tuple) or (isinstance(data, np.ndarray) and data.dtype.hasobject)
    if not holds_series:
        data = [data] if getattr(data, "ndim", 1) == 1 else list(data)
    elif len(data) and all(isinstance(item, int | float | np.number) for item in data):
        data = [data]  # a list of numbers, not of series
    found = []
    for place, item in enumerate(data):
        try:
            found.append(as_series(item))
        except SeriesError as err:
            raise refusal(f"series {place}: {err}") from err
    return found


def refusal(reason: str) -> VLLMValidationError:
    """Returns the error that vLLM answers with a 400."""
    return VLLMValidationError(reason, parameter="messages")


class SeriesParser(MultiModalDataParser):  # type: ignore[misc]
    """Takes lists of numbers for what they are; vLLM's would resample them."""

    def _get_subparsers(self) -> Mapping[str, Any]:
        return {"audio": self._parse_series}

    def _parse_series(self, data: Any) -> AudioProcessorItems | None:
        return None if data is None or len(data) == 0 else AudioProcessorItems(series_of(data))


class SeriesInfo(BaseProcessingInfo):  # type: ignore[misc]
    """What of a checkpoint's config decides the text and the tokens."""

    @property
    def patch_size(self) -> int:
        return int(self.get_hf_config().ts["patch_size"])

    @property
    def longest(self) -> int:
        """Points of a series that the encoder places."""
        return int(self.get_hf_config().ts["max_sequence_length"])

    @property
    def marker(self) -> list[int]:
        """The two tokens of ``<ts><ts/>``."""
        config = self.get_hf_config()
        return [config.ts_token_start_index, config.ts_token_end_index]

    def get_hf_processor(self, **kwargs: object) -> Any:
        return to_tensors

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        return {}

    def get_data_parser(self) -> SeriesParser:
        return SeriesParser()

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"audio": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {"audio": min(patch_count(self.longest, self.patch_size), seq_len)}


def to_tensors(audio: Sequence[FloatArray], return_tensors: str | None = None) -> BatchFeature:
    """Returns ``timeseries``: a tensor ``[2 * length, 1]`` a series, scaled values and mask alternating."""
    return BatchFeature({"timeseries": [torch.from_numpy(encode([series])[0]) for series in audio]})


class SeriesDummyInputs(BaseDummyInputsBuilder[SeriesInfo]):  # type: ignore[misc]
    """The longest series, with which vLLM measures its memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return MARKER * mm_counts.get("audio", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> Mapping[str, Any]:
        longest = min(self.info.longest, seq_len * self.info.patch_size)
        return {"audio": [np.zeros(longest)] * mm_counts.get("audio", 0)}


class SeriesProcessor(BaseMultiModalProcessor[SeriesInfo]):  # type: ignore[misc]
    """Series to tensors, markers to tokens."""

    def apply(self, inputs: ProcessorInputs, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's, with the series' descriptions in the prompt.

        What a client says that its data are (``uuid``) is not believed: another one's series would be answered about.
        """
        series = inputs.mm_data_items.get_items("audio", AudioProcessorItems).get_all()
        described = self._described(list(inputs.prompt), series)
        return super().apply(replace(inputs, prompt=described, mm_uuid_items=None), *args, **kwargs)

    def _described(self, tokens: list[int], series: Sequence[FloatArray]) -> list[int]:
        start, end = self.info.marker
        parts = split_at_markers(tokens, start, end)
        if len(parts) - 1 != len(series):
            raise refusal(
                f"found {len(parts) - 1} markers ({MARKER}) and {len(series)} series; expected one marker for each"
            )
        tokenizer, described = self.info.get_tokenizer(), []
        for part, one in zip(parts, series, strict=False):
            if len(one) > self.info.longest:
                raise refusal(
                    f"found a series of {len(one)} points; the encoder of this checkpoint places {self.info.longest} "
                    "(max_sequence_length): downsample it or cut it into windows"
                )
            try:
                text = tokenizer.decode(part, skip_special_tokens=False) + describe(one)
            except SeriesError as err:
                raise refusal(str(err)) from err
            described += [*tokenizer.encode(text, add_special_tokens=False), start, end]
        return described + parts[-1]

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Mapping[str, Any]:
        return {"timeseries": MultiModalFieldConfig.batched("audio")}

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Sequence[Any]:
        if "audio" not in mm_items:  # all of them are in vLLM's cache, with their updates
            return []
        series = mm_items.get_items("audio", AudioProcessorItems)
        return [PromptReplacement("audio", self.info.marker, partial(self._patches, series))]

    def _patches(self, series: AudioProcessorItems, item: int) -> list[int]:
        token: int = self.info.marker[0]
        return [token] * patch_count(len(series.get(item)), self.info.patch_size)


def split_at_markers(tokens: Sequence[int], start: int, end: int) -> list[list[int]]:
    """Returns the tokens between markers, one list more than there are markers.

    Raises:
        VLLMValidationError: half a marker.
    """
    parts: list[list[int]] = [[]]
    place = 0
    while place < len(tokens):
        if tokens[place] == start and place + 1 < len(tokens) and tokens[place + 1] == end:
            parts.append([])
            place += 2
            continue
        if tokens[place] in (start, end):
            raise refusal(f"found a single <ts> or <ts/> in the prompt; expected {MARKER}, once for each series")
        parts[-1].append(tokens[place])
        place += 1
    return parts
