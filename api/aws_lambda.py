"""The notifier as an AWS Lambda function, for an event source mapping of Kafka (Amazon MSK or a cluster of one's own).

Each record goes to each channel; one that fails at any of them is reported, and Lambda brings it again. There is no Postgres here: a
record that comes again is sent again to all its channels, under the same idempotency key, and quiet times are refused. Retries
and dead letters are the mapping's: it needs `FunctionResponseTypes: [ReportBatchItemFailures]`, `MaximumRetryAttempts` and a
destination on failure, which also receives what is no alert.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterator
from typing import Any, Protocol

from api.channels import Configuration, DeliveryError, configuration
from api.notify import parse
from etl.errors import RefusedError
from etl.log import configure, logger
from etl.settings import settings

MARGIN_MILLISECONDS = 2000


class Context(Protocol):
    """What of Lambda's context is used."""

    def get_remaining_time_in_millis(self) -> int:
        """Return how long this call may go on."""


def handler(event: dict[str, Any], context: Context) -> dict[str, Any]:
    """Send the alerts of an event.

    Returns
    -------
    dict
        `batchItemFailures`: partition (`<topic>-<number>`) and offset of each record that has to come again.
    """
    here = _configured()
    failures = [
        {"itemIdentifier": {"partition": f"{record['topic']}-{record['partition']}", "offset": record["offset"]}}
        for record in _records(event)
        if not _is_sent(record, here, context)
    ]
    return {"batchItemFailures": failures}


@functools.cache
def _configured() -> Configuration:
    configure()
    here = configuration()
    if quiet := [name for name, channel in here.channels.items() if channel.quiet_seconds]:
        raise RefusedError(f"{settings().notify_file}: channel {quiet[0]} has quiet_seconds, which need bash/notify.sh; set 0")
    return here


def _records(event: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for records in event["records"].values():
        yield from records


def _is_sent(record: dict[str, Any], here: Configuration, context: Context) -> bool:
    place = f"{record['topic']}/{record['partition']}/{record['offset']}"
    try:
        alert = parse(base64.b64decode(record.get("value") or ""))
    except ValueError as error:
        logger.error("a message is no alert", place=place, reason=str(error))
        return False
    is_sent = True
    for name, channel in here.channels.items():
        if context.get_remaining_time_in_millis() < MARGIN_MILLISECONDS + 1000 * getattr(channel, "timeout_seconds", 0):
            logger.warning("no time left", channel=name, key=alert.idempotency_key)
            return False
        try:
            channel.send(alert.idempotency_key, here.render(name, alert))
            logger.info("sent", channel=name, key=alert.idempotency_key)
        except DeliveryError as error:
            logger.error("not sent", channel=name, key=alert.idempotency_key, error=str(error))
            is_sent = False
    return is_sent
