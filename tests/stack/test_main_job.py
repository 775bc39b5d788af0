"""The main job on a small bank: extract, core, features. Increments equal a full build, both lanes meet, kills cost nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from pyspark.sql import SparkSession

from etl import batches, core, ops, sql_server
from etl.extract import extract
from etl.reconcile import reconcile
from etl.settings import ROOT
from etl.sql_server import Session
from etl.storage import storage
from etl.sweep import sweep
from etl.tables import Table, declared_tables
from etl.transform import take, transform
from ml import build_features, features
from ml.spark import ship, spark_session
from tests.kills import Step, killed_at
from tests.postgres import rows

TABLES = list(declared_tables().values())
# What features are made of.
INPUTS = [table for table in TABLES if table.name in build_features.INPUTS]
FIRST_DAY = "2018-04-01"


@pytest.fixture
def bank(hive: Session) -> Iterator[None]:
    """Twenty customers, thirty terminals, forty days of transactions; nothing in raw, core and feature."""
    clear(hive)
    fill()
    yield
    clear(hive)


def fill() -> None:
    draw = random.Random(7)
    rows(
        "INSERT INTO bank.customers (customer_id, customer_name, email, country) "
        "SELECT g, 'c' || g, g || '@x.org', 'DE' FROM generate_series(1, 20) AS g"
    )
    rows(
        "INSERT INTO bank.terminals (terminal_id, terminal_name, country, category) "
        "SELECT g, 't' || g, 'DE', 'grocery' FROM generate_series(1, 30) AS g"
    )
    made, reports = [], []
    for number in range(1, 801):
        made.append((number, draw.randint(1, 20), draw.randint(1, 30), draw.randint(0, 40 * 86_400), draw.randint(1, 30_000)))
        if draw.random() < 0.05:
            reports.append((number, draw.uniform(7, 9), True))
    transactions(made)
    reported(reports)


def clear(hive: Session) -> None:
    rows("TRUNCATE bank.fraud_reports, bank.transactions, bank.terminals, bank.customers")
    hive.run("DROP TABLE IF EXISTS feature.transactions")
    for table in TABLES:
        for name in core.target_names(table):
            hive.run(f"DROP TABLE IF EXISTS core.{name}")
        for kind in ("full", "deletes"):
            hive.run(f"DROP TABLE IF EXISTS {batches.hive_name(table.name, kind)}")
            for folder in (
                storage().list(batches.root(table.name, kind)) if storage().status(batches.root(table.name, kind), strict=False) else []
            ):
                storage().delete(f"{batches.root(table.name, kind)}/{folder}", recursive=True)


def transaction(number: int, customer: int, terminal: int, second: int, cents: int) -> None:
    transactions([(number, customer, terminal, second, cents)])


def transactions(made: list[tuple[int, int, int, int, int]]) -> None:
    """Insert transactions: number, customer, terminal, second since the first day, cents."""
    rows(
        "INSERT INTO bank.transactions (transaction_id, customer_id, terminal_id, transacted_at, amount, currency, channel, device) "
        "SELECT n, c, t, %s::timestamptz + s * interval '1 second', a / 100.0, 'EUR', 'chip', 'pos' "
        "FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[]) AS made (n, c, t, s, a)",
        FIRST_DAY, *map(list, zip(*made, strict=True)),
    )  # fmt: skip


def report(number: int, days: float, is_fraud: bool = True) -> None:
    reported([(number, days, is_fraud)])


def reported(made: list[tuple[int, float, bool]]) -> None:
    """Insert reports: transaction, days after it, whether it was a fraud."""
    rows(
        "INSERT INTO bank.fraud_reports (transaction_id, reported_at, is_fraud) "
        "SELECT transaction_id, transacted_at + d * interval '1 day', f FROM bank.transactions "
        "JOIN unnest(%s::bigint[], %s::double precision[], %s::boolean[]) AS made (n, d, f) ON transaction_id = n",
        *map(list, zip(*made, strict=True)),
    )


def stored_is_computed(spark: SparkSession) -> bool:
    """Tell whether the table holds exactly what a full build would write now."""
    computed = build_features.compute(spark, build_features.current(spark), None).toArrow().sort_by("transaction_id")
    stored = spark.table("feature.transactions").select(*computed.column_names).toArrow().sort_by("transaction_id")
    return stored.cast(computed.schema).equals(computed)


def load(hive: Session, run: ops.Run, kind: str = "incremental", tables: Sequence[Table] = TABLES) -> None:
    extract(tables, kind, run, hive)
    transform(tables, run)


@pytest.mark.parametrize("is_together", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["together", "one by one"])
def test_incremental_features_equal_a_full_build_after_late_corrected_and_deleted_rows(
    bank: None, hive: Session, run: ops.Run, is_together: bool
) -> None:
    ship(features)
    spark = spark_session("test")
    load(hive, run, "full", INPUTS)
    assert build_features.build(spark, True, run) == 800

    changes = {
        "new rows": lambda: transactions([(n, n % 20 + 1, n % 30 + 1, 41 * 86_400 + n, 5_000 + n) for n in range(801, 841)]),
        "a late row": lambda: transaction(900, 3, 3, 5 * 86_400, 99_999),
        "late reports": lambda: [
            report(n, 12) for n in (15, 16, 17) if not rows("SELECT 1 FROM bank.fraud_reports WHERE transaction_id = %s", n)
        ],
        "a corrected amount": lambda: rows("UPDATE bank.transactions SET amount = 777.77 WHERE transaction_id = 100"),
        "a corrected time": lambda: rows(
            "UPDATE bank.transactions SET transacted_at = '2018-04-02 03:04:05.678901Z' WHERE transaction_id = 700"
        ),
        "a withdrawn fraud": lambda: rows("UPDATE bank.fraud_reports SET is_fraud = false WHERE transaction_id = 15"),
    }
    first, last = tuple(changes)[:-1], "a withdrawn fraud"
    for batch in [first, (last,)] if is_together else [(what,) for what in changes]:
        for what in batch:
            changes[what]()
        load(hive, run, tables=INPUTS)
        assert build_features.build(spark, False, run) > 0, batch
        assert stored_is_computed(spark), batch
    rows("DELETE FROM bank.fraud_reports WHERE transaction_id = 20")
    rows("DELETE FROM bank.transactions WHERE transaction_id = 20")
    sweep([declared_tables()["transactions"]], run, hive)
    take(hive, declared_tables()["transactions"], run)
    build_features.build(spark, False, run)
    assert spark.table("feature.transactions").where("transaction_id = 20").isEmpty()
    assert stored_is_computed(spark)
    assert build_features.build(spark, False, run) == 0


def test_batch_row_adopts_the_streamed_one_and_a_full_batch_keeps_the_rest_of_the_stream(bank: None, hive: Session, run: ops.Run) -> None:
    load(hive, run, "full")
    columns = "transaction_id, customer_id, terminal_id, transacted_at, amount, currency, channel, device, updated_at"
    hive.run(
        f"INSERT INTO core.transactions ({columns}, lane) SELECT n, 1, 1, TIMESTAMP '2018-05-20 10:00:00', 1.00BD, 'EUR', 'chip', 'pos', "
        "TIMESTAMP '2018-05-20 10:00:00', 'stream' FROM VALUES (5001L), (5002L) AS streamed (n)"
    )
    transaction(5001, 2, 2, 49 * 86_400, 4_200)
    load(hive, run)
    lanes = "SELECT transaction_id, customer_id, lane FROM core.transactions WHERE transaction_id > 5000 ORDER BY 1"
    assert hive.run(lanes) == [(5001, 2, "batch"), (5002, 1, "stream")]
    load(hive, run, "full")
    assert hive.run(lanes) == [(5001, 2, "batch"), (5002, 1, "stream")]
    assert hive.run("SELECT count(*), count(DISTINCT transaction_id) FROM core.transactions") == [(802, 802)]
    assert all(result.source_rows == result.loaded_rows for result in reconcile(TABLES, run, hive))


def test_personal_columns_are_apart(bank: None, hive: Session, run: ops.Run) -> None:
    load(hive, run, "full")
    assert {"customer_name", "email"}.isdisjoint(row[0] for row in hive.run("DESCRIBE core.customers"))
    assert hive.run("SELECT customer_name, email FROM core.customers_personal WHERE customer_id = 3") == [("c3", "3@x.org")]
    with sql_server.session("readers", user="reader") as readers:
        assert readers.run("SELECT count(*) FROM core.customers") == [(20,)]
        for closed in ("core.customers_personal", "raw.customers"):
            with pytest.raises(sql_server.StatementError):
                readers.run(f"SELECT * FROM {closed} LIMIT 1")


@pytest.mark.slow
def test_load_killed_at_any_moment_and_run_again_ends_equal(bank: None, hive: Session, run: ops.Run) -> None:
    load(hive, run, "full")
    for round_number, seconds in enumerate(sorted(random.uniform(0.5, 5) for _ in range(12))):
        number = 6000 + round_number
        transaction(number, 1, 1, 50 * 86_400 + round_number, 100 + round_number)
        rows("UPDATE bank.transactions SET amount = amount + 0.01 WHERE transaction_id = 1")
        victim = subprocess.Popen([sys.executable, "-m", "etl.load", "incremental"], cwd=ROOT, stderr=subprocess.DEVNULL, env=os.environ)
        time.sleep(seconds)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        # A reader sees the old or the new state, and no key twice.
        ((count, keys),) = hive.run("SELECT count(*), count(DISTINCT transaction_id) FROM core.transactions")
        assert count == keys
        assert count in (800 + round_number, 801 + round_number)
        subprocess.run([sys.executable, "-m", "etl.load", "incremental"], cwd=ROOT, check=True, env=os.environ, capture_output=True)
        assert hive.run(f"SELECT count(*) FROM core.transactions WHERE transaction_id = {number}") == [(1,)]
    assert all(result.source_rows == result.loaded_rows for result in reconcile(TABLES, run, hive))


@pytest.mark.slow
def test_a_build_that_another_overtakes_begins_again(bank: None, hive: Session, run: ops.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    spark = spark_session("test")
    load(hive, run, "full", INPUTS)
    build_features.build(spark, True, run)
    original = build_features.compute

    def overtaken(*arguments: Any) -> object:
        begun.append(is_full)
        # As the server would do for a run that was killed.
        hive.run(f"DELETE FROM feature.transactions WHERE transacted_at > '2018-05-01' AND transaction_id % 2 = {int(is_full)}")
        return original(*arguments)

    for is_full in (True, False):
        transaction(3000 + is_full, 3, 3, 10 * 86_400, 99_999)
        load(hive, run, tables=INPUTS)
        begun: list[bool] = []
        monkeypatch.setattr(build_features, "compute", overtaken)
        build_features.build(spark, is_full, run)
        monkeypatch.undo()
        assert len(begun) == 2
        assert stored_is_computed(spark)


FEATURES = {
    "before the columns match": Step("ml.build_features:_match_columns", "before"),
    "before the first byte": Step("pyspark.sql.connect.readwriter:DataFrameWriterV2.overwrite", "before"),
    "while the server writes": Step("pyspark.sql.connect.readwriter:DataFrameWriterV2.overwrite", 0.5),
    "after the commit": Step("pyspark.sql.connect.readwriter:DataFrameWriterV2.overwrite", "after"),
}
BUILDING = """
    from etl import ops
    from ml import build_features, features
    from ml.spark import ship, spark_session
    ship(features)
    with ops.run("test") as run:
        build_features.build(spark_session("test"), {is_full}, run)
"""


@pytest.mark.slow
def test_features_killed_at_any_step_and_run_again(bank: None, hive: Session, run: ops.Run) -> None:
    ship(features)
    spark = spark_session("test")
    load(hive, run, "full", INPUTS)
    killed_at(FEATURES["while the server writes"], BUILDING.format(is_full=True))
    assert build_features.last(spark) is None or stored_is_computed(spark)
    build_features.build(spark, False, run)
    assert stored_is_computed(spark)

    def ids() -> set[int]:
        return {int(row[0]) for row in hive.run("SELECT transaction_id FROM feature.transactions")}

    for number, (what, step) in enumerate(FEATURES.items(), 2000):
        before = ids()
        transaction(number, 3, 3, (number - 1990) * 86_400, 99_999)
        load(hive, run, tables=INPUTS)
        killed_at(step, BUILDING.format(is_full=False))
        seen = ids()
        if what != "while the server writes":
            assert seen == (before | {number} if what == "after the commit" else before), what
        assert seen in (before, before | {number}), what
        build_features.build(spark, False, run)
        assert stored_is_computed(spark), what
        assert build_features.build(spark, False, run) == 0, what
    assert hive.run("SELECT count(*), count(DISTINCT transaction_id) FROM feature.transactions") == [(804, 804)]
