"""Servers that fail in the middle of an extract: it says which one and what to do, tables stay, and it can be run again."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest
import requests
from pyhive import hive as hive_client

from etl import batches, ops, sql_server, streams
from etl.errors import UnavailableError, WarehouseError
from etl.extract import extract
from etl.faults import named_faults
from etl.settings import settings
from etl.sql_server import Session
from etl.stack import control, servers, supervision
from etl.storage import names_in, storage
from etl.tables import Table
from etl.transform import take
from tests.postgres import rows
from tests.stack.test_extract import fill, in_core, in_raw, in_source, probe

__all__ = ["probe"]


@contextmanager
def stopped(name: str) -> Iterator[None]:
    """Kill a server, as a crash would, and keep the supervisor from starting it while this block runs."""
    pid = supervision.states()[name]["pid"]
    psutil.Process(pid).kill()
    supervision.call("stopProcess", name)
    try:
        yield
    finally:
        control.up({"base"})
        # The NameNode counts a DataNode as alive for minutes after its death.
        if name == "datanode":
            _await_port(settings().port("datanode"))
            _await_port(settings().port("datanode_http"))


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection((settings().host, port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"nothing listens on port {port}")


@contextmanager
def safe_mode() -> Iterator[None]:
    def admin(*arguments: str) -> None:
        command = servers.hadoop_java("64m", "org.apache.hadoop.hdfs.tools.DFSAdmin", "-fs", settings().hdfs_uri, *arguments)
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    admin("-safemode", "enter")
    try:
        yield
    finally:
        admin("-safemode", "leave")


@contextmanager
def full_quota() -> Iterator[None]:
    """Leave room for no further block below the table's folder."""

    def set_quota(size: int) -> None:
        answer = requests.put(
            f"{settings().webhdfs_url}/webhdfs/v1{batches.root('probe', 'full')}",
            params={"op": "SETQUOTA", "namespacequota": 2**63 - 1, "storagespacequota": size, "user.name": psutil.Process().username()},
            timeout=30,
        )
        answer.raise_for_status()

    set_quota(1024)
    try:
        yield
    finally:
        set_quota(-1)


@pytest.fixture
def loaded(probe: Table, hive: Session, run: ops.Run) -> Table:
    fill(1, 20)
    extract([probe], "full", run, hive)
    take(hive, probe, run)
    fill(30, 40)
    return probe


def expect_recovery(table: Table) -> None:
    """A to F after a failure: nothing half published, and the same command once more brings everything."""
    with ops.run("test") as run, sql_server.session() as hive:
        assert in_raw(hive) == [1]
        assert len(in_core(hive)) == 20
        (batch,) = extract([table], "incremental", run, hive)
        assert batch.row_count == 11
        take(hive, table, run)
        assert in_core(hive) == in_source()


def test_namenode_in_safe_mode(loaded: Table, hive: Session, run: ops.Run) -> None:
    with safe_mode(), pytest.raises(UnavailableError, match="safe mode"):
        extract([loaded], "incremental", run, hive)
    expect_recovery(loaded)


def test_quota_of_hdfs_reached_while_writing(loaded: Table, hive: Session, run: ops.Run) -> None:
    with full_quota(), pytest.raises(WarehouseError, match=r"HDFS quota reached|HDFS refuses|went away"):
        extract([loaded], "incremental", run, hive)
    expect_recovery(loaded)


def test_datanode_killed_in_mid_run(loaded: Table, hive: Session, run: ops.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., object] = streams.write

    def without(*arguments: object) -> object:
        with stopped("datanode"):
            return original(*arguments)

    monkeypatch.setattr(streams, "write", without)
    with pytest.raises(UnavailableError, match="HDFS"):
        extract([loaded], "incremental", run, hive)
    monkeypatch.undo()
    expect_recovery(loaded)


@pytest.mark.parametrize("server", ["namenode", "datanode"])
def test_hdfs_out_of_reach_is_no_damage(loaded: Table, server: str) -> None:
    """The folder of the newest batch is known when the server dies: its manifest cannot be read, and that says nothing about it."""
    (name,) = [name for name in names_in(batches.root("probe", "full")) if name.startswith("1-")]
    folder = f"{batches.root('probe', 'full')}/{name}"
    with stopped(server):
        with pytest.raises(UnavailableError, match=r"HDFS at .*run again"):
            batches.read(folder)
        with pytest.raises(UnavailableError, match="HDFS") as found, ops.run("test") as run, sql_server.session() as hive:
            extract([loaded], "full", run, hive)
        assert "by hand" not in str(found.value)
        with sql_server.session() as hive, pytest.raises(UnavailableError, match=r"cannot reach HDFS now: .*; run again"):
            hive.run("SELECT count(*) FROM core.probe")
    expect_recovery(loaded)


def test_a_manifest_that_is_missing_or_damaged_is_no_outage(loaded: Table, hive: Session, run: ops.Run) -> None:
    (batch,) = batches.all_batches(hive, batches.published(hive, [loaded])["probe"])
    path = f"{batch.folder}/{batches.MANIFEST}"
    whole = batch.to_json().encode()
    try:
        storage().write(path, whole[:100], overwrite=True)
        with pytest.raises(WarehouseError, match=r"has no readable manifest \(JSONDecodeError: .*load it in full") as cut:
            extract([loaded], "incremental", run, hive)
        assert cut.value.exit_code == 1
        storage().write(path, whole, overwrite=True)
        corrupt(whole)
        with pytest.raises(WarehouseError, match=r"has no readable manifest \(.*is damaged: its servers answer") as damaged:
            extract([loaded], "incremental", run, hive)
        assert damaged.value.exit_code == 1
        assert "run again" not in str(damaged.value)
        storage().delete(path)
        with pytest.raises(WarehouseError, match=r"has no readable manifest \(File .*_manifest\.json not found"):
            extract([loaded], "incremental", run, hive)
    finally:
        storage().write(path, whole, overwrite=True)
    expect_recovery(loaded)


def corrupt(content: bytes) -> None:
    """Change some bytes of the newest block that holds a content."""
    blocks = [path for path in (settings().data_dir / "hdfs" / "data").rglob("blk_*") if path.suffix != ".meta"]
    newest = max((path for path in blocks if path.read_bytes() == content), key=lambda path: path.stat().st_mtime)
    with newest.open("r+b") as file:
        file.seek(len(content) // 2)
        file.write(b"????")


def test_what_fails_while_a_file_is_written_is_not_laid_at_hdfs_door(loaded: Table) -> None:
    def rows_of_postgres() -> Iterator[bytes]:
        yield b"x" * 100_000
        raise OSError("[libpq] PQgetCopyData() failed: server closed the connection")

    path = f"{batches.root('probe', 'full')}/_test"
    with pytest.raises(OSError, match=r"\[libpq\]"):
        storage().write(path, rows_of_postgres())
    with pytest.raises(UnavailableError, match=r"Postgres went away: a COPY stream broke"), named_faults():
        storage().write(path, rows_of_postgres(), overwrite=True)
    storage().delete(path)


@pytest.mark.parametrize("moment", ["close", "fetchall", "execute"])
def test_a_sql_server_that_dies_at_any_call_of_a_cursor_is_an_outage(moment: str, hive: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., object] = getattr(hive_client.Cursor, moment)

    def cut(cursor: hive_client.Cursor, *arguments: object, **options: object) -> object:
        cursor._connection._transport._trans.handle.shutdown(socket.SHUT_RDWR)
        return original(cursor, *arguments, **options)

    monkeypatch.setattr(hive_client.Cursor, moment, cut)
    with pytest.raises(UnavailableError, match="the SQL server went away"):
        hive.run("SELECT 1")


@pytest.mark.slow
def test_metastore_down_before_publishing(loaded: Table, hive: Session, run: ops.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., object] = batches.publish

    def without(*arguments: object) -> object:
        with stopped("metastore"):
            return original(*arguments)

    monkeypatch.setattr(batches, "publish", without)
    with pytest.raises(UnavailableError, match="the SQL server cannot reach the metastore now: "):
        extract([loaded], "incremental", run, hive)
    monkeypatch.undo()
    expect_recovery(loaded)


def test_source_session_lost_in_mid_run(loaded: Table, hive: Session, run: ops.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., object] = streams.write

    def cut(*arguments: object) -> object:
        rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'extractor'",
            role="postgres",
            dbname="postgres",
        )
        return original(*arguments)

    monkeypatch.setattr(streams, "write", cut)
    with pytest.raises(UnavailableError, match="Postgres"):
        extract([loaded], "incremental", run, hive)
    monkeypatch.undo()
    expect_recovery(loaded)
