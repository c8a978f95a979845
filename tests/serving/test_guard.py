"""Who may ask a ChatTS server, and what is read before that is known; in this process, with upstream's application."""

import asyncio
import copy
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


CHAT = "/v1/chat/completions"
HELLO = {"model": "x", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


@pytest.fixture(scope="module")
def chat(demo: Path) -> Any:
    from llamafactory.chat import ChatModel

    return ChatModel({"model_name_or_path": str(demo / "model"), "template": "chatts", "infer_backend": "huggingface"})


@pytest.fixture
def serve(chat: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Returns a client of a server with these variables in its environment."""

    def start(**environment: str) -> Any:
        from fastapi.testclient import TestClient
        from llamafactory.api import app

        for name in ("API_KEY", "API_HOST", "API_ALLOWED_HOSTS", "API_ALLOWED_ORIGINS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return TestClient(app.create_app(chat), base_url="http://127.0.0.1:8000")

    return start


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8000", "localhost:8000", "[::1]:8000", "192.168.1.7", "a.localhost"]
)
def test_own_names(host: str, serve: Any) -> None:
    assert serve().get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "[", "1"]
)
def test_another_name_for_this_address(host: str, serve: Any) -> None:
    """A page whose name leads here (DNS rebinding) would be of the same origin for the browser."""
    answer = serve().post(CHAT, json=HELLO, headers={"Host": host})
    assert answer.status_code == 421 and "API_ALLOWED_HOSTS" in answer.json()["detail"]


def test_a_name_that_is_allowed(serve: Any) -> None:
    http = serve(API_ALLOWED_HOSTS="plant.example, b.example")
    assert http.get("/v1/models", headers={"Host": "plant.example:80"}).status_code == 200
    assert http.get("/v1/models", headers={"Host": "c.example"}).status_code == 421
    assert serve(API_ALLOWED_HOSTS="*").get("/v1/models", headers={"Host": "c.example"}).status_code == 200


def test_the_environment_is_read_when_the_server_starts(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """datasets, after a map with several processes, puts a copy in the place of ``os.environ``."""
    monkeypatch.setattr(os, "environ", copy.deepcopy(os.environ))
    http = serve(API_KEY="key", API_ALLOWED_HOSTS="plant.example")
    assert http.get("/docs", headers={"Host": "plant.example"}).status_code == 401


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:3000", "file://"])
@pytest.mark.parametrize("kind", ["application/json", "text/plain", None])
def test_another_page(origin: str, kind: str | None, serve: Any) -> None:
    headers = {"Origin": origin} | ({"Content-Type": kind} if kind else {})
    answer = serve().post(CHAT, content=b"{}", headers=headers)
    assert answer.status_code == 403 and "API_ALLOWED_ORIGINS" in answer.text
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_no_preflight_is_granted(serve: Any) -> None:
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = serve(API_KEY="k").options(CHAT, headers=headers)
    assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers


def test_a_page_that_is_allowed(serve: Any) -> None:
    http = serve(API_ALLOWED_ORIGINS="https://plant.example/")
    headers = {"Origin": "https://plant.example", "Access-Control-Request-Method": "POST"}
    assert http.options(CHAT, headers=headers).headers["access-control-allow-origin"] == "https://plant.example"
    answer = http.post(CHAT, json=HELLO, headers={"Origin": "https://plant.example"})
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://plant.example"
    assert http.post(CHAT, json=HELLO, headers={"Origin": "https://b.example"}).status_code == 403


def test_its_own_page(serve: Any) -> None:
    assert serve().post(CHAT, json=HELLO, headers={"Origin": "http://127.0.0.1:8000"}).status_code == 200


@pytest.mark.parametrize(
    "path", [CHAT, "/v1/models", "/docs", "/redoc", "/openapi.json", "/", "/nope", "/v1/score/evaluation"]
)
@pytest.mark.parametrize(
    "given", [None, "Bearer", "Bearer x", "Basic key", "key", "Bearer ke", "Bearer keys", "bearer \xe4"]
)
def test_everything_asks_for_the_key(path: str, given: str | None, serve: Any) -> None:
    headers = {"Authorization": given.encode("latin-1")} if given else {}
    answer = serve(API_KEY="key").get(path, headers=headers)
    assert (answer.status_code, answer.json()) == (401, {"detail": "Invalid API key."})


def test_the_key(serve: Any) -> None:
    http = serve(API_KEY="key")
    for path in ("/v1/models", "/docs", "/openapi.json"):
        assert http.get(path, headers={"Authorization": "Bearer key"}).status_code == 200
    assert http.post(CHAT, json=HELLO, headers={"Authorization": "Bearer key"}).status_code == 200


def test_the_key_comes_before_the_body(serve: Any) -> None:
    """Of 32 MB that a stranger sends, 1 MiB is taken off the wire, and nothing is kept or parsed."""
    app, read, sent = serve(API_KEY="key").app, list[int](), list[Any]()

    async def receive() -> Any:
        read.append(1 << 16)
        return {"type": "http.request", "body": b"[" * (1 << 16), "more_body": len(read) < 512}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "query_string": b""}
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 401 and sum(read) <= 2 << 20


def test_a_body_that_never_comes(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory_ext.serving import guard

    monkeypatch.setattr(guard, "SLOWEST", 0.05)
    app, sent = serve().app, list[Any]()

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "query_string": b"", "app": app}
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 30))
    assert sent[0]["status"] == 408


@pytest.mark.parametrize(
    ("environment", "warned"),
    [
        ({}, True),
        ({"API_HOST": "0.0.0.0"}, True),
        ({"API_HOST": "192.168.1.7"}, True),
        ({"API_HOST": "plant"}, True),
        ({"API_HOST": "0.0.0.0", "API_KEY": "k"}, False),
        ({"API_HOST": "127.0.0.1"}, False),
        ({"API_HOST": "::1"}, False),
        ({"API_HOST": "localhost"}, False),
    ],
)
def test_without_a_key_on_every_address(environment: dict[str, str], warned: bool, serve: Any, log: Any) -> None:
    serve(**environment)
    assert ("without a key: whoever reaches this machine may ask it" in log.text) is warned


def test_logs_do_not_command_the_terminal() -> None:
    from llamafactory_ext.serving.guard import escape_logs

    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    logger = logging.Logger("a")
    logger.addHandler(Kept())
    escape_logs(logger)
    escape_logs(logger)
    logger.info("a %s\n\tb", "\x1b[2J\x9b2J\u202e\0\r")
    assert lines == ["a \\x1b[2J\\x9b2J\\u202e\\x00\\r\n\tb"]


def test_a_servers_logs_are_escaped(serve: Any) -> None:
    from llamafactory.extras import logging as upstream

    from llamafactory_ext.serving.guard import PrintableFormatter

    serve()
    handlers = upstream.get_logger("llamafactory").handlers
    assert handlers and all(isinstance(handler.formatter, PrintableFormatter) for handler in handlers)


def test_servers_of_other_models_are_upstreams_own(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi.middleware.cors import CORSMiddleware
    from llamafactory.api import app

    from llamafactory_ext.serving import api

    monkeypatch.setattr(api, "reads_series", lambda chat_model: False)
    found = app.create_app(chat)
    assert [one.cls for one in found.user_middleware] == [CORSMiddleware]
