"""Extract tables from Postgres into HDFS and publish them in Hive.

Usage: bash/extract.sh full|incremental|deletes|repair|watermark ...
"""

from __future__ import annotations

import argparse
import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

from etl import batches, ops, sql_server, streams
from etl.batches import Batch
from etl.columns import (
    cannot_be_held,
    content_hash,
    drift,
    hash_expression,
    is_rejected,
    key_expression,
    quoted,
    select_expression,
)
from etl.databases import opened
from etl.errors import RefusedError, WarehouseError
from etl.faults import named_faults
from etl.log import logger, run_main
from etl.screens import progress
from etl.settings import settings
from etl.source import Previous, Snapshot, Source, SourceTable, snapshot
from etl.tables import Table, select_tables

EPOCH_SPAN = 2**32
REJECT_PAYLOAD_CHARACTERS = 200


@dataclass(frozen=True)
class Counted:
    """What the source says of a range, by a query of its own: not by what the streams read."""

    rows: int
    rejected: int
    content_hash: str


@dataclass(frozen=True)
class Part:
    """What an extract reads of one table: a predicate over its rows, and how far it goes."""

    source: SourceTable
    predicate: str
    range_from: dt.datetime | None = None
    next_from: dt.datetime | None = None
    previous_xmin: int | None = None
    repaired: dict[str, str] | None = None

    @property
    def table(self) -> Table:
        """Return the declared table."""
        return self.source.table


@dataclass
class Copy:
    """The copy of one part into HDFS while it is under way."""

    part: Part
    number: int
    folder: str
    began: float
    pieces: list[Future[tuple[streams.Part, streams.ReadBack]]] = field(default_factory=list)


@named_faults()
def extract(
    tables: Sequence[Table],
    kind: str,
    run: ops.Run,
    hive: sql_server.Session,
    *,
    force: bool = False,
    repair: tuple[dt.datetime, dt.datetime] | None = None,
) -> list[Batch]:
    """Extract tables under one snapshot, verify and publish them, parents before children.

    Parameters
    ----------
    kind
        full, incremental or repair.
    force
        Publish an empty full batch of a table that was not empty.
    repair
        For a repair, the half-open range of `time`, or of the cursor where a table declares none.

    Returns
    -------
    list of Batch
        What was published; a table with an empty range has none.

    Raises
    ------
    RefusedError
        When a precondition does not hold; nothing was read then.
    BusyError
        When another run holds one of the tables, or published the same number first.
    WarehouseError
        When what lies in HDFS or what Hive reads differs from the source; that table has no new batch then.
    """
    with ExitStack() as stack:
        for table in tables:
            stack.enter_context(ops.writer(f"raw.{table.name}", run, batches.LOCK_WAIT_SECONDS))
        if kind == "full":
            stack.enter_context(streams.loading_libraries())
        states = batches.published(hive, tables)
        for table in tables:
            batches.remove_unpublished(hive, states[table.name], run.run_id)
        newest = batches.newest_watermarks(hive, states)
        previous = {} if kind == "full" else {table.name: batches.continued(newest[table.name], table) for table in tables}
        source = stack.enter_context(snapshot(tables, previous))
        gained = {
            name: drift(described.table.source, last.columns, described.columns) if (last := newest[name]) else []
            for name, described in source.tables.items()
        }
        parts = [plan(source, table, kind, previous.get(table.name), repair) for table in tables]
        counted: dict[str, Counted] = {}
        if kind != "full":
            # Counted first: where nothing is new, nothing else has to happen.
            counted = {part.table.name: count(source, part) for part in parts}
            for part in [part for part in parts if not counted[part.table.name].rows]:
                record_rejects(source, part, counted[part.table.name], run)
                logger.info("nothing new", table=part.table.name, rejected=counted[part.table.name].rejected)
                parts.remove(part)
            if not parts:
                return []
        shown = stack.enter_context(progress(f"extract {', '.join(part.table.name for part in parts)}"))
        expected = sum(one.rows for one in counted.values()) if counted else None
        copier = stack.enter_context(Copier(source.snapshot, lambda rows: shown(rows, expected)))
        numbers = batches.next_numbers(hive, [states[part.table.name] for part in parts])
        copies = [copier.start(part, numbers[part.table.name], kind, run.run_id, splits(source, part, kind)) for part in parts]
        ready = []
        for copy in copies:
            name = copy.part.table.name
            if name not in counted:
                counted[name] = count(source, copy.part)
            if len(counted) == len(copies):
                expected = sum(one.rows for one in counted.values())
            record_rejects(source, copy.part, counted[name], run)
            last = newest[name]
            if kind == "full" and not counted[name].rows and last and last.row_count and not force:
                raise RefusedError(
                    f"{copy.part.table.source} is empty and was not before (a TRUNCATE, a wrong database?); nothing is "
                    f"published; if this is right: bash/extract.sh full {name} --force"
                )
            batches.ensure_tables(
                hive,
                copy.part.table,
                copy.part.source.columns,
                is_first=not states[name].newest,
                is_changed=bool(gained[name]),
            )
        for copy in copies:
            ready.append(verified(copy, counted[copy.part.table.name], source, kind, run))
        return publish(hive, ready, run, [copy.began for copy in copies])


def plan(
    source: Source,
    table: Table,
    kind: str,
    previous: Previous | None = None,
    repair: tuple[dt.datetime, dt.datetime] | None = None,
) -> Part:
    """Decide which rows of a table an extract reads."""
    described = source.tables[table.name]
    if kind == "full" or previous is None:
        return Part(described, "true", None, source.horizon.next_from(None, table.lag))
    if kind == "repair" and repair:
        name = table.time or table.cursor
        begin, end = (moment.astimezone(dt.UTC).isoformat() for moment in repair)
        column = quoted("postgres", name)
        return Part(
            described,
            f"({column} >= '{begin}' AND {column} < '{end}')",
            repaired={"column": name, "from": begin, "to": end},
        )
    return Part(
        described,
        incremental_predicate(table.cursor, previous, source.snapshot),
        previous.next_from,
        source.horizon.next_from(previous.next_from, table.lag),
        previous.snapshot_xmin,
    )


def incremental_predicate(cursor: str, previous: Previous, now: Snapshot) -> str:
    """Return the predicate of rows that an increment reads.

    Rows at or after the last batch's `next_from`, without those that its snapshot certainly saw and it read: their
    transaction is below that snapshot's xmin. A row's xmin has 32 bits; counted back from this snapshot's xmax its age
    is right for every row that this snapshot sees, and for a row older than 2^32 transactions it is only too small.
    """
    column = quoted("postgres", cursor)
    conditions = [f"{column} >= '{previous.next_from.isoformat()}'"] if previous.next_from else []
    span = now.xmax - previous.snapshot_xmin
    if 0 <= span < EPOCH_SPAN:
        # What the last batch did not read it cannot have published; a clock that was set back makes such rows.
        was_read = f" AND {column} >= '{previous.range_from.isoformat()}'" if previous.range_from else ""
        age = f"(({now.xmax % EPOCH_SPAN} - xmin::text::bigint) & {EPOCH_SPAN - 1})"
        conditions.append(f"NOT ({age} > {span}{was_read})")
    return " AND ".join(conditions) or "true"


def count(source: Source, part: Part) -> Counted:
    """Count and hash a part in the source, under the snapshot that the streams read."""
    columns = part.source.columns
    rejected = is_rejected(columns)
    total = content_hash("postgres", hash_expression("postgres", columns), "" if rejected == "false" else f"NOT {rejected}")
    ((rows, refused, content),) = source.rows(
        f"SELECT count(*), count(*) FILTER (WHERE {rejected}), {total} FROM {part.source.relation} WHERE {part.predicate}"
    )
    return Counted(rows - refused, refused, content)


def splits(source: Source, part: Part, kind: str) -> list[str]:
    """Return the predicates by which streams share a part; an increment is read by one stream, in the order of its keys."""
    table, count_of_streams = part.table, settings().extract_streams
    if kind != "full":
        return ["true"]
    if table.split == "ctid":
        return streams.splits(part.source, count_of_streams)
    if table.split != "key" or len(table.key) != 1 or part.source.column(table.key[0]).kind != "integer":
        raise RefusedError(f"etl/tables.yaml splits {table.name} by {table.split!r}; write ctid, or key where the key is one whole number")
    key = quoted("postgres", table.key[0])
    ((low, high),) = source.rows(f"SELECT min({key}), max({key}) FROM {part.source.relation}")
    return streams.key_splits(key, low, high, count_of_streams)


class Copier:
    """Streams that copy parts of one snapshot into HDFS and read them back, a few at a time."""

    def __init__(self, taken: Snapshot, shown: Callable[[int], None]) -> None:
        self._snapshot = taken
        self._shown = shown
        self._rows = 0
        self._executor = ThreadPoolExecutor(settings().extract_streams, "copy")
        self._stopped = threading.Event()

    def __enter__(self) -> Copier:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def start(self, part: Part, number: int, kind: str, run_id: str, splits: Sequence[str]) -> Copy:
        """Begin to copy a part into the folder of its batch, one file or more for each split."""
        folder = f"{batches.root(part.table.name, kind)}/{number}-{run_id}"
        copy = Copy(part, number, folder, time.monotonic())
        for at, split in enumerate(splits):
            query = copy_query(part, split, is_sorted=kind != "full")
            # A full batch replaces everything: nothing is pruned by the ranges of its keys.
            ranged = () if kind == "full" else part.table.key
            copy.pieces.append(self._executor.submit(self._piece, part, query, folder, f"part-{at:02d}", ranged))
        return copy

    def _piece(self, part: Part, query: str, folder: str, prefix: str, ranged: Sequence[str]) -> tuple[streams.Part, streams.ReadBack]:
        with streams.Stream(self._snapshot) as stream, closing(stream.batches(query)) as rows:
            written = streams.write(self._until_stopped(rows), part.source.columns, ranged, folder, prefix)
        return written, streams.read_back(folder, written, part.source.columns)

    def _until_stopped(self, found: Iterator[Any]) -> Iterator[Any]:
        for batch in found:
            if self._stopped.is_set():
                raise WarehouseError("the extract was stopped")
            self._rows += batch.num_rows
            self._shown(self._rows)
            yield batch


def copy_query(part: Part, split: str, *, is_sorted: bool) -> str:
    """Return what one stream reads."""
    columns = ", ".join(select_expression(column) for column in part.source.columns)
    rejected = is_rejected(part.source.columns)
    conditions = " AND ".join([part.predicate, split, *([] if rejected == "false" else [f"NOT {rejected}"])])
    order = f" ORDER BY {', '.join(quoted('postgres', name) for name in part.table.key)}" if is_sorted else ""
    return f"SELECT {columns} FROM {part.source.relation} WHERE {conditions}{order}"


def verified(copy: Copy, counted: Counted, source: Source, kind: str, run: ops.Run) -> Batch:
    """Wait for a copy, compare what lies in HDFS with the source, and write the manifest.

    Raises
    ------
    WarehouseError
        When they differ.
    """
    pieces = [piece.result() for piece in copy.pieces]
    found = streams.ReadBack.joined([piece[1] for piece in pieces])
    if (found.rows, str(found.total)) != (counted.rows, counted.content_hash):
        raise WarehouseError(
            f"{copy.part.table.source}: the source has {counted.rows} rows with hash {counted.content_hash}, "
            f"{copy.folder} in HDFS has {found.rows} with {found.total}; nothing of it is published, run again"
        )
    written = [piece[0] for piece in pieces]
    ranges = [one for piece in written for one in piece.ranges or []]
    batch = Batch(
        table=copy.part.table.name,
        schema=copy.part.table.schema,
        number=copy.number,
        kind=kind,
        run_id=run.run_id,
        folder=copy.folder,
        server=source.server,
        **batches.describe_range(source.horizon, source.snapshot),
        row_count=counted.rows,
        rejected_count=counted.rejected,
        content_hash=counted.content_hash,
        outline=found.outline(copy.part.source.columns),
        columns=copy.part.source.columns,
        key=copy.part.table.key,
        range_from=copy.part.range_from,
        next_from=copy.part.next_from,
        previous_xmin=copy.part.previous_xmin,
        repaired=copy.part.repaired,
        key_ranges=(tuple(streams.merge_ranges(ranges, streams.RANGES_WRITTEN)) if written[0].ranges is not None else None),
        files=tuple(file for piece in written for file in piece.files),
        bytes=sum(piece.bytes for piece in written),
    )
    batches.write_manifest(batch)
    return batch


def publish(hive: sql_server.Session, ready: Sequence[Batch], run: ops.Run, began: Sequence[float]) -> list[Batch]:
    """Publish verified batches, parents before children, and record them, or why one was not published."""
    failed = batches.publish(hive, ready)
    for at, batch in enumerate(ready):
        seconds = round(time.monotonic() - began[at], 2)
        record(batch, run, seconds, str(failed[at]) if at in failed else None)
        if at not in failed:
            logger.info(
                "published",
                table=batch.table,
                batch=batch.number,
                kind=batch.kind,
                rows=batch.row_count,
                rejected=batch.rejected_count,
                bytes=batch.bytes,
                seconds=seconds,
            )
    for error in failed.values():
        raise error
    return list(ready)


def record(batch: Batch, run: ops.Run, seconds: float, error: str | None) -> None:
    """Write a batch's row of `ops.batches`."""
    with opened("etl", "warehouse") as session, session.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ops.batches (run_id, table_name, batch, kind, range_from, next_from, row_count, rejected_count, "
            "bytes, seconds, state, error) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (
                run.run_id,
                batch.table,
                batch.number,
                batch.kind,
                batch.range_from,
                batch.next_from,
                batch.row_count,
                batch.rejected_count,
                batch.bytes,
                seconds,
                "failed" if error else "published",
                error,
            ),
        )


def record_rejects(source: Source, part: Part, counted: Counted, run: ops.Run) -> None:
    """Write the rows of a part that cannot be held to `ops.rejects`, by key, column and reason."""
    if not counted.rejected:
        return
    key = key_expression("postgres", part.table.key)
    for column in part.source.columns:
        found = cannot_be_held(column)
        if found is None:
            continue
        predicate, reason = found
        statement = (
            f"SELECT {key}, left({quoted('postgres', column.name)}::text, {REJECT_PAYLOAD_CHARACTERS}) "
            f"FROM {part.source.relation} WHERE {part.predicate} AND {predicate}"
        )
        for page in source.pages_of_rows(statement):
            run.reject(
                ops.Reject(part.table.name, "postgres", reason, key=key_text, column_name=column.name, payload=value)
                for key_text, value in page
            )
    logger.warning("rows that cannot be held are in ops.rejects", table=part.table.name, rejected=counted.rejected)


def moment(text: str) -> dt.datetime:
    """Read a time; without a zone it is UTC."""
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2018-09-30 or 2018-09-30T12:00:00") from error
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


def _add_watermark(verbs: Any) -> None:
    actions = verbs.add_parser("watermark", help="how far each table has come").add_subparsers(dest="action", required=True)
    for action, text in (("show", "where the next increments begin"), ("history", "every published batch")):
        actions.add_parser(action, help=text).add_argument("tables", nargs="*", metavar="TABLE")
    one = actions.add_parser("rewind", help="keep batch N and drop what follows")
    one.add_argument("tables", nargs=1, metavar="TABLE")
    one.add_argument("--to", type=int, required=True, metavar="BATCH", help="the newest batch that stays")
    one.add_argument("--force", action="store_true", help="also across a full batch")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    parser = argparse.ArgumentParser(prog="bash/extract.sh", description="Extract tables from Postgres and publish them in Hive.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in (
        ("full", "read whole tables"),
        ("incremental", "read what was written since the last batch"),
        ("deletes", "find rows that are gone from the source"),
    ):
        one = verbs.add_parser(verb, help=text)
        one.add_argument("tables", nargs="*", metavar="TABLE", help="declared tables; all when none is named")
        if verb != "incremental":
            one.add_argument("--force", action="store_true", help="accept an emptied table, or many deleted rows")
    one = verbs.add_parser("repair", help="read a range of one table again")
    one.add_argument("tables", nargs=1, metavar="TABLE")
    one.add_argument("--from", dest="begin", type=moment, required=True, help="first moment, UTC")
    one.add_argument("--to", dest="end", type=moment, required=True, help="first moment after it, UTC")
    _add_watermark(verbs)
    given = parser.parse_args(arguments)
    tables = select_tables(given.tables)
    if given.verb == "watermark":
        from etl import watermark

        return watermark.run(given.action, tables, getattr(given, "to", None), force=getattr(given, "force", False))
    # Only these two bring everything up to now: what asks how fresh core is (hive/mart/models/sources.yml) counts no others.
    verb = "extract" if given.verb in ("full", "incremental") else f"extract {given.verb}"
    with ops.run(verb) as run, sql_server.session() as hive:
        if given.verb == "deletes":
            from etl.sweep import sweep

            sweep(tables, run, hive, force=given.force)
            return 0
        extract(
            tables,
            given.verb,
            run,
            hive,
            force=getattr(given, "force", False),
            repair=(given.begin, given.end) if given.verb == "repair" else None,
        )
    return 0


if __name__ == "__main__":
    run_main(main)
