"""`bash/bench.sh stream`: how fast the real-time lane is, with the sender, the broker, the servers and the reader on the same machine.

On the stack of `bash/demo.sh --realtime`, whose champion scores: a steady rate through the API, then a stop of the job, a pile
of transactions on the topic, and a start. The steady part goes first, when the job has warmed up.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from api import broker
from api.demo import Watch, gained, measures, quantile_bound, wait_until_written
from api.lag import lags
from etl.demo import SIMULATED
from etl.errors import RefusedError, WarehouseError
from etl.log import logger, run_main
from etl.settings import settings
from etl.sql_server import session
from etl.stack import control, supervision
from tests.bench.__main__ import Bench, report, verb

RATE = 200
WARM_UP, STEADY, PILE = 4_000, 12_000, 40_000
DAYS = 120
"""Days of the demo's bank that come as a stream: enough for six measurements."""
PATIENCE_SECONDS = 300


class Source:
    """The days that follow those of the demo's bank, from the first that the warehouse does not hold."""

    def __init__(self, folder: Path) -> None:
        verb("simulate", *SIMULATED, "--stream-days", DAYS, "--out", folder)
        self._folder = folder
        with session() as hive:
            ((newest,),) = hive.run(f"SELECT max(transaction_id) FROM core.transactions WHERE transaction_id < {2**62}")
        header, *lines = (folder / "stream.csv").read_text().splitlines(keepends=True)
        self._header, self._lines = header, [line for line in lines if int(line.split(",", 1)[0]) > newest]
        if len(self._lines) < WARM_UP + STEADY + PILE:
            raise RefusedError("the warehouse holds the days that would be sent; bash/stack.sh reset, then bash/demo.sh")

    def send(self, count: int, *options: object) -> None:
        """Send the next so many."""
        path = self._folder / "next.csv"
        path.write_text("".join([self._header, *self._lines[:count]]))
        del self._lines[:count]
        verb("stream_csv", path, *options)


def read(watch: Watch, count: int) -> float:
    """Wait until so many predictions are read; returns the seconds from the first to the last."""
    until, first = time.monotonic() + PATIENCE_SECONDS, 0.0
    while (now := len(watch.seconds[broker.PREDICTIONS])) < count:
        if now and not first:
            first = time.monotonic()
        if time.monotonic() > until:
            raise WarehouseError(f"{now:,} of {count:,} predictions came within {PATIENCE_SECONDS} s")
        time.sleep(0.05)
    return time.monotonic() - first


def steady(bench: Bench, source: Source) -> None:
    """Measure at a steady rate through the API."""
    source.send(WARM_UP, "--rate", RATE, "--to", "api")
    wait_until_written()
    watch, before = Watch(), measures()
    watch.start()
    source.send(STEADY, "--rate", RATE, "--to", "api")
    wait_until_written()
    watch.end()
    after = measures()
    for topic in (broker.PREDICTIONS, broker.ALERTS):
        seconds = watch.seconds[topic]
        if not seconds:
            raise RefusedError(f"no message came on {topic}; is there a champion? bash/demo.sh trains one")
        shares = {f"p{share * 100:g}": round(float(np.quantile(seconds, share)), 2) for share in (0.5, 0.95, 0.99)}
        logger.info("steady", topic=topic, messages=len(seconds), **shares)
        bench.add(f"{RATE} a second: POST to {topic}, p95", "s", 3, [float(np.quantile(seconds, 0.95))])
    name = "fraud_stream_tables_latency_seconds"
    bound = quantile_bound(before, after, name, 0.95).removeprefix("below ")
    logger.info("steady", tables=gained(before, after, f"{name}_count"))
    bench.add(f"{RATE} a second: POST to the tables, p95 is below", "s", 30, [float(bound)])


def catching_up(bench: Bench, source: Source) -> None:
    """Measure how fast a job that was stopped takes what has piled up."""
    supervision.call("stopProcess", "stream")
    source.send(PILE, "--to", "kafka")
    watch = Watch()
    watch.start()
    started = time.monotonic()
    supervision.call("startProcess", "stream")
    told = read(watch, PILE)
    whole = time.monotonic() - started
    while any(one.messages for one in lags()):
        time.sleep(0.5)
    written = time.monotonic() - started - (whole - told)
    watch.end()
    logger.info("caught up", messages=PILE, start_of_job=round(whole - told, 1), told=round(told, 1), written=round(written, 1))
    bench.add("catching up after a stop: scored and told", "1/s", 2_000, [PILE / told], is_least=True)
    bench.add("catching up after a stop: in the tables", "1/s", 2_000, [PILE / written], is_least=True)


def main() -> int:
    """Measure and print; 1 when a bound is missed."""
    if not (settings().data_dir / "demo" / "progress.json").exists():
        raise RefusedError("the demo's bank is needed: run bash/demo.sh first")
    control.up({"base", "realtime"})
    bench = Bench()
    with tempfile.TemporaryDirectory() as folder:
        source = Source(Path(folder))
        steady(bench, source)
        catching_up(bench, source)
    return report(bench)


if __name__ == "__main__":
    run_main(main)
