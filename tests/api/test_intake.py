"""Bodies of requests: what is valid goes on, what is not is told without being repeated."""

from __future__ import annotations

import datetime as dt
import json
import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import intake
from api.problems import ProblemError

NOW = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
GOOD = {"transaction_id": 7, "customer_id": 2, "terminal_id": 3, "amount": "1.50", "currency": "EUR", "channel": "chip"}
FIELDS = [*GOOD, "transacted_at", "device"]


def read(content: Any, how: intake.Kind = "json") -> intake.Batch:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return intake.read(body, how, NOW)


def ids(batch: intake.Batch) -> list[int]:
    return [one.transaction_id for one in batch.valid.values()]


def test_one_object_is_one_transaction():
    batch = read(GOOD)
    assert (batch.count, ids(batch), batch.faults) == (1, [7], [])


def test_in_a_list_the_valid_are_taken_and_each_bad_one_is_told_by_its_index():
    batch = read([GOOD, {**GOOD, "transaction_id": 8, "currency": "euro"}, 5, {**GOOD, "transaction_id": 9}])
    assert (batch.count, ids(batch)) == (4, [7, 9])
    assert batch.faults == [
        {"field": "currency", "reason": "String should match pattern '^[A-Z]{3}$'", "index": 1},
        {"field": "", "reason": "Input should be an object", "index": 2},
    ]


def test_of_lines_the_valid_are_taken_and_each_bad_one_is_told_by_its_line():
    good = json.dumps(GOOD).encode()
    batch = read(b"\n" + good + b"\r\n{\n" + good[:-1] + b', "amount": -1}\n', "lines")
    assert (batch.count, ids(batch)) == (3, [7])
    assert [(fault["line"], fault["field"]) for fault in batch.faults] == [(3, ""), (4, "amount")]


def test_two_objects_in_a_line_and_one_over_two_lines_are_refused():
    good = json.dumps(GOOD).encode()
    batch = read(good + b"," + good + b"\n" + good[:20] + b"\n" + good[20:], "lines")
    assert (batch.count, ids(batch)) == (3, [])


@pytest.mark.parametrize("at", ["9999-12-31T23:59:59-10:00", "0001-01-01T00:00:00+10:00", "1969-12-31T23:59:59.999Z", "1795394344172", 0])
def test_a_time_that_cannot_be_is_refused(at: str | int):
    (fault,) = read({**GOOD, "transacted_at": at}).faults
    assert fault["field"] == "transacted_at"


def test_a_time_of_any_zone_goes_on_in_utc_and_an_amount_with_cents():
    (one,) = read({**GOOD, "transacted_at": "2026-01-02T03:04:05.000006+01:00", "amount": 1e2}).valid.values()
    told = json.loads(one.model_dump_json())
    assert (told["transacted_at"], told["amount"]) == ("2026-01-02T02:04:05.000006Z", "100.00")


def test_more_than_a_day_ahead_is_refused_and_a_day_is_not():
    batch = read([{**GOOD, "transacted_at": "2026-11-24T12:00:00Z"}, {**GOOD, "transacted_at": "2026-11-24T12:00:00.000001Z"}])
    assert list(batch.valid) == [0]
    assert batch.faults == [{"field": "transacted_at", "reason": "lies more than a day ahead", "index": 1}]


@pytest.mark.parametrize(
    ("body", "how"),
    [
        (b"", "lines"), (b"\n\n", "lines"), (b"[]", "json"), (b"[" + json.dumps(GOOD).encode(), "json"), (b"[\xff]", "json"),
        (b"[" * 100_000, "json"), (b"[" + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"]", "json"), (b'[{"device":"\\ud800"}]', "json"),
    ],
)  # fmt: skip
def test_what_holds_no_transaction_at_all_is_a_problem(body: bytes, how: intake.Kind):
    with pytest.raises(ProblemError) as raised:
        intake.read(body, how, NOW)
    assert raised.value.status == 422


@pytest.mark.parametrize(
    "body",
    [b"", b" ", b"{", b"null", b"7", b'"x"', b"\xff\xfe", b"\x00", b'{"a":' * 5_000 + b"1" + b"}" * 5_000, b"{}" * 3, b'{"amount": 1e999}'],
)
def test_one_that_is_none_is_told_with_a_reason(body: bytes):
    batch = intake.read(body, "json", NOW)
    assert (batch.count, batch.valid) == (1, {})
    assert all(fault["reason"] for fault in batch.faults)


@pytest.mark.parametrize("how", ["json", "lines"])
def test_a_thousand_are_taken_and_one_more_is_not(how: intake.Kind):
    def body(count: int) -> bytes:
        one = json.dumps(GOOD)
        return (f"[{','.join([one] * count)}]" if how == "json" else "\n".join([one] * count)).encode()

    assert len(read(body(1_000), how).valid) == 1_000
    with pytest.raises(ProblemError) as raised:
        read(body(1_001), how)
    assert raised.value.status == 413


def as_body(items: list[Any], how: intake.Kind) -> bytes:
    written = [json.dumps(one) for one in items]
    return (f"[{','.join(written)}]" if how == "json" else "\n".join(written)).encode()


@pytest.mark.parametrize("how", ["json", "lines"])
def test_of_a_thousand_with_two_faults_each_but_the_last_the_last_is_taken_and_every_fault_is_told(how: intake.Kind):
    batch = read(as_body([{**GOOD, "currency": "euro", "channel": "pigeon"}] * 999 + [GOOD], how), how)
    assert (batch.count, ids(batch)) == (1_000, [7])
    first = 0 if how == "json" else 1
    places = [fault["index" if how == "json" else "line"] for fault in batch.faults]
    assert places == [place for place in range(first, 999 + first) for _ in range(2)]


@pytest.mark.parametrize("how", ["json", "lines"])
@pytest.mark.parametrize(
    ("unknown", "told"), [(9, 9), (10, 10), (11, "and 1 faults more"), (1_000, "and 990 faults more"), (2_000, "has 2,000 faults")]
)
def test_one_of_nothing_but_faults_is_told_in_short_and_the_others_are_taken(unknown: int, told: int | str, how: intake.Kind):
    batch = read(as_body([GOOD, {**GOOD, **{f"x{number}": 1 for number in range(unknown)}}, GOOD], how), how)
    assert (batch.count, ids(batch)) == (3, [7, 7])
    assert len(batch.faults) <= intake.MOST_FAULTS + 1
    assert len(batch.faults) == told if isinstance(told, int) else batch.faults[-1]["reason"] == told


def test_a_body_of_as_many_as_fit_in_is_refused_at_once():
    started = time.monotonic()
    with pytest.raises(ProblemError) as raised:
        read(b"[" + b"{}," * 600_000 + b"{}]")
    assert raised.value.status == 413
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("name", ["x4111", "a b", "é", "x" * 41, "4111111111111111"])
def test_an_unknown_field_whose_name_may_be_anything_is_not_named(name: str):
    assert read({**GOOD, name: 1}).faults == [{"field": "(unknown)", "reason": "is no field here"}]


def test_an_unknown_field_with_a_plain_name_is_named():
    assert read({**GOOD, "merchant_id2": 1}).faults == [{"field": "merchant_id2", "reason": "is no field here"}]


@pytest.mark.parametrize("content", ["application/json", "Application/JSON; charset=UTF-8", 'application/x-ndjson;charset="utf-8"'])
def test_json_and_lines_in_utf_8_are_known(content: str):
    assert intake.kind(content) in ("json", "lines")


@pytest.mark.parametrize("content", ["", "text/plain", "application/json; charset=latin-1", "multipart/form-data; boundary=x"])
def test_another_media_type_is_415(content: str):
    with pytest.raises(ProblemError) as raised:
        intake.kind(content)
    assert raised.value.status == 415


def card_number(digits: str) -> str:
    """Digits and the check digit that makes them pass (Luhn)."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[::-2])
    total = sum(doubled) + sum(map(int, digits[-2::-2]))
    return digits + str(-total % 10)


@st.composite
def card_numbers(draw: st.DrawFn) -> str:
    """A card number as people write them: in groups or not, text before and after it."""
    number = card_number(draw(st.text("0123456789", min_size=12, max_size=18)))
    between = draw(st.sampled_from(["", " ", "-", " - ", "\u00a0", "\u2013"]))
    size = draw(st.integers(1, 6))
    written = between.join(number[at : at + size] for at in range(0, len(number), size))
    return draw(st.sampled_from(["", "card ", "x"])) + written + draw(st.sampled_from(["", " end", "x"]))


@given(number=card_numbers(), place=st.sampled_from([*FIELDS, "another"]), is_escaped=st.booleans(), how=st.sampled_from(["json", "lines"]))
def test_a_card_number_is_refused_in_any_field_and_never_repeated(number: str, place: str, is_escaped: bool, how: intake.Kind):
    body = json.dumps({**GOOD, place: "@"})
    value = "".join(f"\\u{ord(one):04x}" for one in number) if is_escaped else number
    told = read(body.replace('"@"', f'"{value}"').encode(), how)
    assert told.valid == {}
    assert number not in json.dumps(told.faults, ensure_ascii=False)


@given(number=st.text("0123456789", min_size=12, max_size=17).filter(lambda digits: digits[0] != "0").map(card_number))
def test_a_card_number_as_a_number_or_a_name_is_refused_and_never_repeated(number: str):
    for body in (
        *(json.dumps({**GOOD, name: "@"}).replace('"@"', number) for name in FIELDS),
        json.dumps({**GOOD, number: 1}),
        json.dumps({**GOOD, "device": {"a": [number]}}),
        json.dumps([GOOD, {**GOOD, "device": number}]),
        number,
    ):
        told = read(body.encode())
        assert [one.device for one in told.valid.values()] in ([], [None])
        assert told.faults
        assert number not in json.dumps(told.faults)


@given(st.binary(max_size=200), st.sampled_from(["json", "lines"]))
def test_any_bytes_are_read_or_refused(body: bytes, how: intake.Kind):
    try:
        told: object = intake.read(body, how, NOW)
    except ProblemError as problem:
        told = problem.status
    assert told == 422 or (isinstance(told, intake.Batch) and (told.valid or told.faults))


def test_a_list_with_bad_ones_gives_the_same_transactions_as_without_them():
    draw = random.Random(5)
    good = [{**GOOD, "transaction_id": number, "amount": draw.choice([0.1, 5, "7.00", 99999999.99])} for number in range(1, 50)]
    mixed = [one for pair in zip(good, [{"x": 1}] * len(good), strict=True) for one in pair]
    assert list(read(mixed).valid.values()) == list(read(good).valid.values())
