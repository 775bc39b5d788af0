"""Real receivers of alerts for tests: an HTTP server and an SMTP server that keep what they get."""

from __future__ import annotations

import socket
import socketserver
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword


@dataclass
class Http:
    """What an HTTP server got; `answers` are its next status codes, then 204."""

    url: str = ""
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answers: deque[int] = field(default_factory=deque)
    before: Callable[[], None] = lambda: None


@contextmanager
def http_server(port: int = 0) -> Iterator[Http]:
    got = Http()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.requests.append((dict(self.headers), body))
            got.before()
            status = got.answers.popleft() if got.answers else 204
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", got.url)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    got.url = f"http://127.0.0.1:{server.server_port}/alerts"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield got
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Smtp:
    """What an SMTP server got; `answers` are its next replies to a mail, then 250."""

    port: int = 0
    mails: list[Envelope] = field(default_factory=list)
    answers: deque[str] = field(default_factory=deque)

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:  # noqa: N802
        self.mails.append(envelope)
        return self.answers.popleft() if self.answers else "250 taken"


@contextmanager
def smtp_server(password: str | None = None, tls: ssl.SSLContext | None = None) -> Iterator[Smtp]:
    """A server that, with a password, takes mails from who knows it only, and, with TLS, after STARTTLS only."""
    got = Smtp()

    def authenticate(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        return AuthResult(success=isinstance(data, LoginPassword) and data.password == (password or "").encode(), handled=False)

    required: dict[str, Any] = (
        {"authenticator": authenticate, "auth_required": True, "auth_require_tls": tls is not None} if password else {}
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        got.port = free.getsockname()[1]
    controller = Controller(got, hostname="127.0.0.1", port=got.port, tls_context=tls, require_starttls=tls is not None, **required)
    controller.start()
    try:
        yield got
    finally:
        controller.stop()


def until(holds: Callable[[], object], seconds: float = 20) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


@contextmanager
def trickling(first: bytes, one: bytes) -> Iterator[int]:
    """The port of a server that never ends an answer: a beginning, then some bytes after each tenth of a second."""
    stop = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                self.request.sendall(first)
                while not stop.wait(0.1):
                    self.request.sendall(one)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        stop.set()
        server.shutdown()
        server.server_close()
        thread.join()
