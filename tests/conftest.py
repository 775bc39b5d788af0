"""The local stack, and a Postgres alone, for tests: servers and data of their own, started once for the whole run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from etl.settings import settings
from tests import own_stack
from tests.postgres import scratch_postgres
from tests.receivers import Http, http_server

PORT_OFFSET = 12000


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[None]:
    """Run a Postgres with the project's databases, for tests that need nothing else."""
    with scratch_postgres():
        yield


@pytest.fixture
def got() -> Iterator[Http]:
    """Run a receiver of HTTP that keeps what it got."""
    with http_server() as server:
        yield server
