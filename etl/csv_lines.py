"""Lines of a CSV file as a table's columns want them: which are good, and what is wrong with the others.

The good path costs one regular expression, made from the columns, that matches as many whole records as it can: what it matches,
COPY cannot refuse. Where it stops, a line is bad, and only then is that line taken apart to say why.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from etl.card_numbers import mask_card_numbers
from etl.errors import RefusedError
from etl.tables import Table

BLOCK_BYTES = 1 << 20
# A record, quoted line breaks included, is at most this long; memory stays bounded whatever the file holds.
RECORD_BYTES = 1 << 16


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


# --- Formats ---------------------------------------------------------------------------------------------------------------


def at_most(limit: int) -> str:
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

    return Format(f"-?{at_most(limit)}", explain)


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
DATE = (
    r"(?:(?!0000)[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    r"|(?!0000)(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:\.[0-9]{1,6})?)?(?:Z|[+-](?:0[0-9]|1[0-4])(?::?[0-5][0-9])?)?"


def _explain_date(value: str) -> str:
    if re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:$|[T ][0-9]{2}:[0-9]{2})", value):
        return "is an impossible date or time"
    return "is not a date or time such as 2024-01-31 or 2024-01-31T23:59:59.999999Z"


def text_pattern(is_quoted: bool) -> str:
    """Return a pattern of one piece of text in UTF-8 without NUL; unquoted, also without comma, quote and line break."""
    ascii_class = r"[\x01-\x09\x0b-\x21\x23-\x7f]" if is_quoted else r"[\x01-\x09\x0b\x0c\x0e-\x21\x23-\x2b\x2d-\x7f]"
    # A count such as {2} in a possessive group lets Python before 3.11.5 accept half a character (see `layout`).
    several_bytes = (
        r"[\xc2-\xdf]~|\xe0[\xa0-\xbf]~|[\xe1-\xec\xee\xef]~~|\xed[\x80-\x9f]~|\xf0[\x90-\xbf]~~|[\xf1-\xf3]~~~|\xf4[\x80-\x8f]~~"
    ).replace("~", r"[\x80-\xbf]")
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
    "date": Format(DATE, _explain_date),
    "timestamp with time zone": Format(f"{DATE}(?:[T ]{_TIME})?", _explain_date),
}


@functools.cache
def _format(table: Table, column: Column) -> Format:
    if found := _FORMATS.get(column.type):
        return found
    if column.type.startswith("character varying"):
        return _TEXT
    if sized := re.fullmatch(r"numeric\((\d+),(\d+)\)", column.type):
        return _numeric(int(sized[1]), int(sized[2]))
    raise RefusedError(f"{table.source}.{column.name} has type {column.type}, which load_csv cannot load; add it to etl/csv_lines.py")


def _field_pattern(table: Table, column: Column) -> str:
    of = _format(table, column)
    some = "*+" if column.is_nullable else "++"
    if of is _TEXT:
        return f'(?:"{text_pattern(True)}{some}"|{text_pattern(False)}{some})'
    return f'(?:{of.good}|"{of.good}"' + ('|"")?' if column.is_nullable else ")")


def layout(table: Table, columns: tuple[Column, ...]) -> Layout:
    """Return how a file with these columns, in this order, presents a table.

    Before 3.11.5, Python's match of a possessive group ends wherever its last, failed round had come to
    (github.com/python/cpython/issues/106052). Where the last whole record ends, its newline says, group 1.
    """
    fields = ",".join(_field_pattern(table, column) for column in columns)
    record, records = rf"{fields}\r?\n", rf"(?:{fields}\r?(\n))*+"
    return Layout(table, columns, re.compile(record.encode("latin-1")), re.compile(records.encode("latin-1")))


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
            end = max(position, matched.end(1)) if matched else position
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
    values = values_of(content)
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
    return Diagnosis("; ".join(words for _, words in problems), problems[0][0], key_of(values, of))


def values_of(content: bytes) -> list[str]:
    """Return the fields of a well-formed record, unquoted."""
    return [(quoted.replace(b'""', b'"') or plain).decode() for quoted, plain in _FIELD.findall(content)]


def key_of(values: list[str], of: Layout) -> str:
    """Return the key among a record's fields, as text for people."""
    return mask_card_numbers(", ".join(values[of.names.index(name)] for name in of.table.key))
