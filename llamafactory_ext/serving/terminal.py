"""Series in ``llamafactory-cli chat``: a CSV file's path or numbers between the two halves of the marker.

    User: What is wrong here? <ts>data/X.PV.csv<ts/>
    User: And here? <ts>[1, 2, 3.5]<ts/>

Wraps ``run_chat`` of ``llamafactory.chat.chat_model``, whose loop reads lines and knows no media. Checked on 0.9.5.
Any file is read that the user can read: it is their terminal.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llamafactory.extras.constants import AUDIO_PLACEHOLDER, IMAGE_PLACEHOLDER

from llamafactory_ext.errors import excerpt
from llamafactory_ext.series import FloatArray
from llamafactory_ext.serving.sources import SourceError, parse_numbers, read_csv
from llamafactory_ext.serving.streams import Failure, end_failed_streams, wait_for_threads


_HINT = "A series is a CSV file or numbers between <ts> and <ts/>: <ts>data/X.PV.csv<ts/>, <ts>[1, 2, 3.5]<ts/>."
_SERIES = re.compile(r"<ts>(.*?)<ts/>")


class Line(str):
    """What the user wrote, a placeholder for each series in it; the ``series`` stay with it in the history."""

    series: tuple[FloatArray, ...] = ()


def install(upstream: Any) -> str | None:
    """Wraps ``run_chat``: its chat model hands series on, its ``input`` reads them."""
    run_chat, chat_model = upstream.run_chat, upstream.ChatModel

    class SeriesChatModel(upstream.ChatModel):  # type: ignore[misc]
        def __init__(self, args: Any = None) -> None:
            super().__init__(args)
            if getattr(self.engine.template.mm_plugin, "reads_series", False):
                end_failed_streams(self.engine)
                upstream.input = functools.partial(ask, self.engine)
                print(_HINT)

        def stream_chat(self, messages: Any, *media: Any, **settings: Any) -> Iterator[str]:
            series = [one for message in messages for one in getattr(message["content"], "series", ())]
            copies = [dict(message) for message in messages]  # the engine writes into the first
            for text in super().stream_chat(copies, audios=series or None, **settings):
                if isinstance(text, Failure):
                    raise RuntimeError(text)
                yield text

    @functools.wraps(run_chat)
    def run_chat_with_series() -> None:
        upstream.ChatModel = SeriesChatModel
        try:
            run_chat()
        finally:
            wait_for_threads()
            upstream.ChatModel = chat_model
            vars(upstream).pop("input", None)

    upstream.run_chat = run_chat_with_series
    return "wrapped"


def ask(engine: Any, prompt: str) -> str:
    """Returns the next line whose series can be read; says what is wrong with the others."""
    while True:
        text = input(prompt)
        try:
            line = read_line(text)
            messages = [{"role": "user", "content": str(line)}]
            engine.template.mm_plugin.process_messages(messages, [], [], list(line.series), engine.processor)
            return line
        except ValueError as err:
            print(f"Not asked: {err}. {_HINT}")


def read_line(text: str) -> Line:
    """Returns the line with its series read.

    Raises:
        SourceError: one of them can't be.
    """
    series: list[FloatArray] = []

    def place(match: re.Match[str]) -> str:
        source = match[1].strip()
        if not source:
            raise SourceError("found nothing between <ts> and <ts/>")
        if source.startswith("["):
            series.append(parse_numbers(source))
        else:
            series.append(read_csv(Path(source).expanduser(), excerpt(source)).values)
        return str(AUDIO_PLACEHOLDER)

    if IMAGE_PLACEHOLDER in text:
        raise SourceError(f"found {IMAGE_PLACEHOLDER}; expected the series itself in its place")
    line = Line(_SERIES.sub(place, text))
    line.series = tuple(series)
    return line
