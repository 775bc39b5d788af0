"""Conversations over the network with an end: a time limit for each step is none for a server that says one byte a second."""

from __future__ import annotations

import contextlib
import http.client
import smtplib
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any


class Deadline:
    """An end that all connections of one conversation share, from the look-up of a name to the last byte.

    Parameters
    ----------
    seconds
        How long the conversation may take; at its end its connections are cut, whatever they are doing.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._twins: list[socket.socket] = []
        self.is_over = False
        """Whether it had to cut the conversation."""

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Hold the conversation within this block.

        Raises
        ------
        TimeoutError
            When it was cut.
        """
        timer = threading.Timer(self._end - time.monotonic(), self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        except Exception as error:
            if self.is_over:
                raise TimeoutError("the conversation took too long") from error
            raise
        finally:
            timer.cancel()
            with self._lock:
                for twin in self._twins:
                    twin.close()
                self._twins.clear()
        if self.is_over:
            raise TimeoutError("the conversation took too long")

    def _cut(self) -> None:
        with self._lock:
            self.is_over = True
            for twin in self._twins:
                # It may have ended by itself.
                with contextlib.suppress(OSError):
                    twin.shutdown(socket.SHUT_RDWR)

    def _left(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the conversation took too long")
        return left

    def connect(self, address: tuple[str, int], *_: object) -> socket.socket:
        """Return a connection to an address; as `socket.create_connection`, with this end."""
        failed: OSError = OSError("the name has no address")
        for family, kind, protocol, _name, place in self._addresses(address):
            made = socket.socket(family, kind, protocol)
            try:
                made.settimeout(self._left())
                made.connect(place)
                self._watch(made)
            except OSError as error:
                made.close()
                failed = error
            else:
                return made
        raise failed

    def _watch(self, made: socket.socket) -> None:
        # TLS takes the socket itself away; a second handle on the same connection stays good for cutting it.
        with self._lock:
            if self.is_over:
                raise TimeoutError("the conversation took too long")
            self._twins.append(made.dup())

    def _addresses(self, address: tuple[str, int]) -> list[tuple[Any, ...]]:
        # The system's resolver knows no end of ours: it is left to its own one.
        found: Future[list[tuple[Any, ...]]] = Future()

        def look_up() -> None:
            try:
                found.set_result(list(socket.getaddrinfo(*address, type=socket.SOCK_STREAM)))
            except Exception as error:
                found.set_exception(error)

        threading.Thread(target=look_up, daemon=True).start()
        return found.result(self._left())

    def http(self, tls: ssl.SSLContext | None = None) -> list[urllib.request.BaseHandler]:
        """Return handlers for `urllib.request.build_opener` whose connections have this end."""
        made: list[urllib.request.BaseHandler] = [_Http(self)]
        return made if tls is None else [*made, _Https(self, tls)]

    def smtp(self, host: str, port: int, timeout: float) -> smtplib.SMTP:
        """Return a conversation with a mail server that has this end."""
        return _Smtp(self, host, port, timeout)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, req: urllib.request.Request) -> Any:
        def connection(host: str, **named: Any) -> http.client.HTTPConnection:
            made = http.client.HTTPConnection(host, **named)
            made.__dict__["_create_connection"] = self._deadline.connect
            return made

        return self.do_open(connection, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, deadline: Deadline, tls: ssl.SSLContext) -> None:
        super().__init__(context=tls)
        self._deadline, self._tls = deadline, tls

    def https_open(self, req: urllib.request.Request) -> Any:
        def connection(host: str, **named: Any) -> http.client.HTTPSConnection:
            made = http.client.HTTPSConnection(host, context=self._tls, **named)
            made.__dict__["_create_connection"] = self._deadline.connect
            return made

        return self.do_open(connection, req)


class _Smtp(smtplib.SMTP):
    def __init__(self, deadline: Deadline, host: str, port: int, timeout: float) -> None:
        self._deadline = deadline
        super().__init__(host, port, timeout=timeout)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:  # noqa: ARG002
        return self._deadline.connect((host, port))
