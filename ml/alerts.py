"""Alerts of batch scoring: each prediction of HIGH risk has its row in `mart.alerts`, once.

They follow the predictions: a run that dies in between leaves them to the next, which finds from table metadata where to look.
The stream job writes an alert before its prediction, so what has a prediction of HIGH risk and no alert was scored here.
"""

from __future__ import annotations

from etl import ops
from etl.settings import settings
from etl.sql_server import Session
from ml import score
from ml.branch import Branch, noted

TABLE = "mart.alerts"
FOLLOWED = "alerted-snapshot"
"""Snapshot property: the snapshot of `mart.predictions` whose rows of HIGH risk all have alerts."""
_OF_PREDICTION = ("fraud_probability", "risk_level", "model_name", "model_version", "reasons", "scored_at")
_OF_TRANSACTION = ("currency", "channel", "device")


def ensure_table(server: Session) -> None:
    """Create `mart.alerts` where it is missing."""
    server.run_file("hive/mart/alerts/create.hql", location=f"{settings().hdfs_uri}{settings().warehouse_path}/mart/alerts")


def follow(server: Session, this: ops.Run) -> None:
    """Write the alerts that predictions lack.

    Parameters
    ----------
    this
        Must hold the lock of `mart.predictions`; the stream, which writes alerts as well, is waited for.
    """
    if not score.exists(server):
        return
    newest = server.run(f"SELECT snapshot_id FROM {score.TABLE}.refs WHERE name = 'main'")
    if not newest:
        return
    ((snapshot,),) = newest
    if not server.run("SHOW TABLES IN mart LIKE 'alerts'"):
        ensure_table(server)
    last = noted(server, TABLE, FOLLOWED)
    days = score.changed_days(server, score.TABLE, int(last[0]), snapshot) if last else None
    if days == ():
        return

    from pyspark.sql import functions as F  # noqa: N812

    from ml.spark import spark_session

    spark = spark_session("score")
    within = "true" if days is None else score.days_filter("transacted_at", days)
    transactions = spark.table("core.transactions")
    details = transactions.select("transaction_id", *(name for name in _OF_TRANSACTION if name in transactions.columns))
    with ops.writer(TABLE, this, ops.WRITER_WAIT_SECONDS):
        branch = Branch(server, TABLE, this)
        rows = spark.sql(
            f"SELECT {', '.join((*score.KEYS, *_OF_PREDICTION))}, 'batch' AS lane FROM {score.TABLE} VERSION AS OF {snapshot} AS p "
            f"LEFT ANTI JOIN {TABLE} USING (transaction_id) WHERE risk_level = 'HIGH' AND ({within})"
        ).join(details, "transaction_id", "left")
        columns = spark.table(TABLE).columns
        rows = rows.select(*(F.col(name) if name in rows.columns else F.lit(None).alias(name) for name in columns))
        writer = rows.writeTo(branch.target).option(f"snapshot-property.{FOLLOWED}", str(snapshot))
        writer.option("snapshot-property.run", this.run_id).append()
        branch.publish()
