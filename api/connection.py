"""One connection of a client: before anything is known of who it is, the head of a request is bounded in size and time."""

from __future__ import annotations

import asyncio
import collections
import ipaddress
import itertools
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from api.guard import HEADERS, POLICY
from api.problems import ProblemError, unavailable

LARGEST_HEAD = 64 * 1024
"""Bytes of a request's path and headers, trailers included, counted as HTTP/2 counts them: 32 more for each header."""

HEAD_BYTES = 32

HEAD_SECONDS = 10
"""How long a head may take to come, from its first byte on."""

IDLE_SECONDS = 3
"""How long a new connection may say nothing."""

MOST_CONNECTIONS = 500
"""Of all clients; each may hold a head in memory before it has said who it is."""

MOST_OF_ONE = 400
"""Of one address (of IPv6 one network of 64 bits): whoever has all of these leaves room for others."""

RESERVE = 32
"""Connections beyond either bound, each for one question about health; of those that ask nothing the oldest makes way."""

HEALTH = b"/health/"

MOST_AHEAD = 100
"""Requests that a connection may send before the first of them is answered."""


class TooLargeError(Exception):
    """The head is larger than it may be; raised into the parser, which stops there."""


class TooManyError(Exception):
    """A connection of the reserve asks for more than health; raised into the parser, which stops there."""


_numbers = itertools.count()


class Connection(HttpToolsProtocol):
    """uvicorn's connection with bounds: its own are those of its other parser only."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._number = next(_numbers)
        self._head = 0
        # What came and was no body: of a header without an end the parser tells nothing.
        self._framing = 0
        self._refusal = ProblemError(400, "this is no request of HTTP")
        self._waiting: asyncio.TimerHandle | None = None
        self._has_begun = False
        self._address = ""
        self._is_reserve = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; one too many asks for health, or makes one way that says nothing, or is refused."""
        super().connection_made(transport)
        self._address = _network(self.client[0] if self.client else "")
        own = [one for one in self._others() if one._address == self._address]
        if len(own) >= MOST_OF_ONE or (len(self._others()) >= MOST_CONNECTIONS and not self._take_a_place()):
            self._is_reserve = True
            if (reserve := self._others(is_reserve=True)) and len(reserve) >= RESERVE:
                silent = next((one for one in reserve if one.cycle is None or one.cycle.response_complete), None)
                (silent or self)._refuse(_too_many())
                if silent is None:
                    return
        self._await_head(IDLE_SECONDS)

    def _others(self, is_reserve: bool = False) -> list[Connection]:
        """Return the other connections that are not closing, the oldest first."""
        known = [one for one in self.connections if isinstance(one, Connection) and one is not self and not one.transport.is_closing()]
        return sorted((one for one in known if one._is_reserve == is_reserve), key=lambda one: one._number)

    def _take_a_place(self) -> bool:
        """Close the oldest connection that has said nothing yet, of the address that has most; False where all work."""
        silent = [one for one in self._others() if one._waiting is not None and not one._has_begun]
        if not silent:
            return False
        counted = collections.Counter(one._address for one in silent)
        most = max(counted, key=lambda address: counted[address])
        if counted[most] < 2 and most != self._address:
            return False
        next(one for one in silent if one._address == most)._refuse(_too_many())
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._has_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        if not self._has_begun:
            self._has_begun = True
            if self._waiting is not None:
                self._has_head()
                self._await_head(HEAD_SECONDS)
        self._framing += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._framing > LARGEST_HEAD:
            self._refuse(_too_large())
        elif len(self.pipeline) > MOST_AHEAD:
            self.transport.abort()
        elif self._waiting is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head(HEAD_SECONDS)

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
        if self._is_reserve and not self.url.startswith(HEALTH):
            self._refusal = _too_many()
            raise TooManyError
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

    def _await_head(self, seconds: float) -> None:
        self._waiting = self.loop.call_later(seconds, self._refuse, _too_slow(seconds))

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


def _too_slow(seconds: float) -> ProblemError:
    return ProblemError(408, f"the head took longer than {seconds:g} seconds")


def _too_many() -> ProblemError:
    return unavailable("too many connections are open; try again")


def _network(address: str) -> str:
    """Return what counts as one address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 6 and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(getattr(found, "ipv4_mapped", None) or found)
