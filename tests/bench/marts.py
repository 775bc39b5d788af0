"""`bash/bench.sh marts`: how soon the pages of Power BI have their data, on the running stack, with the marts that it has.

The statements are those of the report's visuals (etl/powerbi.py), in the shape in which DirectQuery folds them. Warm, one user after
the other and ten at once, each in a session of its own; over the days that the pages open with, and over all days.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from threading import Barrier

import numpy as np

from etl.log import logger, run_main
from etl.powerbi import DATES, Model, Visual, read_model, read_visuals, statement
from etl.settings import settings
from etl.sql_server import Session, session
from tests.bench.__main__ import Bench, report

ROUNDS, WARM_UP = 5, 2
USERS, USER_ROUNDS = 10, 2
ONE_BOUND, USERS_BOUND = 1.0, 3.0
"""Seconds, of 95 of 100 statements."""


def all_days(visual: Visual) -> Visual:
    """Return a visual without its page's last days; rows of transactions stay those of the last days, as nobody reads a million."""
    if not any(one.is_measure for one in visual.fields):
        return visual
    return replace(visual, filters=tuple((one, text) for one, text in visual.filters if one.table != DATES))


def timed(hive: Session, statements: Sequence[str]) -> list[float]:
    """Run statements; return the seconds of each."""
    seconds = []
    for text in statements:
        started = time.perf_counter()
        hive.run(text)
        seconds.append(time.perf_counter() - started)
    return seconds


def at_once(sessions: Sequence[Session], statements: Sequence[str]) -> list[float]:
    """Run statements in every session, all sessions beginning together and each elsewhere; return the seconds of each."""
    begin = Barrier(len(sessions))

    def user(number: int) -> list[float]:
        shift = number * len(statements) // len(sessions)
        mine = [*statements[shift:], *statements[:shift]]
        begin.wait()
        return timed(sessions[number], mine * USER_ROUNDS)

    with ThreadPoolExecutor(len(sessions)) as pool:
        return [second for seconds in pool.map(user, range(len(sessions))) for second in seconds]


def measure(
    bench: Bench, sessions: Sequence[Session], model: Model, visuals: Sequence[Visual], what: str, of: Callable[[Visual], Visual]
) -> None:
    """Measure each page, alone and with all users at once."""
    for page in dict.fromkeys(visual.page for visual in visuals):
        named = {visual.name: statement(of(visual), model) for visual in visuals if visual.page == page}
        timed(sessions[0], [*named.values()] * WARM_UP)
        alone = np.array([timed(sessions[0], list(named.values())) for _ in range(ROUNDS)])
        slowest = sorted(zip(np.median(alone, axis=0), named, strict=True), reverse=True)[:3]
        logger.info("slowest visuals of the page", page=page, what=what, seconds={name: round(float(one), 2) for one, name in slowest})
        bench.add(f"{page}, {what}: 95th percentile, one user", "s", ONE_BOUND, [float(np.quantile(alone, 0.95))])
        many = at_once(sessions, list(named.values()))
        bench.add(f"{page}, {what}: 95th percentile, {len(sessions)} users at once", "s", USERS_BOUND, [float(np.quantile(many, 0.95))])


def main() -> int:
    """Measure and print; 1 when a bound is missed."""
    argparse.ArgumentParser(prog="bash/bench.sh marts", description=__doc__).parse_args()
    bench, model, visuals = Bench(), read_model(), read_visuals()
    with ExitStack() as stack:
        sessions = [stack.enter_context(session("readers", user=settings().hdfs_readers_user)) for _ in range(USERS)]
        ((rows, days),) = sessions[0].run("SELECT count(*), count(DISTINCT transacted_on) FROM mart.scored_transactions")
        logger.info("what the marts hold", transactions=rows, days=days)
        # Java compiles what it has run some hundred times: the first page would be measured on another server than the last.
        timed(sessions[0], [statement(visual, model) for visual in visuals] * WARM_UP)
        measure(bench, sessions, model, visuals, "as it opens", lambda visual: visual)
        changed = [visual for visual in visuals if all_days(visual) != visual and visual.page != "raw_data"]
        measure(bench, sessions, model, changed, "all days", all_days)
    settings().data_dir.mkdir(parents=True, exist_ok=True)
    return report(bench)


if __name__ == "__main__":
    run_main(main)
