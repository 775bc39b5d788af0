"""Masking of card numbers."""

from __future__ import annotations

import json
import time
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.card_numbers import holds_masked, mask_card_numbers, mask_card_numbers_in_json


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("4111111111111111", "****************"),
        ("pay 4111-1111-1111-1111 now", "pay ****-****-****-**** now"),
        ("4111 1111 1111 1111", "**** **** **** ****"),
        ("id 12 4111 1111 1111 1111 99", "id 12 **** **** **** **** 99"),
        ("378282246310005", "***************"),
        ("4222222222222", "*************"),
        ("6304000000000000000", "*******************"),
        ("4111 - 1111 - 1111 - 1111", "**** - **** - **** - ****"),
        ("4111\u00a01111\u20131111\u22121111", "****\u00a0****\u2013****\u2212****"),
        ("４１１１１１１１１１１１１１１１", "****************"),
        ("٤١١١١١١١١١١١١١١١", "****************"),
        ("4111111111111112", "4111111111111112"),
        ("4111 1111\n1111 1111", "4111 1111\n1111 1111"),
        ("1,596,3156,2018-04-01T00:00:31Z,57.16", "1,596,3156,2018-04-01T00:00:31Z,57.16"),
        ("123456789012", "123456789012"),
    ],
)
def test_card_numbers_are_masked_and_nothing_else(text: str, masked: str) -> None:
    assert mask_card_numbers(text) == masked


DIGITS = "0123456789０４٤१𝟒"
DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
GAPS = ["", "", "", " ", "-", "  ", " - ", "\u00a0", "\u2013", "\t", "    ", "\n", ".", "x", "\\"]


def check_digit(digits: str) -> str:
    """Luhn's check digit of digits that lack it."""
    return next(last for last in "0123456789" if is_card_number(digits + last))


def is_card_number(digits: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        twice = int(digit) * (1 + place % 2)
        total += twice - 9 if twice > 9 else twice
    return 13 <= len(digits) <= 19 and total % 10 == 0


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Groups of digits with all sorts of things between them, and card numbers in groups among them."""
    pieces = []
    for _ in range(draw(st.integers(1, 4))):
        digits = draw(st.text(DIGITS, min_size=1, max_size=24))
        if draw(st.booleans()):
            digits = draw(st.text(DIGITS, min_size=12, max_size=18))
            digits += check_digit(digits)
        gap = draw(st.sampled_from(GAPS))
        size = draw(st.integers(1, 8))
        pieces.append(gap.join(digits[place : place + size] for place in range(0, len(digits), size)))
        pieces.append(draw(st.sampled_from(GAPS) | st.text(max_size=3)))
    return "".join(pieces)


def places_of_card_numbers(text: str) -> set[int]:
    """Every place of a digit that belongs to a card number: each beginning and end of a group is tried with each other."""
    found: set[int] = set()
    for start in range(len(text)):
        if not text[start].isdecimal() or (start and text[start - 1].isdecimal()):
            continue
        places, gap = [start], 0
        for place in range(start + 1, len(text) + 1):
            character = text[place] if place < len(text) else "x"
            if not character.isdecimal():
                if not gap and is_card_number("".join(text[one] for one in places)):
                    found.update(places)
                gap += 1
                if (
                    gap > 3
                    or character in "\r\n"
                    or not (character.isspace() or character in "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212")
                ):
                    break
            else:
                places.append(place)
                gap = 0
    return found


@given(texts())
def test_no_card_number_is_left_and_everything_else_is_as_it_was(text: str) -> None:
    found = places_of_card_numbers(text)
    masked = mask_card_numbers(text)
    assert masked == "".join("*" if place in found else character for place, character in enumerate(text))
    assert not places_of_card_numbers(masked)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ('{"device": "4111111111111111"}', '{"device": "****************"}'),
        (r'{"device": "\u0034\u0031\u0031\u0031111111111111"}', '{"device": "****************"}'),
        (r'{"device": "\u0034111\u00201111\u20131111-\u0031111"}', r'{"device": "****\u0020****\u2013****-****"}'),
        (r'{"device": "4111\t1111\t1111\t1111"}', r'{"device": "****\t****\t****\t****"}'),
        (r'{"device": "\u00e9\u0022\\ \uFF14\uff11\u0031\u0031111111111111\n"}', r'{"device": "\u00e9\u0022\\ ****************\n"}'),
        (r'{"device": "\ud835\udfd2111111111111111"}', '{"device": "****************"}'),
        (r'{"device": "\\4111111111111111 \\\u0034111111111111111"}', r'{"device": "\\**************** \\****************"}'),
        (r'{"device": "\u0034\u0031 is \t no card", "\u0031": "\ud835"}', r'{"device": "\u0034\u0031 is \t no card", "\u0031": "\ud835"}'),
        (r'{"device": "4111\n1111\n1111\n1111"}', r'{"device": "4111\n1111\n1111\n1111"}'),
    ],
)
def test_what_json_escapes_is_masked_as_well_and_what_holds_no_card_number_is_as_it_came(text: str, masked: str) -> None:
    assert mask_card_numbers_in_json(text) == masked


@given(texts(), st.randoms(use_true_random=False))
def test_in_json_all_and_only_card_numbers_are_masked_however_its_characters_are_escaped(text: str, random: Random) -> None:
    pieces = [f"\\u{ord(one):04x}" if ord(one) < 2**16 and random.random() < 0.5 else json.dumps(one)[1:-1] for one in text]
    found = places_of_card_numbers(text)
    wanted = "".join("*" if place in found else piece for place, piece in enumerate(pieces))
    assert mask_card_numbers_in_json(f'"{"".join(pieces)}"') == f'"{wanted}"'


@pytest.mark.parametrize(
    ("text", "is_masked"),
    [("4111 1111 1111 1111", True), ("378282246310005", True), ("************", False), ("* a * " * 13, False), ("", False)],
)
def test_a_text_in_which_a_card_number_was_masked_is_known(text: str, is_masked: bool) -> None:
    assert holds_masked(mask_card_numbers(text)) is is_masked


@pytest.mark.parametrize("piece", ["1 ", "1", "1    ", " - ", "1 1 1 1 1 1 1 1 1 1 1 1 x", "\\", "\\u", "\\u0031", "*", "*   *"])
def test_a_long_text_takes_time_as_it_is_long(piece: str) -> None:
    def seconds(pieces: int) -> float:
        text = piece * pieces
        started = time.process_time()
        holds_masked(mask_card_numbers_in_json(text))
        return time.process_time() - started

    # A long message must not hold up those behind it: linear would be 16, square 256.
    assert min(seconds(40_000) for _ in range(3)) < 64 * seconds(2_500)
