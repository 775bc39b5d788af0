"""Numerics as Postgres sends them."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from etl.errors import WarehouseError
from etl.numerics import unscaled
from tests.postgres import rows


def sent(values: list[Decimal | None]) -> pa.BinaryArray:
    """Return what Postgres makes of them."""
    found = rows(
        "SELECT numeric_send(v::numeric) FROM unnest(%s::text[]) WITH ORDINALITY AS t (v, n) ORDER BY n",
        [None if v is None else str(v) for v in values],
    )
    return pa.array([None if one is None else bytes(one) for (one,) in found], pa.binary())  # type: ignore[call-overload]


@pytest.mark.parametrize("scale", [0, 1, 2, 3, 4, 5, 9, 17, 18])
def test_numerics_of_every_length_and_sign(bank: None, scale: int) -> None:
    draw = np.random.default_rng(scale)
    whole = [int(draw.integers(0, 10 ** int(draw.integers(1, 19)))) * int(draw.choice([-1, 1])) for _ in range(2_000)]
    whole += [0, 1, -1, 10**18 - 1, 1 - 10**18, 10_000, 9_999, 10**17, 5 * 10**scale % 10**18]
    values = sent([Decimal(one).scaleb(-scale) for one in whole])
    assert unscaled(values, scale).to_pylist() == whole
    assert unscaled(values[7:1000], scale).to_pylist() == whole[7:1000]


def test_nulls_anywhere(bank: None) -> None:
    values = [None, Decimal("1.25"), None, Decimal("-0.01"), Decimal(0), None]
    assert unscaled(sent(values), 2).to_pylist() == [None, 125, None, -1, 0, None]
    assert unscaled(sent(values)[2:3], 2).to_pylist() == [None]
    assert unscaled(pa.array([None, None], pa.binary()), 2).to_pylist() == [None, None]
    assert unscaled(pa.array([], pa.binary()), 2).to_pylist() == []


@pytest.mark.parametrize("text", ["NaN", "1e18", "0.001"])
def test_what_does_not_fit_is_an_error(bank: None, text: str) -> None:
    with pytest.raises(WarehouseError, match="not finite or has more"):
        unscaled(sent([Decimal(text)]), 2)
