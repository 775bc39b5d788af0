"""`bash/demo.sh`: the whole warehouse on this machine, from an input file to predictions, and a summary at the end.

Each step is a verb that can be run again. What a step has finished for the present input is remembered, so a run that was
stopped goes on where it was, and a second run only looks for something new.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table as Screen

from etl.batches import published
from etl.databases import opened
from etl.errors import RefusedError, WarehouseError
from etl.files import write
from etl.log import run_main
from etl.screens import console
from etl.settings import ROOT, settings
from etl.sql_server import session
from etl.status import row_counts
from etl.tables import declared_tables

HELD_BACK_DAYS = 2
"""Last days of the input that come as daily increments."""

SIMULATED = ("--days", "150", "--customers", "1500", "--terminals", "3000", "--incremental-days", str(HELD_BACK_DAYS))


@dataclass
class Progress:
    """What is done for an input, kept in a file: steps with their seconds."""

    path: Path
    input: str
    seconds: dict[str, float] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    """Newest batches by table when the last run came to its end."""

    @classmethod
    def of(cls, path: Path, described: str) -> Progress:
        """Read what is done; raises RefusedError where the stack holds another input."""
        if path.exists():
            known = json.loads(path.read_text())
            if known["input"] != described:
                raise RefusedError("this stack already holds another input; bash/stack.sh reset removes its data, then run again")
            return cls(path, described, known["seconds"], known.get("ended", {}))
        return cls(path, described)

    def done(self, name: str, seconds: float) -> None:
        """Remember a step."""
        self.seconds[name] = round(seconds, 1)
        self.save()

    def save(self) -> None:
        """Write the file whole or not at all."""
        write(self.path, json.dumps({"input": self.input, "seconds": self.seconds, "ended": self.ended}, indent=1))


@dataclass(frozen=True)
class Step:
    """One verb of the main job; `is_once` steps are not run again for the same input."""

    name: str
    command: list[str]
    is_once: bool = True


def describe(given: Path | None) -> str:
    """Return a text that changes when the input does."""
    if given is None:
        return " ".join(SIMULATED)
    files = sorted(given.rglob("*")) if given.is_dir() else [given]
    found = "".join(f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}\n" for file in files if file.is_file())
    return hashlib.sha256(found.encode()).hexdigest()


def verb(name: str, *arguments: object) -> list[str]:
    """Return the command of a verb."""
    return [str(ROOT / "bash" / f"{name}.sh"), *map(str, arguments)]


def prepare(given: Path | None, folder: Path) -> Step:
    """Return the step that writes the CSV files."""
    if given is None:
        return Step("simulate", verb("simulate", *SIMULATED, "--out", folder))
    command = [sys.executable, "-m", "etl.handbook_file", "--input", str(given.resolve()), "--out", str(folder)]
    return Step("read input", [*command, "--hold-back-days", str(HELD_BACK_DAYS)])


def load_steps(folder: Path) -> list[Step]:
    """Return the steps from the CSV files to predictions: everything, then day by day."""
    steps = [
        Step("load source", verb("load_csv", "full", *(folder / "full" / f"{name}.csv" for name in declared_tables()))),
        Step("extract full", verb("extract", "full")),
        Step("core", [*verb("transform", "full"), *declared_tables()]),
        Step("features", verb("features", "full")),
        Step("train", verb("train")),
        Step("score", verb("score")),
    ]
    for day in sorted((folder / "incremental").iterdir()):
        files = [day / f"{name}.csv" for name in declared_tables() if (day / f"{name}.csv").exists()]
        steps += [
            Step(f"{day.name}: load source", verb("load_csv", "incremental", *files)),
            Step(f"{day.name}: extract and core", verb("load", "incremental")),
            Step(f"{day.name}: features", verb("features", "incremental")),
            Step(f"{day.name}: score", verb("score")),
        ]
    return steps


LOOK_STEPS = [
    Step("anything new", verb("load", "incremental"), is_once=False),
    Step("deleted rows", verb("extract", "deletes"), is_once=False),
]
LAST_STEPS = [
    Step("core and features", verb("transform", "incremental"), is_once=False),
    Step("score what is new", verb("score"), is_once=False),
    Step("reconcile", verb("reconcile"), is_once=False),
    Step("report", verb("report"), is_once=False),
]


def newest_batches() -> dict[str, int]:
    """Return the number of each table's newest batch: what every later step follows from."""
    with session() as hive:
        return {name: state.newest for name, state in published(hive, list(declared_tables().values())).items()}


def run(steps: list[Step], progress: Progress, already: int, total: int = 0) -> None:
    """Run steps one after the other, after some that have run already; each one's own lines and bars go to the terminal.

    Raises
    ------
    WarehouseError
        When a step fails, naming it.
    """
    terminal = console()
    for number, step in enumerate(steps, already + 1):
        if step.is_once and step.name in progress.seconds:
            continue
        terminal.rule(f"[bold]step {number}{f' of {total}' if total else ''}: {step.name}", align="left")
        started = time.monotonic()
        code = subprocess.run(step.command, check=False).returncode
        if code in (130, -2):
            raise KeyboardInterrupt
        if code:
            raise WarehouseError(f"the step '{step.name}' failed (its own sentence stands above); correct it and run bash/demo.sh again")
        progress.done(step.name, time.monotonic() - started)


def summary(progress: Progress) -> None:
    """Print what a person wants to know at the end."""
    terminal = console()
    terminal.rule("[bold]summary")
    with session("readers") as hive:
        names = list(declared_tables())
        counts = row_counts(hive, [*(f"core.{name}" for name in names), "feature.transactions", "mart.predictions"])
        top = hive.run(
            "SELECT transaction_id, transacted_at, amount, fraud_probability, risk_level, reasons FROM mart.predictions "
            "ORDER BY fraud_probability DESC, transaction_id LIMIT 10"
        )
        levels = hive.run("SELECT risk_level, count(*), sum(amount) FROM mart.predictions GROUP BY risk_level ORDER BY 2 DESC")
    terminal.print(rows_screen(names, counts))
    terminal.print(steps_screen(progress))
    for line in reconciliation():
        terminal.print(line)
    terminal.print(model_lines())
    terminal.print("risk levels: " + "; ".join(f"{level} {count:,} transactions, {amount:,} in amounts" for level, count, amount in levels))
    terminal.print(risky_screen(top))
    terminal.print(where_next())


def rows_screen(names: list[str], counts: dict[str, int]) -> Screen:
    """Return a table of rows by table and stage."""
    screen = Screen(title="rows", title_justify="left")
    for column in ("table", "bank (source)", "core", "feature", "predictions"):
        screen.add_column(column, justify="left" if column == "table" else "right")
    with opened("extractor", "bank") as connection, connection.cursor() as cursor:
        for name in names:
            table = declared_tables()[name]
            cursor.execute(f"SELECT count(*) FROM {table.source}")
            row = cursor.fetchone()
            later = [
                f"{counts.get(stage, 0):,}" if name == "transactions" else "" for stage in ("feature.transactions", "mart.predictions")
            ]
            screen.add_row(name, f"{row[0] if row else 0:,}", f"{counts.get(f'core.{name}', 0):,}", *later)
    return screen


def steps_screen(progress: Progress) -> Screen:
    """Return a table of steps and their seconds."""
    screen = Screen(title="steps (seconds when each last ran)", title_justify="left")
    screen.add_column("step")
    screen.add_column("seconds", justify="right")
    for name, seconds in progress.seconds.items():
        screen.add_row(name, f"{seconds:.1f}")
    screen.add_section()
    screen.add_row("all", f"{sum(progress.seconds.values()):.1f}")
    return screen


def reconciliation() -> list[str]:
    """Return what the newest reconciliation found, a line a table."""
    with opened("etl", "warehouse") as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT table_name, source_rows, loaded_rows, rejected_rows, is_equal FROM ops.reconciliations WHERE part = 'all' "
            "AND run_id = (SELECT run_id FROM ops.runs WHERE verb = 'reconcile' ORDER BY started_at DESC LIMIT 1) ORDER BY 1"
        )
        return [
            f"reconciled {name}, rows older than the watermark: {source:,} in the source = {loaded:,} loaded + {rejected:,} rejected, "
            f"{'equal row for row' if equal else 'DIFFERENT'}"
            for name, source, loaded, rejected, equal in cursor.fetchall()
        ]


def model_lines() -> str:
    """Return the champion and how good it is, as its training measured it."""
    with opened("mlflow", "mlflow") as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT version.name, version.version, version.run_id FROM registered_model_aliases AS alias "
            "JOIN model_versions AS version ON version.name = alias.name AND version.version = alias.version WHERE alias.alias = 'champion'"
        )
        row = cursor.fetchone()
        if row is None:
            return "no champion yet; bash/train.sh makes one"
        cursor.execute("SELECT key, value FROM latest_metrics WHERE run_uuid = %s ORDER BY key", (row[2],))
        metrics = {str(key): float(value) for key, value in cursor.fetchall()}
    words = {
        "average_precision": "average precision",
        "card_precision_100": "card precision at 100 a day",
        "card_precision_100_share": "of the best possible",
        "roc_auc": "ROC AUC",
    }
    told = ", ".join(f"{words.get(key, key)} {value:.3f}" for key, value in metrics.items())
    return f"champion: {row[0]} version {row[1]}; when it was trained, on the newest labelled week: {told}"


def risky_screen(top: list[tuple[Any, ...]]) -> Screen:
    """Return a table of the riskiest transactions and their reasons."""
    screen = Screen(title="ten riskiest transactions", title_justify="left")
    for column in ("transaction", "at", "amount", "probability", "risk", "because of"):
        screen.add_column(column, justify="right" if column in ("amount", "probability") else "left")
    for transaction_id, transacted_at, amount, probability, level, reasons in top:
        because = ", ".join(reason["feature"] for reason in json.loads(reasons or "[]"))
        screen.add_row(str(transaction_id), str(transacted_at)[:16], f"{amount:,}", f"{probability:.3f}", level, because)
    return screen


def where_next() -> str:
    """Return where to look next."""
    here = settings()
    reader = f"{here.readers_host}:{here.port('readers')}"
    return "\n".join(
        (
            "where to look next",
            '  ask            bash/query.sh "select risk_level, count(*) from mart.predictions group by risk_level"',
            f"  report         {here.data_dir / 'report' / 'index.html'}",
            f"  NameNode       {here.webhdfs_url}",
            f"  JDBC           jdbc:hive2://{reader}/mart",
            f"  ODBC           Driver=Hive ODBC;Host={here.readers_host};Port={here.port('readers')};"
            "HiveServerType=2;AuthMech=2;UID=reader",
            "  marts          bash/marts.sh builds what people read, bash/dashboard.sh shows it; docs/powerbi.md",
            "  freshness      bash/status.sh; checks of data: bash/quality.sh check",
            "  servers        bash/stack.sh status; bash/stack.sh up --mlflow for MLflow's page",
        )
    )


def main() -> None:
    """Parse the command line, run the main job and print the summary."""
    parser = argparse.ArgumentParser(prog="bash/demo.sh", description=__doc__)
    parser.add_argument("--input", type=Path, metavar="FILE|DIR", help="Parquet or CSV with the Handbook's columns; default: simulate")
    parser.add_argument("--servers-run", action="store_true", help="start no servers: those of the settings run already")
    arguments = parser.parse_args()
    given = arguments.input
    if given is not None and not given.exists():
        raise RefusedError(f"there is no file or folder {given}; give a Parquet or CSV file, or leave --input out to simulate")
    folder = settings().data_dir / "demo" / "input"
    progress = Progress.of(settings().data_dir / "demo" / "progress.json", describe(given))
    if not progress.path.exists():
        progress.save()
    start = [] if arguments.servers_run else [Step("servers", verb("stack", "up"), is_once=False)]
    first = [*start, prepare(given, folder)]
    run(first, progress, 0)
    # Which days follow is known when the input has been read.
    steps = [*load_steps(folder), *LOOK_STEPS]
    total = len(first) + len(steps) + len(LAST_STEPS)
    run(steps, progress, len(first), total)
    if (newest := newest_batches()) != progress.ended:
        run(LAST_STEPS, progress, total - len(LAST_STEPS), total)
        progress.ended = newest
        progress.save()
    else:
        console().print("nothing new since the last run came to its end: its reconciliation and report stand")
    summary(progress)


if __name__ == "__main__":
    run_main(main)
