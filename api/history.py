"""The recent transactions in memory: what the features of a new one read, found by customer and by terminal.

The features are those of `ml.features`, by its two passes over whole groups of rows: for new rows only the groups that they
belong to are computed. What pass 1 found of a row that pass 2 of later rows reads, whether its amount was unusual, is kept with it.
So a row gets the very bits that a full build would give it after the same arrivals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ml.features import (
    CUSTOMER_LOOKBACK_DAYS,
    CUSTOMER_SCHEMA,
    DAY,
    DELAY_DAYS,
    FEATURE_SCHEMA,
    LOOKBACK_DAYS,
    TERMINAL_DAYS,
    customer_columns,
    terminal_columns,
)

Columns = Mapping[str, npt.NDArray[Any]]
Ints = npt.NDArray[np.int64]

MARGIN_DAYS = 14
"""Rows are kept this much longer than features reach back: how late a transaction may come and still get its features here."""

MERGE_ROWS = 32_768
"""New rows are looked through one by one until there are so many; then they are sorted in among the others."""

KEYS = ("transaction_id", "customer_id", "terminal_id", "transacted_at")
GIVEN = (*KEYS, "amount_cents", "known_at")
"""What a row comes with: int64; times are microseconds since 1970 UTC, `known_at` as `ml.features.known_at` gives it."""


class History:
    """Transactions of the last `LOOKBACK_DAYS` and `MARGIN_DAYS`.

    Parameters
    ----------
    rows
        `GIVEN`, every transaction from `start` on.
    start
        Microseconds; transactions before it exist but are not given. None where there are none.
    """

    def __init__(self, rows: Columns, start: int | None = None) -> None:
        self._start = start
        kept = {name: np.ascontiguousarray(rows[name], np.int64) for name in GIVEN}
        passed = customer_columns(kept)
        self._sort({**{name: passed[name] for name in (*KEYS, "known_at", "is_unusual_amount")}, "amount_cents": _cents(passed)})
        self._fresh = {name: values[:0] for name, values in self._rows.items()}

    def __len__(self) -> int:
        return len(self._rows["transaction_id"]) + len(self._fresh["transaction_id"])

    @property
    def newest(self) -> int | None:
        """Time of the newest transaction, None where there is none."""
        if not len(self):
            return None
        return max(int(part["transacted_at"].max()) for part in (self._rows, self._fresh) if len(part["transacted_at"]))

    def reaches(self, at: Ints) -> npt.NDArray[np.bool_]:
        """Tell for which times every row is here that features of a transaction at that time read."""
        return np.ones(len(at), np.bool_) if self._start is None else at - LOOKBACK_DAYS * DAY >= self._start

    def find(self, ids: Ints) -> dict[int, tuple[int, ...]]:
        """Return those of some transactions that are here, by key: their `KEYS` and amount in cents."""
        names = (*KEYS, "amount_cents")
        places = np.searchsorted(self._ids, ids)
        places = places[places < len(self._ids)]
        here = self._by_id[places][np.isin(self._ids[places], ids)] if len(places) else places
        fresh = np.flatnonzero(np.isin(self._fresh["transaction_id"], ids))
        columns = [np.concatenate((self._rows[name][here], self._fresh[name][fresh])).tolist() for name in names]
        return {row[0]: row for row in zip(*columns, strict=True)}

    def features(self, rows: Columns) -> dict[str, npt.NDArray[Any]]:
        """Take new transactions in and return their features.

        Parameters
        ----------
        rows
            `GIVEN`; none of them is here yet, none twice.

        Returns
        -------
        dict
            `FEATURE_SCHEMA`, in the order of `rows`; right for those whose times `reaches` told before.
        """
        ids = rows["transaction_id"]
        if not len(ids):
            return {field.name: np.empty(0, field.type.to_pandas_dtype()) for field in FEATURE_SCHEMA}
        first = int(rows["transacted_at"].min())
        theirs = self._of("customer_id", rows["customer_id"], first - CUSTOMER_LOOKBACK_DAYS * DAY)
        passed = customer_columns({name: np.concatenate((theirs[name], rows[name])) for name in GIVEN})
        # A late row shifts what was usual for the customer's rows after it.
        self._renew(passed, first)
        is_new = np.isin(passed["transaction_id"], ids)
        new = {name: values[is_new] for name, values in passed.items()}
        others = self._of("terminal_id", rows["terminal_id"], first - (DELAY_DAYS + TERMINAL_DAYS) * DAY)
        count = len(others["transaction_id"])
        both = {
            field.name: np.concatenate(
                (others[field.name] if field.name in others else np.zeros(count, field.type.to_pandas_dtype()), new[field.name])
            )
            for field in CUSTOMER_SCHEMA
        }
        featured = terminal_columns(both, first, int(rows["transacted_at"].max()) + 1)
        by_id = np.argsort(featured["transaction_id"])
        place = by_id[np.searchsorted(featured["transaction_id"], ids, sorter=by_id)]
        self._add({**{name: new[name] for name in self._rows if name in new}, "amount_cents": _cents(new)})
        return {name: values[place] for name, values in featured.items()}

    def take(self, rows: Columns) -> None:
        """Take in transactions whose features are known elsewhere already; those that are here are left out."""
        absent = ~np.isin(rows["transaction_id"], np.fromiter(self.find(rows["transaction_id"]), np.int64))
        self.features({name: rows[name][absent] for name in GIVEN})

    def _sort(self, rows: dict[str, npt.NDArray[Any]]) -> None:
        by_customer = np.argsort(rows["customer_id"], kind="stable")
        self._rows = {name: values[by_customer] for name, values in rows.items()}
        self._by_terminal = np.argsort(self._rows["terminal_id"], kind="stable")
        self._terminals = self._rows["terminal_id"][self._by_terminal]
        self._by_id = np.argsort(self._rows["transaction_id"])
        self._ids = self._rows["transaction_id"][self._by_id]

    def _of(self, column: str, wanted: Ints, since: int) -> dict[str, npt.NDArray[Any]]:
        """Return the rows of some customers or terminals, not older than a moment."""
        wanted = np.unique(wanted)
        groups = self._rows["customer_id"] if column == "customer_id" else self._terminals
        begin = np.searchsorted(groups, wanted, "left")
        length = np.searchsorted(groups, wanted, "right") - begin
        places = np.repeat(begin - np.cumsum(length) + length, length) + np.arange(length.sum())
        if column == "terminal_id":
            places = self._by_terminal[places]
        places = places[self._rows["transacted_at"][places] >= since]
        fresh = np.flatnonzero((self._fresh["transacted_at"] >= since) & np.isin(self._fresh[column], wanted))
        return {name: np.concatenate((values[places], self._fresh[name][fresh])) for name, values in self._rows.items()}

    def _renew(self, passed: Columns, first: int) -> None:
        """Write down anew which amounts from a moment on are unusual."""
        later = passed["transacted_at"] >= first
        ids, is_unusual = passed["transaction_id"][later], passed["is_unusual_amount"][later]
        order = np.argsort(ids)
        ids, is_unusual = ids[order], is_unusual[order]
        for held, part, at in ((self._ids, self._rows, self._by_id), (self._fresh["transaction_id"], self._fresh, None)):
            if not len(held):
                continue
            if at is None:
                found = np.flatnonzero(np.isin(held, ids))
                part["is_unusual_amount"][found] = is_unusual[np.searchsorted(ids, held[found])]
            else:
                place = np.minimum(np.searchsorted(held, ids), len(held) - 1)
                is_held = held[place] == ids
                part["is_unusual_amount"][at[place[is_held]]] = is_unusual[is_held]

    def _add(self, rows: Columns) -> None:
        self._fresh = {name: np.concatenate((values, rows[name])) for name, values in self._fresh.items()}
        if len(self._fresh["transaction_id"]) < MERGE_ROWS:
            return
        merged = {name: np.concatenate((values, self._fresh[name])) for name, values in self._rows.items()}
        oldest = int(merged["transacted_at"].max()) - (LOOKBACK_DAYS + MARGIN_DAYS) * DAY
        kept = merged["transacted_at"] >= oldest
        if not kept.all():
            self._start = oldest
        self._sort({name: values[kept] for name, values in merged.items()})
        self._fresh = {name: values[:0] for name, values in self._rows.items()}


def _cents(passed: Columns) -> Ints:
    """Amounts of pass 1 in cents again: a double of whole cents rounds to exactly those."""
    return np.rint(passed["amount"] * 100).astype(np.int64)
