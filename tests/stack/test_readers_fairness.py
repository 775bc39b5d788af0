"""The readers server with two users: a heavy statement of one does not keep the other from an answer."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from pyhive.exc import OperationalError
from TCLIService import ttypes
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.Thrift import TMessageType, TType
from thrift.transport.TTransport import TTransportException

from etl import sql_server
from etl.errors import WarehouseError
from etl.settings import settings
from etl.sql_server import StatementError
from etl.stack import supervision, watch
from tests.readers import ENDLESS, PORT, given, started

SMALL = "SELECT count(*) FROM VALUES (1), (2), (3)"
SMALL_SECONDS = 30
LIMIT_SECONDS = 25
ORS = "SELECT count(*) FROM range(10) WHERE " + " OR ".join(f"id = {number}" for number in range(20000))
DOUBLED = "".join(f", part_{level} AS (SELECT l.a FROM part_{level - 1} l, part_{level - 1} r)" for level in range(1, 25))
NESTED_LOOPS = "aggregate(sequence(1, 1000000), {start}, (a, x) -> a + aggregate(sequence(1, 1000000), 0L, (b, y) -> b + y))"
TOO_LARGE = {
    "too many conditions": ORS,
    "a text that is too long": f"SELECT '{'a' * 1_000_001}'",
    "brackets in brackets": "SELECT " + "(" * 3000 + "1" + ")" * 3000,
    "a sum that is too deep": "SELECT " + " + ".join(["1"] * 3000),
    "queries that double each other": f"WITH part_0 AS (SELECT 1 AS a){DOUBLED} SELECT count(*) FROM part_24",
    "columns that double each other": "SELECT * FROM " + "(SELECT x + x AS x FROM " * 40 + "(SELECT id AS x FROM range(2))" + ")" * 40,
    "stars that triple each other": "SELECT * FROM " + "(SELECT *, *, * FROM " * 16 + "range(2)" + ")" * 16,
    "too many grouping sets": f"SELECT count(*) FROM range(2) GROUP BY CUBE({', '.join(f'id + {number}' for number in range(22))})",
    "types in each other": f"SELECT CAST(NULL AS {'struct<a:' * 190}int{'>' * 190})",
    "many types": f"SELECT CAST(NULL AS struct<{', '.join(f'c{number}:int' for number in range(20000))}>)",
    "schemas in each other": f"SELECT from_json('{{}}', '{'a struct<' * 190}b:int{'>' * 190}')",
    "an example of a schema": f"SELECT schema_of_json('{'[' * 150}{']' * 150}')",
    "long schemas": "SELECT " + ", ".join(["from_json('{}', '" + ", ".join(f"c{number} int" for number in range(1000)) + "')"] * 20),
    "a pattern that is a regular expression": "SHOW TABLES IN core LIKE '((.*)*)*b'",
    "too many joins": f"SELECT 1 FROM {' CROSS JOIN '.join(f'range(2) AS t{number}' for number in range(300))}",
    "too many subqueries": f"SELECT {', '.join(f'(SELECT max(id) + {number} FROM range(9))' for number in range(300))}",
    "too many windows": f"SELECT {', '.join(f'sum(id) OVER (PARTITION BY id % {number + 1})' for number in range(400))} FROM range(3)",
    "a long text doubled": f"SELECT length(x) FROM {'(SELECT concat(x, x) AS x FROM ' * 11}(SELECT '{'a' * 500000}' AS x){')' * 11}",
    "columns of one list that double each other": "SELECT * FROM (SELECT id AS a0, "
    + ", ".join(f"a{number} + a{number} AS a{number + 1}" for number in range(26))
    + " FROM range(10)) WHERE a26 > 5",
    "structs that double each other": "SELECT struct(s.*, s.*) AS s FROM (" * 22 + "SELECT struct(*) AS s FROM range(2)" + ")" * 22,
    "stars in functions": f"SELECT {', '.join(['concat(*, *, *)'] * 300)} FROM range(2)",
    "a table that is too wide": f"CREATE TABLE sandbox.ana.wide ({', '.join(f'c{number} int' for number in range(1001))})",
    "a wide table of a query": f"CREATE TABLE sandbox.ana.wide AS SELECT {', '.join(f'{number} AS c{number}' for number in range(1001))}",
    "values of PIVOT": "SELECT * FROM range(3) PIVOT ("
    + ", ".join(f"sum(id + {number}) AS s{number}" for number in range(300))
    + f" FOR id IN ({', '.join(map(str, range(10000)))}))",
    "columns of UNPIVOT": f"SELECT * FROM (SELECT {', '.join(f'{number} AS c{number}' for number in range(4000))}) "
    f"UNPIVOT (v FOR n IN ({', '.join(f'c{number}' for number in range(4000))}))",
    "too many parts": "SELECT count(*) FROM range(0, 1, 1, 1000000000)",
}
HEAVY = {
    "an endless count": ENDLESS,
    "loops in loops while it is planned": f"SELECT {NESTED_LOOPS.format(start='0L')}",
    "loops in loops in tasks": f"SELECT count(*) FROM range(4) WHERE {NESTED_LOOPS.format(start='id')} = 7",
    "a regular expression of constants": f"SELECT '{'a' * 40}!' RLIKE '^(a+)+\\\\1$'",
    "a regular expression in tasks": "SELECT count(*) FROM range(0, 4, 1, 4) WHERE concat(repeat('a', 40), '!', id) RLIKE '^(a+)+\\\\1$'",
    "a text that fills the memory": "SELECT length(repeat(repeat('a', 100000), 10000))",
    "a distance of long texts": "SELECT levenshtein(concat(repeat('ab', 500000), id), repeat('ba', 500000)) FROM range(2)",
    "a sort of much": "SELECT id, sha2(cast(id AS string), 512) AS s FROM range(30000000) ORDER BY s",
    "groups without number": "SELECT count(*) FROM (SELECT sha2(cast(id AS string), 256) AS k FROM range(50000000) GROUP BY 1)",
}


@contextmanager
def asked(user: str, statement: str) -> Iterator[Callable[[], str]]:
    """Ask in the background; yield what waits for the end and returns the error's sentence, or nothing."""
    told: list[str] = []

    def ask() -> None:
        try:
            with sql_server.session("readers", user=user) as session:
                session.run(statement)
            told.append("")
        except WarehouseError as error:
            told.append(str(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()

    def wait() -> str:
        thread.join(LIMIT_SECONDS + 60)
        assert told, f"no answer to {statement[:100]}"
        return told[0]

    yield wait
    wait()


def small_answer(user: str) -> float:
    """Let a user ask something small; return the seconds that the answer takes."""
    began = time.monotonic()
    with sql_server.session("readers", user=user) as session:
        assert session.run(SMALL) == [(3,)]
    return time.monotonic() - began


@pytest.mark.parametrize("statement", TOO_LARGE.values(), ids=TOO_LARGE.keys())
def test_a_statement_that_is_too_large_is_refused_at_once(statement: str) -> None:
    began = time.monotonic()
    with sql_server.session("readers", user="ana") as session, pytest.raises(StatementError, match="the statement is refused: "):
        session.run(statement)
    assert time.monotonic() - began < 20
    assert small_answer("ben") < SMALL_SECONDS


def test_views_that_double_each_other_are_refused_when_they_are_asked() -> None:
    with sql_server.session("readers", user="ana") as session:
        session.run("CREATE TEMPORARY VIEW v0 AS SELECT id AS a FROM range(4)")
        made = [f"CREATE TEMPORARY VIEW v{number + 1} AS SELECT a + a AS a FROM v{number}" for number in range(28)]
        with pytest.raises(StatementError, match="the statement is refused: it is too large to be planned"):
            all(session.run(statement) is not None for statement in made)
        # Those before are of use all the same.
        assert session.run("SELECT a FROM v3 ORDER BY a") == [(0,), (8,), (16,), (24,)]
    assert small_answer("ben") < SMALL_SECONDS


def test_a_long_list_is_answered() -> None:
    listed = ", ".join(f"'{number:036d}'" for number in range(10000))
    with sql_server.session("readers") as session:
        assert session.run(f"SELECT count(*) FROM range(3) WHERE lpad(cast(id AS string), 36, '0') IN ({listed})") == [(3,)]


@pytest.mark.slow
def test_a_server_that_answers_its_port_but_no_statement_is_started_again() -> None:
    pid = supervision.states()["readers"]["pid"]
    # The processes of its own group: the server and those that started it.
    os.killpg(os.getpgid(pid), signal.SIGSTOP)
    deadline = time.monotonic() + 300
    while supervision.states()["readers"]["pid"] == pid or not watch.answers("readers"):
        assert time.monotonic() < deadline
        time.sleep(1)
    assert small_answer("ben") < SMALL_SECONDS


def test_a_connection_takes_no_memory_that_it_only_announces() -> None:
    with ExitStack() as connections:
        for announced in (100_000_000, -1):
            opened = connections.enter_context(socket.create_connection((settings().readers_host, settings().port("readers")), timeout=10))
            # SASL's START, and the length of a mechanism that does not come.
            opened.sendall(b"\x01" + announced.to_bytes(4, "big", signed=True))
            assert opened.recv(1) == b""
        assert small_answer("ben") < SMALL_SECONDS


def test_a_session_takes_no_memory_for_what_a_message_only_announces() -> None:
    for kind, count in ((TType.MAP, 8_000_000), (TType.LIST, 100_000_000), (TType.STRING, 2_000_000_000)):
        with sql_server.session("readers", user="ana") as session:
            transport = session._connection._transport
            asked = TBinaryProtocol(transport)
            asked.writeMessageBegin("ExecuteStatement", TMessageType.CALL, 1)
            for name, field in (("req", 1), ("sessionHandle", 1)):
                asked.writeFieldBegin(name, TType.STRUCT, field)
            asked.writeFieldBegin("any", kind, 3 if kind == TType.MAP else 9)
            {
                TType.MAP: lambda one, many: one.writeMapBegin(TType.STRING, TType.STRING, many),
                TType.LIST: lambda one, many: one.writeListBegin(TType.STRING, many),
                TType.STRING: lambda one, many: one.writeI32(many),
            }[kind](asked, count)
            transport.flush()
            assert is_refused(transport)
    assert small_answer("ben") < SMALL_SECONDS


def is_refused(transport: object) -> bool:
    """Whether the server answers that it takes no such message, or hangs up."""
    try:
        _, kind, _ = TBinaryProtocol(transport).readMessageBegin()
    except (EOFError, TTransportException):
        return True
    return kind == TMessageType.EXCEPTION


def test_messages_that_stop_in_the_middle_are_closed_and_take_bounded_memory() -> None:
    with ExitStack() as sessions:
        begun = []
        for number in range(50):
            session = sessions.enter_context(sql_server.session("readers", user=f"user-{number}"))
            handle = session._connection._transport._trans.handle
            # The length of a message of 7 MB, and none of it.
            handle.sendall((7_000_000).to_bytes(4, "big"))
            begun.append(handle)
        assert small_answer("ben") < SMALL_SECONDS
        time.sleep(1)
        closed = [handle for handle in begun if is_closed(handle)]
        # Eight and a part of them fit into what all connections may take.
        assert len(closed) >= 40
        time.sleep(22)
        assert all(is_closed(handle) for handle in begun)


@pytest.mark.slow
def test_many_sessions_keep_nobody_out() -> None:
    with ExitStack() as sessions:
        for number in range(470):
            sessions.enter_context(sql_server.session("readers", user=f"user-{number % 12}"))
        assert small_answer("ben") < SMALL_SECONDS


def test_a_connection_whose_session_another_one_closes_is_closed() -> None:
    with sql_server.session("readers", user="ana") as second, ExitStack() as later:
        first = later.enter_context(sql_server.session("readers", user="ana"))
        second._connection._client.CloseSession(ttypes.TCloseSessionReq(sessionHandle=first._connection.sessionHandle))
        assert is_closed(first._connection._transport._trans.handle)
        # Nothing is there to be closed any more.
        later.pop_all()
        assert second.run(SMALL) == [(3,)]


def test_what_a_session_leaves_open_is_bounded() -> None:
    with sql_server.session("readers", user="ana") as session:
        client, handle = session._connection._client, session._connection.sessionHandle
        answers = [client.GetTypeInfo(ttypes.TGetTypeInfoReq(sessionHandle=handle)) for _ in range(110)]
        assert [answer.status.statusCode for answer in answers[:90]] == [ttypes.TStatusCode.SUCCESS_STATUS] * 90
        assert "has 100 open operations, as many as one may have; close some" in answers[-1].status.errorMessage


def test_long_statements_that_stay_open_give_way_to_newer_ones() -> None:
    with sql_server.session("readers", user="ana") as session:
        cursors = [session._connection.cursor() for _ in range(10)]
        for cursor in cursors:
            cursor.execute(f"SELECT length('{'x' * 900_000}')")
        assert cursors[-1].fetchall() == [(900_000,)]
        with pytest.raises(OperationalError, match="it was closed for a newer one"):
            cursors[0].fetchall()
    assert small_answer("ben") < SMALL_SECONDS


def test_a_name_is_short_and_is_no_pool_of_the_server() -> None:
    with pytest.raises(WarehouseError, match="a name has more than 256 characters"), sql_server.session("readers", user="a" * 300):
        pass
    # The server asks itself in a pool of this name.
    assert small_answer("readers-health") < SMALL_SECONDS


def test_a_table_has_no_keys() -> None:
    with sql_server.session("readers", user="ana") as session:
        client, handle = session._connection._client, session._connection.sessionHandle
        for answer in (
            client.GetPrimaryKeys(ttypes.TGetPrimaryKeysReq(handle, None, "core", "transactions")),
            client.GetCrossReference(ttypes.TGetCrossReferenceReq(handle, None, "core", "a", None, "core", "b")),
        ):
            assert answer.status.statusCode == ttypes.TStatusCode.SUCCESS_STATUS, answer.status.errorMessage
            rows = client.FetchResults(ttypes.TFetchResultsReq(answer.operationHandle, ttypes.TFetchOrientation.FETCH_NEXT, 10))
            assert rows.status.statusCode == ttypes.TStatusCode.SUCCESS_STATUS


def is_closed(opened: socket.socket) -> bool:
    opened.settimeout(1)
    try:
        return opened.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_connections_without_a_session_keep_nobody_out() -> None:
    with ExitStack() as connections:
        address = (settings().readers_host, settings().port("readers"))
        opened = [connections.enter_context(socket.create_connection(address, timeout=10)) for _ in range(600)]
        assert small_answer("ben") < SMALL_SECONDS
        # The oldest ones were closed for those that came later.
        assert opened[0].recv(1) == b""


def test_an_open_session_may_be_idle() -> None:
    with sql_server.session("readers", user="ana") as session:
        session.run(SMALL)
        time.sleep(22)
        assert session.run(SMALL) == [(3,)]


@pytest.fixture(scope="module")
def own() -> Iterator[Path]:
    with given(readers_query_seconds=LIMIT_SECONDS) as folder, started(folder) as log:
        yield log


@pytest.mark.slow
@pytest.mark.parametrize("statement", HEAVY.values(), ids=HEAVY.keys())
def test_while_one_user_asks_much_another_gets_an_answer(own: Path, statement: str) -> None:
    with asked("ana", statement) as first, asked("ana", statement) as second:
        time.sleep(3)
        assert max(small_answer("ben") for _ in range(3)) < SMALL_SECONDS
        for wait in (first, second):
            assert "was ended because" in wait() or "no memory" in wait() or "array size" in wait(), wait()
    assert small_answer("ana") < SMALL_SECONDS


@pytest.mark.slow
def test_a_users_sessions_are_bounded(own: Path) -> None:
    with ExitStack() as open_sessions:
        for _ in range(60):
            open_sessions.enter_context(sql_server.session("readers", user="ana"))
        with pytest.raises(StatementError, match=r"ana has 60 open sessions, as many as one user may have; close some"):
            open_sessions.enter_context(sql_server.session("readers", user="ana"))
        assert small_answer("ben") < SMALL_SECONDS
    assert small_answer("ana") < SMALL_SECONDS


@pytest.mark.slow
def test_a_statement_that_cannot_be_ended_ends_the_server_with_a_sentence() -> None:
    metastore = supervision.states()["readers_metastore"]["pid"]
    with given(readers_query_seconds=5, readers_port=PORT + 1) as folder, started(folder) as log, ExitStack() as later:
        ben = later.enter_context(sql_server.session("readers", user="ben"))
        # Reading an answer of the metastore that does not come looks at no interrupt.
        os.killpg(os.getpgid(metastore), signal.SIGSTOP)
        later.callback(os.killpg, os.getpgid(metastore), signal.SIGCONT)
        with asked("ana", "SHOW TABLES IN ops") as stubborn:
            assert "a statement of ana could not be ended" in told(ben), log.read_text()[-2000:]
            os.killpg(os.getpgid(metastore), signal.SIGCONT)
            stubborn()
        assert "a statement of ana could not be ended" in (folder / "tmp" / "readers" / "restarted").read_text()


def told(session: sql_server.Session) -> str:
    """Ask small statements until one has no answer; return what the server says."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            session.run(SMALL)
        except WarehouseError as error:
            return str(error)
        time.sleep(0.5)
    raise AssertionError("every statement had its answer")
