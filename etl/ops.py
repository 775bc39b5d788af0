"""The warehouse's own records in Postgres: runs, batches, rejects; and one writer at a time.

Nothing reads these records to decide anything: the published partitions and the Iceberg snapshots do that.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg2
import structlog
from psycopg2.extras import execute_values

from etl.databases import connect, opened
from etl.errors import BusyError, WarehouseError
from etl.log import logger
from etl.tables import declared_tables

if TYPE_CHECKING:
    from psycopg2.extensions import cursor

WRITER_WAIT_SECONDS = 600
"""How long a verb that can wait lets another writer of a table go on."""


@dataclass(frozen=True)
class Reject:
    """A row that cannot be held, and why."""

    table_name: str
    origin: str
    reason: str
    line: int | None = None
    key: str | None = None
    column_name: str | None = None
    payload: str | None = None


@dataclass
class Run:
    """One run of a verb: a row of `ops.runs`."""

    run_id: str
    verb: str
    started_at: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))

    def reject(self, rejects: Iterable[Reject]) -> int:
        """Record rejected rows; a row that is already recorded is not recorded twice. Returns how many are new."""
        rows = [(self.run_id, r.table_name, r.origin, r.line, r.key, r.column_name, r.reason, r.payload) for r in rejects]
        if not rows:
            return 0
        with opened("etl", "warehouse") as session, session.cursor() as cursor:
            new = execute_values(
                cursor,
                "INSERT INTO ops.rejects (run_id, table_name, origin, line, key, column_name, reason, payload) VALUES %s "
                "ON CONFLICT DO NOTHING RETURNING 1",
                rows,
                page_size=1000,
                fetch=True,
            )
        return len(new)


@contextmanager
def run(verb: str) -> Iterator[Run]:
    """Record a run of a verb, with how it ended; declarations of tables that cannot be are refused before anything is read."""
    declared_tables()
    started_at = dt.datetime.now(dt.UTC)
    this = Run(f"{started_at:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}", verb, started_at)
    structlog.contextvars.bind_contextvars(run=this.run_id)
    with opened("etl", "warehouse") as session, session.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ops.runs (run_id, verb, arguments, state) VALUES (%s, %s, %s, 'running')",
            (this.run_id, verb, " ".join(sys.argv[1:])),
        )
    try:
        yield this
    except BaseException as error:
        try:
            _end(this, "failed", f"{type(error).__name__}: {error}")
        except (WarehouseError, psycopg2.Error) as unrecorded:
            # What failed first is what somebody has to know.
            logger.warning("how the run ended is not recorded", reason=str(unrecorded))
        raise
    _end(this, "succeeded", None)


def _end(this: Run, state: str, error: str | None) -> None:
    with opened("etl", "warehouse") as session, session.cursor() as cursor:
        cursor.execute(
            "UPDATE ops.runs SET state = %s, error = %s, ended_at = clock_timestamp(), "
            "seconds = extract(epoch FROM clock_timestamp() - started_at) WHERE run_id = %s",
            (state, error, this.run_id),
        )


def lock_key(name: str) -> int:
    """Return the advisory lock's number of a name such as `raw.transactions`."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


@contextmanager
def writer(name: str, this: Run, wait_seconds: float = 0) -> Iterator[None]:
    """Be the one writer of a table while this block runs; the lock dies with the process.

    Parameters
    ----------
    name
        What is written, such as `raw.transactions` or `core.transactions`.
    wait_seconds
        How long to wait for another writer before giving up.

    Raises
    ------
    BusyError
        Naming the run that holds it.
    """
    session = connect("etl", "warehouse", f"run {this.run_id}")
    try:
        session.autocommit = True
        with session.cursor() as cursor:
            cursor.execute("SELECT set_config('lock_timeout', %s, false)", (f"{max(1, int(wait_seconds * 1000))}ms",))
            cursor.execute("SELECT pg_try_advisory_lock(%s)", (lock_key(name),))
            if not _first(cursor) and (wait_seconds <= 0 or not _wait(cursor, name)):
                raise BusyError(f"{name} is being written by {_holder(cursor, name)}; wait for it to end, then run again")
        logger.debug("locked", table=name)
        yield
    finally:
        session.close()


def _first(cursor: cursor) -> object:
    row = cursor.fetchone()
    return row[0] if row else None


def _wait(cursor: cursor, name: str) -> bool:
    from psycopg2.errors import LockNotAvailable

    try:
        cursor.execute("SELECT pg_advisory_lock(%s)", (lock_key(name),))
    except LockNotAvailable:
        return False
    return True


def _holder(cursor: cursor, name: str) -> str:
    key = lock_key(name) & (2**64 - 1)
    cursor.execute(
        "SELECT coalesce(string_agg(application_name, ', '), 'a run that has just ended') FROM pg_locks "
        "JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted "
        "AND classid = %s::bigint::oid AND objid = %s::bigint::oid",
        (key >> 32, key & 0xFFFFFFFF),
    )
    return str(_first(cursor))
