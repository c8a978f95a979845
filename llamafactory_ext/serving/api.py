"""Series in ``llamafactory-cli api``: given where LLaMA-Factory takes audio; what is wrong is refused with a reason.

Wraps ``create_app`` and the two functions that answer, in ``llamafactory.api.app``. Checked on 0.9.5. Servers of
other models are left alone.
"""

import asyncio
import functools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from llamafactory.api.common import ALLOW_LOCAL_FILES, SAFE_MEDIA_PATH
from llamafactory.extras import logging

from llamafactory_ext.series import FloatArray
from llamafactory_ext.serving.prompt import Prompt, prepare
from llamafactory_ext.serving.sources import SourceError
from llamafactory_ext.serving.streams import end_failed_streams, raising


MAX_BODY = 32 << 20
"""Bytes of a request."""

_SHOWN = 20  # faults of a body that an answer lists

logger = logging.get_logger("llamafactory.ext")


def install_app(upstream: Any) -> str | None:
    """Wraps ``create_app``: a limit on bodies, and faults of their shape told without the body itself."""
    create_app = upstream.create_app

    @functools.wraps(create_app)
    def create_app_for_series(chat_model: Any) -> Any:
        app = create_app(chat_model)
        if reads_series(chat_model):
            end_failed_streams(chat_model.engine)
            app.add_middleware(BodyLimit, limit=MAX_BODY)
            app.add_exception_handler(RequestValidationError, _tell_faults)
        return app

    upstream.create_app = create_app_for_series
    return "wrapped"


def install_answers(upstream: Any) -> str | None:
    """Wraps ``create_chat_completion_response``."""
    create = upstream.create_chat_completion_response

    @functools.wraps(create)
    async def create_with_series(request: Any, chat_model: Any) -> Any:
        if not reads_series(chat_model):
            return await create(request, chat_model)
        prompt = await asyncio.to_thread(_prepare, request, chat_model)
        return await create(prompt.request, _with_series(chat_model, prompt.series))

    upstream.create_chat_completion_response = create_with_series
    return "wrapped"


def install_streams(upstream: Any) -> str | None:
    """Wraps ``create_stream_chat_completion_response``, which upstream calls before the response begins."""
    create = upstream.create_stream_chat_completion_response

    @functools.wraps(create)
    def create_with_series(request: Any, chat_model: Any) -> AsyncIterator[str]:
        if not reads_series(chat_model):
            chunks: AsyncIterator[str] = create(request, chat_model)
            return chunks
        prompt = _prepare(request, chat_model)
        return _telling(create(prompt.request, _with_series(chat_model, prompt.series)))

    upstream.create_stream_chat_completion_response = create_with_series
    return "wrapped"


def reads_series(chat_model: Any) -> bool:
    """True where the model's template is ours."""
    return getattr(chat_model.engine.template.mm_plugin, "reads_series", False)


class BodyLimit:
    """ASGI middleware: a body of more than ``limit`` bytes is read to its end, not kept, and refused with 413."""

    def __init__(self, app: Any, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        size = 0

        async def receive_bounded() -> Any:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size <= self.limit:
                return message
            # A client that is still sending would not see the answer. One that sends without end need not.
            while message.get("more_body") and size <= 4 * self.limit:
                message = await receive()
                size += len(message.get("body", b""))
            raise HTTPException(413, f"found a body over {self.limit:,} bytes; send fewer or shorter series")

        await self.app(scope, receive_bounded, send)


async def _tell_faults(request: Request, error: RequestValidationError) -> JSONResponse:
    """Tells what is wrong with a body's shape. Upstream repeats the body, and fails to where JSON can't hold it."""
    faults = [{"loc": fault["loc"], "msg": _message(fault), "type": fault["type"]} for fault in error.errors()]
    if len(faults) > _SHOWN:
        faults[_SHOWN:] = [{"loc": ["body"], "msg": f"… and {len(faults) - _SHOWN} more", "type": "more"}]
    return JSONResponse({"detail": faults}, 422)


def _message(fault: Any) -> str:
    where = fault.get("ctx", {}).get("error")  # what is wrong with a text that is no JSON
    return f"{fault['msg']}: {where}" if where else str(fault["msg"])


def _prepare(request: Any, chat_model: Any) -> Prompt:
    folder = Path(SAFE_MEDIA_PATH) if ALLOW_LOCAL_FILES and SAFE_MEDIA_PATH else None
    try:
        return prepare(request, chat_model.engine, folder)
    except SourceError as err:
        raise HTTPException(err.status, str(err)) from err


def _with_series(chat_model: Any, series: list[FloatArray]) -> Any:
    """Returns the chat model of one request: it hands on the series, of which upstream saw only the places."""

    async def achat(messages: Any, system: Any, tools: Any, *media: Any, **settings: Any) -> Any:
        return await chat_model.achat(messages, system, tools, None, None, series or None, **settings)

    def astream_chat(messages: Any, system: Any, tools: Any, *media: Any, **settings: Any) -> AsyncIterator[str]:
        return raising(chat_model.astream_chat(messages, system, tools, None, None, series or None, **settings))

    return SimpleNamespace(engine=chat_model.engine, achat=achat, astream_chat=astream_chat)


async def _telling(chunks: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yields a stream's chunks; where it fails, the last one says so, as OpenAI's clients expect it."""
    try:
        async for chunk in chunks:
            yield chunk
    except Exception as err:  # the status has been sent: an exception would only break the connection
        logger.error("A stream has failed.", exc_info=True)
        yield json.dumps({"error": {"message": str(err), "type": "server_error", "code": 500}}, ensure_ascii=False)
