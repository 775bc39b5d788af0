"""raw.events as files: the folders of a day, and folding its many small files into few.

The stream job writes a file every few seconds, named by its query and the number of its micro-batch, into the folder
`received_on=DAY`. Folded for the n-th time, the day lies in `DAY-n`, and its partition moves there in one commit of the metastore.
The folder before is closed then, and removed later, for a reader may be reading it.

Both write under one lock. A run that was killed may leave its last statement to the server, so nobody knows for sure which of two
folders the partition points to: the stream writes to every folder that is not closed, and the next run goes on with the same one.

A micro-batch that comes again finds its file by name. Only the newest of a query can come again, for a query notes each as done
before it begins the next: that one keeps its file and its name.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from etl import ops
from etl.batches import location
from etl.errors import WarehouseError
from etl.failures import Failures
from etl.log import logger
from etl.settings import settings
from etl.sql_server import Session
from etl.storage import names_in, put, storage
from etl.streams import Pipe

if TYPE_CHECKING:
    import pyarrow as pa

TABLE = "raw.events"
DAY_FILES = 5
"""A day that is over is folded from so many small files on."""
TODAY_FILES = 1000
"""The present day, whose folded files are copied each time, from so many on: some three hours of the stream."""
CLOSED_HOURS = 6.0
"""How long a folder stays that no partition points to any more."""
FILES_AT_A_TIME = 16
THREADS = 4
GROUP_BYTES = 32 * 1024 * 1024
"""Events in memory, from which on they are written to a row group."""
CLOSED = "_closed"
FOLDED = "folded_"
_STATEMENTS = "hive/raw/events"
_FOLDER = re.compile(r"received_on=(?P<first>\d{4}-\d\d-\d\d)|(?P<day>\d{4}-\d\d-\d\d)-(?P<number>\d+)")
_MICRO_BATCH = re.compile(r"(.+)-(\d+)\.parquet")


def root() -> str:
    """Return the HDFS folder of the table."""
    return f"{settings().warehouse_path}/{TABLE.replace('.', '/')}"


def folder(day: str, number: int) -> str:
    """Return the folder of a day (ISO 8601) that was folded so many times."""
    return f"{root()}/{day}-{number}" if number else f"{root()}/received_on={day}"


def open_folders(day: str) -> list[str]:
    """Return the folders that take a day's files: the one its partition points to, and the next while it is being made."""
    return [folder(day, number) for number in _folders().get(day, []) if not _is_closed(folder(day, number))] or [folder(day, 0)]


def maintain(hive: Session, run: ops.Run) -> None:
    """Fold the days that have many small files, and remove folders that were closed some hours ago."""
    remove_closed(run)
    today = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"
    partitions = {str(row[0]).removeprefix("received_on=") for row in hive.run(f"SHOW PARTITIONS {TABLE}")}
    failures = Failures()
    for day in sorted(partitions & _folders().keys()):
        least = DAY_FILES if day < today else TODAY_FILES
        with failures.of(f"{TABLE} of {day}"):
            found = open_folders(day)
            if len(found) > 1 or len(_committed(_data(found[0]))) >= least:
                fold(hive, day, run, least)
    failures.raise_all()


def fold(hive: Session, day: str, run: ops.Run, least: int) -> None:
    """Fold a day's small files into one, where there are so many, and let its partition point to the folder with it.

    Raises
    ------
    WarehouseError
        When the new folder holds other events than the old one; the partition has not moved.
    """
    with ops.writer(TABLE, run, ops.WRITER_WAIT_SECONDS):
        now = location(hive, TABLE, f"received_on = DATE '{day}'").rsplit("/", 1)[-1]
        found = _FOLDER.fullmatch(now)
        if found is None:
            raise WarehouseError(
                f"the partition of {TABLE} for {day} points to the folder {now}, which is not one of its own; move it back"
            )
        number = int(found["number"] or 0)
        for older in _folders().get(day, []):
            if older < number and not _is_closed(folder(day, older)):
                _close(folder(day, older))
        before, after = folder(day, number), folder(day, number + 1)
        small = _committed(_data(before))
        if number + 1 not in _folders()[day] and len(small) < least:
            return
        count = _fill(after, before, small, f"{FOLDED}{number + 1}_{run.run_id}.parquet")
        _compare(hive, day, before, after)
        hive.run_file(f"{_STATEMENTS}/set_location.hql", day=day, location=f"{settings().hdfs_uri}{after}")
        _close(before)
    logger.info("folded", table=TABLE, day=day, files=count, files_now=len(_data(after)))


def remove_closed(run: ops.Run) -> None:
    """Remove the folders that were closed some hours ago."""
    before = (dt.datetime.now(dt.UTC) - dt.timedelta(hours=CLOSED_HOURS)).timestamp() * 1000
    with ops.writer(TABLE, run, ops.WRITER_WAIT_SECONDS):
        for path in [folder(day, number) for day, numbers in _folders().items() for number in numbers]:
            closed = storage().status(f"{path}/{CLOSED}", strict=False)
            if closed is not None and closed["modificationTime"] <= before:
                storage().delete(path, recursive=True)
                logger.info("removed", folder=path)


def _folders() -> dict[str, list[int]]:
    """Return of each day how often its folders were folded, ascending."""
    found: dict[str, list[int]] = {}
    for match in filter(None, map(_FOLDER.fullmatch, names_in(root()))):
        found.setdefault(match["first"] or match["day"], []).append(int(match["number"] or 0))
    return {day: sorted(numbers) for day, numbers in found.items()}


def _data(path: str) -> set[str]:
    """Return the files of a folder that Hive reads."""
    return {name for name in names_in(path) if not name.startswith(("_", "."))}


def _committed(names: Iterable[str]) -> set[str]:
    """Return the files of micro-batches that cannot come again: of each query all but the newest."""
    newest: dict[str, int] = {}
    found = {name: (match[1], int(match[2])) for name in names if (match := _MICRO_BATCH.fullmatch(name))}
    for query, number in found.values():
        newest[query] = max(number, newest.get(query, -1))
    return {name for name, (query, number) in found.items() if number < newest[query]}


def _fill(after: str, before: str, small: set[str], file: str) -> int:
    """Write the events of one folder to the next: those of small files to one, other files as they are; returns how many were small."""
    data, made = _data(before), _data(after)
    # Where a run was killed that may have moved the partition already, its file counts.
    file = next((name for name in sorted(made - data) if name.startswith(FOLDED)), file)
    if file in made:
        with storage().read(f"{after}/{_list_of(file)}") as reader:
            folded = set(json.loads(reader.read()))
    else:
        # What the stream has written to both since such a run stays as it is.
        folded = small - made
        storage().write(f"{after}/{_list_of(file)}", json.dumps(sorted(folded)).encode(), overwrite=True)
        put(f"{after}/{file}", _content(before, sorted(folded)))
    for name in sorted(data - folded - made):
        _copy(f"{before}/{name}", f"{after}/{name}")
    # A request of a killed run that came late may have made another one.
    for name in _data(after) - data - {file}:
        if name.startswith(FOLDED):
            storage().delete(f"{after}/{name}")
    return len(folded)


def _list_of(file: str) -> str:
    """Return the name of the list of what was folded into a file."""
    return f"_{file.removesuffix('.parquet')}.json"


def _content(path: str, names: Sequence[str]) -> Iterator[bytes]:
    """Yield one Parquet file of the events of many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def read(name: str) -> pa.Table:
        with storage().read(f"{path}/{name}") as reader:
            return pq.read_table(pa.BufferReader(reader.read()))

    pipe, writer, waiting = Pipe(), None, list[pa.Table]()
    with ThreadPoolExecutor(THREADS) as pool:
        for at in range(0, len(names), FILES_AT_A_TIME):
            waiting += pool.map(read, names[at : at + FILES_AT_A_TIME])
            if at + FILES_AT_A_TIME < len(names) and sum(table.nbytes for table in waiting) < GROUP_BYTES:
                continue
            writer = writer or pq.ParquetWriter(pipe, waiting[0].schema, compression="zstd")
            writer.write_table(pa.concat_tables(waiting))
            waiting.clear()
            yield pipe.drain()
    if writer is not None:
        writer.close()
    yield pipe.drain()


def _copy(source: str, target: str) -> None:
    with storage().read(source, chunk_size=1 << 20) as chunks:
        put(target, chunks)


def _compare(hive: Session, day: str, before: str, after: str) -> None:
    """Let Hive read both folders; their events must be the same."""
    uri = settings().hdfs_uri
    old, new = ((int(rows), str(total)) for _, rows, total in hive.run_file(
        f"{_STATEMENTS}/compare.hql", before=f"{uri}{before}", after=f"{uri}{after}"
    ))  # fmt: skip
    if old != new:
        raise WarehouseError(
            f"{TABLE} of {day}: {after} holds {new[0]} events where {before} holds {old[0]}, or others; "
            "the partition stays where it is, run again"
        )


def _close(path: str) -> None:
    """Note that nobody writes to a folder any more, and since when."""
    storage().write(f"{path}/{CLOSED}", b"", overwrite=True)


def _is_closed(path: str) -> bool:
    return storage().status(f"{path}/{CLOSED}", strict=False) is not None
