"""How far the stream job is behind: messages that arrived and are not scored, or that are not in the tables."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaException, TopicPartition

from api import broker
from etl.errors import RefusedError, UnavailableError, WarehouseError
from etl.log import run_main

TIMEOUT_SECONDS = 10
GROUPS = {"scores": broker.SCORES_GROUP, "tables": broker.TABLES_GROUP}
"""Queries of the job by the group under which each notes how far it has come."""
TOPICS = {"scores": (broker.TRANSACTIONS,), "tables": broker.TOPICS}


class LagError(WarehouseError):
    """The job is further behind than it may be."""


@dataclass(frozen=True)
class Lag:
    """Messages of one partition that a query has still before it."""

    query: str
    topic: str
    partition: int
    messages: int


def lags(*queries: str) -> Iterator[Lag]:
    """Return the lag of some queries, of both by default, on each partition of the topics that they read.

    Raises
    ------
    RefusedError
        When one of the topics is not made, or may not be looked at.
    UnavailableError
        When the broker does not answer.
    """
    try:
        for query in queries or GROUPS:
            consumer = Consumer(broker.consumer(GROUPS[query]))
            try:
                topics = consumer.list_topics(timeout=TIMEOUT_SECONDS).topics
                if missing := [topic for topic in TOPICS[query] if topic not in topics]:
                    raise RefusedError(
                        f"Kafka at {broker.address()} shows no topic {', '.join(missing)}: not made yet, or this user may not describe it; "
                        "bash/stack.sh up --realtime makes topics and rights"
                    )
                places = [TopicPartition(topic, one) for topic in TOPICS[query] for one in topics[topic].partitions]
                for place in broker.committed(consumer, places):
                    first, end = consumer.get_watermark_offsets(place, TIMEOUT_SECONDS)
                    # What the job itself writes ends with the mark of its transaction, which is no message.
                    mark = 0 if place.topic == broker.TRANSACTIONS else 1
                    yield Lag(query, place.topic, place.partition, max(end - max(place.offset, first) - mark, 0))
            finally:
                consumer.close()
    except KafkaException as error:
        raise UnavailableError(
            f"Kafka at {broker.address()} does not answer: {error.args[0].str()}; start it with bash/stack.sh up --realtime"
        ) from error


def behind(query: str) -> int:
    """Return the messages that a query has still before it, all partitions together; raises as `lags`."""
    return sum(one.messages for one in lags(query))


def main() -> None:
    """Parse the command line and print the lag."""
    parser = argparse.ArgumentParser(prog="bash/stream.sh lag", description=__doc__)
    parser.add_argument("--max", type=int, help="fail above so many messages, of either query, all partitions together")
    arguments = parser.parse_args()
    found = list(lags())
    print(f"{'query':<8} {'topic':<23} {'partition':>9} {'messages':>10}")
    for one in found:
        print(f"{one.query:<8} {one.topic:<23} {one.partition:>9} {one.messages:>10,}")
    sums = {query: sum(one.messages for one in found if one.query == query) for query in GROUPS}
    over = [f"{query} is {count:,} messages behind" for query, count in sums.items() if arguments.max is not None and count > arguments.max]
    if over:
        raise LagError(f"{' and '.join(over)}, more than {arguments.max:,}; look at bash/stack.sh logs stream")


if __name__ == "__main__":
    run_main(main)
