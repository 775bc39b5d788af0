"""Around every request: headers of every answer, its count, limits of bodies, and an end for errors that nobody foresaw."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.metrics import Metrics
from api.problems import ProblemError, unavailable
from etl.log import logger

LARGEST_BODY = 2_000_000
"""Bytes of one request's body."""

DRAINED = 8_000_000
"""Bytes of a body that are read, and dropped, before it is refused as too large: a client that still writes would not see the answer."""

BODIES = 64_000_000
"""Bytes of all bodies under way."""

BODY_SECONDS = 10
"""How long a body may take to come."""

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))

HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]
POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
TLS_ONLY = (b"strict-transport-security", b"max-age=31536000")


Endpoint = Callable[[Request], Awaitable[Response]]


class Guard:
    """The outermost ASGI application.

    Parameters
    ----------
    app
        Serves everything else.
    metrics
        Where answers are counted.
    direct
        Endpoints by method and path that are called at once: on the way to them the framework would spend as much as they do.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, direct: Mapping[tuple[str, str], Endpoint]) -> None:
        self._app, self._metrics, self._direct = app, metrics, direct

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        endpoint = self._direct.get((scope["method"], scope["path"]))
        route = scope["path"] if endpoint else "none"

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"]
                headers += HEADERS
                if not any(name == POLICY[0] for name, _ in headers):
                    headers.append(POLICY)
                if scope["scheme"] == "https":
                    headers.append(TLS_ONLY)
            await send(message)

        try:
            if endpoint is None:
                await self._app(scope, receive, sent)
                route = getattr(scope.get("route"), "path", route)
            else:
                await (await _answer(endpoint, Request(scope, receive)))(scope, receive, sent)
        except Exception as error:
            # Where, not what: an exception's text may hold what came in.
            place = error.__traceback__
            while place is not None and place.tb_next is not None:
                place = place.tb_next
            where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place is not None else ""
            logger.error("a request failed: a defect", error=type(error).__name__, where=where)
            if not status:
                await ProblemError(500, "this is a defect; the log names its place").response()(scope, receive, sent)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.answered(route, method, status, time.perf_counter() - started)


async def _answer(endpoint: Endpoint, request: Request) -> Response:
    try:
        return await endpoint(request)
    except ProblemError as problem:
        return problem.response()


class Bodies:
    """Bodies of requests, bounded one by one and together."""

    def __init__(self, largest: int = LARGEST_BODY, together: int = BODIES, seconds: float = BODY_SECONDS) -> None:
        self._largest, self._together, self._seconds = largest, together, seconds
        self._held = 0

    @contextmanager
    def room(self) -> Iterator[list[int]]:
        """Count what a request holds until it is answered."""
        held = [0]
        try:
            yield held
        finally:
            self._held -= held[0]

    async def read(self, request: Request, held: list[int]) -> bytes:
        """Read a body.

        Raises
        ------
        ProblemError
            413 as soon as it is too large, 408 when it is too slow, 503 when all of them together are too many.
        """
        close = {"Connection": "close"}
        too_large = ProblemError(413, f"a body has {self._largest:,} bytes at most; send several", close)
        length = request.headers.get("content-length", "0")
        if len(length) > 12 or not length.isdecimal() or int(length) > DRAINED:
            raise too_large
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message: dict[str, Any] = dict(await request.receive())
                    if message["type"] == "http.disconnect":
                        raise ProblemError(400, "the body ended early", close)
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    if size > self._largest:
                        chunks.clear()
                        if size > DRAINED or not message.get("more_body", False):
                            raise too_large
                        continue
                    held[0] += len(chunk)
                    self._held += len(chunk)
                    if self._held > self._together:
                        raise unavailable("too many bodies are under way; send the same again")
                    chunks.append(chunk)
                    if not message.get("more_body", False):
                        return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        except TimeoutError:
            raise ProblemError(408, f"the body took longer than {self._seconds:g} seconds", close) from None
