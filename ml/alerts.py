"""Alerts of batch scoring: each prediction of HIGH risk has its row in `mart.alerts`, once.

They follow the predictions: a run that dies in between leaves them to the next, which finds from table metadata where to look.
The stream job writes an alert before its prediction, so what has a prediction of HIGH risk and no alert was scored here.
"""

from __future__ import annotations

import time

from etl import core, ops
from etl.log import logger
from etl.settings import settings
from etl.sql_server import Session
from ml import score
from ml.branch import Branch

TABLE = "mart.alerts"
FOLLOWED = "alerted-snapshot"
"""Snapshot property: the snapshot of `mart.predictions` whose rows of HIGH risk all have alerts."""
WAIT_SECONDS = 600
"""How long the stream, which writes to the table as well, is waited for."""
_OF_PREDICTION = ("fraud_probability", "risk_level", "model_name", "model_version", "reasons", "scored_at")
_OF_TRANSACTION = ("currency", "channel", "device")


def ensure_table(server: Session) -> None:
    """Create `mart.alerts` where it is missing."""
    server.run_file("hive/mart/alerts/create.hql", location=f"{settings().hdfs_uri}{settings().warehouse_path}/mart/alerts")


def follow(server: Session, this: ops.Run) -> int:
    """Write the alerts that predictions lack.

    Parameters
    ----------
    this
        Must hold the lock of `mart.predictions`.

    Returns
    -------
    int
        How many were added.
    """
    if not score.exists(server):
        return 0
    newest = server.run(f"SELECT snapshot_id FROM {score.TABLE}.refs WHERE name = 'main'")
    if not newest:
        return 0
    ((snapshot,),) = newest
    if not server.run("SHOW TABLES IN mart LIKE 'alerts'"):
        ensure_table(server)
    last = server.run(
        f"SELECT summary['{FOLLOWED}'] FROM {TABLE}.snapshots JOIN {TABLE}.history USING (snapshot_id) "
        f"WHERE is_current_ancestor AND summary['{FOLLOWED}'] IS NOT NULL ORDER BY committed_at DESC LIMIT 1"
    )
    days = score.changed_days(server, score.TABLE, int(last[0][0]), snapshot) if last else None
    if days == ():
        return 0

    from pyspark.sql import functions as F  # noqa: N812

    from ml.spark import spark_session

    started = time.monotonic()
    spark = spark_session("score")
    within = "true" if days is None else score.days_filter("transacted_at", days)
    have = {str(row[0]) for row in server.run("DESCRIBE core.transactions")} if "transactions" in core.existing(server) else set()
    details = "".join(f", {name}" for name in _OF_TRANSACTION if name in have)
    with ops.writer(TABLE, this, WAIT_SECONDS):
        branch = Branch(server, TABLE, this)
        rows = spark.sql(
            f"SELECT {', '.join((*score.KEYS, *_OF_PREDICTION))} FROM {score.TABLE} VERSION AS OF {snapshot} AS p "
            f"LEFT ANTI JOIN {TABLE} USING (transaction_id) WHERE risk_level = 'HIGH' AND ({within})"
        )
        if details:
            transactions = spark.sql(f"SELECT transaction_id{details} FROM core.transactions")
            rows = rows.join(transactions, "transaction_id", "left")
        columns = spark.table(TABLE).columns
        rows = rows.withColumn("lane", F.lit("batch"))
        rows = rows.select(*(F.col(name) if name in rows.columns else F.lit(None).alias(name) for name in columns))
        writer = rows.writeTo(branch.target).option(f"snapshot-property.{FOLLOWED}", str(snapshot))
        writer.option("snapshot-property.run", this.run_id).append()
        _, after = branch.publish()
    ((added,),) = server.run(f"SELECT summary['added-records'] FROM {TABLE}.snapshots WHERE snapshot_id = {after}")
    logger.info("published", table=TABLE, rows=int(added or 0), seconds=round(time.monotonic() - started, 1))
    return int(added or 0)
