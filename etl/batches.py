"""Published batches: manifest, folder, partition. A partition is the commit; a folder without one is nothing.

Layout in HDFS: `<warehouse>/raw/<table>/<number>-<run id>/part-*.parquet` and `_manifest.json` beside them;
deletions lie in `<warehouse>/raw/<table>_deleted/` in the same way. Both share one sequence of numbers.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import re
import threading
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from etl.columns import Column, outline_columns, outline_text
from etl.errors import BusyError, RefusedError, WarehouseError
from etl.log import logger
from etl.settings import ROOT, settings
from etl.source import Horizon, Previous, Server, Snapshot
from etl.sql_server import NO_TABLE, Session, StatementError
from etl.storage import DamagedError, names_in, storage
from etl.tables import Table, deletions_of

KINDS = ("full", "incremental", "repair", "deletes")
# These two move the watermark; a repair reads a range again, a sweep reads keys.
WATERMARK_KINDS = ("full", "incremental")
# The session of a run that was killed a moment ago may not have ended yet.
LOCK_WAIT_SECONDS = 2
TEMPLATES = "hive/source"
MANIFEST = "_manifest.json"
_FOLDER = re.compile(r"(\d+)-.+")


@functools.cache
def tool_version() -> str:
    """Return the commit that this code is at, else the package's version."""
    git = ROOT / ".git"
    head = git / "HEAD"
    if head.is_file():
        reference = head.read_text(encoding="ascii").strip().removeprefix("ref: ")
        packed = git / "packed-refs"
        if (git / reference).is_file():
            return (git / reference).read_text(encoding="ascii").strip()
        if packed.is_file() and (found := re.search(rf"^(\w+) {re.escape(reference)}$", packed.read_text(), re.MULTILINE)):
            return found[1]
        if re.fullmatch(r"[0-9a-f]{40}", reference):
            return reference
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


@dataclass(frozen=True)
class Batch:
    """One batch as its manifest describes it.

    Attributes
    ----------
    table, schema
        The declared table, and its schema in the source; None in a manifest of an earlier version.
    number
        Its partition in `raw`; one sequence a table, whatever the kind.
    kind
        full, incremental, repair or deletes.
    folder
        Absolute path in HDFS.
    range_from, next_from
        Half-open range of the cursor; None is the very beginning. Where the next increment begins.
    clock
        The source's clock before the snapshot was taken.
    row_count, rejected_count
        Rows in the batch, and rows of its range that could not be held.
    content_hash
        Sum of the row hashes, as a decimal; compared between the source and the files.
    outline
        Of each column how many values, the lowest and the highest, or bytes (`etl.columns`); compared between the files and Hive.
    columns
        Of the files; for `deletes` the key's only.
    key_ranges
        For a single whole-number key of a batch that is merged: up to 64 closed ranges that hold every key, else None.
    """

    table: str
    number: int
    kind: str
    run_id: str
    folder: str
    server: Server
    clock: dt.datetime
    snapshot: str
    snapshot_xmin: int
    snapshot_xmax: int
    row_count: int
    rejected_count: int
    content_hash: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    range_from: dt.datetime | None = None
    next_from: dt.datetime | None = None
    previous_xmin: int | None = None
    repaired: dict[str, str] | None = None
    key_ranges: tuple[tuple[int, int], ...] | None = None
    files: tuple[dict[str, Any], ...] = ()
    bytes: int = 0
    outline: str = ""
    prepared: tuple[str, ...] = ()
    schema: str | None = None
    version: str = field(default_factory=tool_version)

    @property
    def hive_table(self) -> str:
        """Name of its Hive table in `raw`."""
        return hive_name(self.table, self.kind)

    @property
    def location(self) -> str:
        """Address of its folder, as its partition has it."""
        return f"{settings().hdfs_uri}{self.folder}"

    def previous(self) -> Previous:
        """Return what the next increment has to know of it."""
        return Previous(self.server, self.clock, self.range_from, self.next_from, self.snapshot_xmin)

    def to_json(self) -> str:
        """Return its manifest."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "folder"}
        plain["server"] = vars(self.server)
        plain["columns"] = [column.to_dict() for column in self.columns]
        return json.dumps(plain, default=lambda value: value.isoformat(), indent=1)

    @classmethod
    def from_json(cls, text: str, folder: str) -> Batch:
        """Read a manifest back."""
        plain = json.loads(text)
        for name in ("clock", "range_from", "next_from"):
            plain[name] = dt.datetime.fromisoformat(plain[name]) if plain[name] else None
        plain["server"] = Server(**plain["server"])
        plain["columns"] = tuple(Column(**one) for one in plain["columns"])
        for name in ("key", "files", "prepared"):
            plain[name] = tuple(plain[name])
        if plain["key_ranges"] is not None:
            plain["key_ranges"] = tuple((low, high) for low, high in plain["key_ranges"])
        return cls(folder=folder, **plain)


@dataclass(frozen=True)
class Published:
    """The partitions of one declared table in `raw` and `raw.<table>_deleted`, and the folders in HDFS.

    Attributes
    ----------
    rows, deletions
        Numbers of the published batches.
    folders
        Names in the HDFS folder of either, by kind (`full` stands for every batch of rows).
    """

    table: Table
    rows: frozenset[int]
    deletions: frozenset[int]
    folders: Mapping[str, tuple[str, ...]]

    @property
    def newest(self) -> int:
        """Return the highest number, or 0."""
        return max(self.rows | self.deletions, default=0)


def hive_name(table: str, kind: str) -> str:
    """Return the Hive table that holds batches of a kind."""
    return f"raw.{deletions_of(table) if kind == 'deletes' else table}"


def root(table: str, kind: str) -> str:
    """Return the HDFS folder of that Hive table."""
    return f"{settings().warehouse_path}/{hive_name(table, kind).replace('.', '/')}"


# What is published -----------------------------------------------------------------------------------------------


def published(hive: Session, tables: Sequence[Table]) -> dict[str, Published]:
    """Return what is published of declared tables, by name.

    A batch's folder is made before its partition: where there is no folder, Hive need not be asked.
    """
    kinds = ("full", "deletes")
    with ThreadPoolExecutor(4) as pool:
        listings = {(table.name, kind): pool.submit(names_in, root(table.name, kind)) for table in tables for kind in kinds}
    folders = {place: tuple(listing.result()) for place, listing in listings.items()}

    def numbers(table: Table, kind: str) -> frozenset[int]:
        return _partitions(hive, hive_name(table.name, kind)) if folders[table.name, kind] else frozenset()

    return {
        table.name: Published(table, numbers(table, "full"), numbers(table, "deletes"), {kind: folders[table.name, kind] for kind in kinds})
        for table in tables
    }


def newest_folder(table: Table) -> int:
    """Return the highest number of a batch's folder, published or not; 0 where there is none."""
    names = [name for kind in ("full", "deletes") for name in names_in(root(table.name, kind))]
    return max((number for name in names if (number := number_of(name)) is not None), default=0)


def number_of(folder: str) -> int | None:
    """Return the number of the batch that a folder claims; None where it is no batch's (what is moved aside, for one)."""
    found = _FOLDER.fullmatch(folder)
    return int(found[1]) if found else None


def _partitions(hive: Session, hive_table: str) -> frozenset[int]:
    """Return the numbers of a Hive table's partitions, none where the table is not made yet."""
    try:
        found = hive.run(f"SHOW PARTITIONS {hive_table}")
    except StatementError as error:
        # A metastore that has lost its own database says so of every table; but it lists none of its tables then.
        if NO_TABLE not in str(error) or hive.run(f"SHOW TABLES IN raw LIKE '{hive_table.removeprefix('raw.')}'"):
            raise
        return frozenset()
    return frozenset(int(str(row[0]).removeprefix("batch=")) for row in found)


def location(hive: Session, hive_table: str, partition: str) -> str:
    """Return the path of a partition's folder; the partition is written as HiveQL writes it, such as `batch=7`."""
    for name, value, *_ in hive.run(f"DESCRIBE FORMATTED {hive_table} PARTITION ({partition})"):
        if str(name).strip() == "Location" and value:
            return re.sub(r"^[a-z]+://[^/]*", "", str(value).strip())
    raise WarehouseError(f"partition {partition} of {hive_table} has no location; look at it with bash/query.sh")


def folder_of(hive: Session, table: str, kind: str, number: int, names: Iterable[str]) -> str:
    """Return the folder of a published batch; Hive is asked only where two folders claim the number."""
    claimants = [name for name in names if number_of(name) == number]
    if len(claimants) == 1:
        return f"{root(table, kind)}/{claimants[0]}"
    return location(hive, hive_name(table, kind), f"batch={number}")


def read(folder: str) -> Batch:
    """Read a batch's manifest.

    Raises
    ------
    WarehouseError
        When the folder has none, or one that is not whole: somebody changed files of a published batch, or HDFS lost them.
    UnavailableError
        When HDFS does not answer; that says nothing about the batch.
    """
    from hdfs.util import HdfsError

    def unreadable(why: str) -> WarehouseError:
        return WarehouseError(
            f"the published batch in {folder} has no readable manifest ({why}); its files were changed by hand or lost: load it in full"
        )

    try:
        with storage().read(f"{folder}/{MANIFEST}") as reader:
            return Batch.from_json(reader.read().decode(), folder)
    except HdfsError as error:
        if error.exception != "FileNotFoundException":
            raise
        raise unreadable(str(error).splitlines()[0]) from error
    except DamagedError as error:
        raise unreadable(str(error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise unreadable(f"{type(error).__name__}: {error}") from error


def _own(hive: Session, state: Published, kind: str, number: int) -> Batch:
    """Return a published batch; one that another table has published there is refused."""
    batch = read(folder_of(hive, state.table.name, kind, number, state.folders[kind]))
    if (batch.table, batch.kind == "deletes") != (state.table.name, kind == "deletes"):
        raise RefusedError(
            f"batch {number} of {hive_name(state.table.name, kind)} is a {batch.kind} batch of the table {batch.table}, and is never "
            f"merged into {state.table.name}: two declared tables shared this name; drop {hive_name(state.table.name, kind)} and "
            f"its folder {root(state.table.name, kind)}, then run bash/load.sh full {state.table.name}"
        )
    return batch


def newest(hive: Session, state: Published, kinds: Sequence[str], at_most: int | None = None) -> Batch | None:
    """Return the newest batch of rows of some kinds, by default with any number."""
    for number in sorted(state.rows, reverse=True):
        if at_most is None or number <= at_most:
            batch = _own(hive, state, "full", number)
            if batch.kind in kinds:
                return batch
    return None


def newest_watermarks(hive: Session, states: Mapping[str, Published]) -> dict[str, Batch | None]:
    """Return the batch that holds each table's watermark, by name; several manifests are read at a time."""
    # Only where two folders claim one number is Hive asked, and its session serves one thread: those go one by one.
    with ThreadPoolExecutor(4) as pool:
        lock = threading.Lock()
        guarded = _Guarded(hive, lock)
        found = {name: pool.submit(newest, guarded, state, WATERMARK_KINDS) for name, state in states.items()}
    return {name: future.result() for name, future in found.items()}


class _Guarded(Session):
    """A session that threads share, one statement at a time."""

    def __init__(self, hive: Session, lock: threading.Lock) -> None:
        self._hive = hive
        self._lock = lock

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._hive.run(statement)


def all_batches(hive: Session, state: Published, above: int = 0) -> list[Batch]:
    """Return the published batches of a table with a number above `above`, in the order of their numbers."""
    found = []
    for kind, numbers in (("full", state.rows), ("deletes", state.deletions)):
        found += [_own(hive, state, kind, number) for number in numbers if number > above]
    return sorted(found, key=lambda batch: batch.number)


# Clearing away ---------------------------------------------------------------------------------------------------


def remove_unpublished(hive: Session, state: Published, run_id: str) -> list[str]:
    """Remove folders that no partition points to: what killed runs and rewinds left. Needs the table's lock.

    A run that lost its lock without knowing may publish such a folder at this very moment. So it is moved aside
    first, then Hive is asked again: the other run either finds its folder gone and fails, or gets it back.

    Raises
    ------
    BusyError
        When another run published meanwhile.
    """
    removed = []
    for kind, numbers in (("full", state.rows), ("deletes", state.deletions)):
        path = root(state.table.name, kind)
        names = state.folders[kind]
        if any(name.startswith("_trash-") for name in names):
            _restore(hive, state.table.name, kind, numbers, names)
            names = tuple(names_in(path))
        claims = {name: number for name in names if (number := number_of(name)) is not None}
        if set(claims.values()) <= numbers and len(claims) <= len(numbers):
            continue
        kept = {folder_of(hive, state.table.name, kind, number, names) for number in numbers}
        orphans = [name for name in claims if f"{path}/{name}" not in kept]
        if not orphans:
            continue
        trash = f"{path}/_trash-{run_id}"
        storage().makedirs(trash)
        for name in orphans:
            storage().rename(f"{path}/{name}", f"{trash}/{name}")
        # Of a published number an erasure leaves two folders: its partition may have moved to the other one meanwhile.
        doubtful = {claims[name] for name in orphans} & numbers
        moved = {number for number in doubtful if location(hive, hive_name(state.table.name, kind), f"batch={number}") not in kept}
        if late := (_partitions(hive, hive_name(state.table.name, kind)) - numbers) | moved:
            _restore(hive, state.table.name, kind, late, names_in(path))
            raise BusyError(f"another run published batch {max(late)} of {hive_name(state.table.name, kind)} at this moment; run again")
        storage().delete(trash, recursive=True)
        removed += orphans
    if removed:
        logger.info("removed unpublished folders", table=state.table.name, folders=", ".join(removed))
    return removed


def _restore(hive: Session, table: str, kind: str, numbers: Iterable[int], names: Sequence[str]) -> None:
    """Put back published folders that a killed run had moved aside, and remove the rest of what it had."""
    path = root(table, kind)
    for trash in [name for name in names if name.startswith("_trash-")]:
        for name in names_in(f"{path}/{trash}"):
            number = number_of(name)
            if number is not None and number in numbers and location(hive, hive_name(table, kind), f"batch={number}") == f"{path}/{name}":
                storage().rename(f"{path}/{trash}/{name}", f"{path}/{name}")
        storage().delete(f"{path}/{trash}", recursive=True)


# Publishing ------------------------------------------------------------------------------------------------------


def ensure_tables(hive: Session, table: Table, columns: Sequence[Column], *, is_first: bool, is_changed: bool) -> None:
    """Create the Hive tables of a source table, or add the columns that it has gained.

    Parameters
    ----------
    is_first
        Nothing is published yet: a table of other columns is what a killed run left, and is made anew.
    is_changed
        The source has columns that the last batch had not.
    """
    if is_first:
        key = [column for column in columns if column.name in table.key]
        for kind, wanted in (("full", columns), ("deletes", key)):
            name = hive_name(table.name, kind)
            create = functools.partial(
                hive.run_file,
                f"{TEMPLATES}/create_raw.hql.j2",
                name=name,
                definitions=[_described(column) for column in wanted],
                comment=(
                    f"Batches of {table.source} as extracted" if kind == "full" else f"Keys that sweeps found gone from {table.source}"
                ),
                location=f"{settings().hdfs_uri}{root(table.name, kind)}",
            )
            create()
            if [(c.name, c.hive_type) for c in wanted] != _hive_columns(hive, name):
                hive.run(f"DROP TABLE {name}")
                create()
    elif is_changed:
        name = hive_name(table.name, "full")
        present = {column for column, _ in _hive_columns(hive, name)}
        for column in columns:
            if column.name not in present:
                logger.warning("new column", table=table.name, column=column.name, type=column.hive_type)
                hive.run_file(f"{TEMPLATES}/add_column.hql.j2", name=name, definition=_described(column))


def _described(column: Column) -> dict[str, str]:
    return {
        "name": column.name,
        "type": column.hive_type,
        "comment": column.comment or f"{column.source_type} in the source",
    }


def _hive_columns(hive: Session, name: str) -> list[tuple[str, str]]:
    found = []
    for column, hive_type, *_ in hive.run(f"DESCRIBE {name}"):
        if not column or str(column).startswith("#"):
            break
        found.append((str(column), str(hive_type)))
    return [one for one in found if one[0] != "batch"]


def write_manifest(batch: Batch) -> None:
    """Write a batch's manifest beside its files."""
    storage().write(f"{batch.folder}/{MANIFEST}", data=batch.to_json().encode(), overwrite=True)


def publish(hive: Session, ready: Sequence[Batch]) -> dict[int, WarehouseError]:
    """Add the partitions of batches, which publishes them, in the given order; then read each once through Hive.

    Returns
    -------
    dict
        By position, why a batch is not published: another run was first, or Hive reads something else than was written
        (its partition is withdrawn then). After the first one that Hive refuses, no further one is published.
    """
    failed: dict[int, WarehouseError] = {}
    added: list[int] = []
    try:
        for at, batch in enumerate(ready):
            if failed:
                failed[at] = WarehouseError(f"{batch.table} is not published, for a table before it was not; correct that and run again")
                continue
            try:
                hive.run_file(f"{TEMPLATES}/add_partition.hql.j2", name=batch.hive_table, batch=batch.number, location=batch.location)
                added.append(at)
            except StatementError as error:
                is_there = "exist" in str(error).lower() and "partition" in str(error).lower()
                if is_there and _points_to(hive, batch):
                    # Its client tries again by itself where the metastore lost HDFS or its database in between.
                    added.append(at)
                    continue
                failed[at] = error
                if is_there:
                    failed[at] = BusyError(
                        f"another run published batch {batch.number} of {batch.hive_table} first; nothing of it is published, run again"
                    )
        failed |= _differences(hive, ready, added)
    except BaseException as error:
        # What could not be read is not vouched for.
        for at in added:
            _withdraw(hive, ready[at], error)
        raise
    for at in added:
        if at in failed:
            _withdraw(hive, ready[at], failed[at])
    return failed


def _points_to(hive: Session, batch: Batch) -> bool:
    """Tell whether a batch's partition is there and is this run's own: a folder has the name of its run."""
    try:
        return location(hive, batch.hive_table, f"batch={batch.number}") == batch.folder
    except StatementError:
        return False


def _withdraw(hive: Session, batch: Batch, why: BaseException) -> None:
    logger.error("withdrawing the partition", table=batch.table, batch=batch.number, reason=str(why))
    unpublish(hive, batch.hive_table, batch.number)


def _differences(hive: Session, ready: Sequence[Batch], added: Sequence[int]) -> dict[int, WarehouseError]:
    """Read published batches once, all in one statement, and say which are not what was written."""
    if not added:
        return {}
    found = {
        (int(at), str(part)): (int(rows), str(outline))
        for at, part, rows, outline in hive.run_file(
            f"{TEMPLATES}/outline.hql.j2",
            batches=[
                {
                    "position": at,
                    "name": ready[at].hive_table,
                    # Rows and deletions share numbers, and Hive arbitrates only within one table: of two runs that
                    # both got theirs, at least one sees the other's here.
                    "other": hive_name(ready[at].table, "full" if ready[at].kind == "deletes" else "deletes"),
                    "batch": ready[at].number,
                    "aggregates": outline_columns("spark", ready[at].columns),
                    "outline": outline_text("spark", ready[at].columns),
                }
                for at in added
            ],
        )
    }
    wrong: dict[int, WarehouseError] = {}
    for at in added:
        batch = ready[at]
        rows, outline = found[at, "own"]
        if found[at, "other"][0]:
            wrong[at] = BusyError(f"another run published a batch {batch.number} of {batch.table} at this moment; run again")
        elif (rows, outline) != (batch.row_count, batch.outline):
            wrong[at] = WarehouseError(
                f"{batch.hive_table} batch {batch.number}: Hive reads {rows} rows, the files hold {batch.row_count}; of each column "
                f"(values, lowest, highest or bytes) Hive reads {outline}, the files hold {batch.outline}; "
                "the partition is withdrawn and nothing of it is published"
            )
    return wrong


def move(hive: Session, old: Batch, new: Batch) -> None:
    """Let a published batch's partition point to another folder, whose manifest is written, in one commit; the old one is unpublished then.

    Raises
    ------
    WarehouseError
        When Hive reads something else there than was written; the partition points to the old folder again.
    """
    statement = f"{TEMPLATES}/set_location.hql.j2"
    hive.run_file(statement, name=new.hive_table, batch=new.number, location=new.location)
    if _differences(hive, [new], [0]):
        hive.run_file(statement, name=old.hive_table, batch=old.number, location=old.location)
        raise WarehouseError(
            f"Hive reads other rows in {new.folder} than were written; the partition of {new.hive_table} points to {old.folder} as before; "
            "run again"
        )


def unpublish(hive: Session, hive_table: str, number: int) -> None:
    """Drop a partition; its folder is removed by the next run."""
    hive.run_file(f"{TEMPLATES}/drop_partition.hql.j2", name=hive_table, batch=number)


def next_numbers(hive: Session, states: Sequence[Published]) -> dict[str, int]:
    """Return the numbers of tables' next batches: above every partition and core's marks, so that none is used twice."""
    from etl import core

    names = {state.table.name: core.target_names(state.table) for state in states}
    marks = core.marks(hive, [name for own in names.values() for name in own])
    return {
        state.table.name: max([state.newest, *(marks[name].batch for name in names[state.table.name] if name in marks)]) + 1
        for state in states
    }


def continued(batch: Batch | None, table: Table) -> Previous:
    """Return what an increment continues.

    Raises
    ------
    RefusedError
        When nothing has been published yet, or what was published is of another table.
    """
    if batch is None:
        raise RefusedError(f"{table.name} has no batch to continue; run bash/extract.sh full {table.name} first")
    check_chain(table, [batch])
    return batch.previous()


def check_chain(table: Table, chain: Sequence[Batch]) -> None:
    """Refuse batches, of which each continues the one before, unless all were read from the declared table of one cluster.

    Timelines may differ: after a fail-over an increment is refused (`etl.source`), what was published before is whole.

    Raises
    ------
    RefusedError
        Naming the first batch that is of another table or another cluster.
    """
    for batch in chain:
        if batch.schema not in (None, table.schema):
            raise RefusedError(
                f"batch {batch.number} of {table.name} was read from {batch.schema}.{batch.table}, and {table.source} is declared: batches "
                f"of another table are never merged; correct the declaration, or replace everything with bash/load.sh full {table.name}"
            )
        if batch.server.system_identifier != chain[0].server.system_identifier:
            raise RefusedError(
                f"batch {batch.number} of {table.name} was read from another Postgres cluster (system "
                f"{batch.server.system_identifier}) than batch {chain[0].number} before it (system "
                f"{chain[0].server.system_identifier}): batches of two clusters are never "
                f"merged; replace everything with bash/load.sh full {table.name}"
            )


def describe_range(horizon: Horizon, taken: Snapshot) -> dict[str, Any]:
    """Return the manifest's fields about when it was read."""
    return {
        "clock": horizon.clock,
        "prepared": horizon.prepared,
        "snapshot": taken.text,
        "snapshot_xmin": taken.xmin,
        "snapshot_xmax": taken.xmax,
    }
