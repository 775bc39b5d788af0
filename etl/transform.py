"""Take published batches into core: the next ones by MERGE, a full one by replacing the batch lane at once.

Batches are taken in the order of their numbers. Running again takes what is not taken yet, and nothing twice.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from etl import core, ops
from etl.batches import WATERMARK_KINDS, Batch, all_batches, check_chain, newest, newest_folder, published
from etl.errors import RefusedError
from etl.failures import Failures
from etl.log import logger, run_main
from etl.screens import progress
from etl.sql_server import Session, session
from etl.tables import Table, select_tables


@dataclass(frozen=True)
class Taken:
    """What a core table took in this run."""

    table_name: str
    batches: tuple[int, ...]
    rows: int
    seconds: float


def plan(batches: list[Batch], mark: int, is_rebuild: bool) -> tuple[Batch | None, list[Batch]]:
    """Decide what core takes next.

    Parameters
    ----------
    batches
        All published batches of a table, sweeps included, ascending by number.
    mark
        The newest batch that core holds; 0 if none.
    is_rebuild
        Start again from the newest full batch, even if core holds it.

    Returns
    -------
    tuple
        The full batch from which core is replaced (together with all that follow it), or None;
        and the batches to merge one after the other.
    """
    full = next((batch for batch in reversed(batches) if batch.kind == "full"), None)
    if full is not None and (is_rebuild or full.number > mark):
        return full, []
    return None, [batch for batch in batches if batch.number > mark]


def take(hive: Session, table: Table, run: ops.Run, is_rebuild: bool = False) -> list[Taken]:
    """Bring the core tables of one source table up to its newest batch.

    Raises
    ------
    RefusedError
        When nothing has been published yet, or a batch is of another table or another cluster than what core holds.
    BusyError
        When another run writes this core table for too long.
    """
    with ops.writer(f"core.{table.name}", run, ops.WRITER_WAIT_SECONDS):
        # Only what is newer than core's mark needs its manifest read, unless everything is built again.
        marks = core.marks(hive, core.target_names(table))
        lowest = 0 if is_rebuild or len(marks) < len(core.target_names(table)) else min(one.batch for one in marks.values())
        state = published(hive, [table])[table.name]
        if state.newest == 0:
            raise RefusedError(f"raw.{table.name} holds no batch; run bash/extract.sh full {table.name} first")
        batches = all_batches(hive, state, above=lowest)
        if not batches:
            return []
        full, following = plan(batches, lowest, is_rebuild)
        # The batch that core holds begins the chain, unless a full one replaces it.
        held = newest(hive, state, WATERMARK_KINDS, at_most=lowest) if full is None else None
        check_chain(table, [batch for batch in (held, *following) if batch] if full is None else batches[batches.index(full) :])
        columns = {
            column.name: {"type": column.hive_type, "comment": column.comment}
            for batch in batches
            if batch.kind != "deletes"
            for column in batch.columns
        }
        taken = []
        for target in core.targets(table, list(columns)) if columns else _known_targets(table):
            if columns:
                core.ensure_table(hive, target, columns)
            mark = marks.get(target.name)
            taken.append(_take_into(hive, target, batches, mark.batch if mark else 0, run, is_rebuild))
        return taken


def _known_targets(table: Table) -> list[core.Target]:
    """Return a table's core tables when only sweeps are new: their columns do not matter then."""
    return [core.Target(name, table, ()) for name in core.target_names(table)]


def _take_into(hive: Session, target: core.Target, batches: list[Batch], mark: int, run: ops.Run, is_rebuild: bool) -> Taken:
    started = time.monotonic()
    full, following = plan(batches, mark, is_rebuild)
    if full is not None:
        after = [batch for batch in batches if batch.number > full.number]
        last = max([full, *after], key=lambda batch: batch.number)
        core.commit(
            hive,
            target,
            "replace.hql.j2",
            last.number,
            run.run_id,
            full=full.number,
            last=last.number,
            has_followers=bool(after),
            has_deletions=any(batch.kind == "deletes" for batch in after),
            has_streamed=core.has_streamed(hive, target),
        )
        following = []
        done = [full, *after]
    else:
        done = following
    for batch in following:
        if batch.kind == "deletes":
            later = [
                other.number for other in batches if other.kind != "deletes" and other.clock > batch.clock and other.number <= batch.number
            ]
            core.commit(hive, target, "delete.hql.j2", batch.number, run.run_id, batch=batch.number, later=later)
        else:
            present = {column.name for column in batch.columns}
            merged = core.Target(target.name, target.table, tuple(name for name in target.columns if name in present))
            core.commit(hive, merged, "merge.hql.j2", batch.number, run.run_id, batch=batch.number, ranges=batch.key_ranges)
    taken = Taken(
        target.name, tuple(batch.number for batch in done), sum(batch.row_count for batch in done), round(time.monotonic() - started, 2)
    )
    if done:
        logger.info(
            "merged" if full is None else "replaced",
            table=f"core.{target.name}",
            batches=list(taken.batches),
            rows=taken.rows,
            seconds=taken.seconds,
        )
    return taken


def behind(hive: Session, tables: Sequence[Table]) -> list[Table]:
    """Return the tables whose core tables do not hold their newest batch; all are looked at in few statements."""
    marks = core.marks(hive, [name for table in tables for name in core.target_names(table)])

    def lacks(table: Table, number: int) -> bool:
        return any(name not in marks or marks[name].batch < number for name in core.target_names(table))

    # A batch has its folder before it is published, and HDFS is quicker to ask than Hive.
    doubtful = [table for table in tables if lacks(table, newest_folder(table))]
    states = published(hive, doubtful) if doubtful else {}
    return [table for table in doubtful if lacks(table, states[table.name].newest)]


def transform(tables: Iterable[Table], run: ops.Run, is_rebuild: bool = False) -> list[Taken]:
    """Bring core up to the newest batches of some tables, several at a time.

    One table's failure stops only that table; failures are raised when the others have ended.
    """

    def one(table: Table) -> list[Taken]:
        with session() as hive:
            return take(hive, table, run, is_rebuild)

    wanted = list(tables)
    with ThreadPoolExecutor(3) as pool, progress(f"core: {', '.join(table.name for table in wanted)}", len(wanted)) as shown:
        futures = [pool.submit(one, table) for table in wanted]
        for ended, _ in enumerate(as_completed(futures), 1):
            shown(ended, len(wanted))
    found, failures = [], Failures()
    for table, future in zip(wanted, futures, strict=True):
        with failures.of(table.name):
            found += future.result()
    failures.raise_all()
    return found


def main() -> None:
    """Parse the command line and transform."""
    parser = argparse.ArgumentParser(prog="bash/transform.sh", description=__doc__)
    parser.add_argument(
        "kind", choices=("full", "incremental"), help="full: again from the newest full batch; incremental: what is not taken yet"
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="declared tables; all of them by default")
    arguments = parser.parse_args()
    tables = select_tables(arguments.tables)
    with ops.run("transform") as run:
        if not any(taken.batches for taken in transform(tables, run, arguments.kind == "full")):
            logger.info("core is up to date")


if __name__ == "__main__":
    run_main(main)
