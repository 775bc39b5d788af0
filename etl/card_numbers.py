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
    groups = [(group.start(), group.end()) for group in re.finditer(r"\d+", run)]
    masked = list(run)
    for first, (start, _) in enumerate(groups):
        for _, end in groups[first:]:
            digits = re.sub(r"\D", "", run[start:end])
            if len(digits) > 19:
                break
            if len(digits) >= 13 and _has_luhn_digit(digits):
                masked[start:end] = re.sub(r"\d", "*", run[start:end])
    return "".join(masked)


def _has_luhn_digit(digits: str) -> bool:
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0
