"""Template ``chatts``, which is ChatML, and its mm-plugin: markers to text and patches, series to tensors.

The series travel in the ``audios`` column, which every processor and collator of LLaMA-Factory carries along already.
Public registries of ``llamafactory.data.mm_plugin``, whose ``BasePlugin`` is to be subclassed, and of
``llamafactory.data.template``. Checked on 0.9.5.
"""

import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from llamafactory.data.formatter import StringFormatter, ToolFormatter
from llamafactory.data.mm_plugin import BasePlugin
from llamafactory.extras.constants import AUDIO_PLACEHOLDER

from llamafactory_ext.gdsh import read_series, refuse_control_tokens, unescaped
from llamafactory_ext.plugin.activation import require
from llamafactory_ext.series import MARKER, PATCH_TOKEN, FloatArray, as_series, encode, expand, patch_count


_MARKERS = re.compile(f"({re.escape(MARKER)}|{re.escape(AUDIO_PLACEHOLDER)})")
_ANY_MARKER = re.compile(f"{_MARKERS.pattern}|<ts/?>")

_ANSWERING = ("assistant", "function")  # roles, as LLaMA-Factory calls them


def install_plugin(upstream: ModuleType) -> str | None:
    """Registers the plugin, unless one of that name is there (the fork has its own)."""
    if "chatts" in upstream.PLUGINS:
        return None
    upstream.register_mm_plugin("chatts", ChatTSPlugin)
    return "registered"


def install_template(upstream: ModuleType) -> str | None:
    """Registers the template, unless one of that name is there."""
    if "chatts" in upstream.TEMPLATES:
        return None
    string, function = upstream.StringFormatter, upstream.FunctionFormatter
    upstream.register_template(
        name="chatts",
        format_user=string(slots=["<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n"]),
        format_assistant=string(slots=["{{content}}<|im_end|>\n"]),
        format_system=CheckedSystem(slots=["<|im_start|>system\n{{content}}<|im_end|>\n"]),
        format_function=function(slots=["{{content}}<|im_end|>\n"], tool_format="qwen"),
        format_observation=string(
            slots=[
                "<|im_start|>user\n<tool_response>\n{{content}}\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
            ]
        ),
        format_tools=CheckedTools(tool_format="qwen"),
        default_system="You are a helpful assistant.",
        stop_words=["<|im_end|>"],
        replace_eos=True,
        mm_plugin=upstream.get_mm_plugin("chatts"),
    )
    return "registered"


class CheckedSystem(StringFormatter):  # type: ignore[misc]
    """A system prompt of any data: one that holds control tokens or markers is refused, whoever wrote it."""

    def apply(self, **kwargs: Any) -> Any:
        text = kwargs.get("content", "")
        refuse_control_tokens(text, by_model=True)  # the tools' own frames are explained in it
        _refuse_markers(text)
        return super().apply(**kwargs)


class CheckedTools(ToolFormatter):  # type: ignore[misc]
    """Tools likewise, which are decoded and written anew."""

    def apply(self, **kwargs: Any) -> Any:
        text = kwargs.get("content", "")
        refuse_control_tokens(text)
        _refuse_markers(text)
        return super().apply(**kwargs)


def _refuse_markers(text: str) -> None:
    if held := _ANY_MARKER.search(unescaped(text)):
        raise ValueError(f"found {held[0]} in a system prompt or in tools; expected it by user")


def expand_messages(
    messages: Sequence[dict[str, str]], series: Sequence[FloatArray], patch_size: int
) -> list[dict[str, str]]:
    """Returns the messages with each marker replaced by its series' description and one ``<ts>`` a patch.

    LLaMA-Factory's placeholder for an audio counts as a marker beside ``<ts><ts/>``: its chat and API write it.

    Raises:
        ValueError: markers and series differ in number, a ``<ts>`` stands alone, a marker stands in an
            answer, or a text holds a control token.
    """
    for message in messages:
        refuse_control_tokens(message["content"], by_model=message.get("role") == "assistant")
        if message.get("role") in _ANSWERING and (held := _ANY_MARKER.search(unescaped(message["content"]))):
            raise ValueError(f"found {held[0]} in a message by {message['role']}; expected it by user")
    messages = _without_engines_markers(messages, len(series))
    found = sum(len(_MARKERS.findall(message["content"])) for message in messages)
    if found != len(series):
        raise ValueError(
            f"found {found} markers ({MARKER} or {AUDIO_PLACEHOLDER}) in the messages and {len(series)} series; "
            "expected one marker for each series"
        )
    rest = iter(series)
    expanded = deepcopy(list(messages))
    for message in expanded:
        message["content"] = "".join(_parts(_MARKERS.split(message["content"]), rest, patch_size))
    return expanded


def _without_engines_markers(messages: Sequence[dict[str, str]], series: int) -> Sequence[dict[str, str]]:
    """Returns the messages without the placeholders that LLaMA-Factory's chat engine put in front of the first one.

    It does so where it finds none of its own, and does not know that ``<ts><ts/>`` marks every series already.
    """
    front, contents = AUDIO_PLACEHOLDER * series, "".join(message["content"] for message in messages)
    counts = contents.count(MARKER), contents.count(AUDIO_PLACEHOLDER)
    if not series or counts != (series, series) or not messages[0]["content"].startswith(front):
        return messages
    return [{**messages[0], "content": messages[0]["content"].removeprefix(front)}, *messages[1:]]


def _parts(parts: list[str], series: Iterator[FloatArray], patch_size: int) -> Iterator[str]:
    for position, part in enumerate(parts):
        if position % 2:  # re.split puts the matches at odd places
            yield expand(next(series), patch_size)
        elif "<ts>" in part or "<ts/>" in part:
            raise ValueError(f"found a single <ts> or <ts/> in a message; expected {MARKER}, once for each series")
        else:
            yield part


class ChatTSPlugin(BasePlugin):  # type: ignore[misc]
    """Sees ``audios`` as series: lists of numbers, or CSV files in chat."""

    reads_series = True

    def process_messages(
        self, messages: Any, images: Any, videos: Any, audios: Any, processor: Any
    ) -> list[dict[str, str]]:
        require()
        _refuse(images, videos)
        _require_checkpoint(audios, processor)
        series = [_read(item) for item in audios]
        for one in series:
            if len(one) > processor.max_series_length:
                raise ValueError(
                    f"found a series of {len(one)} points; the encoder of this checkpoint places "
                    f"{processor.max_series_length} (max_sequence_length): downsample it or cut it into windows"
                )
        return expand_messages(messages, series, getattr(processor, "patch_size", 1))

    def process_token_ids(
        self,
        input_ids: list[int],
        labels: list[int] | None,
        images: Any,
        videos: Any,
        audios: Any,
        tokenizer: Any,
        processor: Any,
    ) -> tuple[list[int], list[int] | None]:
        return input_ids, labels

    def get_mm_inputs(
        self,
        images: Any,
        videos: Any,
        audios: Any,
        imglens: Any,
        vidlens: Any,
        audlens: Any,
        batch_ids: Any,
        processor: Any,
    ) -> dict[str, torch.Tensor]:
        _refuse(images, videos)
        _require_checkpoint(audios, processor)
        series = [_read(item) for item in audios]
        if not series:  # a <ts> in a chat's text is for the model to refuse
            return {}
        check_tokens(series, batch_ids, processor)
        return {"timeseries": torch.from_numpy(encode(series))}


def _read(item: Any) -> FloatArray:
    if isinstance(item, (list, tuple, np.ndarray)):
        return as_series(item)
    if not isinstance(item, (str, Path)):
        raise ValueError(f"found a series in {type(item).__name__}; expected a list of numbers or a CSV file's path")
    return read_series(item).values  # a file that a user of LLaMA-Factory's chat attached


def _require_checkpoint(audios: Any, processor: Any) -> None:
    if audios and not hasattr(processor, "max_series_length"):
        raise ValueError(
            "Template `chatts` got series, but the model is no ChatTS checkpoint (no `ts` in its config.json). "
            "Set `model_name_or_path` to ChatTS-14B or ChatTS-8B."
        )


def check_tokens(series: Sequence[Any], batch_ids: Any, processor: Any) -> None:
    """Raises ValueError where tokens and series of a batch do not belong together.

    Nobody else looks at what ``tokenized_path`` holds.
    """
    if not batch_ids or not hasattr(processor, "max_series_length"):
        return
    token = processor.tokenizer.convert_tokens_to_ids(PATCH_TOKEN)
    found = sum(list(ids).count(token) for ids in batch_ids)
    expected = sum(patch_count(len(one), processor.patch_size) for one in series)
    if found != expected:
        raise ValueError(
            f"found {found} {PATCH_TOKEN} tokens in a batch and {expected} patches of its {len(series)} series: these "
            "records were tokenised without this plugin or for another checkpoint; delete `tokenized_path`, or name "
            "another one"
        )


def _refuse(images: Any, videos: Any) -> None:
    if images or videos:
        raise ValueError("Template `chatts` reads series, not images or videos; put the data in `timeseries`.")
