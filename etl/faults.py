"""Faults of servers in the middle of a run, said in one sentence: which server, what happened, what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2

from etl.errors import RefusedError, UnavailableError, WarehouseError
from etl.settings import settings


@contextmanager
def named_faults() -> Iterator[None]:
    """Turn the libraries' errors about servers into this project's; usable as a decorator, too.

    Raises
    ------
    UnavailableError
        When a server went away or cannot write now; what is published is whole, and the same command can be run again.
    RefusedError
        When Postgres lacks a right.
    WarehouseError
        When HDFS refuses otherwise, such as for a quota.
    """
    try:
        yield
    except psycopg2.errors.InsufficientPrivilege as error:
        raise RefusedError(f"Postgres: {_first_line(error)}; grant it (sql/bank/roles.sql) and run again") from error
    except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
        raise UnavailableError(f"Postgres went away: {_first_line(error)}; run again when it answers (bash/stack.sh status)") from error
    except Exception as error:
        # Their modules are imported late; whoever raised one of them has imported it.
        origin = type(error).__module__
        if origin.startswith("hdfs."):
            raise _of_hdfs(error) from error
        if origin.startswith(("requests.", "urllib3.")):
            raise UnavailableError(
                f"HDFS at {settings().webhdfs_url} went away: {_first_line(error)}; run again when it answers (bash/stack.sh status)"
            ) from error
        # Arrow passes on what libpq said in the middle of a COPY as an OSError.
        if origin.startswith("adbc_driver_manager") or (isinstance(error, OSError) and "[libpq]" in str(error)):
            raise UnavailableError(f"a COPY stream from Postgres broke: {_first_line(error)}; run again when it answers") from error
        raise


def _of_hdfs(error: Exception) -> WarehouseError:
    kind = str(getattr(error, "exception", None) or "")
    if kind in ("SafeModeException", "RetriableException", "StandbyException") or "safe mode" in str(error):
        return UnavailableError(f"HDFS cannot be written now: {_first_line(error)}; run again when the NameNode has left safe mode")
    if "Quota" in kind or "quota" in str(error):
        return WarehouseError(f"HDFS quota reached: {_first_line(error)}; raise it or free space, then run again; nothing is published")
    return WarehouseError(f"HDFS refuses: {_first_line(error)}; look at bash/stack.sh logs namenode")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
