"""Features: literal rows, a brute-force reference, and what must not change them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml import features as ml_features
from ml.features import (
    CUSTOMER_SCHEMA,
    DAY,
    FEATURE_NAMES,
    FEATURE_SCHEMA,
    FEATURES,
    HANDBOOK_FEATURES,
    HOUR,
    INPUT_SCHEMA,
    LOOKBACK_DAYS,
    MODEL_FEATURES,
    customer_pass,
    ddl,
    features,
    terminal_pass,
)

EVER = 2**62


@dataclass(frozen=True)
class Row:
    """A transaction with its report, if there is one."""

    id: int
    customer: int
    terminal: int
    at: int
    cents: int
    reported_at: int | None = None
    is_fraud: bool | None = None


def frames(rows: list[Row]) -> tuple[pd.DataFrame, pd.DataFrame]:
    transactions = pd.DataFrame(
        [(row.id, row.customer, row.terminal, row.at, row.cents) for row in rows],
        columns=["transaction_id", "customer_id", "terminal_id", "transacted_at", "amount_cents"],
    )
    reports = pd.DataFrame(
        [(row.id, row.reported_at, row.is_fraud) for row in rows if row.reported_at is not None],
        columns=["transaction_id", "reported_at", "is_fraud"],
    )
    return transactions, reports


def compute(rows: list[Row], start: int = 0, end: int = EVER) -> pd.DataFrame:
    return features(*frames(rows), start, end)


def by_id(rows: list[Row], start: int = 0, end: int = EVER) -> dict[int, dict[str, float]]:
    return compute(rows, start, end).set_index("transaction_id").to_dict("index")


def fraud(row: Row, reported_at: int | None = None) -> Row:
    return replace(row, is_fraud=True, reported_at=row.at + 7 * DAY if reported_at is None else reported_at)


# --- literal rows ----------------------------------------------------------------------------------------------------


def test_weekend_and_night_are_utc():
    friday = int(np.datetime64("2018-06-22T23:59:59.999999", "us").astype(np.int64))
    saturday_night = friday + 1
    rows = [Row(1, 1, 1, friday, 100), Row(2, 1, 1, saturday_night, 100), Row(3, 1, 1, saturday_night + 7 * HOUR, 100)]
    assert compute(rows)[["is_weekend", "is_night"]].to_numpy().tolist() == [[0, 0], [1, 1], [1, 0]]


def test_customer_windows_include_the_row_itself_and_leave_out_a_row_exactly_as_old_as_the_window():
    rows = [Row(1, 1, 1, 100 * DAY, 1000), Row(2, 1, 2, 101 * DAY - 1, 2001), Row(3, 1, 3, 101 * DAY, 4000)]
    got = by_id(rows)
    assert [got[i]["customer_transactions_1d"] for i in (1, 2, 3)] == [1, 2, 2]
    assert [got[i]["customer_mean_amount_1d"] for i in (1, 2, 3)] == [10.0, 15.005, 30.005]
    assert [got[i]["customer_transactions_7d"] for i in (1, 2, 3)] == [1, 2, 3]


def test_of_equal_times_the_smaller_id_counts_in_the_larger_one():
    rows = [Row(2, 1, 1, 100 * DAY, 3000), Row(1, 1, 1, 100 * DAY, 1000)]
    got = by_id(rows)
    assert got[1]["customer_transactions_1d"] == 1
    assert got[2]["customer_transactions_1d"] == 2
    assert got[2]["customer_mean_amount_1d"] == 20.0
    assert got[2]["amount_to_customer_mean"] == 3.0


def test_terminal_windows_end_seven_days_ago():
    now = 200 * DAY
    rows = [
        fraud(Row(1, 1, 9, now - 8 * DAY, 100)),  # exactly 8 days old: outside the one-day window
        fraud(Row(2, 2, 9, now - 8 * DAY + 1, 100)),
        Row(3, 3, 9, now - 7 * DAY, 100),  # exactly 7 days old: inside
        fraud(Row(4, 4, 9, now - 7 * DAY + 1, 100)),
        Row(5, 5, 9, now, 100),
    ]
    got = by_id(rows)[5]
    assert (got["terminal_transactions_1d"], got["terminal_fraud_share_1d"]) == (2, 0.5)
    assert (got["terminal_transactions_7d"], got["terminal_fraud_share_7d"]) == (3, 2 / 3)


def test_fraud_counts_from_its_report_on():
    row = Row(1, 1, 9, 100 * DAY, 100)
    later = [Row(i, 2, 9, 110 * DAY + i, 100) for i in (2, 3, 4)]
    got = by_id([fraud(row, reported_at=110 * DAY + 3), *later])
    assert [got[i]["terminal_fraud_share_7d"] for i in (2, 3, 4)] == [0.0, 1.0, 1.0]
    assert [got[i]["terminal_fraud_run"] for i in (2, 3, 4)] == [0, 1, 1]


def test_early_report_counts_seven_days_after_the_transaction():
    row = fraud(Row(1, 1, 9, 100 * DAY, 100), reported_at=100 * DAY + 1)
    got = by_id([row, Row(2, 2, 9, 107 * DAY - 1, 100), Row(3, 2, 9, 107 * DAY, 100)])
    assert [got[i]["terminal_fraud_share_1d"] for i in (2, 3)] == [0.0, 1.0]


def test_report_of_no_fraud_counts_as_none():
    row = replace(Row(1, 1, 9, 100 * DAY, 100), is_fraud=False, reported_at=101 * DAY)
    assert by_id([row, Row(2, 2, 9, 109 * DAY, 100)])[2]["terminal_fraud_share_7d"] == 0.0


def test_amount_is_compared_with_the_customers_own_history():
    rows = [Row(i, 1, i, (100 + i) * DAY, cents) for i, cents in enumerate((1000, 3000, 2000, 2000, 6000))]
    got = by_id(rows)[4]
    assert got["customer_history_90d"] == 4
    assert got["customer_prior_mean_90d"] == 20.0
    assert got["customer_prior_median_90d"] == 20.0
    assert got["amount_to_customer_mean"] == 3.0
    assert got["amount_to_customer_median"] == 3.0
    assert got["amount_deviation"] == pytest.approx(4000 / math.sqrt(500_000))


def test_first_transaction_of_a_customer_has_defined_values():
    got = by_id([Row(1, 1, 1, 100 * DAY, 5000)])[1]
    assert got["amount_to_customer_mean"] == got["amount_to_customer_median"] == 1.0
    assert got["amount_deviation"] == 0
    assert got["customer_days_since_first_suspicion"] == got["customer_days_since_last_suspicion"] == 28
    assert got["terminal_days_since_run_start"] == 37
    assert got["terminal_days_since_clean"] == 7


def test_unusual_amount_is_suspicious_until_its_label_would_be_known():
    usual = [Row(i, 1, i, (100 + i) * DAY, 1000) for i in range(4)]
    unusual = Row(4, 1, 4, 104 * DAY, 9000)
    probes = [Row(5, 1, 5, 110 * DAY, 1000), Row(6, 1, 6, 112 * DAY, 1000)]
    column = "customer_days_since_last_suspicion"
    clean = by_id([*usual, unusual, *probes])
    assert (clean[5][column], clean[6][column]) == (6.0, 28.0)
    known = by_id([*usual, fraud(unusual), *probes])
    assert (known[5][column], known[6][column]) == (6.0, 8.0)
    assert known[6]["customer_unusual_amounts_14d"] == 1


def test_run_of_frauds_at_a_terminal_ends_with_a_clean_transaction():
    clean = Row(1, 1, 9, 100 * DAY, 100)
    run = [fraud(Row(2, 2, 9, 101 * DAY, 100)), fraud(Row(3, 3, 9, 103 * DAY, 100))]
    probe = Row(5, 5, 9, 112 * DAY, 100)
    got = by_id([clean, *run, probe])[5]
    assert got["terminal_fraud_run"] == 2
    assert got["terminal_days_since_run_start"] == 11
    assert got["terminal_days_since_clean"] == 12
    assert got["terminal_transactions_since_fraud"] == 0
    ended = by_id([clean, *run, Row(4, 4, 9, 104 * DAY, 100), probe])[5]
    assert ended["terminal_fraud_run"] == 0
    assert ended["terminal_days_since_run_start"] == 37
    assert ended["terminal_days_since_clean"] == 8
    assert ended["terminal_transactions_since_fraud"] == 1


def test_amount_is_unusual_above_two_and_a_half_medians_of_three_transactions():
    def judged(*cents: int) -> bool:
        rows = [Row(i, 1, i, (100 + i) * DAY, amount) for i, amount in enumerate(cents)]
        return by_id([*rows, Row(99, 1, 99, 105 * DAY, 1)])[99]["customer_unusual_amounts_14d"] == 1

    assert judged(1000, 1000, 1000, 2501)
    assert not judged(1000, 1000, 1000, 2500)
    assert not judged(1000, 1000, 9000)


def test_a_row_hangs_on_rows_just_less_than_the_lookback_older():
    now = 300 * DAY
    paid = now - 37 * DAY + 1
    history = [Row(i, 1, i, paid - 90 * DAY + 1, 1000) for i in (1, 2, 3)]
    rows = [*history, fraud(Row(4, 1, 9, paid, 9000)), Row(5, 5, 9, now, 100)]
    assert history[0].at == now - LOOKBACK_DAYS * DAY + 2
    # Without a third transaction to compare with, the fraud is one of usual amount.
    assert by_id(rows)[5]["terminal_fraud_run"] == 0
    assert by_id(rows[1:])[5]["terminal_fraud_run"] == 1


def test_features_have_the_handbooks_names_and_sound_types():
    assert len(HANDBOOK_FEATURES) == 15
    assert len(set(FEATURE_NAMES)) == len(FEATURES) >= 25
    assert set(FEATURE_NAMES) == {*HANDBOOK_FEATURES, *MODEL_FEATURES}
    assert all(feature.description.endswith(".") for feature in FEATURES)
    assert ddl(INPUT_SCHEMA).endswith("reported_at bigint, is_fraud boolean")


def test_every_feature_is_documented():
    lines = (Path(__file__).parents[2] / "docs" / "model.md").read_text().splitlines()
    listed = [tuple(cell.strip() for cell in line.strip("| ").split("|")) for line in lines if line.startswith("| `")]
    marks = [
        " ".join(mark for mark, names in (("H", HANDBOOK_FEATURES), ("M", MODEL_FEATURES)) if feature.name in names) for feature in FEATURES
    ]
    assert listed == [(f"`{feature.name}`", feature.type, mark, feature.description) for feature, mark in zip(FEATURES, marks, strict=True)]


def test_no_rows_give_no_rows():
    assert len(compute([])) == 0
    assert list(compute([]).columns) == FEATURE_SCHEMA.names
    assert list(customer_pass([])) == []


def test_far_apart_ids_and_times_are_as_good_as_near_ones():
    near = [Row(i, i % 3, i % 2, (100 + i) * DAY, 1000 * (i + 1)) for i in range(12)]
    far = [replace(row, customer=row.customer * 2**60 - 2**60, terminal=row.terminal * 2**61) for row in near]
    pd.testing.assert_frame_equal(compute(near)[list(FEATURE_NAMES)], compute(far)[list(FEATURE_NAMES)])


def test_groups_that_do_not_fit_one_axis_are_done_in_parts():
    # A row far in the past makes the axis so long that only a few groups fit on it at once.
    rows = [Row(i, i % 60, i % 50, (100 + i) * DAY, 1000 + i) for i in range(240)]
    old = Row(-1, 1000, 1000, -(2**62) // 20, 100)
    expected = compute(rows)
    pd.testing.assert_frame_equal(compute([*rows, old], start=0), expected)


def test_arrow_timestamps_are_read_like_microseconds():
    rows = [fraud(Row(1, 1, 1, 100 * DAY, 500)), Row(2, 1, 1, 108 * DAY, 700)]
    transactions, reports = (pa.Table.from_pandas(frame, preserve_index=False) for frame in frames(rows))
    stamp = pa.timestamp("us", "UTC")
    as_time = transactions.set_column(3, "transacted_at", transactions["transacted_at"].cast(stamp))
    reported = reports.set_column(1, "reported_at", reports["reported_at"].cast(stamp))
    assert features(as_time, reported, 0, EVER).equals(features(transactions, reports, 0, EVER))


# --- a reference that is slow and obvious ----------------------------------------------------------------------------


def reference(rows: list[Row]) -> dict[int, dict[str, float]]:
    """Every feature of every row, by looking at all rows for each."""
    rows = sorted(rows, key=lambda row: (row.at, row.id))
    return {row.id: _reference_row(row, rows[:position], rows) for position, row in enumerate(rows)}


def _median(row: Row, before: list[Row]) -> tuple[int, int]:
    history = sorted(r.cents for r in before if r.customer == row.customer and r.at > row.at - 90 * DAY)
    return (history[(len(history) - 1) // 2] if history else 0), len(history)


def _is_unusual(row: Row, rows: list[Row]) -> bool:
    median, count = _median(row, [r for r in rows if (r.at, r.id) < (row.at, row.id)])
    return count >= 3 and row.cents > 2.5 * median


def _reference_row(row: Row, before: list[Row], rows: list[Row]) -> dict[str, float]:
    t = row.at

    def known(r: Row) -> bool:
        return bool(r.is_fraud) and max(r.at + 7 * DAY, r.reported_at or 0) <= t

    own = [r for r in before if r.customer == row.customer]
    out: dict[str, float] = {"amount": row.cents / 100}
    day = np.datetime64(t, "us").astype(object)
    out["is_weekend"] = int(day.weekday() >= 5)
    out["is_night"] = int(day.hour <= 6)
    for n in (1, 7, 30):
        window = [r for r in [*own, row] if r.at > t - n * DAY]
        out[f"customer_transactions_{n}d"] = len(window)
        out[f"customer_mean_amount_{n}d"] = sum(r.cents for r in window) / (100 * len(window))

    history = [r.cents for r in own if r.at > t - 90 * DAY]
    count, total = len(history), sum(history)
    median, _ = _median(row, before)
    out["customer_history_90d"] = count
    out["customer_prior_mean_90d"] = total / (100 * count) if count else 0.0
    out["customer_prior_median_90d"] = median / 100
    out["amount_to_customer_mean"] = row.cents * count / total if total else 1.0
    out["amount_to_customer_median"] = row.cents / median if median else 1.0
    out["amount_deviation"] = 0.0
    if count > 1:
        mean = total / count
        variance = sum(c * c for c in history) / count - mean * mean
        out["amount_deviation"] = (row.cents - mean) / math.sqrt(max(variance, 1.0))
    unusual = [r for r in own if _is_unusual(r, rows)]
    for n in (1, 3, 7, 14):
        out[f"customer_unusual_amounts_{n}d"] = sum(r.at > t - n * DAY for r in unusual)
    suspicious = [r.at for r in unusual if r.at > t - 28 * DAY and (known(r) or r.at > t - 7 * DAY)]
    out["customer_days_since_first_suspicion"] = (t - min(suspicious)) / DAY if suspicious else 28.0
    out["customer_days_since_last_suspicion"] = (t - max(suspicious)) / DAY if suspicious else 28.0

    there = [r for r in rows if r.terminal == row.terminal]
    for n in (1, 7, 30):
        window = [r for r in there if t - (7 + n) * DAY < r.at <= t - 7 * DAY]
        out[f"terminal_transactions_{n}d"] = len(window)
        out[f"terminal_fraud_share_{n}d"] = sum(map(known, window)) / len(window) if window else 0.0
    labelled = [r for r in there if t - 37 * DAY < r.at <= t - 7 * DAY]
    usual = [r for r in labelled if known(r) and not _is_unusual(r, rows)]
    out["terminal_usual_frauds_7d"] = sum(r.at > t - 14 * DAY for r in usual)
    out["terminal_days_since_run_start"], out["terminal_days_since_clean"] = 37.0, 7.0
    out["terminal_fraud_run"] = out["terminal_transactions_since_fraud"] = 0
    if usual:
        out["terminal_transactions_since_fraud"] = len(labelled) - labelled.index(usual[-1]) - 1
        clean = [position for position, r in enumerate(labelled) if not known(r)]
        run = [r for r in labelled[clean[-1] + 1 if clean else 0 :] if r in usual]
        out["terminal_days_since_clean"] = (t - labelled[clean[-1]].at) / DAY if clean else 37.0
        out["terminal_fraud_run"] = len(run)
        if run:
            out["terminal_days_since_run_start"] = (t - run[0].at) / DAY
    return out


# --- random histories ------------------------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> list[Row]:
    """A few customers and terminals over months, with ties, edges of windows, and reports early, late or of no fraud."""
    rows = []
    for identity in draw(st.permutations(range(draw(st.integers(1, 40))))):
        # Whole and half days meet the edges of windows; a handful of moments makes ties.
        at = (17_000 * DAY) + draw(st.integers(0, 320)) * DAY // 2 + draw(st.sampled_from((0, 0, 0, 1, -1)))
        label = draw(st.sampled_from(("none", "none", "fraud", "fraud", "late", "clean")))
        delay = {"none": 0, "fraud": 7, "clean": 3, "late": draw(st.integers(0, 60))}[label]
        rows.append(
            Row(
                identity,
                draw(st.integers(1, 2)),
                draw(st.integers(1, 3)),
                at,
                draw(st.sampled_from((0, 1, 1000, 1000, 1999, 2500, 2501, 9000))),
                None if label == "none" else at + delay * DAY,
                None if label == "none" else label != "clean",
            )
        )
    return rows


fast = settings(max_examples=40, deadline=None)


@fast
@given(histories())
def test_features_equal_the_brute_force_reference(rows: list[Row]):
    got, expected = by_id(rows), reference(rows)
    for identity, row in expected.items():
        assert set(row) == set(FEATURE_NAMES)
        for name, value in row.items():
            assert got[identity][name] == pytest.approx(value, rel=1e-9, abs=1e-9), (identity, name)


@fast
@given(histories(), st.integers(0, 330))
def test_incremental_from_any_moment_equals_full(rows: list[Row], half_days: int):
    cut = 17_000 * DAY + half_days * DAY // 2
    full = compute(rows)
    window = [row for row in rows if row.at > cut - LOOKBACK_DAYS * DAY]
    expected = full[full.transacted_at >= cut].reset_index(drop=True)
    pd.testing.assert_frame_equal(compute(window, start=cut), expected, check_exact=True)


@fast
@given(histories(), st.randoms(use_true_random=False))
def test_order_and_partitions_change_nothing(rows: list[Row], random):
    expected = compute(rows)
    shuffled = random.sample(rows, len(rows))
    pd.testing.assert_frame_equal(compute(shuffled), expected, check_exact=True)

    def batches(chosen: list[Row]) -> list[pa.RecordBatch]:
        columns = list(zip(*((r.id, r.customer, r.terminal, r.at, r.cents, r.reported_at, r.is_fraud) for r in chosen), strict=True))
        arrays = [pa.array(column, field.type) for column, field in zip(columns, INPUT_SCHEMA, strict=True)]
        return pa.Table.from_arrays(arrays, schema=INPUT_SCHEMA).to_batches(max_chunksize=3)

    first = []
    for customer in {row.customer for row in rows}:
        first += customer_pass(batches([row for row in shuffled if row.customer == customer]))
    table = pa.Table.from_batches(first, CUSTOMER_SCHEMA)
    second = []
    for terminal in {row.terminal for row in rows}:
        mine = table.filter(pa.compute.equal(table["terminal_id"], terminal))
        second += terminal_pass(0, EVER)(mine.to_batches(max_chunksize=2))
    parts = pa.Table.from_batches(second, FEATURE_SCHEMA).to_pandas()
    parts = parts.sort_values(["transacted_at", "transaction_id"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(parts, expected, check_exact=True)


@fast
@given(histories(), st.data())
def test_nothing_after_a_moment_changes_its_features(rows: list[Row], data: st.DataObject):
    chosen = data.draw(st.sampled_from(rows))
    now = (chosen.at, chosen.id)
    changed = []
    for row in rows:
        if (row.at, row.id) > now:
            if data.draw(st.booleans()):
                changed.append(replace(row, cents=row.cents + 7777, terminal=1, customer=2, is_fraud=None, reported_at=None))
        elif row.is_fraud and row.reported_at is not None and row.reported_at > chosen.at:
            changed.append(replace(row, is_fraud=None, reported_at=None))
        elif row.is_fraud is None:
            changed.append(fraud(row, reported_at=chosen.at + 1))
        else:
            changed.append(row)
    full, other = compute(rows), compute(changed)
    mine = full[full.transaction_id == chosen.id].reset_index(drop=True)
    theirs = other[other.transaction_id == chosen.id].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, theirs, check_exact=True)


@pytest.mark.parametrize("cached_rows", [1, 100, 50_000])
def test_many_random_rows_equal_the_reference(cached_rows: int, monkeypatch):
    monkeypatch.setattr(ml_features, "_CACHED_ROWS", cached_rows)
    random = np.random.default_rng(7)
    rows = []
    for identity in range(150):
        at = 17_000 * DAY + int(random.integers(0, 60 * 24)) * HOUR
        row = Row(identity, int(random.integers(2)), int(random.integers(3)), at, int(random.integers(1, 9999)))
        rows.append(fraud(row, at + int(random.integers(0, 20)) * DAY) if random.random() < 0.5 else row)
    got, expected = by_id(rows), reference(rows)
    for identity, row in expected.items():
        assert got[identity] == pytest.approx({**got[identity], **row}, rel=1e-9, abs=1e-9)


def test_batches_are_bounded(monkeypatch):
    monkeypatch.setattr(ml_features, "_BATCH_ROWS", 4)
    rows = [Row(i, i, i, (100 + i) * DAY, 100) for i in range(10)]
    columns = list(zip(*((r.id, r.customer, r.terminal, r.at, r.cents, None, None) for r in rows), strict=True))
    arrays = [pa.array(column, field.type) for column, field in zip(columns, INPUT_SCHEMA, strict=True)]
    sizes = [batch.num_rows for batch in customer_pass(pa.Table.from_arrays(arrays, schema=INPUT_SCHEMA).to_batches())]
    assert sizes == [4, 4, 2]
