"""The declared topics, and with SASL_SSL users and their rights: made where missing, or other than declared; `python -m api.topics`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, NewTopic, ResourceType

from api import broker, users
from etl.errors import RefusedError, UnavailableError
from etl.log import logger, run_main
from etl.settings import settings

DECLARATION = Path(__file__).with_name("topics.yaml")
HOUR_MS = 3_600_000
FIELDS = {"partitions", "retention_hours", "max_message_bytes"}


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
        return {"retention.ms": str(self.retention_hours * HOUR_MS), "max.message.bytes": str(self.max_message_bytes)}


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
    except KafkaException as error:
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


def _configure(topics: list[Topic], admin: AdminClient) -> None:
    resources = {resource(topic.name): topic for topic in topics}
    if not resources:
        return
    changed = []
    for described, answer in admin.describe_configs(list(resources)).items():
        topic = resources[described]
        found = answer.result(broker.ANSWER_SECONDS)
        other = {name: value for name, value in topic.configuration.items() if found[name].value != value}
        if other:
            entries = [ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in other.items()]
            changed.append(resource(topic.name, entries))
            logger.info("topic is configured otherwise", topic=topic.name, **other)
    if changed:
        broker.await_all(admin.incremental_alter_configs(changed))


def main() -> None:
    """Make the broker's topics as `api/topics.yaml` declares them, and users as `api/users.yaml` does."""
    argparse.ArgumentParser(prog="python -m api.topics", description=__doc__).parse_args()
    apply(declared())
    if settings().kafka_security == "SASL_SSL":
        users.apply(users.declared())


if __name__ == "__main__":
    run_main(main)
