"""Copies of the warehouse's own records for readers: `ops.*` of Postgres, and the versions in MLflow, as Hive tables.

A copy whose content has changed is made anew in one commit, whose summary says the content's hash; nothing reads it to decide anything.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from etl import ops
from etl.core import PROPERTY
from etl.databases import opened
from etl.log import logger
from etl.settings import Role, settings
from etl.sql_server import Session
from etl.storage import storage
from ml.params import params
from ml.registry import CHAMPION

if TYPE_CHECKING:
    import pyarrow as pa

TABLES = ("runs", "batches", "rejects", "reconciliations", "checks")
CONTENT = "content"
"""Snapshot property: the hash of a copy's content."""
CHUNK_ROWS = 50_000
"""Rows in memory at a time."""

_VERSIONS = """
SELECT v.name AS model_name, v.version AS model_version, t.tags->>'model' AS algorithm, (t.tags->>'train_from')::date AS train_from,
    (t.tags->>'train_to')::date AS train_to, (t.tags->>'average_precision')::double precision AS average_precision,
    EXISTS (
        SELECT FROM registered_model_aliases a WHERE a.name = v.name AND a.version = v.version AND a.alias = %(alias)s
    ) AS is_champion,
    to_timestamp(v.creation_time / 1000.0) AS registered_at
FROM model_versions v
CROSS JOIN LATERAL (SELECT json_object_agg(key, value) AS tags FROM model_version_tags m WHERE m.name = v.name AND m.version = v.version) t
WHERE v.name = %(name)s
"""


def copy_records(hive: Session, this: ops.Run) -> None:
    """Make every copy anew whose content has changed."""
    for name in TABLES:
        columns = _ensured(hive, name)
        _copy(hive, this, name, columns, "etl", "warehouse", f"SELECT {', '.join(columns)} FROM ops.{name}")
    columns = _ensured(hive, "model_versions")
    with opened("mlflow", "mlflow") as session, session.cursor() as cursor:
        cursor.execute("SELECT to_regclass('model_version_tags') IS NOT NULL")
        # Nothing was ever tracked: there are no such tables yet.
        if cursor.fetchone() == (False,):
            return
    _copy(hive, this, "model_versions", columns, "mlflow", "mlflow", f"SELECT {', '.join(columns)} FROM ({_VERSIONS}) AS v")


def _ensured(hive: Session, name: str) -> dict[str, str]:
    """Create a copy where it is missing; returns the types of its columns by their names."""
    hive.run_file(f"hive/ops/{name}/create.hql")
    return {str(row[0]): str(row[1]) for row in hive.run(f"DESCRIBE ops.{name}")}


def _copy(hive: Session, this: ops.Run, name: str, columns: dict[str, str], role: Role, database: str, query: str) -> None:
    import pyarrow.parquet as pq

    schema = _schema(columns)
    folder = f"{settings().warehouse_path}/ops/_copies"
    path = f"{folder}/{name}.parquet"
    with ops.writer(f"ops.{name}", this, ops.WRITER_WAIT_SECONDS), tempfile.TemporaryDirectory() as local:
        file = Path(local) / "rows.parquet"
        rows = 0
        with pq.ParquetWriter(file, schema) as writer:
            for batch in _batches(schema, role, database, query):
                writer.write_batch(batch)
                rows += batch.num_rows
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        newest = f"SELECT summary['{CONTENT}'] FROM ops.{name}.refs JOIN ops.{name}.snapshots USING (snapshot_id) WHERE name = 'main'"
        if hive.run(newest) == [(content,)]:
            return
        storage().upload(path, str(file), overwrite=True)
        names = ", ".join(f"`{column}`" for column in columns)
        hive.run(f"SET `{PROPERTY}.{CONTENT}`={content}")
        try:
            hive.commit(f"INSERT OVERWRITE ops.{name} SELECT {names} FROM parquet.`{settings().hdfs_uri}{path}`")
        finally:
            hive.run(f"RESET `{PROPERTY}.{CONTENT}`")
        storage().delete(path)
    logger.debug("copied", table=f"ops.{name}", rows=rows)


def _schema(columns: dict[str, str]) -> pa.Schema:
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "bigint": pa.int64(),
        "int": pa.int32(),
        "double": pa.float64(),
        "boolean": pa.bool_(),
        "date": pa.date32(),
        "timestamp": pa.timestamp("us", "UTC"),
    }
    return pa.schema([(name, types[of]) for name, of in columns.items()])


def _batches(schema: pa.Schema, role: Role, database: str, query: str) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    with opened(role, database) as session, session.cursor("copy") as cursor:
        cursor.execute(query, {"name": params().name, "alias": CHAMPION})
        while rows := cursor.fetchmany(CHUNK_ROWS):
            yield pa.RecordBatch.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)
