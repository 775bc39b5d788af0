"""What happened to an Iceberg table between two of its snapshots, told from the chain of commits.

Compaction changes no rows. Appended rows are read as such. Of a batch or a sweep that core took, the keys lie in `raw`, and the rows
are read as they were before and after every commit, so that nothing is missed of what somebody read in between. Anything else (a
replaced table, an expired or withdrawn snapshot, a batch that raw no longer has) cannot be told, and the caller looks at everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etl.streams import merge_ranges
from etl.tables import deletions_of

Query = Callable[[str], Sequence[Sequence[Any]]]
"""Runs a statement and returns its rows: over HiveServer2, or Spark Connect."""

RANGES = 64
"""Ranges to which files are pruned; more are joined across the narrowest gaps."""
BUCKETS = 1024

Ranges = list[tuple[int, int]]


@dataclass(frozen=True)
class Commit:
    """A commit that changed rows; `batch` is the number of what core took, `run` who says to have written."""

    snapshot: int
    parent: int | None
    is_append: bool
    is_whole: bool
    batch: int | None
    run: str | None


def newest(query: Query, tables: Sequence[str]) -> dict[str, int]:
    """Return the newest snapshot of each table that holds one."""
    parts = [f"SELECT '{table}' AS name, snapshot_id FROM {table}.refs WHERE name = 'main'" for table in tables]
    return {str(row[0]): int(row[1]) for row in query(" UNION ALL ".join(parts))}


def commits(query: Query, spans: Mapping[str, tuple[int | None, int]]) -> dict[str, list[Commit] | None]:
    """Return the commits after one snapshot (None: all) up to another, of some tables, the newest first; None where the chain is broken."""
    moved = {table: (since, now) for table, (since, now) in spans.items() if since != now}
    lineage: dict[str, dict[int, tuple[int | None, Commit | None]]] = {table: {} for table in spans}
    count = "coalesce(cast(summary['{}'] AS bigint), 0)".format
    parts = [
        f"SELECT '{table}' AS name, snapshot_id, parent_id, operation, summary['batch'] AS batch, summary['run'] AS run, "
        f"{count('deleted-data-files')} AS deleted, {count('added-data-files')} + {count('added-delete-files')} AS added "
        f"FROM {table}.snapshots{_not_before(table, since)}"
        for table, (since, _) in moved.items()
    ]
    for table, snapshot, parent, operation, batch, run, deleted, added in query(" UNION ALL ".join(parts)) if parts else ():
        is_change = operation != "replace" and (added or deleted)
        commit = Commit(snapshot, parent, operation == "append", bool(deleted), None if batch is None else int(batch), run)
        lineage[table][snapshot] = (parent, commit if is_change else None)
    return {table: _chain(lineage[table], since, now) for table, (since, now) in spans.items()}


def _not_before(table: str, since: int | None) -> str:
    # A stream leaves thousands of snapshots.
    return "" if since is None else f" WHERE committed_at >= (SELECT committed_at FROM {table}.snapshots WHERE snapshot_id = {since})"


def _chain(lineage: Mapping[int, tuple[int | None, Commit | None]], since: int | None, now: int) -> list[Commit] | None:
    found = []
    here: int | None = now
    while here != since:
        if here is None or here not in lineage:
            return None
        parent, commit = lineage[here]
        # An expired parent: what it held cannot be read any more.
        if parent is not None and parent not in lineage:
            return None
        if commit is not None:
            found.append(commit)
        here = parent
    return found


@dataclass(frozen=True)
class Touched:
    """Rows of a table that some commits touched: those that were added, and those whose keys batches brought.

    A statement that reads them must not name the table elsewhere without a version: Spark (4.1.3) would take it with the options of
    the first mention, and so only what was added.
    """

    table: str
    key: str
    appends: tuple[Commit, ...]
    batches: tuple[Commit, ...]
    batch_keys: str

    @property
    def keys(self) -> str:
        """Statement that gives the keys of all of them."""
        return self._union([self._appended(self.key), self.batch_keys], self.key)

    def rows(self, query: Query, columns: str) -> str:
        """Return the statement that gives columns of them, as they were before and after each commit."""
        parts = [self._appended(columns)]
        if self.batches:
            pruned = within(self.key, ranges(query, self.batch_keys, self.key))
            parts += [
                f"SELECT {columns} FROM {self.table} VERSION AS OF {snapshot} "
                f"LEFT SEMI JOIN ({self.batch_keys}) AS k USING ({self.key}) WHERE {pruned}"
                for snapshot in sorted({state for commit in self.batches for state in (commit.parent, commit.snapshot) if state})
            ]
        return self._union(parts, columns)

    def _appended(self, columns: str) -> str:
        if not self.appends:
            return ""
        return (
            f"SELECT {columns} FROM {self.table} "
            f"WITH (`start-snapshot-id` = '{self.appends[-1].parent}', `end-snapshot-id` = '{self.appends[0].snapshot}')"
        )

    def _union(self, parts: list[str], columns: str) -> str:
        return " UNION ALL ".join(part for part in parts if part) or f"SELECT {columns} FROM {self.table} WHERE false"


def touched(query: Query, table: str, found: list[Commit] | None, key: str = "transaction_id") -> Touched | None:
    """Return how to read the rows that commits touched; None where it cannot be told."""
    if found is None:
        return None
    appends = tuple(commit for commit in found if commit.is_append)
    batches = tuple(commit for commit in found if not commit.is_append)
    if any(commit.batch is None or commit.is_whole for commit in batches):
        return None
    name = table.rpartition(".")[2]
    numbers = {commit.batch for commit in batches}
    parts = []
    for source in [name, deletions_of(name)] if batches else []:
        if not query(f"SHOW TABLES IN raw LIKE '{source}'"):
            continue
        held = {int(str(row[0]).partition("=")[2]) for row in query(f"SHOW PARTITIONS raw.{source}")} & numbers
        if held:
            parts.append(f"SELECT {key} FROM raw.{source} WHERE batch IN ({', '.join(map(str, sorted(held)))})")
            numbers -= held
    # Withdrawn since (bash/extract.sh watermark rewind).
    if numbers:
        return None
    return Touched(table, key, appends, batches, " UNION ALL ".join(parts))


def ranges(query: Query, keys: str, key: str) -> Ranges:
    """Return closed ranges, few, that hold all keys that a statement gives."""
    found = query(
        f"SELECT min({key}), max({key}) FROM ({keys}) CROSS JOIN (SELECT min({key}) AS low, max({key}) AS high FROM ({keys})) "
        f"WHERE {key} IS NOT NULL GROUP BY width_bucket({key}, low, high + 1, {BUCKETS})"
    )
    return merge_ranges([(int(low), int(high)) for low, high in found], RANGES)


def within(column: str, wanted: Ranges) -> str:
    """Write that a column lies within one of some closed ranges; Iceberg finds the files from that."""
    return "(" + (" OR ".join(f"{column} BETWEEN {low} AND {high}" for low, high in wanted) or "false") + ")"
