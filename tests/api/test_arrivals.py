"""Messages of the topic `transactions`: what is valid is read, and what anybody may write stops nobody."""

from __future__ import annotations

import datetime as dt
import json

import pytest

from api import arrivals, scores
from api.arrivals import Place, Rejected
from api.transaction import Transaction
from tests.api.server import GOOD

AT = Place(1, 5, dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC))


def parsed(**others: object) -> Transaction | Rejected:
    return arrivals.parsed(json.dumps({**GOOD, **others}).encode(), AT)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("note", "note"),
        ("note\0", "(unknown)"),
        ("n" * 3_000, "(unknown)"),
        ("n" * 100_000, "(unknown)"),
        ("4111111111111111", "(unknown)"),
    ],
)
def test_the_name_of_a_field_that_nobody_knows_is_told_only_where_it_is_a_plain_one(name: str, column: str):
    found = parsed(**{name: 1})
    assert isinstance(found, Rejected)
    assert (found.column, found.reason) == (column, "Extra inputs are not permitted")


def test_a_message_that_is_no_object_has_no_column():
    found = arrivals.parsed(b"5", AT)
    assert isinstance(found, Rejected)
    assert found.column is None


@pytest.mark.parametrize("message", [b"\xf0\x9f\x98\x80" * 300_000, b"\x01" * 1_000_000, b'{"' + b"n" * 1_000_000 + b'": 1}'])
def test_what_is_told_of_a_rejected_message_stays_below_what_a_topic_takes(message: bytes):
    found = arrivals.parsed(message, AT)
    assert isinstance(found, Rejected)
    assert len(scores._rejected(found)) < 128_000


def test_a_transaction_without_a_time_stays_without_one():
    found = parsed()
    assert isinstance(found, Transaction)
    assert found.transacted_at is None


def test_a_card_number_behind_escapes_is_masked_in_what_is_told_of_a_message():
    hidden = "".join(f"\\u{ord(one):04x}" for one in "4111111111111111")
    found = arrivals.parsed(f'{{"device": "{hidden}", "note": "\\u00e9"}}'.encode(), AT)
    assert isinstance(found, Rejected)
    assert found.payload == '{"device": "****************", "note": "\\u00e9"}'
