"""The stream job on a real broker: every message ends in the tables once, scored as the batch lane would score it."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from pyspark.sql import SparkSession

from api import broker, lag, rejects, topics
from etl import events, maintain, ops
from etl.errors import RefusedError, UnavailableError
from etl.settings import ROOT, settings
from etl.sql_server import Session
from etl.stack import control, serve, servers
from etl.storage import storage
from ml import build_features, models, registry
from ml.registry import Version
from tests.brokers import messages
from tests.kills import Step, killed_at
from tests.postgres import rows
from tests.stack.test_train_score import DAY, FIRST, bank, bank_rows, champion, cleared, put, spark

__all__ = ["bank", "champion", "cleared", "spark"]

LOADED_DAYS = 24
JOB = """
    import sys
    from etl.log import run_main
    from api import stream
    sys.argv = ["stream"]
    run_main(stream.main)
"""


def core_rows() -> pa.Table:
    """The small bank's transactions with every column of core."""
    table = bank_rows()["core.transactions"]
    amount = pa.array([Decimal(cents).scaleb(-2) for cents in table["amount_cents"].to_pylist()], pa.decimal128(12, 2))
    columns = {name: table[name] for name in ("transaction_id", "customer_id", "terminal_id", "transacted_at")}
    columns["amount"] = amount
    text = {"currency": "EUR", "channel": "chip", "device": "card"}
    columns |= {name: pa.array([value] * len(table)) for name, value in text.items()}
    columns["updated_at"] = table["transacted_at"]
    columns["lane"] = pa.array(["batch"] * len(table))
    return pa.table(columns)


def is_loaded(table: pa.Table) -> pa.Array:
    return pc.less(table["transacted_at"].cast(pa.int64()), FIRST + LOADED_DAYS * DAY)


def to_come() -> list[dict[str, object]]:
    """What arrives by the stream, in the order of its time."""
    table = core_rows()
    arriving = table.filter(pc.invert(is_loaded(table))).drop_columns(["updated_at", "lane"]).to_pylist()
    return [{**row, "transacted_at": row["transacted_at"].isoformat(), "amount": str(row["amount"])} for row in arriving]


def send(messages: list[object]) -> None:
    """Put messages on the topic: objects as JSON, bytes as they are. Compressed, a megabyte of one letter passes the broker."""
    producer = Producer({**broker.producer(), "message.max.bytes": 2_000_000})
    for message in messages:
        if isinstance(message, bytes):
            producer.produce(broker.TRANSACTIONS, message)
        else:
            producer.produce(broker.TRANSACTIONS, json.dumps(message), str(message["customer_id"]))
    assert producer.flush(60) == 0


def told(topic: str) -> list[dict]:
    """Every message of a topic that was committed."""
    return [json.loads(message) for message in messages(topic)]


@contextlib.contextmanager
def job() -> Iterator[subprocess.Popen[bytes]]:
    """Run the stream job; it must end in peace."""
    log = settings().data_dir / "logs" / "stream-test.log"
    with log.open("wb") as out, subprocess.Popen([sys.executable, "-m", "api.stream"], cwd=ROOT, stdout=out, stderr=out) as process:
        try:
            yield process
            assert process.poll() is None, log.read_text()[-3000:]
            process.terminate()
            assert process.wait(90) == 0, log.read_text()[-3000:]
        finally:
            process.kill()


def wait(for_what: Callable[[], bool], seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not for_what():
        log = settings().data_dir / "logs" / "stream-test.log"
        assert time.monotonic() < until, log.read_text()[-3000:] if log.exists() else "too slow"
        time.sleep(0.5)


def is_written() -> bool:
    """Whether the tables hold what arrived and what was told of it."""
    return all(one.messages == 0 for one in lag.lags())


@pytest.fixture
def lane(champion: Version, spark: SparkSession, hive: Session, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A champion, the first days in core, a broker with empty topics, no checkpoint."""
    monkeypatch.setenv("WAREHOUSE_STREAM_TABLES_SECONDS", "1")
    table = core_rows()
    put(spark, "core.transactions", table.filter(is_loaded(table)))
    for name in ("raw.events", "mart.alerts", "mart.predictions"):
        hive.run(f"DROP TABLE IF EXISTS {name}")
    for folder in ("_stream", "raw/events", "mart/alerts"):
        storage().delete(f"{settings().warehouse_path}/{folder}", recursive=True)
    rows("TRUNCATE ops.rejects, ops.gaps", role="etl", dbname="warehouse")
    control.up({"kafka"})
    empty_topics()
    yield
    for name in ("raw.events", "mart.alerts"):
        hive.run(f"DROP TABLE IF EXISTS {name}")
    empty_topics()


def empty_topics() -> None:
    """Remove the topics and what groups have committed, and make the topics anew."""
    admin = AdminClient(broker.client())
    for future in admin.delete_topics([name for name in admin.list_topics(timeout=10).topics if not name.startswith("_")]).values():
        future.result(30)
    for future in admin.delete_consumer_groups([*lag.GROUPS.values()]).values():
        with contextlib.suppress(Exception):
            future.result(30)
    # The broker removes them in its own time.
    wait(lambda: not [name for name in admin.list_topics(timeout=10).topics if not name.startswith("_")])
    topics.apply(topics.declared())


def ids(found: list[dict]) -> list[int]:
    return sorted(one["transaction_id"] for one in found)


def column(hive: Session, statement: str) -> list:
    return [row[0] for row in hive.run(statement)]


def scored_as_by_the_batch_lane(spark: SparkSession, run: ops.Run, champion: Version) -> None:
    """Compare features and probabilities of all predictions with those of a full build of core."""
    build_features.build(spark, True, run)
    built = spark.sql(
        "SELECT * FROM feature.transactions JOIN (SELECT transaction_id FROM mart.predictions) USING (transaction_id)"
    ).toArrow()
    scored = spark.sql("SELECT transaction_id, fraud_probability, features.* FROM mart.predictions").toArrow().sort_by("transaction_id")
    built = built.sort_by("transaction_id")
    model = models.load(registry.read_files(champion))
    for name in model.features:
        np.testing.assert_array_equal(
            built[name].cast(pa.float64()).to_numpy(), scored[name].cast(pa.float64()).to_numpy(), err_msg=name, strict=True
        )
    matrix = models.matrix({name: built[name].cast(pa.float64()).to_numpy() for name in model.features}, model.features)
    np.testing.assert_array_equal(model.probability(matrix), scored["fraud_probability"].to_numpy())


def test_arrivals_end_in_every_table_once_with_the_features_and_scores_of_the_batch_lane(
    lane: None, spark: SparkSession, hive: Session, run: ops.Run, champion: Version
):
    arriving = to_come()
    wanted = ids(arriving)
    again, other = arriving[7], {**arriving[8], "amount": "1.23"}
    poison = [
        b"no JSON at all",
        b'{"transaction_id": "5"}',
        b"\xff\xfe\x00",
        b"",
        b"x" * 100_000,
        b"x" * 1_000_000,
        {**arriving[0], "transaction_id": 10**9, "device": "4111 1111 1111 1111"},
        {**arriving[0], "customer_id": 4111111111111111},
        b'{"device": "' + b"".join(b"\\u%04x" % one for one in b"4111111111111111") + b'"}',
        {**arriving[0], "transaction_id": 10**9 + 1, "note": "?"},
        {**arriving[0], "transaction_id": 10**9 + 3, "note\0": "?"},
        {**arriving[0], "transaction_id": 10**9 + 4, "n" * 3_000: "?"},
        {**arriving[0], "transaction_id": 10**9 + 5, "n" * 1_000_000: "?"},
        {**arriving[0], "transaction_id": 10**9 + 2, "transacted_at": "2999-01-01T00:00:00Z"},
    ]
    with job():
        send(arriving[:200])
        wait(lambda: len(told(broker.PREDICTIONS)) == 200)
        send([*poison, again, other, *arriving[200:]])
        wait(lambda: len(told(broker.PREDICTIONS)) == len(arriving))
        wait(is_written)

    assert ids(told(broker.PREDICTIONS)) == ids(told(broker.VALIDATED)) == wanted
    assert column(hive, "SELECT transaction_id FROM core.transactions WHERE lane = 'stream' ORDER BY 1") == wanted
    assert column(hive, "SELECT transaction_id FROM mart.predictions ORDER BY 1") == wanted
    high = column(hive, "SELECT transaction_id FROM mart.predictions WHERE risk_level = 'HIGH' ORDER BY 1")
    assert 0 < len(high) < len(wanted)
    assert column(hive, "SELECT transaction_id FROM mart.alerts ORDER BY 1") == ids(told(broker.ALERTS)) == high
    ((streamed, arrived),) = hive.run(
        "SELECT count(*), count_if(t.amount = s.amount AND t.channel = 'chip' AND t.device = 'card') FROM core.transactions t "
        "JOIN mart.predictions s USING (transaction_id) WHERE t.transacted_at = s.transacted_at"
    )
    assert streamed == arrived == len(wanted)
    # Every message as it came, the bad ones with their reasons, and no card number anywhere.
    assert column(hive, "SELECT count(*) FROM raw.events") == [len(arriving) + len(poison) + 2]
    rejected = rows("SELECT reason, column_name, payload FROM ops.rejects", role="etl", dbname="warehouse")
    assert len(rejected) == len(poison) + 1
    reasons = {(str(name), str(reason)) for reason, name, _ in rejected}
    assert ("transaction_id", "is the key of another transaction that came before") in reasons
    assert ("device", "may be a card number, which must not be sent") in reasons
    assert {("note", "Extra inputs are not permitted"), ("(unknown)", "Extra inputs are not permitted")} <= reasons
    assert ("transacted_at", "lies more than a day after its arrival") in reasons
    assert ("None", "is longer than a message may be") in reasons
    assert not any("4111" in str(payload) or "u0034" in str(payload) for _, _, payload in rejected)
    shown = "concat(CAST(message AS string), coalesce(CAST(message_key AS string), ''))"
    assert column(hive, f"SELECT count(*) FROM raw.events WHERE {shown} LIKE '%4111%' OR {shown} LIKE '%u0034%'") == [0]
    assert column(hive, "SELECT count(*) FROM raw.events WHERE is_masked") == [3]
    assert column(hive, "SELECT CAST(message_key AS string) FROM raw.events WHERE is_masked AND message_key LIKE '*%'") == ["*" * 16]

    scored_as_by_the_batch_lane(spark, run, champion)


@pytest.mark.slow
def test_what_was_rejected_is_mended_and_sent_again_and_then_waits_no_more(lane: None, hive: Session):
    wrong = {**to_come()[0], "channel": "pigeon"}
    with job():
        send([wrong, b"not JSON"])
        wait(lambda: len(rejects.waiting()) == 2)
        by_reason = {one.column: one.reject_id for one in rejects.waiting()}
        ran = subprocess.run([ROOT / "bash" / "rejects.sh", "replay", "--set", "channel=chip"], capture_output=True, text=True, check=False)
        assert (ran.returncode, len(rejects.waiting())) == (1, 1)
        assert "1 of 2 messages are still no transactions" in ran.stderr
        assert rejects.waiting()[0].reject_id == by_reason[None]
        ran = subprocess.run([ROOT / "bash" / "rejects.sh", "replay", "--only-valid"], capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stdout) == (0, "0 messages sent again, 1 stay rejected\n")
        wait(lambda: len(told(broker.PREDICTIONS)) == 1)
        wait(is_written)
    assert column(hive, "SELECT channel FROM core.transactions WHERE lane = 'stream'") == ["chip"]


def log() -> str:
    return (settings().data_dir / "logs" / "stream-test.log").read_text()


@pytest.mark.slow
def test_another_champion_and_what_the_batch_lane_loads_count_without_a_restart(
    lane: None, spark: SparkSession, hive: Session, run: ops.Run, champion: Version
):
    arriving = to_come()
    with job():
        send(arriving[:100])
        wait(lambda: len(told(broker.PREDICTIONS)) == 100)
        wait(is_written)
        other = registry.register(champion.run_id, registry.read_files(champion), champion.tags)
        registry.promote(other)
        table = core_rows()
        put(spark, "+core.transactions", table.filter(pc.invert(is_loaded(table))).slice(100, 100))
        wait(lambda: "another champion scores from now on" in log() and "history read again" in log())
        # What came by the batch lane is known: it is neither scored nor told here.
        send(arriving[150:])
        wait(lambda: len(told(broker.PREDICTIONS)) == 100 + len(arriving) - 200)
        wait(is_written)
    versions = hive.run("SELECT model_version, count(*) FROM mart.predictions GROUP BY 1 ORDER BY 1")
    assert versions == [(champion.version, 100), (other.version, len(arriving) - 200)]
    assert column(hive, "SELECT transaction_id FROM core.transactions ORDER BY 1") == sorted(core_rows()["transaction_id"].to_pylist())
    scored_as_by_the_batch_lane(spark, run, champion)


@pytest.mark.slow
def test_a_late_arrival_is_scored_and_the_features_that_it_touches_are_computed_again_while_predictions_stay(
    lane: None, spark: SparkSession, hive: Session, run: ops.Run
):
    arriving = to_come()
    late = arriving.pop(50)
    with job():
        send(arriving[:200])
        wait(lambda: len(told(broker.PREDICTIONS)) == 200)
        wait(is_written)
        build_features.build(spark, True, run)
        before = hive.run("SELECT * FROM mart.predictions ORDER BY transaction_id")
        send([late])
        wait(lambda: len(told(broker.PREDICTIONS)) == 201)
        wait(is_written)
    build_features.build(spark, False, run)
    incremental = spark.table("feature.transactions").toArrow().sort_by("transaction_id")
    build_features.build(spark, True, run)
    assert spark.table("feature.transactions").toArrow().sort_by("transaction_id").equals(incremental)
    after = hive.run("SELECT * FROM mart.predictions ORDER BY transaction_id")
    assert [row for row in after if row[0] != late["transaction_id"]] == before
    assert len(after) == len(before) + 1


@pytest.mark.slow
def test_an_arrival_older_than_the_history_is_in_core_once_without_a_prediction_and_counts_for_those_after_it(
    lane: None, spark: SparkSession, hive: Session, run: ops.Run, champion: Version
):
    table = core_rows()
    # Core reaches further back than the history does.
    oldest = {**table.slice(0, 1).to_pylist()[0], "transaction_id": 10**9 + 1, "transacted_at": dt.datetime(2018, 1, 1, tzinfo=dt.UTC)}
    put(spark, "+core.transactions", pa.Table.from_pylist([oldest], table.schema))
    arriving = to_come()
    late = {**arriving[0], "transaction_id": 10**9, "transacted_at": "2018-07-06T12:00:00Z"}
    with job():
        send([late])
        wait(lambda: ids(told(broker.VALIDATED)) == [10**9])
        send([late, {**late, "amount": "9.00"}, *arriving])
        wait(lambda: len(told(broker.PREDICTIONS)) == len(arriving))
        wait(is_written)
    assert ids(told(broker.VALIDATED)) == [*ids(arriving), 10**9]
    assert column(hive, "SELECT transaction_id FROM core.transactions WHERE lane = 'stream' ORDER BY 1") == [*ids(arriving), 10**9]
    assert column(hive, "SELECT transaction_id FROM mart.predictions ORDER BY 1") == ids(arriving)
    reasons = rows("SELECT reason FROM ops.rejects", role="etl", dbname="warehouse")
    assert reasons == [("is the key of another transaction that came before",)]
    scored_as_by_the_batch_lane(spark, run, champion)


@pytest.mark.slow
def test_maintenance_works_beside_the_job_and_leaves_few_snapshots(
    lane: None, hive: Session, run: ops.Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(maintain, "STREAM_HOURS", 0)
    monkeypatch.setattr(events, "TODAY_FILES", 2)
    arriving = to_come()
    tables = [("core", "transactions"), ("mart", "predictions"), ("mart", "alerts")]
    with job():
        for number in range(0, 300, 50):
            send(arriving[number : number + 50])
            wait(lambda there=number + 50: len(told(broker.PREDICTIONS)) == there)
            wait(is_written)
        many = {one: column(hive, f"SELECT count(*) FROM {'.'.join(one)}.snapshots")[0] for one in tables}
        for database, name in tables:
            maintain.maintain(hive, database, name, run, 7)
            assert column(hive, f"SELECT count(*) FROM {database}.{name}.snapshots")[0] <= 4 < many[database, name]
        events.maintain(hive, run)
        assert column(hive, "SELECT count(*) FROM raw.events") == [300]
        of_day = f"SELECT count(*) FROM mart.predictions VERSION AS OF 'day_{dt.datetime.now(dt.UTC):%Y_%m_%d}'"
        assert column(hive, of_day) == [300]
        send(arriving[300:])
        wait(lambda: len(told(broker.PREDICTIONS)) == len(arriving))
        wait(is_written)
    assert column(hive, "SELECT transaction_id FROM core.transactions WHERE lane = 'stream' ORDER BY 1") == ids(arriving)
    assert column(hive, "SELECT transaction_id FROM mart.predictions ORDER BY 1") == ids(arriving)
    assert column(hive, "SELECT count(*) FROM raw.events") == [len(arriving)]
    # Folded, the newest then, and what came since.
    assert len(column(hive, "SELECT DISTINCT input_file_name() FROM raw.events")) <= 4


@pytest.mark.slow
def test_a_micro_batch_that_was_killed_and_whose_day_is_folded_meanwhile_is_there_once(
    lane: None, hive: Session, run: ops.Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(events, "TODAY_FILES", 1)
    arriving = to_come()
    with job():
        for number in (0, 50, 100):
            send(arriving[number : number + 50])
            wait(lambda there=number + 50: len(told(broker.PREDICTIONS)) == there)
            wait(is_written)
    send(arriving[150:])
    killed_at(STEPS["events are written"], JOB)
    written = column(hive, "SELECT count(*) FROM raw.events")[0]
    assert written > 150
    events.maintain(hive, run)
    assert column(hive, "SELECT count(*) FROM raw.events") == [written]
    assert len(column(hive, "SELECT DISTINCT input_file_name() FROM raw.events")) == 2
    with job():
        wait(lambda: len(told(broker.PREDICTIONS)) == len(arriving))
        wait(is_written)
    assert hive.run("SELECT count(*), count(DISTINCT topic_partition, topic_offset) FROM raw.events") == [(len(arriving),) * 2]
    assert column(hive, "SELECT transaction_id FROM core.transactions WHERE lane = 'stream' ORDER BY 1") == ids(arriving)


@pytest.mark.slow
def test_without_the_checkpoint_of_what_was_written_the_job_refuses_and_with_it_it_goes_on(lane: None, hive: Session):
    arriving = to_come()
    with job():
        send(arriving[:50])
        wait(lambda: len(told(broker.PREDICTIONS)) == 50)
        wait(is_written)
    there, away = (f"{settings().warehouse_path}/{name}" for name in ("_stream", "_stream_away"))
    storage().rename(there, away)
    try:
        ran = subprocess.run([ROOT / "bash" / "stream.sh"], capture_output=True, text=True, timeout=120, check=False)
        assert ran.returncode == RefusedError.exit_code, ran.stderr
        assert f"error: {there}/tables is not in HDFS, but by Kafka's group stream-tables messages were written" in ran.stderr
        assert "Traceback" not in ran.stderr
        assert column(hive, "SELECT count(*) FROM raw.events") == [50]
    finally:
        storage().rename(away, there)
    with job():
        send(arriving[50:60])
        wait(lambda: len(told(broker.PREDICTIONS)) == 60)
        wait(is_written)
    assert column(hive, "SELECT count(*) FROM raw.events") == [60]


STEPS = {
    "before anything is told": Step("api.scores:Scores._tell", "before"),
    "told, before the query notes it": Step("api.scores:Scores._tell", "after"),
    "events are written": Step("api.tables:_write_events", "after"),
    "alerts are on the branch": Step("api.keyed:KeyedTable._publish", "before"),
    "alerts are published": Step("api.keyed:KeyedTable._publish", "after"),
    "predictions are written, transactions are not": Step("etl.ops:writer", "before", "core.transactions"),
    "all tables are written, before they are noted": Step("api.tables:Tables._remember", "before"),
}


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_job_killed_anywhere_is_gone_on_with_and_everything_is_there_once(lane: None, hive: Session, step: Step):
    arriving = to_come()
    send([*arriving[:300], b"no JSON", arriving[3]])
    killed_at(step, JOB)
    send(arriving[300:])
    with job():
        wait(lambda: len(told(broker.PREDICTIONS)) >= len(arriving))
        wait(is_written)
    wanted = ids(arriving)
    assert ids(told(broker.PREDICTIONS)) == ids(told(broker.VALIDATED)) == wanted
    assert column(hive, "SELECT transaction_id FROM core.transactions WHERE lane = 'stream' ORDER BY 1") == wanted
    assert column(hive, "SELECT transaction_id FROM mart.predictions ORDER BY 1") == wanted
    assert column(hive, "SELECT count(*) FROM raw.events") == [len(arriving) + 2]
    assert ids(told(broker.ALERTS)) == column(hive, "SELECT transaction_id FROM mart.alerts ORDER BY 1")
    assert rows("SELECT count(*) FROM ops.rejects", role="etl", dbname="warehouse") == [(1,)]


def gaps() -> list[tuple[object, ...]]:
    """Each gap that is recorded: query, topic, partition, first and last offset, count."""
    return rows(
        "SELECT query, topic, partition, first_offset, last_offset, message_count FROM ops.gaps ORDER BY found_at, query, partition",
        role="etl",
        dbname="warehouse",
    )


def remove_below(partition: int, offset: int) -> None:
    """Let the broker remove what a partition of `transactions` holds below an offset."""
    # Kept until it has answered.
    admin = AdminClient(broker.client())
    for answer in admin.delete_records([TopicPartition(broker.TRANSACTIONS, partition, offset)]).values():
        assert answer.result(30).low_watermark == offset


def send_to(partition: int, messages: list[dict[str, object]]) -> None:
    producer = Producer(broker.producer())
    for message in messages:
        producer.produce(broker.TRANSACTIONS, json.dumps(message), str(message["customer_id"]), partition)
    assert producer.flush(60) == 0


GAP_STEPS = {
    "recorded, nothing told": Step("api.scores:Scores._tell", "before"),
    "told, before the query notes it": Step("api.scores:Scores._tell", "after"),
    "the tables know of it": Step("api.tables:Tables._remember", "before"),
}


@pytest.mark.slow
@pytest.mark.parametrize("step", GAP_STEPS.values(), ids=GAP_STEPS)
def test_what_the_broker_removed_is_recorded_once_wherever_the_job_is_killed_and_what_follows_is_read(
    lane: None, hive: Session, step: Step
):
    arriving = to_come()
    send_to(2, arriving[:10])
    remove_below(2, 6)
    killed_at(step, JOB)
    found = [("scores", broker.TRANSACTIONS, 2, 0, 5, 6), ("tables", broker.TRANSACTIONS, 2, 0, 5, 6)]
    assert gaps() == found
    remove_below(2, 10)
    send_to(2, arriving[10:20])
    with job():
        wait(lambda: set(ids(told(broker.VALIDATED))) >= set(ids(arriving[10:20])))
        wait(is_written)
    # What was told is not lost; what was not is one more gap, which begins where the first one ended.
    lost = [(query, *rest) for query, *rest in gaps()[2:]]
    assert {tuple(one) for one in lost} <= {(query, broker.TRANSACTIONS, 2, 6, 9, 4) for query in ("scores", "tables")}
    is_told = step is not GAP_STEPS["recorded, nothing told"]
    assert (("scores", broker.TRANSACTIONS, 2, 6, 9, 4) in lost) != is_told
    wanted = ids(arriving[6:20] if is_told else arriving[10:20])
    assert column(hive, "SELECT transaction_id FROM core.transactions WHERE lane = 'stream' ORDER BY 1") == wanted


@pytest.mark.slow
def test_a_gap_and_a_topic_made_anew_while_the_job_runs_stop_nothing_that_follows(lane: None, hive: Session):
    arriving = to_come()
    with job() as process:
        send_to(1, arriving[:5])
        wait(lambda: len(told(broker.VALIDATED)) == 5)
        wait(is_written)
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in tree:
            one.suspend()
        send_to(1, arriving[5:10])
        remove_below(1, 8)
        for one in tree:
            one.resume()
        wait(lambda: len(told(broker.VALIDATED)) == 7)
        wait(is_written)
        # What was read, and the marks of the job's own transactions, are removed without a loss.
        remove_below(1, 10)
        send_to(1, arriving[10:12])
        wait(lambda: len(told(broker.VALIDATED)) == 9)
        wait(is_written)
    assert sorted(gaps()) == [(query, broker.TRANSACTIONS, 1, 5, 7, 3) for query in ("scores", "tables")]
    admin = AdminClient(broker.client())
    admin.delete_topics([broker.TRANSACTIONS])[broker.TRANSACTIONS].result(30)
    wait(lambda: broker.TRANSACTIONS not in admin.list_topics(timeout=10).topics)
    topics.apply(topics.declared())
    send_to(1, arriving[12:40])
    for _ in range(2):
        with job():
            wait(lambda: len(told(broker.VALIDATED)) == 9 + 28)
            wait(is_written)
    anew = [one for one in gaps() if one[4] is None]
    assert sorted(anew) == [
        (query, broker.TRANSACTIONS, part, 12 if part == 1 else 0, None, None) for query in ("scores", "tables") for part in range(4)
    ]
    assert len(gaps()) == 2 + len(anew)
    wanted = ids([*arriving[:5], *arriving[8:40]])
    assert column(hive, "SELECT transaction_id FROM core.transactions WHERE lane = 'stream' ORDER BY 1") == wanted
    assert column(hive, "SELECT count(*) FROM raw.events") == [len(wanted)]


@pytest.mark.slow
def test_the_health_check_fails_while_a_query_stands_still_with_something_before_it(
    lane: None, run: ops.Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(servers, "STILL_SECONDS", 15)
    with job():
        send(to_come()[:5])
        wait(is_written)
        time.sleep(20)
        # Nothing is before it.
        serve.check("stream")
        with ops.writer("core.transactions", run):
            send(to_come()[5:10])
            wait(lambda: len(told(broker.VALIDATED)) == 10)
            wait(lambda: not servers.one_server("stream").is_ready(), 60)
            with pytest.raises(UnavailableError, match="stream is not ready"):
                serve.check("stream")
        wait(servers.one_server("stream").is_ready, 60)
        wait(is_written)
