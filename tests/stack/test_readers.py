"""What the readers server refuses, whatever user name is claimed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from etl import sql_server
from etl.errors import WarehouseError
from etl.settings import settings
from etl.sql_server import Session
from etl.stack import jars, machine

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


@pytest.fixture(scope="module", params=("reader", "etl"))
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


def test_every_write_is_refused_and_changes_nothing(user: str) -> None:
    before = content()

    def refused(statement: str) -> str:
        with sql_server.session("readers", user=user) as readers, pytest.raises(WarehouseError):
            readers.run(statement)
        return statement

    # Iceberg tries for seconds to remove the file that it was not allowed to write.
    with ThreadPoolExecutor(6) as pool:
        assert tuple(pool.map(refused, WRITES)) == WRITES
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


def test_environment_holds_nothing_but_the_servers_own(readers: Session) -> None:
    ((user,),) = readers.run("SELECT reflect('java.lang.System', 'getProperty', 'user.name')")
    if machine.has_own_reader(jars.SPARK_HOME):
        assert user == settings().readers_os_user
    assert readers.run("SELECT reflect('java.lang.System', 'getenv', 'SUPERVISOR_SERVER_URL')") == [("null",)]


@pytest.mark.parametrize("value", ["' OR '1' = '1", "\\' OR true --", "\\", "a\nb", "ü'\"", "${env:PATH}", "\\${spark.app.name}"])
def test_the_server_reads_a_literal_as_the_value_that_it_was(readers: Session, value: str) -> None:
    assert readers.run(f"SELECT {sql_server.literal(value)}") == [(value,)]
