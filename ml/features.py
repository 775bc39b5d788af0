"""The features of a transaction, as known at its moment: one definition for full, incremental and streaming runs.

Two passes, each pure numpy over whole groups of rows, so that Spark can run them one after the other without a join:

1. `customer_pass` over all rows of a set of customers: what the customer's own history says about the amount;
2. `terminal_pass` over all rows of a set of terminals: what the terminal's history says, using columns of pass 1.

`features` runs both in one process. What holds for every feature:

- **Order.** Rows are ordered by (transacted_at, transaction_id). "Before" means earlier in that order: of two rows with
  the same time the one with the smaller id counts in the other, never the reverse. A window of n days at t is
  (t - n d, t]: a row exactly n days old is outside. Delayed windows, (t - (7+n) d, t - 7 d], go by time alone.
- **Labels.** A fraud counts from max(transacted_at + 7 d, reported_at) on, that moment included. Until then its
  transaction looks like any other, and so does one reported as no fraud.
- **Bounded.** A row depends on rows less than `LOOKBACK_DAYS` older, nothing else. So rows of [start, end) computed from the rows
  of [start - LOOKBACK_DAYS, end) equal those of a full run bit for bit.
- **Exact.** Sums and counts are integers (cents, rows, microseconds); floats are made at the end, one by one, from
  integers of the window. Neither partitioning nor input order can change a bit.
- **No holes.** No feature is null or NaN. Where there is no history: counts, shares and means are 0, ratios to a missing mean or median are
  1 ("as usual"), and a time since something that is not in the window is the window's whole length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

Columns = Mapping[str, npt.NDArray[Any]]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Frame = TypeVar("Frame", pd.DataFrame, pa.Table)

DAY = 86_400_000_000  # microseconds
HOUR = 3_600_000_000

DELAY_DAYS = 7
"""Days until a transaction's label can be known at all."""

HISTORY_DAYS = 90
"""Days of a customer's own history that an amount is compared with."""

SUSPICION_DAYS = 28
"""Days for which unusual amounts of a customer are remembered."""

TERMINAL_DAYS = 30
"""Days of a terminal's labelled history, beyond the delay."""

CUSTOMER_LOOKBACK_DAYS = HISTORY_DAYS + SUSPICION_DAYS
"""A row's customer features reach this far back: an unusual amount of the last 28 days was judged by the 90 before it."""

LOOKBACK_DAYS = max(CUSTOMER_LOOKBACK_DAYS, DELAY_DAYS + TERMINAL_DAYS + HISTORY_DAYS)
"""A row's features reach this far back: the terminal's rows of the last 37 days, each judged by the 90 days before it."""

UNUSUAL_HALVES = 5
"""An amount is unusual above this many halves of the customer's median: 2.5 times (whole numbers compare exactly)."""

UNUSUAL_MIN_HISTORY = 3
"""Transactions a customer needs before an amount can be called unusual."""

DEVIATION_CAP = 10_000_000
"""Cents at which an amount is cut for squares, so that the sum of a window's squares fits 64 bits."""

_NEVER = np.iinfo(np.int64).max // 4


@dataclass(frozen=True)
class Feature:
    """A column that models read.

    Attributes
    ----------
    name
        Column name, the same in Hive, Python and Power BI.
    type
        Spark type: `int`, `bigint` or `double`.
    description
        One sentence, for the column's COMMENT and for people who read reasons.
    """

    name: str
    type: str
    description: str

    @property
    def arrow_type(self) -> pa.DataType:
        """The Arrow type of the column."""
        return _ARROW_TYPES[self.type]


_ARROW_TYPES = {"int": pa.int32(), "bigint": pa.int64(), "double": pa.float64()}


def _days(number: int) -> str:
    return "day" if number == 1 else f"{number} days"


_HANDBOOK = (
    Feature("amount", "double", "Amount of the transaction."),
    Feature("is_weekend", "int", "1 on Saturday and Sunday (UTC), else 0."),
    Feature("is_night", "int", "1 from 00:00 to 06:59 (UTC), else 0."),
    *(
        feature
        for days in (1, 7, 30)
        for feature in (
            Feature(
                f"customer_transactions_{days}d",
                "int",
                f"Transactions of the customer in the last {_days(days)}, this one included.",
            ),
            Feature(
                f"customer_mean_amount_{days}d",
                "double",
                f"Mean amount of the customer's transactions in the last {_days(days)}, this one included.",
            ),
        )
    ),
    *(
        feature
        for days in (1, 7, 30)
        for feature in (
            Feature(
                f"terminal_transactions_{days}d",
                "int",
                f"Transactions at the terminal in the {_days(days)} that ended 7 days ago.",
            ),
            Feature(
                f"terminal_fraud_share_{days}d",
                "double",
                f"Share of known frauds among the terminal's transactions in the {_days(days)} that ended 7 days ago.",
            ),
        )
    ),
)

_CUSTOMER = (
    Feature(
        "customer_history_90d",
        "int",
        "Transactions of the customer in the last 90 days before this one.",
    ),
    Feature(
        "customer_prior_mean_90d",
        "double",
        "Mean amount of the customer's transactions in the last 90 days before this one (0 without history).",
    ),
    Feature(
        "customer_prior_median_90d",
        "double",
        "Median amount of the customer's transactions in the last 90 days before this one (0 without history).",
    ),
    Feature(
        "amount_to_customer_mean",
        "double",
        "Amount divided by the customer's mean over 90 days before (1 without history).",
    ),
    Feature(
        "amount_to_customer_median",
        "double",
        "Amount divided by the customer's median over 90 days before (1 without history).",
    ),
    Feature(
        "amount_deviation",
        "double",
        "Amount less the customer's mean, in standard deviations, over 90 days before (0 without history).",
    ),
    *(
        Feature(
            f"customer_unusual_amounts_{days}d",
            "int",
            f"Unusual amounts of the customer (above 2.5 times the median of the 90 days before, given 3 transactions) in the last "
            f"{_days(days)} before this transaction.",
        )
        for days in (1, 3, 7, 14)
    ),
    Feature(
        "customer_days_since_first_suspicion",
        "double",
        "Days since the customer's first suspicious amount (unusual, and known as fraud or too recent to be known) in "
        "the last 28 days (28 if none).",
    ),
    Feature(
        "customer_days_since_last_suspicion",
        "double",
        "Days since the customer's last suspicious amount (unusual, and known as fraud or too recent to be known) in "
        "the last 28 days (28 if none).",
    ),
)

_TERMINAL = (
    Feature(
        "terminal_usual_frauds_7d",
        "int",
        "Known frauds of usual amount at the terminal in the 7 days that ended 7 days ago.",
    ),
    Feature(
        "terminal_fraud_run",
        "int",
        "Known frauds of usual amount at the terminal since its last transaction that is not known as fraud, of those 7 to 37 days old.",
    ),
    Feature(
        "terminal_days_since_run_start",
        "double",
        "Days since the first fraud of that run (37 if there is none).",
    ),
    Feature(
        "terminal_days_since_clean",
        "double",
        "Days since the terminal's last transaction not known as fraud, of those 7 to 37 days old; 37 if none, 7 if "
        "there is no known fraud of usual amount.",
    ),
    Feature(
        "terminal_transactions_since_fraud",
        "int",
        "Transactions at the terminal after its last known fraud of usual amount and at least 7 days ago (0 without one).",
    ),
)

FEATURES: tuple[Feature, ...] = _HANDBOOK + _CUSTOMER + _TERMINAL
"""All features, in the order of the table's columns."""

HANDBOOK_FEATURES: tuple[str, ...] = tuple(feature.name for feature in _HANDBOOK)
"""The 15 features of the Fraud Detection Handbook, in its order."""

FEATURE_NAMES: tuple[str, ...] = tuple(feature.name for feature in FEATURES)

MODEL_FEATURES: tuple[str, ...] = (
    "amount",
    "customer_history_90d",
    "customer_prior_mean_90d",
    "customer_prior_median_90d",
    "amount_to_customer_mean",
    "amount_to_customer_median",
    "amount_deviation",
    "customer_unusual_amounts_1d",
    "customer_unusual_amounts_3d",
    "customer_unusual_amounts_7d",
    "customer_unusual_amounts_14d",
    "customer_days_since_first_suspicion",
    "customer_days_since_last_suspicion",
    "terminal_usual_frauds_7d",
    "terminal_fraud_run",
    "terminal_days_since_run_start",
    "terminal_days_since_clean",
    "terminal_transactions_since_fraud",
)
"""The features to train on: all that helped on weeks before the test weeks. A week has 600 frauds; with every feature
a model learns noise: .002 of average precision less (docs/model.md)."""

_KEYS = ("transaction_id", "customer_id", "terminal_id", "transacted_at")
_FROM_CUSTOMER = tuple(feature for feature in _HANDBOOK + _CUSTOMER if feature in _CUSTOMER or not feature.name.startswith("terminal_"))

INPUT_SCHEMA = pa.schema(
    [
        *((name, pa.int64()) for name in (*_KEYS, "amount_cents", "reported_at")),
        ("is_fraud", pa.bool_()),
    ]
)
"""What pass 1 reads: times are microseconds since 1970 UTC; reported_at and is_fraud are null without a report."""

CUSTOMER_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.int64(), nullable=False) for name in (*_KEYS, "known_at")),
        pa.field("is_unusual_amount", pa.bool_(), nullable=False),
        *(pa.field(feature.name, feature.arrow_type, nullable=False) for feature in _FROM_CUSTOMER),
    ]
)
"""What pass 1 writes and pass 2 reads: known_at is when a fraud becomes known (far in the future if it is none), an
amount is unusual by `UNUSUAL_HALVES` and `UNUSUAL_MIN_HISTORY`."""

FEATURE_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.int64(), nullable=False) for name in _KEYS),
        *(pa.field(feature.name, feature.arrow_type, nullable=False) for feature in FEATURES),
    ]
)
"""What pass 2 writes: the keys, then `FEATURES`."""


def ddl(schema: pa.Schema) -> str:
    """Spark's DDL for a schema of this module, as `mapInArrow` takes it; what cannot be null costs less to pass on.

    Parameters
    ----------
    schema
        `INPUT_SCHEMA`, `CUSTOMER_SCHEMA` or `FEATURE_SCHEMA`.
    """
    names = {pa.int32(): "int", pa.int64(): "bigint", pa.float64(): "double", pa.bool_(): "boolean"}
    return ", ".join(f"{field.name} {names[field.type]}{'' if field.nullable else ' NOT NULL'}" for field in schema)


# --- sorted rows of many groups --------------------------------------------------------------------------------------


class _Timeline:
    """Rows of many groups on one integer axis.

    Sorted by (group, time, id). Each group has a stretch of the axis of its own, with an empty margin of `margin_days`
    before it, so a shifted time can be searched for without ever meeting another group's rows.
    """

    def __init__(self, group: Ints, at: Ints, ids: Ints, margin_days: int) -> None:
        self.first_at = int(at.min())
        self.span = int(at.max()) - self.first_at
        self.stride = self.span + margin_days * DAY + 2
        axis = _codes(group, self.stride) * self.stride + (at - self.first_at)
        self.order = _argsort(axis, ids)
        self.axis: Ints = axis[self.order]
        self.group: Ints = group[self.order]
        self.at: Ints = at[self.order]
        self.rows = len(axis)
        self.here: Ints = np.arange(self.rows)
        is_first = np.ones(self.rows, np.bool_)
        is_first[1:] = self.group[1:] != self.group[:-1]
        self.group_start: Ints = np.maximum.accumulate(np.where(is_first, self.here, 0))

    def since(self, days: int) -> Ints:
        """For each row, the position of the first row of its group that is less than `days` old."""
        return np.searchsorted(self.axis, self.axis - days * DAY, side="right")

    def first_row_from(self, rows: Ints, at: Ints) -> Ints:
        """For events that belong to the groups of `rows`, the first row that an event at time `at` precedes or meets.

        That is the next group's first row if no row of the group is that late.
        """
        inside = np.minimum(at - self.first_at, self.span + 1)
        return np.searchsorted(self.axis, self.axis[rows] - (self.at[rows] - self.first_at) + inside, side="left")

    def count_active(self, rows: Ints, begins: Ints, ends: Ints) -> Ints:
        """For each row, how many events [begins, ends) of its group are active at its time."""
        change = np.bincount(self.first_row_from(rows, begins), minlength=self.rows + 1)
        change -= np.bincount(self.first_row_from(rows, np.maximum(begins, ends)), minlength=self.rows + 1)
        return np.cumsum(change[:-1])


def _codes(group: Ints, stride: int) -> Ints:
    """Small numbers in the groups' order; the ids themselves where they are small enough."""
    low, high = int(group.min()), int(group.max())
    if (high - low + 1) * stride < 2**62:
        return group - low
    return np.unique(group, return_inverse=True)[1].astype(np.int64)


def _argsort(axis: Ints, ids: Ints) -> Ints:
    """Order by (axis, ids). Ties are rare, so they are put right afterwards: three times faster than lexsort."""
    order = np.argsort(axis)
    sorted_axis = axis[order]
    same = sorted_axis[1:] == sorted_axis[:-1]
    if same.any():
        tied = np.zeros(len(axis), np.bool_)
        tied[1:] |= same
        tied[:-1] |= same
        rows = order[tied]
        order[tied] = rows[np.lexsort((ids[rows], axis[rows]))]
    return order


def _by_chunks(
    run: Callable[[Columns], dict[str, npt.NDArray[Any]]], columns: Columns, by: str, margin_days: int
) -> dict[str, npt.NDArray[Any]]:
    """Run a pass on as many groups at once as fit on one 64-bit axis: all of them but for very many or very old."""
    at, group = columns["transacted_at"], columns[by]
    stride = int(at.max()) - int(at.min()) + margin_days * DAY + 2
    fitting = max(1, 2**62 // stride)
    if int(group.max()) - int(group.min()) < fitting:
        return run(columns)
    groups = np.unique(group)
    if len(groups) <= fitting:
        return run(columns)
    chunk = np.searchsorted(groups, group) // fitting
    parts = [run({name: values[chunk == number] for name, values in columns.items()}) for number in range(chunk.max() + 1)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _prefix(values: npt.NDArray[Any]) -> Ints:
    """Sums of the first 0, 1, 2, ... values; int64, wrapping, so differences are exact if they themselves fit."""
    sums = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, dtype=np.int64, out=sums[1:])
    return sums


def _share(part: npt.NDArray[Any], whole: npt.NDArray[Any], default: float) -> npt.NDArray[np.float64]:
    """`part / whole`, and the default where the whole is 0."""
    return np.divide(part, whole, out=np.full(len(part), default), where=whole != 0)


def _medians(line: _Timeline, amount: Ints, left: Ints, right: Ints) -> Ints:
    """For each row, the lower median amount (cents) of the rows [left, right) of its group; 0 if there are none."""
    median = np.empty(line.rows, np.int64)
    begin = 0
    while begin < line.rows:
        # Whole groups, as many as the processor's cache holds: twice as fast as all at once.
        end = begin + _CACHED_ROWS
        if end < line.rows:
            end = int(line.group_start[end])
            if end <= begin:
                end = int(np.searchsorted(line.group_start, begin, side="right"))
        part = slice(begin, min(end, line.rows))
        median[part] = _wavelet(line.group_start[part] - begin, amount[part], left[part] - begin, right[part] - begin)
        begin = part.stop
    return median


_CACHED_ROWS = 50_000


def _wavelet(group_start: Ints, amount: Ints, left: Ints, right: Ints) -> Ints:
    """`_medians` of some groups by a wavelet matrix over each amount's rank within its group.

    One step per bit of the largest group, so n log n in rows whatever the windows hold.
    """
    rows = len(amount)
    lowest, highest = int(amount.min()), int(amount.max())
    if (highest - lowest + 1) * rows < 2**62:
        # The order of equal amounts does not matter, so the fastest sort will do.
        by_amount = np.argsort(group_start * (highest - lowest + 1) + (amount - lowest))
    else:
        by_amount = np.lexsort((amount, group_start))
    in_group = np.arange(rows) - group_start
    rank = np.empty(rows, np.int64)
    rank[by_amount] = in_group
    ranked = amount[by_amount]

    has_rows = right > left
    wanted = np.maximum(right - left - 1, 0) // 2
    found = np.zeros(rows, np.int64)
    for bit in reversed(range(int(in_group.max()).bit_length())):
        is_one = ((rank >> bit) & 1) != 0
        zeros = _prefix(~is_one)
        ones_begin = zeros[-1]
        zero_left, zero_right = zeros[left], zeros[right]
        in_zeros = zero_right - zero_left
        go_one = wanted >= in_zeros
        wanted -= in_zeros * go_one
        found |= go_one.astype(np.int64) << bit
        left = np.where(go_one, ones_begin + left - zero_left, zero_left)
        right = np.where(go_one, ones_begin + right - zero_right, zero_right)
        rank = np.concatenate((rank[~is_one], rank[is_one]))
    # An empty window finds nonsense; its position must still exist.
    return np.where(has_rows, ranked[np.minimum(group_start + found, rows - 1)], 0)


# --- pass 1: customers -----------------------------------------------------------------------------------------------


def customer_columns(columns: Columns) -> dict[str, npt.NDArray[Any]]:
    """Pass 1 on arrays: all rows of some customers in, `CUSTOMER_SCHEMA` out, sorted by customer, time and id.

    Parameters
    ----------
    columns
        The keys and `amount_cents` as int64, and `known_at` (int64 microseconds; see `known_at`).
    """
    if len(columns["transaction_id"]) == 0:
        return _empty(CUSTOMER_SCHEMA)
    return _by_chunks(_customer_chunk, columns, "customer_id", HISTORY_DAYS)


def known_at(transacted_at: Ints, reported_at: Ints, is_fraud: Bools) -> Ints:
    """When each transaction becomes known as fraud, in microseconds; far in the future for those that are none."""
    return np.where(is_fraud, np.maximum(transacted_at + DELAY_DAYS * DAY, reported_at), _NEVER)


def _customer_chunk(columns: Columns) -> dict[str, npt.NDArray[Any]]:
    line = _Timeline(columns["customer_id"], columns["transacted_at"], columns["transaction_id"], HISTORY_DAYS)
    out: dict[str, npt.NDArray[Any]] = {name: columns[name][line.order] for name in (*_KEYS, "known_at")}
    cents = columns["amount_cents"][line.order]
    known = out["known_at"]
    here, after = line.here, line.here + 1
    day_number = line.at // DAY
    out["amount"] = cents / 100
    out["is_weekend"] = (day_number + 3) % 7 >= 5  # 1970-01-01 was a Thursday
    out["is_night"] = (line.at - day_number * DAY) < 7 * HOUR

    sums = _prefix(cents)
    for days in (1, 7, 30):
        left = line.since(days)
        count = after - left
        out[f"customer_transactions_{days}d"] = count
        out[f"customer_mean_amount_{days}d"] = (sums[after] - sums[left]) / (100 * count)

    left = line.since(HISTORY_DAYS)
    count = here - left
    total = sums[here] - sums[left]
    capped = np.minimum(cents, DEVIATION_CAP)
    capped_sums, squares = _prefix(capped), _prefix(capped * capped)
    mean = _share(capped_sums[here] - capped_sums[left], count, 0.0)
    variance = _share(squares[here] - squares[left], count, 0.0) - mean * mean
    median = _medians(line, cents, left, here)
    out["customer_history_90d"] = count
    out["customer_prior_mean_90d"] = _share(total, 100 * count, 0.0)
    out["customer_prior_median_90d"] = median / 100
    out["amount_to_customer_mean"] = _share(cents * count, total, 1.0)
    out["amount_to_customer_median"] = _share(cents, median, 1.0)
    # Below a cent of deviation the amounts are all alike and a ratio would say nothing.
    deviation = np.sqrt(np.maximum(variance, 1.0))
    out["amount_deviation"] = np.where(count > 1, (capped - mean) / deviation, 0.0)

    unusual = (2 * cents > UNUSUAL_HALVES * median) & (count >= UNUSUAL_MIN_HISTORY)
    out["is_unusual_amount"] = unusual
    unusual_sums = _prefix(unusual)
    for days in (1, 3, 7, 14):
        out[f"customer_unusual_amounts_{days}d"] = unusual_sums[here] - unusual_sums[line.since(days)]
    out.update(_suspicions(line, unusual, known))
    return _typed(out, CUSTOMER_SCHEMA)


def _suspicions(line: _Timeline, unusual: Bools, known: Ints) -> dict[str, npt.NDArray[Any]]:
    """First and last suspicious amount of the customer: unusual, and known as fraud or too recent to be known."""
    rows = np.flatnonzero(unusual)
    due = line.at[rows] + DELAY_DAYS * DAY
    first = np.full(line.rows, float(SUSPICION_DAYS))
    last = np.full(line.rows, float(SUSPICION_DAYS))
    before = _prefix(unusual)
    lo = before[line.since(SUSPICION_DAYS)]
    hi = before[line.here]
    asking = np.flatnonzero(hi > lo)
    lo, hi = lo[asking], hi[asking] - 1
    at = line.at[asking]
    row_known = known[rows]
    row_at = line.at[rows]

    def suspicious(event: Ints, now: Ints) -> Bools:
        return (row_known[event] <= now) | (now < due[event])

    first_event = _advance(lo, hi, at, suspicious, 1)
    last_event = _advance(hi, lo, at, suspicious, -1)
    found = first_event >= 0
    first[asking[found]] = (at[found] - row_at[first_event[found]]) / DAY
    last[asking[found]] = (at[found] - row_at[last_event[found]]) / DAY
    return {
        "customer_days_since_first_suspicion": first,
        "customer_days_since_last_suspicion": last,
    }


def _advance(begin: Ints, end: Ints, now: Ints, holds: Callable[[Ints, Ints], Bools], step: int) -> Ints:
    """Walk from `begin` to `end` (inclusive) to the first event that holds at `now`; -1 if none does.

    Each turn moves only the rows that have not arrived, and few start on an event that does not hold.
    """
    event = begin.copy()
    walking = np.flatnonzero(~holds(event, now))
    while len(walking):
        over = event[walking] == end[walking]
        event[walking[over]] = -1
        walking = walking[~over]
        event[walking] += step
        walking = walking[~holds(event[walking], now[walking])]
    return event


# --- pass 2: terminals -----------------------------------------------------------------------------------------------


def terminal_columns(columns: Columns, start: int, end: int) -> dict[str, npt.NDArray[Any]]:
    """Pass 2 on arrays: all rows of some terminals as pass 1 wrote them in, `FEATURE_SCHEMA` out.

    Parameters
    ----------
    columns
        `CUSTOMER_SCHEMA`.
    start, end
        Microseconds; only rows with start <= transacted_at < end come out, sorted by terminal, time and id.
    """
    if len(columns["transaction_id"]) == 0:
        return _empty(FEATURE_SCHEMA)

    def run(chunk: Columns) -> dict[str, npt.NDArray[Any]]:
        return _terminal_chunk(chunk, start, end)

    return _by_chunks(run, columns, "terminal_id", DELAY_DAYS + TERMINAL_DAYS)


def _terminal_chunk(columns: Columns, start: int, end: int) -> dict[str, npt.NDArray[Any]]:
    window = DELAY_DAYS + TERMINAL_DAYS
    line = _Timeline(columns["terminal_id"], columns["transacted_at"], columns["transaction_id"], window)
    known = columns["known_at"][line.order]
    unusual = columns["is_unusual_amount"][line.order]
    out: dict[str, npt.NDArray[Any]] = {}

    delayed = line.since(DELAY_DAYS)
    frauds = np.flatnonzero(known < _NEVER)
    usual = frauds[~unusual[frauds]]
    for days in (1, 7, 30):
        count = delayed - line.since(DELAY_DAYS + days)
        out[f"terminal_transactions_{days}d"] = count
        known_frauds = line.count_active(frauds, known[frauds], line.at[frauds] + (DELAY_DAYS + days) * DAY)
        out[f"terminal_fraud_share_{days}d"] = _share(known_frauds, count, 0.0)

    def usual_frauds(days: int) -> Ints:
        return line.count_active(usual, known[usual], line.at[usual] + (DELAY_DAYS + days) * DAY)

    out["terminal_usual_frauds_7d"] = usual_frauds(7)
    out.update(_fraud_run(line, known, usual, delayed, usual_frauds(TERMINAL_DAYS) > 0))

    kept = np.flatnonzero((line.at >= start) & (line.at < end))
    result = {name: values[kept] for name, values in out.items()}
    from_customer = line.order[kept]
    for name in (*_KEYS, *(feature.name for feature in _FROM_CUSTOMER)):
        result[name] = columns[name][from_customer]
    return _typed(result, FEATURE_SCHEMA)


def _fraud_run(line: _Timeline, known: Ints, usual: Ints, delayed: Ints, has_fraud: Bools) -> dict[str, npt.NDArray[Any]]:
    """Timing of the known frauds of usual amount at the terminal, of its rows 7 to 37 days old.

    Only rows whose window holds such a fraud are looked at: a few in a hundred.
    """
    window = DELAY_DAYS + TERMINAL_DAYS
    rows = np.flatnonzero(has_fraud)
    now = line.at[rows]
    oldest = line.since(window)[rows]
    newest = delayed[rows] - 1

    is_usual = np.zeros(line.rows, np.bool_)
    is_usual[usual] = True
    usual_before = _prefix(is_usual)

    def fraud_known(event: Ints, at: Ints) -> Bools:
        return known[usual[event]] <= at

    first_in, last_in = usual_before[oldest], usual_before[newest + 1] - 1
    last = usual[_advance(last_in, first_in, now, fraud_known, -1)]

    # The last row not known as fraud. A fraud known in good time is passed in one jump, a late one is asked.
    prompt = known == line.at + DELAY_DAYS * DAY
    not_prompt = np.maximum.accumulate(np.where(prompt, -1, line.here))
    clean = newest.copy()
    walking = np.arange(len(rows))
    while len(walking):
        clean[walking] = not_prompt[clean[walking]]
        walking = walking[clean[walking] >= oldest[walking]]
        walking = walking[known[clean[walking]] <= now[walking]]
        clean[walking] -= 1
        walking = walking[clean[walking] >= oldest[walking]]
    has_clean = clean >= oldest
    run_from = np.where(has_clean, clean + 1, oldest)
    # Everything after the last clean row is known as fraud, so its usual ones can be counted without asking.
    run = usual_before[newest + 1] - usual_before[run_from]
    run_first = usual[np.minimum(usual_before[run_from], max(len(usual) - 1, 0))] if len(usual) else run_from

    def spread(values: npt.NDArray[Any], default: float) -> npt.NDArray[Any]:
        column = np.full(line.rows, default, np.asarray(values).dtype)
        column[rows] = values
        return column

    none = float(window)
    return {
        "terminal_fraud_run": spread(run, 0),
        "terminal_days_since_run_start": spread(np.where(run > 0, (now - line.at[run_first]) / DAY, none), none),
        "terminal_days_since_clean": spread(np.where(has_clean, (now - line.at[np.maximum(clean, 0)]) / DAY, none), float(DELAY_DAYS)),
        "terminal_transactions_since_fraud": spread(newest - last, 0),
    }


# --- Arrow, Spark and pandas -----------------------------------------------------------------------------------------


def _typed(columns: Columns, schema: pa.Schema) -> dict[str, npt.NDArray[Any]]:
    return {field.name: columns[field.name].astype(field.type.to_pandas_dtype(), copy=False) for field in schema}


def _empty(schema: pa.Schema) -> dict[str, npt.NDArray[Any]]:
    return {field.name: np.empty(0, field.type.to_pandas_dtype()) for field in schema}


def _arrays(table: pa.Table, schema: pa.Schema) -> dict[str, npt.NDArray[Any]]:
    """Numpy columns of a table without nulls; timestamps become microseconds."""
    columns = {}
    for field in schema:
        columns[field.name] = _microseconds(table[field.name]).cast(field.type).to_numpy()
    return columns


def _microseconds(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Timestamps of any unit as microseconds; other columns as they are."""
    return column.cast(pa.timestamp("us", column.type.tz)) if pa.types.is_timestamp(column.type) else column


def _input_arrays(table: pa.Table) -> dict[str, npt.NDArray[Any]]:
    reported_at, is_fraud = _microseconds(table["reported_at"]), table["is_fraud"]
    columns = _arrays(table, pa.schema([(name, pa.int64()) for name in (*_KEYS, "amount_cents")]))
    columns["known_at"] = known_at(
        columns["transacted_at"],
        reported_at.cast(pa.int64()).fill_null(0).to_numpy(),
        is_fraud.cast(pa.bool_()).fill_null(False).to_numpy(),
    )
    return columns


def _table(columns: Columns, schema: pa.Schema) -> pa.Table:
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def customer_pass(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Pass 1 for Spark's `mapInArrow`, after `repartition("customer_id")`; no order is needed.

    Parameters
    ----------
    batches
        `INPUT_SCHEMA` (times may also be timestamps): every row of these customers in the window.

    Yields
    ------
    pyarrow.RecordBatch
        `CUSTOMER_SCHEMA`, one row for each row of the input.
    """
    collected = list(batches)
    if collected:
        table = pa.Table.from_batches(collected)
        yield from _table(customer_columns(_input_arrays(table)), CUSTOMER_SCHEMA).to_batches(max_chunksize=_BATCH_ROWS)


def terminal_pass(start: int, end: int) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Pass 2 for Spark's `mapInArrow`, after `repartition("terminal_id")` of what pass 1 wrote; no order is needed.

    Parameters
    ----------
    start, end
        Microseconds since 1970 UTC: the rows wanted, start <= transacted_at < end.

    Returns
    -------
    callable
        `CUSTOMER_SCHEMA` batches in, `FEATURE_SCHEMA` batches out.
    """

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        collected = list(batches)
        if collected:
            columns = terminal_columns(_arrays(pa.Table.from_batches(collected), CUSTOMER_SCHEMA), start, end)
            # The writer has a file open for each day: rows that change file one after the other miss every cache of the processor.
            order = np.argsort(columns["transacted_at"] // DAY, kind="stable")
            yield from _table({name: values[order] for name, values in columns.items()}, FEATURE_SCHEMA).to_batches(
                max_chunksize=_BATCH_ROWS
            )

    return run


_BATCH_ROWS = 100_000


def features(transactions: Frame, reports: Frame, start: int, end: int) -> Frame:
    """Features of the transactions with start <= transacted_at < end.

    Parameters
    ----------
    transactions
        transaction_id, customer_id, terminal_id, transacted_at (timestamp, or int64 microseconds UTC), amount_cents;
        at least all rows of [start - `LOOKBACK_DAYS` d, end).
    reports
        transaction_id, reported_at, is_fraud; at most one row for each transaction. Reports of other transactions
        are ignored.
    start, end
        Microseconds since 1970 UTC.

    Returns
    -------
    pandas.DataFrame or pyarrow.Table
        `FEATURE_SCHEMA`, of the type that came in, ordered by (transacted_at, transaction_id).
    """
    if isinstance(transactions, pd.DataFrame):
        result = features(
            pa.Table.from_pandas(transactions, preserve_index=False),
            pa.Table.from_pandas(reports, preserve_index=False),
            start,
            end,
        )
        return result.to_pandas()
    columns = terminal_columns(customer_columns(_input_arrays(_with_reports(transactions, reports))), start, end)
    order = np.lexsort((columns["transaction_id"], columns["transacted_at"]))
    return _table({name: values[order] for name, values in columns.items()}, FEATURE_SCHEMA)


def _with_reports(transactions: pa.Table, reports: pa.Table) -> pa.Table:
    """Left join by transaction_id; Arrow's own refuses the untyped columns that pandas makes of no reports."""
    wanted = transactions["transaction_id"].cast(pa.int64()).to_numpy()
    reported = reports["transaction_id"].cast(pa.int64()).to_numpy()
    order = np.argsort(reported)
    place = np.searchsorted(reported[order], wanted)
    found = np.zeros(len(wanted), np.bool_)
    inside = place < len(reported)
    found[inside] = reported[order[place[inside]]] == wanted[inside]
    rows = np.zeros(len(wanted), np.int64)
    rows[found] = order[place[found]]
    taken = pa.array(rows, mask=~found)
    for name, kind in (("reported_at", pa.int64()), ("is_fraud", pa.bool_())):
        column = _microseconds(reports[name]).cast(kind)
        transactions = transactions.append_column(name, column.take(taken))
    return transactions
