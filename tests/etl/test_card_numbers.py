"""Masking of card numbers."""

from __future__ import annotations

import time

import pytest

from etl.card_numbers import mask_card_numbers


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


def test_a_long_text_of_digits_takes_time_as_it_is_long() -> None:
    def seconds(groups: int) -> float:
        started = time.process_time()
        mask_card_numbers("1 " * groups)
        return time.process_time() - started

    # A message of a megabyte must not hold up those behind it: linear would be 16.
    assert seconds(80_000) < 64 * seconds(5_000)
