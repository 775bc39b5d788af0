"""The marts: copies of the records, then `dbt run` of hive/mart on the loads server.

dbt does the work (hive/mart/macros/by_day.sql says how a mart is kept up to date); this module gives it the settings, one writer
at a time, and a record of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from etl import ops
from etl.errors import RefusedError, WarehouseError
from etl.log import logger, run_main
from etl.screens import progress
from etl.settings import ROOT, settings
from etl.sql_server import Session, first_sentence, session
from ml.evaluation import TOP_CARDS
from ml.params import params
from ml.records import copy_records

PROJECT = ROOT / "hive" / "mart"
LOCK = "mart.marts"
NEEDED = ("core.transactions", "core.customers", "core.terminals", "core.fraud_reports", "mart.predictions", "mart.alerts")


class MartsError(WarehouseError):
    """dbt could not run, or a mart could not be built."""


def target() -> Path:
    """Folder of what dbt writes about its runs: manifest, results, documentation."""
    return settings().data_dir / "report" / "marts"


def refuse_what_is_missing(hive: Session, only: str = "") -> None:
    """Look whether the tables that the marts are built from exist, or those of one database.

    Raises
    ------
    RefusedError
        Naming those that do not.
    """
    have = {f"{row[0]}.{row[1]}" for database in ("core", "mart") for row in hive.run(f"SHOW TABLES IN {database}")}
    if missing := [table for table in NEEDED if table.startswith(only) and table not in have]:
        raise RefusedError(f"there is no table {', '.join(missing)}; load with bash/load.sh full, then bash/train.sh and bash/score.sh")


def read(name: str) -> dict[str, Any]:
    """Return what dbt wrote about its last run: `manifest.json`, `run_results.json`, `sources.json`."""
    return json.loads((target() / name).read_text(encoding="utf-8"))


def results_of(*arguments: str, file: str = "run_results.json") -> dict[str, Any]:
    """Run dbt on hive/mart; returns what it wrote about its results, each node's status among them; raises as `dbt` does."""
    dbt(*arguments, file=file)
    return read(file)


def dbt(*arguments: str, file: str) -> None:
    """Run dbt on hive/mart, which writes a file about it.

    Raises
    ------
    MartsError
        When dbt could not run at all.
    """
    here = settings()
    variables = {"as_of": here.as_of, "delay_days": params().windows.delay_days, "top_cards": TOP_CARDS}
    folder = target()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).unlink(missing_ok=True)
    environment = os.environ | {
        "MARTS_HOST": here.loads_host,
        "MARTS_PORT": str(here.port("loads")),
        "MARTS_USER": here.hdfs_user,
        "DBT_PROFILES_DIR": str(PROJECT),
        "DBT_TARGET_PATH": str(folder),
        "DBT_LOG_PATH": str(here.data_dir / "logs"),
        "DO_NOT_TRACK": "1",
    }
    # A start through its entry point: `-m dbt.cli.main` would load that module twice.
    start = "from dbt.cli.main import cli; cli()"
    command = [sys.executable, "-c", start, "--quiet", *arguments, "--project-dir", str(PROJECT), "--vars", json.dumps(variables)]
    with progress(f"dbt {arguments[0]}"):
        ended = subprocess.run(
            command, env=environment, cwd=PROJECT, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    if not (folder / file).exists():
        said = " ".join(ended.stdout.split())[-1000:]
        raise MartsError(f"dbt could not run (exit code {ended.returncode}): {said}; its log is {here.data_dir / 'logs' / 'dbt.log'}")


def first_line(message: str | None) -> str:
    """Return the sentence of a failed node: what the SQL server said, without Java's stack."""
    lines = [line.strip() for line in (message or "").splitlines() if line.strip()]
    told = next((line for line in lines if "Exception" in line or "[" in line), lines[0] if lines else "")
    return first_sentence(Exception(told.replace("org.apache.hive.service.cli.HiveSQLException: ", "")))


def build(full: bool) -> None:
    """Bring every mart up to date.

    Raises
    ------
    MartsError
        When dbt could not run, or a mart could not be built.
    """
    with ops.run("marts") as this, ops.writer(LOCK, this, ops.WRITER_WAIT_SECONDS):
        with session() as hive:
            refuse_what_is_missing(hive)
            copy_records(hive, this)
        results = results_of("run", *(["--full-refresh"] if full else []))["results"]
        for one in results:
            name, seconds = one["unique_id"].rpartition(".")[2], round(one["execution_time"], 1)
            if one["status"] == "success":
                days = (one["adapter_response"] or {}).get("_message", one["message"])
                logger.info("built", mart=f"mart.{name}", what=days, seconds=seconds)
            else:
                logger.error("not built", mart=f"mart.{name}", state=one["status"], reason=first_line(one["message"]))
        if failed := [one for one in results if one["status"] != "success"]:
            first = next((one for one in failed if one["status"] == "error"), failed[0])
            raise MartsError(
                f"{len(failed)} of {len(results)} marts were not built and are as they were, first "
                f"{first['unique_id'].rpartition('.')[2]}: {first_line(first['message'])}; run bash/marts.sh again when that is mended"
            )


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(prog="bash/marts.sh", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("build", "docs"), default="build")
    parser.add_argument("--full", action="store_true", help="build every day anew")
    arguments = parser.parse_args()
    if arguments.command == "docs":
        dbt("docs", "generate", "--static", file="static_index.html")
        print(target() / "static_index.html")
        return
    build(arguments.full)


if __name__ == "__main__":
    run_main(main)
