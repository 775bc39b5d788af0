"""The stream job: two queries of Structured Streaming, one that scores arrivals and tells of them, one that writes the tables.

The first is short, so that a message goes out within a second or two; the second commits to the tables every `stream_tables_seconds`.
Either begins again where its checkpoint on HDFS and what it has told say. An error ends the process: the next one starts from
what is committed, never from what this one believed.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from confluent_kafka import Consumer, KafkaException, TopicPartition

from api import arrivals, broker, champion, meters
from api.arrivals import Place
from api.gaps import Beginning, Gaps, checkpoint
from api.history import GIVEN, MARGIN_DAYS, History
from api.lag import GROUPS, TOPICS, behind
from api.scores import Scores, columns_of, identity
from api.tables import Tables, ensure_tables, frame_of
from api.topics import refuse_producers_time
from api.transaction import Transaction
from etl import ops
from etl.errors import BusyError, RefusedError, UnavailableError, WarehouseError
from etl.faults import named_faults
from etl.log import logger, run_main
from etl.settings import settings
from etl.sql_server import first_sentence, session
from etl.stack.servers import heartbeat, progress, spark_environment
from etl.storage import storage
from ml import score
from ml.features import DAY, LOOKBACK_DAYS, known_at
from ml.spark import CONNECT_VARIABLES, main_snapshot

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming import StreamingQuery

IDLE_SECONDS = 5
LOOK_SECONDS = 10
"""How often it is looked whether the champion, core or the reports have changed."""


class StreamError(WarehouseError):
    """A query ended."""


def spark_session() -> SparkSession:
    """Return the session of this job: a JVM of its own, configured as the loads are."""
    from pyspark.sql import SparkSession

    from etl.stack import configuration, jars

    here = settings()
    configuration.write_job()
    scratch = here.data_dir / "tmp" / "stream"
    scratch.mkdir(parents=True, exist_ok=True)
    # What is left of a Connect session in the caller's environment would make this one a client.
    for name in CONNECT_VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(spark_environment("loads"))
    class_path = os.pathsep.join(map(str, [*jars.spark_class_path(), *jars.stream_class_path()]))
    properties = configuration.spark_defaults("loads") | {
        # Tasks wait for the broker more than they work: one for each partition of `transactions`, and as many for the tables.
        "spark.master": "local[8]",
        "spark.app.name": "stream",
        "spark.driver.memory": here.stream_memory,
        "spark.driver.extraClassPath": class_path,
        "spark.executor.extraClassPath": class_path,
        # The second compiler would take a core for minutes, and gives nothing to work that waits.
        "spark.driver.extraJavaOptions": f"-Djava.io.tmpdir={scratch} -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:MaxMetaspaceSize=512m",
        "spark.local.dir": scratch,
        "spark.plugins": "",
        "spark.sql.shuffle.partitions": 2,
        "spark.scheduler.mode": "FAIR",
        "spark.sql.streaming.minBatchesToRetain": 20,
        "spark.sql.streaming.metricsEnabled": "false",
        "spark.sql.adaptive.enabled": "false",
    }
    session = SparkSession.builder.config(map={name: str(value) for name, value in properties.items()}).getOrCreate()
    # It would warn of every micro-batch that takes longer than the pause between two.
    session.sparkContext.setLogLevel("ERROR")
    return session


def newest_of(spark: SparkSession, table: str) -> int | None:
    """Return a table's newest snapshot, None where it has none or does not exist."""
    return main_snapshot(spark, table) if spark.catalog.tableExists(table) else None


def read_history(spark: SparkSession) -> tuple[History, int | None, int | None]:
    """Return the recent transactions that core holds, with the snapshots of transactions and reports that they are of."""
    transactions, reports = newest_of(spark, "core.transactions"), newest_of(spark, "core.fraud_reports")
    if transactions is None:
        return History(columns_of([])), transactions, reports
    rows = f"SELECT * FROM core.transactions VERSION AS OF {transactions}"
    ((newest, oldest),) = spark.sql(f"SELECT unix_micros(max(transacted_at)), unix_micros(min(transacted_at)) FROM ({rows})").collect()
    if newest is None:
        return History(columns_of([])), transactions, reports
    start = newest - (LOOKBACK_DAYS + MARGIN_DAYS) * DAY
    known = "SELECT NULL AS transaction_id, NULL AS reported_at, NULL AS is_fraud"
    if reports is not None:
        known = f"SELECT * FROM core.fraud_reports VERSION AS OF {reports}"
    table = spark.sql(
        "SELECT t.transaction_id, customer_id, terminal_id, unix_micros(transacted_at) AS transacted_at, "
        "CAST(amount * 100 AS BIGINT) AS amount_cents, coalesce(unix_micros(reported_at), 0) AS reported_at, "
        "coalesce(is_fraud, false) AS is_fraud "
        f"FROM ({rows}) t LEFT JOIN ({known}) r ON t.transaction_id = r.transaction_id WHERE transacted_at >= timestamp_micros({start})"
    ).toArrow()
    columns = {name: table[name].to_numpy() for name in GIVEN[:-1]}
    columns["known_at"] = known_at(columns["transacted_at"], table["reported_at"].to_numpy(), table["is_fraud"].to_numpy())
    return History(columns, start if oldest < start else None), transactions, reports


def source(spark: SparkSession, topics: str, rows: int, begin: dict[str, dict[str, int]] | None = None) -> DataFrame:
    """Return what was committed to some topics (names with commas between), so many rows at most in a micro-batch."""
    client = {f"kafka.{name}": value for name, value in broker.java_client().items()}
    # A group of the user's own name: see api/users.yaml.
    reader = spark.readStream.format("kafka").options(**client, groupIdPrefix="stream").option("subscribe", topics)
    return (
        reader.option("startingOffsets", "earliest" if begin is None else json.dumps(begin))
        # It would end the query at a gap, and with each start again; `Gaps` names it, and what follows is read.
        .option("failOnDataLoss", False)
        .option("kafka.isolation.level", "read_committed")
        .option("maxOffsetsPerTrigger", rows)
        # At the end of a partition the broker holds a request back for so long; the next micro-batch would wait for it.
        .option("kafka.fetch.max.wait.ms", 20)
        .load()
    )


def read_validated(positions: list[TopicPartition]) -> list[tuple[int, ...]]:
    """Return the transactions that were told from some positions on, as `identity` gives them."""
    consumer = Consumer({**broker.consumer("stream-start"), "enable.partition.eof": False})
    found: list[tuple[int, ...]] = []
    try:
        for position in positions:
            low, end = consumer.get_watermark_offsets(position, 30)
            begin = max(position.offset, low)
            if begin >= end:
                continue
            consumer.assign([TopicPartition(position.topic, position.partition, begin)])
            while True:
                for message in consumer.consume(10_000, 1):
                    if message.error():
                        raise KafkaException(message.error())
                    place = Place(position.partition, message.offset() or 0, dt.datetime.now(dt.UTC))
                    # The field that only these messages have is not one of a transaction.
                    value = (message.value() or b"").rpartition(b',"received_at":')[0] + b"}"
                    one = arrivals.parsed(value, place)
                    if isinstance(one, Transaction):
                        found.append(identity(one))
                (now,) = consumer.position([TopicPartition(position.topic, position.partition)])
                if now.offset >= end:
                    break
    finally:
        consumer.close()
    return found


def refuse_a_lost_checkpoint() -> None:
    """Look whether the tables' query still has its checkpoint; without it, it would begin anew and write raw.events again.

    Raises
    ------
    RefusedError
        When the broker knows that messages were written to the tables, and the checkpoint is not there.
    """
    folder = checkpoint("tables")
    with named_faults():
        # What names the query; the files of raw.events have its name.
        is_there = storage().status(f"{folder}/metadata", strict=False) is not None
        # Put away for one that begins elsewhere, by a job that ended before that.
        is_replaced = (beginning := Beginning.read("tables")) is not None and beginning.replaces is not None
    if is_there or is_replaced:
        return
    consumer = Consumer(broker.consumer(broker.TABLES_GROUP))
    try:
        topics = consumer.list_topics(timeout=30).topics
        places = [TopicPartition(topic, one) for topic in broker.TOPICS if topic in topics for one in topics[topic].partitions]
        has_written = any(place.offset >= 0 for place in broker.committed(consumer, places))
    finally:
        consumer.close()
    if has_written:
        raise RefusedError(
            f"{folder} is not in HDFS, but by Kafka's group {broker.TABLES_GROUP} messages were written to the tables: the job would "
            "write raw.events again; bring the folder back, or begin anew as docs/operations.md says"
        )


@contextlib.contextmanager
def beating() -> Iterator[None]:
    """Touch the heartbeat meanwhile: what takes as long as there are transactions must not look like a process that hangs."""
    beat, is_done = heartbeat("stream"), threading.Event()
    beat.parent.mkdir(parents=True, exist_ok=True)

    def touch() -> None:
        while not is_done.is_set():
            beat.touch()
            is_done.wait(1)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()


class Job:
    """The queries and what they share."""

    def __init__(self, spark: SparkSession, run: ops.Run) -> None:
        self.spark = spark
        self.run = run
        found = champion.newer(None)
        if found is None:
            logger.warning(
                "there is no champion yet: transactions are passed on and scored by the next bash/score.sh; train one with bash/train.sh"
            )
        with session() as hive:
            ensure_tables(hive, run, found.model.features if found else ())
        self._gaps = {name: Gaps(name, TOPICS[name], GROUPS[name], run) for name in GROUPS}
        self._begin = {name: gaps.begin() for name, gaps in self._gaps.items()}
        for name in GROUPS:
            # Of the first start ever; a later one goes by what the one before did.
            if not progress(name).exists():
                self._has_moved(name)
        self.tables = Tables(spark, run, self._committed)
        # First how far the tables have come, then what they hold: a job that still ends writes before it notes, so that a row is in
        # one of both at least.
        positions = self.tables.positions()
        with beating():
            history, self._transactions, self._reports = read_history(spark)
            self.scores = Scores(history, found)
            rows = read_validated(positions)
            history.take(columns_of(dict.fromkeys(rows)))
        self.scores.uncommitted.update((row[0], row) for row in rows)
        logger.info("history read", transactions=len(history), not_in_core=len(rows), champion=str(found.version) if found else "none")
        self._stop = threading.Event()
        self._failed: BaseException | None = None
        self._blind: Exception | None = None

    def start(self) -> list[StreamingQuery]:
        """Start both queries."""
        rows = settings().stream_batch_rows
        self._queries = [
            self._started("scores", rows, self._score, "500 milliseconds"),
            self._started("tables", 5 * rows, self._write, f"{settings().stream_tables_seconds} seconds"),
        ]
        return self._queries

    def _started(self, name: str, rows: int, work: Callable[[DataFrame, int], None], pause: str) -> StreamingQuery:
        # Tasks of each query have their own share of the cores: messages do not wait for tables.
        self.spark.sparkContext.setLocalProperty("spark.scheduler.pool", name)
        query = source(self.spark, ",".join(TOPICS[name]), rows, self._begin[name]).writeStream.queryName(name).foreachBatch(work)
        folder = f"{settings().hdfs_uri}{checkpoint(name)}"
        return query.option("checkpointLocation", folder).trigger(processingTime=pause).start()

    def stop(self, *_: object) -> None:
        """Let `watch` return; a micro-batch under way is then broken off, and done again by the next start."""
        self._stop.set()

    def watch(self) -> None:
        """Look after the queries until `stop`.

        Raises
        ------
        StreamError
            When a query ended.
        """
        beat = heartbeat("stream")
        beat.parent.mkdir(parents=True, exist_ok=True)
        # It may wait for a lock or read the history again; the beat goes on meanwhile.
        threading.Thread(target=self._look_on, daemon=True).start()
        threading.Thread(target=self._look_whether_idle, daemon=True).start()
        while not self._stop.wait(1):
            for query in self._queries:
                if not query.isActive:
                    raise StreamError(
                        f"query {query.name} ended: {self._why(query)}; what it had not committed is done again by the next start"
                    )
            if self._blind is not None:
                raise self._blind
            beat.touch()

    def _has_moved(self, name: str) -> None:
        """Note for the health check that a query has done a micro-batch, or has nothing before it."""
        progress(name).parent.mkdir(parents=True, exist_ok=True)
        progress(name).touch()

    def _look_whether_idle(self) -> None:
        told = ""
        while not self._stop.wait(IDLE_SECONDS):
            problem = ""
            for query in self._queries:
                try:
                    last = query.lastProgress
                    # The field itself is Python's spelling of the offsets, not JSON.
                    if self._gaps[query.name].has_all(json.loads(last.json)["sources"][0]["endOffset"] if last else None):
                        self._has_moved(query.name)
                except Exception as error:
                    # Whatever it is: the health check says no then, for nobody knows.
                    problem = f"{type(error).__name__}: {first_sentence(error)}"
            if problem and problem != told:
                logger.warning("whether a query has something before it cannot be told", reason=problem)
            told = problem

    def _look_on(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self._look()
            except BusyError as error:
                logger.info("looked in vain, looking again", reason=str(error))
            except Exception as error:
                self._blind = error
                return

    def _why(self, query: StreamingQuery) -> str:
        if self._failed is not None:
            return f"{type(self._failed).__name__}: {first_sentence(self._failed)}"
        error = query.exception()
        return str(error).split("\n")[0] if error else "it was stopped"

    def _score(self, df: DataFrame, number: int) -> None:
        self._guarded("scores", lambda: self._take_scores(self._complete("scores", df, number), number))

    def _write(self, df: DataFrame, number: int) -> None:
        # A name that the query keeps over restarts, but not over a new checkpoint, whose numbers begin again.
        self._guarded("tables", lambda: self._take_tables(self._complete("tables", df, number), f"{self._queries[1].id}-{number}"))

    def _complete(self, name: str, df: DataFrame, number: int) -> pa.Table:
        """Read a micro-batch, and record what is missing in it."""
        rows = frame_of(df)
        self._gaps[name].look(rows, number)
        return rows

    def _guarded(self, name: str, work: Any) -> None:
        try:
            work()
            self._has_moved(name)
        except BaseException as error:
            self._failed = self._failed or error
            raise

    def _take_scores(self, rows: pa.Table, number: int) -> None:
        if not rows.num_rows:
            return
        with meters.BATCH_SECONDS.time():
            told = self.scores.take(rows)
        outcomes = {"scored": told.scored, "unscored": told.unscored, "rejected": told.rejected, "duplicate": told.duplicates}
        for outcome, count in outcomes.items():
            meters.ROWS.labels(outcome).inc(count)
        meters.ALERTS.inc(told.alerts)
        for latency in told.latencies:
            meters.LATENCY_SECONDS.observe(latency)
        logger.info("told", batch=number, **outcomes, alerts=told.alerts, slowest=round(max(told.latencies, default=0), 2))

    def _take_tables(self, rows: pa.Table, name: str) -> None:
        started = time.monotonic()
        added = self.tables.take(rows, name)
        meters.TABLES_AT.set(self.tables.committed_at.timestamp())
        if any(added.values()):
            logger.info("tables written", **added, seconds=round(time.monotonic() - started, 2))

    def _committed(self, ids: list[int]) -> None:
        with self.scores.lock:
            for one in ids:
                self.scores.uncommitted.pop(one, None)

    def _look(self) -> None:
        """Take in a new champion, and what the batch lane has changed; tell how far behind everything is."""
        meters.LAG.set(behind("scores"))
        meters.look_at_watermarks()
        found = champion.newer(self.scores.champion)
        if found is not self.scores.champion and found is not None:
            with session() as hive, ops.writer(score.TABLE, self.run):
                score.ensure_table(hive, found.model.features)
            with self.scores.lock:
                self.scores.champion = found
            logger.info("another champion scores from now on", champion=str(found.version))
        with self.tables.lock:
            moved = self.tables.transactions.is_moved_by_others(self._transactions)
            reports = newest_of(self.spark, "core.fraud_reports")
        if moved or reports != self._reports:
            with self.scores.lock:
                uncommitted = list(self.scores.uncommitted.values())
            with self.tables.lock:
                history, self._transactions, self._reports = read_history(self.spark)
                self.tables.transactions.forget_others()
            with self.scores.lock:
                history.take(columns_of(dict.fromkeys([*uncommitted, *self.scores.uncommitted.values()])))
                self.scores.history = history
            logger.info("core has changed: history read again", transactions=len(history))


def main() -> None:
    """Run the job until it is told to end."""
    try:
        with ops.run("stream") as run:
            meters.serve()
            refuse_producers_time(broker.TOPICS)
            refuse_a_lost_checkpoint()
            job = Job(spark_session(), run)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, job.stop)
            queries = job.start()
            try:
                job.watch()
            finally:
                for query in queries:
                    query.stop()
            # Ended in peace: however long nobody reads, the next start begins to count anew.
            for name in GROUPS:
                progress(name).unlink(missing_ok=True)
    except KafkaException as error:
        raise UnavailableError(
            f"Kafka at {broker.address()} does not answer: {error.args[0].str()}; start it with bash/stack.sh up --realtime"
        ) from error


if __name__ == "__main__":
    run_main(main)
