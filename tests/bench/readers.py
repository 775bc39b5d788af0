"""`bash/bench.sh readers`: how much longer loads take while readers use every core, on the running stack.

A full load and the features of all rows run in turn alone and beside readers whose joins never end. Both write what is there already.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from etl.errors import WarehouseError
from etl.log import run_main
from etl.settings import settings
from tests.bench.__main__ import Bench, alternate, ratios, report, verb
from tests.readers import ENDLESS, environment

ROUNDS, READERS = 5, 2
BOUND = 1.2
"""How many times as long a load may take."""
PLANNED_SECONDS = 8
"""After these every reader's join computes."""


@contextmanager
def heavy_readers() -> Iterator[None]:
    """Let readers ask for what takes hours, each in a session of the operating system as if somebody had logged in."""
    readers = [
        subprocess.Popen(
            [sys.executable, "-m", "etl.query", "query", ENDLESS], env=environment(), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            # Whoever runs this in the background has interrupts ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        for _ in range(READERS)
    ]  # fmt: skip
    try:
        time.sleep(PLANNED_SECONDS)
        yield
        if any(one.poll() is not None for one in readers):
            raise WarehouseError("a reader's join ended before the load did: nothing was measured")
    finally:
        for one in readers:
            one.send_signal(signal.SIGINT)
            one.wait(60)


def beside(work: Callable[[], float]) -> Callable[[], float]:
    """Return work that runs beside heavy readers; their start is not in its seconds."""

    def once() -> float:
        with heavy_readers():
            return work()

    return once


def main() -> int:
    """Measure and print; 1 when a bound is missed."""
    argparse.ArgumentParser(prog="bash/bench.sh readers", description=__doc__).parse_args()
    bench = Bench()
    works: dict[str, Callable[[], float]] = {
        "full load": lambda: verb("load", "full"),
        "features of all rows": lambda: verb("features", "full"),
    }
    for what, work in works.items():
        # A server that has just started is another one than that of the last round.
        work()
        alone, busy = alternate(ROUNDS, work, beside(work))
        bench.add(f"{what} beside {READERS} endless joins of readers / alone", "x", BOUND, ratios(busy, alone))
    settings().data_dir.mkdir(parents=True, exist_ok=True)
    return report(bench)


if __name__ == "__main__":
    run_main(main)
