"""From messages to tables: raw.events, mart.predictions, mart.alerts, core.transactions, ops.rejects take what was told since last time.

Rows are only added, and only where their key is not there yet, so a micro-batch may be run again: see api/keyed.py.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import threading
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq
from confluent_kafka import Consumer, TopicPartition
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812

from api import broker, meters
from api.keyed import KeyedTable
from etl import core, ops
from etl import events as raw_events
from etl.card_numbers import mask_card_numbers_in_json
from etl.settings import settings
from etl.sql_server import Session
from etl.storage import put
from etl.tables import Table, declared_tables
from ml import alerts, score
from ml.features import FEATURES
from ml.score import KEYS, prediction_schema

UTC = pa.timestamp("us", "UTC")

_MESSAGE = {name: pa.string() for name in ("transacted_at", "amount", "received_at", "scored_at")}
_REASONS = prediction_schema({}).field("reasons").type
_VALIDATED = pa.schema(
    {
        **dict.fromkeys(("transaction_id", "customer_id", "terminal_id"), pa.int64()),
        **{name: _MESSAGE[name] for name in ("transacted_at", "amount", "received_at")},
        **dict.fromkeys(("currency", "channel", "device"), pa.string()),
    }
)
_SCORED = pa.schema(
    {
        **dict.fromkeys(("transaction_id", "customer_id", "terminal_id"), pa.int64()),
        **_MESSAGE,
        **dict.fromkeys(("model_name", "risk_level"), pa.string()),
        "model_version": pa.int32(),
        "fraud_probability": pa.float64(),
        "is_fraud": pa.bool_(),
    }
)
_ALERT = pa.schema(
    [*_SCORED.remove(_SCORED.get_field_index("is_fraud")), *(_VALIDATED.field(name) for name in ("currency", "channel", "device"))]
)


def transactions() -> Table:
    """Return the declared table to which the lane adds."""
    return declared_tables()["transactions"]


def ensure_tables(hive: Session, run: ops.Run, features: tuple[str, ...]) -> None:
    """Create what the lane writes, where it is missing; `features` are those of the champion."""
    hive.run_file("hive/raw/events/create.hql", location=f"{settings().hdfs_uri}{raw_events.root()}")
    alerts.ensure_table(hive)
    with ops.writer(score.TABLE, run, ops.WRITER_WAIT_SECONDS):
        score.ensure_table(hive, features)
    if transactions().name not in core.existing(hive):
        with ops.writer(f"core.{transactions().name}", run, ops.WRITER_WAIT_SECONDS):
            types = {"transacted_at": "timestamp", "updated_at": "timestamp", "amount": "decimal(12,2)"}
            types |= dict.fromkeys(KEYS[:3], "bigint") | dict.fromkeys(("currency", "channel", "device"), "string")
            columns = {name: {"type": types[name]} for name in (*KEYS, "currency", "channel", "device", "updated_at")}
            (target,) = core.targets(transactions(), list(columns))
            core.ensure_table(hive, target, columns)


class Tables:
    """The tables of the lane, and how far they have come.

    Parameters
    ----------
    committed
        Called with the keys of transactions that core holds now.
    """

    def __init__(self, spark: SparkSession, run: ops.Run, committed: Callable[[list[int]], None]) -> None:
        self.lock = threading.Lock()
        self._spark = spark
        self._run = run
        self._committed = committed
        self.transactions = KeyedTable(spark, f"core.{transactions().name}", run)
        self._predictions = KeyedTable(spark, score.TABLE, run)
        self._alerts = KeyedTable(spark, alerts.TABLE, run)
        self._consumer = Consumer(broker.consumer(broker.TABLES_GROUP))
        self._days: set[str] = set()
        self.committed_at = dt.datetime.now(dt.UTC)

    def take(self, rows: pa.Table, name: str) -> dict[str, int]:
        """Write one micro-batch of all topics.

        Parameters
        ----------
        rows
            topic, partition, offset, timestamp (UTC), key and value.
        name
            Of the micro-batch, the same when it is run again.
        """

        def of(topic: str) -> pa.Table:
            return rows.filter(pc.equal(rows["topic"], topic))

        with self.lock:
            for day in _write_events(of(broker.TRANSACTIONS), name, self._run):
                if day not in self._days:
                    self._spark.sql(f"ALTER TABLE raw.events ADD IF NOT EXISTS PARTITION (received_on = DATE '{day}')")
                    self._days.add(day)
            self._run.reject(_rejects(of(broker.REJECTED)))
            # First the alert, then the decision, then the transaction: batch scoring gives each of HIGH risk an alert, and scores
            # every transaction, that has none.
            added = {"alerts": self._alerts.add(_alerts(of(broker.ALERTS)))}
            added["predictions"] = self._predictions.add(self._conformed(of(broker.PREDICTIONS)))
            arrived = _transactions(of(broker.VALIDATED))
            added["transactions"] = self.transactions.add(arrived)
            self._committed(arrived["transaction_id"].to_pylist())
            self._remember(rows)
            self.committed_at = dt.datetime.now(dt.UTC)
            for moment in arrived["updated_at"].to_pylist():
                meters.TABLES_SECONDS.observe((self.committed_at - moment).total_seconds())
            return added

    def positions(self) -> list[TopicPartition]:
        """Return from where on valid transactions may not be in core yet."""
        partitions = self._consumer.list_topics(broker.VALIDATED, 30).topics[broker.VALIDATED].partitions
        found = broker.committed(self._consumer, [TopicPartition(broker.VALIDATED, one) for one in partitions])
        return [TopicPartition(one.topic, one.partition, max(one.offset, 0)) for one in found]

    def _remember(self, rows: pa.Table) -> None:
        """Note how far the tables have come, for the next process and for whoever watches."""
        newest = rows.group_by(["topic", "partition"]).aggregate([("offset", "max")]).to_pylist()
        if newest:
            self._consumer.commit(
                offsets=[TopicPartition(one["topic"], one["partition"], one["offset_max"] + 1) for one in newest], asynchronous=False
            )

    def _conformed(self, messages: pa.Table) -> pa.Table:
        """Predictions with the table's own fields of `features`: another version may read others."""
        types = {feature.name: feature.arrow_type for feature in FEATURES}
        wanted = {name: types.get(name, pa.float64()) for name in self._predictions.fields("features")}
        given = pa.schema([*_SCORED, pa.field("reasons", _REASONS), pa.field("features", pa.struct(list(wanted.items())))])
        read = _read(messages, given)
        return pa.table([read[field.name] for field in prediction_schema(wanted)], prediction_schema(wanted)) if read.num_rows else read


def _read(messages: pa.Table, schema: pa.Schema) -> pa.Table:
    """Read JSON messages of this lane's own into columns; times and amounts get their types, other fields are left out."""
    if not messages.num_rows:
        return schema.empty_table()
    options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    table = pyarrow.json.read_json(io.BytesIO(b"\n".join(messages["value"].to_pylist())), parse_options=options)
    for name in table.column_names:
        if name == "amount":
            table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.decimal128(12, 2)))
        elif name.endswith("_at"):
            table = table.set_column(table.column_names.index(name), name, table[name].cast(UTC))
    return table


def _transactions(messages: pa.Table) -> pa.Table:
    read = _read(messages, _VALIDATED)
    columns = {name: read[name] for name in read.column_names if name != "received_at"}
    columns["updated_at"] = read["received_at"]
    columns["lane"] = pa.repeat("stream", read.num_rows)
    return pa.table(columns)


def _alerts(messages: pa.Table) -> pa.Table:
    read = _read(messages, pa.schema([*_ALERT, pa.field("reasons", _REASONS)]))
    columns = {name: read[name] for name in read.column_names if name != "received_at"}
    return pa.table({**columns, "lane": pa.repeat("stream", read.num_rows)})


def _rejects(messages: pa.Table) -> list[ops.Reject]:

    found = [json.loads(value) for value in messages["value"].to_pylist()]
    return [
        ops.Reject(
            "transactions",
            f"topic {broker.TRANSACTIONS}/{one['partition']}",
            one["reason"],
            one["offset"],
            None,
            one["column"],
            one["payload"],
        )
        for one in found
    ]


def _write_events(messages: pa.Table, name: str, run: ops.Run) -> list[str]:
    """Write messages as they came in to a file of each day on which they arrived; run again, it finds the same files.

    Returns the days, as ISO 8601.
    """
    if not messages.num_rows:
        return []
    came = list(zip(messages["key"].to_pylist(), messages["value"].to_pylist(), strict=True))
    kept = [(_masked(key), _masked(value)) for key, value in came]
    events = pa.table(
        {
            "topic_partition": messages["partition"],
            "topic_offset": messages["offset"],
            "received_at": messages["timestamp"].cast(UTC),
            "message_key": pa.array([key for key, _ in kept], pa.binary()),
            "message": pa.array([value for _, value in kept], pa.binary()),
            "is_masked": pa.array([one != other for one, other in zip(came, kept, strict=True)]),
        }
    )
    days = pc.strftime(events["received_at"], "%Y-%m-%d")
    found = sorted(pc.unique(days).to_pylist())
    with ops.writer(raw_events.TABLE, run, ops.WRITER_WAIT_SECONDS):
        for day in found:
            file = io.BytesIO()
            pq.write_table(events.filter(pc.equal(days, day)), file, compression="zstd", coerce_timestamps="us")
            for folder in raw_events.open_folders(day):
                put(f"{folder}/{name}.parquet", file.getvalue())
    return found


def _masked(came: bytes | None) -> bytes | None:
    """Return bytes as they came in unless they hold a card number."""
    text = (came or b"").decode("utf-8", errors="replace")
    masked = mask_card_numbers_in_json(text)
    return came if masked == text else masked.encode()


def frame_of(df: DataFrame) -> pa.Table:
    """Return a micro-batch of Kafka's source as columns; of a value that is too long, as compressed ones may be, the beginning."""
    value = F.substring("value", 1, broker.LARGEST_MESSAGE + 1).alias("value")
    return df.select("topic", "partition", "offset", "timestamp", "key", value).toArrow()
