"""A broker of the tests' own: topics as declared, and nothing acknowledged is lost."""

from __future__ import annotations

import base64
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from api import broker, lag, replay, topics
from api.topics import Topic
from etl.errors import RefusedError, UnavailableError
from etl.settings import ROOT, settings
from tests.api.server import GOOD, Api, running
from tests.brokers import OwnBroker, environment, given, ids, messages, sent
from tests.receivers import until

# What does not compress, and holds no run of digits that may be a card number.
LETTERS = str.maketrans("234567", "abcdef")


@pytest.fixture(scope="module")
def plain() -> Iterator[OwnBroker]:
    with given() as own:
        own.start()
        own.prepare()
        yield own


def partitions() -> dict[str, int]:
    found = AdminClient(broker.client()).list_topics(timeout=30).topics
    return {name: len(topic.partitions) for name, topic in found.items() if not name.startswith("_")}


def test_a_broker_that_has_only_just_started_tells_how_far_each_group_has_come(plain: OwnBroker):
    assert (lag.behind("scores"), lag.behind("tables")) == (0, 0)


def test_topics_are_those_declared_and_a_second_making_changes_nothing(plain: OwnBroker):
    wanted = {topic.name: topic.partitions for topic in topics.declared()}
    assert partitions() == wanted
    plain.prepare()
    assert partitions() == wanted


def test_more_partitions_and_another_configuration_are_applied_and_fewer_refused(plain: OwnBroker):
    topics.apply([Topic("altered", 1, 1, 1000)])
    topics.apply([Topic("altered", 3, 2, 2000)])
    assert partitions()["altered"] == 3
    admin = AdminClient(broker.client())
    (answer,) = admin.describe_configs([topics.resource("altered")]).values()
    found = answer.result(30)
    assert (found["retention.ms"].value, found["max.message.bytes"].value) == ("7200000", "2000")
    with pytest.raises(RefusedError, match="topic altered has 3 partitions, 2 are declared; partitions cannot be taken away"):
        topics.apply([Topic("altered", 2, 2, 2000), Topic("not made", 1, 1, 1000)])
    assert "not made" not in partitions()
    admin.delete_topics(["altered"])["altered"].result(30)


def test_a_message_stays_by_the_brokers_time_whatever_its_producer_says(plain: OwnBroker):
    admin = AdminClient(broker.client())
    made = NewTopic("elsewhere", num_partitions=1, replication_factor=1, config={"message.timestamp.type": "CreateTime"})
    broker.await_all(admin.create_topics([made]))
    with pytest.raises(RefusedError, match="keeps messages of elsewhere by the time that their producers set"):
        topics.refuse_producers_time([broker.TRANSACTIONS, "elsewhere"])
    topics.apply([Topic("elsewhere", 1, 1, 1000)])
    topics.refuse_producers_time([*broker.TOPICS, "elsewhere"])
    before = time.time()
    producer = Producer(broker.producer())
    for at in (before - 30 * 86400, before / 1000, before + 30 * 86400):
        producer.produce("elsewhere", b"x", timestamp=round(at * 1000))
    assert producer.flush(30) == 0
    consumer = Consumer(broker.consumer("elsewhere"))
    consumer.assign([TopicPartition("elsewhere", 0, 0)])
    found = [message.timestamp() for message in consumer.consume(3, 30)]
    consumer.close()
    assert [kind for kind, _ in found] == [TIMESTAMP_LOG_APPEND_TIME] * 3
    assert all(before - 1 < at / 1000 < time.time() + 1 for _, at in found)
    admin.delete_topics(["elsewhere"])["elsewhere"].result(30)


def test_a_topic_that_is_not_declared_is_refused(plain: OwnBroker):
    failed = []
    producer = Producer({**broker.producer(), "message.timeout.ms": 3000})
    producer.produce("misspelt", b"x", on_delivery=lambda error, _: failed.append(error is not None))
    assert producer.flush(30) == 0
    assert failed == [True]
    assert "misspelt" not in partitions()


@pytest.fixture
def sized(plain: OwnBroker) -> Iterator[str]:
    """A topic of one partition that takes what `transactions` takes."""
    topics.apply([Topic("sized", 1, 1, broker.LARGEST_MESSAGE)])
    yield "sized"
    admin = AdminClient(broker.client())
    admin.delete_topics(["sized"])["sized"].result(30)


def delivered(configuration: dict[str, Any], topic: str, *values: bytes) -> list[str | None]:
    """Send messages one after the other as fast as they are taken; returns the error of each."""
    told: list[str | None] = []
    producer = Producer({**broker.producer(), **configuration})
    for value in values:
        broker.produce(producer, topic, value, None, on_delivery=lambda error, _: told.append(error and error.name()))
    assert producer.flush(60) == 0
    return told


def test_a_message_that_is_too_large_is_refused_by_the_producer_and_by_the_broker(sized: str):
    too_large = os.urandom(200_000)
    with pytest.raises(KafkaException, match="MSG_SIZE_TOO_LARGE"):
        delivered({}, sized, too_large)
    assert delivered({"message.max.bytes": 2_000_000}, sized, too_large) == ["MSG_SIZE_TOO_LARGE"]
    assert delivered({}, sized, b"x" * 100_000, os.urandom(100_000)) == [None, None]
    assert [len(message) for message in messages(sized)] == [100_000, 100_000]


def test_messages_that_are_sent_together_pass_though_all_of_them_are_larger_than_one_may_be(sized: str):
    many = [os.urandom(200) for _ in range(5_000)]
    assert delivered({"linger.ms": 500}, sized, *many) == [None] * 5_000
    assert messages(sized) == many


def test_a_producer_that_holds_as_many_messages_as_it_may_waits_and_none_is_lost(sized: str):
    many = [b"%d" % number for number in range(1_000)]
    assert delivered({"queue.buffering.max.messages": 10}, sized, *many) == [None] * 1_000
    assert messages(sized) == many


@pytest.mark.slow
def test_a_killed_broker_keeps_what_it_acknowledged_and_its_producers_go_on(plain: OwnBroker):
    receiver = replay.Broker()
    assert receiver.send(sent(1, 500)) == []
    plain.end(signal.SIGKILL)
    plain.start()
    assert receiver.send(sent(501, 500)) == []
    assert ids() == list(range(1, 1001))


def test_a_broker_that_is_away_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WAREHOUSE_KAFKA_PORT", "1")
    monkeypatch.setenv("WAREHOUSE_PORT_OFFSET", "0")
    monkeypatch.setattr(replay, "PATIENCE_SECONDS", 1.5)
    monkeypatch.setattr(broker, "ANSWER_SECONDS", 1)
    settings.cache_clear()
    try:
        with pytest.raises(UnavailableError, match=r"127.0.0.1:1 did not acknowledge: .*; run the same command again"):
            replay.Broker().send(sent(1, 1))
        with pytest.raises(UnavailableError, match=r"127.0.0.1:1 does not do it: .*; is Kafka up\?"):
            topics.apply([])
    finally:
        monkeypatch.undo()
        settings.cache_clear()


@pytest.mark.slow
def test_a_full_disk_is_an_error_at_the_producer_and_nothing_acknowledged_is_lost(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replay, "PATIENCE_SECONDS", 10.0)
    acknowledged: list[int] = []
    with given() as own:
        own.start()
        own.prepare()
        # No file may grow beyond this: writing fails as on a full disk, for every user and without a file system of its own.
        limit = 512 * 1024
        resource.prlimit(own.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        receiver = replay.Broker()
        rows = (sent(first, 500, base64.b32encode(os.urandom(50)).decode().translate(LETTERS)) for first in range(1, 500_001, 500))

        def fill() -> None:
            for batch in rows:
                receiver.send(batch)
                acknowledged.extend(one.transaction.transaction_id for one in batch)

        with pytest.raises(UnavailableError, match=r"did not acknowledge: .*; run the same command again"):
            fill()
        own.wait()
        assert "File too large" in own.log.read_text()
        own.start()
        stored = ids()
        assert acknowledged
        assert set(acknowledged) <= set(stored)
        # A broker with room again takes what is sent again.
        assert replay.Broker().send(sent(len(acknowledged) + 1, 500)) == []
        assert set(ids()) >= set(range(1, len(acknowledged) + 501))


def lag_of_tables(api: Api) -> str:
    """What the gauge says, empty where it does not say anything yet."""
    return "".join(re.findall(r'fraud_api_stream_lag{query="tables"} (\S+)', api.ask("GET", "/metrics").body.decode()))


@pytest.mark.slow
def test_a_topic_that_is_missing_is_told_by_the_verb_and_the_api_and_no_gauge_keeps_its_last_value(plain: OwnBroker, tmp_path: Path):
    admin = AdminClient(broker.client())
    with running(tmp_path) as api:
        until(lambda: lag_of_tables(api) not in ("", "NaN"), 60)
        admin.delete_topics([broker.ALERTS])[broker.ALERTS].result(30)
        try:
            until(lambda: lag_of_tables(api) == "NaN", 30)
            assert "shows no topic alerts: not made yet" in api.log
            ran = subprocess.run([ROOT / "bash" / "stream.sh", "lag"], env=environment(), capture_output=True, text=True, check=False)
            assert ran.returncode == RefusedError.exit_code
            assert re.fullmatch(r".*shows no topic alerts: not made yet, .*\n", ran.stderr)
        finally:
            topics.apply(topics.declared())
        until(lambda: lag_of_tables(api) not in ("", "NaN"), 60)


def posted(api: Api, keys: range) -> list[int]:
    """Post transactions of one customer one by one; return the keys that were acknowledged."""
    return [key for key in keys if api.ask("POST", "/transactions", {**GOOD, "transaction_id": key}).status == 202]


@pytest.mark.slow
def test_after_a_broker_has_lost_the_end_of_its_log_the_api_takes_transactions_again_by_itself(tmp_path: Path):
    with given() as own:
        own.start()
        own.prepare()
        with running(tmp_path) as api:
            api.await_ready()
            assert posted(api, range(1, 11)) == list(range(1, 11))
            own.end(signal.SIGKILL)
            # As after a power failure: the producer is ten messages on, the broker knows of the first ones only.
            (log,) = (path for path in (own.folder / "kafka" / "log").glob("transactions-?/*.log") if path.stat().st_size)
            os.truncate(log, log.stat().st_size // 2)
            own.start()
            kept = ids()
            assert 0 < len(kept) < 10
            api.await_ready()
            taken: list[int] = []
            deadline = time.monotonic() + 30
            for key in range(11, 1_000_000):
                taken += posted(api, range(key, key + 1))
                if len(taken) == 10:
                    break
                assert time.monotonic() < deadline, api.log
            assert "the producer came to an end" in api.log
            assert set(taken) | set(kept) <= set(ids())
            assert len(ids()) == len(set(ids()))


@pytest.mark.slow
def test_after_a_full_disk_and_a_kill_of_the_broker_the_api_goes_on_and_nothing_acknowledged_is_lost(tmp_path: Path):
    with given() as own:
        own.start()
        own.prepare()
        with running(tmp_path) as api:
            api.await_ready()
            resource.prlimit(own.pid, resource.RLIMIT_FSIZE, (512 * 1024, resource.RLIM_INFINITY))
            acknowledged: list[int] = []
            for first in range(1, 500_001, 500):
                text = base64.b32encode(os.urandom(50)).decode().translate(LETTERS)
                batch = [{**GOOD, "transaction_id": key, "device": text} for key in range(first, first + 500)]
                answer = api.ask("POST", "/transactions", batch)
                if answer.status != 202:
                    break
                acknowledged += answer.told["accepted"]
            assert answer.status == 503
            own.wait()
            api.await_ready(False)
            for _ in range(2):
                own.start()
                api.await_ready()
                answer = api.ask("POST", "/transactions", batch)
                assert answer.status == 202, api.log
                assert set(acknowledged) | set(answer.told["accepted"]) <= set(ids())
                own.end(signal.SIGKILL)
                api.await_ready(False)
