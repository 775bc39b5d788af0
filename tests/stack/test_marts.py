"""The marts and the checks of data on the real servers, on a bank of a few literal rows."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from api import quality
from etl import core, ops, sql_server
from etl.databases import opened
from etl.settings import ROOT, settings
from etl.sql_server import Session
from etl.storage import storage
from etl.tables import declared_tables
from ml import alerts, marts, registry, score
from tests.kills import Step, killed_at
from tests.postgres import rows
from tests.receivers import Http

MARTS = sorted(path.stem for path in (ROOT / "hive" / "mart" / "models").glob("*.sql"))
TABLES = {
    "core.transactions": "transaction_id bigint, customer_id bigint, terminal_id bigint, transacted_at timestamp, amount decimal(12,2), "
    "currency string, channel string, device string, updated_at timestamp, lane string",
    "core.customers": "customer_id bigint, country string, updated_at timestamp",
    "core.terminals": "terminal_id bigint, terminal_name string, country string, category string, updated_at timestamp",
    "core.fraud_reports": "transaction_id bigint, reported_at timestamp, is_fraud boolean, scenario int, updated_at timestamp",
}
SWEPT = ("transactions", "fraud_reports")
RAW = "raw_of_marts"
MERGE_ON_READ = ", ".join(f"'write.{verb}.mode' = 'merge-on-read'" for verb in ("merge", "delete", "update"))
NEVER = "TIMESTAMP '2026-01-01 00:00:00'"


def transaction(number: int, day: int, customer: int, terminal: int, amount: str) -> str:
    at = f"TIMESTAMP '2026-03-{day:02d} 12:00:00'"
    return f"({number}, {customer}, {terminal}, {at}, {amount}, 'EUR', 'chip', NULL, {NEVER}, 'batch')"


def prediction(number: int, day: int, customer: int, terminal: int, amount: str, probability: float) -> str:
    level = "HIGH" if probability >= 0.5 else "LOW"
    at = f"TIMESTAMP '2026-03-{day:02d} 12:00:00'"
    reasons = f"ARRAY(NAMED_STRUCT('feature', 'amount', 'contribution', {probability}D))"
    return (
        f"({number}, {customer}, {terminal}, {at}, {amount}, 'card_fraud', 1, {probability}D, {str(probability >= 0.5).lower()}, "
        f"'{level}', {reasons}, NAMED_STRUCT('amount', {amount}D), {at})"
    )


ROWS = [
    # A day of training, one that is labelled, and the newest one.
    (1, 1, 1, 1, "10.00", 0.1),
    (2, 10, 1, 1, "20.00", 0.9),
    (3, 10, 2, 1, "30.00", 0.2),
    (4, 10, 3, 2, "40.00", 0.7),
    (5, 20, 1, 2, "50.00", 0.3),
]


@pytest.fixture(scope="module")
def hive(stack: None) -> Iterator[Session]:
    with sql_server.session() as session:
        yield session


@pytest.fixture(scope="module", autouse=True)
def bank(hive: Session) -> Iterator[None]:
    drop(hive)
    for table, columns in TABLES.items():
        hive.run(f"CREATE TABLE {table} ({columns}) USING iceberg TBLPROPERTIES ('format-version' = '2', {MERGE_ON_READ})")
        name = table.partition(".")[2]
        raw(hive, name, columns.removesuffix(", lane string"))
        if name in SWEPT:
            raw(hive, f"{name}_deleted", "transaction_id bigint")
    score.ensure_table(hive, ("amount",))
    alerts.ensure_table(hive)
    hive.run(f"INSERT INTO core.transactions VALUES {', '.join(transaction(*row[:5]) for row in ROWS)}")
    # And a month before.
    hive.run(f"INSERT INTO core.transactions VALUES {transaction(90, 20, 1, 1, '1.00').replace('2026-03', '2026-02')}")
    hive.run(f"INSERT INTO mart.predictions VALUES {', '.join(prediction(*row) for row in ROWS)}")
    hive.run(f"INSERT INTO core.customers VALUES (1, 'BE', {NEVER}), (2, 'NL', {NEVER}), (3, 'BE', {NEVER})")
    hive.run(f"INSERT INTO core.terminals VALUES (1, 'Grocer', 'BE', 'grocery', {NEVER}), (2, 'Airline', 'FR', 'travel', {NEVER})")
    hive.run(f"INSERT INTO core.fraud_reports VALUES (2, TIMESTAMP '2026-03-17 12:00:00', true, 1, {NEVER})")
    client = registry.client()
    for found in client.search_registered_models():
        client.delete_registered_model(found.name)
    client.create_registered_model("card_fraud")
    window = {"model": "xgboost", "train_from": "2026-03-01", "train_to": "2026-03-08", "average_precision": "0.5"}
    client.create_model_version("card_fraud", "file:///nowhere", None, tags=window, await_creation_for=0)
    marts.build(full=False)
    yield
    client.delete_registered_model("card_fraud")
    drop(hive)


def drop(hive: Session) -> None:
    for table in (*TABLES, *(f"mart.{name}" for name in (*MARTS, "predictions", "alerts"))):
        hive.run(f"DROP TABLE IF EXISTS {table}")
    for name in (*(table.partition(".")[2] for table in TABLES), *(f"{name}_deleted" for name in SWEPT)):
        hive.run(f"DROP TABLE IF EXISTS raw.{name}")
    if storage().status(f"{settings().warehouse_path}/{RAW}", strict=False):
        storage().delete(f"{settings().warehouse_path}/{RAW}", recursive=True)


def raw(hive: Session, name: str, columns: str) -> None:
    location = f"{settings().hdfs_uri}{settings().warehouse_path}/{RAW}/{name}"
    hive.run(f"CREATE EXTERNAL TABLE raw.{name} ({columns}) PARTITIONED BY (batch bigint) STORED AS PARQUET LOCATION '{location}'")


def take(hive: Session, table: str, number: int, row: str) -> None:
    """Publish a batch of one row and merge it, as bash/load.sh does."""
    columns = tuple(one.split()[0] for one in TABLES[f"core.{table}"].removesuffix(", lane string").split(", "))
    hive.run(f"INSERT INTO raw.{table} PARTITION (batch = {number}) VALUES {row}".replace(", 'batch')", ")"))
    target = core.Target(table, declared_tables()[table], columns)
    core.commit(hive, target, "merge.hql.j2", number, "test", batch=number, ranges=None)


def sweep(hive: Session, table: str, number: int, key: int) -> None:
    hive.run(f"INSERT INTO raw.{table}_deleted PARTITION (batch = {number}) VALUES ({key})")
    core.commit(hive, core.Target(table, declared_tables()[table], ()), "delete.hql.j2", number, "test", batch=number, later=[])


def content(hive: Session) -> dict[str, list[str]]:
    """Rows of every mart but that of the records, which each run adds to."""
    return {name: sorted(map(str, hive.run(f"SELECT * FROM mart.{name}"))) for name in MARTS if name != "data_quality_daily"}


def snapshots(hive: Session) -> dict[str, int]:
    return {name: hive.run(f"SELECT snapshot_id FROM mart.{name}.refs WHERE name = 'main'")[0][0] for name in MARTS if name[0] != "d"}


def newest_parts(hive: Session, mart: str, part: str) -> list[str]:
    """Partitions that the newest commit wrote."""
    ((found,),) = hive.run(
        f"SELECT collect_list(CAST(partition.{part} AS string)) FROM mart.{mart}.partitions "
        f"WHERE last_updated_snapshot_id = (SELECT snapshot_id FROM mart.{mart}.refs WHERE name = 'main')"
    )
    return sorted(json.loads(found))


def months_since_1970(year: int, month: int) -> int:
    return 12 * (year - 1970) + month - 1


def test_a_day_shows_what_was_caught_and_what_was_missed(hive: Session) -> None:
    found = hive.run(
        "SELECT country, transactions, CAST(amount AS string), frauds, predicted_frauds, caught_frauds, CAST(caught_amount AS string), "
        "missed_frauds, unconfirmed_alarms FROM mart.fraud_daily WHERE transacted_on = DATE '2026-03-10' ORDER BY country"
    )
    assert found == [("BE", 2, "50.00", 1, 1, 1, "20.00", 0, 0), ("FR", 1, "40.00", 0, 1, 0, "0.00", 0, 1)]


def test_a_model_is_never_judged_on_days_that_it_was_trained_on(hive: Session) -> None:
    found = hive.run("SELECT CAST(transacted_on AS string), frauds, precision, recall, roc_auc FROM mart.model_performance")
    assert found == [("2026-03-10", 1, 0.5, 1.0, 1.0)]


def test_every_column_has_its_description(hive: Session) -> None:
    declared = yaml.safe_load((ROOT / "hive" / "mart" / "models" / "marts.yml").read_text())["models"]
    assert sorted(model["name"] for model in declared) == MARTS
    for model in declared:
        described = [row for row in hive.run(f"DESCRIBE mart.{model['name']}") if row[0] and not row[0].startswith("#")]
        columns = [(column["name"], column["data_type"], column["description"]) for column in model["columns"]]
        assert described[: len(columns)] == columns


def test_models_give_what_their_unit_tests_expect() -> None:
    declared = yaml.safe_load((ROOT / "hive" / "mart" / "models" / "unit_tests.yml").read_text())["unit_tests"]
    results = marts.results_of("test", "--select", "test_type:unit")["results"]
    assert {one["unique_id"].rpartition(".")[2]: one["message"] for one in results if one["status"] != "pass"} == {}
    assert len(results) == len(declared)


@pytest.mark.slow
def test_a_late_label_and_a_late_row_replace_their_days(hive: Session) -> None:
    before = snapshots(hive)
    marts.build(full=False)
    assert snapshots(hive) == before
    hive.run(f"INSERT INTO core.fraud_reports VALUES (4, TIMESTAMP '2026-03-18 12:00:00', true, 2, {NEVER})")
    hive.run(f"INSERT INTO core.transactions VALUES {transaction(6, 2, 2, 2, '60.00')}")
    marts.build(full=False)
    assert hive.run("SELECT recall, precision FROM mart.model_performance") == [(1.0, 1.0)]
    # The small ones have files of a month.
    assert newest_parts(hive, "scored_transactions", "transacted_on") == ["2026-03-02", "2026-03-10"]
    assert newest_parts(hive, "fraud_hourly", "transacted_on_month") == [str(months_since_1970(2026, 3))]
    hive.run("DELETE FROM core.transactions WHERE transaction_id = 6")
    marts.build(full=False)
    assert hive.run("SELECT count(*) FROM mart.fraud_daily WHERE transacted_on = DATE '2026-03-02'") == [(0,)]


def days(*of: str) -> frozenset[dt.date]:
    return frozenset(dt.date.fromisoformat(f"2026-{one}") for one in of)


def test_a_change_makes_its_days_candidates_no_others_and_a_full_rebuild_gives_the_same(hive: Session) -> None:
    def report(number: int) -> str:
        return f"({number}, TIMESTAMP '2026-03-21 12:00:00', true, 2, {NEVER})"

    def terminal(name: str, country: str) -> str:
        return f"(2, '{name}', '{country}', 'travel', {NEVER})"

    changes: dict[str, tuple[Callable[[], object], frozenset[dt.date]]] = {
        "an appended row": (
            lambda: hive.run(f"INSERT INTO core.transactions VALUES {transaction(20, 2, 2, 2, '60.00')}"), days("03-02")
        ),
        "a correction that moves a transaction to another day": (
            lambda: take(hive, "transactions", 1, transaction(3, 11, 2, 1, "30.00")), days("03-10", "03-11")
        ),
        "a deletion": (lambda: sweep(hive, "transactions", 2, 90), days("02-20")),
        "a late label": (lambda: take(hive, "fraud_reports", 1, report(3)), days("03-11")),
        "a withdrawn label": (lambda: sweep(hive, "fraud_reports", 2, 2), days("03-10")),
        "a label before its transaction": (lambda: take(hive, "fraud_reports", 3, report(21)), days()),
        "the transaction": (lambda: take(hive, "transactions", 3, transaction(21, 13, 2, 1, "5.00")), days("03-13")),
        "a prediction made when the transaction was of another day": (
            lambda: hive.run(f"INSERT INTO mart.predictions VALUES {prediction(20, 3, 2, 2, '60.00', 0.6)}"), days("03-02", "03-03")
        ),
        "a terminal's country": (lambda: take(hive, "terminals", 1, terminal("Airline", "DE")), days("03-02", "03-10", "03-20")),
        "a terminal's name": (lambda: take(hive, "terminals", 2, terminal("Airways", "DE")), days()),
        "a customer whom nobody knew": (lambda: take(hive, "customers", 1, f"(9, 'BE', {NEVER})"), days()),
        "compaction": (
            lambda: [
                hive.run(f"CALL system.rewrite_data_files(table => '{table}', options => map('rewrite-all', 'true'))")
                for table in ("core.transactions", "mart.scored_transactions")
            ],
            days(),
        ),
        "a later now": (lambda: take(hive, "transactions", 4, transaction(22, 24, 1, 1, "7.00")), days("03-24")),
    }  # fmt: skip
    before = marts.see(hive)
    for what, (change, expected) in changes.items():
        change()
        now = marts.see(hive)
        found = marts.candidates(hive, before, now)
        assert found.days == expected, what
        # Labels of a day are judged when the last of them has had its seven days, a report from its time on.
        labelled = days("03-11", "03-13", "03-14", "03-15", "03-16") if what == "a later now" else days()
        assert found.labels == expected | labelled, what
        before = now
    built = marts.build(full=False)
    assert built.days == frozenset().union(*(expected for _, expected in changes.values()))
    compared = (settings().data_dir / "logs" / "dbt.log").read_text().rpartition("Running with dbt")[2]
    assert "from scored_transactions__new where (transacted_on between date '2026-02-20' and date '2026-02-20' or " in compared
    incremental = content(hive)
    marts.build(full=True)
    assert content(hive) == incremental


@pytest.mark.slow
def test_what_cannot_be_told_is_compared_whole(hive: Session) -> None:
    marts.build(full=False)
    sound, before = content(hive), marts.see(hive)
    hive.run(f"INSERT INTO core.transactions VALUES {transaction(30, 5, 1, 1, '1.00')}")
    take(hive, "transactions", 5, transaction(30, 6, 1, 1, "1.00"))
    taken = marts.see(hive)
    assert marts.candidates(hive, before, taken).days == days("03-05", "03-06")
    hive.run("ALTER TABLE raw.transactions DROP PARTITION (batch = 5)")
    assert marts.candidates(hive, before, taken).days is None
    sweep(hive, "transactions", 6, 30)
    hive.run("CALL system.expire_snapshots(table => 'core.transactions', older_than => TIMESTAMP '2100-01-01', retain_last => 1)")
    assert marts.candidates(hive, before, marts.see(hive)).days is None
    hive.run("DELETE FROM mart.fraud_daily WHERE country = 'BE'")
    assert marts.build(full=False).days is None
    assert content(hive) == sound
    # And what was seen then is noted.
    assert marts.build(full=False).days == days()


@pytest.mark.slow
@pytest.mark.parametrize("mart", ["scored_transactions", "fraud_daily", "terminal_risk"])
def test_a_run_killed_after_a_mart_is_made_good_by_the_next(hive: Session, mart: str) -> None:
    before = snapshots(hive)[mart]
    number = {"scored_transactions": 7, "fraud_daily": 8, "terminal_risk": 9}[mart]
    hive.run(f"INSERT INTO core.transactions VALUES {transaction(number, 10, 2, 1, '70.00')}")
    process = subprocess.Popen([sys.executable, "-m", "ml.marts"], cwd=ROOT, env=os.environ, start_new_session=True)
    until = time.monotonic() + 120
    while snapshots(hive)[mart] == before:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    marts.build(full=False)
    incremental = content(hive)
    marts.build(full=True)
    assert content(hive) == incremental


@pytest.mark.slow
def test_a_run_killed_before_it_noted_what_it_saw_leaves_all_days_to_the_next(hive: Session) -> None:
    marts.build(full=False)
    hive.run(f"INSERT INTO core.transactions VALUES {transaction(40, 10, 2, 1, '70.00')}")
    before = marts.noted(hive)
    killed_at(Step("ml.marts:note", "before"), "from ml import marts; marts.build(full=False)")
    assert marts.noted(hive) == before
    assert marts.build(full=False).days is None
    incremental = content(hive)
    marts.build(full=True)
    assert content(hive) == incremental


def test_broken_data_fails_its_checks_stops_the_pipeline_and_is_told(
    hive: Session, got: Http, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = {"channels": {"cases": {"kind": "webhook", "url": got.url}}}
    (tmp_path / "notify.yaml").write_text(yaml.safe_dump(channels))
    monkeypatch.setattr(settings(), "notify_file", tmp_path / "notify.yaml")
    # What failed today is not told again.
    rows("TRUNCATE ops.checks", role="etl", dbname="warehouse")
    many = (
        "SELECT 1000 + id, 1, 1, TIMESTAMP '{at}', 9.00, 'EUR', '{channel}', NULL, TIMESTAMP '2026-01-01', 'batch' "
        "FROM range({first}, {last})"
    )
    # Value, key, distribution and volume, schema: one of each.
    hive.run(f"INSERT INTO core.transactions VALUES {transaction(5, 20, 1, 2, '-1.00')}")
    hive.run(f"INSERT INTO core.transactions {many.format(at='2026-03-06', channel='chip', first=0, last=1200)}")
    hive.run(f"INSERT INTO core.transactions {many.format(at='2026-03-19', channel='online', first=1200, last=2400)}")
    hive.run(f"INSERT INTO core.transactions {many.format(at='2026-03-12', channel='chip', first=2400, last=2410)}")
    # From the future: it moves the windows of the others nowhere.
    hive.run(f"INSERT INTO core.transactions VALUES {transaction(9999, 20, 1, 1, '1.00').replace('2026-03-20', '2100-01-01')}")
    hive.run("ALTER TABLE core.terminals RENAME COLUMN category TO kind")
    try:
        with pytest.raises(quality.QualityError, match="checks of data failed"):
            quality.check("sources")
    finally:
        hive.run("ALTER TABLE core.terminals RENAME COLUMN kind TO category")
        hive.run("DELETE FROM core.transactions WHERE transaction_id >= 1000 OR amount < 0")
    ((_, body),) = got.requests
    failed = json.loads(body)["notice"]["failed_checks"]
    told = {(one["table_name"], one["check_name"].split("_core_")[0]): one for one in failed}
    severities = {key: one["severity"] for key, one in told.items()}
    assert severities[("core.terminals", "source_declared_columns")] == "error"
    assert severities[("core.transactions", "source_in_range")] == "error"
    assert severities[("core.transactions", "source_unique")] == "error"
    assert severities[("core.transactions", "source_stable_distribution")] == "warn"
    assert severities[("core.transactions", "source_volume_like_weeks_before")] == "warn"
    # The newest transaction is of March.
    assert severities[("core.transactions", "source_newest_within")] == "warn"
    with opened("etl", "warehouse") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM ops.checks WHERE NOT is_passed")
        assert cursor.fetchone() == (len(failed),)


def failed_checks() -> set[tuple]:
    """Checks of severity error that did not hold in the newest run of checks."""
    newest = "SELECT run_id FROM ops.checks ORDER BY checked_at DESC LIMIT 1"
    statement = f"SELECT table_name, check_name FROM ops.checks WHERE run_id = ({newest}) AND NOT is_passed AND severity = 'error'"
    return set(rows(statement, role="etl", dbname="warehouse"))


def test_marts_that_do_not_add_up_and_loads_that_have_stopped_fail_their_checks(hive: Session) -> None:
    for verb in ("load", "extract", "transform"):
        with ops.run(verb):
            pass
    rows("UPDATE ops.runs SET started_at = started_at - interval '27 hours', ended_at = ended_at - interval '27 hours' "
         "WHERE verb IN ('load', 'extract')", role="etl", dbname="warehouse")  # fmt: skip
    # Of these none brings data into core: what is extracted after the last transform is not there yet.
    for verb in ("transform", "extract deletes", "extract", "score"):
        with ops.run(verb):
            pass
    hive.run("DELETE FROM mart.scored_transactions WHERE transaction_id = 1")
    hive.run("INSERT INTO mart.dates SELECT * FROM mart.dates WHERE dated_on = DATE '2026-03-10'")
    try:
        with pytest.raises(quality.QualityError, match="8 checks of data failed"):
            quality.check("marts")
    finally:
        marts.build(full=False)
    assert failed_checks() == {
        *((table, "freshness") for table in TABLES),
        ("mart.scored_transactions", "holds_core_transactions_scored_transactions_"),
        ("mart.fraud_daily", "sums_scored_transactions_fraud_daily_"),
        ("mart.fraud_hourly", "sums_scored_transactions_fraud_hourly_"),
        ("mart.dates", "unique_dates_dated_on"),
    }


@pytest.mark.slow
def test_a_day_and_a_report_count_from_when_now_has_reached_them(hive: Session) -> None:
    # 'Now' is the 24th at noon: the last label of the 17th is not final, and the report of the 12th's transaction is of the evening.
    for number, day, probability in ((12, 12, 0.1), (10, 17, 0.9), (13, 24, 0.1)):
        hive.run(f"INSERT INTO core.transactions VALUES {transaction(number, day, 2, 1, '80.00')}")
        hive.run(f"INSERT INTO mart.predictions VALUES {prediction(number, day, 2, 1, '80.00', probability)}")
    hive.run(f"INSERT INTO core.fraud_reports VALUES (12, TIMESTAMP '2026-03-24 18:00:00', true, 1, {NEVER})")
    marts.build(full=False)
    known = (
        "SELECT CAST(transacted_on AS string), missed_frauds FROM mart.model_performance "
        "WHERE transacted_on IN (DATE '2026-03-12', DATE '2026-03-17') ORDER BY transacted_on"
    )
    assert hive.run(known) == [("2026-03-12", 0)]
    hive.run(f"INSERT INTO core.transactions VALUES {transaction(11, 25, 2, 2, '90.00')}")
    marts.build(full=False)
    assert hive.run(known) == [("2026-03-12", 1), ("2026-03-17", 0)]


@pytest.mark.slow
def test_the_page_of_tables_has_their_columns_and_their_lineage() -> None:
    told = subprocess.run([ROOT / "bash" / "marts.sh", "docs"], env=os.environ | {"WAREHOUSE_VENV": sys.prefix}, capture_output=True,
                          text=True, check=True).stdout  # fmt: skip
    page = Path(told.split()[-1]).read_text()
    assert "Frauds that were not predicted or not scored" in page
    assert '"model.card_fraud.fraud_daily": ["model.card_fraud.scored_transactions"]' in page


def test_sound_data_passes_every_check_of_severity_error(hive: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings(), "as_of", "2026-03-20T12:30:00")
    # What was never loaded or scored is not fresh.
    for verb in ("extract", "transform", "score"):
        with ops.run(verb):
            pass
    found = quality.check("sources")
    assert {one.table_name for one in found} == TABLES.keys()
    found += quality.check("marts")
    assert [one for one in found if one.severity == "error" and not one.is_passed] == []
    assert [one.is_passed for one in found if "newest_within" in one.check_name] == [True]
