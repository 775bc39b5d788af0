"""The source: what must hold before anything is read, the horizon, and one snapshot for all tables.

The order of reading is the proof that no row is missed (see "Incremental extracts that cannot miss a row" in the
architecture): the clock, other sessions, prepared transactions, locks, and only then the snapshot.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg2 import errors, sql

from etl.columns import Column, column
from etl.databases import connect
from etl.errors import RefusedError, UnavailableError
from etl.log import logger
from etl.tables import Table

if TYPE_CHECKING:
    from psycopg2.extensions import connection, cursor

DATABASE = "bank"
LOCK_TIMEOUT_SECONDS = 30
# Values arrive as the row hash expects them, whatever is set for the role or the database. row_security off makes a
# policy that would hide rows an error.
SESSION_SETTINGS = {
    "timezone": "UTC",
    "datestyle": "ISO",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "row_security": "off",
    "jit": "off",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}


@dataclass(frozen=True)
class Server:
    """Which server this is; a batch of another one cannot be continued."""

    system_identifier: str
    timeline: int
    database: str


@dataclass(frozen=True)
class Horizon:
    """What the clock and the other sessions said before the snapshot was taken.

    Attributes
    ----------
    clock
        The server's clock, read first.
    oldest
        Start of the oldest other session's transaction or query, or None.
    holder
        That session, for a person.
    prepared
        Names of prepared transactions of this database: when they began cannot be known.
    """

    clock: dt.datetime
    oldest: dt.datetime | None = None
    holder: str = ""
    prepared: tuple[str, ...] = ()

    @property
    def moment(self) -> dt.datetime:
        """Return the moment before which nothing can be written any more."""
        return min(self.clock, self.oldest) if self.oldest else self.clock

    def next_from(self, own_from: dt.datetime | None, lag_seconds: float) -> dt.datetime | None:
        """Return where the next extract begins; None is the very beginning.

        Parameters
        ----------
        own_from
            Where this extract began.
        """
        found = self.moment - dt.timedelta(seconds=lag_seconds)
        if self.prepared:
            return min(own_from, found) if own_from else None
        return found


@dataclass(frozen=True)
class Snapshot:
    """One snapshot of the source, exported for every stream."""

    identifier: str
    text: str
    xmin: int
    xmax: int


@dataclass(frozen=True)
class Previous:
    """What the newest full or incremental batch of a table says about its source.

    Attributes
    ----------
    range_from
        Where that batch began, or None for the beginning.
    next_from
        Where the next one begins, or None for the beginning.
    """

    server: Server
    clock: dt.datetime
    range_from: dt.datetime | None
    next_from: dt.datetime | None
    snapshot_xmin: int


@dataclass(frozen=True)
class SourceTable:
    """A declared table as the catalog describes it."""

    table: Table
    columns: tuple[Column, ...]
    pages: int

    @property
    def relation(self) -> str:
        """Qualified, quoted name."""
        return f'"{self.table.schema}"."{self.table.name}"'

    def column(self, name: str) -> Column:
        """Return one of its columns."""
        return next(column for column in self.columns if column.name == name)


class Source:
    """An open, repeatable view of the source: everything read through it belongs to one snapshot."""

    def __init__(
        self,
        session: connection,
        server: Server,
        horizon: Horizon,
        snapshot: Snapshot,
        tables: Mapping[str, SourceTable],
    ) -> None:
        self.session = session
        self.server = server
        self.horizon = horizon
        self.snapshot = snapshot
        self.tables = tables

    def rows(self, statement: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Read rows of this snapshot."""
        with self.session.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall()

    def pages_of_rows(self, statement: str, size: int = 10_000) -> Iterator[list[tuple[Any, ...]]]:
        """Read many rows of this snapshot, `size` at a time."""
        with self.session.cursor() as cursor:
            # Not psycopg2's named cursor: it wants a transaction of its own making.
            cursor.execute(f"DECLARE warehouse_rows NO SCROLL CURSOR FOR {statement}")
            try:
                while True:
                    cursor.execute(f"FETCH {int(size)} FROM warehouse_rows")
                    if not (page := cursor.fetchall()):
                        return
                    yield page
            finally:
                cursor.execute("CLOSE warehouse_rows")


@contextmanager
def snapshot(tables: Sequence[Table], previous: Mapping[str, Previous] | None = None) -> Iterator[Source]:
    """Check the preconditions, read the horizon and hold one snapshot of the tables.

    Parameters
    ----------
    previous
        By table name, the batch that this extract continues; none for a table that is read whole.

    Raises
    ------
    RefusedError
        Naming the precondition that does not hold; nothing has been read then.
    UnavailableError
        When the server does not answer, or a table stays locked.
    """
    session = connect("extractor", DATABASE, "warehouse extract")
    try:
        session.autocommit = True
        with session.cursor() as cursor:
            for name, value in SESSION_SETTINGS.items():
                cursor.execute("SELECT set_config(%s, %s, false)", (name, value))
            server = _server(cursor)
            _check_sessions_are_visible(cursor)
            _check_tables(cursor, tables)
            horizon = _horizon(cursor)
            _check_previous(server, horizon, tables, previous or {})
        with session.cursor() as cursor:
            taken = _locked_snapshot(cursor, tables)
            described = _describe(cursor, tables)
        _warn(horizon, tables)
        yield Source(session, server, horizon, taken, described)
    finally:
        session.close()


def _row(cursor: cursor, statement: str, parameters: Any = None) -> Any:
    cursor.execute(statement, parameters)
    return cursor.fetchone()


def _server(cursor: cursor) -> Server:
    if _row(cursor, "SELECT pg_is_in_recovery()")[0]:
        raise RefusedError(
            "the source is a replica: its snapshots say nothing about writers on the primary; point postgres_host and "
            "postgres_port at the primary"
        )
    encoding = _row(cursor, "SELECT current_setting('server_encoding')")[0]
    if encoding == "SQL_ASCII":
        raise RefusedError(f"database {DATABASE} has the encoding SQL_ASCII: its text has no known meaning; use UTF8")
    # The name of the WAL file carries the timeline at once after a promotion; pg_control_checkpoint lags behind.
    return Server(
        *_row(
            cursor,
            "SELECT system_identifier::text, ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int, "
            "current_database()::text FROM pg_control_system()",
        )
    )


def _check_sessions_are_visible(cursor: cursor) -> None:
    """Refuse when the start of another session's transaction may be hidden: it would silently be NULL."""
    may_see, role = _row(
        cursor,
        "SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'), current_user::text",
    )
    if not may_see:
        raise RefusedError(
            f"role {role} cannot see when other sessions' transactions began; as a superuser: GRANT pg_read_all_stats TO {role}"
        )
    cursor.execute(
        "SELECT 'the server' WHERE current_setting('track_activities') = 'off' "
        "UNION ALL SELECT coalesce('role ' || rolname, 'database ' || datname, 'every role') FROM pg_db_role_setting "
        "LEFT JOIN pg_roles ON pg_roles.oid = setrole LEFT JOIN pg_database ON pg_database.oid = setdatabase "
        "WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())) "
        "AND EXISTS (SELECT FROM unnest(setconfig) AS one WHERE one ~ '^track_activities=(off|false|no|0|of|f|n)') "
        "UNION ALL SELECT format('session %s of %s', pid, usename) FROM pg_stat_activity "
        "WHERE datname = current_database() AND state = 'disabled'"
    )
    if blind := [str(row[0]) for row in cursor.fetchall()]:
        raise RefusedError(
            f"track_activities is off for {', '.join(blind)}: the start of its transactions is hidden and rows could be "
            "missed; set it on (and end such sessions)"
        )


# Facts of one declared table, whatever is missing being NULL or false.
_TABLE_FACTS = """
SELECT
    c.relkind::text,
    c.relhassubclass,
    has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(c.relnamespace, 'USAGE'),
    has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE') OR has_any_column_privilege(c.oid, 'INSERT, UPDATE'),
    (SELECT array_agg(attname::text) FROM pg_attribute
     WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
    (SELECT array_agg(attname::text) FROM pg_attribute
     WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attnotnull),
    (SELECT format_type(atttypid, NULL) FROM pg_attribute
     WHERE attrelid = c.oid AND attname = %(cursor)s AND NOT attisdropped),
    (SELECT array_agg(tgenabled::text) FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid
     -- A row's trigger, before INSERT and UPDATE, of every column, with no condition.
     WHERE tgrelid = c.oid AND NOT tgisinternal AND (tgtype & 23) = 23 AND tgqual IS NULL AND tgattr = ''
     AND prosrc ~* ('new\\.' || %(cursor)s || '\\s*:?=\\s*clock_timestamp\\(\\)')),
    (SELECT bool_or(indnkeyatts = cardinality(%(key)s)) FROM pg_index
     WHERE indrelid = c.oid AND indisunique AND indisvalid AND indpred IS NULL AND indexprs IS NULL
     AND (SELECT array_agg(attname::text ORDER BY attname::text) FROM pg_attribute
          WHERE attrelid = c.oid AND attnum = ANY ((indkey::int2[])[0:indnkeyatts - 1])) = %(key)s)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(name)s
"""


def _check_tables(cursor: cursor, tables: Sequence[Table]) -> None:
    for table in tables:
        cursor.execute(
            _TABLE_FACTS,
            {"cursor": table.cursor, "schema": table.schema, "name": table.name, "key": sorted(table.key)},
        )
        facts = cursor.fetchone()
        if facts is None:
            raise RefusedError(f"table {table.source} is not in database {DATABASE}; create it or correct etl/tables.yaml")
        _check_table(table, *facts)


def _check_table(
    table: Table,
    relkind: str,
    has_children: bool,
    may_read: bool,
    may_write: bool,
    columns: list[str],
    not_null: list[str] | None,
    cursor_type: str | None,
    triggers: list[str] | None,
    is_unique: bool | None,
) -> None:
    """Refuse a table that cannot be extracted exactly."""
    if relkind != "r" or has_children:
        raise RefusedError(f"{table.source} is not a plain table (or has children); declare the tables that hold its rows")
    if not may_read:
        raise RefusedError(f"role extractor may not read {table.source}; GRANT SELECT ON {table.source} TO extractor")
    if may_write:
        # Its sessions are left out of the horizon, for they cannot write.
        raise RefusedError(f"role extractor may write {table.source}; revoke everything but SELECT from it")
    named = [*table.key, table.cursor, *([table.time] if table.time else []), *table.personal]
    if missing := [name for name in named if name not in columns]:
        raise RefusedError(f"{table.source} has no column {', '.join(missing)}; correct etl/tables.yaml")
    if nullable := [name for name in (*table.key, table.cursor) if name not in (not_null or [])]:
        raise RefusedError(
            f"{table.source}.{', '.join(nullable)} may be NULL, and such rows would be missed; "
            f"ALTER TABLE {table.source} ALTER COLUMN {nullable[0]} SET NOT NULL"
        )
    if not is_unique:
        raise RefusedError(f"{table.source} has no unique index on its key ({', '.join(table.key)}); rows could be doubled")
    if cursor_type != "timestamp with time zone":
        raise RefusedError(f"{table.source}.{table.cursor} is {cursor_type}; a cursor must be timestamp with time zone")
    if table.cursor_set_by == "server" and "A" not in (triggers or []):
        state = "is not ENABLE ALWAYS" if triggers else "is missing"
        raise RefusedError(
            f"the trigger that writes {table.source}.{table.cursor} (BEFORE INSERT OR UPDATE, NEW.{table.cursor} := "
            f"clock_timestamp()) {state}: writes would be missed; run sql/bank/updated_at.sql, ALTER TABLE {table.source} "
            "ENABLE ALWAYS TRIGGER ..., then bash/reconcile.sh for what was written meanwhile"
        )


def _horizon(cursor: cursor) -> Horizon:
    """Read the clock, the other sessions and the prepared transactions, in this order."""
    clock = _row(cursor, "SELECT clock_timestamp()")[0]
    # A session without a transaction writes later than now, so later than the clock above; one that is just beginning
    # its transaction is active with a query but may not show the transaction yet. A walsender's query never ends.
    oldest = _row(
        cursor,
        "SELECT least(xact_start, query_start), format('session %s of %s (%s, %s)', pid, usename, "
        "coalesce(nullif(application_name, ''), 'no name'), state) "
        "FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() AND usename IS DISTINCT FROM current_user "
        "AND backend_type NOT LIKE 'autovacuum%' "
        "AND (xact_start IS NOT NULL OR (state = 'active' AND backend_type <> 'walsender')) "
        "ORDER BY 1 LIMIT 1",
    )
    cursor.execute("SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared")
    prepared = tuple(str(row[0]) for row in cursor.fetchall())
    start, holder = oldest or (None, "")
    return Horizon(clock, start, holder, prepared)


def _check_previous(server: Server, horizon: Horizon, tables: Sequence[Table], previous: Mapping[str, Previous]) -> None:
    for table in tables:
        last = previous.get(table.name)
        if last is None:
            continue
        if last.server != server:
            raise RefusedError(
                f"the last batch of {table.name} came from another server (system {last.server.system_identifier}, timeline "
                f"{last.server.timeline}, database {last.server.database}; now {server.system_identifier}, "
                f"{server.timeline}, {server.database}): its watermark means nothing here; run bash/extract.sh full {table.name}"
            )
        behind = (last.clock - horizon.clock).total_seconds()
        if behind > table.lag:
            raise RefusedError(
                f"the source's clock is {behind:.1f} s behind the last batch of {table.name}, more than its lag of "
                f"{table.lag:g} s: rows could be missed; correct the clock, or run bash/extract.sh full {table.name}"
            )


def _locked_snapshot(cursor: cursor, tables: Sequence[Table]) -> Snapshot:
    """Begin the transaction, lock the tables against DDL and TRUNCATE, and only then take the snapshot."""
    cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    cursor.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(f"{LOCK_TIMEOUT_SECONDS}s")))
    try:
        cursor.execute(
            sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(
                sql.SQL(", ").join(sql.Identifier(table.schema, table.name) for table in tables)
            )
        )
    except errors.LockNotAvailable as error:
        names = ", ".join(table.source for table in tables)
        raise UnavailableError(
            f"another session has held {names} locked for {LOCK_TIMEOUT_SECONDS} s; run again when it has ended"
        ) from error
    return Snapshot(
        *_row(
            cursor,
            "SELECT pg_export_snapshot(), s::text, pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint "
            "FROM pg_current_snapshot() AS s",
        )
    )


_COLUMNS = """
WITH RECURSIVE resolved AS (
    SELECT attrelid, attnum, attname, atttypid AS original, atttypmod AS original_modifier, attnotnull,
        atttypid AS type, atttypmod AS modifier
    FROM pg_attribute
    WHERE attrelid = %(oid)s AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT attrelid, attnum, attname, original, original_modifier, attnotnull, typbasetype, typtypmod
    FROM resolved JOIN pg_type ON pg_type.oid = type
    WHERE typtype = 'd'
)
SELECT attname::text, format_type(original, original_modifier), typname::text, modifier, typcategory::text,
    typtype = 'e', NOT attnotnull, col_description(attrelid, attnum)
FROM resolved JOIN pg_type ON pg_type.oid = type
WHERE typtype <> 'd'
ORDER BY attnum
"""


def _describe(cursor: cursor, tables: Sequence[Table]) -> dict[str, SourceTable]:
    described = {}
    for table in tables:
        oid, pages = _row(
            cursor,
            "SELECT c.oid, pg_relation_size(c.oid) / current_setting('block_size')::int FROM pg_class AS c "
            "JOIN pg_namespace AS n ON n.oid = relnamespace WHERE nspname = %s AND relname = %s",
            (table.schema, table.name),
        )
        cursor.execute(_COLUMNS, {"oid": oid})
        columns = tuple(
            column(
                table.source,
                name,
                source_type=source_type,
                base_type=base_type,
                type_modifier=modifier,
                category=category,
                is_enum=is_enum,
                is_nullable=is_nullable,
                comment=comment,
                decimals=table.decimals.get(name),
            )
            for name, source_type, base_type, modifier, category, is_enum, is_nullable, comment in cursor.fetchall()
        )
        described[table.name] = SourceTable(table, columns, int(pages))
    return described


def _warn(horizon: Horizon, tables: Sequence[Table]) -> None:
    held_back = (horizon.clock - horizon.moment).total_seconds()
    if held_back > max(table.lag for table in tables):
        logger.warning(
            "an open transaction widens what the next extract reads again",
            session=horizon.holder,
            seconds=round(held_back, 1),
        )
    if horizon.prepared:
        logger.warning(
            "prepared transactions keep the watermark where it is; commit or roll them back",
            prepared=", ".join(horizon.prepared),
        )
