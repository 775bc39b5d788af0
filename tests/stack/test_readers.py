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
from tests.readers import system_properties

SENTENCE = "is refused: this server only reads, and writes only tables of the catalog sandbox"
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
    "CREATE TABLE ops.fence_new AS SELECT 1 AS a",
    "CREATE OR REPLACE TABLE ops.fence USING iceberg AS SELECT 1 AS a",
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
    "ANALYZE TABLE ops.fence COMPUTE STATISTICS",
    "COMMENT ON TABLE ops.fence IS 'mine'",
    "LOAD DATA INPATH '/tmp' INTO TABLE ops.fence_raw PARTITION (batch = 1)",
    "INSERT OVERWRITE DIRECTORY '/tmp/fence' USING csv SELECT 1",
)
DERBY = "url 'jdbc:derby:memory:fence;create=true', driver 'org.apache.derby.jdbc.EmbeddedDriver', dbtable 'a'"
REFUSED = (
    # Local files, programs and files of HDFS that are no table's.
    "SELECT * FROM text.`file:///etc/passwd`",
    "SELECT * FROM parquet.`hdfs:///warehouse/core/customers_personal`",
    "SELECT * FROM sandbox.`hdfs://127.0.0.1/warehouse/core/customers_personal`",
    "CREATE TEMPORARY VIEW fence USING text OPTIONS (path 'file:{secrets}')",
    "ADD JAR '/etc/passwd'",
    "ADD FILE '/etc/passwd'",
    "ADD ARCHIVE '/etc/missing.zip'",
    "LIST JARS",
    "LOAD DATA LOCAL INPATH '/etc/passwd' INTO TABLE ops.fence_raw PARTITION (batch = 1)",
    "INSERT OVERWRITE LOCAL DIRECTORY '/tmp/fence' USING csv SELECT 1",
    "SELECT TRANSFORM (a) USING 'cat /etc/passwd' FROM ops.fence",
    "SELECT input_file_name() FROM ops.fence",
    "SELECT from_xml('<a/>', 'a int')",
    # Java.
    "SELECT java_method('java.lang.System', 'exit', 1)",
    "SELECT try_reflect('java.lang.System', 'lineSeparator')",
    "SELECT builtin.reflect('java.lang.System', 'lineSeparator')",
    "SELECT IDENTIFIER('reflect')('java.lang.System', 'lineSeparator')",
    "SELECT a FROM ops.fence ORDER BY (SELECT reflect('java.lang.System', 'getProperty', 'user.name'))",
    "EXPLAIN SELECT reflect('java.lang.System', 'lineSeparator')",
    "CREATE TEMPORARY VIEW fence AS SELECT reflect('java.lang.System', 'lineSeparator')",
    "VALUES (reflect('java.lang.System', 'lineSeparator'))",
    "CREATE TEMPORARY FUNCTION fence AS 'org.apache.hadoop.hive.ql.udf.generic.GenericUDFReflect'",
    "CREATE FUNCTION ops.fence AS 'org.apache.hadoop.hive.ql.udf.generic.GenericUDFReflect'",
    "CREATE TEMPORARY FUNCTION fence(a int) RETURNS int RETURN a",
    f"CREATE TEMPORARY VIEW fence USING jdbc OPTIONS ({DERBY}, sessionInitStatement 'CREATE SCHEMA s')",
    f"CREATE TABLE sandbox.fence.a (a int) USING jdbc OPTIONS ({DERBY})",
    "CREATE TEMPORARY VIEW fence USING jdbc OPTIONS (url 'jdbc:hive2://{loads}/', driver 'org.apache.hive.jdbc.HiveDriver', dbtable 'a')",
    # Settings, and statements within statements.
    "SET spark.sql.catalog.x = org.apache.spark.sql.execution.datasources.v2.jdbc.JDBCTableCatalog",
    "SET spark.sql.runSQLOnFiles = true",
    "SET spark.sql.variable.substitute = true",
    "SET hive.metastore.uris = thrift://127.0.0.1:9083",
    "RESET",
    "EXECUTE IMMEDIATE 'SELECT 1'",
    "BEGIN SELECT 1; END",
    "DECLARE VARIABLE fence int DEFAULT 1",
    "SET VARIABLE fence = 2",
    # The memory that all sessions share, and what they see of each other.
    "CACHE TABLE ops.fence",
    "CACHE TABLE fence_cached AS SELECT 1 AS a",
    "CLEAR CACHE",
    "REFRESH TABLE ops.fence",
    "CREATE GLOBAL TEMPORARY VIEW fence AS SELECT 1 AS a",
    "SELECT /*+ BROADCAST(a) */ * FROM ops.fence AS a",
    # Relations that are not listed, and what a relation is told.
    "SELECT * FROM STREAM ops.fence",
    "SELECT * FROM ops.fence WITH ('path' = '/etc/passwd')",
    "SELECT * FROM ops.fence.entries",
    "SELECT * FROM ops.fence.all_data_files",
    "SELECT * FROM IDENTIFIER('ops.' || 'fence')",
    "SELECT * FROM ops.fence TIMESTAMP AS OF (SELECT now())",
    "SELECT * FROM python_worker_logs()",
    # What is worked out while the statement is analysed, and arguments by which plan or memory grow.
    "SELECT * FROM ops.fence TIMESTAMP AS OF timestamp_seconds(aggregate(sequence(1, 1000000), 0L, (a, x) -> a + x))",
    "SELECT from_json('{}', concat('a ', 'int'))",
    "SELECT approx_count_distinct(id, 0.000001) FROM range(10)",
    "SELECT count_min_sketch(id, 0.0000001D, 0.99D, 1) FROM range(10)",
    "SELECT window(now(), '1000 days', '1 second')",
    "SELECT stack(1000000, 1)",
    # Tables of the sandbox that would reach further.
    "USE NAMESPACE `../tmp`",
    "USE sandbox.`../tmp`",
    "CREATE TABLE sandbox.fence.a (a int) LOCATION '/tmp/fence'",
    "CREATE TABLE sandbox.fence.a (a int DEFAULT 1)",
    "CREATE TABLE sandbox.fence.a (a int, b int GENERATED ALWAYS AS (a + 1))",
    "CREATE TABLE sandbox.fence.a (a int CHECK (a > 1))",
    "CREATE TABLE sandbox.fence.a (a int) USING parquet",
    "CREATE TABLE sandbox.fence.a (a int) TBLPROPERTIES ('write.location-provider.impl' = 'a.b.C')",
    "CREATE TABLE sandbox.fence.`a/../../b` (a int)",
    "CREATE TABLE sandbox.`..`.a (a int)",
    "CREATE NAMESPACE sandbox.fence LOCATION '/tmp/fence'",
    "CALL sandbox.system.expire_snapshots('fence.a')",
)
# Constants that Spark would work out while it analyses: none of them is one here.
NO_CONSTANTS = (
    "SELECT * FROM VALUES (repeat('x', 2000000000))",
    "SELECT * FROM VALUES ('aa' RLIKE '(a+)+b')",
    "SELECT id FROM range(10) LIMIT if('aa' RLIKE '(a+)+b', 1, 2)",
    "WITH a AS (SELECT id FROM range(10) LIMIT levenshtein('a', 'b')) SELECT * FROM a",
    "SELECT percentile(id, array(0.1, position('a' IN 'b'))) FROM range(5)",
    "SELECT * FROM (SELECT 1 AS a, 'x' AS b) PIVOT (count(a) FOR b IN (repeat('x', 1)))",
)
ANSWERED = (
    "SHOW DATABASES",
    "SHOW TABLES IN ops LIKE 'fence*'",
    "SHOW TABLE EXTENDED IN ops LIKE 'fence'",
    "SHOW COLUMNS IN ops.fence",
    "SHOW CREATE TABLE ops.fence",
    "SHOW TBLPROPERTIES ops.fence",
    "SHOW PARTITIONS ops.fence_raw",
    "SHOW FUNCTIONS LIKE 'sum'",
    "SHOW CATALOGS",
    "SHOW CURRENT NAMESPACE",
    "DESCRIBE EXTENDED ops.fence",
    "DESCRIBE ops.fence a",
    "DESCRIBE DATABASE ops",
    "DESCRIBE FUNCTION sum",
    "DESCRIBE QUERY SELECT 1 AS a",
    "EXPLAIN EXTENDED SELECT * FROM ops.fence",
    "SET -v",
    "SET spark.sql.session.timeZone",
    "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 3) SELECT * FROM r",
    "SELECT b, row_number() OVER (ORDER BY b) FROM VALUES (array(1, 2)) AS t(a) LATERAL VIEW explode(a) AS b",
    "SELECT a, sum(b) FROM VALUES (1, 2), (1, 3) AS t(a, b) GROUP BY ROLLUP (a) HAVING sum(b) > 1",
    "SELECT * FROM (SELECT 1 AS a, 2 AS b) PIVOT (sum(b) FOR a IN (1, 2))",
    "SELECT EXISTS (SELECT 1), (SELECT max(a) FROM ops.fence), transform(array(1), x -> x + 1)",
    "FROM ops.fence |> WHERE a > 0 |> AGGREGATE count(*) AS c",
    *(f"SELECT * FROM ops.fence.{table}" for table in ("snapshots", "history", "refs", "files")),
    "SELECT * FROM ops.fence TIMESTAMP AS OF now()",
    "SELECT any_value(a), first(a), last(a), approx_count_distinct(a) FROM ops.fence",
    "VALUES current_date",
    "SELECT * FROM OPS.FENCE",
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
    asked = [("reader", statement) for statement in WRITES] + [("etl", statement) for statement in WRITES]

    def refused(one: tuple[str, str]) -> tuple[str, str]:
        user, statement = one
        with sql_server.session("readers", user=user) as readers, pytest.raises(WarehouseError, match=SENTENCE):
            readers.run(statement)
        return one

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(refused, asked)) == asked
    assert content() == before


def test_what_is_not_listed_is_refused_in_one_sentence_before_any_of_it_runs(readers: Session) -> None:
    here = settings()
    words = {"secrets": str(here.passfile), "loads": f"{here.loads_host}:{here.port('loads')}"}
    for statement in REFUSED:
        for name, value in words.items():
            statement = statement.replace(f"{{{name}}}", value)
        with pytest.raises(WarehouseError, match=SENTENCE):
            readers.run(statement)
    assert readers.run("SELECT a FROM ops.fence") == [(1,)]


def test_what_makes_much_of_little_is_no_constant(readers: Session) -> None:
    for statement in NO_CONSTANTS:
        with pytest.raises(WarehouseError, match=r"INLINE_TABLE|UNFOLDABLE|NON_FOLDABLE|NON_LITERAL|foldable"):
            readers.run(statement)
    assert "IS_UNFOLDABLE" in str(readers.run("EXPLAIN SELECT id FROM range(10) LIMIT length(repeat('a', 5))"))
    assert readers.run("SELECT repeat('a', 2), split('a,b', ',')[1], 'ab' LIKE 'a%', position('b' IN 'ab'), trim(' a ')") == [
        ("aa", "b", True, 2, "a")
    ]


def test_what_is_listed_is_answered(readers: Session) -> None:
    for statement in ANSWERED:
        assert readers.run(statement), statement
    assert readers.run("SHOW VIEWS IN ops") == []


def test_a_session_has_a_time_zone_and_a_view_of_its_own() -> None:
    with sql_server.session("readers") as one, sql_server.session("readers") as other:
        one.run("SET TIME ZONE 'Asia/Tokyo'")
        one.run("CREATE TEMPORARY VIEW fence AS SELECT current_timezone() AS zone")
        assert one.run("SELECT zone FROM fence") == [("Asia/Tokyo",)]
        assert other.run("SELECT current_timezone()") == [("UTC",)]
        with pytest.raises(WarehouseError, match="fence"):
            other.run("SELECT zone FROM fence")
        one.run("DROP VIEW fence")
        one.run("RESET spark.sql.session.timeZone")
        assert one.run("SELECT current_timezone()") == [("UTC",)]


def test_a_session_opens_with_a_database_and_without_settings_that_are_not_listed() -> None:
    asked = {
        "use:database": "ops",
        "set:hiveconf:spark.sql.session.timeZone": "Asia/Tokyo",
        "set:hiveconf:spark.sql.runSQLOnFiles": "true",
        "spark.sql.runSQLOnFiles": "true",
        "set:hivevar:spark.sql.runSQLOnFiles": "true",
        "set:system:readers.fence": "set",
        "set:system:user.timezone": "Asia/Tokyo",
        "set:env:FENCE": "set",
        "set:metaconf:hive.metastore.try.direct.sql": "false",
        "hive.server2.proxy.user": "etl",
        "no.such.setting": "a",
    }
    with sql_server.session("readers", configuration=asked) as readers:
        assert readers.run("SELECT a, current_timezone() FROM ops.fence") == [(1, "Asia/Tokyo")]
        assert readers.run("SET spark.sql.runSQLOnFiles") == [("spark.sql.runSQLOnFiles", "false")]
    properties = system_properties(supervision.states()["readers"]["pid"])
    assert "readers.fence" not in properties
    assert properties["user.timezone"] != "Asia/Tokyo"
    with pytest.raises(WarehouseError, match=SENTENCE), sql_server.session("readers", configuration={"use:database": "ops.`/`"}):
        pass


def test_no_embedded_database_is_on_the_class_path() -> None:
    pid = supervision.states()["readers"]["pid"]
    opened = {Path(file.path).name for file in psutil.Process(pid).open_files()}
    assert any(name.startswith("spark-sql_") for name in opened)
    assert [name for name in opened if name.startswith(("derby", "hive-jdbc", "rocksdb", "leveldb", "datanucleus"))] == []


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


def test_neither_environment_nor_properties_are_put_into_a_statement(readers: Session) -> None:
    assert readers.run("SELECT '${system:user.name}', '${env:PATH}'") == [("${system:user.name}", "${env:PATH}")]


def test_environment_holds_nothing_but_the_servers_own() -> None:
    process = psutil.Process(supervision.states()["readers"]["pid"])
    if machine.has_own_reader(jars.SPARK_HOME):
        assert process.username() == settings().readers_os_user
    assert {name for name in process.environ() if name.startswith(("SUPERVISOR", "WAREHOUSE", "PG"))} == set()


def test_server_stands_back_in_a_session_of_its_own() -> None:
    pid = supervision.states()["readers"]["pid"]
    assert (os.getsid(pid), psutil.Process(pid).nice()) == (pid, settings().readers_nice)
    if (autogroup := Path(f"/proc/{pid}/autogroup")).is_file():
        assert autogroup.read_text().split()[-1] == str(settings().readers_nice)


@pytest.mark.parametrize("value", ["' OR '1' = '1", "\\' OR true --", "\\", "a\nb", "ü'\"", "${env:PATH}", "\\${spark.app.name}"])
def test_the_server_reads_a_literal_as_the_value_that_it_was(readers: Session, value: str) -> None:
    assert readers.run(f"SELECT {sql_server.literal(value)}") == [(value,)]
