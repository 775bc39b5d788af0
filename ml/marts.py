"""The marts: copies of the records, then `dbt build` of hive/mart on the loads server.

dbt does the work (hive/mart/macros/by_day.sql says how a mart is kept up to date); this module gives it the settings, one writer
at a time, and a record of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from etl import ops
from etl.errors import RefusedError, WarehouseError
from etl.log import logger, run_main
from etl.settings import ROOT, settings
from etl.sql_server import Session, session
from ml.evaluation import TOP_CARDS
from ml.params import params
from ml.records import copy_records

PROJECT = ROOT / "hive" / "mart"
NEEDED = ("core.transactions", "core.customers", "core.terminals", "core.fraud_reports", "mart.predictions", "mart.alerts")


class MartsError(WarehouseError):
    """dbt ended with an error."""


def target() -> Path:
    """Folder of what dbt writes about its runs: manifest, results, documentation."""
    return settings().data_dir / "report" / "marts"


def refuse_what_is_missing(hive: Session) -> None:
    """Look whether the tables that the marts are built from exist.

    Raises
    ------
    RefusedError
        Naming those that do not.
    """
    have = {f"{row[0]}.{row[1]}" for database in ("core", "mart") for row in hive.run(f"SHOW TABLES IN {database}")}
    if missing := [table for table in NEEDED if table not in have]:
        raise RefusedError(f"there is no table {', '.join(missing)}; load with bash/load.sh full, then bash/train.sh and bash/score.sh")


def dbt(*arguments: str, variables: Mapping[str, object] | None = None) -> int:
    """Run dbt on hive/mart; returns its exit code (0 well, 1 a model or test failed, 2 it could not run)."""
    here = settings()
    known = {"as_of": here.as_of, "delay_days": params().windows.delay_days, "top_cards": TOP_CARDS, **(variables or {})}
    folder = target()
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "MARTS_HOST": here.loads_host,
        "MARTS_PORT": str(here.port("loads")),
        "MARTS_USER": here.hdfs_user,
        "DBT_PROFILES_DIR": str(PROJECT),
        "DBT_TARGET_PATH": str(folder),
        "DBT_LOG_PATH": str(here.data_dir / "logs"),
        "DO_NOT_TRACK": "1",
    }
    command = [sys.executable, "-m", "dbt.cli.main", *arguments, "--project-dir", str(PROJECT), "--vars", json.dumps(known)]
    return subprocess.run(command, env=environment, cwd=PROJECT, check=False).returncode


def build(full: bool) -> None:
    """Bring every mart up to date.

    Raises
    ------
    MartsError
        When a model or one of its checks failed.
    """
    with ops.run("marts") as this, ops.writer("mart.marts", this):
        with session() as hive:
            refuse_what_is_missing(hive)
            copy_records(hive, this)
        code = dbt("build", *(["--full-refresh"] if full else []))
        if code:
            raise MartsError(f"dbt ended with code {code}: look above for what failed, mend it and run bash/marts.sh again")
        logger.info("marts are up to date", folder=str(target()))


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(prog="bash/marts.sh", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("build", "docs"), default="build")
    parser.add_argument("--full", action="store_true", help="build every day anew")
    arguments = parser.parse_args()
    if arguments.command == "docs":
        if code := dbt("docs", "generate", "--static"):
            raise MartsError(f"dbt ended with code {code}: look above")
        print(target() / "static_index.html")
        return
    build(arguments.full)


if __name__ == "__main__":
    run_main(main)
