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


def answers(name: str) -> bool:
    """Tell whether a server answers as it should."""
    try:
        return one_server(name).is_ready()
    except (OSError, LookupError, ValueError, WarehouseError):
        return False


def watch(name: str) -> None:
    """Look after one server for ever."""
    silent_since: float | None = None
    pid = 0
    while True:
        info = supervision.states().get(name, {})
        if info.get("statename") != "RUNNING" or info.get("pid") != pid or answers(name):
            # One that has just started has its time to get ready.
            silent_since, pid = None, info.get("pid", 0)
        elif silent_since is None:
            silent_since = time.monotonic()
        elif time.monotonic() - silent_since > PATIENCE_SECONDS:
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
