"""Load CSV files into the source `bank`: COPY through a staging table, upsert by key, bad lines to `ops.rejects`.

`etl.csv_lines` tells good lines from bad ones on the way into the staging table. Checks of the table, unknown parents and
duplicates are found set-wise in SQL; a second pass over the file finds their lines again.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import psycopg2
from psycopg2 import sql
from psycopg2.errors import LockNotAvailable
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from etl import ops
from etl.card_numbers import mask_card_numbers
from etl.csv_lines import RECORD_BYTES, BadRecord, Column, Diagnosis, Layout, Span, copyable, diagnose, key_of, layout, scan, values_of
from etl.databases import connect, opened
from etl.errors import RefusedError, UnavailableError, WarehouseError
from etl.faults import named
from etl.log import logger, run_main
from etl.tables import declared_tables

if TYPE_CHECKING:
    from psycopg2.extensions import connection, cursor

Mode = Literal["full", "incremental"]

PAYLOAD_CHARACTERS = 2000
REJECTS_AT_ONCE = 10_000
# From this many rows on, a full load checks foreign keys once for all rows: row by row they take four fifths of its time.
BULK_ROWS = 50_000
LOCK_TIMEOUT = "10s"


class BadFileError(RefusedError):
    """A file as a whole cannot be loaded; nothing was changed."""


@dataclass(frozen=True)
class Loaded:
    """What loading one file did."""

    path: Path
    table: str
    rows: int
    inserted: int
    updated: int
    rejected: int
    seconds: float

    @property
    def unchanged(self) -> int:
        """Rows that were there already, exactly so."""
        return self.rows - self.inserted - self.updated - self.rejected


# --- The tables and the header ---------------------------------------------------------------------------------------------


def source_columns(session: connection) -> dict[str, tuple[Column, ...]]:
    """Return the columns that a CSV file has, by declared table: all but the cursor that the server sets."""
    found: dict[str, tuple[Column, ...]] = {}
    with session.cursor() as cursor:
        for table in declared_tables().values():
            cursor.execute(
                "SELECT attname, format_type(atttypid, atttypmod), NOT attnotnull FROM pg_attribute "
                "WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
                (table.source,),
            )
            set_by_server = {table.cursor} if table.cursor_set_by == "server" else set()
            if columns := tuple(Column(*row) for row in cursor.fetchall() if row[0] not in set_by_server):
                found[table.name] = columns
    return found


def read_header(file: BinaryIO, path: Path) -> list[str]:
    """Return the names in the first line, the file then standing behind it."""
    first = file.readline(RECORD_BYTES).removeprefix(b"\xef\xbb\xbf")
    if not first.strip():
        raise BadFileError(f"{path} is empty: its first line must name the columns")
    try:
        return next(csv.reader([first.decode().strip("\r\n")], strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadFileError(f"{path}: the first line is not a CSV header in UTF-8 ({error})") from error


def recognise(header: list[str], tables: dict[str, tuple[Column, ...]], path: Path) -> Layout:
    """Return the layout of the table whose columns, in any order, are those of the header.

    Raises
    ------
    BadFileError
        Naming the nearest table and what is missing and unknown.
    """
    for name, columns in tables.items():
        by_name = {column.name: column for column in columns}
        if sorted(header) == sorted(by_name):
            return layout(declared_tables()[name], tuple(by_name[column] for column in header))
    if not tables:
        raise BadFileError("the database bank has none of the tables of etl/tables.yaml; run bash/stack.sh up")
    nearest = max(tables, key=lambda name: len({column.name for column in tables[name]} & set(header)))
    expected = [column.name for column in tables[nearest]]
    problems = {
        "lacks": [name for name in expected if name not in header],
        "has the unknown": [name for name in header if name not in expected],
        "has twice": sorted({name for name in header if header.count(name) > 1}),
    }
    told = "; ".join(f"{word} {', '.join(names)}" for word, names in problems.items() if names)
    raise BadFileError(
        f"{path}: the header fits no table of the source; nearest is {nearest} ({','.join(expected)}), the header {told[:500]}"
    )


# --- Loading ---------------------------------------------------------------------------------------------------------------


_CHECKS = """
    SELECT pg_get_expr(conbin, conrelid),
        coalesce(obj_description(c.oid, 'pg_constraint'), 'the line breaks the check ' || conname),
        CASE WHEN cardinality(conkey) = 1 THEN attname END
    FROM pg_constraint c LEFT JOIN pg_attribute ON attrelid = conrelid AND attnum = conkey[1]
    WHERE conrelid = %s::regclass AND contype = 'c'
    ORDER BY conkey, conname
"""
_FOREIGN_KEYS = """
    SELECT format('%%I.%%I', nspname, relname), array_agg(own.attname::text ORDER BY place), array_agg(parents.attname::text ORDER BY place)
    FROM pg_constraint c
    CROSS JOIN unnest(conkey, confkey) WITH ORDINALITY AS pairs (own_number, parents_number, place)
    JOIN pg_attribute own ON own.attrelid = conrelid AND own.attnum = own_number
    JOIN pg_attribute parents ON parents.attrelid = confrelid AND parents.attnum = parents_number
    JOIN pg_class parent ON parent.oid = confrelid
    JOIN pg_namespace ON pg_namespace.oid = parent.relnamespace
    WHERE conrelid = %s::regclass AND contype = 'f' AND confrelid <> conrelid
    GROUP BY c.oid, nspname, relname, conkey
    ORDER BY conkey
"""


def _reject(of: Layout, path: Path, line: int, content: bytes, why: Diagnosis) -> ops.Reject:
    payload = content.rstrip(b"\r\n").decode(errors="backslashreplace").replace("\0", "\\x00")
    return ops.Reject(of.table.name, str(path), why.reason, line, why.key, why.column, mask_card_numbers(payload)[:PAYLOAD_CHARACTERS])


class _Pieces:
    """A file for psycopg2's COPY that reads from an iterator, and keeps what went wrong there, which psycopg2 would hide."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.error: BaseException | None = None

    def read(self, _size: int = -1) -> bytes:
        try:
            return next(self._pieces, b"")
        except BaseException as error:
            self.error = error
            raise


class _Rejects:
    """Rejected lines on their way to `ops.rejects`, a batch at a time."""

    def __init__(self, this: ops.Run) -> None:
        self._run = this
        self._waiting: list[ops.Reject] = []
        self.count = 0
        self.first: ops.Reject | None = None

    def add(self, reject: ops.Reject) -> None:
        if self.first is None or (reject.line or 0) < (self.first.line or 0):
            self.first = reject
        self.count += 1
        self._waiting.append(reject)
        if len(self._waiting) >= REJECTS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        self._run.reject(self._waiting)
        self._waiting = []


def _identifiers(names: list[str], prefix: str = "") -> sql.Composed:
    return sql.SQL(", ").join(sql.SQL(prefix) + sql.Identifier(name) for name in names)


class _Load:
    """One file on its way into its table."""

    def __init__(self, session: connection, of: Layout, path: Path, file: BinaryIO, this: ops.Run) -> None:
        self.session, self.of, self.path, self.file = session, of, path, file
        self.body = file.tell()
        self.staged = 0
        self.malformed = 0
        self.rejects = _Rejects(this)
        self.target = sql.Identifier(of.table.schema, of.table.name)
        self.columns = _identifiers(of.names)
        self.same_key = sql.SQL(" AND ").join(sql.SQL("t.{0} = i.{0}").format(sql.Identifier(name)) for name in of.table.key)

    def stage(self, advance: Callable[[int], None]) -> None:
        """Copy the good records into the temporary table `incoming`."""
        with self.session, self.session.cursor() as cursor:
            cursor.execute("DROP TABLE IF EXISTS incoming, bad")
            # The ordinal counts good records in the order of the file.
            cursor.execute(
                sql.SQL("CREATE TEMPORARY TABLE incoming (ordinal bigint GENERATED ALWAYS AS IDENTITY (CACHE 1000), {})").format(
                    sql.SQL(", ").join(sql.Identifier(column.name) + sql.SQL(" " + column.type) for column in self.of.columns)
                )
            )
            cursor.execute("CREATE TEMPORARY TABLE bad (ordinal bigint, column_name text, reason text)")
            pieces = _Pieces(self._good(advance))
            statement = sql.SQL("COPY incoming ({0}) FROM STDIN WITH (FORMAT csv, ENCODING 'UTF8', FORCE_NULL ({0}))")
            try:
                cursor.copy_expert(statement.format(self.columns), pieces)  # type: ignore[arg-type]
            except psycopg2.Error as error:
                if pieces.error:
                    raise pieces.error from None
                # Ctrl-C may come where psycopg2 is about to call `read`, which then cannot keep it; psycopg2 does not even tell its name
                # where the exception has no value, as from a signal's handler in Python 3.11.
                if "error in .read() call" in str(error):
                    raise KeyboardInterrupt from None
                raise
            self.staged = int(cursor.rowcount)
            # Nobody else analyses temporary tables, and without statistics joins with them become nested loops.
            cursor.execute("ANALYZE incoming")

    def _good(self, advance: Callable[[int], None]) -> Iterator[bytes]:
        for piece in scan(self.file, self.of):
            if isinstance(piece, Span):
                yield copyable(piece.content, self.of)
            else:
                self.malformed += 1
                self.rejects.add(_reject(self.of, self.path, piece.line, piece.content, diagnose(piece.content, self.of)))
            advance(len(piece.content))

    def check(self) -> None:
        """Move rows that the table would refuse from `incoming` to `bad`, then find their lines again."""
        with self.session, self.session.cursor() as cursor:
            self._check_constraints(cursor)
            self._check_parents(cursor)
            self._check_duplicates(cursor)
        self._record_bad()

    def _move(self, cursor: cursor, where: sql.Composable, column: sql.Composable, reason: sql.Composable) -> None:
        cursor.execute(
            sql.SQL(
                "WITH gone AS (DELETE FROM incoming i WHERE {} RETURNING i.*) "
                "INSERT INTO bad (ordinal, column_name, reason) SELECT ordinal, {}, {} FROM gone"
            ).format(where, column, reason)
        )

    def _check_constraints(self, cursor: cursor) -> None:
        cursor.execute(_CHECKS, (self.of.table.source,))
        # Expressions come from the catalog, where the table's owner wrote them.
        checks = [(sql.SQL("({}) IS FALSE").format(sql.SQL(check)), words, column) for check, words, column in cursor.fetchall()]
        if checks:
            any_broken = sql.SQL(" OR ").join(check for check, _, _ in checks)
            columns, reasons = (
                sql.SQL("CASE {} END").format(
                    sql.SQL(" ").join(sql.SQL("WHEN {} THEN {}").format(entry[0], sql.Literal(entry[place])) for entry in checks)
                )
                for place in (2, 1)
            )
            self._move(cursor, any_broken, columns, reasons)

    def _check_parents(self, cursor: cursor) -> None:
        cursor.execute(_FOREIGN_KEYS, (self.of.table.source,))
        for parent, columns, keys in cursor.fetchall():
            known = sql.SQL(" AND ").join(
                sql.SQL("p.{} = i.{}").format(sql.Identifier(key), sql.Identifier(column))
                for column, key in zip(columns, keys, strict=True)
            )
            given = sql.SQL(" AND ").join(sql.SQL("i.{} IS NOT NULL").format(sql.Identifier(column)) for column in columns)
            self._move(
                cursor,
                sql.SQL("{} AND NOT EXISTS (SELECT FROM {} p WHERE {})").format(given, sql.SQL(parent), known),
                sql.Literal(columns[0]),
                sql.Literal(f"{', '.join(columns)} is unknown: {parent} has no such row"),
            )

    def _check_duplicates(self, cursor: cursor) -> None:
        key = list(self.of.table.key)
        # The first good line of a key stands.
        self._move(
            cursor,
            sql.SQL(
                "ordinal IN (SELECT ordinal FROM (SELECT ordinal, row_number() OVER (PARTITION BY {0} ORDER BY ordinal) AS occurrence "
                "FROM incoming WHERE ({0}) IN (SELECT {0} FROM incoming GROUP BY {0} HAVING count(*) > 1)) AS repeated "
                "WHERE occurrence > 1)"
            ).format(_identifiers(key)),
            sql.Literal(key[0]),
            sql.Literal(f"the same {', '.join(key)} stands in an earlier line of this file"),
        )

    def _record_bad(self) -> None:
        with self.session, self.session.cursor("bad") as cursor:
            cursor.itersize = REJECTS_AT_ONCE
            cursor.execute("SELECT ordinal, column_name, reason FROM bad ORDER BY ordinal")
            bad = iter(cursor)
            if (next_bad := next(bad, None)) is not None:
                self._find_lines(chain([next_bad], bad))
        self.rejects.flush()

    def _find_lines(self, bad: Iterator[tuple[int, str, str]]) -> None:
        self.file.seek(self.body)
        ordinal, wanted = 0, next(bad, None)
        for span in scan(self.file, self.of):
            if wanted is None:
                return
            if isinstance(span, BadRecord):
                continue
            # Without a quote no record has a line break inside.
            count = span.content.count(b"\n") if b'"' not in span.content else sum(1 for _ in self.of.record.finditer(span.content))
            if wanted[0] > ordinal + count:
                ordinal += count
                continue
            line = span.line
            for record in self.of.record.finditer(span.content):
                ordinal += 1
                if wanted is not None and ordinal == wanted[0]:
                    why = Diagnosis(wanted[2], wanted[1], key_of(values_of(record[0]), self.of))
                    self.rejects.add(_reject(self.of, self.path, line, record[0], why))
                    wanted = next(bad, None)
                line += record[0].count(b"\n")

    def write(self, mode: Mode, left: int) -> tuple[int, int]:
        """Insert new rows and update those that differ, in one transaction; return how many of each."""
        names = self.of.names
        with self.session, self.session.cursor() as cursor:
            is_bulk = mode == "full" and left >= BULK_ROWS
            if is_bulk:
                cursor.execute(sql.SQL("ANALYZE {}").format(self.target))
            rows, inserted, updated = self._changed(cursor, left)
            if not inserted + updated:
                return 0, 0
            foreign_keys = self._drop_foreign_keys(cursor) if is_bulk and inserted + updated >= BULK_ROWS else []
            # ON CONFLICT costs a quarter more; it is not needed where nobody else can write and no row is there.
            upsert = sql.SQL("") if foreign_keys and self._is_empty(cursor) else self._on_conflict()
            cursor.execute(
                sql.SQL("INSERT INTO {} AS t ({}) SELECT {} FROM {} i {}").format(
                    self.target, self.columns, _identifiers(names, "i."), rows, upsert
                )
            )
            if is_bulk:
                # Without statistics the check of a foreign key may become a nested loop over both tables.
                cursor.execute(sql.SQL("ANALYZE {}").format(self.target))
            for name, definition in foreign_keys:
                cursor.execute(
                    sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}").format(self.target, sql.Identifier(name), sql.SQL(definition))
                )
        return inserted, updated

    def _changed(self, cursor: cursor, left: int) -> tuple[sql.Identifier, int, int]:
        """Return the temporary table of rows that are new or differ, and how many are new and how many differ."""
        if self._is_empty(cursor):
            return sql.Identifier("incoming"), left, 0
        names, key = self.of.names, sql.Identifier(self.of.table.key[0])
        cursor.execute(
            sql.SQL(
                "CREATE TEMPORARY TABLE changed ON COMMIT DROP AS SELECT i.*, t.{0} IS NOT NULL AS is_known FROM incoming i "
                "LEFT JOIN {1} t ON {2} WHERE t.{0} IS NULL OR ({3}) IS DISTINCT FROM ({4})"
            ).format(key, self.target, self.same_key, _identifiers(names, "t."), _identifiers(names, "i."))
        )
        cursor.execute("SELECT count(*) FILTER (WHERE NOT is_known), count(*) FILTER (WHERE is_known) FROM changed")
        inserted, updated = cursor.fetchone()  # type: ignore[misc]
        return sql.Identifier("changed"), int(inserted), int(updated)

    def _is_empty(self, cursor: cursor) -> bool:
        cursor.execute(sql.SQL("SELECT NOT EXISTS (SELECT FROM {})").format(self.target))
        return cursor.fetchone() == (True,)

    def _on_conflict(self) -> sql.Composed:
        others = [name for name in self.of.names if name not in self.of.table.key]
        if not others:
            return sql.SQL("ON CONFLICT DO NOTHING").format()
        return sql.SQL("ON CONFLICT ({}) DO UPDATE SET {} WHERE ({}) IS DISTINCT FROM ({})").format(
            _identifiers(list(self.of.table.key)),
            sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in others),
            _identifiers(others, "t."),
            _identifiers(others, "EXCLUDED."),
        )

    def _drop_foreign_keys(self, cursor: cursor) -> list[tuple[str, str]]:
        """Take the foreign keys off until the end of this transaction; nobody else ever sees the table without them.

        Returns their names and definitions; none when a reader does not let go of the table in time.
        """
        cursor.execute("SAVEPOINT foreign_keys")
        cursor.execute("SELECT set_config('lock_timeout', %s, true)", (LOCK_TIMEOUT,))
        cursor.execute(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'f'",
            (self.of.table.source,),
        )
        foreign_keys = cursor.fetchall()
        try:
            for name, _ in foreign_keys:
                cursor.execute(sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(self.target, sql.Identifier(name)))
        except LockNotAvailable:
            cursor.execute("ROLLBACK TO SAVEPOINT foreign_keys")
            logger.warning("the table is being read; foreign keys are checked row by row, which takes longer", table=self.of.table.name)
            return []
        cursor.execute("SET LOCAL lock_timeout = 0")
        return foreign_keys


def load_file(path: Path, mode: Mode, this: ops.Run) -> Loaded:
    """Load one file; all of it or, on an error, nothing.

    Parameters
    ----------
    path
        A CSV file; its header names the columns of one table of the source, without `updated_at`, in any order.
    mode
        `full` expects many new rows and takes the table for itself while it writes; the result is the same.
    this
        The run under which bad lines are recorded.

    Raises
    ------
    BadFileError
        When the header is wrong or no line is good; the table is unchanged.
    """
    started = time.monotonic()
    with path.open("rb") as file, _translated(path), _session() as session:
        of = recognise(read_header(file, path), source_columns(session), path)
        load = _Load(session, of, path, file, this)
        with ops.writer(of.table.source, this), _steps(path) as (advance, step):
            load.stage(advance)
            if load.staged:
                step("checking")
                load.check()
            load.rejects.flush()
            in_file, rejected, first = load.staged + load.malformed, load.rejects.count, load.rejects.first
            if not in_file:
                raise BadFileError(f"{path} holds no rows below its header; nothing was changed")
            if first and rejected == in_file:
                raise BadFileError(
                    f"{path}: all {in_file} lines are bad, nothing was changed; the first, line {first.line}: {first.reason}; "
                    "see ops.rejects, correct the file and load it again"
                )
            step("writing")
            inserted, updated = load.write(mode, in_file - rejected)
    loaded = Loaded(path, of.table.name, in_file, inserted, updated, rejected, time.monotonic() - started)
    logger.info(
        "loaded", file=str(path), table=loaded.table, rows=loaded.rows, inserted=inserted, updated=updated,
        unchanged=loaded.unchanged, rejected=rejected, seconds=round(loaded.seconds, 1),
    )  # fmt: skip
    if first:
        logger.warning("bad lines are in ops.rejects", file=str(path), count=rejected, first_line=first.line, reason=first.reason)
    return loaded


@contextmanager
def _session() -> Iterator[connection]:
    session = connect("bank", "bank", "load_csv")
    try:
        with session.cursor() as cursor:
            cursor.execute("SET work_mem = '128MB'")
            if sys.platform == "linux":
                # A killed loader's statement ends within a second instead of at its own end.
                cursor.execute("SET client_connection_check_interval = '1s'")
        session.commit()
        yield session
    finally:
        session.close()


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except psycopg2.IntegrityError as error:
        raise WarehouseError(
            f"{path}: another writer changed the source meanwhile ({str(error).strip().splitlines()[0]}); "
            "nothing of this file was loaded, run the same command again"
        ) from error
    except psycopg2.Error as error:
        # The transaction is rolled back, whatever it was.
        if (fault := named(error)) is None:
            raise
        if not isinstance(fault, UnavailableError):
            raise fault from error
        raise UnavailableError(
            f"{path}: Postgres gave up ({str(error).strip().splitlines()[0]}); nothing of this file was loaded, run the same command again"
        ) from error


@contextmanager
def _steps(path: Path) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """Show on a terminal how many bytes are read, then which step runs."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task(f"{path.name}: reading", total=path.stat().st_size)

        def step(words: str) -> None:
            progress.update(task, description=f"{path.name}: {words}", total=None)

        yield lambda count: progress.advance(task, count), step


def load_files(paths: list[Path], mode: Mode) -> list[Loaded]:
    """Load several files, parents before children, each by itself all or nothing.

    Every header is read before anything is loaded. A file that fails ends the run; files before it stay loaded.
    """
    ordered = sorted(paths, key=lambda path: list(declared_tables()).index(_table_of(path)))
    with ops.run(f"load_csv {mode}") as this:
        return [load_file(path, mode, this) for path in ordered]


def _table_of(path: Path) -> str:
    if not path.is_file():
        raise BadFileError(f"{path} is not a file; nothing was loaded")
    with path.open("rb") as file, opened("bank", "bank", "load_csv") as session:
        return recognise(read_header(file, path), source_columns(session), path).table.name


def main() -> int:
    """Run the verb `bash/load_csv.sh`."""
    parser = argparse.ArgumentParser(prog="bash/load_csv.sh")
    parser.add_argument("mode", choices=("full", "incremental"))
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    load_files(arguments.files, arguments.mode)
    return 0


if __name__ == "__main__":
    run_main(main)
