"""Erase a person: what a declared table calls personal, in raw, core, its snapshots, rejects, events and records; then search everything.

The order is what makes a kill harmless. Values to look for are read from the table's files, published or not. Texts come
first, then core, then raw: the folders of raw that hold the values are replaced, but stay until the search at the end has found nothing
outside of them. So whenever a run is killed, the next one still knows what to look for.

A person's rows stay, without the values: transactions refer to them, and a batch keeps its number of rows. An unlike row in the source
would bring the values back with the next full load, so the source goes first.
"""

from __future__ import annotations

import argparse
import datetime as dt
import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from psycopg2 import sql
from psycopg2.errors import UniqueViolation

from etl import batches, core, events, maintain, ops, storage, streams
from etl.batches import Batch
from etl.columns import Column
from etl.databases import opened
from etl.errors import BusyError, RefusedError, WarehouseError
from etl.faults import named_faults
from etl.log import logger, run_main
from etl.settings import settings
from etl.sql_server import Session, render, session
from etl.tables import Table, declared_tables, personal_of
from etl.traces import Others, Subject, UnreadableError, Words, is_parquet, names_person, rows_of, texts_of_others
from etl.trees import ChangedError, Entry, HdfsTree, each

if TYPE_CHECKING:
    import pyarrow as pa
    from psycopg2.extensions import cursor

CUSTOMERS = "customers"
VERIFIED = "verified"
STALE_SECONDS = 3600.0
"""Age from which on a file that no snapshot names is nobody's: no statement of a dead run will commit it any more."""
WAIT_SECONDS = 20.0
"""How long a statement of a dead run has to remove its files itself."""
LISTED = 10
NEWEST = "SELECT run_id, erased_at, place FROM ops.erasures WHERE table_name = %s AND key = %s ORDER BY erased_at DESC LIMIT 1"


@dataclass
class Traces:
    """What the files of the personal table tell: rows of the person, values in them, and which files hold them."""

    rows: int = 0
    values: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    words: Words = field(default_factory=Words)

    def below(self, folder: str) -> list[str]:
        """Return the files with values below a folder."""
        return sorted(path for path in self.files if path.startswith(f"{folder}/"))


@named_faults()
def erase(table: Table, identity: int, run: ops.Run, hive: Session) -> dict[str, int]:
    """Erase a person's values everywhere, search again, and record that it was done.

    Parameters
    ----------
    table
        A declared table with personal columns, whose key is one whole number.
    identity
        The person's key.

    Returns
    -------
    dict
        How much was erased, by place; empty where nothing was left to erase.

    Raises
    ------
    RefusedError
        When the source still holds the values, or nothing is known of such a person.
    BusyError
        When another run writes the table, or a statement of a dead one may still commit files that hold the values.
    WarehouseError
        When the search finds something; the places are named.
    """
    subject = Subject(table.key[0], identity, table.personal, settings().erased_text)
    with ExitStack() as stack:
        # No extract may begin before the source was looked at, no merge read a batch that moves.
        stack.enter_context(ops.writer(f"raw.{table.name}", run, batches.LOCK_WAIT_SECONDS))
        stack.enter_context(ops.writer(f"core.{table.name}", run, ops.WRITER_WAIT_SECONDS))
        is_in_source = check_source(table, subject)
        traces = look_up(table, subject)
        earlier = _earlier(table, identity)
        counts = {"ops.rejects": erase_rejects(table, subject, run)}
        if not (is_in_source or traces.rows or counts["ops.rejects"] or earlier):
            raise RefusedError(
                f"nothing is known of {subject.key} {identity}, in the source or here, and no erasure is recorded; correct it"
            )
        counts["texts"] = erase_records(table, subject, traces.words, run)
        # Made anew, with every snapshot of theirs, from records that no longer name the person.
        drop_copies(hive)
        counts["raw.events"] = _recorded(run, table, identity, "raw.events", erase_events(traces.words, subject, run))
        personal = f"core.{personal_of(table.name)}"
        counts[personal] = _recorded(run, table, identity, personal, erase_core(hive, table, subject, traces))
        raw = f"raw.{table.name}"
        counts[raw] = _recorded(run, table, identity, raw, erase_raw(hive, table, subject, traces, run))
        counts["trash"] = _recorded(run, table, identity, "trash", erase_trash(subject, traces.words))
        searched = verify(hive, table, subject, traces.words)
        batches.remove_unpublished(hive, batches.published(hive, [table])[table.name], run.run_id)
        found = {place: count for place, count in counts.items() if count}
        if found or not earlier:
            _recorded(run, table, identity, VERIFIED, searched)
        if earlier and not found:
            logger.info("already erased", table=table.name, key=identity, by=earlier[0], at=f"{earlier[1]:%Y-%m-%d %H:%M:%S}")
        else:
            logger.info("erased", table=table.name, key=identity, files_searched=searched, **found)
        return found


def _earlier(table: Table, identity: int) -> tuple[str, dt.datetime] | None:
    """Return run and time of the newest erasure where it came to its end."""
    with opened("etl", "warehouse") as connection, connection.cursor() as cursor:
        cursor.execute(NEWEST, (table.name, str(identity)))
        row = cursor.fetchone()
    return (row[0], row[1]) if row and row[2] == VERIFIED else None


def _recorded(run: ops.Run, table: Table, identity: int, place: str, count: int) -> int:
    if count:
        with opened("etl", "warehouse") as connection, connection.cursor() as cursor:
            _record(cursor, run, table, identity, place, count)
    return count


def _record(cursor: cursor, run: ops.Run, table: Table, identity: int, place: str, count: int) -> None:
    cursor.execute(
        "INSERT INTO ops.erasures (run_id, table_name, key, place, item_count) VALUES (%s, %s, %s, %s, %s)",
        (run.run_id, table.name, str(identity), place, count),
    )
    logger.info("erased from", place=place, count=count)


# What to look for ------------------------------------------------------------------------------------------------


def check_source(table: Table, subject: Subject) -> bool:
    """Tell whether the person has a row in the source.

    Raises
    ------
    RefusedError
        When the row still holds personal values, naming their columns, not them.
    """
    columns = sql.SQL(", ").join(map(sql.Identifier, subject.personal))
    with opened("extractor", "bank") as connection, connection.cursor() as cursor:
        cursor.execute(
            sql.SQL("SELECT {} FROM {} WHERE {} = %s").format(
                columns, sql.Identifier(table.schema, table.name), sql.Identifier(subject.key)
            ),
            (subject.identity,),
        )
        row = cursor.fetchone()
    kept = [name for name, value in zip(subject.personal, row or (), strict=False) if value not in (None, subject.erased)]
    if kept:
        raise RefusedError(
            f"{table.source} still holds {', '.join(kept)} of {subject.key} {subject.identity}, and the next full load would bring them "
            f"back; delete the row there, or set each to NULL or '{subject.erased}', then run again; nothing was erased"
        )
    return row is not None


def _contents(root: str) -> Iterator[tuple[Entry, Callable[[], bytes]]]:
    """Yield the files below a folder of HDFS, with how to read them."""
    tree = HdfsTree("hdfs", root)
    for entry in tree.entries():
        if not entry.is_folder and entry.length:
            yield replace(entry, path=f"{root}/{entry.path}"), lambda entry=entry: b"".join(tree.read(entry))  # type: ignore[misc]


def _search(roots: Sequence[str], work: Callable[[str, bytes], None]) -> int:
    """Do some work with every file below some folders, several at a time; returns how many files there were."""
    done: list[str] = []

    def one(item: tuple[Entry, Callable[[], bytes]]) -> None:
        try:
            content = item[1]()
        except ChangedError:
            # What goes away while it is listed is removed by its own writer.
            return
        try:
            work(item[0].path, content)
        except UnreadableError as error:
            raise WarehouseError(
                f"{item[0].path} in HDFS is damaged, so nobody can say whom it names; remove it or bring it back, then run again"
            ) from error
        done.append(item[0].path)

    for root in roots:
        each(one, _contents(root))
    return len(done)


def _personal_folders(table: Table) -> list[str]:
    return [batches.root(table.name, "full"), f"{settings().warehouse_path}/core/{personal_of(table.name)}"]


def look_up(table: Table, subject: Subject) -> Traces:
    """Read the person's values from all files of the personal table, and which of them name nobody else."""
    seen: list[tuple[str, int, list[str], bool]] = []
    _search(_personal_folders(table), lambda path, content: seen.append((path, *rows_of(content, subject), is_torn(content))))
    found = Traces(
        sum(rows for _, rows, _, _ in seen),
        {value for _, _, values, _ in seen for value in values if isinstance(value, str)},
        {path for path, _, values, torn in seen if values or torn},
    )
    if found.values:
        others = Others()
        _search(_personal_folders(table), lambda _, content: others.add(texts_of_others(content, subject, found.values), found.values))
        others.add(_texts_in_source(table, subject, Words(tuple(found.values))), found.values)
        found.words = Words.of(found.values, others)
    logger.info(
        "looked up", table=table.name, key=subject.identity, rows=found.rows, files=len(found.files), values=len(found.values),
        values_of_nobody_else=len(found.words.values),
    )  # fmt: skip
    return found


def is_torn(content: bytes) -> bool:
    """Tell whether a file is the beginning of a Parquet file, which nobody can read."""
    return content[:4] == b"PAR1" and not is_parquet(content)


def _texts_in_source(table: Table, subject: Subject, words: Words) -> Iterator[str]:
    """Yield texts of the source that others have and that hold one of some values."""
    tables = {one.name: one for one in (*declared_tables().values(), table)}
    with opened("extractor", "bank") as connection, connection.cursor() as cursor:
        for one in tables.values():
            cursor.execute(
                "SELECT column_name FROM information_schema.columns WHERE table_schema = %s AND table_name = %s "
                "AND data_type IN ('text', 'character varying', 'character')",
                (one.schema, one.name),
            )
            for (name,) in cursor.fetchall():
                own = sql.SQL("{} <> {}").format(sql.Identifier(subject.key), sql.Literal(subject.identity))
                cursor.execute(
                    sql.SQL("SELECT DISTINCT {0} FROM {1} WHERE lower({0}) LIKE ANY(%s) AND {2}").format(
                        sql.Identifier(name), sql.Identifier(one.schema, one.name), own if one.name == table.name else sql.SQL("true")
                    ),
                    (words.likes,),
                )
                yield from (str(row[0]) for row in cursor.fetchall())


# Postgres --------------------------------------------------------------------------------------------------------


def erase_rejects(table: Table, subject: Subject, run: ops.Run) -> int:
    """Empty the payloads of the person's own rejected rows: what stands in a line that was refused is anybody's guess."""
    with opened("etl", "warehouse") as connection, connection.cursor() as cursor:
        cursor.execute(
            # With its number: of two lines with one key and one reason, both stay.
            "UPDATE ops.rejects SET payload = '[' || %(erased)s || ' ' || reject_id || ']' WHERE table_name = %(table)s "
            "AND payload <> '[' || %(erased)s || ' ' || reject_id || ']' "
            "AND (btrim(key) = %(key)s OR (coalesce(key, '') = '' AND payload ~ %(field)s))",
            {
                "erased": subject.erased,
                "table": table.name,
                "key": str(subject.identity),
                "field": rf'(^|[,;|\t"])\s*{subject.identity}\s*([,;|\t"]|$)',
            },
        )
        count = cursor.rowcount
        if count:
            _record(cursor, run, table, subject.identity, "ops.rejects", count)
    return count


def erase_records(table: Table, subject: Subject, words: Words, run: ops.Run) -> int:
    """Mask the person's values in every text of the database `warehouse`: rejected messages, alerts, errors of runs."""
    total = 0
    with opened("etl", "warehouse") as connection, connection.cursor() as cursor:
        for place, target, column, kind, rows in _records(cursor, words):
            for row, text in rows:
                cursor.execute("SAVEPOINT one")
                try:
                    cursor.execute(
                        sql.SQL("UPDATE {} SET {} = %s::{} WHERE ctid = %s").format(target, column, sql.SQL(kind)),
                        (words.masked(text, subject.erased), row),
                    )
                except UniqueViolation:
                    # Without the values it is a record that is there already, as of a message that came twice.
                    cursor.execute("ROLLBACK TO SAVEPOINT one")
                    cursor.execute(sql.SQL("DELETE FROM {} WHERE ctid = %s").format(target), (row,))
            _record(cursor, run, table, subject.identity, place, len(rows))
            total += len(rows)
    return total


def drop_copies(hive: Session) -> None:
    """Remove the readers' copies of the records, and all of their history; bash/marts.sh makes them anew."""
    with opened("etl", "warehouse") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'ops'")
        records = {name for (name,) in cursor.fetchall()}
    for row in hive.run("SHOW TABLES IN ops"):
        if row[1] in records:
            hive.run(f"DROP TABLE IF EXISTS ops.{row[1]} PURGE")


def _records(cursor: cursor, words: Words) -> Iterator[tuple[str, sql.Composable, sql.Composable, str, list[tuple[str, str]]]]:
    """Yield the columns of the warehouse's own tables that name the person: name, table, column, type, and rows by place and text."""
    if not words.values:
        return
    cursor.execute(
        "SELECT nspname, relname, attname, format_type(atttypid, NULL) FROM pg_attribute JOIN pg_class c ON c.oid = attrelid "
        "JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind = 'r' AND attnum > 0 AND NOT attisdropped "
        "AND nspname NOT IN ('pg_catalog', 'information_schema') AND relpersistence <> 't' "
        "AND format_type(atttypid, NULL) IN ('text', 'character varying', 'json', 'jsonb', 'text[]') ORDER BY 1, 2, attnum"
    )
    for schema, name, attribute, kind in cursor.fetchall():
        target, column = sql.Identifier(schema, name), sql.Identifier(attribute)
        cursor.execute(
            sql.SQL("SELECT ctid::text, {0}::text FROM {1} WHERE lower({0}::text) LIKE ANY(%s) FOR UPDATE").format(column, target),
            (words.likes,),
        )
        if rows := [(row, text) for row, text in cursor.fetchall() if words.are_in(text)]:
            yield f"{schema}.{name}", target, column, kind, rows


# HDFS ------------------------------------------------------------------------------------------------------------


def erase_events(words: Words, subject: Subject, run: ops.Run) -> int:
    """Mask the person's values in messages of raw.events, file by file, each in its own place; returns how many files held some."""
    if not words.values:
        return 0
    found: list[tuple[str, bytes]] = []

    def one(path: str, content: bytes) -> None:
        name = path.rsplit("/", 1)[-1]
        if name.startswith("_") and name.endswith(".parquet"):
            # Who writes one holds the lock; this one's writer died.
            storage.storage().delete(path)
        elif is_parquet(content) and names_person(content, words):
            found.append((path, content))

    with ops.writer(events.TABLE, run, ops.WRITER_WAIT_SECONDS):
        _search([events.root()], one)
        for path, content in found:
            storage.replace(path, _masked_events(content, words, subject))
    return len(found)


def _masked_events(content: bytes, words: Words, subject: Subject) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def masked(value: bytes | None) -> bytes | None:
        text = (value or b"").decode(errors="surrogateescape")
        return words.masked(text, subject.erased).encode(errors="surrogateescape") if words.are_in(text) else value

    rows = pq.read_table(pa.BufferReader(content))
    for name in ("message_key", "message"):
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(at), pa.array(map(masked, rows[name].to_pylist()), rows.schema.field(at).type))
    written = io.BytesIO()
    pq.write_table(rows, written, compression="zstd")
    return written.getvalue()


def _without(columns: Sequence[Column], subject: Subject) -> dict[str, str | None]:
    """Return what stands in place of each personal value.

    Raises
    ------
    RefusedError
        When a column may hold neither NULL nor a text.
    """
    found = {column.name: None if column.is_nullable else subject.erased for column in columns if column.name in subject.personal}
    if odd := [column.name for column in columns if found.get(column.name) is not None and column.kind != "text"]:
        raise RefusedError(
            f"personal column {', '.join(odd)} may not be NULL and is no text, so it cannot be erased; let it be NULL in the source"
        )
    return found


def erase_core(hive: Session, table: Table, subject: Subject, traces: Traces) -> int:
    """Erase the values in the present state, then forget every snapshot before it; returns how many snapshots that were.

    The files with the person's rows are written anew and manifests as well, for those hold the lowest and highest values of files that are
    gone. The last commit names the batch that core holds, so that its mark and the tag outlive the others.
    """
    name = personal_of(table.name)
    full = f"core.{name}"
    folder = f"{settings().warehouse_path}/core/{name}"
    dirty = set(traces.below(folder))
    _search([folder], lambda path, content: dirty.add(path) if names_person(content, traces.words) else None)
    if not dirty or name not in core.existing(hive):
        return 0
    state = batches.published(hive, [table])[table.name]
    newest = batches.newest(hive, state, batches.KINDS)
    values = _without(newest.columns, subject) if newest else dict.fromkeys(subject.personal)
    mark = core.marks(hive, [name]).get(name)
    statement = render(
        "hive/source/erase.hql.j2",
        name=name,
        key=list(table.key),
        identity=subject.identity,
        values=[{"name": column, "value": value} for column, value in values.items()],
    )
    before = hive.run(f"SELECT count(*) FROM {full}.snapshots")[0][0]
    _commit(hive, statement, mark)
    hive.commit(
        f"CALL spark_catalog.system.rewrite_data_files(table => '{full}', where => '{subject.key} = {subject.identity}', "
        "options => map('rewrite-all', 'true', 'partial-progress.enabled', 'false'))"
    )
    hive.commit(f"CALL spark_catalog.system.rewrite_manifests(table => '{full}')")
    _commit(hive, statement, mark)
    maintain.tag(hive, name)
    for tag, snapshot in hive.run(f"SELECT name, snapshot_id FROM {full}.refs WHERE type = 'TAG'"):
        if mark is None or tag != "merged":
            hive.run(f"ALTER TABLE {full} DROP TAG `{tag}`")
            logger.info("tag dropped", table=full, tag=tag, snapshot=snapshot)
    tomorrow = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    hive.commit(
        f"CALL spark_catalog.system.expire_snapshots(table => '{full}', "
        f"older_than => TIMESTAMP '{tomorrow:%Y-%m-%d %H:%M:%S}', retain_last => 1)"
    )
    _remove_orphans(hive, full, folder, subject, traces.words)
    return max(1, before)


def _commit(hive: Session, statement: str, mark: core.Mark | None) -> None:
    """Run a statement that may be repeated; its commit says again which batch the table holds."""
    named = {"batch": mark.batch, "run": mark.run_id} if mark else {}
    try:
        for name, value in named.items():
            hive.run(f"SET `{core.PROPERTY}.{name}`={value}")
        hive.commit(statement)
    finally:
        for name in named:
            hive.run(f"RESET `{core.PROPERTY}.{name}`")


def _remove_orphans(hive: Session, full: str, folder: str, subject: Subject, words: Words) -> None:
    """Remove files with the values that no snapshot names: what statements left that died.

    Raises
    ------
    BusyError
        When such a file is young: a statement of a dead run may be about to commit it.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        named = {
            str(path).removeprefix(settings().hdfs_uri)
            for (path,) in hive.run(
                f"SELECT file_path FROM {full}.all_files UNION ALL SELECT path FROM {full}.all_manifests "
                f"UNION ALL SELECT manifest_list FROM {full}.snapshots"
            )
        }
        young: list[str] = []

        def one(path: str, content: bytes, named: set[str] = named, young: list[str] = young) -> None:
            if path in named or not (rows_of(content, subject)[1] or is_torn(content) or names_person(content, words)):
                return
            status = storage.storage().status(path, strict=False)
            if status is not None and time.time() - status["modificationTime"] / 1000 < STALE_SECONDS:
                young.append(path)
            elif status is not None:
                storage.storage().delete(path)
                logger.info("removed what no snapshot names", file=path)

        _search([folder], one)
        if not young:
            return
        if time.monotonic() > deadline:
            raise BusyError(
                f"{young[0]} and {len(young) - 1} more files that no snapshot names hold what is to be erased; a run that died may still "
                f"commit them: run again in {STALE_SECONDS / 60:.0f} minutes, then they are removed"
            )
        time.sleep(1)


def erase_raw(hive: Session, table: Table, subject: Subject, traces: Traces, run: ops.Run) -> int:
    """Write the batches with the person's values anew, without them, and let their partitions point there; returns how many.

    The folders before stay until `remove_unpublished`.
    """
    root = batches.root(table.name, "full")
    state = batches.published(hive, [table])[table.name]
    folders = {path.removeprefix(f"{root}/").split("/")[0] for path in traces.below(root)}
    count = 0
    for number in sorted({batches.number_of(name) for name in folders} & state.rows):  # type: ignore[type-var]
        folder = batches.folder_of(hive, table.name, "full", number, state.folders["full"])  # type: ignore[arg-type]
        if folder.removeprefix(f"{root}/") in folders:
            old = batches.read(folder)
            new = rewritten(old, f"{root}/{number}-{run.run_id}", subject)
            batches.write_manifest(new)
            batches.move(hive, old, new)
            logger.info("batch written anew", table=old.hive_table, batch=number, rows=new.row_count)
            count += 1
    return count


def rewritten(batch: Batch, folder: str, subject: Subject) -> Batch:
    """Write a batch without the person's values to another folder, file by file, and return it as its manifest is to say.

    Raises
    ------
    WarehouseError
        When another row than the person's is not as it was, or one is missing.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    def read(path: str) -> pa.Table:
        with storage.storage().read(path) as reader:
            return pq.read_table(pa.BufferReader(reader.read()))

    def others(rows: pa.Table) -> pa.Table:
        return rows.filter(pc.not_equal(rows[subject.key], subject.identity))

    values = _without(batch.columns, subject)
    parts, found = [], []
    for at, file in enumerate(batch.files):
        before = read(f"{batch.folder}/{file['name']}")
        part = streams.write(iter(_erased(before, subject, values).to_batches()), batch.columns, (), folder, f"part-{at:02d}")
        after = pa.concat_tables([read(f"{folder}/{one['name']}") for one in part.files])
        if after.num_rows != before.num_rows or not others(after).equals(others(before)):
            raise WarehouseError(
                f"{folder} does not hold the rows of {batch.folder} as they were; the partition still points to the latter, run again"
            )
        found.append(streams.read_back(folder, part, batch.columns))
        parts.append(part)
    joined = streams.ReadBack.joined(found)
    return replace(
        batch,
        folder=folder,
        content_hash=str(joined.total),
        outline=joined.outline(batch.columns),
        files=tuple(file for part in parts for file in part.files),
        bytes=sum(part.bytes for part in parts),
    )


def _erased(rows: pa.Table, subject: Subject, values: dict[str, Any]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    is_own = pc.equal(rows[subject.key], subject.identity)
    for name, value in values.items():
        if name in rows.column_names:
            at = rows.schema.get_field_index(name)
            kept = rows.schema.field(at)
            rows = rows.set_column(at, kept, pc.if_else(is_own, pa.scalar(value, kept.type), rows[name]))
    return rows


def _trash() -> str:
    return f"/user/{settings().hdfs_user}/.Trash"


def erase_trash(subject: Subject, words: Words) -> int:
    """Remove the files of HDFS's trash that hold the person's values; returns how many."""
    found: list[str] = []
    _search([_trash()], lambda path, content: found.append(path) if rows_of(content, subject)[1] or names_person(content, words) else None)
    for path in found:
        storage.storage().delete(path)
    return len(found)


# The search at the end -------------------------------------------------------------------------------------------


def verify(hive: Session, table: Table, subject: Subject, words: Words) -> int:
    """Search every file of HDFS below the warehouse's folder and in the trash, and every text of the database `warehouse`.

    Returns
    -------
    int
        How many files were searched; folders of raw that no partition points to any more, and which are removed next, are left out.

    Raises
    ------
    WarehouseError
        Naming up to ten places in which something was found.
    """
    state = batches.published(hive, [table])[table.name]
    root = batches.root(table.name, "full")
    published = {batches.folder_of(hive, table.name, "full", number, state.folders["full"]) for number in state.rows}
    given_up = tuple(f"{root}/{name}/" for name in state.folders["full"] if f"{root}/{name}" not in published)
    # Keys of other tables are other people's.
    foreign = tuple(
        f"{settings().warehouse_path}/{folder}/"
        for other in declared_tables()
        if other != table.name
        for folder in (f"raw/{other}", f"core/{personal_of(other)}")
    )
    found: list[str] = []
    began, logged = time.monotonic(), time.monotonic()

    def one(path: str, content: bytes) -> None:
        nonlocal logged
        if path.startswith(given_up):
            return
        if names_person(content, words) or (not path.startswith(foreign) and rows_of(content, subject)[1]):
            found.append(path)
        if time.monotonic() - logged > 10:
            logged = time.monotonic()
            logger.info("searching", seconds=round(logged - began), at=path.rsplit("/", 1)[0])

    count = _search([settings().warehouse_path, settings().sandbox_path, _trash()], one)
    with opened("etl", "warehouse") as connection, connection.cursor() as cursor:
        found += [f"{place} ({len(rows)} rows) in Postgres" for place, *_, rows in _records(cursor, words)]
    if found:
        raise WarehouseError(
            f"{len(found)} places still hold personal data of {subject.key} {subject.identity}: {', '.join(sorted(found)[:LISTED])}; "
            "remove it there (a copy that somebody made?), then run again; the erasure is not recorded as done"
        )
    logger.info("searched", files=count, seconds=round(time.monotonic() - began, 1))
    return count


def main() -> int:
    """Parse the command line and erase a customer."""
    parser = argparse.ArgumentParser(prog="bash/erase_customer.sh", description=__doc__)
    parser.add_argument("customer_id", type=int, metavar="ID", help="the customer's number in the source")
    identity = parser.parse_args().customer_id
    with ops.run("erase_customer") as run, session() as hive:
        found = erase(declared_tables()[CUSTOMERS], identity, run, hive)
    if found:
        print(f"customer {identity} is erased: {', '.join(f'{count} in {place}' for place, count in found.items())}")
    else:
        print(f"customer {identity} is erased already; every place was searched again for what is still known, and nothing was found")
    return 0


if __name__ == "__main__":
    run_main(main)
