"""Postgres' binary numerics, many at once.

The format is that of `numeric_send` (PostgreSQL, src/backend/utils/adt/numeric.c): how many digits, the weight of the first, the
sign, the display scale, then the digits, to the base of 10,000; all of two bytes, the highest first.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from etl.columns import LONG_DIGITS
from etl.errors import WarehouseError

if TYPE_CHECKING:
    import pyarrow as pa

_HEADER = 4
_NEGATIVE = 0x4000
# More groups of four digits no number of so many digits has, wherever its point stands.
_LONGEST = 6


def unscaled(values: pa.BinaryArray, scale: int) -> pa.Array:
    """Return numerics as whole numbers of their smallest unit.

    Parameters
    ----------
    values
        What `numeric_send` returns, or null; of at most 18 digits, none of them behind the scale.
    scale
        How many digits stand behind the point.

    Returns
    -------
    pyarrow.Int64Array
        The values times ten to the power of `scale`; null where they are null.

    Raises
    ------
    WarehouseError
        When a value is NaN, infinite, or has more digits.
    """
    import pyarrow as pa

    _, offsets, data = values.buffers()
    starts = (np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values)] // 2).astype(np.intp)
    sent = np.frombuffer(data or b"", np.int16)
    # A null has no bytes: what is read in its place does not count, but must be there.
    words = np.zeros(len(sent) + _HEADER, np.int16)
    words[: len(sent)] = sent.byteswap() if sys.byteorder == "little" else sent
    count, weight, sign = (words.take(starts + at) for at in range(3))
    is_null = None if values.null_count == 0 else values.is_null().to_numpy(zero_copy_only=False)
    if is_null is not None:
        count[is_null] = weight[is_null] = sign[is_null] = 0
    if (sign & ~_NEGATIVE).any() or count.max(initial=0) > _LONGEST or np.abs(weight).max(initial=0) > _LONGEST:
        raise _unexpected(scale)
    # A column has few shapes of numbers: one at a time, everything but the digits is a constant.
    shape = (count * 2 + (sign != 0)) * 32 + weight + 16
    total = np.zeros(len(values), np.int64)
    for found in np.flatnonzero(np.bincount(shape)):
        some = np.flatnonzero(shape == found)
        here = starts[some] + _HEADER
        number = sum((_shifted(words.take(here + at), 4 * (int(found) % 32 - 16 - at) + scale, scale) for at in range(found // 64)), 0)
        total[some] = -number if found // 32 % 2 else number
    return pa.array(total, mask=is_null)


def _shifted(digits: np.ndarray, power: int, scale: int) -> np.ndarray:
    """Return digits to the base of 10,000 times a power of ten."""
    if power < 0:
        unit = 10 ** min(-power, 4)
        shifted = digits // unit
        if (shifted * unit != digits).any():
            raise _unexpected(scale)
        return shifted.astype(np.int64)
    if power > LONG_DIGITS - 4 and (digits >= 10 ** max(LONG_DIGITS - power, 0)).any():
        raise _unexpected(scale)
    return digits.astype(np.int64) * 10 ** min(power, LONG_DIGITS)


def _unexpected(scale: int) -> WarehouseError:
    return WarehouseError(f"a numeric is not finite or has more than {LONG_DIGITS} digits, {scale} of them behind the point")
