"""The real-time lane under load while its parts are killed at any moment (`bash/test_all.sh`): what was acknowledged is there, once."""

from __future__ import annotations

import datetime as dt
import http.client
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from api import broker
from etl.settings import ROOT, settings
from etl.sql_server import Session
from etl.stack import control, supervision
from tests.api.server import Api, running
from tests.postgres import rows
from tests.stack.test_stream import bank, champion, cleared, column, ids, is_written, lane, spark, to_come, told, wait

__all__ = ["bank", "champion", "cleared", "lane", "spark"]

pytestmark = pytest.mark.slow

SOAK_SECONDS = 150
A_POST = 10
VICTIMS = ("job", "api", "broker")


class Job:
    """The stream job and who starts it again when it ends, as a supervisor does."""

    def __init__(self) -> None:
        self._log = settings().data_dir / "logs" / "stream-test.log"
        self._log.unlink(missing_ok=True)
        self._stopped = threading.Event()
        self.process: subprocess.Popen[bytes]
        self._start()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _start(self) -> None:
        with self._log.open("ab") as out:
            self.process = subprocess.Popen([sys.executable, "-m", "api.stream"], cwd=ROOT, stdout=out, stderr=out)

    def _look(self) -> None:
        while not self._stopped.wait(0.2):
            if self.process.poll() is not None:
                self._start()

    def end(self) -> None:
        self._stopped.set()
        self._thread.join()
        self.process.terminate()
        self.process.wait(90)


@contextmanager
def kept_running() -> Iterator[Job]:
    job = Job()
    try:
        yield job
    finally:
        job.end()


def arriving() -> Iterator[dict[str, object]]:
    """Yield transactions without end, each some seconds after the one before."""
    base = to_come()
    start = dt.datetime.fromisoformat(str(base[0]["transacted_at"]))
    for number in itertools.count():
        at = start + dt.timedelta(seconds=7 * number)
        yield {**base[number % len(base)], "transaction_id": 10**8 + number, "transacted_at": at.isoformat()}


def post_until(stopped: threading.Event, api: Api) -> list[int]:
    """Post until told to stop; whatever was not acknowledged is sent again, as a client does. Returns the acknowledged keys."""
    acknowledged: list[int] = []
    source = arriving()
    while not stopped.is_set():
        batch = list(itertools.islice(source, A_POST))
        while True:
            try:
                answer = api.ask("POST", "/transactions", batch)
            except (OSError, http.client.HTTPException):
                answer = None
            if answer is not None and answer.status == 202:
                acknowledged += answer.told["accepted"]
                break
            assert answer is None or answer.status == 503, answer.body
            time.sleep(0.2)
        time.sleep(0.2)
    return acknowledged


def kill(victim: str, job: Job, api: Api) -> None:
    match victim:
        case "job":
            job.process.kill()
        case "api":
            api.stop(signal.SIGKILL)
            api.start()
        case "broker":
            os.kill(supervision.states()["kafka"]["pid"], signal.SIGKILL)


def test_what_was_acknowledged_is_in_the_tables_once_whatever_was_killed_under_load(lane: None, hive: Session, tmp_path: Path):
    draw = random.Random()
    stopped = threading.Event()
    with running(tmp_path) as api, kept_running() as job, ThreadPoolExecutor(1) as pool:
        api.await_ready()
        poster = pool.submit(post_until, stopped, api)
        ends_at = time.monotonic() + SOAK_SECONDS
        try:
            # Each once, in any order, then any: some before the job has begun, some at work.
            for victim in itertools.chain(draw.sample(VICTIMS, len(VICTIMS)), iter(lambda: draw.choice(VICTIMS), None)):
                if time.monotonic() > ends_at or poster.done():
                    break
                time.sleep(draw.uniform(1, 45))
                kill(victim, job, api)
        finally:
            stopped.set()
        acknowledged = sorted(poster.result(120))
        control.up({"kafka"})
        wait(lambda: len(told(broker.PREDICTIONS)) >= len(acknowledged), 300)
        wait(is_written)
    assert len(acknowledged) > 300
    # What was sent and not acknowledged may be there as well: a client sends it again.
    core = column(hive, "SELECT transaction_id FROM core.transactions WHERE lane = 'stream' ORDER BY 1")
    assert len(core) == len(set(core))
    assert set(acknowledged) <= set(core)
    assert column(hive, "SELECT transaction_id FROM mart.predictions ORDER BY 1") == core
    assert ids(told(broker.PREDICTIONS)) == ids(told(broker.VALIDATED)) == core
    assert ids(told(broker.ALERTS)) == column(hive, "SELECT transaction_id FROM mart.alerts ORDER BY 1")
    assert column(hive, "SELECT transaction_id FROM mart.predictions WHERE risk_level = 'HIGH' ORDER BY 1") == ids(told(broker.ALERTS))
    assert rows("SELECT count(*) FROM ops.rejects", role="etl", dbname="warehouse") == [(0,)]
