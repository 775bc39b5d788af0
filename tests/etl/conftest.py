"""The databases of the tests of this folder, emptied."""

from __future__ import annotations

import pytest

from tests.postgres import rows


@pytest.fixture
def bank(postgres_server: None) -> None:
    """An empty source and empty records of runs and rejects."""
    rows("TRUNCATE bank.fraud_reports, bank.transactions, bank.customers, bank.terminals")
    rows("TRUNCATE ops.runs CASCADE", role="etl", dbname="warehouse")
