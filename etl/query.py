"""`bash/query.sh` and `bash/run_hql.sh`: HiveQL from the command line."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

from etl.errors import RefusedError
from etl.log import run_main
from etl.screens import waiting
from etl.sql_server import Session, render, session

Row = tuple[Any, ...]

TABLE_ROWS = 1000
"""Rows that a table shows, by default: it is laid out when the last one is known, so all of them are in memory."""


def distinct(names: Iterable[str]) -> list[str]:
    """Return names of which none stands twice: of equal ones the later get a number that is free, as in `id`, `id_2`."""
    names = list(names)
    found: list[str] = []
    for name in names:
        free = (f"{name}_{number}" for number in itertools.count(2))
        found.append(next(one for one in free if one not in (*names, *found)) if name in found else name)
    return found


def as_json(value: Any) -> str:
    """Write a value as JSON: a decimal as a number with all its digits, a number that JSON has not (NaN) and the rest as texts."""
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, float) and not math.isfinite(value):
        value = json.dumps(value)
    return json.dumps(value, default=str, ensure_ascii=False)


def as_csv(value: Any) -> str:
    """Write a value as Postgres does in CSV: NULL is nothing, an empty text is `""`; the module csv writes both alike."""
    text = "" if value is None else str(value)
    quoted = value == "" or re.search(r'[",\r\n]', text)
    return '"' + text.replace('"', '""') + '"' if quoted else text


def show(columns: list[str], rows: Iterable[Row], form: str, limit: int | None) -> None:
    """Print rows as they come, as CSV or JSON lines, or as a table when all are there.

    Parameters
    ----------
    columns
        Equal names are told apart in CSV and JSON, whose readers would keep the last column only.
    limit
        Rows after which it ends, and says so on standard error; None for all of them.
    """
    rows = iter(rows)
    shown = rows if limit is None else itertools.islice(rows, limit)
    if form == "csv":
        for line in itertools.chain([distinct(columns)], shown):
            sys.stdout.write(",".join(map(as_csv, line)) + "\r\n")
    elif form == "json":
        names = [as_json(name) for name in distinct(columns)]
        for row in shown:
            print("{" + ", ".join(f"{name}: {as_json(value)}" for name, value in zip(names, row, strict=True)) + "}")
    else:
        from rich.table import Table

        from etl.screens import console

        table = Table(*columns)
        for row in shown:
            table.add_row(*("" if value is None else str(value) for value in row))
        # Spark gives what answers nothing, such as CREATE TABLE, one column without a row.
        console().print("done" if columns == ["Result"] and not table.row_count else table)
    if limit is not None and next(rows, None) is not None:
        sys.stdout.flush()
        print(f"cut after {limit:,} rows; --limit N shows more, --format csv or json gives all", file=sys.stderr)


def _counted(rows: Iterable[Row], tell: Callable[[str], None]) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        if number % 1000 == 0:
            tell(f"{number:,} rows")
        yield row


def run(hive: Session, statement: str, form: str, limit: int | None) -> None:
    """Run one statement and print what it returns; Ctrl-C ends it on the server."""
    with ExitStack() as shown:
        tell = shown.enter_context(waiting())
        with hive.answer(statement) as answer:
            if form != "table" and sys.stdout.isatty():
                # The rows themselves say that something comes.
                shown.close()
            if answer.columns:
                show(answer.columns, _counted(answer.rows, tell), form, limit)


def _add_form(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")
    parser.add_argument("--limit", type=int, help=f"rows after which it ends; {TABLE_ROWS} for a table, else none")


def _limit(arguments: argparse.Namespace) -> int | None:
    if arguments.limit is not None and arguments.limit < 1:
        raise RefusedError(f"--limit is {arguments.limit}; give 1 or more")
    return TABLE_ROWS if arguments.limit is None and arguments.format == "table" else arguments.limit


def main() -> None:
    """Parse the command line and run a statement."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    query = commands.add_parser("query", prog="bash/query.sh", help="ask the readers server")
    query.add_argument("statement", nargs="?", help="one statement of HiveQL")
    query.add_argument("-f", "--file", type=Path, help="read the statement from a file")
    _add_form(query)
    file = commands.add_parser("run-hql", prog="bash/run_hql.sh", help="run a file of one statement on the loads server")
    file.add_argument("file", type=Path)
    file.add_argument("parameters", nargs="*", default=[], metavar="NAME=VALUE")
    _add_form(file)
    arguments = parser.parse_args()
    limit = _limit(arguments)
    if arguments.command == "query":
        if (arguments.statement is None) == (arguments.file is None):
            raise RefusedError('give one statement, as in bash/query.sh "show databases", or -f FILE')
        if arguments.file is not None and not arguments.file.is_file():
            raise RefusedError(f"there is no file {arguments.file}")
        statement = arguments.statement or arguments.file.read_text(encoding="utf-8")
        with session("readers") as hive:
            run(hive, statement.strip().rstrip(";"), arguments.format, limit)
        return
    wrong = [part for part in arguments.parameters if "=" not in part]
    if wrong:
        raise RefusedError(f"{wrong[0]} is not NAME=VALUE")
    if not arguments.file.is_file():
        raise RefusedError(f"there is no file {arguments.file}")
    statement = render(arguments.file.resolve(), **dict(part.split("=", 1) for part in arguments.parameters))
    with session("loads") as hive:
        run(hive, statement.strip().rstrip(";"), arguments.format, limit)


if __name__ == "__main__":
    run_main(main)
