"""One connection of a client: before anything is known of who it is, the head of a request is bounded in size and time."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from api.guard import HEADERS, POLICY
from api.problems import ProblemError, unavailable

LARGEST_HEAD = 64 * 1024
"""Bytes of a request's path and headers, trailers included, counted as HTTP/2 counts them: 32 more for each header."""

HEAD_BYTES = 32

HEAD_SECONDS = 10
"""How long a head may take to come, the first one from the connection on."""

MOST_CONNECTIONS = 500
"""Of all clients; each may hold a head in memory before it has said who it is."""

MOST_AHEAD = 100
"""Requests that a connection may send before the first of them is answered."""


class TooLargeError(Exception):
    """The head is larger than it may be; raised into the parser, which stops there."""


class Connection(HttpToolsProtocol):
    """uvicorn's connection with bounds: its own are those of its other parser only."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head = 0
        # What came and was no body: of a header without an end the parser tells nothing.
        self._framing = 0
        self._refusal = ProblemError(400, "this is no request of HTTP")
        self._waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, or refuse one too many."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            self._refuse(unavailable("too many connections are open; try again"))
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._has_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self._framing += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._framing > LARGEST_HEAD:
            self._refuse(_too_large())
        elif len(self.pipeline) > MOST_AHEAD:
            self.transport.abort()
        elif self._waiting is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()

    def on_url(self, url: bytes) -> None:
        """Take a part of the path."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, of the head or after the body."""
        self._count(len(name) + len(value) + HEAD_BYTES)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Serve the request."""
        self._has_head()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._framing -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request's body."""
        self._head = self._framing = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answer what the parser cannot read."""
        self._refuse(self._refusal)

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > LARGEST_HEAD:
            self._refusal = _too_large()
            raise TooLargeError

    def _await_head(self) -> None:
        self._waiting = self.loop.call_later(HEAD_SECONDS, self._refuse, _too_slow())

    def _has_head(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _refuse(self, problem: ProblemError) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # Its answer is still to come, and this one would be taken for it.
            self.transport.abort()
            return
        answer = problem.response()
        headers = [*answer.raw_headers, *HEADERS, POLICY, (b"connection", b"close")]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[problem.status], lines, bytes(answer.body)))
        self.transport.close()


def _too_large() -> ProblemError:
    return ProblemError(431, f"a head has {LARGEST_HEAD:,} bytes at most, 32 for each header counted in")


def _too_slow() -> ProblemError:
    return ProblemError(408, f"the head took longer than {HEAD_SECONDS} seconds")
