"""A scratch Postgres for the tests of this folder, started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgres import rows, scratch_postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[None]:
    with scratch_postgres():
        yield


@pytest.fixture
def bank(postgres_server: None) -> None:
    """An empty source and empty records of runs and rejects."""
    rows("TRUNCATE bank.fraud_reports, bank.transactions, bank.customers, bank.terminals")
    rows("TRUNCATE ops.runs, ops.batches, ops.rejects, ops.reconciliations, ops.checks", role="etl", dbname="warehouse")
