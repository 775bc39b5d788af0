"""Features of new transactions from memory are the bits of a full build after the same arrivals."""

from __future__ import annotations

import numpy as np
import pytest

from api import history
from api.history import GIVEN, History
from ml.features import DAY, FEATURE_SCHEMA, LOOKBACK_DAYS, customer_columns, known_at, terminal_columns


def bank(rows: int, days: int, seed: int) -> dict[str, np.ndarray]:
    """Rows in the order of their ids and times."""
    random = np.random.default_rng(seed)
    at = np.sort(random.integers(0, days * DAY, rows)) + 400 * DAY
    return {
        "transaction_id": np.arange(1, rows + 1),
        "customer_id": random.integers(1, 13, rows),
        "terminal_id": random.integers(1, 9, rows),
        "transacted_at": at,
        "amount_cents": random.integers(0, 500, rows) ** 2,
        "known_at": known_at(at, at + random.integers(0, 20, rows) * DAY, random.random(rows) < 0.1),
    }


def part(rows: dict[str, np.ndarray], where: object) -> dict[str, np.ndarray]:
    return {name: rows[name][where] for name in GIVEN}


def full_build(rows: dict[str, np.ndarray], ids: np.ndarray) -> dict[str, np.ndarray]:
    built = terminal_columns(customer_columns(rows), 0, 2**62)
    order = np.argsort(built["transaction_id"])
    place = order[np.searchsorted(built["transaction_id"], ids, sorter=order)]
    return {name: values[place] for name, values in built.items()}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert sorted(one) == sorted(FEATURE_SCHEMA.names)
    for name in FEATURE_SCHEMA.names:
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("merge_rows", [1, 40, 10**6])
def test_rows_that_arrive_in_any_order_and_number_get_what_a_full_build_of_the_arrivals_gives(monkeypatch, merge_rows: int):
    monkeypatch.setattr(history, "MERGE_ROWS", merge_rows)
    monkeypatch.setattr(history, "MARGIN_DAYS", 400)
    rows = bank(900, 200, seed=7)
    random = np.random.default_rng(3)
    # Every tenth of the new ones comes up to ten days late.
    arrival = rows["transacted_at"] + np.where(random.random(900) < 0.1, random.integers(0, 10 * DAY, 900), 0)
    order = np.concatenate((np.arange(400), 400 + np.argsort(arrival[400:], kind="stable")))
    held = History(part(rows, order[:400]))
    begin = 400
    while begin < 900:
        end = min(900, begin + int(random.integers(1, 60)))
        now = random.permutation(order[begin:end])
        same(held.features(part(rows, now)), full_build(part(rows, order[:end]), rows["transaction_id"][now]))
        begin = end
    assert len(held) == 900


def test_only_what_features_reach_is_needed_and_kept(monkeypatch):
    monkeypatch.setattr(history, "MERGE_ROWS", 50)
    rows = bank(3000, 400, seed=1)
    at = rows["transacted_at"]
    start = int(at[1999]) - (LOOKBACK_DAYS + history.MARGIN_DAYS) * DAY
    held = History(part(rows, (at >= start) & (rows["transaction_id"] <= 2000)), start)
    assert len(held) < 1200
    for begin in range(2000, 3000, 20):
        now = slice(begin, begin + 20)
        assert held.reaches(at[now]).all()
        same(held.features(part(rows, now)), full_build(part(rows, slice(0, begin + 20)), rows["transaction_id"][now]))
    assert len(held) < 1200
    assert held.newest == at[-1]
    assert not held.reaches(np.array([at[-1] - 30 * DAY])).any()


@pytest.mark.parametrize("merge_rows", [1, 50, 10**6])
def test_rows_after_one_that_came_too_late_for_its_own_features_get_those_of_a_full_build(monkeypatch, merge_rows: int):
    monkeypatch.setattr(history, "MERGE_ROWS", merge_rows)
    rows = bank(3000, 400, seed=1)
    at = rows["transacted_at"]
    late = np.flatnonzero(at < at[2499] - (history.MARGIN_DAYS + 1) * DAY)[-300::3]
    early = np.setdiff1d(np.arange(2500), late)
    start = int(at[2499]) - (LOOKBACK_DAYS + history.MARGIN_DAYS) * DAY
    held = History(part(rows, early[at[early] >= start]), start)
    arrived = early
    for begin in range(2500, 3000, 100):
        with_late = np.concatenate((late[:20], np.arange(begin, begin + 50)))
        late = late[20:]
        for now in (with_late, np.arange(begin + 50, begin + 100)):
            arrived = np.concatenate((arrived, now))
            within = held.reaches(at[now])
            assert within.tolist() == (now >= begin).tolist()
            got = held.features(part(rows, now))
            wanted = full_build(part(rows, arrived), rows["transaction_id"][now[within]])
            same({name: values[within] for name, values in got.items()}, wanted)
            assert held.find(rows["transaction_id"][now]).keys() == set(rows["transaction_id"][now].tolist())


def test_a_transaction_is_found_by_its_key_whether_it_is_old_or_new():
    rows = bank(60, 30, seed=2)
    held = History(part(rows, slice(0, 40)))
    held.features(part(rows, slice(40, 50)))
    found = held.find(np.array([40, 45, 60, 10**12, 3]))
    assert sorted(found) == [3, 40, 45]
    assert found[45] == tuple(rows[name][44] for name in ("transaction_id", "customer_id", "terminal_id", "transacted_at", "amount_cents"))


def test_what_is_here_already_is_not_taken_in_again():
    rows = bank(60, 30, seed=2)
    held = History(part(rows, slice(0, 40)))
    held.take(part(rows, slice(30, 60)))
    held.take(part(rows, slice(0, 60)))
    assert len(held) == 60


def test_an_empty_history_gives_features_without_history():
    rows = bank(1, 1, seed=2)
    held = History(part(rows, slice(0, 0)))
    assert held.newest is None
    got = held.features(part(rows, slice(0, 1)))
    assert got["customer_history_90d"].tolist() == [0]
    same(got, full_build(part(rows, slice(0, 1)), np.array([1])))
    assert held.features(part(rows, slice(0, 0)))["transaction_id"].tolist() == []
