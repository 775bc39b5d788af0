"""What the readers server refuses, whatever user name is claimed."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from etl import sql_server
from etl.errors import WarehouseError
from etl.settings import settings
from etl.sql_server import Session
from etl.stack import jars, machine, supervision

WRITES = (
    "INSERT INTO ops.fence VALUES (2)",
    "INSERT OVERWRITE ops.fence VALUES (2)",
    "DELETE FROM ops.fence",
    "UPDATE ops.fence SET a = 2",
    "MERGE INTO ops.fence AS t USING (SELECT 1 AS a) AS s ON t.a = s.a WHEN MATCHED THEN DELETE",
    "TRUNCATE TABLE ops.fence",
    "CREATE TABLE ops.fence_new (a int) USING iceberg",
    "CREATE TABLE ops.fence_new (a int) STORED AS PARQUET",
    "CREATE TABLE ops.fence_new (a int) USING parquet",
    "CREATE DATABASE fence_new",
    "CREATE VIEW ops.fence_view AS SELECT 1 AS a",
    "DROP TABLE ops.fence",
    "DROP TABLE ops.fence PURGE",
    "DROP DATABASE ops CASCADE",
    "ALTER TABLE ops.fence ADD COLUMN b int",
    "ALTER TABLE ops.fence SET TBLPROPERTIES ('a' = 'b')",
    "ALTER TABLE ops.fence CREATE TAG fence",
    "ALTER TABLE ops.fence_raw ADD PARTITION (batch = 9) LOCATION '/tmp'",
    "ALTER TABLE ops.fence_raw DROP PARTITION (batch = 1)",
    "INSERT INTO ops.fence_raw PARTITION (batch = 1) VALUES (3)",
    "CALL spark_catalog.system.rollback_to_timestamp('ops.fence', TIMESTAMP '2020-01-01 00:00:00')",
)
FILE_READS = (
    "SELECT * FROM text.`file:///etc/passwd`",
    "CREATE TEMPORARY VIEW fence_text USING text OPTIONS (path 'file:///etc/passwd')",
    "CREATE TEMPORARY VIEW fence_text USING text OPTIONS (path 'file:{secrets}')",
    "ADD JAR /etc/passwd",
    "ADD FILE /etc/passwd",
    "LOAD DATA LOCAL INPATH '/etc/passwd' INTO TABLE ops.fence_raw PARTITION (batch = 1)",
    "SELECT TRANSFORM (a) USING 'cat /etc/passwd' FROM ops.fence",
    "SELECT java_method('java.nio.file.Files', 'readString', '/etc/passwd')",
)
# Java, the loads' servers, whose tables are all open there, and the memory of all.
REACHES = (
    ("SELECT java_method('java.lang.System', 'exit', 1)", "takes no java_method"),
    ("SELECT try_reflect('java.lang.System', 'lineSeparator')", "takes no java_method"),
    ("SELECT a FROM ops.fence ORDER BY reflect('java.lang.System', 'getProperty', 'user.name')", "takes no java_method"),
    ("CREATE TEMPORARY VIEW loads USING jdbc OPTIONS (url 'jdbc:hive2://{loads}/', driver 'org.apache.hive.jdbc.HiveDriver', dbtable 'a')",
     "access denied"),
    ("SHOW TABLES IN loads.ops", "Failed to connect to Hive Metastore"),
    ("CACHE TABLE ops.fence", "takes no CACHE TABLE"),
    ("CACHE TABLE fence_cached AS SELECT 1 AS a", "takes no CACHE TABLE"),
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def tables() -> Iterator[None]:
    """Make a table of each kind, with one row."""
    with sql_server.session() as loads:
        loads.run("CREATE TABLE IF NOT EXISTS ops.fence (a int) USING iceberg")
        loads.run("INSERT OVERWRITE ops.fence VALUES (1)")
        location = f"{settings().hdfs_uri}{settings().warehouse_path}/ops/fence_raw"
        loads.run(
            "CREATE EXTERNAL TABLE IF NOT EXISTS ops.fence_raw (a int) PARTITIONED BY (batch bigint) STORED AS PARQUET "
            f"LOCATION '{location}'"
        )
        loads.run("INSERT OVERWRITE ops.fence_raw PARTITION (batch = 1) VALUES (1)")
    yield
    with sql_server.session() as loads:
        loads.run("DROP TABLE ops.fence")
        loads.run("DROP TABLE ops.fence_raw")


def test_a_day_of_the_streams_events_can_be_asked_for() -> None:
    location = f"{settings().hdfs_uri}{settings().warehouse_path}/ops/fence_events"
    with sql_server.session() as loads, sql_server.session("readers") as readers:
        loads.run(
            f"CREATE EXTERNAL TABLE ops.fence_events (a int) PARTITIONED BY (received_on date) STORED AS PARQUET LOCATION '{location}'"
        )
        for day in (1, 2):
            loads.run(f"INSERT OVERWRITE ops.fence_events PARTITION (received_on = DATE '2026-01-0{day}') VALUES ({day})")
        for asked in ("= DATE '2026-01-02'", "> '2026-01-01'"):
            assert readers.run(f"SELECT a FROM ops.fence_events WHERE received_on {asked}") == [(2,)]
        loads.run("DROP TABLE ops.fence_events")


USERS = ("reader", "etl")


@pytest.fixture(scope="module", params=USERS)
def user(request: pytest.FixtureRequest) -> str:
    """The name that somebody claims to have."""
    return str(request.param)


@pytest.fixture
def readers(user: str) -> Iterator[Session]:
    with sql_server.session("readers", user=user) as session:
        yield session


def content() -> list[tuple[object, ...]]:
    with sql_server.session() as loads:
        return [
            *loads.run("SELECT * FROM ops.fence"),
            *loads.run("SELECT * FROM ops.fence_raw"),
            *sorted(loads.run("SHOW TABLES IN ops LIKE 'fence*'")),
            *loads.run("SHOW DATABASES LIKE 'fence*'"),
        ]


def test_reads_are_answered(readers: Session) -> None:
    assert readers.run("SELECT a FROM ops.fence") == [(1,)]
    assert readers.run("SELECT a, batch FROM ops.fence_raw") == [(1, 1)]


def test_every_write_is_refused_and_changes_nothing() -> None:
    before = content()
    asked = [("reader", statement) for statement in WRITES] + [("etl", statement) for statement in WRITES[:1] + WRITES[5:]]

    def refused(one: tuple[str, str]) -> tuple[str, str]:
        user, statement = one
        with sql_server.session("readers", user=user) as readers, pytest.raises(WarehouseError):
            readers.run(statement)
        return one

    # Iceberg tries for seconds to remove the file that it was not allowed to write.
    with ThreadPoolExecutor(len(asked)) as pool:
        assert list(pool.map(refused, asked)) == asked
    assert content() == before


def test_every_read_of_a_local_file_is_refused(readers: Session) -> None:
    for statement in FILE_READS:
        with pytest.raises(WarehouseError):
            readers.run(statement.format(secrets=settings().passfile))


def test_a_file_stays_closed_when_the_session_lifts_the_setting(readers: Session) -> None:
    readers.run("SET spark.sql.runSQLOnFiles = true")
    with pytest.raises(WarehouseError):
        readers.run("SELECT * FROM text.`file:///etc/passwd`")
    readers.run("RESET spark.sql.runSQLOnFiles")


def test_nothing_beyond_the_statement_is_reached(readers: Session) -> None:
    here = settings()
    for catalog, server in (("own", "readers_metastore"), ("loads", "metastore")):
        readers.run(f"SET spark.sql.catalog.{catalog} = org.apache.iceberg.spark.SparkCatalog")
        readers.run(f"SET spark.sql.catalog.{catalog}.type = hive")
        readers.run(f"SET spark.sql.catalog.{catalog}.uri = thrift://{here.host}:{here.port(server)}")
    # Its own metastore, which may only read, is the one that it reaches.
    assert readers.run("SHOW TABLES IN own.ops LIKE 'fence'")
    for statement, said in REACHES:
        with pytest.raises(WarehouseError, match=said):
            readers.run(statement.format(loads=f"{here.loads_host}:{here.port('loads')}"))
    assert readers.run("SELECT a FROM ops.fence") == [(1,)]


def test_every_server_listens_on_this_machine_only() -> None:
    listening = {
        (name, connection.laddr.port): connection.laddr.ip
        for name, state in supervision.states().items()
        if state["pid"]
        for connection in psutil.Process(state["pid"]).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    asked = ("postgres", "namenode", "datanode", "metastore", "readers_metastore", "loads", "readers")
    assert {(name, settings().port(name)) for name in asked} <= listening.keys()
    assert {key: ip for key, ip in listening.items() if not ipaddress.ip_address(ip.removeprefix("::ffff:")).is_loopback} == {}


def test_environment_holds_nothing_but_the_servers_own(readers: Session) -> None:
    ((user, supervisor),) = readers.run("SELECT '${system:user.name}', '${env:SUPERVISOR_SERVER_URL}'")
    if machine.has_own_reader(jars.SPARK_HOME):
        assert user == settings().readers_os_user
    # A variable that is not there is not replaced.
    assert supervisor == "${env:SUPERVISOR_SERVER_URL}"


def test_server_stands_back_in_a_session_of_its_own() -> None:
    pid = supervision.states()["readers"]["pid"]
    assert (os.getsid(pid), psutil.Process(pid).nice()) == (pid, settings().readers_nice)
    if (autogroup := Path(f"/proc/{pid}/autogroup")).is_file():
        assert autogroup.read_text().split()[-1] == str(settings().readers_nice)


@pytest.mark.parametrize("value", ["' OR '1' = '1", "\\' OR true --", "\\", "a\nb", "ü'\"", "${env:PATH}", "\\${spark.app.name}"])
def test_the_server_reads_a_literal_as_the_value_that_it_was(readers: Session, value: str) -> None:
    assert readers.run(f"SELECT {sql_server.literal(value)}") == [(value,)]
