"""The declared topics, and with SASL_SSL users and their rights: made where missing, or other than declared; `python -m api.topics`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, NewTopic, ResourceType

from api import broker, users
from etl.errors import RefusedError, UnavailableError
from etl.log import logger, run_main
from etl.settings import settings

DECLARATION = Path(__file__).with_name("topics.yaml")
HOUR_MS = 3_600_000
HOLD_SECONDS = 10
FIELDS = {"partitions", "retention_hours", "max_message_bytes"}
BROKERS_TIME = {"message.timestamp.type": "LogAppendTime"}
"""A message's time is when the broker took it: how long it stays goes by that, never by what its producer says."""
REFUSALS = {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED, KafkaError.POLICY_VIOLATION}
REFUSALS |= {KafkaError.INVALID_CONFIG}


@dataclass(frozen=True)
class Topic:
    """A topic as it is declared."""

    name: str
    partitions: int
    retention_hours: int
    max_message_bytes: int

    @property
    def configuration(self) -> dict[str, str]:
        """What is declared beside the partitions, as Kafka writes it."""
        own = {"retention.ms": str(self.retention_hours * HOUR_MS), "max.message.bytes": str(self.max_message_bytes)}
        return {**own, **BROKERS_TIME}


def declared(path: Path = DECLARATION) -> list[Topic]:
    """Return the topics of a declaration.

    Raises
    ------
    RefusedError
        When a topic has anything but partitions, retention_hours and max_message_bytes, all whole and above zero.
    """
    topics = []
    for name, fields in yaml.safe_load(path.read_text()).items():
        if not isinstance(fields, dict) or fields.keys() != FIELDS or any(type(value) is not int or value < 1 for value in fields.values()):
            raise RefusedError(
                f"{path.name}: topic {name} needs partitions, retention_hours and max_message_bytes, whole numbers above zero, no more"
            )
        topics.append(Topic(name, **fields))
    return topics


def apply(topics: list[Topic], configuration: dict[str, Any] | None = None) -> None:
    """Make the broker's topics as declared; topics that are not declared stay as they are.

    Raises
    ------
    RefusedError
        When a topic has more partitions than declared: messages in them would be lost. Then nothing is changed.
        When the broker does not let a topic be as declared, or it is otherwise afterwards.
    UnavailableError
        When the broker does not answer.
    """
    admin = AdminClient(configuration or broker.client())
    try:
        found = {name: len(topic.partitions) for name, topic in admin.list_topics(timeout=broker.ANSWER_SECONDS).topics.items()}
        if larger := [topic for topic in topics if found.get(topic.name, 0) > topic.partitions]:
            raise RefusedError(
                "; ".join(f"topic {topic.name} has {found[topic.name]} partitions, {topic.partitions} are declared" for topic in larger)
                + "; partitions cannot be taken away: declare as many in api/topics.yaml, or drain and delete the topic first"
            )
        _make([topic for topic in topics if topic.name not in found], admin)
        known = [topic for topic in topics if topic.name in found]
        _add_partitions([topic for topic in known if found[topic.name] < topic.partitions], admin)
        _configure(known, admin)
        _look(topics, admin)
    except KafkaException as error:
        if error.args[0].code() in REFUSALS:
            wanted = "; ".join(f"{topic.name}: {_told(topic.configuration)}" for topic in topics)
            raise RefusedError(
                f"the broker at {broker.address()} does not permit it: {error.args[0].str()}; "
                f"let whoever runs it make the topics so: {wanted}"
            ) from error
        raise UnavailableError(f"the broker at {broker.address()} does not do it: {error.args[0].str()}; is Kafka up?") from error


def resource(name: str, changes: list[ConfigEntry] | None = None) -> ConfigResource:
    """Return a topic as the broker's configuration knows it."""
    return ConfigResource(ResourceType.TOPIC, name, incremental_configs=changes)


def _make(topics: list[Topic], admin: AdminClient) -> None:
    if not topics:
        return
    new = [NewTopic(topic.name, num_partitions=topic.partitions, replication_factor=1, config=topic.configuration) for topic in topics]
    broker.await_all(admin.create_topics(new))
    for topic in topics:
        logger.info("topic made", topic=topic.name, partitions=topic.partitions, **topic.configuration)


def _add_partitions(topics: list[Topic], admin: AdminClient) -> None:
    if topics:
        broker.await_all(admin.create_partitions([NewPartitions(topic.name, topic.partitions) for topic in topics]))
        for topic in topics:
            logger.info("topic has more partitions", topic=topic.name, partitions=topic.partitions)


def _others(wanted: dict[str, dict[str, str]], admin: AdminClient) -> dict[str, dict[str, str]]:
    """Return what topics should have, by topic, and do not."""
    resources = [resource(name) for name in wanted]
    found = {
        one.name: answer.result(broker.ANSWER_SECONDS) for one, answer in (admin.describe_configs(resources) if resources else {}).items()
    }
    others = {
        topic: {name: value for name, value in fields.items() if name not in found[topic] or found[topic][name].value != value}
        for topic, fields in wanted.items()
    }
    return {topic: fields for topic, fields in others.items() if fields}


def _configure(topics: list[Topic], admin: AdminClient) -> None:
    changed = []
    for topic, other in _others({topic.name: topic.configuration for topic in topics}, admin).items():
        entries = [ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in other.items()]
        changed.append(resource(topic, entries))
        logger.info("topic is configured otherwise", topic=topic, **other)
    if changed:
        broker.await_all(admin.incremental_alter_configs(changed))


def _look(topics: list[Topic], admin: AdminClient) -> None:
    """Refuse what the broker took and did not do; it may need a moment."""
    wanted = {topic.name: topic.configuration for topic in topics}
    deadline = time.monotonic() + HOLD_SECONDS
    while True:
        is_last = time.monotonic() > deadline
        try:
            if not (others := _others(wanted, admin)):
                return
        except KafkaException as error:
            # A topic that was made a moment ago.
            if is_last or error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise
            others = {}
        if is_last:
            raise RefusedError(
                f"the broker at {broker.address()} took what was declared and has it otherwise: "
                + "; ".join(f"topic {name} is to have {_told(fields)}" for name, fields in others.items())
                + "; let whoever runs it set that"
            )
        time.sleep(0.2)


def _told(fields: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in fields.items())


def refuse_producers_time(names: Iterable[str]) -> None:
    """Refuse topics whose messages stay as long as their producers say.

    Raises
    ------
    RefusedError
        Naming them, or saying that this user may not look.
    confluent_kafka.KafkaException
        When the broker does not answer.
    """
    try:
        others = _others(dict.fromkeys(names, BROKERS_TIME), AdminClient(broker.client()))
    except KafkaException as error:
        if error.args[0].code() not in REFUSALS:
            raise
        raise RefusedError(
            f"whose time the topics at {broker.address()} go by cannot be told: {error.args[0].str()}; give this user the right "
            "describe_configs on them, as api/users.yaml has it"
        ) from error
    if others:
        raise RefusedError(
            f"the broker at {broker.address()} keeps messages of {', '.join(others)} by the time that their producers set, and would "
            f"delete some unread; set {_told(BROKERS_TIME)} on these topics: `python -m api.topics` does, or whoever runs the broker"
        )


def main() -> None:
    """Make the broker's topics as `api/topics.yaml` declares them, and users as `api/users.yaml` does."""
    argparse.ArgumentParser(prog="python -m api.topics", description=__doc__).parse_args()
    apply(declared())
    if settings().kafka_security == "SASL_SSL":
        users.apply(users.declared())


if __name__ == "__main__":
    run_main(main)
