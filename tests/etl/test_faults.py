"""Faults of servers in one sentence."""

from __future__ import annotations

import adbc_driver_manager as adbc
import mlflow.exceptions
import psycopg2
import pytest
import sqlalchemy.exc
from hdfs.util import HdfsError

from etl import nodes
from etl.errors import BusyError, RefusedError, UnavailableError, WarehouseError
from etl.faults import named, named_faults, outage_in
from etl.settings import settings
from etl.storage import Client

GONE = psycopg2.OperationalError("server closed the connection\nmore")


def with_state(kind: type[psycopg2.Error], state: str) -> psycopg2.Error:
    """Return an error of Postgres as it is raised, with its SQLSTATE."""
    error = kind("Postgres' own words\nmore")
    error.__setstate__({"pgcode": state})
    return error


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (GONE, UnavailableError, "Postgres went away: server closed"),
        (psycopg2.errors.InsufficientPrivilege("permission denied for table t"), RefusedError, "permission denied for table t"),
        (with_state(psycopg2.errors.AdminShutdown, "57P01"), UnavailableError, "Postgres went away"),
        (with_state(psycopg2.errors.QueryCanceled, "57014"), UnavailableError, "ended a statement, .*; run again"),
        (with_state(psycopg2.errors.DeadlockDetected, "40P01"), UnavailableError, "ended a statement, .*; run again"),
        (with_state(psycopg2.errors.DiskFull, "53100"), UnavailableError, "has no room: .*, then run again"),
        (psycopg2.errors.LockNotAvailable("lock timeout"), BusyError, "another session of Postgres holds"),
        (with_state(psycopg2.errors.IoError, "58030"), WarehouseError, "Postgres fails: .*logs postgres"),
        (with_state(psycopg2.errors.DataCorrupted, "XX001"), WarehouseError, "Postgres fails: .*logs postgres"),
        (with_state(psycopg2.errors.IndexCorrupted, "XX002"), WarehouseError, "Postgres fails: .*logs postgres"),
        (with_state(psycopg2.errors.InvalidPassword, "28P01"), RefusedError, "Postgres refuses: "),
        (HdfsError("Cannot create file. Name node is in safe mode.", exception="SafeModeException"), UnavailableError, "safe mode"),
        (HdfsError("Failed to find datanode, suggest to check cluster health", exception="IOException"), UnavailableError, "no DataNode"),
        (
            HdfsError(
                "Call From vm to localhost:8020 failed on socket exception: java.net.SocketException: reset", exception="SocketException"
            ),
            UnavailableError,
            "HDFS lost its NameNode",
        ),
        (HdfsError("The DiskSpace quota is exceeded", exception="DSQuotaExceededException"), WarehouseError, "HDFS quota reached"),
        (HdfsError("Permission denied", exception="AccessControlException"), WarehouseError, "HDFS refuses: Permission denied"),
        (OSError("[libpq] PQgetCopyData() failed: gone\nmore"), UnavailableError, "Postgres went away: a COPY stream broke"),
        (adbc.OperationalError("gone", status_code=adbc.AdbcStatusCode.IO), UnavailableError, "Postgres went away: a COPY stream broke"),
        (
            adbc.ProgrammingError("permission denied", status_code=adbc.AdbcStatusCode.UNAUTHORIZED, sqlstate="42501"),
            RefusedError,
            "Postgres refuses: ",
        ),
        (sqlalchemy.exc.OperationalError("SELECT 1", {}, GONE), UnavailableError, "Postgres went away: server closed"),
    ],
)
def test_a_fault_says_which_server_and_what_to_do(error: Exception, kind: type[WarehouseError], words: str) -> None:
    with pytest.raises(kind, match=words) as found, named_faults():
        raise error
    assert type(found.value) is kind
    assert "\n" not in str(found.value)
    assert found.value.__cause__ is error
    if kind not in (UnavailableError, BusyError):
        assert "run again when it answers" not in str(found.value)


def test_what_mlflow_says_of_its_database_is_a_fault_of_postgres() -> None:
    error = mlflow.exceptions.MlflowException("wrapped")
    error.__cause__ = sqlalchemy.exc.OperationalError("SELECT 1", {}, GONE)
    assert isinstance(named(error), UnavailableError)
    assert named(mlflow.exceptions.MlflowException("no such version")) is None


@pytest.mark.parametrize(
    "error", [ValueError("a defect"), OSError("disk full"), BaseException(), psycopg2.ProgrammingError("a defect"), psycopg2.DataError()]
)
def test_a_defect_keeps_its_own_error(error: BaseException) -> None:
    with pytest.raises(type(error)) as found, named_faults():
        raise error
    assert found.value is error


def test_hdfs_out_of_reach_is_an_outage_at_every_call() -> None:
    closed = Client("http://127.0.0.1:1", user="etl", timeout=5)
    calls = [
        lambda: closed.status("/a"),
        lambda: closed.status("/a", strict=False),
        lambda: closed.list("/a"),
        lambda: closed.delete("/a"),
        lambda: closed.makedirs("/a"),
        lambda: closed.rename("/a", "/b"),
        lambda: closed.write("/a", b"1"),
        lambda: closed.write("/a", iter([b"1"])),
        lambda: closed.checksum("/a"),
        lambda: closed.content("/a"),
        lambda: list(closed.walk("/a")),
        lambda: closed.read("/a").__enter__(),
    ]
    for call in calls:
        with pytest.raises(UnavailableError, match=r"HDFS at .* went away"):
            call()


def test_nothing_is_damaged_while_no_namenode_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_PORT_OFFSET", "21000")
    settings.cache_clear()
    try:
        assert nodes.all_answer() is False
        assert Client("http://127.0.0.1:1", user="etl", timeout=5).is_damaged("/a") is False
    finally:
        monkeypatch.undo()
        settings.cache_clear()


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("*java.net.ConnectException:Call From vm to localhost:8020 failed on connection exception:12:3", "HDFS"),
        ("*java.net.SocketException:Call From vm to localhost:8020 failed on socket exception:1:2", "HDFS"),
        ("*java.io.EOFException:End of File Exception between local host is: vm; destination host is: localhost:8020:1:2", "HDFS"),
        ("*java.io.IOException:DestHost:destPort localhost:8020 , LocalHost:localPort vm:0. Failed on local exception: reset:1:2", "HDFS"),
        ("*java.io.IOException:All datanodes [DatanodeInfoWithStorage[127.0.0.1:9866]] are bad. Aborting...:1:2", "HDFS"),
        ("Got exception: java.net.ConnectException Call From vm to localhost:8020", "HDFS"),
        ("Job aborted (TID 3) (vm executor driver): java.net.SocketTimeoutException: 60000 millis", "HDFS"),
        ("*org.apache.hadoop.hdfs.server.namenode.SafeModeException:Cannot create:1:2", "HDFS"),
        ("*org.apache.thrift.transport.TTransportException:java.net.ConnectException: Connection refused:1:2", "the metastore"),
        ("x\nCaused by: org.apache.hadoop.hive.metastore.api.MetaException", None),
        ("*java.lang.RuntimeException:MetaException(message:Could not connect to meta store using any of the URIs provided. "
         "Most recent failure: org.apache.thrift.transport.TTransportException: java.net.ConnectException", "the metastore"),
        ("[TABLE_OR_VIEW_NOT_FOUND] The table or view `a` cannot be found. == SQL == SELECT 'java.net.ConnectException'", None),
        ("Permission denied: user=reader", None),
    ],
)  # fmt: skip
def test_a_java_error_tells_a_server_out_of_reach_from_a_refusal(text: str, server: str | None) -> None:
    assert outage_in(text) == server
