"""Lines of CSV files: which are good, whatever the size of blocks."""

from __future__ import annotations

import csv
import datetime as dt
import io
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from etl import csv_lines
from etl.csv_lines import BadRecord, Column, Span
from etl.tables import declared_tables

COLUMNS = (
    Column("transaction_id", "bigint", False),
    Column("customer_id", "bigint", False),
    Column("terminal_id", "bigint", False),
    Column("transacted_at", "timestamp with time zone", False),
    Column("amount", "numeric(12,2)", False),
    Column("currency", "text", False),
    Column("channel", "text", False),
    Column("device", "text", True),
)


@settings(deadline=None)
@given(st.sampled_from([2**15 - 1, 2**31 - 1, 2**63 - 1, 10, 190]), st.integers(0, 2**64))
def test_the_pattern_of_whole_numbers_accepts_exactly_those_up_to_the_limit(limit: int, number: int) -> None:
    pattern = re.compile(csv_lines.at_most(limit))
    for candidate in (number, number % (limit + 1), limit, limit + 1, limit - 1):
        assert bool(pattern.fullmatch(str(candidate))) == (candidate <= limit)


def test_the_pattern_of_dates_accepts_exactly_those_that_exist() -> None:
    pattern = re.compile(csv_lines.DATE)
    for year in [*range(1, 420), *range(1890, 2110), 9996, 9999]:
        for month in range(14):
            for day in range(33):
                text = f"{year:04}-{month:02}-{day:02}"
                try:
                    dt.date(year, month, day)
                    exists = True
                except ValueError:
                    exists = False
                assert bool(pattern.fullmatch(text)) == exists, text


@settings(deadline=None)
@given(st.binary(max_size=6) | st.text(max_size=4).map(lambda text: text.encode(errors="surrogatepass")))
def test_the_pattern_of_text_accepts_exactly_utf8_without_nul(content: bytes) -> None:
    pattern = re.compile(f"(?:{csv_lines.text_pattern(True)})*+".encode("latin-1"))
    try:
        is_text = "\0" not in content.decode()
    except UnicodeDecodeError:
        is_text = False
    assert bool(pattern.fullmatch(content.replace(b'"', b'""'))) == (is_text and b"\n\\." not in content)


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
                lambda text: "\n\\." not in text
            ),
            st.sampled_from([b"1,2", b'1,1,7,2018-04-01,1,EUR,chip,a"b', b"caf\xe9", b"x,1,7,2018-04-01,1,EUR,chip,"]),
        ),
        max_size=12,
    ),
    st.integers(1, 60),
    st.sampled_from(["\n", "\r\n"]),
)
def test_reading_does_not_depend_on_the_size_of_blocks(lines: list[str | bytes], block: int, ending: str) -> None:
    of = csv_lines.layout(declared_tables()["transactions"], COLUMNS)
    content, expected_good, expected_bad, line = b"", [], [], 2
    for number, entry in enumerate(lines):
        if isinstance(entry, bytes):
            record = entry + ending.encode()
            expected_bad.append((line, record))
        else:
            text = io.StringIO()
            # Python's writer leaves a bare carriage return unquoted.
            quoting = csv.QUOTE_NONNUMERIC if "\r" in entry else csv.QUOTE_MINIMAL
            csv.writer(text, lineterminator=ending, quoting=quoting).writerow([number, 1, 7, "2018-04-01", "1", "EUR", "chip", entry])
            record = text.getvalue().encode()
            expected_good.append((str(number), entry))
        content += record
        line += record.count(b"\n")
    original = csv_lines.BLOCK_BYTES
    csv_lines.BLOCK_BYTES = block
    try:
        pieces = list(csv_lines.scan(io.BytesIO(content), of))
    finally:
        csv_lines.BLOCK_BYTES = original
    good = b"".join(csv_lines.copyable(piece.content, of) for piece in pieces if isinstance(piece, Span))
    parsed = [(row[0], row[7]) for row in csv.reader(io.StringIO(good.decode(), newline=""), lineterminator="\n")]
    assert parsed == expected_good
    assert [(piece.line, piece.content) for piece in pieces if isinstance(piece, BadRecord)] == expected_bad
    assert all(csv_lines.diagnose(piece.content, of).reason for piece in pieces if isinstance(piece, BadRecord))
