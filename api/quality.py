"""Checks of data: dbt runs them, `ops.checks` keeps what they found, the notifier's channels tell what failed.

They stand in the YAML of hive/mart/models, beside the tables that they are about: schema, values, keys, freshness, volume, distribution.
A check of severity error that fails ends the verb with exit code 1 and so stops a pipeline; one of severity warn is told.
"""

from __future__ import annotations

import argparse
import datetime as dt
from dataclasses import dataclass
from typing import Any, Literal

from psycopg2.extras import execute_values
from rich.table import Table as Screen

from api.notice import FailedCheck, Notice
from api.notify import tell
from etl import ops
from etl.databases import opened
from etl.errors import WarehouseError
from etl.log import logger, run_main
from etl.screens import console
from etl.sql_server import session
from ml import marts
from ml.records import copy_records

Severity = Literal["error", "warn"]
PARTS = {"sources": ("source:core",), "marts": ("source:scoring", "config.materialized:by_day")}
"""What dbt selects for each part: what was loaded, and what people read of it."""
FRESH = {"sources": ("source:core",), "marts": ("source:core", "source:scoring")}
"""Sources whose age each part checks; that of core once more after a build, for it is asked in no load that failed."""

SHOWN = """
SELECT DISTINCT ON (table_name, check_name) table_name, check_name, severity, is_passed, observed, checked_at
FROM ops.checks
WHERE run_id IN (SELECT DISTINCT ON (verb) run_id FROM ops.checks INNER JOIN ops.runs USING (run_id) ORDER BY verb, started_at DESC)
ORDER BY table_name, check_name, checked_at DESC
"""
"""Of the newest run of each part: a check that is no more is not shown."""
TOLD = "SELECT table_name, check_name FROM ops.checks WHERE severity = 'warn' AND NOT is_passed AND checked_at >= date_trunc('day', now())"
"""Warnings that were told today (UTC)."""


class QualityError(WarehouseError):
    """A check of severity error did not hold."""


@dataclass(frozen=True)
class Outcome:
    """What one check found."""

    table_name: str
    check_name: str
    severity: Severity
    is_passed: bool
    observed: str


def outcomes_of_tests(results: dict[str, Any], manifest: dict[str, Any]) -> list[Outcome]:
    """Return the outcomes of `dbt test`, from its run_results.json and manifest.json."""
    found = []
    for result in results["results"]:
        node = manifest["nodes"][result["unique_id"]]
        # The table that a check hangs on is named first; others are those that it compares with. One written as SQL hangs on none.
        read = node.get("depends_on", {}).get("nodes", [""])
        about = node.get("attached_node") or next((one for one in read if _is_about(one, node)), read[0])
        table = (manifest["nodes"].get(about) or manifest["sources"][about])["relation_name"]
        status = result["status"]
        severity: Severity = "warn" if status == "warn" or (status == "pass" and node["config"]["severity"].lower() == "warn") else "error"
        said = (result["message"] or "").strip()
        if status == "pass":
            observed = str(result["failures"] or 0)
        else:
            observed = (marts.first_line(said) if status == "error" else said.split("\n")[0].strip())[:500]
        found.append(Outcome(table.replace("`", ""), node["name"], severity, status == "pass", observed))
    return found


def _is_about(unique_id: str, node: dict[str, Any]) -> bool:
    wanted = node.get("test_metadata", {}).get("kwargs", {}).get("model", "")
    return all(part in wanted for part in unique_id.split(".")[2:])


def outcomes_of_freshness(results: dict[str, Any]) -> list[Outcome]:
    """Return the outcomes of `dbt source freshness`, from its sources.json."""
    found = []
    for result in results["results"]:
        _, _, source, table = result["unique_id"].split(".")
        database = "mart" if source == "scoring" else source
        status = result["status"]
        loaded = f"loaded {result['max_loaded_at'][:19]}" if result.get("max_loaded_at") else str(result.get("error") or status)[:500]
        found.append(Outcome(f"{database}.{table}", "freshness", "warn" if status == "warn" else "error", status == "pass", loaded))
    return found


def check(part: str) -> list[Outcome]:
    """Run the checks of a part, keep their outcomes, and tell those that failed.

    Raises
    ------
    QualityError
        When a check of severity error failed.
    MartsError
        When dbt could not run.
    """
    # One dbt at a time: it writes what it found into one folder.
    with ops.run(f"quality {part}") as this, ops.writer(marts.LOCK, this, ops.WRITER_WAIT_SECONDS):
        with session() as hive:
            marts.refuse_what_is_missing(hive, only="core" if part == "sources" else "")
            copy_records(hive, this)
        # Not those checks of marts that read core as well, where core is looked at.
        chosen = ("--exclude-resource-type", "unit_test", "--indirect-selection", "buildable", "--select", *PARTS[part])
        found = outcomes_of_tests(marts.results_of("test", *chosen), marts.read("manifest.json"))
        found += outcomes_of_freshness(marts.results_of("source", "freshness", "--select", *FRESH[part], file="sources.json"))
        failed = [one for one in found if not one.is_passed]
        untold = not_yet_told(failed)
        keep(this, found)
        if untold:
            told = [FailedCheck(**{name: getattr(one, name) for name in FailedCheck.model_fields}) for one in untold]
            tell(Notice(run_id=this.run_id, checked_at=dt.datetime.now(dt.UTC), failed_checks=told))
        logger.info("checked", part=part, checks=len(found), failed=len(failed))
        if errors := [one for one in failed if one.severity == "error"]:
            first = errors[0]
            raise QualityError(
                f"{len(errors)} checks of data failed, first {first.check_name} of {first.table_name}: {first.observed}; "
                "bash/quality.sh shows them all"
            )
    return found


def not_yet_told(failed: list[Outcome]) -> list[Outcome]:
    """Return those that are told now: a warning that goes on failing is told once a day, an error each time."""
    with opened("etl", "warehouse") as connection, connection.cursor() as cursor:
        cursor.execute(TOLD)
        told = set(cursor.fetchall())
    return [one for one in failed if one.severity == "error" or (one.table_name, one.check_name) not in told]


def keep(this: ops.Run, found: list[Outcome]) -> None:
    """Write outcomes to `ops.checks`."""
    rows = [(this.run_id, one.table_name, one.check_name, one.severity, one.is_passed, one.observed) for one in found]
    with opened("etl", "warehouse") as connection, connection.cursor() as cursor:
        execute_values(cursor, "INSERT INTO ops.checks (run_id, table_name, check_name, severity, is_passed, observed) VALUES %s", rows)


def shown() -> list[tuple[Any, ...]]:
    """Return the newest outcome of each check: table, check, severity, whether it held, what was found, when; those that failed first."""
    with opened("etl", "warehouse") as connection, connection.cursor() as cursor:
        cursor.execute(SHOWN)
        return sorted(cursor.fetchall(), key=lambda row: (row[3], row[2] != "error", row[0], row[1]))


def show() -> None:
    """Print the newest outcome of each check."""
    screen = Screen(title="newest outcome of each check", title_justify="left")
    for column in ("table", "check", "outcome", "found", "at"):
        screen.add_column(column, overflow="fold")
    for table, name, severity, is_passed, observed, at in shown():
        screen.add_row(table, name, "passed" if is_passed else severity, "" if is_passed else observed, f"{at:%Y-%m-%d %H:%M}")
    console().print(screen)


def main() -> None:
    """Run a verb of bash/quality.sh."""
    parser = argparse.ArgumentParser(prog="bash/quality.sh", description=__doc__)
    verbs = parser.add_subparsers(dest="verb")
    verbs.add_parser("show", help="the newest outcome of each check")
    verbs.add_parser("check", help="run checks").add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    given = parser.parse_args()
    if given.verb == "check":
        errors = []
        for part in given.parts or PARTS:
            # One that fails keeps no other from being checked.
            try:
                check(part)
            except QualityError as error:
                errors.append(error)
        if errors:
            raise errors[0]
    else:
        show()


if __name__ == "__main__":
    run_main(main)
