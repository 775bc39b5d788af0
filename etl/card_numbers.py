"""Card numbers never reach a record or a log: what may be one is masked."""

from __future__ import annotations

import re

# Digits of any script, up to three of any spaces or dashes between two of them.
_BETWEEN = r"(?:[^\S\r\n]|[-\u2010-\u2015\u2212]){0,3}"
_LONG_RUN = re.compile(rf"\d(?:{_BETWEEN}\d){{12,}}")
_MASKED = re.compile(rf"\*(?:{_BETWEEN}\*){{12,}}")
# A character within a string of JSON, escaped or not.
_CHARACTER = re.compile(
    r"\\(?:u(?P<high>d[89ab][0-9a-f]{2})\\u(?P<low>d[c-f][0-9a-f]{2})|u(?P<code>[0-9a-f]{4})|(?P<sign>[\\/\"bfnrt]))|.",
    re.IGNORECASE | re.DOTALL,
)


def mask_card_numbers(text: str) -> str:
    """Replace the digits of whatever may be a card number by stars.

    That is 13 to 19 digits, perhaps in groups with spaces or dashes between them, whose check digit (Luhn, ISO/IEC 7812-1) is
    right. Groups before and after it do not hide it.
    """
    return _LONG_RUN.sub(lambda run: _mask_run(run[0]), text)


def mask_card_numbers_in_json(text: str) -> str:
    """Replace the digits of whatever may be a card number by stars, escaped ones (`\\u0034`) as well."""
    if "\\" not in text:
        return mask_card_numbers(text)
    found = list(_CHARACTER.finditer(text))
    plain = "".join(map(_unescaped, found))
    return "".join(
        "*" if masked != character else one[0] for one, character, masked in zip(found, plain, mask_card_numbers(plain), strict=True)
    )


def holds_masked(text: str) -> bool:
    """Tell whether a card number was masked in a text, of JSON perhaps."""
    return _MASKED.search("".join(map(_unescaped, _CHARACTER.finditer(text)))) is not None


def _unescaped(one: re.Match[str]) -> str:
    if one["high"]:
        return chr(0x10000 + (int(one["high"], 16) - 0xD800) * 0x400 + int(one["low"], 16) - 0xDC00)
    if one["code"]:
        return chr(int(one["code"], 16))
    return "\t" if one["sign"] in ("t", "f") else one[0][-1]


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
