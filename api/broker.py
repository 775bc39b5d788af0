"""How this project speaks to Kafka: addresses, and what every producer and consumer has in common."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from etl.errors import RefusedError
from etl.settings import settings

# Written as constants once: a topic's name in the wrong place would be a topic of its own.
TRANSACTIONS = "transactions"
VALIDATED = "transactions.validated"
REJECTED = "transactions.rejected"
PREDICTIONS = "predictions"
ALERTS = "alerts"
TOPICS = (TRANSACTIONS, VALIDATED, REJECTED, PREDICTIONS, ALERTS)

SCORES_GROUP = "stream"
TABLES_GROUP = "stream-tables"
"""Groups under which the two queries of the stream job note how far they have come."""

LARGEST_MESSAGE = 131_072
"""Bytes of a message on `transactions`, as api/topics.yaml declares them: the stream job holds thousands of messages at once."""

ANSWER_SECONDS = 30
"""How long the broker may take to do what it is asked."""

MECHANISM = "SCRAM-SHA-512"
JAVA_LOGIN = "org.apache.kafka.common.security.scram.ScramLoginModule"


def address() -> str:
    """Return the address of the broker, host:port."""
    return f"{settings().kafka_host}:{settings().port('kafka')}"


def client() -> dict[str, Any]:
    """Return librdkafka's configuration of any client; what fails is told by the call that fails, not by its log."""
    found: dict[str, Any] = {"bootstrap.servers": address(), "client.id": "card-fraud", "log_level": 2}
    if settings().kafka_security == "SASL_SSL":
        user, password, certificates = _credentials()
        found |= {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": MECHANISM,
            "sasl.username": user,
            "sasl.password": password,
            "ssl.ca.location": str(certificates),
        }
    return found


def _credentials() -> tuple[str, str, Path]:
    """Return user, password and the file of certificates.

    Raises
    ------
    RefusedError
        When one of the files cannot be read.
    """
    here = settings()
    password = here.kafka_password_file or here.kafka_secrets / f"{here.kafka_user}.password"
    certificates = here.kafka_ca_file or here.kafka_secrets / "ca.pem"
    try:
        certificates.open().close()
        return here.kafka_user, password.read_text().strip(), certificates
    except OSError as error:
        raise RefusedError(
            f"{error.filename} cannot be read ({error.strerror}), which Kafka's user {here.kafka_user} needs with SASL_SSL; "
            "bash/certificates.sh and bash/stack.sh up --realtime make it for the local broker"
        ) from error


def java_client() -> dict[str, str]:
    """Return the configuration of a client that is written in Java, as Spark's."""
    found = {"bootstrap.servers": address()}
    if settings().kafka_security == "SASL_SSL":
        user, password, certificates = _credentials()
        found |= {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": MECHANISM,
            "sasl.jaas.config": f'{JAVA_LOGIN} required username="{user}" password="{password}";',
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(certificates),
        }
    return found


def await_all(answers: dict[Any, Future[Any]]) -> None:
    """Return when the broker has done all that was asked; raises the first failure."""
    for answer in answers.values():
        answer.result(ANSWER_SECONDS)


def producer() -> dict[str, Any]:
    """Return the configuration of a producer: acknowledged means on every replica, and sent again is written once."""
    # The broker's limit is on what is sent together, not on each message.
    limits = {"message.max.bytes": LARGEST_MESSAGE, "batch.size": LARGEST_MESSAGE // 2}
    return {**client(), **limits, "acks": "all", "enable.idempotence": True, "compression.type": "lz4"}


def produce(to: Producer, topic: str, value: bytes, key: str | None, **more: Any) -> None:
    """Hand a message to a producer, waiting while it holds as many as it may."""
    while True:
        try:
            to.produce(topic, value, key, **more)
            return
        except BufferError:
            to.poll(1)


_COORDINATOR_MOVES = {KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS}


def committed(by: Consumer, places: list[TopicPartition]) -> list[TopicPartition]:
    """Return the offsets that a consumer's group has committed, below zero where it has none.

    A broker that has just started says for some seconds that it does not know the group: it is asked again.

    Raises
    ------
    KafkaException
        When the broker does not answer in time.
    """
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            return by.committed(places, ANSWER_SECONDS) if places else []
        except KafkaException as error:
            if error.args[0].code() not in _COORDINATOR_MOVES or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def consumer(group: str) -> dict[str, Any]:
    """Return the configuration of a consumer that says itself what it has done, and reads what was committed only."""
    return {
        **client(),
        "group.id": group,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
    }
