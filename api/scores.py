"""From arrivals to messages: each micro-batch is checked, scored and told in one transaction of Kafka.

The transaction holds the messages and the offsets up to which arrivals are told (group `stream`), so a batch that is run again
tells nothing twice, and whoever reads what was committed sees each transaction once.
"""

from __future__ import annotations

import datetime as dt
import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from confluent_kafka import Consumer, Producer, TopicPartition

from api import arrivals, broker
from api.arrivals import Place, Rejected
from api.champion import Champion
from api.history import GIVEN, History
from api.transaction import ONE, Transaction, moment
from ml.features import FEATURES, known_at

TIMEOUT_SECONDS = 30

Message = tuple[str, int | None, bytes]
"""Topic, customer (None: no key) and value."""

DESCRIPTIONS = {feature.name: feature.description for feature in FEATURES}


@dataclass
class Told:
    """What became of a micro-batch."""

    scored: int = 0
    alerts: int = 0
    unscored: int = 0
    rejected: int = 0
    duplicates: int = 0
    latencies: list[float] = field(default_factory=list)


class Scores:
    """The state of scoring: what was told, recent transactions, the champion.

    Parameters
    ----------
    history
        Must hold what was told and is not in core yet as well.
    champion
        None: transactions are checked and passed on, and the next batch scoring scores them.
    """

    def __init__(self, history: History, champion: Champion | None) -> None:
        self.lock = threading.RLock()
        self.history = history
        self.champion = champion
        self.uncommitted: dict[int, tuple[int, ...]] = {}
        self._consumer = Consumer(broker.consumer(broker.SCORES_GROUP))
        # Its id fences: of two jobs the one that began later goes on, the other's next transaction fails.
        self._producer = Producer({**broker.producer(), "transactional.id": broker.SCORES_GROUP, "linger.ms": 5})
        self._producer.init_transactions(TIMEOUT_SECONDS)
        partitions = self._consumer.list_topics(broker.TRANSACTIONS, TIMEOUT_SECONDS).topics[broker.TRANSACTIONS].partitions
        committed = broker.committed(self._consumer, [TopicPartition(broker.TRANSACTIONS, one) for one in partitions])
        self._told = {one.partition: max(one.offset, 0) for one in committed}

    def take(self, rows: pa.Table) -> Told:
        """Check, score and tell one micro-batch.

        Parameters
        ----------
        rows
            partition, offset, timestamp (of arrival, UTC) and value of messages on `transactions`.

        Raises
        ------
        confluent_kafka.KafkaException
            When the broker does not take the messages: nothing is told; a new process has to begin.
        """
        with self.lock:
            told = Told()
            fresh = [row for row in _places(rows) if row[0].offset >= self._told.get(row[0].partition, 0)]
            if not fresh:
                return told
            valid, rejected = self._checked(fresh, told)
            messages: list[Message] = [(broker.REJECTED, None, _rejected(one)) for one in rejected]
            messages += [(broker.VALIDATED, one.customer_id, _validated(one, place)) for one, place in valid]
            messages += self._scored(valid, told)
            self._tell(messages, {row[0].partition: row[0].offset + 1 for row in fresh})
            now = dt.datetime.now(dt.UTC)
            told.rejected = len(rejected)
            told.latencies = [(now - place.received_at).total_seconds() for _, place in valid]
            return told

    def _checked(self, rows: list[tuple[Place, bytes | None]], told: Told) -> tuple[list[tuple[Transaction, Place]], list[Rejected]]:
        """Sort out what is no transaction, and what came before: the same again is left out, another with its key is rejected."""
        valid: list[tuple[Transaction, Place]] = []
        rejected: list[Rejected] = []
        read = [(arrivals.parsed(value, place), place, value) for place, value in rows]
        ids = np.array([one.transaction_id for one, _, _ in read if isinstance(one, Transaction)], np.int64)
        known = self.history.find(ids)
        for one, place, value in read:
            if isinstance(one, Rejected):
                rejected.append(one)
                continue
            is_timed = one.transacted_at is not None
            if not is_timed:
                one = one.model_copy(update={"transacted_at": place.received_at})
            own = identity(one)
            before = known.setdefault(one.transaction_id, own)
            if before is own:
                valid.append((one, place))
            # Without a time of its own it has that of its first arrival, whenever it is sent again.
            elif before == (own if is_timed else (*own[:3], before[3], own[4])):
                told.duplicates += 1
            else:
                reason = "is the key of another transaction that came before"
                rejected.append(Rejected(place, reason, "transaction_id", arrivals.payload_of(value)))
        return valid, rejected

    def _scored(self, valid: list[tuple[Transaction, Place]], told: Told) -> list[Message]:
        columns = columns_of(identity(one) for one, _ in valid)
        # Later ones read what comes too late for features of its own, and it must be known when it is sent again.
        within = self.history.reaches(columns["transacted_at"])
        found = {name: values[within] for name, values in self.history.features(columns).items()}
        self.uncommitted.update((one.transaction_id, identity(one)) for one, _ in valid)
        if self.champion is None:
            told.unscored = len(valid)
            return []
        told.unscored = len(valid) - int(within.sum())
        if told.unscored == len(valid):
            return []
        predictions = _rows(self.champion.score(found, dt.datetime.now(dt.UTC)))
        told.scored = len(predictions)
        messages: list[Message] = []
        sources = [row for row, is_within in zip(valid, within, strict=True) if is_within]
        for prediction, (transaction, place) in zip(predictions, sources, strict=True):
            prediction["received_at"] = moment(place.received_at)
            messages.append((broker.PREDICTIONS, transaction.customer_id, json.dumps(prediction, separators=(",", ":")).encode()))
            if prediction["risk_level"] == "HIGH":
                told.alerts += 1
                messages.append((broker.ALERTS, transaction.customer_id, _alert(prediction, transaction)))
        return messages

    def _tell(self, messages: list[Message], offsets: dict[int, int]) -> None:
        producer = self._producer
        producer.begin_transaction()
        for topic, key, value in messages:
            broker.produce(producer, topic, value, None if key is None else str(key))
        positions = [TopicPartition(broker.TRANSACTIONS, partition, offset) for partition, offset in offsets.items()]
        producer.send_offsets_to_transaction(positions, self._consumer.consumer_group_metadata(), TIMEOUT_SECONDS)
        producer.commit_transaction(TIMEOUT_SECONDS)
        self._told.update(offsets)


def columns_of(rows: Iterable[tuple[int, ...]]) -> dict[str, np.ndarray[Any, Any]]:
    """Return transactions without a report as columns of `GIVEN`; a row is their `KEYS` and amount in cents."""
    array = np.array(list(rows), np.int64).reshape(-1, len(GIVEN) - 1)
    columns = dict(zip(GIVEN[:-1], array.T.copy(), strict=True))
    at = columns["transacted_at"]
    return {**columns, "known_at": known_at(at, at, np.zeros(len(at), np.bool_))}


def _places(rows: pa.Table) -> Iterable[tuple[Place, bytes | None]]:
    """Rows in the order of their partitions and offsets."""
    ordered = rows.sort_by([("partition", "ascending"), ("offset", "ascending")])
    names = ("partition", "offset", "timestamp", "value")
    for partition, offset, received_at, value in zip(*(ordered[name].to_pylist() for name in names), strict=True):
        yield Place(partition, offset, received_at), value


def identity(one: Transaction) -> tuple[int, ...]:
    """Return what makes a transaction: its keys, its moment in microseconds, its amount in cents."""
    moment = one.transacted_at - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)  # type: ignore[operator]
    return one.transaction_id, one.customer_id, one.terminal_id, moment // dt.timedelta(microseconds=1), int(one.amount * 100)


def _validated(one: Transaction, place: Place) -> bytes:
    return b'%b,"received_at":"%b"}' % (ONE.dump_json(one)[:-1], moment(place.received_at).encode())


def _rejected(one: Rejected) -> bytes:
    place = one.place
    told = {"reason": one.reason, "column": one.column, "partition": place.partition, "offset": place.offset}
    return json.dumps({**told, "received_at": moment(place.received_at), "payload": one.payload}).encode()


def _rows(predictions: pa.RecordBatch) -> list[dict[str, Any]]:
    rows = predictions.to_pylist()
    for row in rows:
        row["transacted_at"], row["scored_at"] = moment(row["transacted_at"]), moment(row["scored_at"])
        row["amount"] = str(row["amount"])
    return rows


def _alert(prediction: dict[str, Any], transaction: Transaction) -> bytes:
    told = {name: value for name, value in prediction.items() if name not in ("features", "is_fraud", "reasons")}
    told |= {"currency": transaction.currency, "channel": transaction.channel, "device": transaction.device}
    told["reasons"] = [{**reason, "description": DESCRIPTIONS[reason["feature"]]} for reason in prediction["reasons"]]
    return json.dumps(told, separators=(",", ":")).encode()
