"""Gaps: what the broker removed before the stream job read it, named, counted and recorded once, so that what follows may go on.

Where a query stands, Spark's checkpoint says; it counts the marks of transactions and aborted messages, so that offsets without a
message in the midst of a log are no gap. Below a partition's first offset nobody can tell what was there: all of it counts.
A topic that was made anew begins at 0 again, which a checkpoint cannot: the query then begins another one (`Beginning`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from confluent_kafka import Consumer, IsolationLevel, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from api import broker, meters
from etl import ops
from etl.databases import opened
from etl.errors import WarehouseError
from etl.faults import named_faults
from etl.log import logger
from etl.settings import settings
from etl.storage import names_in, replace, storage

Place = tuple[str, int]
"""A topic and one of its partitions."""

RECORD = """
INSERT INTO ops.gaps (run_id, query, topic, topic_id, partition, first_offset, last_offset, message_count)
SELECT %(run)s, %(query)s, %(topic)s, %(id)s, %(partition)s, first, %(last)s, %(last)s - first + 1
FROM (
    SELECT greatest(%(first)s, coalesce(max(last_offset) + 1, 0)) AS first FROM ops.gaps
    WHERE query = %(query)s AND topic = %(topic)s AND topic_id = %(id)s AND partition = %(partition)s
) AS known
WHERE %(last)s IS NULL OR first <= %(last)s
ON CONFLICT DO NOTHING RETURNING first_offset, message_count
"""


class RecreatedError(WarehouseError):
    """A topic is another than the one that the query began with."""


def described(topics: Iterable[str], admin: AdminClient) -> tuple[dict[str, str], list[Place]]:
    """Return what tells each topic from another one of its name, and the partitions of all."""
    answers = admin.describe_topics(TopicCollection(list(topics)), request_timeout=broker.ANSWER_SECONDS)
    found = {name: answer.result(broker.ANSWER_SECONDS) for name, answer in answers.items()}
    return {name: str(one.topic_id) for name, one in found.items()}, [
        (name, part.id) for name, one in found.items() for part in one.partitions
    ]


def offsets(places: Iterable[Place], admin: AdminClient, at: OffsetSpec) -> dict[Place, int]:
    """Return the first offset of each partition, or the one after the last that was committed."""
    asked = {TopicPartition(*place): at for place in places}
    answers = admin.list_offsets(asked, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=broker.ANSWER_SECONDS)
    return {(place.topic, place.partition): answer.result(broker.ANSWER_SECONDS).offset for place, answer in answers.items()}


def checkpoint(query: str) -> str:
    """Return the folder in HDFS where a query notes what it does."""
    return f"{settings().warehouse_path}/_stream/{query}"


def _content(path: str) -> bytes | None:
    if storage().status(path, strict=False) is None:
        return None
    with storage().read(path) as reader:
        return bytes(reader.read())


def noted(query: str, number: int | None = None) -> dict[Place, int]:
    """Return where a micro-batch ends by a query's checkpoint, by default the newest that was committed; empty where there is none."""
    folder = checkpoint(query)
    if number is None:
        committed = [int(name) for name in names_in(f"{folder}/commits") if name.isdecimal()]
        if not committed:
            return {}
        number = max(committed)
    lines = (_content(f"{folder}/offsets/{number}") or b"").decode().splitlines()
    return read_offsets(json.loads(lines[2])) if len(lines) > 2 else {}


def read_offsets(told: dict[str, dict[str, int]]) -> dict[Place, int]:
    """Read offsets as Spark writes them."""
    return {(topic, int(partition)): end for topic, ends in told.items() for partition, end in ends.items()}


@dataclass
class Beginning:
    """What a query began with: the topics' ids, and offsets where it took the place of another checkpoint, named by the other's id."""

    query: str
    ids: dict[str, str]
    offsets: dict[str, dict[str, int]] | None = None
    replaces: str | None = None

    @classmethod
    def read(cls, query: str) -> Beginning | None:
        """Return what is noted, None where nothing is."""
        found = _content(f"{checkpoint(query)}.json")
        return None if found is None else cls(query, **json.loads(found))

    def write(self) -> None:
        """Note it."""
        told = {"ids": self.ids, "offsets": self.offsets, "replaces": self.replaces}
        replace(f"{checkpoint(self.query)}.json", json.dumps(told).encode())

    def is_begun(self) -> bool:
        """Whether the query has a checkpoint of this beginning; one that it takes the place of is put away."""
        found = _content(f"{checkpoint(self.query)}/metadata")
        if found is None:
            return False
        if self.replaces is not None and json.loads(found)["id"] == self.replaces:
            storage().rename(checkpoint(self.query), f"{checkpoint(self.query)}-{self.replaces}")
            return False
        return True


class Gaps:
    """Looks after the gaps of one query.

    Parameters
    ----------
    query
        Name of the query.
    topics
        What it reads.
    group
        Under which it notes how far it has come.
    """

    def __init__(self, query: str, topics: tuple[str, ...], group: str, run: ops.Run) -> None:
        self._query, self._topics, self._group, self._run = query, topics, group, run
        self._admin = AdminClient(broker.client())
        self._positions: dict[Place, int] = {}
        self._ids: dict[str, str] = {}

    def begin(self) -> dict[str, dict[str, int]] | None:
        """Record what was lost while nobody read; begin another checkpoint where a topic was made anew.

        Returns
        -------
        dict or None
            Where a new checkpoint has to begin, by topic and partition; None for the first offsets.
        """
        with named_faults():
            return self._begin()

    def _begin(self) -> dict[str, dict[str, int]] | None:
        ids, places = described(self._topics, self._admin)
        first = offsets(places, self._admin, OffsetSpec.earliest())
        end = offsets(places, self._admin, OffsetSpec.latest())
        beginning = Beginning.read(self._query) or Beginning(self._query, ids)
        is_begun = beginning.is_begun()
        start = beginning.offsets or {}
        at = {place: max(start.get(place[0], {}).get(str(place[1]), 0), 0) for place in first}
        at |= {place: offset for place, offset in noted(self._query).items() if place in first}
        others = {topic for topic in self._topics if beginning.ids.get(topic, ids[topic]) != ids[topic]}
        # Whose log ends before what was read of it lost its end, or was made anew before ids were noted: it is read again.
        cut = {topic for topic, partition in at if at[topic, partition] > end[topic, partition]} - others
        others |= cut
        # What was told and not noted yet is told. An offset beyond the log is another one's.
        told = {place: offset for place, offset in self._committed(first).items() if place[0] not in others and offset <= end[place]}
        self._positions = {place: max(offset, told.get(place, 0)) for place, offset in at.items()}
        self._ids = ids
        for topic in sorted(others):
            for place in sorted(place for place in at if place[0] == topic):
                self._record(place, self._positions[place], None, beginning.ids.get(topic, f"before {ids[topic]}"))
                self._positions[place] = first[place] if topic in cut else 0
        for place, offset in self._positions.items():
            if offset < first[place]:
                self._record(place, offset, first[place] - 1, ids[place[0]])
                self._positions[place] = first[place]
        if others:
            self._forget([place for place in first if place[0] in others])
            metadata = _content(f"{checkpoint(self._query)}/metadata") if is_begun else None
            begin_at: dict[str, dict[str, int]] = {}
            for (topic, partition), offset in self._positions.items():
                begin_at.setdefault(topic, {})[str(partition)] = offset
            beginning = Beginning(self._query, ids, begin_at, None if metadata is None else json.loads(metadata)["id"])
            beginning.write()
            beginning.is_begun()
        elif is_begun and beginning.replaces is not None:
            Beginning(self._query, ids, beginning.offsets).write()
        elif Beginning.read(self._query) is None or beginning.ids != ids:
            Beginning(self._query, ids, beginning.offsets, beginning.replaces).write()
        return beginning.offsets

    def has_all(self, told: dict[str, dict[str, int]] | None) -> bool:
        """Whether a query that has come so far, as Spark tells it, has nothing before it."""
        at = self._positions if told is None else read_offsets(told)
        _, places = described(self._topics, self._admin)
        return all(at.get(place, 0) >= offset for place, offset in offsets(places, self._admin, OffsetSpec.latest()).items())

    def _committed(self, places: Iterable[Place]) -> dict[Place, int]:
        return self._with_consumer(
            lambda by: {
                (one.topic, one.partition): max(one.offset, 0)
                for one in broker.committed(by, [TopicPartition(topic, partition) for topic, partition in places])
            }
        )

    def _forget(self, places: list[Place]) -> None:
        """Set the group back to the beginning of a topic that was made anew."""
        back = [TopicPartition(topic, partition, self._positions[topic, partition]) for topic, partition in places]
        self._with_consumer(lambda by: by.commit(offsets=back, asynchronous=False))

    def _with_consumer(self, call: Callable[[Consumer], Any]) -> Any:
        consumer = Consumer(broker.consumer(self._group))
        try:
            return call(consumer)
        finally:
            consumer.close()

    def look(self, rows: pa.Table, number: int) -> None:
        """Record what a micro-batch should have read and has not, before any of it is told.

        Parameters
        ----------
        rows
            topic, partition and offset of what it has read.
        number
            Of the micro-batch.

        Raises
        ------
        RecreatedError
            When a topic was made anew meanwhile: what the micro-batch has read is neither.
        """
        ids, places = described(self._topics, self._admin)
        if others := [topic for topic in self._topics if ids[topic] != self._ids[topic]]:
            raise RecreatedError(f"topic {', '.join(others)} was made anew; the next start reads it from its beginning")
        first = offsets(places, self._admin, OffsetSpec.earliest())
        behind = {place for place, offset in first.items() if offset > self._positions.get(place, 0)}
        if behind:
            with named_faults():
                start, end = noted(self._query, number - 1) if number else {}, noted(self._query, number)
            read: dict[Place, list[int]] = {}
            for topic, partition, offset in zip(*(rows[name].to_pylist() for name in ("topic", "partition", "offset")), strict=True):
                read.setdefault((topic, partition), []).append(offset)
            for place in sorted(behind):
                # The position of this process may be further: it was told, and not noted.
                begin = max(self._positions.get(place, 0), start.get(place, 0))
                below = min(first[place], end.get(place, first[place]))
                for low, high in unread(begin, below, read.get(place, []), has_marks=place[0] != broker.TRANSACTIONS):
                    self._record(place, low, high, ids[place[0]])
                self._positions[place] = max(begin, below)
        for (topic, partition), offset in _newest(rows).items():
            self._positions[topic, partition] = max(self._positions.get((topic, partition), 0), offset + 1)

    def _record(self, place: Place, first: int, last: int | None, topic_id: str) -> None:
        """Record a gap; one that is recorded already, as far as it is."""
        topic, partition = place
        given = {"run": self._run.run_id, "query": self._query, "topic": topic, "id": topic_id, "partition": partition}
        with opened("etl", "warehouse") as session, session.cursor() as cursor:
            cursor.execute(RECORD, {**given, "first": first, "last": last})
            new = cursor.fetchone()
        if new is None:
            return
        where = {"query": self._query, "topic": topic, "partition": partition, "first": new[0]}
        if last is None:
            logger.error("a topic was made anew: what it held from an offset on and was not read is lost", **where)
        else:
            logger.error("a gap: the broker removed messages before they were read", **where, last=last, count=new[1])
        meters.LOST.labels(self._query, topic).inc(new[1] or 0)
        meters.GAPS.labels(self._query, topic).inc()


def unread(begin: int, below: int, read: list[int], has_marks: bool) -> list[tuple[int, int]]:
    """Return the ranges of offsets that were removed before they were read: those from a beginning on that lie below the first offset.

    What was read was read from the first offset of its moment on. So what is missing before it was removed; what is missing in the
    midst is a mark of a transaction unless it ends where the log now begins; there one offset alone is one, in a topic that has marks.
    """
    found = []
    at = begin
    for offset in [*sorted(one for one in read if begin <= one < below), below]:
        is_mark = has_marks and bool(read) and offset == at + 1
        if offset > at and (at == begin or offset == below) and not is_mark:
            found.append((at, offset - 1))
        at = offset + 1
    return found


def _newest(rows: pa.Table) -> dict[Place, int]:
    newest = rows.group_by(["topic", "partition"]).aggregate([("offset", "max")]).to_pylist()
    return {(one["topic"], one["partition"]): one["offset_max"] for one in newest}
