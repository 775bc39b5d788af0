"""Build `feature.transactions` from core: all of it, or what has changed since the last build.

An incremental build finds the earliest moment that a change can touch and computes every row from the start of that day
on, anew: in one atomic overwrite. Which snapshots of core a build has seen stands in the summary of its own snapshot.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from etl import ops
from etl.errors import BusyError, RefusedError
from etl.log import logger, run_main
from etl.settings import settings
from etl.sql_server import ATTEMPTS, is_conflict, literal, render, retried
from ml import changes
from ml.spark import main_snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyspark.sql import DataFrame, SparkSession

    from ml.features import Feature

TABLE = "feature.transactions"
INPUTS = {"transactions": "transacted_at", "fraud_reports": "reported_at"}
"""Tables of core that features read, and the column from which on a row of theirs can matter."""

ROWS_PER_PARTITION = 500_000
"""Rows that one worker holds at a time."""

WRITERS_PER_PARTITION = 4
"""Tasks that write days; few large ones end one after the other, and the last keeps one core busy alone."""

KEYS = frozenset(("transaction_id", "customer_id", "terminal_id", "transacted_at", "amount"))


@dataclass(frozen=True)
class Seen:
    """What a build has read: snapshots of core's tables by name, and which definition of the features."""

    snapshots: dict[str, int]
    definition: str

    def properties(self) -> dict[str, str]:
        """Return the summary properties of the build's own snapshot."""
        return {"features": self.definition, **{f"core_{name}": str(snapshot) for name, snapshot in self.snapshots.items()}}


def definition() -> str:
    """Return a fingerprint of the feature code: other code means a full build."""
    from pathlib import Path

    from ml import features

    return hashlib.sha256(Path(str(features.__file__)).read_bytes()).hexdigest()[:16]


def current(spark: SparkSession) -> Seen:
    """Return the newest snapshots of core's tables.

    Raises
    ------
    RefusedError
        When core does not hold them yet.
    """
    snapshots = {}
    for name in INPUTS:
        if not spark.catalog.tableExists(f"core.{name}"):
            raise RefusedError(f"core.{name} does not exist; run bash/extract.sh full and bash/transform.sh full first")
        snapshot = main_snapshot(spark, f"core.{name}")
        if snapshot is None:
            raise RefusedError(f"core.{name} is empty; run bash/transform.sh full first")
        snapshots[name] = snapshot
    return Seen(snapshots, definition())


def last(spark: SparkSession) -> Seen | None:
    """Return what the newest build has seen, or None."""
    if not spark.catalog.tableExists(TABLE):
        return None
    row = spark.sql(
        f"SELECT summary FROM {TABLE}.snapshots WHERE summary['features'] IS NOT NULL ORDER BY committed_at DESC LIMIT 1"
    ).first()
    if row is None:
        return None
    summary = row[0]
    return Seen({name: int(summary[f"core_{name}"]) for name in INPUTS}, summary["features"])


def earliest_change(spark: SparkSession, before: Seen, now: Seen) -> dt.datetime | None | bool:
    """Return the first moment at which a row of core changed between two builds.

    Returns
    -------
    datetime, None or False
        None when nothing changed; False when it cannot be told, and everything has to be built.
    """
    if before.definition != now.definition:
        logger.info("the features' code has changed since the last build: everything is built again")
        return False
    query = _query(spark)
    found = changes.commits(query, {f"core.{name}": (before.snapshots[name], now.snapshots[name]) for name in INPUTS})
    moments = []
    for name, column in INPUTS.items():
        touched = changes.touched(query, f"core.{name}", found[f"core.{name}"])
        if touched is None:
            logger.info("core was replaced since the last build: everything is built again", table=f"core.{name}")
            return False
        row = spark.sql(f"SELECT min({column}) FROM ({touched.rows(query, column)})").first()
        if row is not None and row[0] is not None:
            moments.append(row[0])
    return min(moments, default=None)


def _query(spark: SparkSession) -> changes.Query:
    return lambda statement: spark.sql(statement).collect()


def compute(spark: SparkSession, seen: Seen, start: dt.datetime | None) -> DataFrame:
    """Return the rows of `feature.transactions` from `start` on, or all of them.

    Two shuffles, no join of wide rows: `ml.features.customer_pass`, then `terminal_pass`.
    """
    from pyspark.sql import functions as f

    from ml.features import CUSTOMER_SCHEMA, FEATURE_SCHEMA, FEATURES, LOOKBACK_DAYS, customer_pass, ddl, terminal_pass

    transactions = spark.read.option("versionAsOf", seen.snapshots["transactions"]).table("core.transactions")
    reports = spark.read.option("versionAsOf", seen.snapshots["fraud_reports"]).table("core.fraud_reports")
    if start is not None:
        transactions = transactions.where(f.col("transacted_at") >= f.lit(start - dt.timedelta(days=LOOKBACK_DAYS)))
    partitions = max(2, -(-transactions.count() // ROWS_PER_PARTITION))
    spark.conf.set("spark.sql.shuffle.partitions", WRITERS_PER_PARTITION * partitions)
    spark.conf.set("spark.sql.adaptive.coalescePartitions.enabled", "false")
    rows = transactions.join(reports.select("transaction_id", "reported_at", "is_fraud"), "transaction_id", "left").select(
        "transaction_id",
        "customer_id",
        "terminal_id",
        f.unix_micros("transacted_at").alias("transacted_at"),
        (f.col("amount") * 100).cast("bigint").alias("amount_cents"),
        f.unix_micros("reported_at").alias("reported_at"),
        "is_fraud",
    )
    first = 0 if start is None else int(start.replace(tzinfo=dt.UTC).timestamp()) * 1_000_000
    featured = (
        rows.repartition(partitions, "customer_id")
        .mapInArrow(customer_pass, ddl(CUSTOMER_SCHEMA))
        .repartition(partitions, "terminal_id")
        .mapInArrow(terminal_pass(first, 2**62), ddl(FEATURE_SCHEMA))
    )
    return featured.select(
        "transaction_id",
        "customer_id",
        "terminal_id",
        f.timestamp_micros("transacted_at").alias("transacted_at"),
        # A double of whole cents rounds to exactly those cents.
        f.col("amount").cast("decimal(12,2)").alias("amount"),
        *(feature.name for feature in FEATURES if feature.name != "amount"),
    )


def build(spark: SparkSession, is_full: bool, run: ops.Run) -> int:
    """Bring `feature.transactions` up to core; returns how many rows were written.

    Raises
    ------
    BusyError
        When the server goes on committing for runs that died.
    """
    from pyspark.errors import PySparkException

    with ops.writer(TABLE, run, wait_seconds=600):
        try:
            return retried(lambda: _build(spark, is_full, run))
        except PySparkException as error:
            if not is_conflict(error):
                raise
            raise BusyError(
                f"other builds wrote {TABLE} {ATTEMPTS} times while this one ran; nothing of it is in the table, run again"
            ) from error


def _build(spark: SparkSession, is_full: bool, run: ops.Run) -> int:
    from pyspark.sql import functions as f

    from ml.features import FEATURES

    now = current(spark)
    before = None if is_full else last(spark)
    moment = False if before is None else earliest_change(spark, before, now)
    if moment is None:
        logger.info("features are up to date")
        return 0
    start = None if moment is False else moment.replace(hour=0, minute=0, second=0, microsecond=0)  # type: ignore[union-attr]
    location = f"{settings().hdfs_uri}{settings().warehouse_path}/feature/transactions"
    spark.sql(render("hive/feature/transactions/create.hql", location=location, features=[one for one in FEATURES if one.name != "amount"]))
    _match_columns(spark, [feature for feature in FEATURES if feature.name != "amount"])
    # The server may still be writing for a run that died: of two builds that began alike only one can commit.
    held = main_snapshot(spark, TABLE)
    writer = compute(spark, now, start).writeTo(TABLE).option("isolation-level", "serializable")
    if held is not None:
        writer = writer.option("validate-from-snapshot-id", held)
    for name, value in {**now.properties(), "run": run.run_id}.items():
        writer = writer.option(f"snapshot-property.{name}", value)
    writer.overwrite(f.lit(True) if start is None else f.col("transacted_at") >= f.lit(start))
    row = spark.sql(f"SELECT summary['added-records'] FROM {TABLE}.snapshots WHERE summary['run'] = '{run.run_id}'").first()
    # A tail in which every transaction was deleted adds none.
    written = int(row[0] or 0) if row is not None else 0
    logger.info("features built", rows=written, start=str(start or "everything"))
    return written


def _match_columns(spark: SparkSession, features: Sequence[Feature]) -> None:
    """Let the table have a column for each feature and no other: features come and go with the code."""
    present = set(spark.table(TABLE).columns)
    for feature in features:
        if feature.name not in present:
            spark.sql(f"ALTER TABLE {TABLE} ADD COLUMN {feature.name} {feature.type} COMMENT {literal(feature.description)}")
    for name in present - {feature.name for feature in features} - KEYS:
        spark.sql(f"ALTER TABLE {TABLE} DROP COLUMN {name}")


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(prog="bash/features.sh", description=__doc__)
    parser.add_argument("kind", choices=("full", "incremental"))
    arguments = parser.parse_args()
    from ml import features
    from ml.spark import ship, spark_session

    ship(features)
    with ops.run("features") as run:
        build(spark_session("features"), arguments.kind == "full", run)


if __name__ == "__main__":
    run_main(main)
