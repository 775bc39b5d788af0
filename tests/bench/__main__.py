"""`bash/bench.sh`: what the warehouse reaches in speed and memory, on a stack of its own, in one run.

Ratios are of runs that alternate on the same machine; seconds are of this machine as it was: beside each figure stands the
yardstick, the seconds of a fixed piece of work on one core at that moment. Every figure is printed as it
comes, and all of them in a table at the end and in bench.json beside the report.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.table import Table as Screen

from etl.databases import connect, opened
from etl.errors import RefusedError, WarehouseError
from etl.log import logger, run_main
from etl.screens import console
from etl.settings import ROOT, settings
from etl.tables import declared_tables
from tests import own_stack

PORT_OFFSET = 14000
ROUNDS = 5
# Runs after which Java has compiled most of what a step uses.
WARM_UP = 3
SIMULATED = ("--days", "183", "--customers", "5000", "--terminals", "10000", "--incremental-days", "1")
TIMES_LARGER = 10
DAY_ROWS = 9_600
YARD = bytes(5_000_000)


@dataclass(frozen=True)
class Figure:
    """One thing measured.

    Attributes
    ----------
    reach
        The bound, in the figure's unit.
    is_least
        The bound is the least that is wanted, otherwise the most.
    runs
        Every run's figure; `value` is their median.
    """

    what: str
    unit: str
    reach: float
    is_least: bool
    runs: tuple[float, ...]

    @property
    def value(self) -> float:
        """Return the median."""
        return statistics.median(self.runs)

    @property
    def is_reached(self) -> bool:
        """Tell whether the median keeps the bound."""
        return self.value >= self.reach if self.is_least else self.value <= self.reach


class Bench:
    """Figures, printed as they come."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []

    def add(self, what: str, unit: str, reach: float, runs: Sequence[float], *, is_least: bool = False) -> None:
        """Take a figure down."""
        figure = Figure(what, unit, reach, is_least, tuple(round(one, 3) for one in runs))
        self.figures.append(figure)
        reached, now = figure.is_reached, yardstick()
        logger.info("measured", what=what, median=round(figure.value, 2), unit=unit, reached=reached, runs=figure.runs, yardstick=now)


def yardstick() -> float:
    """Return the seconds of a fixed piece of work on one core: how fast this machine is at this moment."""
    started = time.perf_counter()
    for _ in range(40):
        hashlib.md5(YARD).digest()
    return round(time.perf_counter() - started, 3)


def verb(name: str, *arguments: object) -> float:
    """Run a verb; return its wall seconds, start of its process included."""
    started = time.perf_counter()
    ran = subprocess.run([ROOT / "bash" / f"{name}.sh", *map(str, arguments)], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise WarehouseError(f"bash/{name}.sh {' '.join(map(str, arguments))} failed: {ran.stderr[-2000:]}")
    return time.perf_counter() - started


def verb_memory(name: str, *arguments: object) -> tuple[float, float]:
    """Run a verb; return its wall seconds and the largest memory of its processes, in MB."""
    started = time.perf_counter()
    process = psutil.Popen([ROOT / "bash" / f"{name}.sh", *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    largest = 0
    while process.poll() is None:
        total = 0
        for one in process.children(recursive=True):
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        largest = max(largest, total)
        time.sleep(0.05)
    if process.returncode:
        raise WarehouseError(f"bash/{name}.sh {' '.join(map(str, arguments))} failed with exit code {process.returncode}")
    return time.perf_counter() - started, largest / 2**20


def alternate(rounds: int, *runs: Callable[[], float]) -> list[list[float]]:
    """Run each in turn, several rounds; return the seconds of each."""
    found: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for seconds, one in zip(found, runs, strict=True):
            seconds.append(one())
    return found


def ratios(others: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Return how many times as long the others took, pair by pair."""
    return [other / one for other, one in zip(others, ours, strict=True)]


# Extract beside other tools --------------------------------------------------------------------------------------


def _tool_command(tool: str) -> list[str]:
    if tool != "spark":
        return [sys.executable, "-m", "tests.bench.extracts", tool]
    from etl.stack import jars

    return [
        str(jars.SPARK_HOME / "bin" / "spark-submit"),
        *("--master", "local[2]", "--driver-memory", "2g"),
        *("--driver-class-path", str(next((settings().jars_dir / "metastore").glob("postgresql-*.jar")))),
        *("--conf", f"spark.driver.bindAddress={settings().host}", "--conf", "spark.ui.enabled=false"),
        *("--conf", f"spark.local.dir={settings().data_dir / 'tmp'}"),
        str(ROOT / "tests" / "bench" / "extracts.py"),
        tool,
    ]


def _tool_environment() -> dict[str, str]:
    from etl.stack import configuration, machine

    return {
        **os.environ,
        "JAVA_HOME": str(machine.java_home()),
        "HADOOP_CONF_DIR": str(configuration.folder("hadoop")),
        "HADOOP_USER_NAME": settings().hdfs_user,
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "SPARK_LOCAL_IP": settings().host,
    }


def cold(tool: str) -> Callable[[], float]:
    """Return a run of one tool in a process of its own."""

    def once() -> float:
        started = time.perf_counter()
        ran = subprocess.run(_tool_command(tool), capture_output=True, text=True, check=False, env=_tool_environment())
        if ran.returncode:
            raise WarehouseError(f"{tool} failed: {ran.stdout[-2000:]}{ran.stderr[-2000:]}")
        return time.perf_counter() - started

    return once


class Warm:
    """A process of one tool that stays; its first two runs are not counted."""

    def __init__(self, tool: str) -> None:
        self._tool = tool
        self._log = (settings().data_dir / "logs" / f"bench-{tool}.log").open("w")
        pipe = settings().data_dir / "run" / f"bench-{tool}.pipe"
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
        self._process = subprocess.Popen(
            [*_tool_command(tool), "--warm", pipe],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=_tool_environment(),
        )
        # Open for both: a tool that dies before it opens its end shall not be waited for.
        self._pipe = os.fdopen(os.open(pipe, os.O_RDWR), "w")
        for _ in range(2):
            self()

    def __call__(self) -> float:
        print("again", file=self._pipe, flush=True)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise WarehouseError(f"{self._tool} ended: {Path(self._log.name).read_text()[-2000:]}")

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._pipe.close()
        self._process.wait(60)


def extracts(bench: Bench) -> None:
    """Measure an extract to Parquet beside Spark JDBC, DuckDB and ConnectorX."""
    submitted, started = alternate(ROUNDS, cold("spark"), cold("ours"))
    bench.add("extract: Spark JDBC by spark-submit / ours, whole processes", "x", 4, ratios(submitted, started), is_least=True)
    tools = [Warm(name) for name in ("spark", "duckdb", "connectorx", "ours")]
    *others, ours = alternate(ROUNDS, *tools)
    for tool in tools:
        tool.close()
    for name, reach, seconds in zip(("Spark JDBC", "DuckDB's postgres scanner", "ConnectorX"), (1.6, 1.0, 1.0), others, strict=True):
        bench.add(f"extract: {name}, warm / ours, warm", "x", reach, ratios(seconds, ours), is_least=True)


# The main job ----------------------------------------------------------------------------------------------------


def sql(statement: str, role: str = "bank") -> None:
    """Run a statement in the source."""
    with opened(role, "bank") as connection, connection.cursor() as cursor:  # type: ignore[arg-type]
        cursor.execute(statement)


def new_day(number: int) -> None:
    """Write as many new transactions as a day has, with new keys."""
    sql(
        "INSERT INTO bank.transactions SELECT (SELECT max(transaction_id) FROM bank.transactions) + row_number() OVER (), customer_id, "
        f"terminal_id, transacted_at + interval '{number} years', amount, currency, channel, device, updated_at "
        f"FROM (SELECT * FROM bank.transactions ORDER BY transaction_id LIMIT {DAY_ROWS}) AS day"
    )


def days(rounds: int, first: int) -> list[float]:
    """Return the seconds of a day's increment, several times; the first is not counted."""
    found = []
    for at in range(rounds + 1):
        new_day(first + at)
        found.append(verb("load", "incremental"))
    return found[1:]


def grow() -> None:
    """Make the table of transactions ten times as large."""
    for copy in range(1, TIMES_LARGER):
        # Foreign keys hold: the rows are copies. The trigger that writes updated_at is always on.
        sql(
            "SET LOCAL session_replication_role = replica; "
            "INSERT INTO bank.transactions SELECT transaction_id + 100000000 * " + str(copy) + ", customer_id, terminal_id, "
            f"transacted_at - interval '{copy} years', amount, currency, channel, device, updated_at FROM bank.transactions "
            "WHERE transaction_id < 100000000",
            role="postgres",
        )
        logger.info("source grows", copies=f"{copy + 1}/{TIMES_LARGER}")
    # VACUUM cannot run inside a transaction, and `opened` begins one.
    with closing(connect("postgres", "bank")) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE bank.transactions")


def again(statement: str, name: str, *arguments: object) -> Callable[[], float]:
    """Return a run of a verb after a statement in Hive that is not timed."""

    def once() -> float:
        from etl.sql_server import session

        with session() as hive:
            hive.run(statement)
        return verb(name, *arguments)

    return once


def warm(what: str, run: Callable[[], float]) -> list[float]:
    """Return the seconds of some runs on a server that has done the same before; those of the runs before are logged."""
    logger.info("not counted: a server that has just started", what=what, seconds=[round(run(), 1) for _ in range(WARM_UP)])
    return [run() for _ in range(ROUNDS)]


def prepare() -> None:
    """Start a stack that holds nothing."""
    from etl.stack import control

    if own_stack.select("bench", PORT_OFFSET) and settings().data_dir.exists():
        control.reset()
    control.up({"base"})


def stack_memory() -> float:
    """Return the memory of all servers, in GB."""
    from etl.stack import control, supervision

    return sum(control.memory_bytes(int(info["pid"])) for info in supervision.states().values() if info["pid"]) / 2**30


def load_source(given: Path | None, folder: Path) -> None:
    """Write the CSV files and load them."""
    if given is None:
        verb("simulate", *SIMULATED, "--out", folder)
    else:
        subprocess.run([sys.executable, "-m", "etl.handbook_file", "--input", str(given), "--out", str(folder)], check=True)
    verb("load_csv", "full", *(folder / "full" / f"{name}.csv" for name in declared_tables()))


def main() -> int:
    """Measure, print and write down; 1 when a bound is missed."""
    parser = argparse.ArgumentParser(prog="bash/bench.sh", description=__doc__)
    parser.add_argument("--input", type=Path, help="Parquet or CSV with the Handbook's columns; default: simulate as many rows")
    parser.add_argument("--no-tenfold", action="store_true", help="leave out the table that is ten times larger")
    given = parser.parse_args()
    if given.input is not None and not given.input.exists():
        raise RefusedError(f"there is no file {given.input}")
    prepare()
    folder = settings().data_dir / "input"
    bench = Bench()
    bench.add("stack after start, all servers", "GB", 3, [stack_memory()])
    load_source(given.input, folder)
    bench.add("full load, Postgres to core, verified, warm", "s", 15, warm("full load", lambda: verb("load", "full")))
    bench.add("features, all rows written, warm server", "s", 20, warm("features", lambda: verb("features", "full")))
    verb("train")
    scoring = again("DROP TABLE IF EXISTS mart.predictions", "score")
    bench.add("score, all rows written, warm server", "s", 20, warm("score", scoring))
    extracts(bench)
    verb("load", "incremental")
    bench.add("nothing new", "s", 2, [verb("load", "incremental") for _ in range(ROUNDS)])
    small = days(ROUNDS, 1)
    bench.add("a day's increment, commit to core, verified, warm", "s", 5, small)
    if not given.no_tenfold:
        grow()
        seconds, memory = verb_memory("extract", "full", "transactions")
        bench.add("memory of the extract of a table ten times larger", "MB", 600, [memory])
        logger.info("extract of a table ten times larger", seconds=round(seconds, 1))
        verb("transform", "full", "transactions")
        large = days(ROUNDS, 11)
        bench.add(
            "a day's increment on a table ten times larger / on the small one",
            "x",
            1.3,
            [statistics.median(large) / statistics.median(small)],
        )
    return report(bench)


def report(bench: Bench) -> int:
    """Print all figures and write them down."""
    path = settings().data_dir / "bench.json"
    path.write_text(json.dumps([asdict(figure) for figure in bench.figures], indent=1))
    screen = Screen(title="bench: medians", title_justify="left")
    for column in ("what", "reach", "measured", "runs", ""):
        screen.add_column(column, justify="left" if column in ("what", "") else "right")
    for one in bench.figures:
        bound = f"{'at least' if one.is_least else 'at most'} {one.reach:g} {one.unit}"
        screen.add_row(one.what, bound, f"{one.value:.2f} {one.unit}", str(len(one.runs)), "reached" if one.is_reached else "missed")
    console().print(screen)
    return 0 if all(one.is_reached for one in bench.figures) else 1


if __name__ == "__main__":
    run_main(main)
