"""The scoring query's part on a broker of its own: what it decides about each arrival, and what it tells."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from api import broker, history
from api.history import History
from api.scores import Scores, Told, columns_of
from ml.features import DAY, LOOKBACK_DAYS
from tests.api.server import GOOD
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
