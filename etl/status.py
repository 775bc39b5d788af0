"""`bash/status.sh`: one screen of freshness. How far each table has come, and what holds the source back."""

from __future__ import annotations

import argparse
import datetime as dt

from rich.table import Table as Screen

from etl import core
from etl.databases import opened
from etl.log import run_main
from etl.screens import console
from etl.sql_server import Session, session
from etl.tables import declared_tables
from etl.watermark import watermarks


def age(moment: dt.datetime | None) -> str:
    """Say how long ago a moment was."""
    if moment is None:
        return "never"
    seconds = int((dt.datetime.now(dt.UTC) - moment).total_seconds())
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h" if seconds < 172_800 else f"{seconds // 86_400} d"


def row_counts(hive: Session, names: list[str]) -> dict[str, int]:
    """Return the rows of Iceberg tables by qualified name, from their metadata."""
    present = {f"{database}.{name}" for database in {name.split(".")[0] for name in names} for name in core.existing(hive, database)}
    return {name: int(hive.run(f"SELECT count(*) FROM {name}")[0][0]) for name in names if name in present}


def last_runs() -> list[tuple[str, str, dt.datetime, float | None, str | None]]:
    """Return the newest run of each verb: verb, state, started, seconds, error."""
    with opened("etl", "warehouse") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT DISTINCT ON (verb) verb, state, started_at, seconds, error FROM ops.runs ORDER BY verb, started_at DESC")
        return cursor.fetchall()


def oldest_transaction() -> tuple[dt.datetime, str] | None:
    """Return the oldest open transaction of the source and whose it is."""
    with opened("extractor", "bank") as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT least(xact_start, query_start), "
            "concat_ws(', ', usename, 'pid ' || pid, nullif(application_name, '')) "
            "FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid() "
            "AND backend_type = 'client backend' ORDER BY 1 LIMIT 1"
        )
        row = cursor.fetchone()
        return (row[0], row[1]) if row else None


def main() -> None:
    """Print the screen."""
    argparse.ArgumentParser(prog="bash/status.sh", description=__doc__).parse_args()
    terminal = console()
    tables = list(declared_tables().values())
    with session() as hive:
        counts = row_counts(hive, [*(f"core.{table.name}" for table in tables), "feature.transactions", "mart.predictions"])
        screen = Screen(title="tables", title_justify="left")
        for column in ("table", "newest batch", "in core", "watermark", "age", "rows in core"):
            screen.add_column(column, justify="right" if column != "table" else "left")
        for mark in watermarks(hive, tables):
            next_from = mark.batch.next_from if mark.batch else None
            screen.add_row(
                mark.table.name,
                str(mark.newest or "none"),
                str(mark.mark or "none"),
                f"{next_from:%Y-%m-%d %H:%M:%S}" if next_from else "none",
                age(next_from),
                f"{counts.get(f'core.{mark.table.name}', 0):,}",
            )
        screen.add_section()
        for name in ("feature.transactions", "mart.predictions"):
            screen.add_row(name, "", "", "", "", f"{counts[name]:,}" if name in counts else "none")
        terminal.print(screen)
    screen = Screen(title="last runs", title_justify="left")
    for column in ("verb", "state", "started", "seconds", "error"):
        screen.add_column(column)
    for verb, state, started_at, seconds, error in last_runs():
        screen.add_row(verb, state, f"{age(started_at)} ago", f"{seconds:.1f}" if seconds else "", (error or "").split("\n")[0])
    terminal.print(screen)
    oldest = oldest_transaction()
    terminal.print(
        f"oldest open transaction in the source: {age(oldest[0])} old ({oldest[1]})" if oldest else "no open transaction in the source"
    )


if __name__ == "__main__":
    run_main(main)
