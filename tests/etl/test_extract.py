"""From Postgres to Parquet with the same values: types, extremes, rejects; hashed in Postgres and read back by DuckDB."""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
from collections.abc import Iterator
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etl import ops
from etl.columns import arrow_type
from etl.extract import Counted, Part, copy_query, count, plan, record_rejects
from etl.source import Source, snapshot
from etl.streams import Stream, content_of, converted, key_splits
from etl.tables import Table
from tests.postgres import rows

ALL_TYPES = Table("all_types", "bank", ("id",), "updated_at", decimals={"free": "decimal(38,10)"})
UTC = dt.UTC


@pytest.fixture(scope="module")
def all_types(postgres_server: None) -> Iterator[Table]:
    rows("CREATE TYPE bank.mood AS ENUM ('calm', 'angry')")
    rows("CREATE DOMAIN bank.price AS numeric(38,10) CHECK (value <> 1)")
    rows(
        """
        CREATE TABLE bank.all_types (
            id bigint PRIMARY KEY, small smallint, whole int, price bank.price, free numeric, cents numeric(12,2),
            at timestamptz, local timestamp, born date, token uuid, note text, short varchar(5), fixed char(5), yes boolean,
            single real, pair double precision, raw bytea, doc json, docb jsonb, tags text[], numbers int[],
            feeling bank.mood, updated_at timestamptz NOT NULL
        )
        """
    )
    rows("CREATE TRIGGER t BEFORE INSERT OR UPDATE ON bank.all_types FOR EACH ROW EXECUTE FUNCTION bank.set_updated_at()")
    rows("ALTER TABLE bank.all_types ENABLE ALWAYS TRIGGER t")
    yield ALL_TYPES
    rows("DROP TABLE bank.all_types")
    rows("DROP TYPE bank.mood")
    rows("DROP DOMAIN bank.price")


@pytest.fixture
def empty(all_types: Table, bank: None) -> Table:
    rows("TRUNCATE bank.all_types")
    return all_types


def parquet(source: Source, part: Part) -> bytes:
    """Return what a stream of this part writes."""
    columns = part.source.columns
    schema = pa.schema([(column.name, arrow_type(column)) for column in columns])
    output = io.BytesIO()
    with Stream(source.snapshot) as stream, pq.ParquetWriter(output, schema, store_decimal_as_integer=True) as writer:
        for batch in stream.batches(copy_query(part, "true", is_sorted=True)):
            writer.write_table(converted(batch, schema))
    return output.getvalue()


def through(table: Table) -> tuple[Counted, list[dict[str, object]]]:
    """Extract a table to Parquet; check that Postgres and DuckDB agree on it; return the count and the rows."""
    with snapshot([table]) as source:
        part = plan(source, table, "full")
        counted = count(source, part)
        file = parquet(source, part)
    found = content_of(file, part.source.columns)
    assert (found.rows, str(found.total)) == (counted.rows, counted.content_hash)
    return counted, pq.read_table(io.BytesIO(file)).to_pylist()


def put(**values: object) -> None:
    names = ", ".join(["id", "updated_at", *values])
    places = ", ".join(["(SELECT coalesce(max(id), 0) + 1 FROM bank.all_types)", "now()", *["%s"] * len(values)])
    rows(f"INSERT INTO bank.all_types ({names}) VALUES ({places})", *values.values())


def test_every_value_arrives_as_it_was(empty: Table) -> None:
    put(
        small=-32768,
        whole=2147483647,
        price=Decimal("-9999999999999999999999999999.9999999999"),
        free=Decimal("0.0000000001"),
        cents=Decimal("-0.05"),
        at="2018-04-01 12:00:00.000001+02",
        local="2018-04-01 12:00:00.5",
        born="2018-04-01",
        token="A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
        note="Grüße, 😀 | \\ ' \" \n",
        short="",
        fixed="ab ",
        yes=True,
        single=0.1,
        pair=1e-300,
        raw=b"\x00\xff",
        doc='{"b": 1,  "a": 2}',
        docb='{"b": 1, "a": 2}',
        tags=["x", None, 'a"b'],
        numbers=[1, 2],
        feeling="angry",
    )
    _, (row,) = through(empty)
    del row["updated_at"]
    assert row == {
        "id": 1,
        "small": -32768,
        "whole": 2147483647,
        "price": Decimal("-9999999999999999999999999999.9999999999"),
        "free": Decimal("1E-10"),
        "cents": Decimal("-0.05"),
        "at": dt.datetime(2018, 4, 1, 10, 0, 0, 1, tzinfo=UTC),
        "local": dt.datetime(2018, 4, 1, 12, 0, 0, 500000, tzinfo=UTC),
        "born": dt.date(2018, 4, 1),
        "token": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "note": "Grüße, 😀 | \\ ' \" \n",
        "short": "",
        "fixed": "ab",
        "yes": True,
        "single": pytest.approx(0.1, abs=1e-7),
        "pair": 1e-300,
        "raw": b"\x00\xff",
        "doc": '{"b": 1,  "a": 2}',
        "docb": '{"a": 2, "b": 1}',
        "tags": '["x",null,"a\\"b"]',
        "numbers": "[1,2]",
        "feeling": "angry",
    }


def test_null_arrives_as_null(empty: Table) -> None:
    put()
    _, (row,) = through(empty)
    assert {name for name, value in row.items() if value is not None} == {"id", "updated_at"}


@pytest.mark.parametrize("value", ["0001-01-01 00:00:00+00", "9999-12-31 23:59:59.999999+00", "1582-10-10 00:00:00+00"])
def test_the_first_and_the_last_moment_arrive(empty: Table, value: str) -> None:
    put(at=value, local=value[:-3], born=value[:10])
    _, (row,) = through(empty)
    assert row["at"] == row["local"] == dt.datetime.fromisoformat(value)
    assert row["born"] == dt.date.fromisoformat(value[:10])


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "-0.0", "5e-324", "1.7976931348623157e308"])
def test_every_double_arrives(empty: Table, value: str) -> None:
    put(pair=value, single="NaN")
    _, (row,) = through(empty)
    assert repr(row["pair"]) == repr(float(value))


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("at", "infinity", "infinite or outside the years"),
        ("at", "-infinity", "infinite or outside the years"),
        ("at", "10000-01-01 00:00:00+00", "infinite or outside the years"),
        ("local", "0001-12-31 23:59:59 BC", "infinite or outside the years"),
        ("born", "infinity", "date is infinite"),
        ("born", "4713-01-01 BC", "date is infinite"),
        ("cents", "NaN", "numeric is NaN"),
        ("price", "NaN", "numeric is NaN"),
        ("free", "NaN", "does not fit decimal"),
        ("free", "Infinity", "does not fit decimal"),
        ("free", "0.00000000001", "does not fit decimal"),
        ("free", "10000000000000000000000000000", "does not fit decimal"),
    ],
)
def test_a_value_that_cannot_be_held_is_rejected_with_a_reason_and_the_others_arrive(
    empty: Table, column: str, value: str, reason: str
) -> None:
    put(note="good")
    put(**{column: value})
    with ops.run("extract") as run:
        counted, found = through(empty)
        assert (counted.rows, counted.rejected) == (1, 1)
        assert [row["note"] for row in found] == ["good"]
        with snapshot([empty]) as source:
            record_rejects(source, plan(source, empty, "full"), counted, run)
            record_rejects(source, plan(source, empty, "full"), counted, run)
    (reject,) = rows("SELECT table_name, key, column_name, reason FROM ops.rejects", role="etl", dbname="warehouse")
    assert reject[:3] == ("all_types", "2", column)
    assert reason in str(reject[3])


def test_role_settings_of_the_extractor_do_not_change_what_arrives(empty: Table) -> None:
    put(at="2018-04-01 12:00:00+00", raw=b"\x01", pair=0.1, born="2018-04-01")
    before = through(empty)
    for setting in ("timezone = 'Asia/Tokyo'", "datestyle = 'German'", "bytea_output = 'escape'", "extra_float_digits = -5"):
        rows(f"ALTER ROLE extractor SET {setting}", role="postgres", dbname="postgres")
    try:
        assert through(empty) == before
    finally:
        rows("ALTER ROLE extractor RESET ALL", role="postgres", dbname="postgres")


def test_a_policy_that_hides_rows_is_an_error_not_a_smaller_table(empty: Table) -> None:
    import psycopg2

    put()
    rows("ALTER TABLE bank.all_types ENABLE ROW LEVEL SECURITY")
    try:
        with pytest.raises(psycopg2.errors.InsufficientPrivilege, match="row-level security"):
            through(empty)
    finally:
        rows("ALTER TABLE bank.all_types DISABLE ROW LEVEL SECURITY")


def test_an_empty_table_is_counted(empty: Table) -> None:
    counted, found = through(empty)
    assert (counted, found) == (Counted(0, 0, "0"), [])


def test_a_table_wider_than_a_call_of_postgres_is_hashed(postgres_server: None) -> None:
    wide = dataclasses.replace(ALL_TYPES, name="wide", cursor_set_by="client")
    names = [f"c{at}" for at in range(250)]
    rows(f"CREATE TABLE bank.wide (id bigint PRIMARY KEY, updated_at timestamptz NOT NULL, {', '.join(f'{name} int' for name in names)})")
    try:
        rows(f"INSERT INTO bank.wide (id, updated_at, {', '.join(names)}) SELECT 1, now(), {', '.join(str(at) for at in range(250))}")
        _, (row,) = through(wide)
        assert row["c249"] == 249
    finally:
        rows("DROP TABLE bank.wide")


@pytest.mark.parametrize("count_of_splits", [1, 2, 5])
def test_splits_by_key_hold_every_row_once(empty: Table, count_of_splits: int) -> None:
    rows("INSERT INTO bank.all_types (id, updated_at) SELECT g * 7, now() FROM generate_series(-50, 50) AS g")
    with snapshot([empty]) as source:
        part = plan(source, empty, "full")
        found = [
            row[0]
            for split in key_splits("id", -350, 350, count_of_splits)
            for row in source.rows(f"SELECT id FROM {part.source.relation} WHERE {split}")
        ]
    assert sorted(found) == [at * 7 for at in range(-50, 51)]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "small": st.integers(-(2**15), 2**15 - 1),
                "cents": st.decimals(Decimal("-9999999999.99"), Decimal("9999999999.99"), places=2),
                "at": st.datetimes(timezones=st.just(UTC)),
                "local": st.datetimes(),
                "born": st.dates(),
                "note": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30),
                "yes": st.booleans(),
                "single": st.floats(width=32),
                "pair": st.floats(),
                "raw": st.binary(max_size=20),
            },
        ),
        max_size=8,
    )
)
def test_postgres_and_duckdb_hash_any_row_alike(empty: Table, values: list[dict[str, object]]) -> None:
    rows("TRUNCATE bank.all_types")
    for one in values:
        put(**one)
    counted, found = through(empty)
    assert counted.rows == len(found) == len(values)
