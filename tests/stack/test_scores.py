"""The scoring query's part on a broker of its own: what it decides about each arrival, and what it tells."""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from api import broker, history, replay
from api.history import History
from api.replay import Sent
from api.scores import Scores, Told, columns_of
from ml.features import DAY, LOOKBACK_DAYS
from tests.api.server import GOOD, running
from tests.brokers import OwnBroker, given, messages

NOW = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
MICROSECONDS = int(NOW.timestamp()) * 1_000_000


@pytest.fixture
def own() -> Iterator[OwnBroker]:
    with given() as one:
        one.start()
        one.prepare()
        yield one


class Arrivals:
    """What arrives on the topic, given to a query whose history begins where it is told to."""

    def __init__(self, start: int | None = None) -> None:
        oldest = (0, 1, 1, MICROSECONDS, 100)
        self.scores = Scores(History(columns_of([oldest]), start), None)
        self._consumer = Consumer({**broker.consumer("a-test"), "enable.partition.eof": False})
        partitions = self._consumer.list_topics(broker.TRANSACTIONS, 30).topics[broker.TRANSACTIONS].partitions
        self._places = dict.fromkeys(partitions, 0)

    def take(self) -> Told:
        """Give the query what came since the last time."""
        rows = []
        for partition, begin in self._places.items():
            place = TopicPartition(broker.TRANSACTIONS, partition, begin)
            end = self._consumer.get_watermark_offsets(place, 30)[1]
            self._consumer.assign([place])
            while self._places[partition] < end:
                for one in self._consumer.consume(end - self._places[partition], 1):
                    at = dt.datetime.fromtimestamp(one.timestamp()[1] / 1000, dt.UTC)
                    rows.append({"partition": partition, "offset": one.offset(), "timestamp": at, "value": one.value()})
                    self._places[partition] = one.offset() + 1
        return self.scores.take(pa.Table.from_pylist(rows))


def send(*transactions: dict[str, Any]) -> None:
    producer = Producer(broker.producer())
    for one in transactions:
        producer.produce(broker.TRANSACTIONS, json.dumps(one), str(one["customer_id"]))
    assert producer.flush(30) == 0


def csv_twice(folder: Path) -> list[Sent]:
    path = folder / "stream.csv"
    path.write_text("customer_id,terminal_id,amount,currency,channel\n1,7,1.00,EUR,chip\n1,7,1.00,EUR,chip\n2,8,2.00,EUR,chip\n")
    receiver = replay.Broker()
    for _ in range(2):
        sent = [row for row in replay.replayed(path) if isinstance(row, Sent)]
        assert receiver.send(sent) == []
    return sent


def told(topic: str) -> list[dict[str, Any]]:
    return [json.loads(message) for message in messages(topic)]


def test_a_transaction_older_than_the_history_is_told_once_and_another_with_its_key_is_rejected(own: OwnBroker):
    arrivals = Arrivals(start=MICROSECONDS - (LOOKBACK_DAYS + history.MARGIN_DAYS) * DAY)
    late = {**GOOD, "transacted_at": (NOW - dt.timedelta(history.MARGIN_DAYS + 1)).isoformat()}
    very_late = {**GOOD, "transaction_id": 8, "transacted_at": (NOW - dt.timedelta(300)).isoformat()}
    send(late, late, very_late)
    assert arrivals.take().duplicates == 1
    send(late, very_late, {**late, "amount": "9.00"}, {**very_late, "customer_id": 99})
    again = arrivals.take()
    assert (again.duplicates, again.rejected) == (2, 2)
    assert sorted(one["transaction_id"] for one in told(broker.VALIDATED)) == [7, 8]
    assert {one["reason"] for one in told(broker.REJECTED)} == {"is the key of another transaction that came before"}
    # The tables' query has not committed them: a history that is read again must not forget them.
    assert sorted(arrivals.scores.uncommitted) == [7, 8]


def test_a_transaction_without_a_time_that_is_posted_twice_has_the_time_of_the_first_and_is_told_once(own: OwnBroker, tmp_path: Path):
    arrivals = Arrivals()
    with running(tmp_path) as api:
        api.await_ready()
        first = api.ask("POST", "/transactions", GOOD).told
        time.sleep(0.01)
        second = api.ask("POST", "/transactions", GOOD).told
        assert first["timed_on_arrival"] == second["timed_on_arrival"] == [7]
        assert first["received_at"] < second["received_at"]
        api.ask("POST", "/transactions", {**GOOD, "transacted_at": first["received_at"]})
        assert arrivals.take().duplicates == 2
        # In a later micro-batch as well; another amount, or another time that is told, is another transaction.
        for another in ({}, {"amount": "1.51"}, {"transacted_at": second["received_at"]}):
            api.ask("POST", "/transactions", {**GOOD, **another})
        later = arrivals.take()
    assert (later.duplicates, later.rejected) == (1, 2)
    (validated,) = told(broker.VALIDATED)
    assert dt.datetime.fromisoformat(validated["transacted_at"]) == dt.datetime.fromisoformat(first["received_at"])
    assert validated["received_at"] == first["received_at"]


def test_a_csv_without_ids_and_times_that_is_sent_twice_is_told_once(own: OwnBroker, tmp_path: Path):
    arrivals = Arrivals()
    sent = csv_twice(tmp_path)
    found = arrivals.take()
    assert (found.duplicates, found.rejected) == (3, 0)
    validated = told(broker.VALIDATED)
    assert {one["transaction_id"] for one in validated} == {one.transaction.transaction_id for one in sent}
    assert len(validated) == 3
    assert all(dt.datetime.fromisoformat(one["transacted_at"]) == dt.datetime.fromisoformat(one["received_at"]) for one in validated)
