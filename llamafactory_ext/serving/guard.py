"""Who may ask a server, and how much at once: looked at before a body is read.

LLaMA-Factory's server by itself answers any web page (CORS ``*`` with credentials) under any name, checks the key
after the body has been read and parsed, and shows ``/docs`` without it.
"""

import asyncio
import hmac
import ipaddress
import json
import logging
import os
import socket
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException
from fastapi.middleware.cors import CORSMiddleware

from llamafactory_ext.errors import excerpt, printable


MAX_BODY = 32 << 20
"""Bytes of a request."""

MAX_MARKS = 1 << 20
"""Brackets and quotes of a request: what its JSON can be made of when it is read."""

SLOWEST = 60.0
"""Seconds without a byte of a body that is not there yet."""

_MARKS = (b"[", b"{", b'"')
_DRAINED = 1 << 20  # bytes read of a request that is refused: a client that still sends would not see the answer


def guard(app: Any) -> str | None:
    """Puts the guard in front of a server; returns a warning where anybody may ask it.

    ``API_KEY`` is upstream's. ``API_ALLOWED_HOSTS`` names the server beside its addresses, ``API_ALLOWED_ORIGINS`` the
    web pages that may ask it, both separated by commas; ``*`` is all.
    """
    environment = os.environ  # as it is now: datasets puts a copy in its place after a map with several processes
    hosts, origins = (_names(environment.get(name)) for name in ("API_ALLOWED_HOSTS", "API_ALLOWED_ORIGINS"))
    address = environment.get("API_HOST", "0.0.0.0")
    app.user_middleware[:] = [one for one in app.user_middleware if one.cls is not CORSMiddleware]
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=sorted(origins), allow_methods=["*"], allow_headers=["*"])
    key = environment.get("API_KEY")
    app.add_middleware(Guard, key=key, hosts=hosts | {address.lower(), socket.gethostname().lower()}, origins=origins)
    if key or _is_local(address):
        return None
    return (
        f"This server listens on {address} without a key: whoever reaches this machine may ask it. Set API_KEY, or "
        "API_HOST=127.0.0.1."
    )


class Guard:
    """ASGI middleware: refuses by name, page and key, then bodies that are too large, before they are parsed."""

    def __init__(self, app: Any, key: str | None, hosts: set[str], origins: set[str], limit: int = MAX_BODY) -> None:
        self.app = app
        self.key = key
        self.hosts = hosts
        self.origins = origins
        self.limit = limit

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await _refuse(*refusal, receive, send)
            return
        size, marks, whole = 0, 0, False

        async def receive_bounded() -> Any:
            nonlocal size, marks, whole
            if whole:  # only the client's leaving is waited for now
                return await receive()
            message = await _receive(receive)
            body, whole = message.get("body", b""), not message.get("more_body")
            size, marks = size + len(body), marks + sum(map(body.count, _MARKS))
            if size <= self.limit and marks <= MAX_MARKS:
                return message
            # A client that is still sending would not see the answer. One that sends without end need not.
            while message.get("more_body") and size <= 4 * self.limit:
                message = await _receive(receive)
                size += len(message.get("body", b""))
            if marks > MAX_MARKS:
                raise HTTPException(413, f"found a body of over {MAX_MARKS:,} brackets and quotes; send less at once")
            raise HTTPException(413, f"found a body over {self.limit:,} bytes; send fewer or shorter series")

        await self.app(scope, receive_bounded, send)

    def _refusal(self, scope: Any) -> tuple[int, str] | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", "").lower(), headers.get(b"origin", "").lower()
        if not self._is_own(host):
            return 421, f"found the host {excerpt(host)}; to use this name, start the server with API_ALLOWED_HOSTS"
        own = {f"{scheme}://{host}" for scheme in ("http", "https")}
        if origin and origin not in self.origins | own and "*" not in self.origins:
            return (
                403,
                f"found the page {excerpt(origin)}; to let it ask, start the server with API_ALLOWED_ORIGINS",
            )
        if self.key and scope["method"] != "OPTIONS":
            given = headers.get(b"authorization", "")
            kind, _, credentials = given.partition(" ")
            fits = hmac.compare_digest(credentials.strip().encode(), self.key.encode())
            if not (fits and kind.lower() == "bearer"):
                return 401, "Invalid API key."
        return None

    def _is_own(self, host: str) -> bool:
        """True for addresses, which no page can give a name of its own, and for names that are known."""
        name = _host_name(host)
        if not host or "*" in self.hosts or name in self.hosts or _is_address(name):
            return True
        return name == "localhost" or name.endswith(".localhost")


async def _receive(receive: Any) -> Any:
    try:
        return await asyncio.wait_for(receive(), SLOWEST)
    except TimeoutError:
        raise HTTPException(408, f"no byte of the body came in {SLOWEST:.0f} s; send it at once") from None


async def _refuse(status: int, reason: str, receive: Any, send: Any) -> None:
    size, more = 0, True
    while more and size <= _DRAINED:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"detail": reason}).encode()})


def _names(text: str | None) -> set[str]:
    return {name.strip().lower().rstrip("/") for name in (text or "").split(",") if name.strip()}


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_local(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback if _is_address(address) else address.lower() == "localhost"


class PrintableFormatter(logging.Formatter):
    """Another formatter's lines, in which what a terminal would obey is spelt out: a request is logged as it came."""

    def __init__(self, inner: logging.Formatter | None) -> None:
        super().__init__()
        self.inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        return printable(self.inner.format(record), "\n\t")


def escape_logs(logger: logging.Logger) -> None:
    """Lets a logger's handlers show control characters instead of writing them. Safe to call again."""
    for handler in logger.handlers:
        if not isinstance(handler.formatter, PrintableFormatter):
            handler.setFormatter(PrintableFormatter(handler.formatter))
