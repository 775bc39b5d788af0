"""What takes longer (`bash/test_all.sh`): minutes of writers, killed verbs and maintenance; and as many rows as a large file has."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from pyspark.sql import SparkSession

from etl import ops
from etl.databases import opened
from etl.reconcile import reconcile
from etl.settings import ROOT
from etl.sql_server import Session
from etl.sweep import sweep
from etl.transform import transform
from ml import build_features, features
from ml.spark import ship, spark_session
from tests.bench.__main__ import SIMULATED, verb_memory
from tests.postgres import rows
from tests.stack.test_main_job import TABLES, bank, clear, load, stored_is_computed

__all__ = ["bank"]

SOAK_SECONDS = 300
VERBS = [
    *[("etl.load", "incremental")] * 4,
    # More is deleted here than a bank ever deletes.
    ("etl.extract", "deletes", "--force"),
    ("etl.transform", "incremental"),
    ("ml.build_features", "incremental"),
    ("etl.maintain",),
]
EXTRACT_MEGABYTES = 600


@pytest.fixture
def spark(bank: None) -> SparkSession:
    ship(features)
    return spark_session("endurance")


def write_until(stopped: threading.Event, seed: int) -> int:
    """Insert, correct, report and delete transactions, roll some back, leave some open for a while; returns how many were committed."""
    draw = random.Random(seed)
    committed = 0
    number = seed * 1_000_000
    with opened("bank", "bank") as session, session.cursor() as cursor:
        while not stopped.is_set():
            for _ in range(draw.randint(1, 5)):
                number += 1
                cursor.execute(
                    "INSERT INTO bank.transactions "
                    "(transaction_id, customer_id, terminal_id, transacted_at, amount, currency, channel, device) "
                    "VALUES (%s, %s, %s, '2018-05-01'::timestamptz + %s * interval '1 minute', %s, 'EUR', 'chip', 'pos')",
                    (number, draw.randint(1, 20), draw.randint(1, 30), number % 20_000, draw.randint(1, 30_000) / 100),
                )
            # Only its own rows: two writers never wait for each other.
            mine = seed * 1_000_000 + draw.randint(1, number - seed * 1_000_000)
            cursor.execute("UPDATE bank.transactions SET amount = amount + 0.01 WHERE transaction_id = %s", (mine,))
            if draw.random() < 0.2:
                cursor.execute(
                    "INSERT INTO bank.fraud_reports (transaction_id, reported_at, is_fraud) SELECT transaction_id, "
                    "transacted_at + interval '3 days', true FROM bank.transactions WHERE transaction_id = %s ON CONFLICT DO NOTHING",
                    (mine,),
                )
            elif draw.random() < 0.2:
                cursor.execute(
                    "DELETE FROM bank.transactions AS t WHERE transaction_id = %s "
                    "AND NOT EXISTS (SELECT 1 FROM bank.fraud_reports AS r WHERE r.transaction_id = t.transaction_id)",
                    (mine,),
                )
            time.sleep(draw.random() * (2 if draw.random() < 0.05 else 0.1))
            if draw.random() < 0.1:
                session.rollback()
            else:
                session.commit()
                committed += 1
    return committed


def run_verb(verb: tuple[str, ...], killed_after: float | None) -> None:
    """Run a verb to its end, or kill it and all that it started."""
    process = subprocess.Popen(
        [sys.executable, "-m", *verb], cwd=ROOT, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        _, told = process.communicate(timeout=killed_after or 300)
        assert process.returncode == 0, f"{' '.join(verb)}: {told.decode()}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert killed_after is not None, f"{' '.join(verb)} did not end"


def equal(hive: Session, run: ops.Run) -> bool:
    """Tell whether reconciliation finds every table of core equal to the source."""
    return all(one.source_rows == one.loaded_rows and not one.differences for one in reconcile(TABLES, run, hive))


@pytest.mark.slow
def test_after_minutes_of_writers_kills_sweeps_and_maintenance_everything_is_equal(
    bank: None, spark: SparkSession, hive: Session, run: ops.Run
) -> None:
    load(hive, run, "full")
    draw = random.Random()
    stopped = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write_until, stopped, seed) for seed in (1, 2)]
        ends_at = time.monotonic() + SOAK_SECONDS
        try:
            while time.monotonic() < ends_at:
                run_verb(draw.choice(VERBS), draw.uniform(0.5, 6) if draw.random() < 0.4 else None)
                # Whatever was killed, a reader sees no key twice.
                ((count, keys),) = hive.run("SELECT count(*), count(DISTINCT transaction_id) FROM core.transactions")
                assert count == keys
                assert not [one for one in writers if one.done()]
        finally:
            stopped.set()
    assert all(writer.result() > 100 for writer in writers)
    load(hive, run)
    sweep(TABLES, run, hive, force=True)
    transform(TABLES, run)
    assert equal(hive, run)
    theirs = rows("SELECT transaction_id, amount FROM bank.transactions ORDER BY 1")
    assert hive.run("SELECT transaction_id, amount FROM core.transactions ORDER BY 1") == theirs
    build_features.build(spark, False, run)
    assert stored_is_computed(spark)


@pytest.mark.slow
def test_a_large_file_arrives_whole_in_bounded_memory(spark: SparkSession, hive: Session, run: ops.Run, tmp_path: Path) -> None:
    clear(hive)
    bash = ROOT / "bash"
    subprocess.run([bash / "simulate.sh", *SIMULATED, "--out", tmp_path], check=True, capture_output=True)
    files = {table.name: tmp_path / "full" / f"{table.name}.csv" for table in TABLES}
    subprocess.run([bash / "load_csv.sh", "full", *files.values()], check=True, capture_output=True)
    counts = {name: len(pd.read_csv(path, usecols=[0])) for name, path in files.items()}
    assert counts["transactions"] > 1_500_000
    assert {name: rows(f"SELECT count(*) FROM bank.{name}")[0][0] for name in counts} == counts
    _, megabytes = verb_memory("extract", "full")
    assert megabytes < EXTRACT_MEGABYTES
    transform(TABLES, run)
    assert {name: hive.run(f"SELECT count(*) FROM core.{name}")[0][0] for name in counts} == counts
    assert equal(hive, run)
    # A day's changes, and the features of all of it.
    increment = (tmp_path / "incremental").rglob("*.csv")
    subprocess.run([bash / "load_csv.sh", "incremental", *increment], check=True, capture_output=True)
    load(hive, run)
    assert equal(hive, run)
    assert build_features.build(spark, True, run) == rows("SELECT count(*) FROM bank.transactions")[0][0]
