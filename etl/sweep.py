"""Find rows that are gone from the source, and publish their keys.

One snapshot of the source is compared with core as of its newest batch. Both are hashed by ranges of the key, and only
ranges that differ are fetched.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from etl import batches, core, ops, streams
from etl.batches import Batch
from etl.columns import Column, arrow_type, quoted
from etl.compare import View, differing_rows, is_whole_number, key_part
from etl.errors import RefusedError, WarehouseError
from etl.extract import publish
from etl.failures import Failures
from etl.faults import named_faults
from etl.log import logger
from etl.settings import settings
from etl.source import Source, snapshot
from etl.sql_server import Session
from etl.tables import Table

if TYPE_CHECKING:
    import pyarrow as pa

KEY_KINDS = ("integer", "text", "uuid", "decimal", "date", "timestamptz", "timestamp")


@named_faults()
def sweep(tables: Sequence[Table], run: ops.Run, hive: Session, *, force: bool = False) -> list[Batch]:
    """Publish the keys of rows that are gone from the source, table by table: one that fails stops no other.

    Each table has a snapshot of its own, parents before children: a later snapshot only shows more children gone.

    Parameters
    ----------
    force
        Accept more deletions than the setting `max_deleted_share` allows.

    Raises
    ------
    RefusedError
        When core holds no batch of a table yet, or too large a share of its keys is gone; nothing of that table is published then.
    SeveralError
        When more than one table failed.
    """
    found, failures = [], Failures()
    for table in tables:
        with failures.of(table.name):
            found += _sweep_table(table, run, hive, force)
    failures.raise_all()
    return found


def _sweep_table(table: Table, run: ops.Run, hive: Session, force: bool) -> list[Batch]:
    with ExitStack() as stack:
        stack.enter_context(ops.writer(f"raw.{table.name}", run, batches.LOCK_WAIT_SECONDS))
        state = batches.published(hive, [table])[table.name]
        batches.remove_unpublished(hive, state, run.run_id)
        newest = batches.newest(hive, state, batches.WATERMARK_KINDS)
        previous = {table.name: batches.continued(newest, table)}
        # The mark is read before the snapshot: what core holds is older than what the source shows.
        mark = core.marks(hive, [table.name]).get(table.name)
        if mark is None:
            raise RefusedError(f"core.{table.name} holds no batch to compare with; run bash/transform.sh incremental")
        source = stack.enter_context(snapshot([table], previous))
        began = time.monotonic()
        gone, total = gone_keys(source, hive, table, mark.snapshot_id)
        if not gone:
            logger.info("nothing deleted", table=table.name, keys=total)
            return []
        if len(gone) > settings().max_deleted_share * total and not force:
            raise RefusedError(
                f"{len(gone)} of {total} keys of {table.source} are gone, more than the share of "
                f"{settings().max_deleted_share:.2%} (a TRUNCATE, a wrong database?); nothing of it is published; "
                f"if this is right: bash/extract.sh deletes {table.name} --force"
            )
        batch = _write(source, table, gone, batches.next_numbers(hive, [state])[table.name], run)
        return publish(hive, [batch], run, [began])


def gone_keys(source: Source, hive: Session, table: Table, snapshot_id: int) -> tuple[dict[int, str], int]:
    """Return the keys of core's batch lane that the source no longer has, by identity, and how many keys core has."""
    key = key_columns(source, table)
    condition = "lane = 'batch'" if table.streamed else "true"
    there = View("spark", hive.run, f"core.{table.name} VERSION AS OF {snapshot_id}", condition)
    here = View("postgres", source.rows, source.tables[table.name].relation, "true")
    lowest, highest = 0, 0
    if is_whole_number(key):
        name = quoted("spark", key[0].name)
        ((low, high),) = hive.run(f"SELECT min({name}), max({name}) FROM {there.relation} WHERE {condition}")
        lowest, highest = (int(low), int(high)) if low is not None else (0, 0)
        # Newer keys are no deletions; a whole part of them need not be fetched.
        bound = quoted("postgres", key[0].name)
        here = View("postgres", source.rows, here.relation, f"{bound} BETWEEN {lowest} AND {highest}")
    parts = key_part(key, lowest, highest, here), key_part(key, lowest, highest, there)
    groups = here.groups(parts[0], key), there.groups(parts[1], key)
    gone: dict[int, str] = {}
    for _, _, only_core in differing_rows(here, there, parts, groups, key, key):
        gone |= {identity: text for identity, (_, text) in only_core.items()}
    return gone, sum(group.rows for group in groups[1].values())


def key_columns(source: Source, table: Table) -> list[Column]:
    """Return a table's key columns.

    Raises
    ------
    RefusedError
        When a key cannot be compared exactly.
    """
    key = [source.tables[table.name].column(name) for name in table.key]
    if odd := [column for column in key if column.kind not in KEY_KINDS or column.is_array]:
        raise RefusedError(
            f"{table.source}.{odd[0].name} is {odd[0].source_type}, which cannot be a key of the warehouse; declare another key"
        )
    return key


def _write(source: Source, table: Table, gone: dict[int, str], number: int, run: ops.Run) -> Batch:
    """Write the keys that are gone, read them back, and return their batch."""
    import pyarrow as pa

    key = key_columns(source, table)
    texts = sorted(gone.values(), key=lambda text: (len(text), text))
    values = [text.split(chr(31)) for text in texts] if len(key) > 1 else [[text] for text in texts]
    if any(len(one) != len(key) for one in values):
        raise WarehouseError(f"a key of {table.source} holds a unit separator (U+001F), which a sweep cannot part; remove it in the source")
    rows = pa.table(
        [_typed([one[at] for one in values], column) for at, column in enumerate(key)], names=[column.name for column in key]
    ).combine_chunks()
    folder = f"{batches.root(table.name, 'deletes')}/{number}-{run.run_id}"
    written = streams.write(iter(rows.to_batches()), key, table.key, folder, "part-00")
    found = streams.read_back(folder, written, key)
    if (found.rows, found.total) != (len(gone), sum(gone)):
        raise WarehouseError(f"{folder} in HDFS does not hold the {len(gone)} keys that are gone; nothing of it is published, run again")
    batch = Batch(
        table=table.name,
        schema=table.schema,
        number=number,
        kind="deletes",
        run_id=run.run_id,
        folder=folder,
        server=source.server,
        **batches.describe_range(source.horizon, source.snapshot),
        row_count=len(gone),
        rejected_count=0,
        content_hash=str(sum(gone)),
        outline=found.outline(key),
        columns=tuple(key),
        key=table.key,
        key_ranges=tuple(streams.merge_ranges(written.ranges, streams.RANGES_WRITTEN)) if written.ranges is not None else None,
        files=tuple(written.files),
        bytes=written.bytes,
    )
    batches.write_manifest(batch)
    return batch


def _typed(texts: list[str], column: Column) -> pa.Array:
    """Return keys with the type that Parquet gets, from the text that Spark wrote."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = arrow_type(column)
    if column.kind in ("timestamptz", "timestamp"):
        return pc.assume_timezone(pc.cast(pa.array(texts), pa.timestamp("us")), "UTC")
    return pc.cast(pa.array(texts), wanted)
