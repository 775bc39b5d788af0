"""`bash/query.sh` and `bash/run_hql.sh`: HiveQL from the command line."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

from etl.errors import RefusedError
from etl.log import run_main
from etl.settings import settings
from etl.sql_server import Session, render, session


def show(columns: list[str], rows: list[tuple[Any, ...]], form: str) -> None:
    """Print rows as a table, CSV or JSON lines."""
    if form == "csv":
        writer = csv.writer(sys.stdout)
        writer.writerow(columns)
        writer.writerows(rows)
    elif form == "json":
        for row in rows:
            print(json.dumps(dict(zip(columns, row, strict=True)), default=str, ensure_ascii=False))
    else:
        from rich.table import Table

        from etl.screens import console

        table = Table(*columns)
        for row in rows:
            table.add_row(*("" if value is None else str(value) for value in row))
        console().print(table)


def run(hive: Session, statement: str, form: str) -> None:
    """Run one statement and print what it returns."""
    columns, rows = hive.query(statement)
    if columns:
        show(columns, rows, form)


def main() -> None:
    """Parse the command line and run a statement."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    query = commands.add_parser("query", prog="bash/query.sh", help="ask the readers server")
    query.add_argument("statement", nargs="?", help="one statement of HiveQL")
    query.add_argument("-f", "--file", type=Path, help="read the statement from a file")
    query.add_argument("--format", choices=("table", "csv", "json"), default="table")
    file = commands.add_parser("run-hql", prog="bash/run_hql.sh", help="run a file of one statement on the loads server")
    file.add_argument("file", type=Path)
    file.add_argument("parameters", nargs="*", metavar="NAME=VALUE")
    file.add_argument("--format", choices=("table", "csv", "json"), default="table")
    arguments = parser.parse_args()
    if arguments.command == "query":
        if (arguments.statement is None) == (arguments.file is None):
            raise RefusedError('give one statement, as in bash/query.sh "show databases", or -f FILE')
        if arguments.file is not None and not arguments.file.is_file():
            raise RefusedError(f"there is no file {arguments.file}")
        statement = arguments.statement or arguments.file.read_text(encoding="utf-8")
        with session("readers", user=settings().hdfs_readers_user) as hive:
            run(hive, statement.strip().rstrip(";"), arguments.format)
        return
    wrong = [part for part in arguments.parameters if "=" not in part]
    if wrong:
        raise RefusedError(f"{wrong[0]} is not NAME=VALUE")
    if not arguments.file.is_file():
        raise RefusedError(f"there is no file {arguments.file}")
    statement = render(arguments.file.resolve(), **dict(part.split("=", 1) for part in arguments.parameters))
    with session("loads") as hive:
        run(hive, statement.strip().rstrip(";"), arguments.format)


if __name__ == "__main__":
    run_main(main)
