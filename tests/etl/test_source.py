"""The horizon on a real Postgres: late commits, long and prepared transactions, savepoints, clocks, refusals."""

from __future__ import annotations

import dataclasses
import datetime as dt
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import psycopg2
import pytest
import structlog

from etl import source as source_module
from etl.databases import connect
from etl.errors import RefusedError
from etl.extract import plan
from etl.source import Horizon, Previous, Server, snapshot
from etl.tables import Table, declared_tables
from tests.postgres import rows

# Without a lag: the proof must not rest on it.
REPORTS = dataclasses.replace(declared_tables()["fraud_reports"], lag_seconds=0)
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


class Warehouse:
    """What batches leave in core, without HDFS and Hive: the later snapshot wins, by key."""

    def __init__(self, table: Table = REPORTS) -> None:
        self.table = table
        self.previous: Previous | None = None
        self.core: dict[object, tuple[object, ...]] = {}
        self.read = 0

    def extract(self) -> int:
        with snapshot([self.table], {self.table.name: self.previous} if self.previous else {}) as source:
            part = plan(source, self.table, "incremental" if self.previous else "full", self.previous)
            found = source.rows(f"SELECT * FROM {self.table.source} WHERE {part.predicate}")
            self.core |= {row[0]: row for row in found}
            # As with batches: an empty range publishes nothing, and the watermark stays.
            if found or self.previous is None:
                self.previous = Previous(source.server, source.horizon.clock, part.range_from, part.next_from, source.snapshot.xmin)
        self.read = len(found)
        return self.read

    def expect_equal(self) -> None:
        assert self.core == {row[0]: row for row in rows(f"SELECT * FROM {self.table.source}")}


@contextmanager
def writer() -> Iterator[psycopg2.extensions.cursor]:
    """A session of the bank's with an open transaction."""
    session = connect("bank", "bank", "a teller")
    try:
        with session.cursor() as cursor:
            yield cursor
    finally:
        session.close()


def put(cursor: psycopg2.extensions.cursor, key: int, scenario: int = 1) -> None:
    cursor.execute(
        "INSERT INTO bank.fraud_reports VALUES (%s, now(), true, %s, now()) "
        "ON CONFLICT (transaction_id) DO UPDATE SET scenario = excluded.scenario",
        (key, scenario),
    )


def insert(key: int, scenario: int = 1) -> None:
    with writer() as cursor:
        put(cursor, key, scenario)
        cursor.connection.commit()


@pytest.fixture
def warehouse(bank: None) -> Warehouse:
    insert(1)
    found = Warehouse()
    assert found.extract() == 1
    return found


# What must not be missed ---------------------------------------------------------------------------------------


def test_row_committed_late_is_in_the_next_batch(warehouse: Warehouse) -> None:
    with writer() as slow:
        put(slow, 2)
        insert(3)
        warehouse.extract()
        assert 2 not in warehouse.core
        slow.connection.commit()
    warehouse.extract()
    warehouse.expect_equal()


@pytest.mark.parametrize("step", ["_horizon", "_check_previous", "_locked_snapshot"])
def test_row_written_or_committed_between_the_steps_of_an_extract_is_not_missed(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    original: Callable[..., object] = getattr(source_module, step)
    with writer() as open_before, writer() as committed_after:
        put(open_before, 2)

        def interrupted(*arguments: object) -> object:
            found = original(*arguments)
            open_before.connection.commit()
            put(committed_after, 3)
            insert(4)
            return found

        monkeypatch.setattr(source_module, step, interrupted)
        warehouse.extract()
        monkeypatch.undo()
        committed_after.connection.commit()
    warehouse.extract()
    warehouse.expect_equal()


def test_old_transaction_overwriting_a_newer_row_wins(warehouse: Warehouse) -> None:
    with writer() as old:
        old.execute("SELECT 1")
        insert(2, 1)
        warehouse.extract()
        put(old, 2, 9)
        old.connection.commit()
    warehouse.extract()
    warehouse.expect_equal()
    assert warehouse.core[2][3] == 9


def test_rows_of_savepoints_are_not_missed(warehouse: Warehouse) -> None:
    with writer() as slow:
        put(slow, 2)
        slow.execute("SAVEPOINT one")
        put(slow, 3)
        warehouse.extract()
        slow.execute("SAVEPOINT two")
        put(slow, 4)
        slow.execute("ROLLBACK TO two")
        put(slow, 5)
        insert(6)
        warehouse.extract()
        slow.connection.commit()
    warehouse.extract()
    warehouse.expect_equal()
    assert {3, 5, 6} <= set(warehouse.core)


def test_prepared_transaction_keeps_the_watermark_until_it_ends(warehouse: Warehouse) -> None:
    with writer() as cursor:
        put(cursor, 2)
        cursor.execute("PREPARE TRANSACTION 'transfer'")
        insert(3)
        assert warehouse.previous is not None
        before = warehouse.previous.next_from
        with structlog.testing.capture_logs() as logs:
            warehouse.extract()
        # Left behind, it would hold every test after this one.
        cursor.connection.rollback()
        cursor.connection.autocommit = True
        cursor.execute("COMMIT PREPARED 'transfer'")
        assert warehouse.previous.next_from == before
        assert any("transfer" in str(line.get("prepared")) for line in logs)
    warehouse.extract()
    warehouse.expect_equal()


def test_prepared_transaction_during_the_first_full_load_leaves_the_watermark_at_the_beginning(bank: None) -> None:
    warehouse = Warehouse()
    with writer() as cursor:
        put(cursor, 2)
        cursor.execute("PREPARE TRANSACTION 'transfer'")
        warehouse.extract()
        assert warehouse.previous is not None
        assert warehouse.previous.next_from is None
        cursor.connection.rollback()
        cursor.connection.autocommit = True
        cursor.execute("COMMIT PREPARED 'transfer'")
    assert warehouse.extract() == 1
    warehouse.expect_equal()


def test_row_at_the_very_boundary_is_read(warehouse: Warehouse) -> None:
    # A source that sets its cursor itself: only so can a row be put on the boundary.
    warehouse.table = dataclasses.replace(REPORTS, cursor_set_by="client")
    assert warehouse.previous is not None
    boundary = warehouse.previous.next_from
    rows("ALTER TABLE bank.fraud_reports DISABLE TRIGGER set_updated_at")
    try:
        for key in (2, 3):
            rows("INSERT INTO bank.fraud_reports VALUES (%s, now(), true, 1, %s)", key, boundary)
    finally:
        rows("ALTER TABLE bank.fraud_reports ENABLE ALWAYS TRIGGER set_updated_at")
    assert warehouse.extract() == 2
    warehouse.expect_equal()


def test_rows_of_one_bulk_load_share_a_moment_and_arrive_together(warehouse: Warehouse) -> None:
    rows("INSERT INTO bank.fraud_reports SELECT g, now(), true, 1, now() FROM generate_series(10, 5000) AS g")
    warehouse.extract()
    warehouse.expect_equal()


def test_rows_below_the_last_snapshot_are_not_read_again(warehouse: Warehouse) -> None:
    with writer() as idle:
        idle.execute("SELECT 1")
        for key in range(2, 20):
            insert(key)
        assert warehouse.extract() == 18
        # next_from stands before all of them, for the idle transaction began earlier; it wrote nothing and costs nothing.
        assert warehouse.extract() == 0
    warehouse.expect_equal()


def test_idle_transaction_is_named_and_holds_nothing_fresh_back(warehouse: Warehouse) -> None:
    with writer() as idle:
        idle.execute("SELECT 1")
        time.sleep(0.01)
        insert(2)
        with structlog.testing.capture_logs() as logs:
            assert warehouse.extract() == 1
    (warning,) = [line for line in logs if "open transaction" in line["event"]]
    assert "of bank (a teller, idle in transaction)" in warning["session"]


def test_random_histories_of_concurrent_writers_end_equal(bank: None) -> None:
    seed = 20260101
    warehouse = Warehouse()
    ends_at = time.monotonic() + 6

    def write(number: int) -> None:
        draw = random.Random(seed + number)
        with writer() as cursor:
            while time.monotonic() < ends_at:
                for _ in range(draw.randint(1, 4)):
                    if draw.random() < 0.3:
                        cursor.execute("SAVEPOINT here")
                    # Keys of one writer: no deadlocks; half of them shared with nobody's open transaction.
                    put(cursor, number * 100 + draw.randint(0, 20), draw.randint(1, 9))
                    if draw.random() < 0.2:
                        cursor.execute("SAVEPOINT there")
                        put(cursor, number * 100 + draw.randint(0, 20), draw.randint(1, 9))
                        cursor.execute("ROLLBACK TO there")
                    time.sleep(draw.random() * 0.02)
                end = draw.random()
                if end < 0.1:
                    cursor.connection.rollback()
                elif end < 0.2:
                    name = f"history-{number}"
                    cursor.execute(f"PREPARE TRANSACTION '{name}'")
                    cursor.connection.rollback()
                    time.sleep(draw.random() * 0.1)
                    cursor.connection.autocommit = True
                    cursor.execute(f"COMMIT PREPARED '{name}'")
                    cursor.connection.autocommit = False
                else:
                    if end < 0.4:
                        time.sleep(draw.random() * 0.2)
                    cursor.connection.commit()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    count = 0
    while any(thread.is_alive() for thread in threads):
        warehouse.extract()
        count += 1
    warehouse.extract()
    warehouse.expect_equal()
    assert count > 5


# The horizon as arithmetic -------------------------------------------------------------------------------------


def test_next_from_is_the_oldest_transaction_less_the_lag() -> None:
    horizon = Horizon(NOW, NOW - dt.timedelta(seconds=60), "session 1")
    assert horizon.next_from(None, 5) == NOW - dt.timedelta(seconds=65)
    assert Horizon(NOW).next_from(None, 5) == NOW - dt.timedelta(seconds=5)


def test_next_from_never_passes_the_batchs_own_from_while_something_is_prepared() -> None:
    begin = NOW - dt.timedelta(hours=1)
    assert Horizon(NOW, prepared=("x",)).next_from(begin, 5) == begin
    assert Horizon(NOW, prepared=("x",)).next_from(None, 5) is None


@pytest.mark.parametrize("wraps", [0, 2**32, 5 * 2**32 - 10])
def test_row_age_is_right_across_the_epoch(bank: None, wraps: int) -> None:
    """The predicate, with row ids given instead of the hidden column, against 64-bit arithmetic."""
    from etl.extract import incremental_predicate
    from etl.source import Snapshot

    server = Server("1", 1, "bank")
    last, now = 2**32 + wraps - 50, 2**32 + wraps + 50
    found = incremental_predicate("updated_at", Previous(server, NOW, None, None, last), Snapshot("", "", now, now))
    ids = list(range(now - 200, now))
    listed = ", ".join(f"({one}, {one % 2**32}::bigint)" for one in ids)
    kept = rows(f"SELECT whole FROM (VALUES {listed}) AS t(whole, low) WHERE {found.replace('xmin::text::bigint', 'low')}")
    assert sorted(int(str(one[0])) for one in kept) == [one for one in ids if one >= last]


# Refused by name, before anything is read ----------------------------------------------------------------------


@contextmanager
def changed(do: str, undo: str, role: str = "bank") -> Iterator[None]:
    rows(do, role=role)  # type: ignore[arg-type]
    try:
        yield
    finally:
        rows(undo, role=role)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("do", "undo", "role", "words"),
    [
        (
            "ALTER TABLE bank.fraud_reports ALTER updated_at DROP NOT NULL",
            "ALTER TABLE bank.fraud_reports ALTER updated_at SET NOT NULL",
            "bank",
            "updated_at may be NULL",
        ),
        (
            "REVOKE pg_read_all_stats FROM extractor",
            "GRANT pg_read_all_stats TO extractor",
            "postgres",
            "GRANT pg_read_all_stats TO extractor",
        ),
        (
            "ALTER ROLE bank SET track_activities = off",
            "ALTER ROLE bank RESET track_activities",
            "postgres",
            "track_activities is off for role bank",
        ),
        (
            "ALTER DATABASE bank SET track_activities = off",
            "ALTER DATABASE bank RESET track_activities",
            "postgres",
            "track_activities is off for",
        ),
        (
            "ALTER TABLE bank.fraud_reports DISABLE TRIGGER set_updated_at",
            "ALTER TABLE bank.fraud_reports ENABLE ALWAYS TRIGGER set_updated_at",
            "bank",
            r"trigger that writes bank\.fraud_reports\.updated_at .* is not ENABLE ALWAYS",
        ),
        (
            "ALTER TABLE bank.fraud_reports ENABLE TRIGGER set_updated_at",
            "ALTER TABLE bank.fraud_reports ENABLE ALWAYS TRIGGER set_updated_at",
            "bank",
            "is not ENABLE ALWAYS",
        ),
        (
            "ALTER TABLE bank.fraud_reports RENAME COLUMN updated_at TO changed_at",
            "ALTER TABLE bank.fraud_reports RENAME COLUMN changed_at TO updated_at",
            "bank",
            "has no column updated_at",
        ),
        (
            "REVOKE SELECT ON bank.fraud_reports FROM extractor",
            "GRANT SELECT ON bank.fraud_reports TO extractor",
            "bank",
            "GRANT SELECT ON",
        ),
        (
            "GRANT UPDATE (scenario) ON bank.fraud_reports TO extractor",
            "REVOKE UPDATE (scenario) ON bank.fraud_reports FROM extractor",
            "bank",
            "may write",
        ),
        (
            "ALTER TABLE bank.fraud_reports DROP CONSTRAINT fraud_reports_pkey",
            "ALTER TABLE bank.fraud_reports ADD PRIMARY KEY (transaction_id)",
            "bank",
            "no unique index",
        ),
        (
            "ALTER TABLE bank.fraud_reports ADD COLUMN took interval",
            "ALTER TABLE bank.fraud_reports DROP COLUMN took",
            "bank",
            r"bank\.fraud_reports\.took is interval",
        ),
    ],
)
def test_what_does_not_hold_is_refused_by_name(bank: None, do: str, undo: str, role: str, words: str) -> None:
    with changed(do, undo, role), pytest.raises(RefusedError, match=words), snapshot([REPORTS]):
        pass


def test_session_that_hides_its_activity_is_refused_by_name(bank: None) -> None:
    with ExitStack() as stack:
        session = connect("postgres", "bank", "hidden")
        stack.callback(session.close)
        with session.cursor() as cursor:
            cursor.execute("SET track_activities = off")
            cursor.execute("SELECT 1")
        session.commit()
        with pytest.raises(RefusedError, match=r"track_activities is off for session \d+ of postgres"), snapshot([REPORTS]):
            pass


def test_missing_table_is_refused_by_name(bank: None) -> None:
    missing = dataclasses.replace(REPORTS, name="refunds")
    with pytest.raises(RefusedError, match=r"bank\.refunds is not in database bank"), snapshot([missing]):
        pass


def test_clock_set_back_further_than_the_lag_is_refused(warehouse: Warehouse) -> None:
    assert warehouse.previous is not None
    warehouse.previous = dataclasses.replace(warehouse.previous, clock=warehouse.previous.clock + dt.timedelta(hours=1))
    with pytest.raises(RefusedError, match=r"clock is .* s behind the last batch of fraud_reports"):
        warehouse.extract()


def test_rows_written_while_the_clock_was_set_back_within_the_lag_are_read(bank: None) -> None:
    warehouse = Warehouse(dataclasses.replace(REPORTS, lag_seconds=60))
    insert(1)
    warehouse.extract()
    assert warehouse.previous is not None
    # As if the clock had been 30 s ahead at the last batch.
    ahead = dt.timedelta(seconds=30)
    last = warehouse.previous
    warehouse.previous = dataclasses.replace(last, clock=last.clock + ahead, next_from=(last.next_from or NOW) + ahead)
    insert(2)
    assert warehouse.extract() == 1
    insert(3)
    warehouse.extract()
    warehouse.expect_equal()


@pytest.mark.parametrize("other", [Server("7", 1, "bank"), Server("", 9, "bank")])
def test_another_server_or_timeline_needs_a_full_load(warehouse: Warehouse, other: Server) -> None:
    assert warehouse.previous is not None
    own = warehouse.previous.server
    server = dataclasses.replace(other, system_identifier=other.system_identifier or own.system_identifier)
    warehouse.previous = dataclasses.replace(warehouse.previous, server=server)
    with pytest.raises(RefusedError, match=r"came from another server .* run bash/extract\.sh full fraud_reports"):
        warehouse.extract()


def test_replica_is_refused(bank: None) -> None:
    class Replica:
        def execute(self, *_: object) -> None:
            pass

        def fetchone(self) -> tuple[bool]:
            return (True,)

    with pytest.raises(RefusedError, match="the source is a replica"):
        source_module._server(Replica())  # type: ignore[arg-type]
