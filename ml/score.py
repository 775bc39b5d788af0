"""Score what has no prediction yet by the champion, and publish the predictions in one step.

A prediction is the decision taken when it was scored: it is never rewritten.
"""

from __future__ import annotations

import argparse
import datetime as dt
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from etl import ops
from etl.errors import RefusedError
from etl.log import logger, run_main
from etl.settings import settings
from etl.sql_server import NO_TABLE, Session, StatementError, literal, session
from ml.branch import Branch, noted
from ml.features import FEATURES

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from ml.models import Model
    from ml.params import Params
    from ml.registry import Version

TABLE = "mart.predictions"
SOURCE = "feature.transactions"
KEYS = ("transaction_id", "customer_id", "terminal_id", "transacted_at", "amount")
SCORED = "scored-snapshot"
"""Snapshot property: the snapshot of `feature.transactions` whose rows all have predictions, as of `SCORED_TO`."""
SCORED_TO = "scored-to"
SPLIT_BYTES, OPEN_BYTES = 16 * 2**20, 2**16
"""Of features, read by one task: some weeks of the Handbook's data, so that few files are written at a time."""


class FeaturesDifferError(RefusedError):
    """The champion reads features that the table does not have."""


@dataclass(frozen=True)
class Pending:
    """What may have no prediction yet.

    Attributes
    ----------
    snapshot
        Snapshot of `feature.transactions` that is read.
    days
        Days (as dates) that changed since the last run; None for all.
    as_of
        Rows after it wait; microseconds since 1970, None for all rows.
    """

    snapshot: int
    days: tuple[dt.date, ...] | None
    as_of: int | None

    @property
    def is_nothing(self) -> bool:
        """Whether there is surely nothing to score."""
        return self.days is not None and not self.days


def ensure_table(server: Session, features: tuple[str, ...]) -> None:
    """Create `mart.predictions` with the features that a model reads, or add those that it does not have yet."""
    wanted = [feature for feature in FEATURES if feature.name in features]
    if not exists(server):
        location = f"{settings().hdfs_uri}{settings().warehouse_path}/mart/predictions"
        server.run_file("hive/mart/predictions/create.hql", location=location, features=wanted)
        return
    (have,) = [str(row[1]) for row in server.run(f"DESCRIBE {TABLE}") if row[0] == "features"]
    known = {field.split(":")[0] for field in have.removeprefix("struct<").removesuffix(">").split(",")}
    for feature in wanted:
        if feature.name not in known:
            server.run(f"ALTER TABLE {TABLE} ADD COLUMN features.{feature.name} {feature.type} COMMENT {literal(feature.description)}")
            logger.info("column added", table=TABLE, column=f"features.{feature.name}")


def exists(server: Session) -> bool:
    """Tell whether `mart.predictions` exists."""
    return bool(server.run("SHOW TABLES IN mart LIKE 'predictions'"))


def pending(server: Session, as_of: int | None, is_full: bool) -> Pending:
    """Find the days that may have rows without a prediction, from table metadata alone.

    Data files of `feature.transactions` written since the last run tell the days. All days are looked at when that
    run's snapshot is no ancestor of the present one, or when rows had to wait for a later `as_of`.
    """
    try:
        (row,) = server.run(f"SELECT snapshot_id FROM {SOURCE}.refs WHERE name = 'main'") or [(None,)]
    except StatementError as error:
        if NO_TABLE not in str(error):
            raise
        raise RefusedError(f"{SOURCE} does not exist yet; run bash/extract.sh full and bash/transform.sh full first") from error
    snapshot = row[0]
    if snapshot is None:
        return Pending(0, (), as_of)
    if not exists(server):
        return Pending(snapshot, None, as_of)
    last = None if is_full else noted(server, TABLE, SCORED, SCORED_TO)
    if last is None or last[1] != "all":
        return Pending(snapshot, None, as_of)
    return Pending(snapshot, changed_days(server, SOURCE, int(last[0]), snapshot), as_of)


def changed_days(server: Session, table: str, since: int, snapshot: int) -> tuple[dt.date, ...] | None:
    """Return the days of which a table has files that it did not have at an earlier snapshot; None when that is none of its past."""
    if since == snapshot:
        return ()
    if not server.run(f"SELECT 1 FROM {table}.history WHERE snapshot_id = {since} AND is_current_ancestor"):
        return None
    days = server.run(
        f"SELECT DISTINCT partition.transacted_at_day FROM {table}.files "
        f"WHERE file_path NOT IN (SELECT file_path FROM {table}.files VERSION AS OF {since})"
    )
    return tuple(sorted(dt.date.fromisoformat(str(row[0])) for row in days))


def days_filter(column: str, days: tuple[dt.date, ...]) -> str:
    """Write days as ranges of times, neighbours joined: Iceberg finds their files from that."""
    ranges: list[tuple[dt.date, dt.date]] = []
    for day in sorted(days):
        if ranges and ranges[-1][1] == day:
            ranges[-1] = (ranges[-1][0], day + dt.timedelta(days=1))
        else:
            ranges.append((day, day + dt.timedelta(days=1)))
    return " OR ".join(f"({column} >= TIMESTAMP '{first}' AND {column} < TIMESTAMP '{last}')" for first, last in ranges) or "false"


def prediction_schema(features: Mapping[str, pa.DataType]) -> pa.Schema:
    """Return the columns of `mart.predictions` in Arrow, given the fields of its struct `features`."""
    columns = {
        **dict.fromkeys(KEYS[:3], pa.int64()),
        "transacted_at": pa.timestamp("us", "UTC"),
        "amount": pa.decimal128(12, 2),
        "model_name": pa.string(),
        "model_version": pa.int32(),
        "fraud_probability": pa.float64(),
        "is_fraud": pa.bool_(),
        "risk_level": pa.string(),
        "reasons": pa.list_(pa.struct([("feature", pa.string()), ("contribution", pa.float64())])),
        "features": pa.struct(list(features.items())),
        "scored_at": pa.timestamp("us", "UTC"),
    }
    # The fields of `features` may be null: another version may read others.
    return pa.schema([pa.field(name, of, nullable=False) for name, of in columns.items()])


def scorer(
    model: Model, champion: Version, params: Params, scored_at: dt.datetime, schema: pa.Schema
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return what a Spark task runs: batches of feature rows in, batches of predictions out.

    The rows stay in their order. SHAP values are computed for the levels of risk that are explained.
    """
    import numpy as np

    from ml import models, shapley

    levels = np.array(["LOW", "MEDIUM", "HIGH"])
    thresholds = params.thresholds
    is_cheap = model.prepare()
    explained = np.array([is_cheap or level in params.reasons.levels for level in levels])
    count = min(params.reasons.count, len(model.features))
    struct = schema.field("features").type
    item = schema.field("reasons").type.value_type

    def reasons(rows: models.Matrix, level: np.ndarray) -> pa.ListArray:
        wanted = np.flatnonzero(explained[level])
        values = model.contributions(rows[wanted])
        top = shapley.top(values, count)
        highest = np.take_along_axis(values, top, axis=1)
        lengths = np.zeros(len(rows) + 1, np.int32)
        lengths[wanted + 1] = count
        entries = pa.StructArray.from_arrays(
            [pa.array(model.features).take(pa.array(top.ravel())), pa.array(highest.ravel())],
            fields=list(item),
        )
        return pa.ListArray.from_arrays(pa.array(np.cumsum(lengths, dtype=np.int32)), entries, type=schema.field("reasons").type)

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            size = batch.num_rows
            rows = models.matrix({name: batch[name].cast(pa.float64()).to_numpy() for name in model.features}, model.features)
            probability = model.probability(rows)
            level = (probability >= thresholds.medium).astype(np.int8) + (probability >= thresholds.high)
            used = [batch[field.name].cast(field.type) if field.name in model.features else pa.nulls(size, field.type) for field in struct]
            columns = [
                *(batch[key].cast(schema.field(key).type) for key in KEYS),
                pa.repeat(champion.name, size),
                pa.repeat(pa.scalar(champion.version, pa.int32()), size),
                pa.array(probability),
                pa.array(probability >= thresholds.fraud),
                pa.array(levels).take(pa.array(level)),
                reasons(rows, level),
                pa.StructArray.from_arrays(used, fields=list(struct)),
                pa.repeat(pa.scalar(scored_at, pa.timestamp("us", "UTC")), size),
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return run


def score(this: ops.Run, as_of: str = "", is_full: bool = False) -> int:
    """Score what has no prediction yet.

    Parameters
    ----------
    as_of
        Score transactions up to then (ISO 8601); empty: the setting `as_of`, else all.
    is_full
        Look at every day, not only at those that changed since the last run.

    Returns
    -------
    int
        How many predictions were added; those of HIGH risk have alerts then.

    Raises
    ------
    NoChampionError
        When there is something to score and no champion.
    FeaturesDifferError
        When the champion reads features that the table lacks.
    """
    from ml import alerts
    from ml.datasets import micros, parsed_moment

    text = as_of or settings().as_of
    limit = micros(parsed_moment(text)) if text else None
    with ops.writer(TABLE, this), session() as server:
        todo = pending(server, limit, is_full)
        added = 0 if todo.is_nothing else _score(server, todo, this)
        alerts.follow(server, this)
        return added


def _score(server: Session, todo: Pending, this: ops.Run) -> int:
    from ml import models, registry
    from ml.params import params
    from ml.spark import spark_session

    champion = registry.required_champion()
    model = models.load(registry.read_files(champion))
    spark = spark_session("score")
    _check_features(spark, champion, model)
    ensure_table(server, model.features)
    return _publish(spark, server, todo, champion, model, params(), this)


def _check_features(spark: SparkSession, champion: Version, model: Model) -> None:
    have = set(spark.table(SOURCE).columns)
    if missing := [name for name in model.features if name not in have]:
        raise FeaturesDifferError(
            f"the champion, {champion}, reads {', '.join(missing)}, which {SOURCE} does not have; "
            "build the features with the code of the champion's commit, or train a new champion with bash/train.sh"
        )


def _publish(spark: SparkSession, server: Session, todo: Pending, champion: Version, model: Model, params: Params, this: ops.Run) -> int:
    """Write predictions to a branch and move the table to it."""
    from pyspark.sql import functions as F  # noqa: N812

    from ml import models, shapley
    from ml.spark import ship

    branch = Branch(server, TABLE, this)
    reader = spark.read.option("versionAsOf", todo.snapshot).option("split-size", SPLIT_BYTES).option("file-open-cost", OPEN_BYTES)
    everything = reader.table(SOURCE)
    if todo.days is not None:
        everything = everything.where(days_filter("transacted_at", todo.days))
    rows = everything
    if todo.as_of is not None:
        rows = rows.where(F.col("transacted_at") <= F.timestamp_micros(F.lit(todo.as_of)))
    is_first = spark.table(TABLE).isEmpty()
    if not is_first:
        rows = _unscored(spark, rows)

    have = {field.name for field in everything.schema}
    # The table's own fields: it keeps those of features that are no longer computed.
    types = {"int": pa.int32(), "bigint": pa.int64(), "double": pa.float64()}
    schema = prediction_schema(
        {field.name: types[field.dataType.simpleString()] for field in spark.table(f"{TABLE}").select("features.*").schema}
    )
    ship(models, shapley, sys.modules[__name__])
    scored_at = dt.datetime.now(dt.UTC)
    run = scorer(model, champion, params, scored_at, schema)
    predictions = rows.select(*KEYS, *(name for name in model.features if name in have and name not in KEYS)).mapInArrow(run, _ddl(schema))

    waits = todo.as_of is not None and everything.where(F.col("transacted_at") > F.timestamp_micros(F.lit(todo.as_of))).isEmpty() is False
    writer = (
        predictions.writeTo(branch.target)
        .option(f"snapshot-property.{SCORED}", str(todo.snapshot))
        .option(f"snapshot-property.{SCORED_TO}", str(todo.as_of) if waits else "all")
        .option("snapshot-property.run", this.run_id)
    )
    if is_first:
        # Rows come day by day, as they lie in the files: no shuffle needed, a few files are open at a time.
        writer = writer.option("distribution-mode", "none").option("fanout-enabled", "true")
    writer.append()
    return branch.publish()


def _unscored(spark: SparkSession, rows: DataFrame) -> DataFrame:
    """Keep the rows whose key has no prediction, whatever day it was scored for.

    Keys are compared first, narrow; rows are wide. Only days that have such keys are read again.
    """
    from pyspark.sql import functions as F  # noqa: N812

    keys = rows.select("transaction_id", F.to_date("transacted_at").alias("day"))
    bounds = keys.agg(F.min("transaction_id"), F.max("transaction_id")).first()
    if bounds is None or bounds[0] is None:
        return rows
    # Files of predictions that hold no such keys are not read.
    scored = spark.table(TABLE).where(F.col("transaction_id").between(*bounds)).select("transaction_id")
    fresh = keys.join(scored, "transaction_id", "left_anti")
    days = [row[0] for row in fresh.select("day").distinct().collect()]
    return rows.where(days_filter("transacted_at", tuple(days))).join(fresh.select("transaction_id"), "transaction_id", "left_semi")


def _ddl(schema: pa.Schema) -> str:
    """Spark's DDL of an Arrow schema."""
    return ", ".join(f"{field.name} {_spark_type(field.type)}{'' if field.nullable else ' NOT NULL'}" for field in schema)


def _spark_type(of: pa.DataType) -> str:
    if pa.types.is_struct(of):
        return f"struct<{', '.join(f'{field.name}: {_spark_type(field.type)}' for field in of)}>"
    if pa.types.is_list(of):
        return f"array<{_spark_type(of.value_type)}>"
    if pa.types.is_decimal(of):
        return f"decimal({of.precision},{of.scale})"
    if pa.types.is_timestamp(of):
        return "timestamp"
    return {pa.int32(): "int", pa.int64(): "bigint", pa.float64(): "double", pa.bool_(): "boolean", pa.string(): "string"}[of]


def main() -> None:
    """Parse the command line and score."""
    parser = argparse.ArgumentParser(prog="bash/score.sh", description=__doc__)
    parser.add_argument("--as-of", default="", help="score transactions up to then (ISO 8601); by default the setting as_of, else all")
    parser.add_argument("--full", action="store_true", help="look at every day, not only at those that changed since the last run")
    arguments = parser.parse_args()
    # XGBoost would import scikit-learn, for a second, to offer classes that nobody uses here.
    sys.modules["sklearn"] = None  # type: ignore[assignment]
    with ops.run("score") as this:
        added = score(this, arguments.as_of, arguments.full)
    print(f"{added:,} predictions added to {TABLE}" if added else f"nothing to score: every row of {SOURCE} has its prediction")


if __name__ == "__main__":
    run_main(main)
