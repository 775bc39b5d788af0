"""The sandbox: the one place where analysts write, with a quota and an end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from etl import sandbox, sql_server
from etl.settings import settings
from etl.sql_server import Session, StatementError
from etl.stack.preparation import set_quota
from etl.storage import storage
from tests.readers import environment

ROWS = """
SELECT * FROM VALUES
    (1, CAST(12.50 AS decimal(12, 2)), TIMESTAMP '2026-01-02 03:04:05.678901', DATE '2026-01-02', true, 'größer', array(1, 2)),
    (2, NULL, NULL, NULL, NULL, NULL, NULL)
AS t (id, amount, transacted_at, transacted_on, is_fraud, text, many)
"""
MEGABYTE = 2**20
AGES = {"old": 30.1, "young": 29.9}


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    """The sandbox holds nothing before and after."""

    def clear() -> None:
        for name in sandbox.files().list(settings().sandbox_path):
            sandbox.files().delete(f"{settings().sandbox_path}/{name}", recursive=True)

    clear()
    yield
    clear()


@pytest.fixture
def ana() -> Iterator[Session]:
    with sql_server.session("readers", user="ana") as session:
        yield session


def names() -> list[str]:
    return [one.name for one in sandbox.tables()]


def make_older(path: str, days: float) -> None:
    """Let HDFS say that files were written so many days ago."""
    at = int((time.time() - days * 86400) * 1000)
    for folder, _, members in sandbox.files().walk(path):
        for one in members:
            sandbox.files().set_times(f"{folder}/{one}", modification_time=at)
        sandbox.files().set_times(folder, modification_time=at)


def test_an_analyst_makes_changes_and_drops_tables_by_sql(ana: Session) -> None:
    ana.run(f"CREATE TABLE sandbox.ana.mine AS {ROWS}")
    assert ana.run("SELECT * FROM sandbox.ana.mine ORDER BY id") == ana.run(ROWS)
    with pytest.raises(StatementError, match=r"`ana`.`mine`.* already exists"):
        ana.run(f"CREATE TABLE sandbox.ana.mine AS {ROWS}")
    ana.run("INSERT INTO sandbox.ana.mine (id) VALUES (3)")
    ana.run("DELETE FROM sandbox.ana.mine WHERE id = 2")
    assert ana.run("SELECT id FROM sandbox.ana.mine ORDER BY id") == [(1,), (3,)]
    assert ana.run("SELECT count(*) FROM sandbox.ana.mine.snapshots") == [(3,)]
    assert ana.run("SHOW TABLES IN sandbox.ana") == [("ana", "mine", False)]
    assert names() == ["ana.mine"]
    shown = subprocess.run([sys.executable, "-m", "etl.sandbox"], env=environment(), capture_output=True, text=True, check=True).stdout
    assert "sandbox.ana.mine" in shown
    assert f"of {settings().sandbox_quota_mb:,} MB are taken" in shown
    ana.run("DROP TABLE sandbox.ana.mine")
    assert names() == []


def test_the_names_that_users_give_do_not_stop_the_expiry(ana: Session) -> None:
    # Of a table's own files, of a level above, with signs that a path or a URL means something by; and some that only HDFS could make.
    spaces = ("metadata", "metadata.metadata", "data", "metadata.data", "`a b`", "` `", "`größe`", "`$-_`", "none", "`version-hint`")
    for space in spaces:
        ana.run(f"CREATE TABLE sandbox.{space}.mine AS SELECT 1 AS a")
    root = settings().sandbox_path
    deep = "/".join(["deep"] * 900)
    for folder in ("x.metadata.json", "metadata/x.metadata.json", "a%2Fb", "a?b=c#d", deep):
        sandbox.files().makedirs(f"{root}/{folder}")
    assert sorted(names()) == sorted(f"{one.replace('`', '')}.mine" for one in spaces)
    make_older(root, AGES["old"])
    sandbox.expire(30)
    assert sandbox.files().list(root) == []
    # The sandbox itself stays, and is open.
    ana.run("CREATE TABLE sandbox.ana.mine AS SELECT 1 AS a")
    assert names() == ["ana.mine"]


def test_the_loads_own_nothing_there_and_need_nothing(ana: Session, hive: Session) -> None:
    ana.run("CREATE TABLE sandbox.mine AS SELECT 1 AS a")
    owners = {status["owner"] for _, status in sandbox.files().list(f"{settings().sandbox_path}/mine/data", status=True)}
    assert owners == {settings().hdfs_readers_user}
    # What an analyst writes is no table of the warehouse.
    with pytest.raises(StatementError):
        hive.run("SELECT * FROM sandbox.mine")


def test_a_table_elsewhere_stays_out_of_reach(ana: Session) -> None:
    for statement in (
        f"CREATE TABLE sandbox.mine (a int) LOCATION '{settings().hdfs_uri}{settings().warehouse_path}/core/mine'",
        f"CREATE TABLE sandbox.mine TBLPROPERTIES ('write.data.path' = '{settings().hdfs_uri}{settings().warehouse_path}/core/mine') "
        "AS SELECT 1 AS a",
        "CREATE TABLE sandbox.`../warehouse/core/mine` AS SELECT 1 AS a",
    ):
        with pytest.raises(StatementError):
            ana.run(statement)
    assert storage().status(f"{settings().warehouse_path}/core/mine", strict=False) is None


def test_personal_columns_stay_closed(ana: Session, hive: Session) -> None:
    place = f"{settings().hdfs_uri}{settings().warehouse_path}/core/customers_personal/fence"
    hive.run(f"CREATE EXTERNAL TABLE ops.personal (a int) STORED AS PARQUET LOCATION '{place}'")
    try:
        hive.run("INSERT INTO ops.personal VALUES (1)")
        with pytest.raises(StatementError, match=r"Permission denied: user=reader"):
            ana.run("CREATE TABLE sandbox.mine AS SELECT * FROM ops.personal")
    finally:
        hive.run("DROP TABLE ops.personal")
        storage().delete(f"{settings().warehouse_path}/core/customers_personal/fence", recursive=True)
    assert names() == []


def test_a_table_that_the_quota_has_no_room_for_is_refused_and_leaves_none(ana: Session) -> None:
    set_quota(settings().sandbox_path, 9 * MEGABYTE)
    try:
        with pytest.raises(StatementError, match=r"the sandbox has no room for it: .*; drop what nobody needs"):
            ana.run("CREATE TABLE sandbox.mine AS SELECT id, sha2(CAST(id AS string), 256) AS text FROM range(400000)")
        # Nor files, which would take the room of others.
        assert int(sandbox.files().content(settings().sandbox_path)["spaceConsumed"]) == 0
        ana.run("CREATE TABLE sandbox.mine AS SELECT 1 AS a")
        with pytest.raises(StatementError, match="already exists"):
            ana.run("CREATE TABLE sandbox.mine AS SELECT 2 AS a")
        taken = sandbox.files().content(settings().sandbox_path)["spaceConsumed"]
        with pytest.raises(StatementError, match="the sandbox has no room for it"):
            ana.run("CREATE OR REPLACE TABLE sandbox.mine AS SELECT id, sha2(CAST(id AS string), 256) AS text FROM range(400000)")
        assert sandbox.files().content(settings().sandbox_path)["spaceConsumed"] == taken
        assert ana.run("SELECT * FROM sandbox.mine") == [(1,)]
    finally:
        set_quota(settings().sandbox_path, settings().sandbox_quota_mb * MEGABYTE)


def test_more_rows_than_an_answer_may_have_go_into_a_table(ana: Session) -> None:
    rows = 4_000_000
    with pytest.raises(StatementError, match="readers_result_mb"):
        ana.run(f"SELECT id, id AS other, id AS third FROM range(0, {rows}, 1, 1)")
    ana.run(f"CREATE TABLE sandbox.mine AS SELECT id, id AS other, id AS third FROM range(0, {rows}, 1, 1)")
    assert ana.run("SELECT count(*) FROM sandbox.mine") == [(rows,)]


def test_old_tables_and_what_killed_statements_left_are_removed(ana: Session) -> None:
    for name, age in AGES.items():
        ana.run(f"CREATE TABLE sandbox.ana.{name} AS SELECT 1 AS a")
        make_older(f"{settings().sandbox_path}/ana/{name}", age)
    # A day's change makes no table younger.
    ana.run("INSERT INTO sandbox.ana.old VALUES (2)")
    for name, age in (("killed", 1.1), ("going_on", 0.9)):
        sandbox.files().write(f"{settings().sandbox_path}/{name}/data/part.parquet", b"PAR1")
        make_older(f"{settings().sandbox_path}/{name}", age)
    assert sandbox.expire(30) == ["ana.old"]
    assert names() == ["ana.young"]
    assert sorted(sandbox.files().list(settings().sandbox_path)) == ["ana", "going_on"]
    assert sandbox.expire(30) == []
    assert ana.run("SELECT * FROM sandbox.ana.young") == [(1,)]


@pytest.mark.slow
def test_a_statement_whose_client_is_killed_makes_the_whole_table_or_none(ana: Session) -> None:
    statement = "CREATE TABLE sandbox.mine AS SELECT id, sha2(CAST(id AS string), 512) AS text FROM range(0, 1500000, 1, 3)"
    began = time.monotonic()
    ana.run(statement)
    whole = time.monotonic() - began
    ana.run("DROP TABLE sandbox.mine")
    for part in (0.3, 0.6, 0.9):
        process = subprocess.Popen([sys.executable, "-m", "etl.query", "query", statement], env=environment())
        time.sleep(1 + part * whole)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        # The server goes on, or does not: either way there is never a part of the table.
        for _ in range(10):
            if names():
                assert ana.run("SELECT count(*) FROM sandbox.mine") == [(1500000,)]
            time.sleep(whole / 5)
        ana.run("DROP TABLE IF EXISTS sandbox.mine")
