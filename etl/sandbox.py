"""`bash/sandbox.sh`: the tables that analysts make themselves, in the database `sandbox`.

The SELECT runs on the readers server, with its rights; its rows come back here and go to HDFS as one Parquet file, and only then is
there a table. So nothing that an analyst writes is ever run by the loads server. HDFS itself keeps the quota of the folder.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import posixpath
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdfs.util import HdfsError

from etl import core, ops
from etl.errors import RefusedError
from etl.faults import named_faults
from etl.log import logger, run_main
from etl.screens import console
from etl.settings import settings
from etl.sql_server import FETCHED_ROWS, Answer, Session, session
from etl.storage import names_in, storage

if TYPE_CHECKING:
    import pyarrow as pa

DATABASE = "sandbox"
BLOCK_BYTES = 8 * 2**20
"""HDFS counts a block as full while it is written: large ones would leave a part of the quota that nobody can use."""


@dataclass(frozen=True)
class SandboxTable:
    """A table of the sandbox."""

    name: str
    folder: str
    created_at: dt.datetime
    created_by: str
    rows: int


def folder() -> str:
    """HDFS folder of the sandbox's tables."""
    return f"{settings().warehouse_path}/{DATABASE}"


def create(name: str, select: str, run: ops.Run) -> int:
    """Make a table of what a SELECT answers on the readers server; return its rows.

    Raises
    ------
    RefusedError
        When there is such a table, the SELECT's columns cannot be those of one, or the sandbox has no room for it.
    """
    _check_name(name)
    with session() as hive:
        _refuse_taken(hive, name)
    with tempfile.TemporaryDirectory(dir=_scratch()) as place:
        path = Path(place) / "part.parquet"
        with session("readers") as readers:
            # Whatever is no query ends here.
            columns = [(str(row[0]).lower(), str(row[1])) for row in readers.run(f"DESCRIBE QUERY {select}")]
            schema = arrow_schema(columns)
            with readers.answer(select) as answer:
                rows = _write(path, schema, answer, name)
        with ops.writer(DATABASE, run, ops.WRITER_WAIT_SECONDS), session() as hive, named_faults():
            sweep(hive)
            _refuse_taken(hive, name)
            own = f"{folder()}/{name}-{run.run_id}"
            try:
                _upload(path, f"{own}/part.parquet", name)
                hive.run_file(
                    "hive/sandbox/create.hql",
                    name=name,
                    definitions=[{"name": column, "type": kind} for column, kind in columns],
                    location=f"{settings().hdfs_uri}{own}",
                    created_at=f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%SZ}",
                    created_by=settings().readers_user,
                    rows=rows,
                )
            except BaseException:
                # Where the table was made all the same, its folder is its own.
                with suppress(Exception):
                    sweep(hive)
                raise
    logger.info("created", table=f"{DATABASE}.{name}", rows=rows)
    return rows


def drop(name: str, run: ops.Run) -> None:
    """Remove a table and its file.

    Raises
    ------
    RefusedError
        When there is none of this name.
    """
    _check_name(name)
    with ops.writer(DATABASE, run, ops.WRITER_WAIT_SECONDS), session() as hive, named_faults():
        if name not in core.existing(hive, DATABASE):
            raise RefusedError(f"there is no table {DATABASE}.{name}; bash/sandbox.sh list shows those that are there")
        _drop(hive, name)


def expire(hive: Session, run: ops.Run, keep_days: float) -> list[str]:
    """Remove tables that are older than so many days, and files of creations that were killed; return the tables' names."""
    with ops.writer(DATABASE, run, ops.WRITER_WAIT_SECONDS), named_faults():
        before = dt.datetime.now(dt.UTC) - dt.timedelta(days=keep_days)
        old = [table.name for table in tables(hive) if table.created_at < before]
        for name in old:
            _drop(hive, name)
        sweep(hive)
    return old


def tables(hive: Session) -> list[SandboxTable]:
    """Return the sandbox's tables by name."""
    found = []
    for name in sorted(core.existing(hive, DATABASE)):
        told = dict(hive.run(f"SHOW TBLPROPERTIES {DATABASE}.{name}"))
        found.append(
            SandboxTable(
                name,
                _folder_of(hive, name),
                dt.datetime.strptime(told["sandbox.created_at"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=dt.UTC),
                told["sandbox.created_by"],
                int(told["sandbox.rows"]),
            )
        )
    return found


def sweep(hive: Session) -> None:
    """Remove folders that no table has: of a creation or a removal that was killed. Under the sandbox's lock only."""
    known = {posixpath.basename(_folder_of(hive, name)) for name in core.existing(hive, DATABASE)}
    for name in names_in(folder()):
        if name not in known:
            storage().delete(f"{folder()}/{name}", recursive=True)


def arrow_schema(columns: Sequence[tuple[str, str]]) -> pa.Schema:
    """Return what a Parquet file has for columns of these names and HiveQL types.

    Raises
    ------
    RefusedError
        Naming the column that cannot be one of a table, and what to do.
    """
    import pyarrow as pa

    simple = {
        "boolean": pa.bool_(),
        "tinyint": pa.int8(),
        "smallint": pa.int16(),
        "int": pa.int32(),
        "bigint": pa.int64(),
        "float": pa.float32(),
        "double": pa.float64(),
        "string": pa.string(),
        "binary": pa.binary(),
        "date": pa.date32(),
        "timestamp": pa.timestamp("us", tz="UTC"),
    }
    names = [name for name, _ in columns]
    fields = []
    for name, kind in columns:
        if not re.fullmatch(r"[a-z_][a-z0-9_]*", name) or names.count(name) > 1:
            raise RefusedError(f"a column of the SELECT is called {name!r}; give each a name of its own: ... AS amount_total")
        if decimal := re.fullmatch(r"decimal\((\d+),(\d+)\)", kind):
            fields.append(pa.field(name, pa.decimal128(int(decimal[1]), int(decimal[2]))))
        elif kind in simple:
            fields.append(pa.field(name, simple[kind]))
        else:
            raise RefusedError(
                f"column {name} is of type {kind}, which the sandbox does not take; cast it, or make text of it by to_json({name})"
            )
    return pa.schema(fields)


def _write(path: Path, schema: pa.Schema, answer: Answer, name: str) -> int:
    """Write an answer as Parquet, some thousand rows in memory at a time; return how many there are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    free, count = _free_bytes(), 0
    dates = [number for number, field in enumerate(schema) if pa.types.is_date(field.type)]
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for rows in _chunks(answer.rows, 10 * FETCHED_ROWS):
            columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
            for number in dates:
                columns[number] = [None if value is None else dt.date.fromisoformat(value) for value in columns[number]]
            arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            count += len(rows)
            if path.stat().st_size > free:
                raise _full(name)
    return count


def _chunks(rows: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def _upload(path: Path, target: str, name: str) -> None:
    try:
        with path.open("rb") as file:
            storage().write(target, file, blocksize=BLOCK_BYTES, permission="644")
    except HdfsError as error:
        if "Quota" in str(error.exception) or "quota" in str(error):
            raise _full(name) from error
        raise


def _full(name: str) -> RefusedError:
    return RefusedError(
        f"{DATABASE}.{name} has no room in the {settings().sandbox_quota_mb} MB that all tables of the sandbox share (sandbox_quota_mb); "
        "choose fewer rows or columns, or bash/sandbox.sh drop what nobody needs"
    )


def _free_bytes() -> int:
    told = storage().content(folder())
    return max(0, int(told["spaceQuota"]) - int(told["spaceConsumed"]))


def _folder_of(hive: Session, name: str) -> str:
    rows = hive.run(f"DESCRIBE EXTENDED {DATABASE}.{name}")
    return next(str(row[1]) for row in rows if row[0] == "Location")


def _drop(hive: Session, name: str) -> None:
    place = _folder_of(hive, name)
    hive.run(f"DROP TABLE {DATABASE}.{name}")
    storage().delete(f"{folder()}/{posixpath.basename(place)}", recursive=True)
    logger.info("dropped", table=f"{DATABASE}.{name}")


def _refuse_taken(hive: Session, name: str) -> None:
    if name in core.existing(hive, DATABASE):
        raise RefusedError(f"{DATABASE}.{name} is there already; choose another name, or bash/sandbox.sh drop {name} first")


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,99}", name):
        raise RefusedError(f"{name!r} is not a name of lower-case letters, digits and underscores")


def _scratch() -> Path:
    place = settings().data_dir / "tmp" / DATABASE
    place.mkdir(parents=True, exist_ok=True)
    return place


def show() -> None:
    """Print the sandbox's tables, and how much of its room is taken."""
    from rich.table import Table

    screen = Table("table", "rows", "MB", "by", "created", "removed from")
    with session() as hive:
        for one in tables(hive):
            size = int(storage().content(f"{folder()}/{posixpath.basename(one.folder)}")["length"])
            ends = one.created_at + dt.timedelta(days=settings().sandbox_keep_days)
            screen.add_row(
                one.name, f"{one.rows:,}", f"{size / 2**20:,.1f}", one.created_by, f"{one.created_at:%Y-%m-%d}", f"{ends:%Y-%m-%d}"
            )
    console().print(screen)
    told = storage().content(folder())
    print(f"{int(told['spaceConsumed']) / 2**20:,.1f} of {int(told['spaceQuota']) / 2**20:,.0f} MB are taken")


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="bash/sandbox.sh", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("create", help="a table of what a SELECT answers")
    made.add_argument("name")
    made.add_argument("select", nargs="?")
    made.add_argument("-f", "--file", type=Path, help="read the SELECT from a file")
    commands.add_parser("drop", help="remove a table").add_argument("name")
    commands.add_parser("list", help="the tables, and how much room is taken")
    arguments = parser.parse_args()
    match arguments.command:
        case "create":
            if (arguments.select is None) == (arguments.file is None):
                raise RefusedError(
                    'give a SELECT, as in bash/sandbox.sh create big "select * from core.transactions where amount > 500", or -f FILE'
                )
            if arguments.file is not None and not arguments.file.is_file():
                raise RefusedError(f"there is no file {arguments.file}")
            select = arguments.select or arguments.file.read_text(encoding="utf-8")
            with ops.run("sandbox") as run:
                create(arguments.name, select.strip().rstrip(";"), run)
        case "drop":
            with ops.run("sandbox") as run:
                drop(arguments.name, run)
        case "list":
            show()


if __name__ == "__main__":
    run_main(main)
