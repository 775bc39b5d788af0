"""Publishing rows of an Iceberg table in one step, through the loads server.

A run writes to a branch of its own; `fast_forward` then moves the table to it, which Iceberg does only if nobody else has
published in the meantime. A run that dies before leaves a branch that nobody reads, and the next run removes it. The server may
still be writing for a run that died: that goes to the dead run's branch.
"""

from __future__ import annotations

import time

from etl import ops
from etl.errors import BusyError
from etl.log import logger
from etl.sql_server import Session, StatementError

PREFIX = "scoring"


def noted(server: Session, table: str, *properties: str) -> tuple[str, ...] | None:
    """Return properties of the newest snapshot in a table's history that has the first of them; None where none has.

    What a run wrote that died before it published is a snapshot, too, but not one of the table's history.
    """
    values = ", ".join(f"summary['{name}']" for name in properties)
    found = server.run(
        f"SELECT {values} FROM {table}.snapshots JOIN {table}.history USING (snapshot_id) "
        f"WHERE is_current_ancestor AND summary['{properties[0]}'] IS NOT NULL ORDER BY committed_at DESC LIMIT 1"
    )
    return found[0] if found else None


class Branch:
    """A new branch of a table, from the table as it is now.

    Parameters
    ----------
    this
        Must hold the table's lock; what earlier runs left is removed.
    """

    def __init__(self, server: Session, table: str, this: ops.Run) -> None:
        self._started = time.monotonic()
        self._server, self._table = server, table
        self._name = f"{PREFIX}_{this.run_id.replace('-', '_')}"
        # The server may be committing for a dead run at this very moment.
        for (left,) in server.run(f"SELECT name FROM {table}.refs WHERE type = 'BRANCH' AND name LIKE '{PREFIX}%'"):
            server.commit(f"ALTER TABLE {table} DROP BRANCH IF EXISTS `{left}`")
        server.commit(f"ALTER TABLE {table} CREATE OR REPLACE BRANCH {self._name}")
        # Before anything is read: what others publish from now on, this run does not build on.
        ((self._began,),) = server.run(f"SELECT snapshot_id FROM {table}.refs WHERE name = '{self._name}'")

    @property
    def target(self) -> str:
        """The name to write to."""
        return f"{self._table}.branch_{self._name}"

    def publish(self) -> int:
        """Move the table to the one snapshot that was written; returns how many rows that added.

        The lock of a run is lost with its connection, and another run may then have published. Iceberg moves a table only
        to what descends from it; but a write to a branch that the other run dropped makes it anew on top of the table.

        Raises
        ------
        BusyError
            When another run has published; nothing of this one is in the table.
        """
        server, table, name = self._server, self._table, self._name
        written = server.run(f"SELECT parent_id FROM {table}.refs JOIN {table}.snapshots USING (snapshot_id) WHERE name = '{name}'")
        moved = None
        try:
            if written == [(self._began,)]:
                moved = server.commit(f"CALL system.fast_forward('{table}', 'main', '{name}')")[0][1:]
        except StatementError as error:
            if "ancestor" not in str(error) and "does not exist" not in str(error):
                raise
        server.commit(f"ALTER TABLE {table} DROP BRANCH IF EXISTS {name}")
        if moved is None:
            raise BusyError(f"another run published {table} while this one, its lock lost, still wrote; nothing of it is there, run again")
        before, after = moved
        ((added,),) = server.run(f"SELECT summary['added-records'] FROM {table}.snapshots WHERE snapshot_id = {after}")
        rows, seconds = int(added or 0), round(time.monotonic() - self._started, 1)
        logger.info("published", table=table, rows=rows, snapshot=after, before=before, seconds=seconds)
        return rows
