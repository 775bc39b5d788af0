"""HiveQL over the HiveServer2 protocol: sessions, statements, and files of one statement."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import jinja2
from pyhive import hive
from thrift.transport.TTransport import TTransportException

from etl.errors import UnavailableError, WarehouseError
from etl.log import logger
from etl.settings import ROOT, settings

Result = TypeVar("Result")

_templates = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)  # noqa: S701 - SQL, not HTML
_templates.filters["literal"] = lambda value: literal(value)

ATTEMPTS = 3
"""How often a commit that other writers win is tried."""
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


class Session:
    """One session on a SQL server; `run` executes a statement and returns its rows."""

    def __init__(self, connection: hive.Connection) -> None:
        self._connection = connection

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
        """Execute one statement and return the names of its columns and its rows; raises as `run` does.

        An interrupt cancels the statement on the server.
        """
        with self._connection.cursor() as cursor:
            try:
                cursor.execute(statement)
                if cursor.description is None:
                    return [], []
                return [str(column[0]).rsplit(".", 1)[-1] for column in cursor.description], cursor.fetchall()
            except hive.OperationalError as error:
                raise StatementError(f"{first_sentence(error)} [statement: {' '.join(statement.split())[:300]}]") from error
            except (TTransportException, OSError) as error:
                raise UnavailableError(f"the SQL server went away: {error}; look at bash/stack.sh status") from error

    def commit(self, statement: str) -> list[tuple[Any, ...]]:
        """Execute a statement that commits to an Iceberg table and may be repeated; again where another writer wins."""
        return retried(lambda: self.run(statement))

    def run_file(self, path: Path | str, **parameters: object) -> list[tuple[Any, ...]]:
        """Execute a file of one statement, its `{{ parameters }}` filled in."""
        return self.run(render(path, **parameters))


def first_sentence(error: BaseException) -> str:
    """Return the part of a HiveServer2 error that a person can act on."""
    status = getattr(error.args[0], "status", None) if error.args else None
    message = getattr(status, "errorMessage", None) or getattr(error.args[0] if error.args else None, "errorMessage", None)
    text = str(message or error)
    text = re.sub(r"^Error running query: ", "", text)
    return re.sub(r"^(\[?[\w.$]+(Exception|Error):? ?)+", "", text).split("\n")[0].strip() or str(error)[:500]


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

    Raises
    ------
    UnavailableError
        When the server does not answer.
    """
    host, port = (
        (settings().loads_host, settings().port("loads")) if server == "loads" else (settings().readers_host, settings().port("readers"))
    )
    try:
        connection = hive.connect(host=host, port=port, username=user or settings().hdfs_user, configuration=configuration or {})
    except hive.OperationalError as error:
        raise StatementError(f"the {server} SQL server opened no session: {first_sentence(error)}") from error
    except (TTransportException, OSError) as error:
        raise UnavailableError(f"the {server} SQL server at {host}:{port} does not answer; start it with bash/stack.sh up") from error
    try:
        yield Session(connection)
    finally:
        # Where the server went away, the statement that noticed has said so.
        with suppress(TTransportException, OSError):
            connection.close()


def literal(value: object) -> str:
    """Write a string, number or truth value as a SQL literal."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    # Spark puts its own settings and environment in place of ${...}, before it knows what a literal is.
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'").replace("${", "\\u0024{") + "'"
