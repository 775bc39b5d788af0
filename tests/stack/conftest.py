"""Sessions and runs on the stack of the tests (tests/conftest.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from etl import ops, sql_server
from etl.sql_server import Session


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies here, so that `-m stack` and `-m "not stack"` tell the two kinds apart."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.stack)


@pytest.fixture(scope="session", autouse=True)
def every_test_needs_it(stack: None) -> None:
    """Run what lies here on the stack."""


@pytest.fixture
def hive() -> Iterator[Session]:
    with sql_server.session() as session:
        yield session


@pytest.fixture
def run() -> Iterator[ops.Run]:
    with ops.run("test") as one:
        yield one
