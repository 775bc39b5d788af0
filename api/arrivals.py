"""What arrives on the topic `transactions`, checked again: anybody may write there."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from pydantic import ValidationError

from api import broker
from api.transaction import ONE, Transaction, field_name, is_too_far_ahead
from etl.card_numbers import mask_card_numbers, mask_card_numbers_in_json

MAX_PAYLOAD = 10_000
"""Characters of a rejected message that are kept with the reason; the whole message is in raw.events."""


@dataclass(frozen=True)
class Place:
    """Where a message stands, and when it arrived."""

    partition: int
    offset: int
    received_at: dt.datetime


@dataclass(frozen=True)
class Rejected:
    """A message that is no transaction, and why."""

    place: Place
    reason: str
    column: str | None
    payload: str


def payload_of(value: bytes | None) -> str:
    """Return the beginning of a message as text without card numbers; what is no UTF-8, and what Postgres cannot hold, becomes a mark."""
    text = (value or b"").decode("utf-8", errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
    return mask_card_numbers_in_json(text)[:MAX_PAYLOAD]


def parsed(value: bytes | None, place: Place) -> Transaction | Rejected:
    """Read one message; a transaction may have no time yet."""

    def rejected(reason: str, column: str | None = None) -> Rejected:
        return Rejected(place, mask_card_numbers(reason), column, payload_of(value))

    if value and len(value) > broker.LARGEST_MESSAGE:
        return rejected("is longer than a message may be")
    try:
        found = ONE.validate_json(value or b"")
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return rejected(first["msg"], field_name(first["loc"]) or None)
    if is_too_far_ahead(found, place.received_at):
        return rejected("lies more than a day after its arrival", "transacted_at")
    return found
