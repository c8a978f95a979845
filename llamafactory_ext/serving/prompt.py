"""A request's messages as text, and its series: all that can be wrong with them is found before an answer begins.

Upstream's own reading of a request (``_process_request`` of ``llamafactory.api.chat``, 0.9.5) fetches addresses, opens
what it takes for sound, and meets an item without its field, or a sampling setting that transformers refuses, with a
500; in a stream only after its 200. What is handed on from here holds text alone.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from llamafactory.api.protocol import (
    ChatCompletionRequest,
    ChatMessage,
    FunctionAvailable,
    FunctionCall,
    MultimodalInputItem,
)
from llamafactory.data import Role
from llamafactory.extras import logging
from llamafactory.extras.constants import AUDIO_PLACEHOLDER, IMAGE_PLACEHOLDER
from pydantic import Field

from llamafactory_ext.gdsh import Series, refuse_control_tokens, unescaped
from llamafactory_ext.series import MARKER, FloatArray, patch_count
from llamafactory_ext.serving.sources import SourceError, read_source


MAX_SERIES = 64

MAX_ITEMS = 4096
"""Of a list in a request: messages, their items, calls, tools."""

CHARACTERS_A_TOKEN = 16
"""On average, at most: a text with more for each token that the model places is refused before it is tokenised."""

# What transformers can sample with. LLaMA-Factory takes `presence_penalty` for its `repetition_penalty`.
_RANGES: dict[str, tuple[float, float, str]] = {
    "n": (1, 128, "1 to 128 answers"),
    "max_tokens": (1, 1 << 20, "at least 1"),
    "max_completion_tokens": (1, 1 << 20, "at least 1"),
    "top_p": (0, 1, "0 to 1"),
    "presence_penalty": (0.01, 100, "0.01 to 100, where 1 is none: LLaMA-Factory takes it as repetition_penalty"),
}
_SHAPES = {
    "text": '{"type": "text", "text": "…"}',
    "audio_url": '{"type": "audio_url", "audio_url": {"url": "…"}}',
}
_ASKING, _ANSWERING = ("user", "tool"), ("assistant", "function")
_ROLES = {
    "user": Role.USER.value,
    "tool": Role.OBSERVATION.value,
    "assistant": Role.ASSISTANT.value,
    "function": Role.FUNCTION.value,
}

logger = logging.get_logger("llamafactory.ext")


T = TypeVar("T")
Few = Annotated[list[T], Field(max_length=MAX_ITEMS, fail_fast=True)]  # a million wrong items: one fault


class SeriesMessage(ChatMessage):  # type: ignore[misc]
    content: str | Few[MultimodalInputItem] | None = None
    tool_calls: Few[FunctionCall] | None = None


class SeriesRequest(ChatCompletionRequest):  # type: ignore[misc]
    """Upstream's request with bounded lists, and the newer name of ``max_tokens``."""

    messages: Few[SeriesMessage]
    tools: Few[FunctionAvailable] | None = None
    stop: str | Few[str] | None = None
    max_completion_tokens: int | None = None


@dataclass(frozen=True)
class Prompt:
    """``request``: upstream's, its contents text with one ``<audio>`` for each of the ``series``; its ``tokens``."""

    request: Any
    series: list[FloatArray]
    tokens: list[int]
    filled: int
    """Values that were missing in CSV files, and interpolated."""


def prepare(request: Any, engine: Any, folder: Path | None) -> Prompt:
    """Reads the series out of a request and checks everything that the answer depends on.

    Arguments:
        request: upstream's ``ChatCompletionRequest``; left as it is.
        engine: upstream's chat engine.
        folder: the only one that paths are read under; None forbids them.

    Raises:
        SourceError: the reason, with the place in the request.
    """
    _check_roles([message.role.value for message in request.messages])
    _check_length(request, _positions(engine))
    _check_settings(request)
    read: list[Series] = []
    messages = [_as_text(message, place, read, folder) for place, message in enumerate(request.messages)]
    series, filled = [one.values for one in read], sum(one.filled for one in read)
    wanted = getattr(request, "max_completion_tokens", None) or request.max_tokens
    prepared = request.model_copy(update={"messages": messages, "max_tokens": wanted})
    return Prompt(prepared, series, _encode(prepared, series, engine), filled)


def _check_roles(roles: Sequence[str]) -> None:
    turns = roles[1:] if roles and roles[0] == "system" else roles
    fits = [role in (_ANSWERING if place % 2 else _ASKING) for place, role in enumerate(turns)]
    if len(turns) % 2 == 0 or not all(fits):
        raise SourceError(
            f"messages: found them by {', '.join(roles[:8]) or 'nobody'}; expected one by system if any, then user "
            "and assistant in turns, the last by user"
        )


def _check_length(request: Any, placed: int | None) -> None:
    """Refuses what is too long by any count of tokens: to count those of 4 MiB takes seconds."""
    texts = [text for message in request.messages for text in _texts(message)]
    most = CHARACTERS_A_TOKEN * (placed or 1 << 16)
    found = sum(map(len, texts))
    if found > most:
        raise SourceError(
            f"found texts of {found:,} characters; expected at most {most:,}, {CHARACTERS_A_TOKEN} for each token "
            "that the model places (max_position_embeddings): send less"
        )


def _texts(message: Any) -> Iterator[str]:
    if isinstance(message.content, str):
        yield message.content
    elif message.content:
        yield from (item.text for item in message.content if item.text)
    for call in message.tool_calls or []:
        yield from (call.function.name, call.function.arguments)


def _check_settings(request: Any) -> None:
    try:
        request.model_dump_json()
    except ValueError as err:  # JSON can name one, and neither a tokenizer nor an answer can hold it
        if "surrogate" not in str(err):
            raise SourceError(f"found what is nested too deeply to be written ({err}); expected flat tools") from err
        raise SourceError("found half of a surrogate pair (\\ud800 to \\udfff) in a text; expected Unicode") from err
    for name, (low, high, expected) in _RANGES.items():
        value = getattr(request, name, None)
        if value is not None and not low <= value <= high:  # NaN is in no range
            raise SourceError(f"{name}: found {value}; expected {expected}")
    temperature = request.temperature
    if temperature is not None and temperature != 0 and not 0.01 <= temperature <= 100:
        raise SourceError(f"temperature: found {temperature}; expected 0, which takes the likeliest, or 0.01 to 100")
    if any(tool.function is None for tool in request.tools or []):
        raise SourceError("tools: found one without its function; expected a name, a description and parameters")
    if request.stream and (request.n > 1 or request.tools):
        raise SourceError("stream: found it with several answers (n) or with tools; leave it out, or leave those out")


def _as_text(message: Any, place: int, series: list[Series], folder: Path | None) -> Any:
    """Returns the message with its items joined to one text; its series are added to ``series``."""
    name = f"messages[{place}].content"
    if message.content is None and not message.tool_calls:
        raise SourceError(f"{name}: found none; expected a text or a list of items")
    if message.content is None:
        return message
    parts = list(_parts(message, name, series, folder)) if isinstance(message.content, list) else [message.content]
    text = "".join(part for part in parts if part is not None).replace(MARKER, AUDIO_PLACEHOLDER)
    if message.role.value in _ASKING:  # a prompt as it stands in the data, where the series was a picture
        text = text.replace(IMAGE_PLACEHOLDER, AUDIO_PLACEHOLDER)
    own, marked = parts.count(None), text.count(AUDIO_PLACEHOLDER)
    if own and marked not in (0, own):
        raise SourceError(
            f"{name}: found {marked} markers in its text and {own} series; expected a marker ({MARKER}) for each, or "
            "none: a series then stands where its item stands"
        )
    if not marked:
        text = "".join(AUDIO_PLACEHOLDER if part is None else part for part in parts)
    if message.content == text:
        return message
    return message.model_copy(update={"content": text})


def _parts(message: Any, name: str, series: list[Series], folder: Path | None) -> Iterator[str | None]:
    """Yields the texts of a message in order, and None for a series."""
    for place, item in enumerate(message.content):
        where = f"{name}[{place}]"
        if item.type not in _SHAPES:
            raise SourceError(f"{where}: found {item.type}; expected text, or audio_url with a series")
        value = item.text if item.type == "text" else item.audio_url and item.audio_url.url
        if value is None:
            raise SourceError(f"{where}: found {item.type} without its field; expected {_SHAPES[item.type]}")
        if item.type == "text":
            yield value
            continue
        if message.role.value not in _ASKING:
            raise SourceError(f"{where}: found a series in a message by {message.role.value}; expected it by user")
        if len(series) == MAX_SERIES:
            raise SourceError(f"{where}: found more than {MAX_SERIES} series; ask about fewer at once")
        try:
            read = read_source(value, folder)
        except SourceError as err:
            raise SourceError(f"{where}: {err}", err.status) from err
        if read.filled:
            logger.info_rank0(f"{where}: {read.filled} cells that hold no value are interpolated.")
        series.append(read)
        yield None


def _encode(request: Any, series: list[FloatArray], engine: Any) -> list[int]:
    """Returns the prompt's tokens as the engine would make them, and refuses what the model can't place."""
    messages, placed, wanted = list(request.messages), _positions(engine), request.max_tokens or 1
    patches = sum(patch_count(len(one), getattr(engine.processor, "patch_size", 1)) for one in series)
    if placed is not None and patches > placed:
        raise _too_long(patches, wanted, placed)
    system = messages.pop(0).content if messages[0].role.value == "system" else None
    tools = json.dumps([tool.function.model_dump() for tool in request.tools or []], ensure_ascii=False)
    around = unescaped(f"{system}{tools}")
    if "<ts>" in around or "<ts/>" in around:
        raise SourceError(
            f"found <ts> in a message by system or in a tool; expected {MARKER} in messages by user only"
        )
    try:
        refuse_control_tokens(around)
        turns = engine.template.mm_plugin.process_messages(
            [_turn(message) for message in messages], [], [], series, engine.processor
        )
    except ValueError as err:
        raise SourceError(str(err)) from err
    try:
        turns = [*turns, {"role": Role.ASSISTANT.value, "content": ""}]
        tokens, _ = engine.template.encode_oneturn(engine.tokenizer, turns, system, tools if request.tools else None)
    except (
        ValueError,
        RuntimeError,
        LookupError,
        TypeError,
    ) as err:  # calls of functions that are no JSON, or lack a name
        raise SourceError(f"messages: the template can't write them ({type(err).__name__}: {err})") from err
    if placed is not None and len(tokens) + wanted > placed:
        raise _too_long(len(tokens), wanted, placed)
    return list(tokens)


def _too_long(tokens: int, wanted: int, placed: int) -> SourceError:
    return SourceError(
        f"found a prompt of {tokens:,} tokens, and room for {wanted:,} more asked for; the model places "
        f"{placed:,} (max_position_embeddings): lower max_tokens, or send shorter or fewer series"
    )


def _turn(message: Any) -> dict[str, str]:
    """Returns a message as upstream hands it to the engine."""
    calls = [call.function.model_dump() for call in message.tool_calls or []]
    if calls and message.role.value == "assistant":
        return {"role": Role.FUNCTION.value, "content": json.dumps(calls, ensure_ascii=False)}
    return {"role": _ROLES[message.role.value], "content": message.content or ""}


def _positions(engine: Any) -> int | None:
    """Returns how many tokens the model places; None where another engine does not say."""
    return getattr(getattr(engine.model, "config", None), "max_position_embeddings", None)
