"""Prompts: the place of a picture becomes the place of a series."""

import re
from collections.abc import Sequence
from pathlib import Path

from llamafactory_ext.errors import GdshError, excerpt


IMAGE = "<image>"
MARKER = "<ts><ts/>"
ASKING = "detect.json"
"""The file beside a model that says how it was taught to be asked."""

_CONTROL = re.compile(r"<\|\w+\|>")  # all special tokens of Qwen look so: <|im_end|>, <|endoftext|>, <|image_pad|>
_FRAMES = re.compile(r"<\|\w+\|>|</?(?:tool_call|tool_response|think)>")  # no special tokens, and tokens all the same

_ESCAPE = re.compile(r"\\+(?:u([0-9a-fA-F]{4})|(/))")


def asking_beside(data: Path) -> Path:
    """Returns where the same is said of a data set's file: ``train.detect.json`` beside ``train.jsonl``."""
    return data.with_name(f"{data.stem}.{ASKING}")


def place_markers(messages: Sequence[str], series: int) -> tuple[list[str], bool]:
    """Turn every `<image>` of a record's user texts into `<ts><ts/>`, one marker for each of its `series`.

    Where the texts name no place at all and there is one series, the marker goes in front of the first text,
    on a line of its own; the flag says so.

    Raises:
        GdshError: markers and series differ in number, or half a marker is left over.
    """
    placed = [text.replace(IMAGE, MARKER) for text in messages]
    images = sum(text.count(IMAGE) for text in messages)
    markers = sum(text.count(MARKER) for text in placed)
    if any("<ts>" in rest or "<ts/>" in rest for rest in (text.replace(MARKER, "") for text in placed)):
        raise GdshError(f"half a marker in the prompt; expected {MARKER} whole, once for each series: complete it")
    if markers == 0 and series == 1 and placed:
        return [f"{MARKER}\n{placed[0]}", *placed[1:]], True
    if markers != series:
        found = f"{images} {IMAGE}" + (f" and {markers - images} {MARKER}" if markers > images else "")
        raise GdshError(
            f"{found} but {series} series; expected one for each series: "
            "add or remove them in the user's text, or correct the list of pictures"
        )
    return placed, False


def unescaped(text: str) -> str:
    """Returns the text with JSON's escapes of ASCII characters spelt out, as far as a token could be made of them.

    LLaMA-Factory decodes calls of functions, and tools, after they have been looked through, and writes them anew.
    """
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda found: found[2] or _ascii(found[0], int(found[1], 16)), text)


def _ascii(escape: str, code: int) -> str:
    return chr(code) if code < 128 else escape


def refuse_control_tokens(text: str, by_model: bool = False) -> None:
    """Refuse what the tokenizer takes for a token of its own wherever it stands: the text would end its turn there.

    Arguments:
        by_model: the text is an answer, which may hold thoughts and calls of its own.

    Raises:
        GdshError: names the token and its place.
    """
    pattern = _CONTROL if by_model else _FRAMES
    found = pattern.search(text)
    if found is None and (text := unescaped(text)):
        found = pattern.search(text)
    if found:
        raise GdshError(
            f"the control token {found[0]} in a text, at character {found.start()}: {excerpt(text, found.start())}; "
            "it would end the turn or begin another one: write it in other words"
        )
