"""The watermark: the `next_from` of a table's newest full or incremental batch. Shown, listed, and rewound.

It is no second piece of state: it is read from the manifest of a published batch, so it cannot run ahead of the data.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from etl import batches, core, ops, sql_server
from etl.batches import Batch
from etl.databases import opened
from etl.errors import RefusedError
from etl.faults import named_faults
from etl.log import logger
from etl.sql_server import Session
from etl.tables import Table

BEGINNING = "the beginning"


@dataclass(frozen=True)
class Watermark:
    """How far a table has come.

    Attributes
    ----------
    batch
        The batch that says so, or None before the first full load.
    newest
        Highest published number, repairs and sweeps included.
    mark
        The newest batch that core holds, or 0.
    """

    table: Table
    batch: Batch | None
    newest: int
    mark: int


@named_faults()
def watermarks(hive: Session, tables: Sequence[Table]) -> list[Watermark]:
    """Return the watermarks of tables."""
    states = batches.published(hive, tables)
    newest = batches.newest_watermarks(hive, states)
    marks = core.marks(hive, [name for table in tables for name in core.target_names(table)])
    return [
        Watermark(
            table,
            newest[table.name],
            states[table.name].newest,
            min(marks[name].batch if name in marks else 0 for name in core.target_names(table)),
        )
        for table in tables
    ]


@named_faults()
def rewind(hive: Session, table: Table, to: int, run: ops.Run, *, force: bool = False) -> list[Batch]:
    """Drop the batches of a table that follow batch `to`; returns them, newest first.

    Raises
    ------
    RefusedError
        When there is no such batch, or a full batch would be dropped without `force`, or no watermark would be left.
    """
    with ExitStack() as stack:
        # No merge may read a batch while it is withdrawn.
        stack.enter_context(ops.writer(f"raw.{table.name}", run, batches.LOCK_WAIT_SECONDS))
        stack.enter_context(ops.writer(f"core.{table.name}", run, batches.LOCK_WAIT_SECONDS))
        state = batches.published(hive, [table])[table.name]
        numbers = sorted(state.rows | state.deletions)
        if to not in numbers:
            listed = ", ".join(map(str, numbers)) or "none"
            raise RefusedError(f"{table.name} has no batch {to}; published are {listed} (bash/extract.sh watermark history {table.name})")
        if batches.newest(hive, state, batches.WATERMARK_KINDS, at_most=to) is None:
            raise RefusedError(f"no full or incremental batch of {table.name} would be left; rewind to a later one, or load it in full")
        # The newest goes first: whenever this is killed, what stays is a whole history.
        dropped = list(reversed(batches.all_batches(hive, state, above=to)))
        full = [batch.number for batch in dropped if batch.kind == "full"]
        if full and not force:
            raise RefusedError(
                f"batch {', '.join(map(str, full))} of {table.name} is a full one: what it replaced would count again; "
                "if this is right, add --force"
            )
        for batch in dropped:
            batches.unpublish(hive, batch.hive_table, batch.number)
            with opened("etl", "warehouse") as session, session.cursor() as cursor:
                cursor.execute(
                    "UPDATE ops.batches SET state = 'dropped' WHERE table_name = %s AND batch = %s AND run_id = %s AND state = 'published'",
                    (batch.table, batch.number, batch.run_id),
                )
            logger.info("dropped", table=batch.table, batch=batch.number, kind=batch.kind)
        return dropped


def _moment(value: dt.datetime | None) -> str:
    return value.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S.%f") if value else BEGINNING


def _print(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def run(action: str, tables: Sequence[Table], to: int | None = None, *, force: bool = False) -> int:
    """Run `watermark show`, `history` or `rewind` for people."""
    if action == "rewind" and to is not None:
        with ops.run("watermark rewind") as this, sql_server.session() as hive:
            (table,) = tables
            dropped = rewind(hive, table, to, this, force=force)
            print(
                f"{table.name}: {len(dropped)} batches dropped, {to} is the newest. core.{table.name} stays as it is: "
                "the next increment and sweep set it right (bash/extract.sh incremental, then deletes)."
            )
        return 0
    with sql_server.session() as hive:
        rows: list[tuple[str, ...]]
        if action == "show":
            rows = [("table", "newest batch", "merged to core", "next extract from (UTC)", "read at (UTC)")]
            for found in watermarks(hive, tables):
                rows.append(
                    (
                        found.table.name,
                        str(found.newest),
                        str(found.mark),
                        _moment(found.batch.next_from) if found.batch else "no batch yet: bash/extract.sh full",
                        _moment(found.batch.clock) if found.batch else "",
                    )
                )
        else:
            rows = [("table", "batch", "kind", "rows", "rejected", "from (UTC)", "next from (UTC)", "read at (UTC)", "run")]
            for state in batches.published(hive, tables).values():
                for batch in batches.all_batches(hive, state):
                    moves = batch.kind in batches.WATERMARK_KINDS
                    rows.append(
                        (
                            batch.table,
                            str(batch.number),
                            batch.kind,
                            str(batch.row_count),
                            str(batch.rejected_count),
                            _moment(batch.range_from) if moves else (batch.repaired or {}).get("from", ""),
                            _moment(batch.next_from) if moves else (batch.repaired or {}).get("to", ""),
                            _moment(batch.clock),
                            batch.run_id,
                        )
                    )
        _print(rows)
    return 0
