"""The real-time lane as a user starts it: by the stack's own verbs, from a stream CSV to the receiver of alerts and back as a label."""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import http.client
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api import lag
from etl import sql_server
from etl.settings import ROOT, settings
from etl.stack import control, supervision
from etl.storage import storage
from ml import registry
from tests.api.alerts import use
from tests.postgres import rows
from tests.receivers import Http, until
from tests.stack import test_main_job
from tests.stack.test_backup import everything
from tests.stack.test_stream import column, empty_topics
from tests.stack.test_train_score import CUSTOMERS, DAY, DAYS, FIRST, TERMINALS, drawn

pytestmark = pytest.mark.slow

COLUMNS = ("transaction_id", "customer_id", "terminal_id", "transacted_at", "amount", "currency", "channel", "device")
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
AS_USUAL, LARGE = range(10_001, 10_061), range(10_061, 10_067)
MORE, LATER = range(10_067, 11_067), range(11_067, 11_077)


def verb(*command: str | Path) -> None:
    """Run a verb as a person does."""
    name, *arguments = command
    ran = subprocess.run([ROOT / "bash" / name, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{name}: {ran.stderr[-3000:]}"


def clear() -> None:
    """Remove what this test, or one before it, has left in the tables, the registry and the topics."""
    control.up({"base", "kafka"})
    with sql_server.session() as hive:
        test_main_job.clear(hive)
        for name in ("raw.events", "mart.alerts", "mart.predictions"):
            hive.run(f"DROP TABLE IF EXISTS {name}")
    for folder in ("_stream", "raw/events", "mart/alerts"):
        storage().delete(f"{settings().warehouse_path}/{folder}", recursive=True)
    rows("TRUNCATE ops.rejects, ops.notifications", role="etl", dbname="warehouse")
    for found in registry.client().search_registered_models():
        registry.client().delete_registered_model(found.name)
    empty_topics()


def fill() -> None:
    """A month of a small bank in the source, with its reports: large amounts are frauds."""
    for table, columns, others, count in (
        ("customers", "customer_id, customer_name, country", "'BE'", CUSTOMERS),
        ("terminals", "terminal_id, terminal_name, country, category", "'BE', 'grocery'", TERMINALS),
    ):
        rows(f"INSERT INTO bank.{table} ({columns}) SELECT g, 'n' || g, {others} FROM generate_series(1, %s) g", count)
    transactions, reports = drawn()
    rows(
        "INSERT INTO bank.transactions (transaction_id, customer_id, terminal_id, transacted_at, amount, currency, channel) "
        "SELECT n, c, t, to_timestamp(at / 1e6), cents / 100.0, 'EUR', 'chip' "
        "FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[]) AS made (n, c, t, at, cents)",
        *(transactions[name].to_pylist() for name in transactions.column_names),
    )
    rows(
        "INSERT INTO bank.fraud_reports (transaction_id, reported_at, is_fraud) SELECT n, to_timestamp(at / 1e6), true "
        "FROM unnest(%s::bigint[], %s::bigint[]) AS made (n, at)",
        reports["transaction_id"].to_pylist(), reports["reported_at"].to_pylist(),
    )  # fmt: skip


def write_stream(path: Path, numbers: Iterable[int]) -> None:
    """Transactions of the day after the month, some of them of large amounts."""
    draw = random.Random(4)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for number in numbers:
            at = EPOCH + dt.timedelta(microseconds=FIRST + DAYS * DAY, seconds=number)
            cents = draw.randint(500, 10_000) + (20_000 if number in LARGE else 0)
            keys = (number, draw.randint(1, CUSTOMERS), draw.randint(6, TERMINALS))
            values = (*keys, at.isoformat(), f"{cents / 100:.2f}", "EUR", "chip", "card")
            writer.writerow(dict(zip(COLUMNS, values, strict=True)))


@pytest.fixture
def month(stack: None) -> Iterator[None]:
    """A loaded month and a champion; the stack is down, so that it starts with the environment of the test."""
    clear()
    fill()
    verb("load.sh", "full")
    verb("features.sh", "full")
    verb("train.sh", "xgboost")
    control.down()
    yield
    control.down()
    clear()


def asked(method: str, path: str, content: dict[str, Any] | None = None) -> Any:
    """Ask the stack's API with the key of this machine."""
    connection = http.client.HTTPConnection("127.0.0.1", settings().port("api"), timeout=60)
    key = (settings().data_dir / "secrets" / "api.key").read_text().strip()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request(method, path, json.dumps(content) if content else None, headers)
    answer = connection.getresponse()
    told = answer.read()
    connection.close()
    assert answer.status == 200, told
    return json.loads(told)


def test_a_stream_csv_is_in_every_table_once_alerts_reach_a_receiver_and_a_decision_becomes_a_label(
    month: None, got: Http, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WAREHOUSE_STREAM_TABLES_SECONDS", "2")
    use(monkeypatch, tmp_path, {"cases": {"kind": "webhook", "url": got.url}})
    verb("stack.sh", "up", "--realtime")
    write_stream(tmp_path / "stream.csv", (*AS_USUAL, *LARGE))
    for _ in range(2):
        verb("stream_csv.sh", tmp_path / "stream.csv", "--to", "api")
    until(lambda: all(one.messages == 0 for one in lag.lags()), 120)

    with sql_server.session() as hive:
        wanted = [*AS_USUAL, *LARGE]
        assert column(hive, "SELECT transaction_id FROM core.transactions WHERE lane = 'stream' ORDER BY 1") == wanted
        assert column(hive, "SELECT transaction_id FROM mart.predictions ORDER BY 1") == wanted
        high = column(hive, "SELECT transaction_id FROM mart.predictions WHERE risk_level = 'HIGH' ORDER BY 1")
        assert len(set(high) & set(LARGE)) > 1
        assert column(hive, "SELECT transaction_id FROM mart.alerts ORDER BY 1") == high
    until(lambda: len(got.requests) >= len(high), 60)
    assert Counter(headers["Idempotency-Key"] for headers, _ in got.requests) == Counter(f"alert-{number}" for number in high)

    assert sorted(one["transaction_id"] for one in asked("GET", "/alerts")["alerts"]) == high
    fraud, other = high[0], high[-1]
    assert asked("POST", f"/alerts/{fraud}/decision", {"is_fraud": True, "scenario": 1})["outcome"] == "recorded"
    assert asked("POST", f"/alerts/{other}/decision", {"is_fraud": False})["outcome"] == "recorded"
    verb("load.sh", "incremental")
    with sql_server.session() as hive:
        new = f"WHERE transaction_id >= {AS_USUAL[0]} ORDER BY 1"
        labels = hive.run(f"SELECT transaction_id, is_fraud, scenario FROM core.fraud_reports {new}")
    assert labels == [(fraud, True, 1), (other, False, None)]
    is_backed_up(tmp_path)


def is_backed_up(folder: Path) -> None:
    """Back up while the lane takes transactions, and once more after its job was killed; lose the machine, and get all of it back."""
    write_stream(folder / "stream.csv", MORE)
    with background("stream_csv.sh", folder / "stream.csv", "--to", "api", "--rate", "20"):
        verb("backup.sh", folder / "backup")
    verb("restore.sh", folder / "backup", "--verify")
    until(lambda: all(one.messages == 0 for one in lag.lags()), 120)
    for _ in range(2):
        os.kill(supervision.states()["stream"]["pid"], signal.SIGKILL)
        time.sleep(3)
    verb("backup.sh", folder / "backup", "--with-source")
    control.down()
    control.up({"base"})
    with sql_server.session() as hive:
        before = everything(hive)
    verb("stack.sh", "reset")
    verb("stack.sh", "up")
    verb("restore.sh", folder / "backup")
    with sql_server.session() as hive:
        assert everything(hive) == before
    # The topics are gone with the machine, so the checkpoint names messages that are nowhere.
    storage().delete(f"{settings().warehouse_path}/_stream", recursive=True)
    verb("stack.sh", "up", "--realtime")
    write_stream(folder / "stream.csv", LATER)
    verb("stream_csv.sh", folder / "stream.csv", "--to", "api")
    until(lambda: all(one.messages == 0 for one in lag.lags()), 120)
    with sql_server.session() as hive:
        streamed = column(hive, "SELECT transaction_id FROM core.transactions WHERE lane = 'stream' ORDER BY 1")
    assert streamed == [*AS_USUAL, *LARGE, *MORE, *LATER]


@contextlib.contextmanager
def background(*command: str | Path) -> Iterator[None]:
    """Run a verb beside what follows, to its end."""
    name, *arguments = command
    with subprocess.Popen([ROOT / "bash" / name, *arguments], stderr=subprocess.PIPE, text=True) as process:
        yield
        _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said[-3000:]
