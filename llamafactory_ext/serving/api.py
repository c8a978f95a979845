"""Series in ``llamafactory-cli api``: given where LLaMA-Factory takes audio; what is wrong is refused with a reason.

Wraps ``create_app`` of ``llamafactory.api.app`` and answers in the place of its route; the answer itself is made by
upstream. Checked on 0.9.5. Servers of other models are left alone.
"""

import asyncio
import functools
import gc
import json
import threading
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from llamafactory.api.chat import create_chat_completion_response, create_stream_chat_completion_response
from llamafactory.api.common import ALLOW_LOCAL_FILES, SAFE_MEDIA_PATH
from llamafactory.api.protocol import ChatCompletionResponse
from llamafactory.extras import logging
from sse_starlette import EventSourceResponse

from llamafactory_ext.serving.guard import escape_logs, guard
from llamafactory_ext.serving.prompt import Prompt, SeriesRequest, prepare
from llamafactory_ext.serving.sources import SourceError
from llamafactory_ext.serving.streams import engine_for, raising


_ROUTE = "/v1/chat/completions"
FILLED_HEADER = "x-interpolated-values"
"""Of an answer: how many values of its series were missing, and interpolated."""
_SHOWN = 20  # faults of a body that an answer lists
_LOOK = 0.25  # seconds between two looks whether a client is still there

logger = logging.get_logger("llamafactory.ext")


def install_app(upstream: Any) -> str | None:
    """Wraps ``create_app``: a guard in front, our answers, and faults of a body's shape told without the body."""
    create_app = upstream.create_app

    @functools.wraps(create_app)
    def create_app_for_series(chat_model: Any) -> Any:
        app = create_app(chat_model)
        if reads_series(chat_model):
            escape_logs(logging.get_logger("llamafactory"))
            warning = guard(app)
            if warning:
                logger.warning_rank0(warning)
            app.add_exception_handler(RequestValidationError, _tell_faults)
            _answer_with_series(app, chat_model)
            # What is there now stays until the end. Looking through all of it for what is not used any more, as
            # upstream does every five minutes in the event loop, would hold every request for half a second.
            gc.collect()
            gc.freeze()
        return app

    upstream.create_app = create_app_for_series
    return "wrapped"


def reads_series(chat_model: Any) -> bool:
    """True where the model's template is ours."""
    return getattr(chat_model.engine.template.mm_plugin, "reads_series", False)


def _answer_with_series(app: Any, chat_model: Any) -> None:
    """Puts our function in the place of upstream's route; its dependencies stay."""
    (route,) = (one for one in app.router.routes if getattr(one, "path", None) == _ROUTE)
    app.router.routes.remove(route)

    async def create_chat_completion(body: SeriesRequest, request: Request, response: Response) -> Any:
        if not chat_model.engine.can_generate:
            raise HTTPException(405, "Not allowed")
        prompt = await asyncio.to_thread(_prepare, body, chat_model)
        filled = {FILLED_HEADER: str(prompt.filled)} if prompt.filled else {}
        response.headers.update(filled)
        stop = threading.Event()
        answering = _with_series(chat_model, prompt, stop)
        if body.stream:
            chunks = _telling(create_stream_chat_completion_response(prompt.request, answering), stop)
            return EventSourceResponse(chunks, media_type="text/event-stream", sep="\n", headers=filled)
        return await _while_there(create_chat_completion_response(prompt.request, answering), request, stop)

    app.add_api_route(
        _ROUTE,
        create_chat_completion,
        methods=["POST"],
        response_model=ChatCompletionResponse,
        dependencies=route.dependencies,
    )


async def _tell_faults(request: Request, error: RequestValidationError) -> JSONResponse:
    """Says what is wrong with a body's shape. Upstream repeats the body, and fails to where JSON can't hold it."""
    faults = [{"loc": fault["loc"], "msg": _message(fault), "type": fault["type"]} for fault in error.errors()]
    if len(faults) > _SHOWN:
        faults[_SHOWN:] = [{"loc": ["body"], "msg": f"… and {len(faults) - _SHOWN} more", "type": "more"}]
    return JSONResponse({"detail": faults}, 422)


def _message(fault: Any) -> str:
    where = fault.get("ctx", {}).get("error")  # what is wrong with a text that is no JSON
    return f"{fault['msg']}: {where}" if where else str(fault["msg"])


def _prepare(body: SeriesRequest, chat_model: Any) -> Prompt:
    folder = Path(SAFE_MEDIA_PATH) if ALLOW_LOCAL_FILES and SAFE_MEDIA_PATH else None
    try:
        return prepare(body, chat_model.engine, folder)
    except SourceError as err:
        raise HTTPException(err.status, str(err)) from err


def _with_series(chat_model: Any, prompt: Prompt, stop: threading.Event) -> Any:
    """Returns the chat model of one request: it hands on the series, of which upstream saw only the places."""
    engine, series = engine_for(chat_model.engine, prompt.tokens, stop), prompt.series or None

    async def achat(messages: Any, system: Any, tools: Any, *media: Any, **settings: Any) -> Any:
        return await engine.chat(messages, system, tools, None, None, series, **settings)

    def astream_chat(messages: Any, system: Any, tools: Any, *media: Any, **settings: Any) -> AsyncIterator[str]:
        return raising(engine.stream_chat(messages, system, tools, None, None, series, **settings))

    return SimpleNamespace(engine=engine, achat=achat, astream_chat=astream_chat)


async def _while_there(answer: Awaitable[Any], request: Request, stop: threading.Event) -> Any:
    """Waits for an answer; where the client leaves meanwhile, no more of it is generated."""
    task = asyncio.ensure_future(answer)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=_LOOK)
            if not task.done() and not stop.is_set() and await request.is_disconnected():
                stop.set()
        return task.result()
    finally:
        stop.set()


async def _telling(chunks: AsyncIterator[str], stop: threading.Event) -> AsyncIterator[str]:
    """Yields a stream's chunks; where it fails, the last one says so, as OpenAI's clients expect it."""
    try:
        async for chunk in chunks:
            yield chunk
    except Exception as err:  # the status has been sent: an exception would only break the connection
        logger.error("A stream has failed.", exc_info=True)
        yield json.dumps({"error": {"message": str(err), "type": "server_error", "code": 500}}, ensure_ascii=False)
    finally:
        stop.set()
