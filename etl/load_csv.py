"""Load CSV files into the source `bank`: COPY through a staging table, upsert by key, bad lines to `ops.rejects`.

The good path costs one regular expression, made from the table's columns, that matches as many whole lines as it can: what
it matches, COPY cannot refuse. Where it stops, a line is bad, and only then is that line taken apart to say why. Checks of the
table, unknown parents and duplicates are found set-wise in SQL; a second pass over the file finds their lines again.
"""

from __future__ import annotations

import argparse
import csv
import re
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
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from etl import ops
from etl.databases import connect, opened
from etl.errors import RefusedError, UnavailableError, WarehouseError
from etl.log import logger, run_main
from etl.tables import Table, declared_tables

if TYPE_CHECKING:
    from psycopg2.extensions import connection, cursor

Mode = Literal["full", "incremental"]

BLOCK_BYTES = 1 << 20
# A record, quoted line breaks included, is at most this long; memory stays bounded whatever the file holds.
RECORD_BYTES = 1 << 16
PAYLOAD_CHARACTERS = 2000
REJECTS_AT_ONCE = 10_000
# From this many rows on, a full load checks foreign keys once for all rows: row by row they take four fifths of its time.
BULK_ROWS = 50_000
LOCK_TIMEOUT = "10s"


class BadFileError(RefusedError):
    """A file as a whole cannot be loaded; nothing was changed."""


@dataclass(frozen=True)
class Format:
    """How values of a type look in a CSV file; `explain` says in words what is wrong with one that does not."""

    good: str
    explain: Callable[[str], str]


@dataclass(frozen=True)
class Column:
    """A column of a source table."""

    name: str
    type: str
    is_nullable: bool


@dataclass(frozen=True)
class Layout:
    """A table as one file presents it: its columns in the order of the header."""

    table: Table
    columns: tuple[Column, ...]
    record: re.Pattern[bytes]
    records: re.Pattern[bytes]

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [column.name for column in self.columns]


@dataclass(frozen=True)
class Span:
    """Whole good records of a file, one after the other."""

    line: int
    content: bytes


@dataclass(frozen=True)
class BadRecord:
    """A record that COPY or the table's types would refuse."""

    line: int
    content: bytes


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


# --- Formats ---------------------------------------------------------------------------------------------------------------


def _at_most(limit: int) -> str:
    """Return a pattern of the whole numbers from 0 to a limit, with no more digits than it has."""
    digits = str(limit)
    parts = [f"[0-9]{{1,{len(digits) - 1}}}"]
    for place, digit in enumerate(digits):
        if digit != "0":
            parts.append(f"{digits[:place]}[0-{int(digit) - 1}][0-9]{{{len(digits) - place - 1}}}")
    return f"(?:{'|'.join([*parts, digits])})"


def _integer(name: str, limit: int) -> Format:
    def explain(value: str) -> str:
        return f"is out of the range of {name}" if re.fullmatch("[+-]?[0-9]+", value) else "is not a whole number"

    return Format(f"-?{_at_most(limit)}", explain)


def _numeric(precision: int, scale: int) -> Format:
    def explain(value: str) -> str:
        number = re.fullmatch(r"[+-]?[0-9]+(?:\.([0-9]+))?", value)
        if number is None:
            return "is not a number"
        if len(number[1] or "") > scale:
            return f"has more than {scale} decimals"
        return f"has more than {precision - scale} digits before the point" if value[0] != "+" else "begins with +"

    whole = f"[0-9]{{1,{precision - scale}}}" if precision > scale else "0"
    decimals = rf"(?:\.[0-9]{{1,{scale}}})?" if scale else ""
    return Format(f"-?{whole}{decimals}", explain)


# Months of 31, of 30 and of 28 days, and 29 February of leap years: a cast of what matches cannot fail.
_DATE = (
    r"(?:(?!0000)[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    r"|(?!0000)(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:\.[0-9]{1,6})?)?(?:Z|[+-](?:0[0-9]|1[0-4])(?::?[0-5][0-9])?)?"


def _explain_date(value: str) -> str:
    if re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:$|[T ][0-9]{2}:[0-9]{2})", value):
        return "is an impossible date or time"
    return "is not a date or time such as 2024-01-31 or 2024-01-31T23:59:59.999999Z"


def _text_pattern(is_quoted: bool) -> str:
    """Return a pattern of one piece of text in UTF-8 without NUL; unquoted, also without comma, quote and line break."""
    ascii_class = r"[\x01-\x09\x0b-\x21\x23-\x7f]" if is_quoted else r"[\x01-\x09\x0b\x0c\x0e-\x21\x23-\x2b\x2d-\x7f]"
    several_bytes = (
        r"[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]"
        r"|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2}"
    )
    # Before Postgres 18 a line that is only \. ends COPY even inside quotes.
    special = r'|""|\n(?!\\\.)' if is_quoted else ""
    return f"(?:{ascii_class}++|{several_bytes}{special})"


_TEXT = Format("", lambda value: "has a line that begins with \\." if "\n\\." in value else "cannot be read as text")
_BOOLEAN = Format("(?:true|false|TRUE|FALSE|True|False|t|f|1|0)", lambda _: "is neither true nor false")
_FORMATS = {
    "smallint": _integer("smallint", 2**15 - 1),
    "integer": _integer("integer", 2**31 - 1),
    "bigint": _integer("bigint", 2**63 - 1),
    "boolean": _BOOLEAN,
    "text": _TEXT,
    "date": Format(_DATE, _explain_date),
    "timestamp with time zone": Format(f"{_DATE}(?:[T ]{_TIME})?", _explain_date),
}


def _format(table: Table, column: Column) -> Format:
    if found := _FORMATS.get(column.type):
        return found
    if column.type.startswith("character varying"):
        return _TEXT
    if sized := re.fullmatch(r"numeric\((\d+),(\d+)\)", column.type):
        return _numeric(int(sized[1]), int(sized[2]))
    raise BadFileError(f"{table.source}.{column.name} has type {column.type}, which load_csv cannot load; add it to etl/load_csv.py")


def _field_pattern(table: Table, column: Column) -> str:
    of = _format(table, column)
    some = "*+" if column.is_nullable else "++"
    if of is _TEXT:
        return f'(?:"{_text_pattern(True)}{some}"|{_text_pattern(False)}{some})'
    return f'(?:{of.good}|"{of.good}"' + ('|"")?' if column.is_nullable else ")")


def layout(table: Table, columns: tuple[Column, ...]) -> Layout:
    """Return how a file with these columns, in this order, presents a table."""
    record = ",".join(_field_pattern(table, column) for column in columns) + r"\r?\n"
    return Layout(table, columns, re.compile(record.encode("latin-1")), re.compile(f"(?:{record})*+".encode("latin-1")))


# --- Reading ---------------------------------------------------------------------------------------------------------------

_RECORD = re.compile(rb'(?:(?:"(?:[^"]|"")*+"|[^",\r\n]*+)(?:,|(?=\r?\n)))++\r?\n')
_FIELD = re.compile(rb'(?:"((?:[^"]|"")*+)"|([^",\r\n]*+))(?:,|\r?\n)')


def scan(file: BinaryIO, of: Layout) -> Iterator[Span | BadRecord]:
    """Yield what a file holds after its header, good records in spans and bad ones by themselves; blank lines are skipped.

    A quote in the wrong place costs its own line only: reading goes on at the next line.
    """
    line, buffer, is_skipping, has_ended = 2, b"", False, False
    while not has_ended:
        block = file.read(BLOCK_BYTES)
        has_ended = not block
        buffer += block if block else b"\n" if buffer and not buffer.endswith(b"\n") else b""
        position = 0
        if is_skipping:
            position = buffer.find(b"\n") + 1
            if not position:
                buffer = b""
                continue
            is_skipping, line = False, line + 1
        while position < len(buffer):
            matched = of.records.match(buffer, position)
            end = matched.end() if matched else position
            if end > position:
                content = buffer[position:end]
                yield Span(line, content)
            elif not has_ended and len(buffer) - position < RECORD_BYTES:
                # The record may go on in the next block.
                break
            else:
                end = _end_of_bad(buffer, position, of)
                content = buffer[position:end]
                if content.strip(b"\r\n"):
                    yield BadRecord(line, content)
                is_skipping = not content.endswith(b"\n")
            line += content.count(b"\n")
            position = end
        buffer = buffer[position:]


def _end_of_bad(buffer: bytes, position: int, of: Layout) -> int:
    record = _RECORD.match(buffer, position, position + RECORD_BYTES)
    if record and len(_FIELD.findall(record[0])) == len(of.columns):
        return record.end()
    newline = buffer.find(b"\n", position)
    return newline + 1 if newline >= 0 else len(buffer)


def copyable(span: bytes, of: Layout) -> bytes:
    """Return good records as COPY takes them: every record ends in a bare newline."""
    if b"\r" not in span:
        return span
    if b'"' not in span:
        return span.replace(b"\r\n", b"\n")
    return b"".join(record[0].removesuffix(b"\n").removesuffix(b"\r") + b"\n" for record in of.record.finditer(span))


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a record, in words; where one column is to blame, its name."""

    reason: str
    column: str | None = None
    key: str | None = None


def diagnose(content: bytes, of: Layout) -> Diagnosis:
    """Say what is wrong with a record that the layout's pattern does not match."""
    if len(content) > RECORD_BYTES or not content.endswith(b"\n"):
        return Diagnosis(f"the line is longer than {RECORD_BYTES} bytes")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return Diagnosis(f"the line is not valid UTF-8: byte 0x{content[error.start]:02x} at byte {error.start + 1} of the line")
    if b"\0" in content:
        return Diagnosis("the line holds a NUL byte")
    if _RECORD.fullmatch(content) is None:
        if b'"' in content:
            return Diagnosis("a quote stands in the wrong place or is never closed")
        return Diagnosis("a carriage return stands in the middle of the line")
    values = _values(content)
    if len(values) != len(of.columns):
        word = "missing" if len(values) < len(of.columns) else "too many"
        return Diagnosis(f"fields are {word}: the line has {len(values)}, the header {len(of.columns)}")
    problems: list[tuple[str, str]] = []
    for column, value in zip(of.columns, values, strict=True):
        form = _format(of.table, column)
        if not value:
            if not column.is_nullable:
                problems.append((column.name, f"{column.name} is missing"))
        elif form is _TEXT:
            if "\n\\." in value:
                problems.append((column.name, f"{column.name} {form.explain(value)}"))
        elif not re.fullmatch(form.good, value):
            problems.append((column.name, f"{column.name} {form.explain(value)}"))
    if not problems:
        return Diagnosis("the line cannot be read as CSV")
    return Diagnosis("; ".join(words for _, words in problems), problems[0][0], _key(values, of))


def _values(content: bytes) -> list[str]:
    return [(quoted.replace(b'""', b'"') or plain).decode() for quoted, plain in _FIELD.findall(content)]


def _key(values: list[str], of: Layout) -> str:
    return mask_card_numbers(", ".join(values[of.names.index(name)] for name in of.table.key))


# --- Card numbers ----------------------------------------------------------------------------------------------------------

_DIGIT_GROUPS = re.compile(r"[0-9]+(?:[ -]{1,2}[0-9]+)*")


def mask_card_numbers(text: str) -> str:
    """Replace the digits of whatever may be a card number by stars.

    That is 13 to 19 digits, perhaps in groups with spaces or dashes between them, whose check digit (Luhn, ISO/IEC 7812-1) is
    right. Groups before and after it do not hide it.
    """
    return _DIGIT_GROUPS.sub(lambda run: _mask_run(run[0]), text)


def _mask_run(run: str) -> str:
    groups = [(group.start(), group.end()) for group in re.finditer("[0-9]+", run)]
    masked = list(run)
    for first, (start, _) in enumerate(groups):
        for _, end in groups[first:]:
            digits = re.sub("[ -]", "", run[start:end])
            if len(digits) > 19:
                break
            if len(digits) >= 13 and _has_luhn_digit(digits):
                masked[start:end] = re.sub("[0-9]", "*", run[start:end])
    return "".join(masked)


def _has_luhn_digit(digits: str) -> bool:
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def _reject(of: Layout, path: Path, line: int, content: bytes, why: Diagnosis) -> ops.Reject:
    payload = content.rstrip(b"\r\n").decode(errors="backslashreplace").replace("\0", "\\x00")
    return ops.Reject(of.table.name, str(path), why.reason, line, why.key, why.column, mask_card_numbers(payload)[:PAYLOAD_CHARACTERS])


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


class _Pieces:
    """A file for psycopg2's COPY that reads from an iterator."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def read(self, _size: int = -1) -> bytes:
        return next(self._pieces, b"")


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
        self.rejects = _Rejects(this)
        self.target = sql.Identifier(of.table.schema, of.table.name)
        self.columns = _identifiers(of.names)
        self.same_key = sql.SQL(" AND ").join(sql.SQL("t.{0} = i.{0}").format(sql.Identifier(name)) for name in of.table.key)

    def stage(self, advance: Callable[[int], None]) -> int:
        """Copy the good records into the temporary table `incoming`; return how many rows came."""
        with self.session, self.session.cursor() as cursor:
            cursor.execute("DROP TABLE IF EXISTS incoming, bad")
            # The ordinal counts good records in the order of the file.
            cursor.execute(
                sql.SQL("CREATE TEMPORARY TABLE incoming (ordinal bigint GENERATED ALWAYS AS IDENTITY (CACHE 1000), {})").format(
                    sql.SQL(", ").join(sql.Identifier(column.name) + sql.SQL(" " + column.type) for column in self.of.columns)
                )
            )
            cursor.execute("CREATE TEMPORARY TABLE bad (ordinal bigint, column_name text, reason text)")
            cursor.copy_expert(
                sql.SQL("COPY incoming ({0}) FROM STDIN WITH (FORMAT csv, ENCODING 'UTF8', FORCE_NULL ({0}))").format(self.columns),
                _Pieces(self._good(advance)),  # type: ignore[arg-type]
            )
            staged = int(cursor.rowcount)
            # Nobody else analyses temporary tables, and without statistics joins with them become nested loops.
            cursor.execute("ANALYZE incoming")
        return staged

    def _good(self, advance: Callable[[int], None]) -> Iterator[bytes]:
        for piece in scan(self.file, self.of):
            if isinstance(piece, Span):
                yield copyable(piece.content, self.of)
            else:
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
        cursor.execute(
            _CHECKS,
            (self.of.table.source,),
        )
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
        cursor.execute(
            _FOREIGN_KEYS,
            (self.of.table.source,),
        )
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
                    why = Diagnosis(wanted[2], wanted[1], _key(_values(record[0]), self.of))
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


def load_file(path: Path, mode: Mode, this: ops.Run, progress: Progress | None = None) -> Loaded:
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
    report, step = _steps(progress, path)
    with path.open("rb") as file, _translated(path), _session() as session:
        of = recognise(read_header(file, path), source_columns(session), path)
        with ops.writer(of.table.source, this):
            load = _Load(session, of, path, file, this)
            staged = load.stage(report)
            in_file = staged + load.rejects.count
            if staged:
                step("checking")
                load.check()
            load.rejects.flush()
            if not in_file:
                raise BadFileError(f"{path} holds no rows below its header; nothing was changed")
            if load.rejects.count == in_file:
                first = load.rejects.first
                raise BadFileError(
                    f"{path}: all {in_file} lines are bad, nothing was changed; the first, line {first and first.line}: "
                    f"{first and first.reason}; see ops.rejects, correct the file and load it again"
                )
            step(f"writing {of.table.name}")
            inserted, updated = load.write(mode, in_file - load.rejects.count)
    loaded = Loaded(path, of.table.name, in_file, inserted, updated, load.rejects.count, time.monotonic() - started)
    logger.info(
        "loaded", file=str(path), table=loaded.table, rows=loaded.rows, inserted=inserted, updated=updated,
        unchanged=loaded.unchanged, rejected=loaded.rejected, seconds=round(loaded.seconds, 1),
    )  # fmt: skip
    if loaded.rejected:
        logger.warning(
            "bad lines are in ops.rejects", file=str(path), count=loaded.rejected,
            first_line=load.rejects.first and load.rejects.first.line, reason=load.rejects.first and load.rejects.first.reason,
        )  # fmt: skip
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
    except psycopg2.OperationalError as error:
        raise UnavailableError(
            f"{path}: Postgres gave up ({str(error).strip().splitlines()[0]}); nothing of this file was loaded, run the same command again"
        ) from error


def _steps(progress: Progress | None, path: Path) -> tuple[Callable[[int], None], Callable[[str], None]]:
    if progress is None:
        return lambda _: None, lambda _: None
    task: TaskID = progress.add_task(f"{path.name}: reading", total=path.stat().st_size)

    def step(words: str) -> None:
        progress.update(task, description=f"{path.name}: {words}", total=None)

    return lambda count: progress.advance(task, count), step


def load_files(paths: list[Path], mode: Mode) -> list[Loaded]:
    """Load several files, parents before children, each by itself all or nothing.

    Every header is read before anything is loaded. A file that fails ends the run; files before it stay loaded.
    """
    ordered = sorted(paths, key=lambda path: list(declared_tables()).index(_table_of(path)))
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn(),
        console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True,
    )  # fmt: skip
    with ops.run(f"load_csv {mode}") as this, progress:
        return [load_file(path, mode, this, progress) for path in ordered]


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
