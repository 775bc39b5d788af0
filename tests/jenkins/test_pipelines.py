"""Every pipeline really run on the local stack, by the runner in the place of Jenkins; what the warehouse then holds."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from etl import sql_server
from etl.settings import ROOT, settings
from etl.sql_server import Session
from ml import registry
from tests.jenkins import runner
from tests.jenkins.runner import Build
from tests.postgres import rows
from tests.stack.test_main_job import clear

pytestmark = [pytest.mark.stack, pytest.mark.slow]

TABLES = ["customers", "terminals", "transactions", "fraud_reports"]
Builder = Callable[..., Build]


def verb(*command: str | Path) -> None:
    subprocess.run([ROOT / "bash" / command[0], *command[1:]], env=runner.environment(), capture_output=True, check=True)


def hive(statement: str) -> list[tuple]:
    with sql_server.session() as session:
        return session.run(statement)


def count(table: str) -> int:
    return int(hive(f"SELECT count(*) FROM {table}")[0][0])


def in_source(table: str) -> int:
    return int(str(rows(f"SELECT count(*) FROM bank.{table}")[0][0]))


def published() -> list[tuple]:
    return rows("SELECT table_name, batch, kind FROM ops.batches WHERE state = 'published' ORDER BY 1, 2", role="etl", dbname="warehouse")


def empty(session: Session) -> None:
    """Leave no row, no prediction, no mart and no model."""
    clear(session)
    for row in session.run("SHOW TABLES IN mart"):
        session.run(f"DROP TABLE mart.{row[1]}")
    for found in registry.client().search_registered_models():
        registry.client().delete_registered_model(found.name)


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of 150 customers: 45 days, then two days as increments."""
    folder = tmp_path_factory.mktemp("bank")
    verb("simulate.sh", "--out", folder, "--days", "45", "--customers", "150", "--terminals", "80", "--incremental-days", "2")
    return folder


@pytest.fixture(scope="module")
def build(stack: None, csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    """Build a pipeline by its name and parameters; the warehouse is empty at first, and the source holds 45 days."""
    folder = tmp_path_factory.mktemp("jenkins")
    classes, checkout = runner.class_path(folder / "classes"), runner.workspace(folder / "workspace")
    # As Jenkins does: a copy of the file, of which only the credential tells.
    shutil.copy(settings().passfile, folder / "pgpass")
    (folder / "kubeconfig").touch()
    numbers = itertools.count(1)

    def one(name: str, **parameters: str) -> Build:
        number = next(numbers)
        archive = folder / f"archive-{number}"
        given = [f"credential:warehouse-pgpass={folder / 'pgpass'}", f"credential:kubeconfig={folder / 'kubeconfig'}"]
        given += [f"{parameter}={value}" for parameter, value in parameters.items()]
        ran = runner.java(classes, "Main", f"jenkins/{name}.Jenkinsfile", checkout, archive, str(number), *given, cwd=checkout)
        return Build(ran.returncode == 0, ran.stdout, archive)

    with sql_server.session() as session:
        empty(session)
        rows("TRUNCATE ops.runs CASCADE", role="etl", dbname="warehouse")
        verb("load_csv.sh", "full", *sorted((csv / "full").glob("*.csv")))
        yield one
        empty(session)


@pytest.fixture(scope="module")
def loaded(build: Builder) -> Build:
    return build("full_load")


def succeeded(one: Build) -> None:
    assert one.is_success, one.console
    assert set(one.stages.values()) == {"SUCCESS"}


def test_full_load_publishes_compares_and_builds_features(loaded: Build):
    succeeded(loaded)
    assert list(loaded.stages) == ["Preview", "Load", "Reconcile", "Quality", "Features"]
    assert published() == sorted((table, 1, "full") for table in TABLES)
    assert all(count(f"core.{table}") == in_source(table) > 0 for table in TABLES)
    assert count("feature.transactions") == in_source("transactions")
    compared = rows("SELECT table_name, is_equal FROM ops.reconciliations WHERE part = 'all'", role="etl", dbname="warehouse")
    assert sorted(compared) == sorted((table, True) for table in TABLES)
    assert "transactions: equal; " in (loaded.archive / "reports" / "Reconcile.log").read_text()


def test_dry_run_shows_how_far_each_table_has_come_and_changes_nothing(loaded: Build, build: Builder):
    before = published()
    one = build("full_load", TABLES="transactions", DRY_RUN="true")
    succeeded(one)
    assert "left out (a dry run): bash/load.sh full transactions" in one.console
    assert "newest batch" in (one.archive / "reports" / "Preview.log").read_text()
    assert published() == before


def test_incremental_load_takes_what_is_new_and_only_that(loaded: Build, build: Builder, csv: Path):
    before = count("core.transactions")
    verb("load_csv.sh", "incremental", *sorted((csv / "incremental").glob("*/*.csv")))
    succeeded(build("incremental_load"))
    assert [entry for entry in published() if entry[1] == 2] == sorted((table, 2, "incremental") for table in TABLES)
    assert count("core.transactions") == count("feature.transactions") == in_source("transactions") > before
    newest = published()
    succeeded(build("incremental_load"))
    assert published() == newest


def test_a_table_is_rewound_and_read_again_by_the_same_build(loaded: Build, build: Builder):
    one = build("incremental_load", TABLES="terminals", BATCH="1")
    succeeded(one)
    assert "terminals: 1 batches dropped, 1 is the newest" in one.console
    # A number is never used twice: core holds the second batch.
    assert [entry for entry in published() if entry[0] == "terminals"] == [("terminals", 1, "full"), ("terminals", 3, "incremental")]
    assert count("core.terminals") == in_source("terminals")


def test_a_stage_that_fails_is_named_with_its_own_sentence_and_leaves_the_tables_as_they_were(loaded: Build, build: Builder):
    before = published()
    rows("ALTER TABLE bank.transactions DISABLE TRIGGER set_updated_at")
    rows("INSERT INTO bank.customers (customer_id, customer_name, email, country) VALUES (999001, 'n', 'n@x.org', 'DE')")
    try:
        one = build("incremental_load")
    finally:
        rows("ALTER TABLE bank.transactions ENABLE ALWAYS TRIGGER set_updated_at")
    assert not one.is_success
    assert list(one.stages.values()) == ["SUCCESS", "SUCCESS", "FAILURE", *["NOT_BUILT"] * 4]
    assert one.failure.startswith("stage Load, bash/load.sh: exit code 3: error: the trigger that writes bank.transactions.updated_at")
    # The last that the console shows, before the stages' results; and in the archive, with the stage's log.
    told = one.console.split("[Pipeline] post unsuccessful")[1]
    assert one.failure in told
    assert "Finished: FAILURE" in told
    assert one.failure.removeprefix("stage Load, bash/load.sh: exit code 3: ") in (one.archive / "reports" / "Load.log").read_text()
    assert one.console.count("script returned exit code 3") == 2, "a load is tried twice"
    assert published() == before
    # What was wrong is right again: the next build takes what waited.
    succeeded(build("incremental_load"))
    assert count("core.customers") == in_source("customers")


def test_a_parameter_that_would_be_a_command_stops_the_build_before_anything_runs(loaded: Build, build: Builder, tmp_path: Path):
    victim = tmp_path / "victim"
    victim.touch()
    one = build("full_load", TABLES=f"transactions; rm {victim}")
    assert list(one.stages.values()) == ["FAILURE", *["NOT_BUILT"] * 4]
    assert one.failure.startswith("stage Preview, bash/extract.sh: error: parameter TABLES is ")
    assert victim.exists()


def test_training_makes_a_champion_whose_report_is_archived_and_the_next_load_scores(loaded: Build, build: Builder):
    one = build("train_model", MODELS="xgboost")
    succeeded(one)
    assert "is the champion" in (one.archive / "reports" / "Train.log").read_text()
    assert registry.champion().tags["features"]
    assert "<html" in (one.archive / "reports" / "champion.html").read_text()
    succeeded(build("incremental_load", SCORE="true"))
    assert count("mart.predictions") == count("core.transactions")


def test_marts_are_built_of_a_core_whose_checks_hold(loaded: Build, build: Builder):
    hive("ALTER TABLE core.terminals RENAME COLUMN category TO kind")
    try:
        one = build("marts")
    finally:
        hive("ALTER TABLE core.terminals RENAME COLUMN kind TO category")
    assert one.stages == {"Sources": "FAILURE", "Marts": "NOT_BUILT", "Quality": "NOT_BUILT"}
    assert one.failure.startswith("stage Sources, bash/quality.sh: exit code 1: error: ")
    succeeded(build("marts"))
    assert count("mart.scored_transactions") == count("core.transactions")


def test_maintenance_takes_deletions_out_of_core_and_reconciles(loaded: Build, build: Builder):
    rows("DELETE FROM bank.customers WHERE customer_id = 999001")
    succeeded(build("maintain"))
    assert count("core.customers") == in_source("customers")
    succeeded(build("reconcile", TABLES="customers transactions"))


def test_deployment_is_planned_from_its_parameters(build: Builder):
    one = build("deploy_model", OVERLAY="production", REGISTRY="images.example.org/fraud", MODEL_VERSION="7", DRY_RUN="true")
    succeeded(one)
    built = "bash/build_images.sh --push images.example.org/fraud --model-version 7 warehouse api model"
    assert f"left out (a dry run): {built}" in one.console
    assert "left out (a dry run): bash/deploy.sh production --model-version 7 --yes" in one.console


def test_training_is_planned_and_registers_nothing(loaded: Build, build: Builder):
    before = len(registry.client().search_model_versions())
    one = build("train_model", MODELS="logistic_regression", DRY_RUN="true")
    succeeded(one)
    assert "left out (a dry run): bash/train.sh logistic_regression" in one.console
    assert len(registry.client().search_model_versions()) == before
