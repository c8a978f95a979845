"""Prompts: the place of a picture becomes the place of a series."""

import re
from collections.abc import Sequence

from llamafactory_ext.errors import GdshError, excerpt


IMAGE = "<image>"
MARKER = "<ts><ts/>"

_CONTROL = re.compile(r"<\|\w+\|>")  # all special tokens of Qwen look so: <|im_end|>, <|endoftext|>, <|image_pad|>


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


def refuse_control_tokens(text: str) -> None:
    """Refuse what the tokenizer takes for a token of its own wherever it stands: the text would end its turn there.

    Raises:
        GdshError: names the token and its place.
    """
    found = _CONTROL.search(text)
    if found:
        raise GdshError(
            f"the control token {found[0]} in a text, at character {found.start()}: {excerpt(text, found.start())}; "
            "it would end the turn or begin another one: write it in other words"
        )
