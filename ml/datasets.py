"""Rows for training and testing: features as of a snapshot, labels as known at a moment."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from etl.errors import RefusedError
from etl.settings import settings
from ml.evaluation import DAY_MICROSECONDS, Week, split
from ml.params import Windows
from ml.spark import main_snapshot

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

FEATURES_TABLE = "feature.transactions"
REPORTS_TABLE = "core.fraud_reports"
TRANSACTIONS_TABLE = "core.transactions"

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True)
class Snapshots:
    """What the tables held when a run read them: Iceberg snapshot ids."""

    features: int
    reports: int
    transactions: int


@dataclass(frozen=True)
class Rows:
    """Labelled rows in memory.

    Attributes
    ----------
    transaction_id, customer_id, terminal_id
        Shape (rows,).
    transacted_at
        Microseconds since 1970 UTC, shape (rows,).
    amount
        Shape (rows,).
    is_fraud
        As known at the run's `as_of`, shape (rows,).
    columns
        Features by name, each of shape (rows,).
    """

    transaction_id: npt.NDArray[np.int64]
    customer_id: npt.NDArray[np.int64]
    terminal_id: npt.NDArray[np.int64]
    transacted_at: npt.NDArray[np.int64]
    amount: npt.NDArray[np.float64]
    is_fraud: npt.NDArray[np.bool_]
    columns: dict[str, npt.NDArray[Any]]

    def __len__(self) -> int:
        return len(self.transaction_id)

    def take(self, positions: npt.NDArray[np.int64]) -> Rows:
        """Return the rows at these positions."""
        taken = {name: getattr(self, name)[positions] for name in self.__dataclass_fields__ if name != "columns"}
        return Rows(**taken, columns={name: values[positions] for name, values in self.columns.items()})


def current_snapshots(spark: SparkSession) -> Snapshots:
    """Return the newest snapshots of the tables that training reads.

    Raises
    ------
    RefusedError
        When a table is missing or empty.
    """
    return Snapshots(*(_snapshot(spark, table) for table in (FEATURES_TABLE, REPORTS_TABLE, TRANSACTIONS_TABLE)))


def _snapshot(spark: SparkSession, table: str) -> int:
    if not spark.catalog.tableExists(table):
        raise RefusedError(f"{table} does not exist yet; run bash/extract.sh full and bash/transform.sh full first")
    snapshot = main_snapshot(spark, table)
    if snapshot is None:
        raise RefusedError(f"{table} is empty; run bash/extract.sh full and bash/transform.sh full first")
    return snapshot


def moment(spark: SparkSession, given: str = "") -> dt.datetime:
    """Return 'now' for training and scoring: what is given, else the setting `as_of`, else the newest transaction in core.

    Raises
    ------
    RefusedError
        When what is given is no time, or core has no transaction.
    """
    if text := given or settings().as_of:
        return parsed_moment(text)
    # Partition values bound the search to the newest day.
    row = spark.sql(f"SELECT unix_micros(max(transacted_at)) FROM {TRANSACTIONS_TABLE}").first()
    if row is None or row[0] is None:
        raise RefusedError(f"{TRANSACTIONS_TABLE} is empty; run bash/extract.sh full and bash/transform.sh full first")
    return EPOCH + dt.timedelta(microseconds=row[0])


def parsed_moment(text: str) -> dt.datetime:
    """Read a time in ISO 8601; UTC where it names no zone.

    Raises
    ------
    RefusedError
        When it is no time.
    """
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        raise RefusedError(f"as_of {text!r} is no time; write it as 2018-09-30 or 2018-09-30T12:00:00") from None
    return at.replace(tzinfo=dt.UTC) if at.tzinfo is None else at.astimezone(dt.UTC)


def micros(at: dt.datetime) -> int:
    """Microseconds since 1970 UTC, exactly."""
    return (at - EPOCH) // dt.timedelta(microseconds=1)


def newest_week(as_of: dt.datetime, windows: Windows) -> Week:
    """Return the newest week whose labels are all known: the label of its last moment has arrived by `as_of`."""
    # The newest transaction lies within the last day, a microsecond before its end counts as the end of the day.
    labelled_to = (micros(as_of) - windows.delay_days * DAY_MICROSECONDS + 1) // DAY_MICROSECONDS
    return Week(labelled_to - windows.test_days, windows.train_days, windows.delay_days, windows.test_days)


def labelled(spark: SparkSession, snapshots: Snapshots, features: tuple[str, ...], days: tuple[int, int], as_of: dt.datetime) -> DataFrame:
    """Rows of some days with the labels known at `as_of`.

    Parameters
    ----------
    features
        Columns wanted, as 32-bit floats.
    days
        From the first day to the day after the last, days since 1970.
    as_of
        Reports that came later are not seen.
    """
    have = set(spark.table(FEATURES_TABLE).columns)
    if missing := [name for name in features if name not in have]:
        raise RefusedError(f"{FEATURES_TABLE} lacks {', '.join(missing)}; build it anew with bash/transform.sh full")
    first, last = (f"timestamp_micros({day * DAY_MICROSECONDS})" for day in days)
    columns = "".join(f", CAST(f.{name} AS float) AS {name}" for name in features)
    return spark.sql(f"""
        SELECT f.transaction_id, f.customer_id, f.terminal_id, unix_micros(f.transacted_at) AS transacted_at,
               CAST(f.amount AS double) AS paid, CAST(r.transaction_id IS NOT NULL AS int) AS is_fraud{columns}
        FROM {FEATURES_TABLE} VERSION AS OF {snapshots.features} AS f
        LEFT JOIN (
            SELECT transaction_id FROM {REPORTS_TABLE} VERSION AS OF {snapshots.reports}
            WHERE is_fraud AND reported_at <= timestamp_micros({micros(as_of)})
        ) AS r ON r.transaction_id = f.transaction_id
        WHERE f.transacted_at >= {first} AND f.transacted_at < {last}
    """)


def collected(frame: DataFrame, features: tuple[str, ...]) -> Rows:
    """Bring labelled rows into memory, ordered by (transacted_at, transaction_id)."""
    table = frame.toArrow().sort_by([("transacted_at", "ascending"), ("transaction_id", "ascending")])
    keys = {name: table[name].to_numpy() for name in ("transaction_id", "customer_id", "terminal_id", "transacted_at")}
    return Rows(
        **keys,
        amount=table["paid"].to_numpy(),
        is_fraud=table["is_fraud"].to_numpy() == 1,
        columns={name: table[name].to_numpy() for name in features},
    )


def test_rows(spark: SparkSession, snapshots: Snapshots, features: tuple[str, ...], week: Week, as_of: dt.datetime) -> Rows:
    """Return the rows of a test week, cards dropped that are known as compromised by then (see `ml.evaluation`)."""
    from pyspark.sql import functions as F  # noqa: N812

    rows = collected(labelled(spark, snapshots, features, (week.test_from, week.test_to), as_of), features)
    # Of the days before, frauds are enough to know the cards by.
    earlier = labelled(spark, snapshots, (), (week.train_from, week.test_from), as_of).where(F.col("is_fraud") == 1).toArrow()
    before = earlier.num_rows
    kept = (
        split(
            np.concatenate((earlier["transacted_at"].to_numpy(), rows.transacted_at)),
            np.concatenate((earlier["customer_id"].to_numpy(), rows.customer_id)),
            np.concatenate((np.ones(before, np.bool_), rows.is_fraud)),
            week,
        ).test
        - before
    )
    return rows.take(kept)
