"""Training, registry, scoring and report on the real servers, on a small bank whose features are made here."""

from __future__ import annotations

import datetime as dt
import functools
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from etl import ops, sql_server
from etl.errors import BusyError
from etl.settings import ROOT, settings
from etl.sql_server import Session
from etl.stack import postgres
from ml import alerts, branch, datasets, estimators, models, params, registry, report, score, train
from ml.features import FEATURES, features
from ml.params import Declaration
from ml.registry import NoChampionError, Version
from ml.score import FeaturesDifferError
from ml.spark import spark_session
from tests.kills import Step, killed_at

DAY = 86_400_000_000
FIRST = int(np.datetime64("2018-07-01", "us").astype(np.int64))
DAYS = 30
CUSTOMERS, TERMINALS, PER_DAY = 60, 30, 80


@pytest.fixture(scope="module")
def spark(stack: None) -> SparkSession:
    return spark_session("test")


def drawn() -> tuple[pa.Table, pa.Table]:
    """A month of a small bank; frauds are large amounts, and all amounts at one terminal."""
    random = np.random.default_rng(3)
    rows = DAYS * PER_DAY
    at = np.sort(FIRST + random.integers(0, DAYS * DAY, rows))
    customer = random.integers(1, CUSTOMERS + 1, rows)
    terminal = random.integers(1, TERMINALS + 1, rows)
    cents = random.integers(500, 10_000, rows)
    large = random.random(rows) < 0.02
    cents[large] += 20_000
    is_fraud = large | (terminal == 5) & (random.random(rows) < 0.8)
    ids = np.arange(1, rows + 1)
    transactions = pa.table(
        {"transaction_id": ids, "customer_id": customer, "terminal_id": terminal, "transacted_at": at, "amount_cents": cents}
    )
    frauds = np.flatnonzero(is_fraud)
    reports = pa.table({"transaction_id": ids[frauds], "reported_at": at[frauds] + 7 * DAY, "is_fraud": np.ones(len(frauds), bool)})
    return transactions, reports


def stored_features(transactions: pa.Table, reports: pa.Table) -> pa.Table:
    made = features(transactions, reports, 0, 2**62)
    columns = {name: made[name] for name in made.column_names}
    columns["transacted_at"] = made["transacted_at"].cast(pa.timestamp("us", "UTC"))
    columns["amount"] = made["amount"].cast(pa.decimal128(12, 2))
    keys = ("transaction_id", "customer_id", "terminal_id", "transacted_at", "amount")
    return pa.table({name: columns[name] for name in (*keys, *(feature.name for feature in FEATURES if feature.name != "amount"))})


def put(spark: SparkSession, table: str, rows: pa.Table) -> None:
    """Replace a table, or add to it: `table` or `+table`."""
    from pyspark.sql.functions import partitioning

    writer = spark.createDataFrame(rows).writeTo(table.lstrip("+"))
    if table.startswith("+"):
        writer.append()
    elif "transacted_at" in rows.column_names:
        writer.using("iceberg").partitionedBy(partitioning.days("transacted_at")).createOrReplace()
    else:
        writer.using("iceberg").createOrReplace()


BANK = ("core.transactions", "core.fraud_reports", "feature.transactions")
made: dict[str, str] = {}
"""Metadata files of the bank's tables as they were made: a test that changes one has another."""


@pytest.fixture
def bank(spark: SparkSession, hive: Session) -> pa.Table:
    """Tables of the small bank, no model and no prediction; gives the features."""
    for table in (score.TABLE, alerts.TABLE):
        hive.run(f"DROP TABLE IF EXISTS {table}")
    for found in registry.client().search_registered_models():
        registry.client().delete_registered_model(found.name)
    rows = bank_rows()
    present = metadata_files(hive) if made else {}
    for table in BANK:
        if table not in made or made[table] != present[table]:
            hive.run(f"DROP TABLE IF EXISTS {table}")
            put(spark, table, rows[table])
    if not made or made != present:
        made.update(metadata_files(hive))
    return rows["feature.transactions"]


@pytest.fixture(scope="module", autouse=True)
def cleared(stack: None) -> Iterator[None]:
    yield
    with sql_server.session() as hive:
        for table in (score.TABLE, alerts.TABLE, *BANK):
            hive.run(f"DROP TABLE IF EXISTS {table}")
    made.clear()


@functools.cache
def bank_rows() -> dict[str, pa.Table]:
    transactions, reports = drawn()
    return {
        "core.transactions": transactions.set_column(3, "transacted_at", transactions["transacted_at"].cast(pa.timestamp("us", "UTC"))),
        "core.fraud_reports": reports.set_column(1, "reported_at", reports["reported_at"].cast(pa.timestamp("us", "UTC"))),
        "feature.transactions": stored_features(transactions, reports),
    }


def metadata_files(hive: Session) -> dict[str, str]:
    newest = (f"(SELECT '{table}', file FROM {table}.metadata_log_entries ORDER BY timestamp DESC LIMIT 1)" for table in BANK)
    return dict(hive.run(" UNION ALL ".join(newest)))


trained: list[tuple[dict[str, bytes], Version]] = []


@pytest.fixture
def champion(bank: pa.Table, run: ops.Run) -> Version:
    """A small model that is the champion; trained once, registered anew for each test."""
    if not trained:
        (version,), _, _ = train.train(["xgboost"], "", run)
        trained.append((registry.read_files(version), version))
        return version
    files, first = trained[0]
    version = registry.register(first.run_id, files, first.tags)
    registry.promote(version)
    return version


def predictions(hive: Session) -> list[tuple]:
    return sorted(hive.run("SELECT transaction_id, model_version, fraud_probability, risk_level, scored_at FROM mart.predictions"))


SMALL = {
    "xgboost": Declaration(kind="xgboost", rounds=20, parameters={"max_depth": 3, "subsample": 0.7, "base_score": 0.5}),
    "xgboost on two workers": Declaration(kind="xgboost", rounds=20, workers=2, parameters={"max_depth": 3, "base_score": 0.5}),
    "random forest": Declaration(kind="random_forest", parameters={"numTrees": 6, "maxDepth": 6, "featureSubsetStrategy": "sqrt"}),
    "gradient-boosted trees": Declaration(kind="gradient_boosted_trees", parameters={"maxIter": 4, "maxDepth": 4}),
    "logistic regression": Declaration(kind="logistic_regression", fraud_weight="balanced", parameters={"regParam": 0.001, "maxIter": 20}),
}


def training_rows(spark: SparkSession, names: tuple[str, ...]):
    as_of = datasets.moment(spark)
    week = datasets.newest_week(as_of, params.params().windows)
    return datasets.labelled(spark, datasets.current_snapshots(spark), names, (week.train_from, week.test_to), as_of)


@dataclass(frozen=True)
class Fitted:
    """A model's files; of an MLlib one, what MLlib itself says of the training rows."""

    files: dict[str, bytes]
    told: pa.Table | None


fitted_once: dict[str, Fitted] = {}


def fitted(name: str, spark: SparkSession) -> Fitted:
    """Fit a small model on the bank, once for all tests."""
    if name not in fitted_once:
        from pyspark.ml.feature import VectorAssembler
        from pyspark.ml.functions import vector_to_array

        declared = SMALL[name]
        columns = declared.feature_names()
        rows = training_rows(spark, columns)
        kept = []
        saved = estimators._saved
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(estimators, "_saved", lambda model: (kept.append(model), saved(model))[1])
            files = models.describe(columns, {"part": estimators.fit(rows, columns, declared, 11, 2)}, {})
        told = None
        if kept:
            assembled = VectorAssembler(inputCols=list(columns), outputCol=estimators.VECTOR).transform(rows)
            theirs = vector_to_array("probability")[1].alias("theirs")
            told = kept[0].transform(assembled).select("transaction_id", theirs, *columns).toArrow()
        fitted_once[name] = Fitted(files, told)
    return fitted_once[name]


@pytest.mark.parametrize("name", [name if name == "xgboost" else pytest.param(name, marks=pytest.mark.slow) for name in SMALL])
def test_the_same_seed_gives_the_same_bits(bank: pa.Table, spark: SparkSession, name: str):
    declared = SMALL[name]
    columns = declared.feature_names()
    matrix = models.matrix({column: bank[column].cast(pa.float64()).to_numpy() for column in columns}, columns)
    # The second time the rows come from other tasks, in another order.
    rows = training_rows(spark, columns).repartition(7)
    again = models.describe(columns, {"part": estimators.fit(rows, columns, declared, 11, 2)}, {})
    scores = [models.load(files).probability(matrix) for files in (fitted(name, spark).files, again)]
    assert np.array_equal(*scores)
    assert scores[0].max() > scores[0].min()


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("gradient-boosted trees", "logistic regression")]


@pytest.mark.parametrize("name", ["random forest", *OTHERS])
def test_the_engine_predicts_what_mllib_predicts(bank: pa.Table, spark: SparkSession, name: str):
    columns = SMALL[name].feature_names()
    files, told = fitted(name, spark).files, fitted(name, spark).told
    assert told is not None
    matrix = models.matrix({column: told[column].to_numpy() for column in columns}, columns)
    assert models.load(files).probability(matrix) == pytest.approx(told["theirs"].to_numpy(), abs=2e-6)


def test_a_model_says_where_it_comes_from_and_only_a_better_one_becomes_champion(bank: pa.Table, spark: SparkSession, run: ops.Run):
    (first,), is_promoted, why = train.train(["xgboost"], "", run)
    assert is_promoted
    assert "no champion" in why
    assert registry.required_champion() == first
    assert first.tags["model"] == "xgboost"
    assert first.tags["snapshot_features"] == str(datasets.current_snapshots(spark).features)
    assert first.tags["run"] == run.run_id
    assert (first.tags["train_from"], first.tags["test_from"]) == ("2018-07-02", "2018-07-16")
    assert set(first.tags) >= {"features", "params", "seed", "git_commit", "snapshot_reports", "snapshot_transactions", "files_sha256"}
    # The same again is as good, not better.
    (second,), is_promoted, why = train.train(["xgboost"], "", run)
    assert second.version == first.version + 1
    assert not is_promoted
    assert "is not above" in why
    assert registry.required_champion() == first
    one, other = (models.load(registry.read_files(version)) for version in (first, second))
    matrix = models.matrix({name: bank[name].cast(pa.float64()).to_numpy() for name in one.features}, one.features)
    assert np.array_equal(one.probability(matrix), other.probability(matrix))


def test_reports_that_come_after_as_of_are_not_seen(bank: pa.Table, spark: SparkSession):
    snapshots = datasets.current_snapshots(spark)
    days = (FIRST // DAY, FIRST // DAY + 10)
    known = [
        datasets.labelled(spark, snapshots, (), days, dt.datetime(2018, 7, day, tzinfo=dt.UTC)).agg({"is_fraud": "sum"}).first()[0]
        for day in (8, 12, 30)
    ]
    assert known[0] == 0
    assert 0 < known[1] < known[2]


def test_model_files_may_lie_in_hdfs(bank: pa.Table, run: ops.Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(settings(), "models_path", f"{settings().hdfs_uri}/user/{settings().hdfs_user}/models-test")
    monkeypatch.setattr(params.params(), "__dict__", {**params.params().__dict__, "name": "card_fraud_in_hdfs"})
    (version,), _, _ = train.train(["xgboost"], "", run)
    assert version.source.startswith("hdfs://")
    assert models.load(registry.read_files(version)).features == SMALL["xgboost"].feature_names()


def test_without_a_champion_scoring_is_refused_and_nothing_is_written(bank: pa.Table, hive: Session, run: ops.Run):
    with pytest.raises(NoChampionError, match=r"bash/train\.sh"):
        score.score(run)
    assert not score.exists(hive)


def test_each_transaction_is_scored_once_by_the_champion_of_its_time(
    bank: pa.Table, champion: Version, spark: SparkSession, hive: Session, run: ops.Run
):
    version = champion
    total = len(bank)
    assert score.score(run, as_of="2018-07-20") == int(np.sum(bank["transacted_at"].cast(pa.int64()).to_numpy() <= FIRST + 19 * DAY))
    score.score(run)
    first = predictions(hive)
    assert [row[0] for row in first] == list(range(1, total + 1))
    assert {row[1] for row in first} == {version.version}
    model = models.load(registry.read_files(version))
    matrix = models.matrix({name: bank[name].cast(pa.float64()).to_numpy() for name in model.features}, model.features)
    by_id = dict(zip(bank["transaction_id"].to_pylist(), model.probability(matrix), strict=True))
    assert all(by_id[row[0]] == row[2] for row in first)
    # Twice changes nothing, whether little or everything is looked at.
    assert score.score(run) == 0
    assert score.score(run, is_full=True) == 0
    assert predictions(hive) == first
    # New features of scored rows, a row that moved to another day, and a deleted one: predictions stay as they are.
    hive.run("UPDATE feature.transactions SET amount = amount + 1000 WHERE transaction_id <= 100")
    hive.run("UPDATE feature.transactions SET transacted_at = transacted_at + INTERVAL 3 DAYS WHERE transaction_id = 50")
    hive.run("DELETE FROM feature.transactions WHERE transaction_id = 60")
    assert score.score(run) == 0
    # New rows are scored, and nothing else, by whoever is champion now.
    registry.promote(registry.register(version.run_id, registry.read_files(version), version.tags))
    late = bank.slice(0, 5).set_column(0, "transaction_id", pa.array(range(total + 1, total + 6)))
    put(spark, "+feature.transactions", late)
    assert score.score(run) == 5
    after = predictions(hive)
    assert after[:total] == first
    assert {row[1] for row in after[total:]} == {version.version + 1}
    reasons = hive.run("SELECT min(size(reasons)), max(size(reasons)) FROM mart.predictions")
    assert reasons == [(3, 3)]


STEPS = {
    "before the branch": Step("etl.sql_server:Session.run", "before", "OR REPLACE BRANCH"),
    "while the server writes": Step("pyspark.sql.connect.readwriter:DataFrameWriterV2.append", 0.4),
    "after the write, before publishing": Step("etl.sql_server:Session.run", "before", "fast_forward"),
    "after publishing": Step("etl.sql_server:Session.run", "after", "fast_forward"),
}
WORK = """
    from etl import ops
    from ml import score
    with ops.run("test") as run:
        score.score(run)
"""


@pytest.mark.parametrize("step", [step if "write" in step else pytest.param(step, marks=pytest.mark.slow) for step in STEPS])
def test_a_run_killed_at_any_step_leaves_all_or_nothing(bank: pa.Table, champion: Version, hive: Session, run: ops.Run, step: str):
    killed_at(STEPS[step], WORK)
    published = len(bank) if step == "after publishing" else 0
    assert len(predictions(hive) if score.exists(hive) else []) == published
    # The server may still be at work for the one that was killed.
    assert score.score(run) == len(bank) - published
    after = predictions(hive)
    assert [row[0] for row in after] == list(range(1, len(bank) + 1))
    assert score.score(run) == 0
    assert predictions(hive) == after


def test_what_a_killed_run_still_writes_is_never_read(bank: pa.Table, champion: Version, spark: SparkSession, hive: Session, run: ops.Run):
    half = bank.slice(0, len(bank) // 2)
    put(spark, "feature.transactions", half)
    score.score(run)
    put(spark, "+feature.transactions", bank.slice(len(bank) // 2))
    before = predictions(hive)
    # A run that died after it wrote, before it published.
    left = f"{branch.PREFIX}_of_a_dead_run"
    hive.run(f"ALTER TABLE {score.TABLE} CREATE BRANCH {left}")
    hive.run(f"INSERT INTO {score.TABLE}.branch_{left} SELECT * FROM {score.TABLE} LIMIT 7")
    assert predictions(hive) == before
    original = Session.run

    def beside(session: Session, statement: str) -> list[tuple]:
        if f"fast_forward('{score.TABLE}'" in statement:
            # The server goes on for the dead run, whose branch is gone.
            original(hive, f"ALTER TABLE {score.TABLE} CREATE BRANCH {left}")
            original(hive, f"INSERT INTO {score.TABLE}.branch_{left} SELECT * FROM {score.TABLE} LIMIT 7")
        return original(session, statement)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "run", beside)
        assert score.score(run) == len(bank) - len(half)
    after = predictions(hive)
    assert [row[0] for row in after] == list(range(1, len(bank) + 1))
    put(spark, "+feature.transactions", bank.slice(0, 1).set_column(0, "transaction_id", pa.array([len(bank) + 1])))
    assert score.score(run) == 1
    assert predictions(hive)[:-1] == after
    assert hive.run(f"SELECT name FROM {score.TABLE}.refs") == [("main",)]


def decided(hive: Session, where: str) -> list[tuple]:
    return sorted(
        hive.run(f"SELECT transaction_id, customer_id, amount, fraud_probability, model_version, reasons, scored_at FROM {where}")
    )


def high(hive: Session) -> list[tuple]:
    return decided(hive, f"{score.TABLE} WHERE risk_level = 'HIGH'")


def raised(hive: Session) -> list[tuple]:
    return decided(hive, alerts.TABLE)


def test_each_prediction_of_high_risk_has_one_alert(bank: pa.Table, champion: Version, spark: SparkSession, hive: Session, run: ops.Run):
    put(spark, "feature.transactions", bank.slice(0, len(bank) - 200))
    put(spark, "core.transactions", with_details(bank_rows()["core.transactions"]))
    score.score(run)
    first = high(hive)
    assert 0 < len(first) < len(bank) / 2
    assert raised(hive) == first
    score.score(run)
    assert raised(hive) == first
    # The last one of the stream, which tells of it before it is a prediction.
    hive.run(f"UPDATE {alerts.TABLE} SET lane = 'stream' WHERE transaction_id = {first[-1][0]}")
    put(spark, "+feature.transactions", bank.slice(len(bank) - 200))
    score.score(run, is_full=True)
    assert raised(hive) == high(hive)
    assert len(high(hive)) > len(first)
    lanes = hive.run(f"SELECT lane, currency, channel, device, count(*) FROM {alerts.TABLE} GROUP BY ALL ORDER BY lane")
    assert lanes == [("batch", "EUR", "chip", "card", len(high(hive)) - 1), ("stream", "EUR", "chip", "card", 1)]
    assert hive.run(f"SELECT name FROM {alerts.TABLE}.refs") == [("main",)]


def with_details(transactions: pa.Table) -> pa.Table:
    for name, value in {"currency": "EUR", "channel": "chip", "device": "card"}.items():
        transactions = transactions.append_column(name, pa.array([value] * len(transactions)))
    return transactions


FOLLOWING = {
    "before alerts follow": Step("ml.alerts:follow", "before"),
    "alerts have a branch": Step("etl.sql_server:Session.run", "after", f"ALTER TABLE {alerts.TABLE} CREATE OR REPLACE BRANCH"),
    "alerts are on the branch": Step("etl.sql_server:Session.run", "before", f"fast_forward('{alerts.TABLE}'"),
    "alerts are published": Step("etl.sql_server:Session.run", "after", f"fast_forward('{alerts.TABLE}'"),
}


@pytest.mark.parametrize("step", [step if "on the branch" in step else pytest.param(step, marks=pytest.mark.slow) for step in FOLLOWING])
def test_alerts_of_a_run_that_was_killed_come_with_the_next(bank: pa.Table, champion: Version, hive: Session, run: ops.Run, step: str):
    killed_at(FOLLOWING[step], WORK)
    assert len(predictions(hive)) == len(bank)
    assert score.score(run) == 0
    assert raised(hive) == high(hive) != []
    assert hive.run(f"SELECT name FROM {alerts.TABLE}.refs") == [("main",)]


def test_two_runs_at_once_the_second_names_the_first(bank: pa.Table, run: ops.Run):
    with ops.writer(score.TABLE, run), ops.run("score") as second, pytest.raises(BusyError, match=run.run_id):
        score.score(second)


def test_a_champion_of_other_features_is_refused_by_name(bank: pa.Table, champion: Version, hive: Session, run: ops.Run):
    hive.run("ALTER TABLE feature.transactions DROP COLUMN customer_history_90d")
    with pytest.raises(FeaturesDifferError, match="customer_history_90d"):
        score.score(run)
    assert not score.exists(hive)


def test_a_champion_with_more_features_widens_the_table(bank: pa.Table, champion: Version, hive: Session, run: ops.Run):
    score.ensure_table(hive, ("amount",))
    assert score.score(run) == len(bank)
    assert hive.run("SELECT count(features.customer_history_90d) FROM mart.predictions") == [(len(bank),)]


@pytest.mark.slow
def test_the_report_is_one_file_without_addresses_of_others(champion: Version, run: ops.Run, tmp_path):
    score.score(run)
    report.report(tmp_path / "index.html", "")
    page = (tmp_path / "index.html").read_text()
    for title in ("Precision and recall", "Daily card precision", "Calibration", "What the model looks at",
                  "Fraud by day", "Fraud by amount", "Fraud by terminal", "The riskiest transactions"):  # fmt: skip
        assert title in page
    assert page.count("<svg") == 7
    assert "src=" not in page
    assert "<link" not in page
    assert "url(http" not in page


@pytest.mark.slow
def test_spark_submit_runs_the_same_code_elsewhere(bank: pa.Table, champion: Version, hive: Session):
    told = subprocess.run(
        [ROOT / "bash" / "score.sh"], env={**os.environ, "WAREHOUSE_SPARK_MASTER": "local[2]"}, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr[-2000:]
    assert [row[0] for row in predictions(hive)] == list(range(1, len(bank) + 1))


@pytest.mark.parametrize("verb", ["score", *(pytest.param(verb, marks=pytest.mark.slow) for verb in ("train", "report", "evaluate"))])
def test_no_password_stands_in_what_a_verb_logs(champion: Version, verb: str):
    arguments = ["xgboost"] if verb == "evaluate" else []
    told = subprocess.run([ROOT / "bash" / f"{verb}.sh", *arguments], capture_output=True, text=True, check=False)
    secrets = [line.rsplit(":", 1)[1] for line in settings().passfile.read_text().splitlines()]
    assert len(secrets) == len(postgres.ROLES)
    assert told.returncode in (0, 3), told.stderr[-2000:]
    assert not [secret for secret in secrets if secret in told.stdout + told.stderr]
