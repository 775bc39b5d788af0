"""Binary COPY to Arrow to Parquet to HDFS, in streams of one snapshot, with bounded memory; and reading it back.

pyarrow, ADBC and DuckDB are imported where they are first needed: an extract that finds nothing new pays for none.
"""

from __future__ import annotations

import importlib
import io
import itertools
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from etl.columns import Column, arrow_type, content_hash, hash_expression, joined_outlines, outline_columns, outline_text
from etl.settings import settings
from etl.source import DATABASE, SESSION_SETTINGS, Snapshot, SourceTable
from etl.storage import storage

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

# A Parquet file ends after this many bytes, so that reading it back fits in memory.
FILE_BYTES = 48 * 1024 * 1024
# Below this size a second stream costs more than it brings.
PAGES_PER_SPLIT = 1000
# How many ranges are kept while a batch is read, and how many the manifest holds.
RANGES_KEPT, RANGES_WRITTEN = 4096, 64
DELTA_KINDS = ("integer", "timestamptz", "timestamp", "date")
ARROW_BATCH_BYTES = 8 * 1024 * 1024
# Of 64 k rows, read back at a time: DuckDB keeps much of a stream of batches until it has read all of it.
READ_BATCHES = 2
LIBRARIES = ("numpy", "pyarrow.parquet", "adbc_driver_manager", "adbc_driver_postgresql", "duckdb")


@dataclass
class Part:
    """What one stream wrote: files, and the ranges of their keys (None for a key that is not one whole number)."""

    rows: int = 0
    bytes: int = 0
    files: list[dict[str, Any]] = field(default_factory=list)
    ranges: list[tuple[int, int]] | None = None


class Stream:
    """One connection to the source inside an exported snapshot, for one query."""

    def __init__(self, snapshot: Snapshot) -> None:
        import adbc_driver_manager as adbc
        import adbc_driver_postgresql as driver

        self._adbc = adbc
        self._snapshot = snapshot
        options = " ".join(f"-c {name}={value}" for name, value in SESSION_SETTINGS.items())
        dsn = f"{settings().dsn('extractor', DATABASE, 'warehouse extract stream')} options='{options}'"
        # The low-level interface: the DB-API one imports pandas, half a second.
        self._database = adbc.AdbcDatabase(driver=driver._driver_path(), uri=dsn)
        try:
            self._connection = adbc.AdbcConnection(self._database)
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._database.close()

    def _execute(self, statement: str) -> None:
        with self._adbc.AdbcStatement(self._connection) as prepared:
            prepared.set_sql_query(statement)
            prepared.execute_update()

    def batches(self, query: str) -> Generator[pa.RecordBatch, None, None]:
        """Read a query by binary COPY, some megabytes at a time."""
        import pyarrow as pa

        # This begins the transaction, and right before the query: to prepare a statement on a connection that is lost
        # ends the process in this version of the driver, to begin a transaction on it is an error.
        self._connection.set_autocommit(False)
        self._execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        self._execute(f"SET TRANSACTION SNAPSHOT '{self._snapshot.identifier}'")
        with self._adbc.AdbcStatement(self._connection) as prepared:
            prepared.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(ARROW_BATCH_BYTES)})
            prepared.set_sql_query(query)
            handle, _ = prepared.execute_query()
            with pa.RecordBatchReader._import_from_c(handle.address) as reader:
                yield from reader


def splits(source: SourceTable, streams: int) -> list[str]:
    """Return predicates that part a table between streams; one that is always true for a small table.

    By place in the table (ctid) or by key, never by cursor: one bulk load shares one moment. The first range and the
    last one are open, so that they hold every row whatever the sizes were when they were read.
    """
    count = min(streams, max(1, source.pages // PAGES_PER_SPLIT))
    if count == 1:
        return ["true"]
    edges = [source.pages * at // count for at in range(1, count)]
    predicates = []
    for low, high in zip([None, *edges], [*edges, None], strict=True):
        bounds = [f"ctid >= '({low},0)'::tid"] if low is not None else []
        bounds += [f"ctid < '({high},0)'::tid"] if high is not None else []
        predicates.append(" AND ".join(bounds))
    return predicates


def key_splits(name: str, low: int | None, high: int | None, count: int) -> list[str]:
    """Return predicates that part a table by a whole-number key between its smallest and largest value."""
    if low is None or high is None or count < 2 or high - low < count:
        return ["true"]
    edges = [low + (high - low) * at // count for at in range(1, count)]
    predicates = []
    for begin, end in zip([None, *edges], [*edges, None], strict=True):
        bounds = [f"{name} >= {begin}"] if begin is not None else []
        bounds += [f"{name} < {end}"] if end is not None else []
        predicates.append(" AND ".join(bounds))
    return predicates


class Pipe(io.RawIOBase):
    """What a Parquet writer has written since it was last drained."""

    def __init__(self) -> None:
        super().__init__()
        self._chunks: list[bytes] = []
        self.size = 0

    def writable(self) -> bool:
        """Tell that it can be written to."""
        return True

    def write(self, data: Any) -> int:
        """Keep some bytes; returns how many."""
        chunk = bytes(data)
        self._chunks.append(chunk)
        self.size += len(chunk)
        return len(chunk)

    def tell(self) -> int:
        """Return how much was written since the beginning."""
        return self.size

    def drain(self) -> bytes:
        """Return what was written since the last call."""
        chunk, self._chunks = b"".join(self._chunks), []
        return chunk


def write(batches: Iterator[pa.RecordBatch], columns: Sequence[Column], key: Sequence[str], folder: str, prefix: str) -> Part:
    """Write batches as zstd Parquet straight into HDFS, a row group at a time.

    Parameters
    ----------
    key
        Where it is one whole number, ranges of it are kept; empty for a batch that no MERGE will read.
    folder
        HDFS folder of the batch.
    prefix
        Begins each file's name; streams of one batch have different ones.
    """
    import pyarrow as pa

    schema = pa.schema([pa.field(column.name, arrow_type(column), column.is_nullable) for column in columns])
    is_ranged = len(key) == 1 and any(column.name == key[0] and column.kind == "integer" for column in columns)
    part = Part(ranges=[] if is_ranged else None)
    pending = next(batches, None)
    while pending is not None or not part.files:
        name = f"{prefix}-{len(part.files):03d}.parquet"
        before = part.rows
        pipe = Pipe()

        def content(pipe: Pipe = pipe) -> Iterator[bytes]:
            nonlocal pending
            import pyarrow.parquet as pq

            writer = pq.ParquetWriter(
                pipe,
                schema,
                compression="zstd",
                compression_level=1,
                # Whole numbers and times as differences: a third smaller than plain, and quicker to write. A dictionary
                # of values that hardly repeat would be built only to be thrown away.
                use_dictionary=[column.name for column in columns if column.kind == "text"],
                column_encoding={column.name: "DELTA_BINARY_PACKED" for column in columns if column.kind in DELTA_KINDS},
                # As Spark writes them, and faster to read than fixed-length bytes.
                store_decimal_as_integer=True,
                store_schema=False,
            )
            with writer:
                while pending is not None and pipe.size < FILE_BYTES:
                    table = converted(pending, schema)
                    part.rows += table.num_rows
                    if part.ranges is not None:
                        part.ranges = merge_ranges([*part.ranges, *ranges_of(table[key[0]])], RANGES_KEPT)
                    writer.write_table(table)
                    pending = next(batches, None)
                    if chunk := pipe.drain():
                        yield chunk
            yield pipe.drain()

        storage().write(f"{folder}/{name}", data=content())
        part.bytes += pipe.size
        part.files.append({"name": name, "rows": part.rows - before, "bytes": pipe.size})
    return part


def converted(batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    """Return a batch of the source with the types that Parquet gets; a value that would change is an error."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from etl.numerics import unscaled

    arrays = []
    for name, wanted in zip(schema.names, schema.types, strict=True):
        values = batch.column(name)
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        if pa.types.is_decimal(wanted) and pa.types.is_binary(values.type):
            numbers = unscaled(values, wanted.scale)
            values = pa.Array.from_buffers(pa.decimal64(wanted.precision, wanted.scale), len(values), numbers.buffers(), numbers.null_count)
        arrays.append(values if values.type == wanted else pc.cast(values, wanted, safe=True))
    return pa.Table.from_arrays(arrays, schema=schema)


def ranges_of(keys: pa.ChunkedArray) -> list[tuple[int, int]]:
    """Return closed ranges that hold some whole numbers, parted at their widest gaps."""
    import numpy as np

    # Not numpy.unique: it hashes, which costs more than writing the file; keys come nearly in order.
    values = np.sort(keys.to_numpy())
    if not len(values):
        return []
    gaps = np.diff(values)
    wide = np.flatnonzero(gaps > 1)
    if len(wide) >= RANGES_KEPT:
        wide = np.sort(wide[np.argpartition(gaps[wide], -(RANGES_KEPT - 1))[-(RANGES_KEPT - 1) :]])
    lows = values[np.concatenate(([0], wide + 1))]
    highs = values[np.concatenate((wide, [len(values) - 1]))]
    return list(zip(lows.tolist(), highs.tolist(), strict=True))


def merge_ranges(ranges: Sequence[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
    """Return at most `limit` closed ranges that hold all the given ones, joined across the narrowest gaps."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        else:
            joined.append((low, high))
    if len(joined) <= limit:
        return joined
    gaps = sorted(range(1, len(joined)), key=lambda at: joined[at][0] - joined[at - 1][1], reverse=True)
    cuts = sorted(gaps[: limit - 1])
    bounds = [0, *cuts, len(joined)]
    return [(joined[a][0], joined[b - 1][1]) for a, b in itertools.pairwise(bounds)]


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Import what writing needs in a thread, while the source is still counting.

    The thread ends with this block: a process that ends while one loads a library is aborted by that library.
    """
    stopped = threading.Event()

    def load() -> None:
        for name in LIBRARIES:
            if stopped.is_set():
                return
            importlib.import_module(name)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


@dataclass(frozen=True)
class ReadBack:
    """What files hold: rows, the sum of their hashes, and their outline (`etl.columns`) as a table of some rows that add up."""

    rows: int
    total: int
    outlines: pa.Table

    @classmethod
    def joined(cls, parts: Sequence[ReadBack]) -> ReadBack:
        """Return what several parts hold together."""
        import pyarrow as pa

        return cls(sum(part.rows for part in parts), sum(part.total for part in parts), pa.concat_tables([part.outlines for part in parts]))

    def outline(self, columns: Sequence[Column]) -> str:
        """Return the outline of all files as a text."""
        with _duckdb() as session:
            session.register("outlines", self.outlines)
            ((found,),) = session.execute(
                f"SELECT {outline_text('duckdb', columns)} FROM (SELECT {joined_outlines(columns)} FROM outlines) AS joined"
            ).fetchall()
        return str(found)


def read_back(folder: str, written: Part, columns: Sequence[Column]) -> ReadBack:
    """Read what a stream wrote from HDFS, file by file."""
    parts = []
    for file in written.files:
        with storage().read(f"{folder}/{file['name']}") as reader:
            parts.append(content_of(reader.read(), columns))
    return ReadBack.joined(parts)


def content_of(file: bytes, columns: Sequence[Column]) -> ReadBack:
    """Return what a Parquet file holds, as DuckDB finds it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    opened = pq.ParquetFile(pa.BufferReader(file))
    total = content_hash("duckdb", hash_expression("duckdb", columns))
    statement = f"SELECT {total} AS total, {outline_columns('duckdb', columns)} FROM rows"
    parts: list[ReadBack] = []
    with _duckdb() as session:
        batches = opened.iter_batches(batch_size=64 * 1024)
        while (some := list(itertools.islice(batches, READ_BATCHES))) or not parts:
            session.register("rows", pa.Table.from_batches(some, opened.schema_arrow))
            found = session.execute(statement).arrow().read_all()
            parts.append(ReadBack(found["row_count"][0].as_py(), int(found["total"][0].as_py()), found.drop_columns(["total"])))
    return ReadBack.joined(parts)


def _duckdb() -> duckdb.DuckDBPyConnection:
    import duckdb

    session = duckdb.connect()
    session.execute("SET TimeZone = 'UTC'")
    return session
