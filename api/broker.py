"""How this project speaks to Kafka: addresses, and what every producer and consumer has in common."""

from __future__ import annotations

from typing import Any

from etl.settings import settings

# Written as constants once: a topic's name in the wrong place would be a topic of its own.
TRANSACTIONS = "transactions"
VALIDATED = "transactions.validated"
REJECTED = "transactions.rejected"
PREDICTIONS = "predictions"
ALERTS = "alerts"


def address() -> str:
    """Return the address of the broker, host:port."""
    return f"{settings().kafka_host}:{settings().port('kafka')}"


def client() -> dict[str, Any]:
    """Return librdkafka's configuration of any client; what fails is told by the call that fails, not by its log."""
    return {"bootstrap.servers": address(), "client.id": "card-fraud", "log_level": 2}


def producer() -> dict[str, Any]:
    """Return the configuration of a producer: acknowledged means on every replica, and sent again is written once."""
    return {**client(), "acks": "all", "enable.idempotence": True, "compression.type": "lz4"}


def consumer(group: str) -> dict[str, Any]:
    """Return the configuration of a consumer that says itself what it has done, and reads what was committed only."""
    return {
        **client(),
        "group.id": group,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
    }
