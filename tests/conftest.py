"""The local stack for tests: servers and data of their own, started once for the whole run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from etl.settings import settings
from tests import own_stack

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
