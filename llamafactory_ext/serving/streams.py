"""Streams that end when their generation fails.

LLaMA-Factory generates a stream in a thread of its own; where that raises, upstream waits for the next piece of text
for ever, and since it answers one request at a time (MAX_CONCURRENT), so does every later request.
"""

import functools
import threading
import weakref
from collections.abc import AsyncIterator
from typing import Any

from llamafactory.extras import logging


logger = logging.get_logger("llamafactory.ext")

_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


class Failure(str):
    """What stopped a generation, in the place of its next piece of text."""


def end_failed_streams(engine: Any) -> None:
    """Wraps ``generate`` of the engine's model: what it raises in a stream becomes the stream's last piece."""
    model = getattr(engine, "model", None)
    if model is None or isinstance(model.generate, functools.partial):  # another engine, or wrapped already
        return
    model.generate = functools.partial(_generate, model.generate)


def _generate(generate: Any, *arguments: Any, streamer: Any = None, **settings: Any) -> Any:
    if streamer is not None:
        _threads.add(threading.current_thread())
    try:
        return generate(*arguments, streamer=streamer, **settings)
    except Exception as err:  # whatever it is, whoever waits for the text has to know
        if streamer is None:
            raise
        logger.error("A stream's generation failed.", exc_info=True)
        streamer.on_finalized_text(Failure(f"{type(err).__name__}: {err}"), stream_end=True)
        return None


def wait_for_threads(seconds: float = 5.0) -> None:
    """Waits for the streams' threads, which outlive their text a little; Python is aborted if it leaves meanwhile."""
    for thread in list(_threads):
        thread.join(seconds)


async def raising(texts: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yields the pieces of a stream.

    Raises:
        RuntimeError: the generation has failed.
    """
    async for text in texts:
        if isinstance(text, Failure):
            raise RuntimeError(text)
        yield text
