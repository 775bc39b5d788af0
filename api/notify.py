"""Send each alert of the topic `alerts` to each channel, at least once, under an idempotency key.

What arrives is recorded in Postgres (`ops.notifications`) before its offset is committed to Kafka, and sent from there: a kill loses
nothing and repeats at most the message under way. A channel has a thread and a queue of its own, so one that is down holds back no
other, and what waits for it waits on disk.
"""

from __future__ import annotations

import argparse
import random
import signal
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg2
from confluent_kafka import Consumer, KafkaException, TopicPartition
from psycopg2.extras import execute_values
from pydantic import ValidationError

from api import broker
from api.alert import Alert
from api.arrivals import payload_of
from api.channels import Configuration, DeliveryError, Retry, configuration
from api.notice import FailedCheck, Notice
from etl.card_numbers import mask_card_numbers
from etl.databases import connect, opened
from etl.errors import RefusedError, UnavailableError
from etl.log import logger, run_main
from etl.ops import lock_key
from etl.settings import settings

if TYPE_CHECKING:
    from confluent_kafka import Message
    from psycopg2.extensions import connection

POLL_SECONDS = 0.2
AWAY = (UnavailableError, psycopg2.OperationalError, psycopg2.InterfaceError)
"""What Postgres's absence raises."""

RECORD = """
INSERT INTO ops.notifications (idempotency_key, channel, customer_id, state, error, payload, ended_at) VALUES %s ON CONFLICT DO NOTHING
"""
TAKE = """
SELECT idempotency_key, customer_id, attempts, payload FROM ops.notifications
WHERE channel = %s AND state = 'pending' AND next_attempt_at <= clock_timestamp() AND (%s IS NULL OR idempotency_key = %s)
ORDER BY next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED
"""
WAS_SENT = """
SELECT 1 FROM ops.notifications WHERE channel = %s AND customer_id = %s AND state = 'sent'
AND ended_at > clock_timestamp() - make_interval(secs => %s) LIMIT 1
"""
END = """
UPDATE ops.notifications SET state = %s, attempts = %s, error = %s, ended_at = clock_timestamp()
WHERE idempotency_key = %s AND channel = %s
"""
LATER = """
UPDATE ops.notifications SET attempts = %s, error = %s, next_attempt_at = clock_timestamp() + make_interval(secs => %s)
WHERE idempotency_key = %s AND channel = %s
"""


GAPS = """
UPDATE ops.gaps SET told_at = clock_timestamp() WHERE told_at IS NULL
RETURNING query, topic, topic_id, partition, first_offset, last_offset, message_count, found_at
"""


@dataclass(frozen=True)
class Arrival:
    """A message of a topic, as it came."""

    topic: str
    partition: int
    offset: int
    value: bytes | None

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"{self.topic}/{self.partition}/{self.offset}"


def parsed(payload: str) -> Alert | Notice:
    """Return what was recorded: an alert, or a notice about data."""
    return Notice.model_validate_json(payload) if payload.startswith('{"run_id"') else parse(payload.encode())


def parse(value: bytes | None) -> Alert:
    """Return the alert of a message.

    Raises
    ------
    ValueError
        When it is none, saying why without a word of it.
    """
    try:
        return Alert.model_validate_json(value or b"")
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        raise ValueError(": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))) from None


def record(session: connection, arrivals: Iterable[Arrival], channels: Iterable[str]) -> None:
    """Record messages once for each channel, those that are no alerts as dead letters; what is recorded already stays as it is."""
    rows: list[tuple[object, ...]] = []
    for arrival in arrivals:
        try:
            alert = parse(arrival.value)
        except ValueError as error:
            logger.error("a message is no alert", place=arrival.place, reason=str(error))
            rows.append((arrival.place, "", None, "dead", str(error), payload_of(arrival.value), "now"))
            continue
        payload = mask_card_numbers(alert.model_dump_json())
        rows += [(alert.idempotency_key, name, alert.customer_id, "pending", None, payload, None) for name in channels]
    with session.cursor() as cursor:
        execute_values(cursor, RECORD, rows)


def record_gaps(session: connection, channels: Iterable[str]) -> None:
    """Record each gap that the stream job has found, once for each channel, as a notice."""
    with session.cursor() as cursor:
        cursor.execute(GAPS)
        for query, topic, topic_id, partition, first, last, count, found_at in cursor.fetchall():
            end = "on: the topic was made anew" if last is None else f"to {last:,}, {count:,} in all: the broker removed them"
            observed = f"query {query} did not read partition {partition} from offset {first:,} {end}"
            check = FailedCheck(table_name=f"topic {topic}", check_name="gap", severity="error", observed=observed)
            run_id = f"gap-{query}-{topic}-{partition}-{first}-{topic_id}"
            notice = Notice(run_id=run_id, checked_at=found_at, failed_checks=[check])
            rows = [(notice.idempotency_key, name, None, "pending", None, notice.model_dump_json(), None) for name in channels]
            execute_values(cursor, RECORD, rows)


def wait_seconds(retry: Retry, attempts: int) -> float:
    """Return how long to wait after so many failed attempts: doubled each time, up to a bound, of which half is left to chance."""
    longest = min(retry.longest_seconds, retry.first_seconds * 2.0 ** min(attempts - 1, 60))
    return longest * random.uniform(0.5, 1)  # noqa: S311 - spreads load, guards nothing


def tell(notice: Notice) -> None:
    """Record a notice for each channel and try to send it; what cannot be sent now waits for the notifier.

    Raises
    ------
    RefusedError
        When the channels' configuration is wrong.
    """
    here = configuration()
    with closing(connect("etl", "warehouse", "notify")) as session:
        with session, session.cursor() as cursor:
            rows = [(notice.idempotency_key, name, None, "pending", None, notice.model_dump_json(), None) for name in here.channels]
            execute_values(cursor, RECORD, rows)
        for name in here.channels:
            deliver_next(session, here, name, notice.idempotency_key)


def deliver_next(session: connection, here: Configuration, name: str, only: str | None = None) -> bool:
    """Send what is due the longest for a channel, or the message of one key; False when nothing is.

    A transaction of its own, whose row is locked meanwhile: of several notifiers one sends it. It ends with the attempt, and that
    after the channel's `timeout_seconds` at the latest.
    """
    channel = here.channels[name]
    with session, session.cursor() as cursor:
        cursor.execute(TAKE, (name, only, only))
        if (row := cursor.fetchone()) is None:
            return False
        key, customer_id, attempts, payload = row
        # Two alerts of one customer: the second looks for the first.
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (lock_key(f"notify {name} {customer_id}"),))
        cursor.execute(WAS_SENT, (name, customer_id, channel.quiet_seconds))
        if channel.quiet_seconds and cursor.fetchone():
            cursor.execute(END, ("quiet", attempts, None, key, name))
            logger.info("kept quiet", channel=name, key=key)
            return True
        attempts += 1
        try:
            channel.send(key, here.render(name, parsed(payload)))
        except (DeliveryError, ValueError) as error:
            # Other code may have recorded what this one does not take for an alert.
            is_dead = attempts >= here.retry.attempts or not isinstance(error, DeliveryError) or error.is_final
            if is_dead:
                cursor.execute(END, ("dead", attempts, str(error), key, name))
                logger.error("dead letter", channel=name, key=key, attempts=attempts, error=str(error))
            else:
                wait = wait_seconds(here.retry, attempts)
                cursor.execute(LATER, (attempts, str(error), wait, key, name))
                logger.warning("not sent", channel=name, key=key, attempts=attempts, error=str(error), again_in_seconds=round(wait, 1))
            return True
        cursor.execute(END, ("sent", attempts, None, key, name))
        logger.info("sent", channel=name, key=key, attempts=attempts)
    return True


def deliver(here: Configuration, name: str, stop: threading.Event) -> None:
    """Send what comes for a channel until told to stop."""
    while not stop.is_set():
        try:
            with closing(connect("etl", "warehouse", f"notify {name}")) as session:
                while not stop.is_set():
                    if not deliver_next(session, here, name):
                        stop.wait(POLL_SECONDS)
        except AWAY as error:
            logger.warning("Postgres is away", channel=name, error=type(error).__name__)
            stop.wait(2)


def consume(here: Configuration, stop: threading.Event) -> None:
    """Record what arrives until told to stop; touch the heartbeat file as long as that works."""
    # Not with the module: the Lambda function has no servers to start.
    from etl.stack.servers import heartbeat

    beat = heartbeat("notify")
    beat.parent.mkdir(parents=True, exist_ok=True)
    joined = threading.Event()
    # One that was killed holds its partition so long.
    consumer = Consumer({**broker.consumer("notify"), "session.timeout.ms": 10_000})
    consumer.subscribe([broker.ALERTS], on_assign=lambda *_: joined.set(), on_lost=lambda *_: joined.clear())
    names = list(here.channels)
    with ThreadPoolExecutor(len(names)) as pool:
        threads = [pool.submit(deliver, here, name, stop) for name in names]
        try:
            while not stop.is_set():
                for thread in threads:
                    if thread.done():
                        # It ended by a defect: so does the process.
                        thread.result()
                arrivals = [arrival for message in consumer.consume(500, timeout=1) if (arrival := _arrival(message))]
                try:
                    with opened("etl", "warehouse", "notify") as session:
                        record(session, arrivals, names)
                        record_gaps(session, names)
                except AWAY as error:
                    logger.warning("Postgres is away", error=type(error).__name__)
                    _go_back(consumer, arrivals)
                    stop.wait(2)
                    continue
                _commit(consumer, arrivals)
                if joined.is_set():
                    beat.touch()
        finally:
            stop.set()
            beat.unlink(missing_ok=True)
            consumer.close()


def _arrival(message: Message) -> Arrival | None:
    if error := message.error():
        logger.warning("Kafka", error=error.name())
        return None
    return Arrival(str(message.topic()), int(message.partition() or 0), int(message.offset() or 0), message.value())


def _go_back(consumer: Consumer, arrivals: list[Arrival]) -> None:
    """Read messages again that could not be recorded."""
    first = {(arrival.topic, arrival.partition): arrival.offset for arrival in reversed(arrivals)}
    try:
        for (topic, partition), offset in first.items():
            consumer.seek(TopicPartition(topic, partition, offset))
    except KafkaException as error:
        # The partition is another's now, who begins where the last commit is.
        logger.warning("Kafka", error=error.args[0].name())


def _commit(consumer: Consumer, arrivals: list[Arrival]) -> None:
    last = {(arrival.topic, arrival.partition): arrival.offset for arrival in arrivals}
    try:
        if last:
            consumer.commit(
                offsets=[TopicPartition(topic, partition, offset + 1) for (topic, partition), offset in last.items()], asynchronous=False
            )
    except KafkaException as error:
        # What is not committed comes again and is recorded already.
        logger.warning("Kafka took no commit", error=error.args[0].name())


def run() -> None:
    """Run the notifier until SIGTERM."""
    here = configuration()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    logger.info("notifier", channels=list(here.channels), kafka=broker.address())
    consume(here, stop)
    logger.info("notifier ended")


def dead() -> None:
    """Print the dead letters, oldest first."""
    with opened("etl", "warehouse") as session, session.cursor() as cursor:
        cursor.execute(
            "SELECT ended_at, idempotency_key, channel, attempts, error FROM ops.notifications WHERE state = 'dead' ORDER BY ended_at"
        )
        letters = cursor.fetchall()
    for ended_at, key, channel, attempts, error in letters:
        print(f"{ended_at:%Y-%m-%d %H:%M:%S}  {key:30}  {channel or '-':12}  {attempts:3}  {error}")
    print(f"{len(letters)} dead letters")


def retry(channels: list[str]) -> None:
    """Let dead letters of some channels be tried again.

    Raises
    ------
    RefusedError
        When there is no such channel.
    """
    known = list(configuration().channels)
    if unknown := sorted(set(channels) - set(known)):
        raise RefusedError(f"there is no channel {unknown[0]}; {settings().notify_file} has {', '.join(known)}")
    with opened("etl", "warehouse") as session, session.cursor() as cursor:
        cursor.execute(
            "UPDATE ops.notifications SET state = 'pending', attempts = 0, next_attempt_at = clock_timestamp(), ended_at = NULL "
            "WHERE state = 'dead' AND channel = ANY(%s)",
            (channels or known,),
        )
        print(f"{cursor.rowcount} dead letters are tried again")


def main() -> None:
    """Run a verb of bash/notify.sh."""
    parser = argparse.ArgumentParser(prog="bash/notify.sh", description=__doc__)
    verbs = parser.add_subparsers(dest="verb")
    verbs.add_parser("run")
    verbs.add_parser("dead")
    verbs.add_parser("retry").add_argument("channels", nargs="*", metavar="CHANNEL")
    given = parser.parse_args()
    match given.verb:
        case "dead":
            dead()
        case "retry":
            retry(given.channels)
        case _:
            run()


if __name__ == "__main__":
    run_main(main)
