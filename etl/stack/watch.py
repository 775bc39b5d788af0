"""Start the readers server again when it opens its port but answers no statement: it may be too far gone to do that itself."""

from __future__ import annotations

import time

from etl.errors import WarehouseError
from etl.log import logger, run_main
from etl.stack import supervision
from etl.stack.servers import heartbeat, one_server

INTERVAL_SECONDS = 5
PATIENCE_SECONDS = 90
"""Beyond `STALE_SECONDS`. The server itself starts again after 90 s without a statement, and then says why to every session."""
STARTING_SECONDS = 300
"""Of a server that has not answered since it started: a busy machine takes minutes."""


def answers(name: str) -> bool:
    """Tell whether a server answers as it should."""
    try:
        return one_server(name).is_ready()
    except (OSError, LookupError, ValueError, WarehouseError):
        return False


def watch(name: str) -> None:
    """Look after one server for ever."""
    pid, patience, answered_at = 0, STARTING_SECONDS, time.monotonic()
    while True:
        info = supervision.states().get(name, {})
        if info.get("statename") != "RUNNING" or info.get("pid") != pid:
            pid, patience, answered_at = info.get("pid", 0), STARTING_SECONDS, time.monotonic()
        elif answers(name):
            patience, answered_at = PATIENCE_SECONDS, time.monotonic()
        elif time.monotonic() - answered_at > patience:
            logger.error("a server answers no statement and is started again", server=name, pid=pid)
            supervision.call("stopProcess", name)
            supervision.call("startProcess", name, False)
        heartbeat("watch").touch()
        time.sleep(INTERVAL_SECONDS)


def main() -> None:
    """Look after the readers server."""
    watch("readers")


if __name__ == "__main__":
    run_main(main)
