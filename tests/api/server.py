"""A running API for tests: `python -m api` with keys of its own, and requests to it as bytes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from api import keys
from etl.settings import ROOT

GOOD = {"transaction_id": 7, "customer_id": 2, "terminal_id": 3, "amount": "1.50", "currency": "EUR", "channel": "chip"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Answer:
    """An answer; `told` is its JSON."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def told(self) -> Any:
        return json.loads(self.body)


@dataclass
class Api:
    """One API: its port, its key for everything, its process and what it wrote."""

    port: int
    folder: Path
    environment: dict[str, str]
    key: str = ""
    is_tls: bool = False
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def log(self) -> str:
        return (self.folder / "api.log").read_text()

    def add_key(self, **others: Any) -> str:
        """Write one more key into the file."""
        secret = "cf_" + os.urandom(16).hex()
        path = self.folder / "keys.yaml"
        known = keys.read(path)
        given = {"client": "test", "scopes": list(keys.SCOPES), "rate": 1e6, "burst": 10**6, **others}
        known.append(keys.Key(sha256=keys.hashlib.sha256(secret.encode()).hexdigest(), **given))
        path.write_text(yaml.safe_dump([key.model_dump() for key in known]))
        return secret

    def start(self) -> None:
        with (self.folder / "api.log").open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "api"], cwd=ROOT, env=self.environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                if self.is_tls:
                    socket.create_connection(("127.0.0.1", self.port)).close()
                    return
                if self.ask("GET", "/health/live").status == 200:
                    return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the API did not start:\n{self.log}")
            time.sleep(0.1)

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(sign)
        return self.process.wait(40)

    def ask(self, method: str, path: str, body: Any = None, key: str | None = "", **headers: str) -> Answer:
        """Send one request; the key is everything's unless another, or None, is given."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            given.setdefault("Authorization", f"Bearer {key or self.key}")
        if body is not None:
            given.setdefault("Content-Type", "application/json")
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        try:
            connection.request(method, path, content, given)
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def await_ready(self, is_ready: bool = True, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while (self.ask("GET", "/health/ready").status == 200) != is_ready:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.2)


@contextmanager
def running(folder: Path, is_tls: bool = False, **settings: str) -> Iterator[Api]:
    """Start an API whose settings are the environment's but for these; it is stopped afterwards."""
    port = free_port()
    environment = {**os.environ, "WAREHOUSE_API_KEYS_FILE": str(folder / "keys.yaml"), **settings}
    environment["WAREHOUSE_API_PORT"] = str(port - int(environment.get("WAREHOUSE_PORT_OFFSET", "0")))
    api = Api(port, folder, environment, is_tls=is_tls)
    api.key = api.add_key()
    api.start()
    try:
        yield api
    finally:
        if api.process is not None and api.process.poll() is None:
            api.stop(signal.SIGKILL)
