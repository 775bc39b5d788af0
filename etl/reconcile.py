"""Compare the source with core's batch lane, row by row, under one snapshot of each; fail on one changed cent.

Compared is what was written before the watermark, by day of the table's time or by range of its key. Keys that the
source has written since, and rows that only wait for a sweep, are no difference; they are reported apart.
Usage: bash/reconcile.sh [TABLE...]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field

from psycopg2.extras import execute_values

from etl import batches, core, ops, sql_server
from etl.batches import Batch
from etl.columns import Column, is_rejected, quoted
from etl.compare import Group, Rows, View, differing_rows, is_whole_number, key_part, key_part_name
from etl.core import Mark
from etl.databases import opened
from etl.errors import ReconciliationError, RefusedError
from etl.failures import Failures
from etl.faults import named_faults
from etl.log import logger, run_main
from etl.screens import progress
from etl.source import Source, snapshot
from etl.sql_server import Session
from etl.tables import Table, personal_of, select_tables

KEYS_NAMED = 10
NO_PART = Group(0, "0")


@dataclass
class Difference:
    """What is wrong in one part: keys by what is wrong with them."""

    missing: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.missing or self.changed or self.left_over)

    def __str__(self) -> str:
        found = [
            f"{len(keys)} {what} ({', '.join(sorted(keys)[:KEYS_NAMED])}{', ...' if len(keys) > KEYS_NAMED else ''})"
            for what, keys in (("missing", self.missing), ("changed", self.changed), ("left over", self.left_over))
            if keys
        ]
        return "; ".join(found)


@dataclass(frozen=True)
class PartResult:
    """How one day or key range compared.

    Attributes
    ----------
    pending
        Keys of core that the source has written since, that wait for a sweep, or whose newest version was rejected.
    """

    name: str
    source_rows: int
    loaded_rows: int
    pending: int = 0
    difference: str = ""


@dataclass
class Result:
    """How one table compared."""

    table: Table
    watermark: str
    parts: list[PartResult] = field(default_factory=list)
    rejected: int = 0
    updates_pending: int = 0
    deletions_pending: int = 0
    rejects_pending: int = 0

    @property
    def source_rows(self) -> int:
        """Rows of the source older than the watermark, rejected ones included."""
        return sum(part.source_rows for part in self.parts) + self.rejected

    @property
    def loaded_rows(self) -> int:
        """Rows of core's batch lane older than the watermark."""
        return sum(part.loaded_rows for part in self.parts)

    @property
    def differences(self) -> list[PartResult]:
        """Return the parts that differ."""
        return [part for part in self.parts if part.difference]


@named_faults()
def reconcile(tables: Sequence[Table], run: ops.Run, hive: Session) -> list[Result]:
    """Compare tables and record the result in `ops.reconciliations`; one that cannot be compared stops no other.

    Raises
    ------
    RefusedError
        When core holds no batch of a table yet.
    ReconciliationError
        Naming table, part and up to ten keys of every difference, when all tables have been compared.
    SeveralError
        When several of these happened.
    """
    results: list[Result] = []
    failures = Failures()
    with progress(f"reconcile {', '.join(table.name for table in tables)}", len(tables)) as shown:
        for at, table in enumerate(tables):
            shown(at, len(tables))
            with failures.of(table.name):
                result = _compared(table, hive)
                results.append(result)
                _record(result, run)
                logger.info(
                    "differs" if result.differences else "equal",
                    table=table.name,
                    source_rows=result.source_rows,
                    loaded=result.loaded_rows,
                    rejected=result.rejected,
                    older_than=result.watermark,
                    updates_pending=result.updates_pending,
                    deletions_pending=result.deletions_pending,
                )
    wrong = [f"{result.table.name}, {part.name}: {part.difference}" for result in results for part in result.differences]
    if wrong:
        with failures.of("differences"):
            more = f"; and {len(wrong) - KEYS_NAMED} more" if len(wrong) > KEYS_NAMED else ""
            raise ReconciliationError(
                f"source and core differ in {'; '.join(wrong[:KEYS_NAMED])}{more}. Read the range again: "
                "bash/extract.sh repair TABLE --from T --to T, then bash/transform.sh incremental"
            )
    failures.raise_all()
    return results


def _compared(table: Table, hive: Session) -> Result:
    """Compare one table under a snapshot of its own."""
    state = batches.published(hive, [table])[table.name]
    marks = core.marks(hive, core.target_names(table))
    held = _held(hive, state, marks)
    with snapshot([table], {table.name: batches.continued(held, table)}) as source:
        return compare(source, hive, table, held, marks)


def _held(hive: Session, state: batches.Published, marks: dict[str, Mark]) -> Batch:
    """Return the batch whose `next_from` is core's watermark."""
    table = state.table
    names = core.target_names(table)
    if missing := [name for name in names if name not in marks]:
        raise RefusedError(f"core.{', core.'.join(missing)} holds no batch; run bash/transform.sh incremental {table.name} first")
    if len({marks[name].batch for name in names}) > 1:
        raise RefusedError(f"core.{' and core.'.join(names)} hold different batches; run bash/transform.sh incremental {table.name} first")
    batch = batches.newest(hive, state, batches.WATERMARK_KINDS, at_most=marks[table.name].batch)
    if batch is None:
        raise RefusedError(f"no batch of {table.name} that core holds is published any more; run bash/extract.sh full {table.name}")
    if batch.next_from is None:
        raise RefusedError(
            f"the watermark of {table.name} is at the very beginning (a transaction was prepared during its full load), so nothing can "
            f"be compared; end prepared transactions, then run bash/extract.sh and bash/transform.sh incremental {table.name}"
        )
    return batch


def compare(source: Source, hive: Session, table: Table, held: Batch, marks: dict[str, Mark]) -> Result:
    """Compare one table."""
    described = source.tables[table.name]
    columns = [column for column in held.columns if column.name in {one.name for one in described.columns}]
    key = [described.column(name) for name in table.key]
    watermark = held.next_from.isoformat() if held.next_from else ""
    result = Result(table, watermark)
    here, there = _views(source, hive, table, columns, watermark, marks)
    lowest = highest = 0
    if table.time is not None:
        parts = _day("postgres", described.column(table.time), ""), _day("spark", described.column(table.time), "c")
    else:
        if is_whole_number(key):
            name = quoted("postgres", key[0].name)
            ((low, high),) = source.rows(f"SELECT min({name}), max({name}) FROM {described.relation}")
            lowest, highest = (low, high) if low is not None else (0, 0)
        parts = key_part(key, lowest, highest, here), key_part(key, lowest, highest, there)
    groups = here.groups(parts[0], columns), there.groups(parts[1], columns)
    rejected = is_rejected(described.columns)
    ((result.rejected,),) = source.rows(
        f"SELECT count(*) FROM {described.relation} WHERE {quoted('postgres', table.cursor)} < '{watermark}' AND {rejected}"
    )
    pending: dict[str, int] = {}
    wrong: dict[str, Difference] = {}
    for part, only_source, only_core in differing_rows(here, there, parts, groups, key, columns):
        difference = wrong.setdefault(part, Difference())
        newer = _newer(source, table, key, only_core, set(only_core) - set(only_source), watermark, rejected)
        for identity, (_, text) in only_core.items():
            if identity in only_source:
                continue
            state = newer.get(identity, "gone")
            if state == "old":
                difference.left_over.append(text)
                continue
            pending[part] = pending.get(part, 0) + 1
            result.updates_pending += state == "updated"
            result.deletions_pending += state == "gone"
            result.rejects_pending += state == "rejected"
        for identity, (_, text) in only_source.items():
            (difference.changed if identity in only_core else difference.missing).append(text)
    for part in sorted({*groups[0], *groups[1]}):
        result.parts.append(
            PartResult(
                part if table.time is not None else key_part_name(key, lowest, highest, part),
                groups[0].get(part, NO_PART).rows,
                groups[1].get(part, NO_PART).rows,
                pending.get(part, 0),
                str(wrong[part]) if wrong.get(part) else "",
            )
        )
    return result


def _views(
    source: Source, hive: Session, table: Table, columns: Sequence[Column], watermark: str, marks: dict[str, Mark]
) -> tuple[View, View]:
    """Return both sides: what was written before the watermark; core's personal columns come from their own table."""
    described = source.tables[table.name]
    cursor = quoted("postgres", table.cursor)
    here = View("postgres", source.rows, described.relation, f"{cursor} < '{watermark}' AND NOT {is_rejected(described.columns)}")
    relation = f"core.{table.name} VERSION AS OF {marks[table.name].snapshot_id} AS c"
    aliases = {}
    if table.personal:
        personal = personal_of(table.name)
        on = " AND ".join(f"{quoted('spark', name, 'c')} = {quoted('spark', name, 'p')}" for name in table.key)
        relation += f" JOIN core.{personal} VERSION AS OF {marks[personal].snapshot_id} AS p ON {on}"
        aliases = {column.name: "p" for column in columns if column.name in table.personal}
    lane = "c.lane = 'batch' AND " if table.streamed else ""
    condition = f"{lane}{quoted('spark', table.cursor, 'c')} < TIMESTAMP '{watermark}'"
    return here, View("spark", hive.run, relation, condition, "c", aliases)


def _day(dialect: str, time: Column, alias: str) -> str:
    """Return the expression of a row's day, UTC."""
    if dialect == "spark":
        return f"CAST({quoted('spark', time.name, alias)} AS DATE)"
    name = quoted("postgres", time.name)
    return f"({name} AT TIME ZONE 'UTC')::date" if time.kind == "timestamptz" else f"{name}::date"


def _newer(
    source: Source, table: Table, key: Sequence[Column], rows: Rows, wanted: set[int], watermark: str, rejected: str
) -> dict[int, str]:
    """Return how the source has keys that only core has: updated, rejected or old; a key that is gone is left out."""
    if not wanted:
        return {}
    view = View("postgres", source.rows, source.tables[table.name].relation, "true")
    if is_whole_number(key):
        # The key's index finds them; the hash of the key would read the whole table.
        condition = f"{quoted('postgres', key[0].name)} = ANY (ARRAY[{', '.join(rows[one][1] for one in wanted)}]::bigint[])"
    else:
        condition = f"{view.identity(key)} = ANY (ARRAY[{', '.join(map(str, wanted))}]::bigint[])"
    return {
        int(identity): "updated" if is_newer else "rejected" if is_refused else "old"
        for identity, is_newer, is_refused in source.rows(
            f"SELECT {view.identity(key)}, {quoted('postgres', table.cursor)} >= '{watermark}' AND NOT {rejected}, {rejected} "
            f"FROM {view.relation} WHERE {condition}"
        )
    }


def _record(result: Result, run: ops.Run) -> None:
    """Write one row a part, and one for the whole table."""
    pending = result.updates_pending + result.deletions_pending + result.rejects_pending
    whole = (
        f"older than {result.watermark}; waiting: {result.updates_pending} updates, {result.deletions_pending} deletions, "
        f"{result.rejects_pending} rejected updates"
    )
    rows = [
        (
            run.run_id,
            result.table.name,
            part.name,
            part.source_rows,
            part.loaded_rows,
            0,
            part.pending,
            not part.difference,
            part.difference or None,
        )
        for part in result.parts
    ]
    rows.append(
        (
            run.run_id,
            result.table.name,
            "all",
            result.source_rows,
            result.loaded_rows,
            result.rejected,
            pending,
            not result.differences,
            whole,
        )
    )
    with opened("etl", "warehouse") as session, session.cursor() as cursor:
        execute_values(
            cursor,
            "INSERT INTO ops.reconciliations (run_id, table_name, part, source_rows, loaded_rows, rejected_rows, pending_rows, is_equal, "
            "detail) VALUES %s",
            rows,
            page_size=1000,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb."""
    parser = argparse.ArgumentParser(prog="bash/reconcile.sh", description="Compare the source with core, row by row.")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="declared tables; all when none is named")
    tables = select_tables(parser.parse_args(arguments).tables)
    with ops.run("reconcile") as run, sql_server.session() as hive:
        for result in reconcile(tables, run, hive):
            print(
                f"{result.table.name}: equal; {result.source_rows} rows in the source older than {result.watermark} = "
                f"{result.loaded_rows} loaded + {result.rejected} rejected, but for {result.updates_pending} updated since, "
                f"{result.deletions_pending} deleted and not yet swept, {result.rejects_pending} whose newest version is rejected"
            )
    return 0


if __name__ == "__main__":
    run_main(main)
