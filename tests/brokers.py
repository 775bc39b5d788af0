"""A Kafka broker of a test's own, beside whatever runs: started as a container starts it, without a supervisor."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka import Consumer, KafkaError, TopicPartition

from api import broker, topics
from api.replay import Sent
from api.transaction import Transaction
from etl.errors import UnavailableError
from etl.settings import ROOT, settings
from etl.stack import jars, serve
from tests.api.server import free_port

STARTING_SECONDS = 120
SERVE = (sys.executable, "-m", "etl.stack.serve")


class OwnBroker:
    """One broker; settings of this process and of its children point to it while it is `given`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "kafka.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([*SERVE, "run", "kafka"], cwd=ROOT, env=environment(), stdout=log, stderr=log)
        deadline = time.monotonic() + STARTING_SECONDS
        while True:
            assert self._process.poll() is None, self.log.read_text()[-3000:]
            try:
                serve.check("kafka")
                return
            except UnavailableError:
                assert time.monotonic() < deadline, self.log.read_text()[-3000:]
                time.sleep(0.3)

    def prepare(self) -> None:
        """Make the topics and users."""
        ran = subprocess.run([*SERVE, "prepare", "kafka"], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        # A topic is told of before the files of its partitions are there.
        deadline = time.monotonic() + STARTING_SECONDS
        for topic in topics.declared():
            while len(list((self.folder / "kafka" / "log").glob(f"{topic.name}-[0-9]*/*.timeindex"))) < topic.partitions:
                assert time.monotonic() < deadline, self.log.read_text()[-3000:]
                time.sleep(0.1)

    def end(self, number: int) -> None:
        """Send it a signal, and wait for its end."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(number)
            self.wait()

    def wait(self, seconds: float = 60) -> None:
        """Wait for its end."""
        assert self._process is not None
        self._process.wait(seconds)


def environment() -> dict[str, str]:
    """Environment of a process that is not this one."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@contextmanager
def given(**values: str) -> Iterator[OwnBroker]:
    """Yield a broker that does not run yet, with a folder and ports of its own; `values` are further settings."""
    # Jars are fetched once for everything.
    jars_folder = settings().jars_dir
    folder = Path(tempfile.mkdtemp(prefix="kafka-test-"))
    # The readers' user must be able to enter a data folder.
    folder.chmod(0o755)
    ours = {
        "WAREHOUSE_DATA_DIR": str(folder),
        "WAREHOUSE_JARS_DIR": str(jars_folder),
        "WAREHOUSE_PORT_OFFSET": "0",
        # Ports of its own: another one may be running, and would answer for it.
        "WAREHOUSE_KAFKA_PORT": str(free_port()),
        "WAREHOUSE_KAFKA_CONTROLLER_PORT": str(free_port()),
        **{f"WAREHOUSE_{name.upper()}": value for name, value in values.items()},
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    settings.cache_clear()
    own = OwnBroker(folder)
    try:
        jars.ensure()
        yield own
    finally:
        own.end(signal.SIGKILL)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        settings.cache_clear()
        shutil.rmtree(folder)


def messages(topic: str) -> list[bytes]:
    """Return what a topic holds, committed."""
    consumer = Consumer({**broker.consumer("a-test"), "enable.partition.eof": True})
    try:
        partitions = list(consumer.list_topics(topic, 30).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        found: list[bytes] = []
        ended: set[int | None] = set()
        deadline = time.monotonic() + 60
        while len(ended) < len(partitions):
            assert time.monotonic() < deadline
            for message in consumer.consume(1000, 1.0):
                if error := message.error():
                    assert error.code() == KafkaError._PARTITION_EOF, error.str()
                    ended.add(message.partition())
                else:
                    found.append(message.value() or b"")
        return found
    finally:
        consumer.close()


def sent(first: int, count: int, device: str | None = None) -> list[Sent]:
    """Return transactions whose keys follow one another."""
    return [
        Sent(
            Transaction(transaction_id=key, customer_id=key, terminal_id=7, amount="1.00", currency="EUR", channel="chip", device=device),
            key,
            "",
        )
        for key in range(first, first + count)
    ]


def ids(topic: str = broker.TRANSACTIONS) -> list[int]:
    """Return the keys of the transactions in a topic."""
    return sorted(json.loads(message)["transaction_id"] for message in messages(topic))
