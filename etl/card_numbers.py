"""Card numbers never reach a record or a log: what may be one is masked."""

from __future__ import annotations

import re

# Digits of any script, up to three of any spaces or dashes between two of them.
_LONG_RUN = re.compile(r"\d(?:(?:[^\S\r\n]|[-\u2010-\u2015\u2212]){0,3}\d){12,}")


def mask_card_numbers(text: str) -> str:
    """Replace the digits of whatever may be a card number by stars.

    That is 13 to 19 digits, perhaps in groups with spaces or dashes between them, whose check digit (Luhn, ISO/IEC 7812-1) is
    right. Groups before and after it do not hide it.
    """
    return _LONG_RUN.sub(lambda run: _mask_run(run[0]), text)


def _mask_run(run: str) -> str:
    places = [place for place, character in enumerate(run) if character.isdecimal()]
    sums = _luhn_sums([int(run[place]) for place in places])
    # A number begins and ends where a group of digits does.
    begins = [number == 0 or place - places[number - 1] > 1 for number, place in enumerate(places)]
    ends = [*begins[1:], True]
    masked = list(run)
    for start in (number for number, is_first in enumerate(begins) if is_first):
        for last in range(start + 12, min(start + 19, len(places))):
            of_last = sums[last % 2]
            if ends[last] and (of_last[last + 1] - of_last[start]) % 10 == 0:
                for place in places[start : last + 1]:
                    masked[place] = "*"
    return "".join(masked)


def _luhn_sums(digits: list[int]) -> tuple[list[int], list[int]]:
    """Sums of the first 0, 1, 2, ... digits: those on odd places doubled (less 9 above 9), and those on even ones."""
    even, odd = [0], [0]
    for number, digit in enumerate(digits):
        twice = 2 * digit - 9 if digit > 4 else 2 * digit
        even.append(even[-1] + (twice if number % 2 else digit))
        odd.append(odd[-1] + (digit if number % 2 else twice))
    return even, odd
