"""HiveQL over the HiveServer2 protocol: sessions, statements, and files of one statement."""

from __future__ import annotations

import functools
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import jinja2
import thrift_sasl
from pyhive import hive
from pyhive.sasl_compat import PureSASLClient
from TCLIService import ttypes
from thrift.protocol.TProtocol import TProtocolException
from thrift.transport.TSocket import TSocket
from thrift.transport.TTransport import TTransportException

from etl import nodes
from etl.databases import password
from etl.errors import RefusedError, UnavailableError, WarehouseError
from etl.faults import MISSING_BLOCK, outage_in
from etl.log import logger
from etl.settings import ROOT, settings
from etl.tables import DATABASES

Result = TypeVar("Result")

_NO_DATABASE = re.compile(r"\[SCHEMA_NOT_FOUND\] The schema `spark_catalog`\.`(\w+)`")
_templates = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)  # noqa: S701 - SQL, not HTML
_templates.filters["literal"] = lambda value: literal(value)

# How a connection to a server ends that is killed, at whatever call.
GONE = (TTransportException, TProtocolException, EOFError, OSError)
ATTEMPTS = 3
"""How often a commit that other writers win is tried."""
FETCHED_ROWS = 2000
NO_TABLE = "TABLE_OR_VIEW_NOT_FOUND"
"""In the sentence of a statement that names a table which is not there."""
TOOK_TOO_LONG = "it ran longer than the server lets a statement run (readers_query_seconds)"
CONFLICT_WORDS = ("CommitFailedException", "ValidationException", "conflicting", "CommitStateUnknown", "metadata refresh is required")


class StatementError(WarehouseError):
    """The SQL server refused a statement."""


def is_conflict(error: Exception) -> bool:
    """Tell whether an error is that another writer won the commit to an Iceberg table."""
    return any(word in str(error) for word in CONFLICT_WORDS)


def retried(work: Callable[[], Result]) -> Result:
    """Do work that commits to an Iceberg table and may be repeated; again where another writer wins."""
    for _ in range(ATTEMPTS - 1):
        try:
            return work()
        except Exception as error:
            if not is_conflict(error):
                raise
            logger.warning("commit lost to another writer, trying again", reason=str(error).splitlines()[0])
    return work()


@dataclass(frozen=True)
class Answer:
    """What a statement answers: the names of its columns, and its rows as they come, some thousand at a time."""

    columns: list[str]
    rows: Iterator[tuple[Any, ...]]


class Session:
    """One session on a SQL server; `run` executes a statement and returns its rows."""

    def __init__(self, connection: hive.Connection, again: Callable[[], hive.Connection] | None = None) -> None:
        self._connection = connection
        self._again = again

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        """Execute one statement and fetch all rows (an empty list where there are none).

        Raises
        ------
        StatementError
            With the server's own sentence.
        UnavailableError
            When the server went away.
        """
        return self.query(statement)[1]

    def query(self, statement: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Execute one statement and return the names of its columns and its rows; raises as `run` does."""
        # Closing the cursor asks the server as well.
        with _errors_of(statement), self._connection.cursor() as cursor:
            cursor.execute(statement)
            if cursor.description is None:
                return [], []
            return _names(cursor), cursor.fetchall()

    @contextmanager
    def answer(self, statement: str) -> Iterator[Answer]:
        """Execute one statement and give its rows as they come, so that an answer of any size fits; raises as `run` does.

        An interrupt, or leaving before the last row, ends the statement on the server.
        """
        cursor = self._connection.cursor(arraysize=FETCHED_ROWS)
        try:
            with _errors_of(statement):
                cursor.execute(statement, async_=True)
                if failure := _failure(cursor):
                    whole, short = failure
                    raise _told_apart(whole, short, statement)
                names = _names(cursor) if cursor.description is not None else []
            yield Answer(names, self._fetched(cursor, statement) if names else iter(()))
        except KeyboardInterrupt:
            # This connection may be in the middle of a message, or wait for one for ever.
            self._end_from_outside(cursor)
            raise
        finally:
            with suppress(hive.OperationalError, *GONE):
                cursor.close()

    @staticmethod
    def _fetched(cursor: hive.Cursor, statement: str) -> Iterator[tuple[Any, ...]]:
        while True:
            with _errors_of(statement):
                rows = cursor.fetchmany(FETCHED_ROWS)
            if not rows:
                return
            yield from rows

    def _end_from_outside(self, cursor: hive.Cursor) -> None:
        handle, cursor._operationHandle = cursor._operationHandle, None
        self._connection.client._iprot.trans.close()
        if handle is not None and self._again is not None:
            with suppress(hive.OperationalError, *GONE):
                other = self._again()
                # Cancelling would leave alone what runs while its rows are fetched; closing ends both.
                other.client.CloseOperation(ttypes.TCloseOperationReq(handle))
                other.close()

    def commit(self, statement: str) -> list[tuple[Any, ...]]:
        """Execute a statement that commits to an Iceberg table and may be repeated; again where another writer wins."""
        return retried(lambda: self.run(statement))

    def run_file(self, path: Path | str, **parameters: object) -> list[tuple[Any, ...]]:
        """Execute a file of one statement, its `{{ parameters }}` filled in."""
        return self.run(render(path, **parameters))


def _names(cursor: hive.Cursor) -> list[str]:
    return [str(column[0]).rsplit(".", 1)[-1] for column in cursor.description]


def _failure(cursor: hive.Cursor) -> tuple[str, str] | None:
    """Wait until a statement has ended that was begun without waiting; return why, whole and in short, where it did not come to its end."""
    states, pause = ttypes.TOperationState, 0.005
    while (told := cursor.poll(get_progress_update=False)).operationState in (
        states.INITIALIZED_STATE,
        states.PENDING_STATE,
        states.RUNNING_STATE,
    ):
        time.sleep(pause)
        pause = min(pause * 1.5, 0.2)
    if told.operationState == states.FINISHED_STATE:
        return None
    if told.operationState == states.TIMEDOUT_STATE:
        return TOOK_TOO_LONG, TOOK_TOO_LONG
    whole = told.errorMessage or "somebody ended it on the server"
    return whole, _first_sentence_of(whole)


def _short(statement: str) -> str:
    return " ".join(statement.split())[:300]


@contextmanager
def _errors_of(statement: str) -> Iterator[None]:
    try:
        yield
    except hive.OperationalError as error:
        raise _told_apart(_whole(error), first_sentence(error), statement) from error
    except GONE as error:
        raise UnavailableError(f"the SQL server went away: {error}; look at bash/stack.sh status") from error


def _whole(error: hive.OperationalError) -> str:
    """Return all that a HiveServer2 error holds: its message, and the causes, each on a line that begins with an asterisk."""
    answer = error.args[0] if error.args else None
    status = getattr(answer, "status", None) or answer
    return "\n".join(map(str, [*(getattr(status, "infoMessages", None) or []), getattr(status, "errorMessage", None) or error]))


def _told_apart(whole: str, sentence: str, statement: str) -> WarehouseError:
    """Return a refused statement, or the server behind the SQL server that was out of reach."""
    return _outage(whole, sentence) or StatementError(f"{sentence} [statement: {_short(statement)}]")


def _outage(whole: str, sentence: str) -> UnavailableError | None:
    """Return which server the SQL server could not reach, None for another error.

    Parameters
    ----------
    whole
        The error with its causes.
    sentence
        What of it a person can act on.
    """
    # A block is missing where its DataNodes are down, and where it is damaged.
    server = "HDFS" if MISSING_BLOCK.search(whole) and not nodes.all_answer() else outage_in(whole)
    # A metastore that cannot reach its own database says that it knows no database.
    if server is None and (missing := _NO_DATABASE.search(whole)) and missing[1] in DATABASES:
        server = "the metastore, or the metastore its own database,"
    if server is None:
        return None
    return UnavailableError(f"the SQL server cannot reach {server} now: {sentence}; run again when it answers (bash/stack.sh status)")


def first_sentence(error: BaseException) -> str:
    """Return the part of a HiveServer2 error that a person can act on."""
    status = getattr(error.args[0], "status", None) if error.args else None
    message = getattr(status, "errorMessage", None) or getattr(error.args[0] if error.args else None, "errorMessage", None)
    return _first_sentence_of(str(message or error))


def _first_sentence_of(text: str) -> str:
    if "found TIMEDOUT" in text:
        return TOOK_TOO_LONG
    if "QuotaExceededException" in text:
        return "the sandbox has no room for it: all tables share sandbox_quota_mb and 10,000 files; drop what nobody needs, or ask for less"
    # What a task said is worth more than that its job was given up.
    told = re.sub(r"^(.|\n)*Job aborted due to stage failure: .*?\): (?=[\w.$]+(Exception|Error): )", "", text)
    told = re.sub(r"^(Error running query: |(\[[\w.]+\] )?\[?[\w.$]+(Exception|Error):?\s*)+", "", told)
    if told.startswith(("Java heap space", "GC overhead limit exceeded")):
        return "the SQL server has no memory left for this statement; ask for less: fewer columns or days, an aggregate"
    return told.split("\n")[0].strip() or text[:500]


def render(path: Path | str, **parameters: object) -> str:
    """Fill a file of HiveQL; a parameter that is missing is an error that names it."""
    text = (ROOT / path).read_text(encoding="utf-8")
    try:
        return _templates.from_string(text).render(**parameters)
    except jinja2.UndefinedError as error:
        raise WarehouseError(f"{path}: {error}; give it as NAME=VALUE") from error


@contextmanager
def session(
    server: Literal["loads", "readers"] = "loads", configuration: dict[str, str] | None = None, user: str | None = None
) -> Iterator[Session]:
    """Open a session on the loads or the readers server.

    Parameters
    ----------
    user
        By default the loads' HDFS user, on the readers server the setting `readers_user`.

    Raises
    ------
    UnavailableError
        When the server does not answer.
    RefusedError
        When the readers server does not know the user, or what proves that it is that server is missing.
    """
    if server == "loads":
        host, port = settings().loads_host, settings().port("loads")
    else:
        host, port = settings().readers_host, settings().port("readers")

    def connect() -> hive.Connection:
        name, secret = _readers_login(user) if server == "readers" else _loads_login(user)
        transport = sasl_transport(host, port, name, secret, readers_tls() if server == "readers" else None)
        return hive.connect(thrift_transport=transport, username=name, configuration=configuration or {})

    try:
        connection = connect()
    except hive.OperationalError as error:
        if (outage := _outage(_whole(error), first_sentence(error))) is not None:
            raise outage from error
        raise StatementError(f"the {server} SQL server opened no session: {first_sentence(error)}") from error
    except GONE as error:
        if isinstance(cause := getattr(error, "inner", None), ssl.SSLError):
            raise RefusedError(
                f"the certificate of the readers SQL server at {host}:{port} is not trusted, or it speaks no TLS "
                f"({getattr(cause, 'verify_message', None) or cause.reason}); correct readers_ca_file or the certificate"
            ) from error
        if "validating" in str(error) and server == "loads":
            raise RefusedError(
                f"the loads SQL server at {host}:{port} has another password than that of the role etl in "
                f"{settings().passfile}; correct the file, or start the loads server again"
            ) from error
        if "validating" in str(error):
            raise RefusedError(
                f"the readers SQL server at {host}:{port} does not let in {user or settings().readers_user}: LDAP knows no such user "
                "with this password; correct readers_user and readers_password_file"
            ) from error
        raise UnavailableError(f"the {server} SQL server at {host}:{port} does not answer; start it with bash/stack.sh up") from error
    try:
        yield Session(connection, connect)
    finally:
        # Where the server went away, the statement that noticed has said so.
        with suppress(hive.OperationalError, *GONE):
            connection.close()


class _TlsSocket(TSocket):
    """A socket that speaks TLS (Thrift's own one fails on closing what it could not open)."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        super().__init__(host, port)
        self._context = context

    def _do_open(self, family: int, kind: int) -> socket.socket:
        return self._context.wrap_socket(socket.socket(family, kind), server_hostname=self.host)


def sasl_transport(
    host: str, port: int, user: str, password: str | None, context: ssl.SSLContext | None
) -> thrift_sasl.TSaslClientTransport:
    """Return what PyHive and SQLAlchemy take as `thrift_transport`: SASL's PLAIN, over TLS where there is a context for it."""
    opened = _TlsSocket(host, port, context) if context else TSocket(host, port)
    # Where nobody is asked, the protocol wants a password all the same.
    client = functools.partial(PureSASLClient, host=host, username=user, password=password or "none")
    return thrift_sasl.TSaslClientTransport(client, "PLAIN", opened)


def _loads_login(user: str | None) -> tuple[str, str | None]:
    # Who may be `etl` in Postgres may be so here.
    return user or settings().hdfs_user, password("etl")


def _readers_login(user: str | None) -> tuple[str, str | None]:
    path = settings().readers_password_file
    if path is not None and not path.is_file():
        raise RefusedError(f"readers_password_file {path} is not there; write the password of {settings().readers_user} into it")
    return user or settings().readers_user, path.read_text().strip() if path else None


def readers_tls() -> ssl.SSLContext | None:
    """Return the TLS of the readers server's clients; None where it speaks none.

    Raises
    ------
    RefusedError
        When what they trust cannot be read.
    """
    trusted = settings().readers_ca_file or settings().readers_tls_file
    if trusted is None:
        return None
    try:
        context = ssl.create_default_context(cafile=trusted)
    except OSError as error:
        raise RefusedError(f"{trusted} holds no certificates ({error}); let readers_ca_file name the authority's, PEM") from error
    # On the server's own machine its certificate itself is known.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def literal(value: object) -> str:
    """Write a string, number or truth value as a SQL literal."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    # Spark puts its own settings and environment in place of ${...}, before it knows what a literal is.
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'").replace("${", "\\u0024{") + "'"
