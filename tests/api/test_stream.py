"""The stream job beside its queries: its port, and its sign of life."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from api import meters, stream
from etl.errors import RefusedError, UnavailableError
from etl.settings import settings
from etl.stack import control, serve
from etl.stack.servers import STALE_SECONDS, heartbeat, one_server


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("WAREHOUSE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WAREHOUSE_PORT_OFFSET", "0")
    settings.cache_clear()
    yield
    settings.cache_clear()


def test_a_metrics_port_that_is_taken_is_told_before_the_stack_starts_and_by_the_job(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv("WAREHOUSE_STREAM_METRICS_PORT", str(port))
        settings.cache_clear()
        with pytest.raises(RefusedError, match=rf"port {port} \(stream_metrics of stream\) is taken by"):
            control._refuse_what_cannot_work([one_server("stream")])
        with pytest.raises(RefusedError, match=rf"port {port} \(stream_metrics\) cannot be opened: Address already in use"):
            meters.serve()


def test_a_job_that_reads_its_history_lives_however_long_it_takes():
    with pytest.raises(UnavailableError):
        serve.check("stream")
    with stream.beating():
        for _ in range(2):
            deadline = time.monotonic() + 10
            while True:
                try:
                    serve.check("stream")
                    break
                except UnavailableError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            long_ago = time.time() - STALE_SECONDS - 1
            os.utime(heartbeat("stream"), (long_ago, long_ago))
    os.utime(heartbeat("stream"), (long_ago, long_ago))
    with pytest.raises(UnavailableError, match="stream is not ready"):
        serve.check("stream")
