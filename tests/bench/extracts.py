"""One extract of `bank.transactions` to zstd Parquet by each of several tools, in two streams, into HDFS.

`python -m tests.bench.extracts TOOL` does it once; with `--warm PIPE` it does it again for each line of a named pipe (spark-submit
keeps the standard input from its driver), in one process, and prints the seconds.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from etl.databases import password
from etl.settings import settings

STREAMS = 2
COLUMNS = "transaction_id, customer_id, terminal_id, transacted_at, amount, currency, channel, device, updated_at"


def _local() -> Path:
    """Return an empty folder for tools that cannot write to HDFS; memory-backed or not as the data folder is."""
    folder = settings().data_dir / "bench"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _upload(file: Path) -> None:
    """Bring a file to HDFS, where every tool's rows end."""
    from etl.storage import storage

    with file.open("rb") as content:
        storage().write("/tmp/bench-file.parquet", content, overwrite=True)


def ours() -> Callable[[], None]:
    """Extract with this project's streams, into HDFS; counting, hashing and publishing stay out of it."""
    import pyarrow as pa

    from etl import streams
    from etl.extract import Copier, plan, splits
    from etl.source import snapshot
    from etl.storage import storage
    from etl.tables import declared_tables

    table = declared_tables()["transactions"]

    def once() -> None:
        with snapshot([table], {}) as source, Copier(source.snapshot, lambda _: None) as copier:
            part = plan(source, table, "full")
            copy = copier.start(part, 1, "full", "bench", splits(source, part, "full"))
            written = [piece.result()[0].rows for piece in copy.pieces]
        storage().delete(copy.folder, recursive=True)
        print(sum(written), "rows", file=sys.stderr)

    # Reading back is verification; the others do not.
    streams.read_back = lambda *_: streams.ReadBack(0, 0, pa.table({}))
    return once


def spark() -> Callable[[], None]:
    """Extract by Spark's JDBC source, into HDFS, two partitions by key; run it through spark-submit."""
    from pyspark.sql import SparkSession

    here = settings()
    secret = password("extractor")
    session = SparkSession.builder.getOrCreate()
    reader = (
        session.read.format("jdbc")
        .option("url", f"jdbc:postgresql://{here.postgres_host}:{here.port('postgres')}/bank")
        .option("driver", "org.postgresql.Driver")
        .option("user", "extractor")
        .option("password", secret)
        # Without it the driver fetches a whole partition into memory.
        .option("fetchsize", 10_000)
    )
    # Keys begin at 1; where they end is asked for, as a person would.
    (rows,) = reader.option("dbtable", "(SELECT max(transaction_id) AS newest FROM bank.transactions) AS bounds").load().first()
    reader = (
        reader.option("dbtable", "bank.transactions")
        .option("partitionColumn", "transaction_id")
        .option("lowerBound", 0)
        .option("upperBound", rows)
        .option("numPartitions", STREAMS)
    )
    target = f"{here.hdfs_uri}/tmp/bench-spark"

    def once() -> None:
        reader.load().write.mode("overwrite").option("compression", "zstd").parquet(target)

    return once


def duckdb() -> Callable[[], None]:
    """Extract by DuckDB's Postgres scanner, to a local file, and upload it."""
    import duckdb
    import duckdb_extension_postgres_scanner as extension

    file = next(Path(extension.__file__).parent.rglob("*.duckdb_extension"))
    session = duckdb.connect(config={"threads": STREAMS})
    session.execute(f"LOAD '{file}'")
    address = settings().dsn("extractor", "bank").replace("'", "''")
    session.execute(f"ATTACH '{address}' AS source (TYPE postgres, READ_ONLY)")

    def once() -> None:
        file = _local() / "rows.parquet"
        session.execute(f"COPY (SELECT {COLUMNS} FROM source.bank.transactions) TO '{file}' (COMPRESSION zstd)")
        _upload(file)

    return once


def connectorx() -> Callable[[], None]:
    """Extract by ConnectorX into Arrow, written by pyarrow to a local file, and upload it."""
    import connectorx
    import pyarrow.parquet as pq

    here = settings()
    secret = password("extractor")
    address = f"postgresql://extractor:{secret}@{here.postgres_host}:{here.port('postgres')}/bank"

    def once() -> None:
        rows = connectorx.read_sql(
            address,
            f"SELECT {COLUMNS} FROM bank.transactions",
            return_type="arrow",
            partition_on="transaction_id",
            partition_num=STREAMS,
            protocol="binary",
        )
        file = _local() / "rows.parquet"
        pq.write_table(rows, file, compression="zstd")
        _upload(file)

    return once


TOOLS = {"ours": ours, "spark": spark, "duckdb": duckdb, "connectorx": connectorx}


def main() -> None:
    """Extract once, or once for each line of a pipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--warm", type=Path, metavar="PIPE")
    given = parser.parse_args()
    once = TOOLS[given.tool]()
    if given.warm is None:
        once()
        return
    with given.warm.open() as pipe:
        for _ in pipe:
            started = time.perf_counter()
            once()
            print(f"seconds {time.perf_counter() - started:.3f}", flush=True)


if __name__ == "__main__":
    main()
