"""The source schema: who may write what."""

from __future__ import annotations

import psycopg2
import pytest

from tests.postgres import rows

pytestmark = pytest.mark.usefixtures("bank")


def test_updated_at_is_the_servers_whatever_the_writer_says() -> None:
    rows("INSERT INTO bank.customers VALUES (1, 'Ada', NULL, 'GB', '1999-01-01'), (2, 'Bob', NULL, 'GB', 'infinity')")
    rows("UPDATE bank.customers SET updated_at = '1999-01-01' WHERE customer_id = 1")
    assert rows("SELECT count(*) FROM bank.customers WHERE clock_timestamp() - updated_at BETWEEN '0' AND '1 minute'") == [(2,)]


def test_updated_at_is_written_also_for_a_replication_role() -> None:
    rows("INSERT INTO bank.customers VALUES (1, 'Ada', NULL, 'GB')")
    rows("SET session_replication_role = replica; UPDATE bank.customers SET updated_at = '1999-01-01'", role="postgres")
    assert rows("SELECT updated_at > '2020-01-01' FROM bank.customers") == [(True,)]


def test_extractor_reads_tables_of_now_and_later_and_sees_other_sessions() -> None:
    rows("CREATE TABLE IF NOT EXISTS bank.later (id bigint PRIMARY KEY)")
    try:
        assert rows("SELECT count(*) FROM bank.later", role="extractor") == [(0,)]
    finally:
        rows("DROP TABLE bank.later")
    assert rows("SELECT pg_has_role('extractor', 'pg_read_all_stats', 'usage')", role="extractor") == [(True,)]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO bank.customers VALUES (1, 'Ada', NULL, 'GB')",
        "UPDATE bank.customers SET email = 'a@b'",
        "DELETE FROM bank.customers",
        "TRUNCATE bank.fraud_reports",
        "CREATE TABLE bank.mine (id bigint)",
        "CREATE TABLE public.mine (id bigint)",
        "CREATE TEMPORARY TABLE mine (id bigint)",
        "ALTER TABLE bank.customers DISABLE TRIGGER set_updated_at",
        "SELECT pg_read_file('/etc/passwd')",
    ],
)
def test_extractor_writes_nothing_even_when_it_makes_its_session_writable(statement: str) -> None:
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        rows(f"SET transaction_read_only = off; {statement}", role="extractor")


def test_extractor_begins_read_only() -> None:
    assert rows("SHOW transaction_read_only", role="extractor") == [("on",)]


def test_every_table_and_column_of_the_source_has_a_comment() -> None:
    assert (
        rows("""
        SELECT format('%s.%s', attrelid::regclass, attname) FROM pg_attribute
        JOIN pg_class ON pg_class.oid = attrelid
        WHERE relnamespace = 'bank'::regnamespace AND relkind = 'r' AND attnum >= 0 AND NOT attisdropped
          AND (col_description(attrelid, attnum) IS NULL OR obj_description(attrelid, 'pg_class') IS NULL)
    """)
        == []
    )
