"""What a CronJob does to scoring: two Jobs at once, none for a day, one killed half-way, an old one still running.

Whatever happened, `mart.predictions` ends as after undisturbed runs, row for row, but for the time of scoring.
"""

from __future__ import annotations

import itertools
import subprocess

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from etl import ops
from etl.databases import opened
from etl.settings import ROOT
from etl.sql_server import Session
from ml import score
from ml.registry import Version
from tests.kills import Step, held_at, killed_at
from tests.stack.test_train_score import DAY, DAYS, FIRST, STEPS, bank, champion, cleared, put, spark

__all__ = ["bank", "champion", "cleared", "spark"]

JOB = """
    import sys
    from etl.log import run_main
    from ml import score
    sys.argv = ["score"]
    run_main(score.main)
"""
WRITTEN = Step("etl.sql_server:Session.run", "before", "parent_id")
LAST_MOMENT = STEPS["after the write, before publishing"]


def job() -> subprocess.Popen[str]:
    return subprocess.Popen([ROOT / "bash" / "score.sh"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(job: subprocess.Popen[str]) -> int:
    """Wait for a Job; returns its exit code, which is one of those that bash/score.sh documents."""
    _, errors = job.communicate(timeout=180)
    assert job.returncode in (0, 4), errors[-2000:]
    return job.returncode


def content(hive: Session) -> list[tuple]:
    return sorted(hive.run(f"SELECT * EXCEPT (scored_at) FROM {score.TABLE}"))


@pytest.fixture
def days(bank: pa.Table, champion: Version, spark: SparkSession) -> list[pa.Table]:
    """Features of 28 days, which are in the table, and of the two days after them, which are not yet."""
    at = bank["transacted_at"].cast(pa.int64()).to_numpy()
    bounds = [0, *(int((at < FIRST + day * DAY).sum()) for day in (DAYS - 2, DAYS - 1, DAYS))]
    parts = [bank.slice(first, last - first) for first, last in itertools.pairwise(bounds)]
    put(spark, "feature.transactions", parts[0])
    return parts


def publish(spark: SparkSession, part: pa.Table) -> None:
    put(spark, "+feature.transactions", part)


def undisturbed(days: list[pa.Table], spark: SparkSession, hive: Session, run: ops.Run) -> list[tuple]:
    """Let everything happen anew in its order, one Job after each day; returns the rows."""
    hive.run(f"DROP TABLE {score.TABLE}")
    put(spark, "feature.transactions", days[0])
    assert score.score(run) == len(days[0])
    for day in days[1:]:
        publish(spark, day)
        assert score.score(run) == len(day)
    rows = content(hive)
    assert [row[0] for row in rows] == list(range(1, sum(map(len, days)) + 1))
    return rows


def test_two_jobs_at_once(days: list[pa.Table], spark: SparkSession, hive: Session, run: ops.Run):
    score.score(run)
    publish(spark, pa.concat_tables(days[1:]))
    codes = [ended(one) for one in [job(), job()]]
    assert 0 in codes
    seen = content(hive)
    assert seen == undisturbed(days, spark, hive, run)


@pytest.mark.slow
def test_no_job_for_two_days_then_one_catches_up(days: list[pa.Table], spark: SparkSession, hive: Session, run: ops.Run):
    score.score(run)
    for day in days[1:]:
        publish(spark, day)
    assert ended(job()) == 0
    seen = content(hive)
    assert seen == undisturbed(days, spark, hive, run)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_job_killed_half_way_and_the_next_one(days: list[pa.Table], spark: SparkSession, hive: Session, run: ops.Run, step: str):
    score.score(run)
    before = content(hive)
    publish(spark, days[1])
    killed_at(STEPS[step], JOB)
    seen = content(hive)
    assert (seen == before) == (step != "after publishing")
    publish(spark, days[2])
    assert ended(job()) == 0
    seen = content(hive)
    assert seen == undisturbed(days, spark, hive, run)
    assert hive.run(f"SELECT name FROM {score.TABLE}.refs") == [("main",)]


@pytest.mark.slow
def test_an_old_job_that_still_runs_keeps_others_out(days: list[pa.Table], spark: SparkSession, hive: Session, run: ops.Run):
    score.score(run)
    publish(spark, days[1])
    with held_at(WRITTEN, JOB) as go_on:
        publish(spark, days[2])
        assert ended(job()) == 4
        assert go_on() == 0
    # What came while it ran is the next one's.
    assert ended(job()) == 0
    seen = content(hive)
    assert seen == undisturbed(days, spark, hive, run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "its_branch",
    ["was made anew by its write", *(pytest.param(what, marks=pytest.mark.slow) for what in ("is gone", "goes at the last moment"))],
)
def test_an_old_job_that_lost_its_lock_publishes_nothing(
    days: list[pa.Table], spark: SparkSession, hive: Session, run: ops.Run, its_branch: str
):
    score.score(run)
    publish(spark, days[1])
    with held_at(LAST_MOMENT if its_branch == "goes at the last moment" else WRITTEN, JOB) as go_on:
        publish(spark, days[2])
        with opened("postgres", "warehouse") as connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND granted")
            assert cursor.fetchone() == (1,)
        ((branch,),) = hive.run(f"SELECT name FROM {score.TABLE}.refs WHERE name != 'main'")
        assert ended(job()) == 0
        seen = content(hive)
        if its_branch == "was made anew by its write":
            # Iceberg does that when the server commits for the old one only now.
            hive.run(f"ALTER TABLE {score.TABLE} CREATE BRANCH {branch}")
            hive.run(f"INSERT INTO {score.TABLE}.branch_{branch} SELECT * FROM {score.TABLE} LIMIT 7")
        assert go_on() == 4
    assert content(hive) == seen
    assert hive.run(f"SELECT name FROM {score.TABLE}.refs") == [("main",)]
    assert seen == undisturbed(days, spark, hive, run)
