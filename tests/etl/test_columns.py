"""Types, what cannot be held, drift, and the row hash as text."""

from __future__ import annotations

import dataclasses
import hashlib
from decimal import Decimal

import duckdb
import pytest

from etl.columns import (
    Column,
    arrow_type,
    cannot_be_held,
    column,
    content_hash,
    drift,
    hash_expression,
    joined_outlines,
    outline_columns,
    outline_text,
    select_expression,
)
from etl.errors import RefusedError


def numeric(precision: int, scale: int) -> int:
    """Pack precision and scale as pg_attribute.atttypmod does."""
    return ((precision << 16) | (scale & 0x7FF)) + 4


def made(name: str = "x", base_type: str = "int8", **more: object) -> Column:
    return column("bank.t", name, source_type=base_type, base_type=base_type, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("base_type", "hive_type"),
    [
        ("int2", "smallint"),
        ("int4", "int"),
        ("int8", "bigint"),
        ("timestamptz", "timestamp"),
        ("timestamp", "timestamp"),
        ("date", "date"),
        ("uuid", "string"),
        ("text", "string"),
        ("varchar", "string"),
        ("bpchar", "string"),
        ("json", "string"),
        ("jsonb", "string"),
        ("bool", "boolean"),
        ("float4", "float"),
        ("float8", "double"),
        ("bytea", "binary"),
    ],
)
def test_every_supported_type_has_its_place_in_hive(base_type: str, hive_type: str) -> None:
    assert made(base_type=base_type).hive_type == hive_type


@pytest.mark.parametrize("base_type", ["interval", "money", "inet", "point", "xml", "tsvector", "time", "timetz", "bit"])
def test_a_type_without_a_place_is_refused_by_name(base_type: str) -> None:
    with pytest.raises(RefusedError, match=rf"bank\.t\.price is {base_type}"):
        made("price", base_type)


def test_numeric_keeps_its_precision() -> None:
    found = made(base_type="numeric", type_modifier=numeric(12, 2))
    assert (found.hive_type, found.precision, found.scale, found.is_declared) == ("decimal(12,2)", 12, 2, False)


def test_numeric_without_precision_needs_a_declaration() -> None:
    with pytest.raises(RefusedError, match="declare it under decimals"):
        made(base_type="numeric")
    assert made(base_type="numeric", decimals="decimal(20,6)").hive_type == "decimal(20,6)"


@pytest.mark.parametrize(("precision", "scale"), [(39, 0), (100, 10), (5, -2), (3, 5)])
def test_numeric_that_hive_cannot_hold_is_refused(precision: int, scale: int) -> None:
    with pytest.raises(RefusedError, match="38 digits"):
        made(base_type="numeric", type_modifier=numeric(precision, scale))


@pytest.mark.parametrize("name", ["Amount", "amount eur", "größe", 'a"b', "batch", "lane"])
def test_a_name_that_would_be_lost_is_refused(name: str) -> None:
    with pytest.raises(RefusedError, match="rename it"):
        made(name)


def test_a_new_nullable_column_is_drift_that_is_taken() -> None:
    before = [made("id", is_nullable=False)]
    now = [*before, made("device", "text")]
    assert [one.name for one in drift("bank.t", before, now)] == ["device"]


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ([made("id")], "amount is gone or renamed"),
        ([made("id"), made("total", "int4")], "amount is gone or renamed"),
        ([made("id"), made("amount", "int8")], "amount is now int8 and was int4"),
        ([made("id"), made("amount", "int4"), made("fee", "int4", is_nullable=False)], "fee is new and NOT NULL"),
    ],
)
def test_any_other_drift_names_the_column(now: list[Column], words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        drift("bank.t", [made("id"), made("amount", "int4")], now)


def test_a_wider_text_and_a_new_check_are_no_drift() -> None:
    assert drift("bank.t", [made("x", "varchar")], [made("x", "text", is_nullable=False)]) == []


def test_row_hash_is_md5_of_the_documented_text() -> None:
    columns = [
        made("id"),
        made("amount", "numeric", type_modifier=numeric(12, 2)),
        made("channel", "text"),
        made("device", "text"),
        made("seen_at", "timestamptz"),
        made("is_fraud", "bool"),
        made("born_on", "date"),
        made("score", "float8"),
        made("token", "bytea"),
    ]
    expression = hash_expression("duckdb", columns)
    row = (
        "SELECT -7::bigint AS id, 12.5::decimal(12,2) AS amount, 'a|b' AS channel, NULL::varchar AS device, "
        "TIMESTAMPTZ '2000-01-01 00:00:01+00' AS seen_at, true AS is_fraud, DATE '1970-01-03' AS born_on, "
        "1.5::double AS score, NULL::blob AS token"
    )
    found = duckdb.execute(f"SELECT {expression} FROM ({row})").fetchall()[0][0]
    text = r"-7|12.50|3|a|b|-1|\x00000000000f4240|true|2|\x3ff8000000000000|"
    assert found == int(hashlib.md5(text.encode()).hexdigest()[:15], 16)


def test_null_and_empty_text_differ_and_neighbours_do_not_mix() -> None:
    columns = [made("a", "text"), made("b", "text")]
    expression = hash_expression("duckdb", columns)
    values = "(NULL, ''), ('', NULL), ('', ''), (NULL, NULL), ('x', NULL), (NULL, 'x'), ('1|x', ''), ('', '1|x'), ('a', '1|b')"
    found = duckdb.execute(f"SELECT {expression} FROM (VALUES {values}) AS t(a, b)").fetchall()
    assert len({one[0] for one in found}) == 9


def test_content_hash_does_not_depend_on_the_order_and_counts_doubles() -> None:
    columns = [made("a")]
    total = content_hash("duckdb", hash_expression("duckdb", columns))

    def of(values: str) -> str:
        return duckdb.execute(f"SELECT {total} FROM (VALUES {values}) AS t(a)").fetchall()[0][0]

    assert of("(1), (2), (3)") == of("(3), (1), (2)")
    assert of("(1), (2)") != of("(1), (2), (2)")
    assert duckdb.execute(f"SELECT {total} FROM (SELECT 1::bigint AS a WHERE false)").fetchall() == [("0",)]


def test_the_outline_of_parts_is_that_of_the_whole_and_shows_a_column_that_is_missing_or_another() -> None:
    columns = [made("a"), made("b", "text"), made("c", "float8"), made("d", "timestamptz")]
    values = [
        "(1, 'x', -0.0::double, '2018-04-01 00:00:00+00'::timestamptz)",
        "(-9223372036854775808, NULL, 'NaN'::double, NULL)",
        "(9223372036854775807, '', 0.0::double, '1969-12-31 23:59:59.999999+00'::timestamptz)",
    ]

    def outlines(*rows: str, order: str = "a, b, c, d") -> str:
        found = f"SELECT {order} FROM (VALUES {', '.join(rows)}) AS t(a, b, c, d)"
        return f"SELECT {outline_columns('duckdb', columns)} FROM ({found}) AS rows"

    def text(of: str) -> str:
        return duckdb.execute(f"SELECT {outline_text('duckdb', columns)} FROM ({of}) AS found").fetchall()[0][0]

    whole = text(outlines(*values))
    parts = " UNION ALL ".join(outlines(one) for one in reversed(values))
    assert text(f"SELECT {joined_outlines(columns)} FROM ({parts}) AS parts") == whole
    assert whole.startswith("a 3|-9223372036854775808|9223372036854775807|b 2|1|c 3|")
    assert text(outlines(*values, order="a, NULL::text AS b, c, d")) != whole
    assert text(outlines(*values, order="a - (a > 1)::int AS a, b, c, d")) != whole


def test_columns_are_cast_where_adbc_would_not_deliver_them_exactly() -> None:
    assert select_expression(made("amount", "numeric", type_modifier=numeric(12, 2))) == 'numeric_send("amount") AS "amount"'
    assert select_expression(made("rate", "numeric", type_modifier=numeric(19, 4))) == '"rate"::text AS "rate"'
    assert select_expression(dataclasses.replace(made("tags", "text"), is_array=True)) == 'to_json("tags")::text AS "tags"'
    assert select_expression(made("id")) == '"id"'


def test_only_values_that_parquet_lacks_are_looked_for() -> None:
    assert cannot_be_held(made("id")) is None
    assert cannot_be_held(made("x", "float8")) is None
    found = cannot_be_held(made("amount", "numeric", type_modifier=numeric(12, 2)))
    assert found is not None
    assert "NaN" in found[1]


def test_decimals_reach_arrow_with_their_precision() -> None:
    import pyarrow as pa

    wanted = arrow_type(made("amount", "numeric", type_modifier=numeric(38, 10)))
    digits = Decimal("1234567890123456789012345678.0123456789")
    assert pa.array([str(digits)]).cast(wanted).to_pylist() == [digits]
