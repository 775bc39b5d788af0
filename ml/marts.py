"""The marts: copies of the records, then `dbt run` of hive/mart on the loads server.

dbt does the work (hive/mart/macros/by_day.sql says how a mart is kept up to date); this module gives it the settings, the days that can
have changed since the last run, one writer at a time, and a record of the run. What a run has seen is noted when it has ended well, as a
property of `mart.scored_transactions`; a run that was killed leaves marts that are not as noted, and the next one compares all days.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from etl import ops
from etl.databases import password
from etl.errors import RefusedError, WarehouseError
from etl.log import logger, run_main
from etl.screens import progress
from etl.settings import ROOT, settings
from etl.sql_server import Session, first_sentence, literal, session
from etl.streams import merge_ranges
from ml import changes
from ml.evaluation import TOP_CARDS
from ml.params import params
from ml.records import TABLES as COPIES
from ml.records import copy_records

PROJECT = ROOT / "hive" / "mart"
LOCK = "mart.marts"
READ = ("core.transactions", "core.customers", "core.terminals", "core.fraud_reports", "mart.predictions")
NEEDED = (*READ, "mart.alerts")


RECORDS = tuple(f"ops.{name}" for name in COPIES if name != "runs")
"""Copies of records that a mart reads; each run of a verb is another row of `ops.runs`."""
VERSIONS = "ops.model_versions"
NOTED_IN, NOTE = "mart.scored_transactions", "card_fraud.seen"
"""Table property with what the last complete run has seen."""


class MartsError(WarehouseError):
    """dbt could not run, or a mart could not be built."""


@dataclass(frozen=True)
class Seen:
    """What a run has seen: a hash of code and parameters, 'now', and the newest snapshot of all that is read or written."""

    definition: str
    as_of: str
    snapshots: dict[str, int]

    def differs_from(self, other: Seen) -> set[str]:
        """Return the tables whose snapshots differ; and `now`, `code` where those do."""
        mine, others = ({**one.snapshots, "now": one.as_of, "code": one.definition} for one in (self, other))
        return {name for name in mine | others if mine.get(name) != others.get(name)}


@dataclass(frozen=True)
class Candidates:
    """Days on which rows can have changed.

    Attributes
    ----------
    days, labels
        Of the transactions, and of the marts' rows about labels; None for all.
    keys
        Ranges that hold the keys of the transactions on those days.
    """

    days: frozenset[dt.date] | None = None
    labels: frozenset[dt.date] | None = None
    keys: changes.Ranges | None = None

    def to_json(self, run_id: str) -> str:
        """Return what the macros of hive/mart read."""
        return json.dumps({"run": run_id, "days": _day_ranges(self.days), "labels": _day_ranges(self.labels), "keys": self.keys})


def _day_ranges(days: frozenset[dt.date] | None) -> list[list[str]] | None:
    if days is None:
        return None
    found = merge_ranges([(day.toordinal(), day.toordinal()) for day in days], changes.RANGES)
    return [[f"date '{dt.date.fromordinal(one)}'" for one in bounds] for bounds in found]


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


def results_of(*arguments: str, file: str = "run_results.json", told: Mapping[str, str] = {}) -> dict[str, Any]:
    """Run dbt on hive/mart; returns what it wrote about its results, each node's status among them; raises as `dbt` does."""
    dbt(*arguments, file=file, told=told)
    return read(file)


def dbt(*arguments: str, file: str, told: Mapping[str, str] = {}) -> None:
    """Run dbt on hive/mart, which writes a file about it; `told` are variables of its environment.

    Raises
    ------
    MartsError
        When dbt could not run at all.
    """
    here = settings()
    folder = target()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).unlink(missing_ok=True)
    environment = (
        os.environ
        | told
        | {
            "MARTS_HOST": here.loads_host,
            "MARTS_PORT": str(here.port("loads")),
            "MARTS_USER": here.hdfs_user,
            # dbt keeps variables of this kind out of its logs.
            "DBT_ENV_SECRET_MARTS_PASSWORD": password("etl"),
            "MARTS_CLOCK": here.as_of,
            "DBT_PROFILES_DIR": str(PROJECT),
            "DBT_TARGET_PATH": str(folder),
            "DBT_LOG_PATH": str(here.data_dir / "logs"),
            "DO_NOT_TRACK": "1",
        }
    )
    # A start through its entry point: `-m dbt.cli.main` would load that module twice.
    start = "from dbt.cli.main import cli; cli()"
    command = [sys.executable, "-c", start, "--quiet", *arguments, "--project-dir", str(PROJECT), "--vars", json.dumps(variables())]
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


def variables() -> dict[str, int]:
    """Return the parameters that the models read."""
    return {"delay_days": params().windows.delay_days, "top_cards": TOP_CARDS}


def see(hive: Session) -> Seen:
    """Look at what the marts are built from, and at the marts."""
    digest = hashlib.sha256(json.dumps(variables()).encode())
    for path in sorted(path for path in PROJECT.rglob("*") if path.suffix in (".sql", ".yml")):
        digest.update(path.read_bytes())
    have = [f"{database}.{row[1]}" for database in ("core", "mart", "ops") for row in hive.run(f"SHOW TABLES IN {database}")]
    snapshots = changes.newest(hive.run, [name for name in have if name in (*READ, *RECORDS, VERSIONS, *_marts())])
    given = settings().as_of
    moment = f"TIMESTAMP {literal(given)}" if given else "(SELECT max(transacted_at) FROM core.transactions)"
    ((as_of,),) = hive.run(f"SELECT CAST({moment} AS string)")
    return Seen(digest.hexdigest(), as_of or "", snapshots)


def _marts() -> list[str]:
    return sorted(f"mart.{path.stem}" for path in (PROJECT / "models").glob("*.sql"))


def noted(hive: Session) -> Seen | None:
    """Return what the last complete run has seen, None where nothing is noted."""
    if not hive.run(f"SHOW TABLES IN mart LIKE '{NOTED_IN.partition('.')[2]}'"):
        return None
    found = {str(row[0]): str(row[1]) for row in hive.run(f"SHOW TBLPROPERTIES {NOTED_IN}")}
    return Seen(**json.loads(bytes.fromhex(found[NOTE]))) if NOTE in found else None


def note(hive: Session, this: ops.Run, seen: Seen) -> None:
    """Note what a run has seen that ended well, unless others wrote to the marts meanwhile: the next run compares all days then."""
    marts = changes.newest(hive.run, _marts())
    found = changes.commits(hive.run, {name: (seen.snapshots.get(name), now) for name, now in marts.items()})
    if others := [name for name, made in found.items() if made is None or any(one.run != this.run_id for one in made)]:
        logger.warning("somebody else wrote to the marts during the run; the next one compares all days", marts=others)
        return
    text = json.dumps(asdict(Seen(seen.definition, seen.as_of, {**seen.snapshots, **marts})))
    # In hexadecimal: Spark shows no property in which it finds a word such as `url` (fraud_hourly).
    hive.commit(f"ALTER TABLE {NOTED_IN} SET TBLPROPERTIES ('{NOTE}' = '{text.encode().hex()}')")


def candidates(hive: Session, before: Seen | None, now: Seen) -> Candidates:
    """Find the days on which rows can have changed since a run, from the commits to what the marts are built from."""
    if before is None or before.definition != now.definition or before.snapshots.keys() != now.snapshots.keys():
        logger.info("all days are compared", reason="nothing is noted" if before is None else "code, parameters or tables are others")
        return Candidates()
    spans = {name: (before.snapshots[name], snapshot) for name, snapshot in now.snapshots.items() if name not in RECORDS}
    found = changes.commits(hive.run, spans)
    if others := [name for name in _marts() if found.get(name, []) != []]:
        logger.info("all days are compared", reason="a run did not end, or somebody else wrote to the marts", marts=others)
        return Candidates()
    days = _changed_days(hive, before, found)
    if days is None:
        return Candidates()
    keys: changes.Ranges = []
    if days:
        on = " OR ".join(f"CAST(transacted_at AS date) BETWEEN {low} AND {high}" for low, high in _day_ranges(days) or ())
        keys = changes.ranges(hive.run, f"SELECT transaction_id FROM core.transactions WHERE {on}", "transaction_id")
    labels = None if found.get(VERSIONS, []) != [] else days | _newly_labelled(hive, before.as_of, now.as_of)
    logger.info("days that can have changed", days=len(days), first=str(min(days, default="")), last=str(max(days, default="")))
    return Candidates(days, labels, keys)


def _changed_days(hive: Session, before: Seen, found: Mapping[str, list[changes.Commit] | None]) -> frozenset[dt.date] | None:
    # Of a transaction before and after, as of a prediction when it was scored; else the day of the transaction as it is.
    moments, parts = [], []
    for name in ("core.transactions", "core.fraud_reports", "mart.predictions"):
        if (made := found.get(name, [])) == []:
            continue
        touched = changes.touched(hive.run, name, made)
        if touched is None:
            logger.info("all days are compared", reason="what changed cannot be told", table=name)
            return None
        if name != "core.fraud_reports":
            moments.append(touched.rows(hive.run, "transacted_at"))
        if name != "core.transactions":
            pruned = changes.within("transaction_id", changes.ranges(hive.run, touched.keys, "transaction_id"))
            parts.append(f"LEFT SEMI JOIN ({touched.keys}) AS k USING (transaction_id) WHERE {pruned}")
    for table, columns in yaml.safe_load((PROJECT / "dbt_project.yml").read_text(encoding="utf-8"))["vars"]["attributes"].items():
        name, key = f"core.{table}", columns[0]
        commits = found.get(name, [])
        if commits is None:
            logger.info("all days are compared", reason="what changed cannot be told", table=name)
            return None
        if commits:
            states = " UNION ALL ".join(
                f"SELECT {key}, struct({', '.join(columns)}) AS state FROM {name} VERSION AS OF {snapshot}"
                for snapshot in [before.snapshots[name], *(commit.snapshot for commit in commits)]
            )
            changed = f"SELECT {key} FROM ({states}) GROUP BY {key} HAVING count(*) <= {len(commits)} OR NOT min(state) <=> max(state)"
            if hive.run(f"{changed} LIMIT 1"):
                parts.append(f"LEFT SEMI JOIN ({changed}) AS k USING ({key})")
    if parts:
        moments.append(" UNION ALL ".join(f"SELECT transacted_at FROM core.transactions {part}" for part in parts))
    # One by one: see Touched.
    rows = [row for moment in moments for row in hive.run(f"SELECT DISTINCT CAST(transacted_at AS date) FROM ({moment})")]
    return frozenset(dt.date.fromisoformat(str(row[0])) for row in rows if row[0] is not None)


def _newly_labelled(hive: Session, before: str, now: str) -> frozenset[dt.date]:
    """Return the days whose labels count at one of two moments and not at the other: see hive/mart/models/model_performance.sql."""
    if before == now or not (before and now):
        return frozenset()
    low, high = sorted(dt.datetime.fromisoformat(text) for text in (before, now))
    delay = dt.timedelta(days=params().windows.delay_days) - dt.timedelta(microseconds=1)
    first, last = (low - delay).date(), (high - delay).date()
    reported = (
        "SELECT transaction_id FROM core.fraud_reports "
        f"WHERE reported_at > TIMESTAMP {literal(str(low))} AND reported_at <= TIMESTAMP {literal(str(high))}"
    )
    pruned = changes.within("transaction_id", changes.ranges(hive.run, reported, "transaction_id"))
    rows = hive.run(
        "SELECT DISTINCT CAST(transacted_at AS date) FROM core.transactions "
        f"LEFT SEMI JOIN ({reported}) AS r USING (transaction_id) WHERE {pruned}"
    )
    return frozenset(
        [
            *(first + dt.timedelta(days=number) for number in range((last - first).days)),
            *(dt.date.fromisoformat(str(day)) for (day,) in rows),
        ]
    )


def build(full: bool) -> Candidates:
    """Bring every mart up to date; returns the days that were looked at.

    Raises
    ------
    MartsError
        When dbt could not run, or a mart could not be built.
    """
    with ops.run("marts") as this, ops.writer(LOCK, this, ops.WRITER_WAIT_SECONDS):
        with session() as hive:
            refuse_what_is_missing(hive)
            copy_records(hive, this)
            # Before dbt reads: what is committed from now on is for the next run, too.
            now = see(hive)
            before = None if full else noted(hive)
            moved = None if before is None else now.differs_from(before)
            if moved == set():
                logger.info("nothing has changed since the last run")
                return Candidates(frozenset(), frozenset(), [])
            todo = Candidates() if full else candidates(hive, before, now)
        arguments = ["--full-refresh"] if full else []
        # Checks are recorded after every build.
        if moved and moved.issubset(RECORDS):
            arguments = ["--select", "data_quality_daily+"]
        told = {"MARTS_AS_OF": now.as_of, "MARTS_CHANGES": todo.to_json(this.run_id)}
        results = results_of("run", *arguments, told=told)["results"]
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
        with session() as hive:
            note(hive, this, now)
        return todo


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
