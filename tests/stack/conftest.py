"""The local stack for tests: servers and data of their own, started once for the whole run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from etl import ops, sql_server
from etl.settings import settings
from etl.sql_server import Session
from tests import own_stack

PORT_OFFSET = 12000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies here, so that `-m stack` and `-m "not stack"` tell the two kinds apart."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.stack)


@pytest.fixture(scope="session", autouse=True)
def stack() -> Iterator[None]:
    """Run a fresh stack; a folder and ports given by the environment are used as they are, and left running."""
    from etl.stack import control

    is_own = own_stack.select("test", PORT_OFFSET)
    if is_own and settings().data_dir.exists():
        control.reset()
    control.up({"base"})
    yield
    if is_own:
        control.down()


@pytest.fixture
def hive() -> Iterator[Session]:
    with sql_server.session() as session:
        yield session


@pytest.fixture
def run() -> Iterator[ops.Run]:
    with ops.run("test") as one:
        yield one
