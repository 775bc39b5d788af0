"""A stack beside the user's own: its folder and its ports."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from etl.settings import ROOT, settings
from etl.stack import machine


def select(name: str, port_offset: int) -> bool:
    """Let the settings point to the stack of this name; False where the environment has already chosen one.

    Ports stay below those that the system gives to outgoing connections.
    """
    given = f"WAREHOUSE_{name.upper()}_DATA_DIR"
    folder = ROOT / "var" / name
    if machine.is_root() and not machine.can_enter("nobody", ROOT):
        # Postgres drops root and could not enter a clone that is root's alone.
        folder = Path(tempfile.gettempdir()) / f"warehouse-{name}-stack"
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    os.environ["WAREHOUSE_DATA_DIR"] = os.environ.get(given, str(folder))
    os.environ.setdefault("WAREHOUSE_PORT_OFFSET", str(port_offset))
    settings.cache_clear()
    return given not in os.environ
