"""Rejected messages that are mended, before they are sent again."""

from __future__ import annotations

import datetime as dt
import json

import pytest

from api import rejects
from api.rejects import Reject
from tests.api.server import GOOD

MASKED = {**GOOD, "device": "**** **** **** ****"}


def mended(payload: object, **changes: object) -> bytes | str:
    text = payload if isinstance(payload, str) else json.dumps(payload)
    return rejects.mended(Reject(1, None, "was wrong", text, dt.datetime(2026, 11, 23, tzinfo=dt.UTC)), changes)


def test_a_message_is_sent_with_its_changes_and_an_empty_one_is_left_out():
    sent = mended({**GOOD, "channel": "pigeon", "note": 1}, channel="chip", note=None)
    assert isinstance(sent, bytes)
    assert json.loads(sent) == GOOD


@pytest.mark.parametrize("device", ["**** **** **** ****", "*" * 13, "a ****-****-****-**** b", "****\u2013****\u2013****\u2013****"])
def test_a_message_whose_card_number_was_masked_is_not_sent_before_the_field_is_changed(device: str):
    why = "holds a card number that was masked: change that field"
    assert mended({**GOOD, "device": device}) == why
    assert mended(json.dumps({**GOOD, "device": device}, ensure_ascii=False)) == why
    assert mended({**GOOD, "device": device}, channel="phone") == why
    sent = mended({**GOOD, "device": device}, device="card")
    assert isinstance(sent, bytes)
    assert json.loads(sent)["device"] == "card"


def test_a_few_stars_are_no_masked_number():
    assert isinstance(mended({**GOOD, "device": "*** 12 stars ************"}), bytes)


def test_a_message_that_no_topic_takes_is_told_before_it_is_sent():
    assert mended(json.dumps(GOOD) + " " * 200_000) == "is longer than a message may be"
