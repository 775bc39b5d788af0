"""Adding rows to an Iceberg table where their key is not there yet, so that whatever is cut off can be done again.

A table is written on a branch of this process and then moved to it, which Iceberg does only where nobody else has written
meanwhile: what an earlier process still has under way when it dies ends on a branch that nobody reads. What concerns snapshots and
branches goes to Iceberg itself, in milliseconds; by SQL it would be a job of Spark each time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812

from etl import ops
from etl.errors import BusyError
from etl.sql_server import retried

PREFIX = "stream_"
DENSE = 20
"""Keys from the lowest to the highest for each one that arrives, up to which those of the table are compared here, not in Spark."""


def first_of_each(rows: pa.Table) -> pa.Table:
    """Return the first row of each `transaction_id`, in their order: what was told twice of one key is added once."""
    _, places = np.unique(rows["transaction_id"].to_numpy(), return_index=True)
    return rows.take(np.sort(places))


class KeyedTable:
    """An Iceberg table to which this process adds rows by key, `transaction_id`.

    Parameters
    ----------
    spark
        A session with a Java machine of its own.
    """

    def __init__(self, spark: SparkSession, name: str, run: ops.Run) -> None:
        self.name = name
        self._spark = spark
        self._run = run
        self._branch = f"{PREFIX}{run.run_id.replace('-', '_')}"
        self._head: int | None = None
        self._others: int | None = None
        java: Any = spark
        self._table = java._jvm.org.apache.iceberg.spark.Spark3Util.loadIcebergTable(java._jsparkSession, name)
        self._remove_branches()

    def newest(self) -> int | None:
        """Return the table's newest snapshot, None while it has none."""
        self._table.refresh()
        return self._head_of("main")

    def fields(self, struct: str) -> list[str]:
        """Return the names of a struct's fields."""
        self._table.refresh()
        return [field.name() for field in self._table.schema().findType(struct).asStructType().fields()]

    def add(self, rows: pa.Table) -> int:
        """Add the rows whose key is not there yet, of several with one key the first; returns how many.

        Raises
        ------
        BusyError
            When another writer holds the table for too long, or wrote to it without the lock.
        """
        if not rows.num_rows:
            return 0
        with ops.writer(self.name, self._run, ops.WRITER_WAIT_SECONDS):
            absent = self._absent(first_of_each(rows))
            if not absent.num_rows:
                return 0
            self._begin()
            # A column that the source has gained since is not among those of a message.
            columns = [field.name() for field in self._table.schema().columns()]
            # One file for each day.
            frame = (
                self._spark.createDataFrame(absent)
                .coalesce(1)
                .select(*(F.col(name) if name in absent.column_names else F.lit(None).alias(name) for name in columns))
            )
            writer = frame.writeTo(f"{self.name}.branch_{self._branch}")
            # A few rows of a few days: a shuffle would cost more than it orders.
            writer = writer.option("distribution-mode", "none").option("fanout-enabled", "true")
            writer.option("snapshot-property.lane", "stream").option("snapshot-property.run", self._run.run_id).append()
            self._publish()
            return absent.num_rows

    def is_moved_by_others(self, since: int | None) -> bool:
        """Tell whether somebody else wrote after a snapshot that was read."""
        return self.newest() not in (since, self._head) or self._others not in (None, since)

    def forget_others(self) -> None:
        """Count what others wrote until now as read."""
        self._others = None

    def _absent(self, rows: pa.Table) -> pa.Table:
        keys = rows["transaction_id"].combine_chunks()
        bounds = pc.min_max(keys).as_py()
        held = self._spark.table(self.name).where(F.col("transaction_id").between(bounds["min"], bounds["max"])).select("transaction_id")
        if bounds["max"] - bounds["min"] > DENSE * len(keys):
            held = held.join(F.broadcast(self._spark.createDataFrame(rows.select(["transaction_id"]))), "transaction_id", "left_semi")
        return rows.filter(pc.invert(pc.is_in(keys, held.toArrow()["transaction_id"].combine_chunks())))

    def _begin(self) -> None:
        newest = self.newest()
        if self._head is None or newest != self._head:
            # What this process adds hides who wrote before.
            self._others = newest
            retried(self._make_branch)
            self._head = self._head_of(self._branch)

    def _make_branch(self) -> None:
        self._table.refresh()
        if self._head_of(self._branch) is not None:
            self._table.manageSnapshots().removeBranch(self._branch).commit()
        self._table.manageSnapshots().createBranch(self._branch).commit()

    def _publish(self) -> None:
        self._table.refresh()
        written = self._head_of(self._branch)
        if written is None or self._table.snapshot(written).parentId() != self._head:
            raise BusyError(f"{self.name} was written by another run while this one wrote to it; nothing was added, run again")
        retried(lambda: self._table.manageSnapshots().fastForwardBranch("main", self._branch).commit())
        self._head = written

    def _head_of(self, branch: str) -> int | None:
        head = self._table.refs().get(branch)
        return None if head is None else int(head.snapshotId())

    def _remove_branches(self) -> None:
        left = [str(name) for name in self._table.refs() if str(name).startswith(PREFIX)]
        if not left:
            return

        def remove() -> None:
            self._table.refresh()
            change = self._table.manageSnapshots()
            for branch in left:
                change = change.removeBranch(branch)
            change.commit()

        with ops.writer(self.name, self._run, ops.WRITER_WAIT_SECONDS):
            retried(remove)
