"""Generations that end when they fail, or when nobody waits for them any more.

LLaMA-Factory generates a stream in a thread of its own; where that raises, upstream waits for the next piece of text
for ever, and since it answers one request at a time (MAX_CONCURRENT), so does every later request. It does not notice
that a client has left, either: all of its tokens are made.
"""

import copy
import threading
import weakref
from collections.abc import AsyncIterator
from typing import Any

import torch
from llamafactory.extras import logging
from transformers import StoppingCriteria, StoppingCriteriaList


logger = logging.get_logger("llamafactory.ext")

_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


class Failure(str):
    """What stopped a generation, in the place of its next piece of text."""


class Stoppable:
    """A model whose ``generate`` ends at the next token once ``stop`` is set; what it raises in a stream becomes the
    stream's last piece. Everything else is the model's own."""

    def __init__(self, model: Any, stop: threading.Event) -> None:
        self._model, self._stop = model, stop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, *arguments: Any, streamer: Any = None, **settings: Any) -> Any:
        criteria = StoppingCriteriaList([*settings.pop("stopping_criteria", []), _Stopped(self._stop)])
        if streamer is not None:
            _threads.add(threading.current_thread())
        try:
            if self._stop.is_set():  # left while it waited for its turn
                settings["generation_config"].max_new_tokens = 1
            return self._model.generate(*arguments, streamer=streamer, stopping_criteria=criteria, **settings)
        except Exception as err:  # whatever it is, whoever waits for the text has to know
            if streamer is None:
                raise
            logger.error("A stream's generation failed.", exc_info=True)
            streamer.on_finalized_text(Failure(f"{type(err).__name__}: {err}"), stream_end=True)
            return None


class _Stopped(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self.stop.is_set(), dtype=torch.bool, device=input_ids.device)


class _Encoded:
    """A template that has made the prompt's tokens already: upstream would make them in the event loop."""

    def __init__(self, template: Any, tokens: list[int]) -> None:
        self._template, self._tokens = template, tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._template, name)

    def encode_oneturn(self, *arguments: Any) -> tuple[list[int], list[int]]:
        return list(self._tokens), []


def engine_for(engine: Any, tokens: list[int], stop: threading.Event) -> Any:
    """Returns upstream's engine as one request sees it: its tokens are made, and its generation can be stopped."""
    if getattr(engine, "model", None) is None or not hasattr(engine.model, "generate"):  # not transformers'
        return engine
    own = copy.copy(engine)
    own.template, own.model = _Encoded(engine.template, tokens), Stoppable(engine.model, stop)
    return own


def end_failed_streams(engine: Any) -> None:
    """Lets a stream of the engine's model end where its generation fails. Safe to call again."""
    model = getattr(engine, "model", None)
    if model is not None and not isinstance(model, Stoppable):
        engine.model = Stoppable(model, threading.Event())


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
