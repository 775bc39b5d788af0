"""Statements of Spark's whole grammar leave nothing behind on the readers server but tables of the sandbox."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import psutil
import pytest
from pyhive import hive
from TCLIService import ttypes
from thrift.transport.TTransport import TTransportException

from etl import sandbox, sql_server
from etl.settings import settings
from etl.stack import configuration, jars, machine
from etl.storage import storage
from tests.readers import given, started, system_properties
from tests.statements import COLUMNS, alternatives, statements

SEED = int(os.environ.get("WAREHOUSE_TEST_SEED", "18"))
ANALYSED = 2000
"""Statements that pass analysis, no two alike."""
EACH = 10
"""Statements of each alternative of `statement`."""
ROUND = 240
"""Statements between two looks at the server."""
SESSIONS = 3
STATEMENT_SECONDS = 20
TEST_SECONDS = 2400
ROW = "{}, 1.5, 'a', DATE '2026-01-02', TIMESTAMP '2026-01-02 03:04:05', true, array(1, 2)"
LAZY_PROPERTIES = {"arrow.enable_null_check_for_get": "false", "arrow.enable_unsafe_memory_access": "true"}
"""Spark sets them when it first needs Arrow."""
READING = {
    "open", "getfileinfo", "listStatus", "contentSummary", "checkAccess", "getAclStatus", "getEZForPath", "getXAttrs", "listXAttrs",
    "quotaUsage", "isFileClosed", "fsck", "getErasureCodingPolicy", "listSnapshottableDirectory",
}  # fmt: skip
"""HDFS commands that change nothing."""
AUDIT = re.compile(r"^(\S+) allowed=(\w+)\tugi=([^\t]*)\tip=[^\t]*\tcmd=(\w+)[^\t]*\tsrc=([^\t]*)\tdst=([^\t]*)")


@dataclass(frozen=True)
class Answer:
    """What became of a statement."""

    kind: str
    text: str
    began: str
    ended: str
    problem: str

    @property
    def is_analysed(self) -> bool:
        return not self.problem


@dataclass
class Asked:
    """Everything that was asked so far."""

    answers: list[Answer] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def analysed(self) -> set[str]:
        return {answer.text for answer in self.answers if answer.is_analysed}

    def during(self, moment: str) -> list[str]:
        return [answer.text for answer in self.answers if answer.began <= moment <= answer.ended]


def now() -> str:
    """As the audit log writes it."""
    return datetime.now().isoformat(timespec="milliseconds").replace(".", ",")


@pytest.fixture(scope="module")
def marker() -> Iterator[Path]:
    """A folder of this machine in which everybody may write."""
    folder = Path(tempfile.mkdtemp(prefix="walk-"))
    (folder / "walk.jar").write_text("nothing")
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def snapshot() -> Iterator[str]:
    """Tables that the statements name; the number of a snapshot of one of them."""
    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
    files = f"{settings().hdfs_uri}{settings().warehouse_path}/ops/walk_files"
    personal = f"{settings().warehouse_path}/core/customers_personal/walk"
    with sql_server.session() as loads:
        loads.run(f"CREATE TABLE IF NOT EXISTS ops.walk ({columns}) USING iceberg")
        loads.run(f"INSERT OVERWRITE ops.walk VALUES ({ROW.format(1)}), ({ROW.format(2)})")
        loads.run(f"CREATE EXTERNAL TABLE IF NOT EXISTS ops.walk_files ({columns}) STORED AS PARQUET LOCATION '{files}'")
        loads.run(f"INSERT OVERWRITE ops.walk_files VALUES ({ROW.format(3)})")
        loads.run(
            f"CREATE EXTERNAL TABLE IF NOT EXISTS ops.walk_personal (a int) STORED AS PARQUET LOCATION '{settings().hdfs_uri}{personal}'"
        )
        loads.run("INSERT OVERWRITE ops.walk_personal VALUES (1)")
        ((number,),) = loads.run("SELECT max(snapshot_id) FROM ops.walk.snapshots")
    yield str(number)
    with sql_server.session() as loads:
        for name in ("walk", "walk_files", "walk_personal"):
            loads.run(f"DROP TABLE ops.{name}")
    storage().delete(personal, recursive=True)


@pytest.fixture(scope="module")
def audit_log() -> Path:
    """The stack's, of which the server of the test asks everything."""
    return configuration.hdfs_audit_log()


@pytest.fixture(scope="module")
def server(snapshot: str, audit_log: Path) -> Iterator[psutil.Process]:
    """A readers server of the test's own: what a statement breaks there stays broken for the test alone."""
    with given(readers_query_seconds=STATEMENT_SECONDS) as folder, started(folder):
        port = settings().port("readers")
        (pid,) = {
            one.pid for one in psutil.net_connections("tcp") if one.laddr and one.laddr.port == port and one.status == psutil.CONN_LISTEN
        }
        yield psutil.Process(pid)
        if storage().status(f"{settings().sandbox_path}/walk", strict=False):
            sandbox.files().delete(f"{settings().sandbox_path}/walk", recursive=True)


# ---- What may not change.


def open_files(process: psutil.Process) -> set[str]:
    """Return what a process has open, apart from its program and its scratch folder."""
    here = settings()
    own = (here.data_dir / "tmp", here.data_dir / "readers.log", here.jars_dir, jars.SPARK_HOME, machine.java_home().resolve())
    found = set()
    for entry in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            continue
        if target.startswith("/") and not any(Path(target).is_relative_to(folder) for folder in own):
            found.add(target)
    return found


def strange_connections(process: psutil.Process) -> set[tuple[object, ...]]:
    """Return connections that are neither a client's nor to HDFS, the readers' metastore, or the process itself."""
    connections = process.net_connections("tcp")
    own = {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN}
    known = own | {settings().port(name) for name in ("namenode", "datanode", "readers_metastore")}
    return {
        (one.raddr.ip, one.raddr.port) for one in connections if one.raddr and one.raddr.port not in known and one.laddr.port not in own
    }


def files_below(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.stat().st_size) for path in folder.rglob("*") if path.is_file()}


def seen_outside(server: psutil.Process, watcher: sql_server.Session, marker: Path) -> dict[str, object]:
    """Return all that statements of others may not change."""
    with sql_server.session("readers", user="later") as later:
        fresh = dict(later.run("SET"))
        answers = later.run("SELECT 1")
    with sql_server.session() as loads:
        tables = {(database, name) for (database,) in loads.run("SHOW DATABASES") for _, name, _ in loads.run(f"SHOW TABLES IN {database}")}
        counts = {name: loads.run(f"SELECT count(*) FROM ops.{name}") for name in ("walk", "walk_files", "walk_personal")}
        history = loads.run("SELECT * FROM ops.walk.history")
    return {
        "process": (server.pid, server.is_running(), server.uids().real, answers),
        "children": {child.pid for child in server.children(recursive=True)},
        "open files": open_files(server),
        "listening": {one.laddr for one in server.net_connections("tcp") if one.status == psutil.CONN_LISTEN},
        "connections": strange_connections(server),
        "system properties": LAZY_PROPERTIES | system_properties(server.pid),
        "settings of an open session": dict(watcher.run("SET")),
        "settings of a new session": fresh,
        "functions": set(watcher.run("SHOW USER FUNCTIONS")),
        "tables": tables,
        "rows": (counts, history),
        "files of this machine": files_below(marker) | files_below(settings().data_dir / "conf"),
    }


def changes(before: dict[str, object], after: dict[str, object]) -> dict[str, object]:
    """Return what differs: of sets and dictionaries only the items."""
    found: dict[str, object] = {}
    for name, old in before.items():
        new = after[name]
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found[name] = {key: (old.get(key), new.get(key)) for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
        elif isinstance(old, set) and isinstance(new, set):
            found[name] = {"more": new - old, "fewer": old - new}
        else:
            found[name] = (old, new)
    return found


def audit_lines(log: Path, since: str) -> Iterator[tuple[str, ...]]:
    """Return (time, allowed, user, command, source, target) of what the NameNode was asked."""
    for path in sorted(log.parent.glob(f"{log.name}*")):
        with path.open() as lines:
            for line in lines:
                if line[: len(since)] >= since and (parsed := AUDIT.match(line)):
                    yield parsed.groups()


# ---- Asking.


def asked_once(connection: hive.Connection, kind: str, text: str) -> Answer:
    """Run a statement and fetch all of its rows, for a bounded time."""
    began, problem, deadline = now(), "", time.monotonic() + STATEMENT_SECONDS + 15
    cursor = connection.cursor()
    try:
        cursor.execute(text, async_=True)
        states = ttypes.TOperationState
        while (told := cursor.poll(get_progress_update=False)).operationState in (states.PENDING_STATE, states.RUNNING_STATE):
            if time.monotonic() > deadline:
                cursor.cancel()
                return Answer(kind, text, began, now(), "it took too long")
            time.sleep(0.01)
        if told.operationState != states.FINISHED_STATE:
            problem = str(told.errorMessage)
        elif cursor.description is not None:
            rows = cursor.fetchall()
            # EXPLAIN answers what is wrong, as if it were a plan.
            if text.startswith("EXPLAIN") and rows and re.match(r"(org|java)\.|Error occurred", str(rows[0][0])):
                problem = " ".join(str(row[0]) for row in rows[:3])
    except hive.OperationalError as error:
        problem = str(getattr(getattr(error.args[0], "status", None), "errorMessage", None) or error)
    finally:
        # The server may have forgotten it already.
        with suppress(hive.OperationalError):
            cursor.close()
    return Answer(kind, text, began, now(), problem)


def prepared(connection: hive.Connection) -> None:
    """Make the tables of the sandbox that statements write, where one was dropped or altered."""
    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
    with connection.cursor() as cursor:
        cursor.execute("USE spark_catalog.default")
        for name in ("first", "second", "changed"):
            cursor.execute(f"CREATE OR REPLACE TABLE sandbox.walk.{name} ({columns}) USING iceberg")
        cursor.execute(f"INSERT INTO sandbox.walk.first VALUES ({ROW.format(1)}), ({ROW.format(2)})")


def connected() -> hive.Connection:
    here = settings()
    transport = sql_server.sasl_transport(here.readers_host, here.port("readers"), "walker", None, None)
    return hive.connect(thrift_transport=transport, username="walker")


def ask(work: Iterator[tuple[str, str]], count: int, asked: Asked) -> None:
    """Ask in a session of its own."""
    connection = connected()
    try:
        for number in range(count):
            if number % 20 == 0:
                with connection.cursor() as cursor:
                    cursor.execute("USE spark_catalog.default")
            with asked.lock:
                kind, text = next(work)
            try:
                answer = asked_once(connection, kind, text)
            except (TTransportException, OSError) as error:
                raise AssertionError(f"the server went away ({error}) at: {text}") from error
            with asked.lock:
                asked.answers.append(answer)
    finally:
        connection.close()


@pytest.mark.slow
@pytest.mark.timeout(TEST_SECONDS + 600)
def test_nothing_that_the_grammar_allows_reaches_beyond_the_sandbox(
    server: psutil.Process, audit_log: Path, snapshot: str, marker: Path
) -> None:
    asked, kinds = Asked(), [shortest for _, _, shortest in alternatives()]
    work = statements(SEED, hdfs=settings().hdfs_uri.removeprefix("hdfs://"), marker=str(marker), snapshots=(snapshot,))
    began, deadline = now(), time.monotonic() + TEST_SECONDS
    with sql_server.session("readers", user="watcher") as watcher, ThreadPoolExecutor(SESSIONS) as pool:
        watcher.run("SELECT 1")
        before = seen_outside(server, watcher, marker)
        while len(asked.analysed()) < ANALYSED or min(Counter(answer.kind for answer in asked.answers)[kind] for kind in kinds) < EACH:
            assert time.monotonic() < deadline, Counter(answer.problem[:80] for answer in asked.answers).most_common(20)
            first = len(asked.answers)
            connection = connected()
            prepared(connection)
            connection.close()
            list(pool.map(lambda _: ask(work, ROUND // SESSIONS, asked), range(SESSIONS)))
            # Whatever is closed late has time to be.
            found: dict[str, object] = {}
            for _ in range(5):
                found = changes(before, seen_outside(server, watcher, marker))
                if not found:
                    break
                time.sleep(1)
            assert not found, (found, [answer.text for answer in asked.answers[first:] if answer.is_analysed])
    here = settings()
    inside = (here.sandbox_path, "/tmp/hive-readers", f"{here.hdfs_uri}{here.sandbox_path}")
    closed = tuple(f"{here.warehouse_path}/{table.replace('.', '/')}" for table in configuration.PERSONAL_TABLES)
    for moment, allowed, user, command, source, target in audit_lines(audit_log, began):
        told = (moment, user, command, source, target)
        if user.split()[0] != here.hdfs_readers_user:
            # The loads server, while the test looks at the tables.
            assert user.split()[0] == here.hdfs_user, told
            assert not asked.during(moment), (told, asked.during(moment))
            continue
        if allowed != "true":
            continue
        assert command != "open" or not source.startswith(closed), (told, asked.during(moment))
        if command not in READING:
            assert all(path == "null" or path.startswith(inside) for path in (source, target)), (told, asked.during(moment))
