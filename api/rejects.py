"""Rejected messages of the stream lane: list them, mend them, send them again.

A message that is sent again is marked only after the broker has it. Killed in between, it is sent once more, and the stream job
leaves out what it has seen.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from api import arrivals, broker
from api.arrivals import Place, Rejected
from etl import ops
from etl.card_numbers import holds_masked
from etl.databases import opened
from etl.errors import RefusedError, UnavailableError, WarehouseError
from etl.log import run_main

TIMEOUT_SECONDS = 30


class StillRejectedError(WarehouseError):
    """Some messages are no transactions yet."""


@dataclass(frozen=True)
class Reject:
    """A message that waits to be mended; `payload` as it came in, card numbers masked."""

    reject_id: int
    column: str | None
    reason: str
    payload: str
    rejected_at: dt.datetime


def waiting(ids: Sequence[int] = (), limit: int | None = None) -> list[Reject]:
    """Return rejected messages that were not sent again, oldest first; those with some ids, or all."""
    with opened("etl", "warehouse") as session, session.cursor() as cursor:
        cursor.execute(
            "SELECT reject_id, column_name, reason, payload, rejected_at FROM ops.rejects WHERE origin LIKE 'topic %%' "
            "AND replayed_at IS NULL AND (%(all)s OR reject_id = ANY(%(ids)s)) ORDER BY reject_id LIMIT %(limit)s",
            {"all": not ids, "ids": list(ids), "limit": limit},
        )
        return [Reject(*row) for row in cursor.fetchall()]


def mended(reject: Reject, changes: dict[str, Any]) -> bytes | str:
    """Return a message with some fields changed, or why it is still no transaction."""
    text = reject.payload
    if changes:
        try:
            fields = json.loads(text)
        except ValueError:
            return "is not JSON: give the whole message with --file"
        if not isinstance(fields, dict):
            return "is no JSON object: give the whole message with --file"
        text = json.dumps({name: value for name, value in {**fields, **changes}.items() if value is not None})
    if holds_masked(text):
        return "holds a card number that was masked: change that field"
    found = arrivals.parsed(text.encode(), Place(0, 0, dt.datetime.now(dt.UTC)))
    if isinstance(found, Rejected):
        return f"{found.column}: {found.reason}" if found.column else found.reason
    return text.encode()


def send(messages: Iterable[tuple[int, bytes]]) -> None:
    """Send messages to the topic and mark their rejects.

    Raises
    ------
    UnavailableError
        When the broker did not take all of them; those that it took are marked.
    """
    taken: list[int] = []
    failed: list[str] = []

    def delivered(number: int) -> Any:
        def callback(error: KafkaError | None, _: Message) -> None:
            failed.append(error.str()) if error else taken.append(number)

        return callback

    producer = Producer({**broker.producer(), "delivery.timeout.ms": TIMEOUT_SECONDS * 1000})
    for number, value in messages:
        broker.produce(producer, broker.TRANSACTIONS, value, str(json.loads(value)["customer_id"]), on_delivery=delivered(number))
    producer.flush()
    with opened("etl", "warehouse") as session, session.cursor() as cursor:
        cursor.execute("UPDATE ops.rejects SET replayed_at = clock_timestamp() WHERE reject_id = ANY(%s)", (taken,))
    if failed:
        raise UnavailableError(
            f"Kafka at {broker.address()} did not take {len(failed):,} messages: {failed[0]}; run the same command again"
        )


def show(found: Sequence[Reject], is_json: bool) -> None:
    """Print rejects for people, or one JSON object a line, as `replay --file` reads them."""
    for one in found:
        if is_json:
            print(json.dumps({"reject_id": one.reject_id, "column": one.column, "reason": one.reason, "payload": one.payload}))
        else:
            print(
                f"{one.reject_id:>8}  {one.rejected_at:%Y-%m-%d %H:%M:%S}  {one.column or '-'}: {one.reason}\n          {one.payload[:160]}"
            )
    if not found:
        print("no rejected message waits", file=sys.stderr)


def replay(rejects: Sequence[Reject], changes: dict[str, Any], only_valid: bool = False) -> int:
    """Mend rejects and send them; returns how many were sent.

    Parameters
    ----------
    only_valid
        Those that are still no transactions stay, which is no failure.

    Raises
    ------
    StillRejectedError
        When some are still no transactions: those stay, the others were sent.
    """
    found = [(one, mended(one, changes)) for one in rejects]
    good = [(one.reject_id, value) for one, value in found if isinstance(value, bytes)]
    bad = [(one.reject_id, why) for one, why in found if isinstance(why, str)]
    if good:
        send(good)
    if only_valid:
        return len(good)
    for number, why in bad:
        print(f"{number:>8}  {why}", file=sys.stderr)
    if bad:
        raise StillRejectedError(
            f"{len(bad):,} of {len(found):,} messages are still no transactions and stay rejected, {len(good):,} were sent; "
            "change fields with --set, or the whole messages with --file"
        )
    return len(good)


def _change(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError("must be FIELD=VALUE")
    try:
        return name, json.loads(value) if value else None
    except ValueError:
        return name, value


def _from_file(lines: Iterable[str]) -> list[Reject]:
    given = {}
    for number, line in enumerate(lines, 1):
        try:
            one = json.loads(line)
            payload = one["payload"]
            given[int(one["reject_id"])] = payload if isinstance(payload, str) else json.dumps(payload)
        except (ValueError, KeyError, TypeError) as error:
            raise RefusedError(
                f"line {number} of the file is not as bash/rejects.sh list --json writes them: {error}; nothing was sent"
            ) from error
    found = waiting(list(given)) if given else []
    return [Reject(one.reject_id, one.column, one.reason, given[one.reject_id], one.rejected_at) for one in found]


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="bash/rejects.sh", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    listing = verbs.add_parser("list", help="show the messages that wait")
    listing.add_argument("--limit", type=int, default=100, help="at most so many (100)")
    listing.add_argument("--json", action="store_true", help="one JSON object a line, to be mended and given to replay --file")
    again = verbs.add_parser("replay", help="send messages again")
    again.add_argument("ids", nargs="*", type=int, metavar="ID", help="those with these numbers; all by default")
    again.add_argument(
        "--set",
        dest="changes",
        action="append",
        type=_change,
        default=[],
        metavar="FIELD=VALUE",
        help="change a field in each; empty: remove it",
    )
    again.add_argument("--file", type=argparse.FileType(), help="messages as list --json writes them, mended; - for standard input")
    again.add_argument("--only-valid", action="store_true", help="those that are transactions by now; the others stay, without a failure")
    arguments = parser.parse_args()
    if arguments.verb == "list":
        show(waiting(limit=arguments.limit), arguments.json)
        return
    with ops.run("rejects"):
        chosen = _from_file(arguments.file) if arguments.file else waiting(arguments.ids)
        sent = replay(chosen, dict(arguments.changes), arguments.only_valid)
        print(f"{sent:,} messages sent again, {len(chosen) - sent:,} stay rejected")


if __name__ == "__main__":
    run_main(main)
