"""The notifier as a process, on the real broker: what is acknowledged to Kafka is told, whatever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from api import broker
from etl.settings import ROOT, settings
from etl.stack import control, supervision
from tests.api.alerts import alert, use
from tests.postgres import rows
from tests.receivers import Http, http_server, smtp_server, until

SECRET = "not-for-logs"


@pytest.fixture(scope="module", autouse=True)
def kafka(stack: None) -> None:
    control.up({"postgres", "kafka"})


@pytest.fixture(autouse=True)
def empty(kafka: None) -> Iterator[None]:
    """No alert is left to be told, and none was told."""
    rows("TRUNCATE ops.notifications", role="etl", dbname="warehouse")
    end = TopicPartition(broker.ALERTS, 0, OFFSET_END)
    admin = AdminClient(broker.client())
    for removed in admin.delete_records([end]).values():
        removed.result(30)
    yield
    settings.cache_clear()


def put(*values: bytes) -> None:
    # Whoever else writes there keeps to the broker's limit, not to that of our producers.
    producer = Producer(broker.client())
    for value in values:
        producer.produce(broker.ALERTS, value, key="42")
    assert producer.flush(30) == 0


@contextmanager
def notifier(log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as told:
        process = subprocess.Popen(
            [sys.executable, "-m", "api.notify"], cwd=ROOT, stderr=told, env={**os.environ, "WAREHOUSE_LOG_FORMAT": "json"}
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def keys(got: Http) -> list[str]:
    return [headers["Idempotency-Key"] for headers, _ in got.requests]


def states() -> Counter[tuple[object, ...]]:
    return Counter(rows("SELECT channel, state FROM ops.notifications", role="etl", dbname="warehouse"))


def committed() -> tuple[int, int]:
    """The group's offset, and the end of the topic."""
    consumer = Consumer(broker.consumer("notify"))
    place = TopicPartition(broker.ALERTS, 0)
    try:
        return consumer.committed([place])[0].offset, consumer.get_watermark_offsets(place)[1]
    finally:
        consumer.close()


def test_alerts_reach_every_channel_and_a_stop_is_clean(got: Http, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    with smtp_server() as mails, notifier_with(monkeypatch, tmp_path, {
        "cases": {"kind": "webhook", "url": got.url, "secret_file": str(tmp_path / "secret")},
        "standby": {"kind": "sms", "url": got.url, "sender": "Bank", "recipients": ["+3200000001"], "token_file": str(tmp_path / "secret")},
        "desk": {"kind": "email", "host": "127.0.0.1", "port": mails.port, "starttls": False, "sender": "w@b.example",
                 "recipients": ["desk@b.example"], "quiet_seconds": 60},
        "log": {"kind": "log"},
    }) as process:  # fmt: skip
        heartbeat = settings().data_dir / "run" / "notify.ready"
        put(b"no json", b"\xff", b"", b'{"a":"' + b"x" * 900_000 + b'"}', alert(1), alert(2, device="4111 1111 1111 1111"))
        until(lambda: states()[("log", "sent")] == 2 and len(got.requests) == 4 and states()[("desk", "quiet")] == 1, 60)
        until(lambda: committed()[0] == committed()[1])
        until(heartbeat.exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert not heartbeat.exists()
    assert sorted(keys(got)) == ["alert-1", "alert-1", "alert-2", "alert-2"]
    assert len(mails.mails) == 1
    assert states() == {
        ("", "dead"): 4, ("cases", "sent"): 2, ("standby", "sent"): 2, ("desk", "sent"): 1, ("desk", "quiet"): 1, ("log", "sent"): 2
    }  # fmt: skip
    told = (tmp_path / "log").read_text()
    assert [json.loads(line)["key"] for line in told.splitlines() if '"event": "alert"' in line] == ["alert-1", "alert-2"]
    for secret in (SECRET, "4111"):
        assert secret not in told
        assert rows("SELECT 1 FROM ops.notifications n WHERE n::text LIKE %s", f"%{secret}%", role="etl", dbname="warehouse") == []


@contextmanager
def notifier_with(
    monkeypatch: pytest.MonkeyPatch, folder: Path, channels: dict[str, Any], **other: Any
) -> Iterator[subprocess.Popen[bytes]]:
    use(monkeypatch, folder, channels, **other)
    with notifier(folder / "log") as process:
        yield process


@pytest.mark.slow
def test_killed_while_a_message_is_under_way_it_sends_that_one_again_and_no_other(
    got: Http, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, tmp_path, {"cases": {"kind": "webhook", "url": got.url}})
    arrived, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        if len(got.requests) == 5:
            arrived.set()
            go_on.wait(60)

    got.before = hold
    put(*(alert(number) for number in range(1, 21)))
    with notifier(tmp_path / "log") as process:
        assert arrived.wait(60)
        process.kill()
        process.wait()
    go_on.set()
    with notifier(tmp_path / "log"):
        until(lambda: states() == {("cases", "sent"): 20}, 60)
        until(lambda: committed()[0] == committed()[1])
    assert Counter(keys(got)) == Counter({f"alert-{number}": 2 if number == 5 else 1 for number in range(1, 21)})


@pytest.mark.slow
def test_killed_again_and_again_under_load_it_tells_every_alert(got: Http, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, tmp_path, {"cases": {"kind": "webhook", "url": got.url}})
    kills = 0
    for first in (1, 101, 201):
        put(*(alert(number) for number in range(first, first + 100)))
        with notifier(tmp_path / "log") as process:
            until(lambda: len(got.requests) >= first + 20, 60)  # noqa: B023 - called within the loop's turn
            process.kill()
            kills += 1
    with notifier(tmp_path / "log"):
        until(lambda: states() == {("cases", "sent"): 300}, 60)
    assert set(keys(got)) == {f"alert-{number}" for number in range(1, 301)}
    assert len(got.requests) <= 300 + kills


@pytest.mark.slow
def test_a_receiver_that_is_away_gets_all_when_it_is_back_and_its_neighbour_does_not_wait(
    got: Http, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with http_server() as away:
        port = int(away.url.rsplit(":", 1)[1].split("/")[0])
    channels = {"away": {"kind": "webhook", "url": away.url}, "cases": {"kind": "webhook", "url": got.url}}
    with notifier_with(monkeypatch, tmp_path, channels, retry={"first_seconds": 0.2, "longest_seconds": 1}):
        put(*(alert(number) for number in range(1, 31)))
        until(lambda: len(got.requests) == 30, 60)
        assert states()[("away", "pending")] == 30
        with http_server(port) as back:
            back.answers.extend([503] * 10)
            until(lambda: states()[("away", "sent")] == 30, 60)
    assert Counter(keys(back)).keys() == {f"alert-{number}" for number in range(1, 31)}
    assert len(back.requests) == 40
    assert len(got.requests) == 30


@pytest.mark.slow
def test_the_broker_may_restart(got: Http, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with notifier_with(monkeypatch, tmp_path, {"cases": {"kind": "webhook", "url": got.url}}) as process:
        put(alert(1))
        until(lambda: keys(got) == ["alert-1"], 60)
        supervision.call("stopProcess", "kafka")
        control.up({"kafka"})
        put(alert(2))
        until(lambda: keys(got) == ["alert-1", "alert-2"], 60)
        assert process.poll() is None


@pytest.mark.slow
def test_a_second_run_of_the_same_topic_sends_nothing_twice(got: Http, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, tmp_path, {"cases": {"kind": "webhook", "url": got.url}})
    start = committed()[1]
    put(alert(1), alert(2))
    with notifier(tmp_path / "log") as process:
        until(lambda: states() == {("cases", "sent"): 2}, 60)
        until(lambda: committed()[0] == committed()[1])
        process.terminate()
        assert process.wait(30) == 0
    consumer = Consumer(broker.consumer("notify"))
    consumer.commit(offsets=[TopicPartition(broker.ALERTS, 0, start)], asynchronous=False)
    consumer.close()
    with notifier(tmp_path / "log"):
        until(lambda: committed()[0] == committed()[1], 60)
    assert keys(got) == ["alert-1", "alert-2"]
