"""The local stack for tests: servers and data of their own, started once for the whole run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from etl.settings import ROOT, settings
from etl.stack import machine

# Below the ports that the system gives to outgoing connections.
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

    given = "WAREHOUSE_TEST_DATA_DIR" in os.environ
    folder = ROOT / "var" / "test"
    if machine.is_root() and not machine.can_enter("nobody", ROOT):
        # Postgres drops root and could not enter a clone that is root's alone.
        folder = Path(tempfile.gettempdir()) / "warehouse-test-stack"
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    os.environ["WAREHOUSE_DATA_DIR"] = os.environ.get("WAREHOUSE_TEST_DATA_DIR", str(folder))
    os.environ.setdefault("WAREHOUSE_PORT_OFFSET", str(PORT_OFFSET))
    settings.cache_clear()
    if not given and settings().data_dir.exists():
        control.reset()
    control.up({"base"})
    yield
    if not given:
        control.down()
