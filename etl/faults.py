"""Faults of servers in one sentence: which server, what happened, what to do next.

Each fault has one kind: a server that does not answer now (`UnavailableError`: the same command helps later), a server that refuses
for good (`RefusedError`), or one that answers with an error (`WarehouseError`). What HDFS says is told apart by its client
(`etl.storage`), what the SQL servers say by their session (`etl.sql_server`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from etl.errors import BusyError, RefusedError, UnavailableError, WarehouseError

MISSING_BLOCK = re.compile(r"org\.apache\.hadoop\.hdfs\.BlockMissingException")
# Java's exceptions that say that a server was out of reach. The metastore's client names a failed connection inside of its own exception.
_OUTAGES = {
    "the metastore": r"org\.apache\.(hadoop\.hive\.metastore\.)?thrift\.transport\.TTransportException|"
    r"MetaException\(message:Could not connect to meta store|Could not connect to meta store using any of the URIs",
    "HDFS": r"org\.apache\.hadoop\.(ipc\.(StandbyException|RetriableException)|net\.ConnectTimeoutException|"
    r"hdfs\.server\.namenode\.SafeModeException)|java\.net\.(ConnectException|NoRouteToHostException|SocketTimeoutException|"
    r"UnknownHostException|SocketException)|java\.nio\.channels\.ClosedChannelException|"
    r"java\.io\.EOFException: ?End of File Exception between|"
    r"java\.io\.IOException: ?(All datanodes|[^\n]*Failed on local exception|[^\n]*could only be written to)",
}
# As a cause, as HiveServer2 and Java write it, or as a task's failure: not where a statement mentions it.
_CAUSE = r"^\*|Caused by: |\): |failure: |exception: "


_LOST = ("ConnectException", "SocketException", "SocketTimeoutException", "ConnectTimeoutException", "EOFException")


def outage_in(text: str) -> str | None:
    """Return which server a Java program could not reach, from the whole of its error (a stack trace); None where it reached all."""
    return next((server for server, said in _OUTAGES.items() if re.search(f"({_CAUSE})({said})", text, re.MULTILINE)), None)


@contextmanager
def named_faults() -> Iterator[None]:
    """Turn the libraries' errors about servers into this project's; usable as a decorator, too.

    Raises
    ------
    UnavailableError
        When a server went away or cannot write now; what is published is whole, and the same command can be run again.
    BusyError
        When another session holds what is needed.
    RefusedError
        When Postgres lacks a right.
    WarehouseError
        When a server refuses otherwise, such as for a damaged file.
    """
    try:
        yield
    except Exception as error:
        fault = named(error)
        if fault is None:
            raise
        raise fault from error


def named(error: Exception) -> WarehouseError | None:
    """Return a library's error about a server as one of this project's, None for any other error.

    The libraries are imported late, and whoever raised an error of theirs has imported them.
    """
    origin = type(error).__module__.partition(".")[0]
    if origin == "psycopg2":
        return _of_postgres(error)
    if origin == "adbc_driver_manager":
        return _by_state(str(getattr(error, "sqlstate", None) or ""), f"a COPY stream broke: {_first_line(error)}")
    # Arrow passes on what libpq said in the middle of a COPY as an OSError.
    if isinstance(error, OSError) and "[libpq]" in str(error):
        state = re.search(r"SQLSTATE:? ?\(?([0-9A-Z]{5})", str(error))
        return _by_state(state[1] if state else "", f"a COPY stream broke: {_first_line(error)}")
    # SQLAlchemy wraps what Postgres' driver said, MLflow what SQLAlchemy said.
    if origin in ("sqlalchemy", "mlflow"):
        inner = getattr(error, "orig", None) or error.__cause__
        return named(inner) if isinstance(inner, Exception) else None
    if origin == "hdfs":
        return of_hdfs(error)
    if origin in ("pyspark", "grpc"):
        return _of_spark(error)
    return None


def _of_postgres(error: Exception) -> WarehouseError | None:
    import psycopg2

    state = str(getattr(error, "pgcode", None) or "")
    if isinstance(error, psycopg2.errors.InsufficientPrivilege):
        return _by_state("42501", _first_line(error))
    if isinstance(error, psycopg2.errors.LockNotAvailable):
        return _by_state("55P03", _first_line(error))
    # Of its internal errors, those of damaged files.
    is_damage = isinstance(error, psycopg2.InternalError) and state in ("XX001", "XX002")
    if is_damage or isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError):
        return _by_state(state, _first_line(error))
    return None


def _by_state(state: str, said: str) -> WarehouseError:
    """Return what an SQLSTATE of Postgres means; without one, the connection broke."""
    if not state or state.startswith("08") or state in ("57P01", "57P02", "57P03", "57P05"):
        return UnavailableError(f"Postgres went away: {said}; run again when it answers (bash/stack.sh status)")
    if state.startswith(("28", "3D", "42")):
        return RefusedError(f"Postgres refuses: {said}; grant it (sql/bank/roles.sql) or correct the settings")
    if state.startswith("53"):
        return UnavailableError(f"Postgres has no room: {said}; free disk, memory or connections, then run again")
    if state == "55P03":
        return BusyError(f"another session of Postgres holds what is needed: {said}; run again when it has ended")
    if state.startswith(("40", "57")):
        return UnavailableError(f"Postgres ended a statement, for another session or a time-out: {said}; run again")
    return WarehouseError(f"Postgres fails: {said}; look at bash/stack.sh logs postgres")


def of_hdfs(error: Exception) -> WarehouseError:
    """Return what WebHDFS answered as an error of this project's."""
    kind = str(getattr(error, "exception", None) or "")
    text = str(error)
    if kind in ("SafeModeException", "RetriableException", "StandbyException") or "safe mode" in text:
        return UnavailableError(f"HDFS cannot be written now: {_first_line(error)}; run again when the NameNode has left safe mode")
    # A DataNode answers so for a NameNode that it lost.
    if "failed on " in text.lower() or "End of File Exception between" in text or kind in _LOST:
        return UnavailableError(f"HDFS lost its NameNode: {_first_line(error)}; run again when it answers (bash/stack.sh status)")
    if "Failed to find datanode" in text or "All datanodes" in text or "could only be written to 0 of" in text:
        return UnavailableError(f"HDFS has no DataNode for it: {_first_line(error)}; run again when one answers (bash/stack.sh status)")
    if "Quota" in kind or "quota" in text:
        return WarehouseError(f"HDFS quota reached: {_first_line(error)}; raise it or free space, then run again; nothing is published")
    return WarehouseError(f"HDFS refuses: {_first_line(error)}; look at bash/stack.sh logs namenode")


def _of_spark(error: Exception) -> WarehouseError | None:
    server = "Spark Connect" if "StatusCode.UNAVAILABLE" in str(error) else outage_in(str(error))
    if server is None:
        return None
    return UnavailableError(f"{server} went away from Spark: {_first_line(error)}; run again when it answers (bash/stack.sh status)")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
