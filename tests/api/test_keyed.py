"""Rows that are added by key."""

from __future__ import annotations

import pyarrow as pa

from api import keyed


def test_of_rows_with_one_key_the_first_is_kept():
    rows = pa.table({"transaction_id": [7, 3, 7, 5, 3, 7], "amount": [1, 2, 3, 4, 5, 6]})
    assert keyed.first_of_each(rows).to_pydict() == {"transaction_id": [7, 3, 5], "amount": [1, 2, 4]}
    assert keyed.first_of_each(rows.slice(3)).to_pydict() == {"transaction_id": [5, 3, 7], "amount": [4, 5, 6]}
    assert keyed.first_of_each(rows.slice(0, 0)).num_rows == 0
