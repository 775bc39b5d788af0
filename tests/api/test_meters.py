"""What the stream job tells of the batch lane."""

from __future__ import annotations

import datetime as dt

import pytest

from api import meters
from tests.postgres import rows

HOUR = 3600


def ran(verb: str, arguments: str, state: str, hours_ago: float) -> None:
    rows(
        "INSERT INTO ops.runs (run_id, verb, arguments, state, started_at) VALUES (%s, %s, %s, %s, now() - %s)",
        f"{verb} {arguments} {hours_ago}", verb, arguments, state, dt.timedelta(hours=hours_ago), role="etl", dbname="warehouse",
    )  # fmt: skip


def ages() -> dict[str, int]:
    """Whole hours since each table was loaded."""
    meters.WATERMARK_AGE.clear()
    meters.look_at_watermarks()
    (metric,) = meters.WATERMARK_AGE.collect()
    return {sample.labels["table"]: round(sample.value / HOUR) for sample in metric.samples}


@pytest.fixture(autouse=True)
def no_runs(postgres_server: None) -> None:
    rows("TRUNCATE ops.runs CASCADE", role="etl", dbname="warehouse")


def test_a_load_that_found_nothing_new_makes_the_watermark_as_young_as_one_that_published():
    ran("load", "full", "succeeded", 30)
    rows(
        "INSERT INTO ops.batches (run_id, table_name, batch, kind, next_from, row_count, bytes, seconds, state) "
        "SELECT run_id, 'terminals', 1, 'full', now() - interval '30 hours', 1, 1, 1, 'published' FROM ops.runs",
        role="etl", dbname="warehouse",
    )  # fmt: skip
    ran("load", "incremental", "succeeded", 2)
    assert ages() == {"customers": 2, "terminals": 2, "transactions": 2, "fraud_reports": 2}


def test_a_load_that_failed_still_runs_or_reads_no_more_than_a_range_makes_no_watermark_younger():
    ran("load", "full", "succeeded", 30)
    ran("load", "incremental", "failed", 5)
    ran("load", "incremental", "running", 4)
    ran("extract", "repair transactions --from 2018-01-01 --to 2018-01-02", "succeeded", 3)
    ran("extract", "deletes", "succeeded", 2)
    ran("transform", "incremental", "succeeded", 1)
    assert set(ages().values()) == {30}


def test_a_load_of_some_tables_is_one_of_those_only():
    ran("load", "full", "succeeded", 9)
    ran("extract", "incremental transactions fraud_reports", "succeeded", 3)
    ran("extract", "full terminals --force", "succeeded", 2)
    assert ages() == {"customers": 9, "terminals": 2, "transactions": 3, "fraud_reports": 3}


def test_without_a_load_nothing_is_told():
    assert ages() == {}
