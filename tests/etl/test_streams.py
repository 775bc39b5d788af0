"""Splits, key ranges and the way of a batch into Parquet's types."""

from __future__ import annotations

import itertools
import struct
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.source import SourceTable
from etl.streams import PAGES_PER_SPLIT, converted, key_splits, merge_ranges, ranges_of, splits
from etl.tables import declared_tables

KEYS = st.lists(st.integers(-(2**62), 2**62), max_size=200)


@settings(deadline=None)
@given(KEYS, st.integers(1, 10))
def test_ranges_hold_every_key_and_are_few_and_apart(keys: list[int], limit: int) -> None:
    found = merge_ranges(ranges_of(pa.chunked_array([pa.array(keys, pa.int64())])), limit)
    assert len(found) <= limit
    assert all(any(low <= key <= high for low, high in found) for key in keys)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(found))
    if keys:
        assert found[0][0] == min(keys)
        assert found[-1][1] == max(keys)


def test_ranges_are_cut_at_the_widest_gaps() -> None:
    keys = pa.chunked_array([pa.array([1, 2, 3, 1000, 1001, 5000])])
    assert merge_ranges(ranges_of(keys), 64) == [(1, 3), (1000, 1001), (5000, 5000)]
    assert merge_ranges(ranges_of(keys), 2) == [(1, 1001), (5000, 5000)]


def test_a_small_table_is_one_split() -> None:
    assert splits(SourceTable(declared_tables()["customers"], (), 10), 4) == ["true"]


def test_a_large_table_is_parted_without_a_gap() -> None:
    assert splits(SourceTable(declared_tables()["transactions"], (), 3 * PAGES_PER_SPLIT), 2) == [
        f"ctid < '({3 * PAGES_PER_SPLIT // 2},0)'::tid",
        f"ctid >= '({3 * PAGES_PER_SPLIT // 2},0)'::tid",
    ]


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (None, None, 2, ["true"]),
        (5, 5, 2, ["true"]),
        (0, 100, 1, ["true"]),
        (0, 100, 2, ["k < 50", "k >= 50"]),
        (-90, 0, 3, ["k < -60", "k >= -60 AND k < -30", "k >= -30"]),
    ],
)
def test_key_splits_cover_every_key(low: int | None, high: int | None, count: int, expected: list[str]) -> None:
    assert key_splits("k", low, high, count) == expected


def test_a_value_that_would_change_is_an_error() -> None:
    batch = pa.record_batch({"amount": ["1.005"]})
    with pytest.raises(pa.ArrowInvalid):
        converted(batch, pa.schema([("amount", pa.decimal128(12, 2))]))


def test_numerics_become_decimals() -> None:
    sent = pa.array([struct.pack(">hhHhhh", 2, 0, sign, 2, 3, 4_500) for sign in (0, 0x4000)] + [None], pa.binary())
    batch = pa.RecordBatch.from_arrays([sent[1:]], ["amount"])
    for precision in (12, 18):
        found = converted(batch, pa.schema([("amount", pa.decimal128(precision, 2))]))
        assert found["amount"].to_pylist() == [Decimal("-3.45"), None]
