"""Faults of servers in one sentence."""

from __future__ import annotations

import psycopg2
import pytest
import requests
from hdfs.util import HdfsError

from etl.errors import RefusedError, UnavailableError, WarehouseError
from etl.faults import named_faults


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (psycopg2.OperationalError("server closed the connection\nmore"), UnavailableError, "Postgres went away: server closed"),
        (psycopg2.errors.InsufficientPrivilege("permission denied for table t"), RefusedError, "permission denied for table t"),
        (requests.exceptions.ConnectionError("refused"), UnavailableError, "HDFS at .* went away: refused"),
        (HdfsError("Cannot create file. Name node is in safe mode.", exception="SafeModeException"), UnavailableError, "safe mode"),
        (HdfsError("The DiskSpace quota is exceeded", exception="DSQuotaExceededException"), WarehouseError, "HDFS quota reached"),
        (HdfsError("Permission denied", exception="AccessControlException"), WarehouseError, "HDFS refuses: Permission denied"),
        (OSError("[libpq] PQgetCopyData() failed: gone\nmore"), UnavailableError, "COPY stream from Postgres broke"),
    ],
)
def test_a_fault_says_which_server_and_what_to_do(error: Exception, kind: type[WarehouseError], words: str) -> None:
    with pytest.raises(kind, match=words) as found, named_faults():
        raise error
    assert "\n" not in str(found.value)
    assert found.value.__cause__ is error


@pytest.mark.parametrize("error", [ValueError("a defect"), OSError("disk full"), BaseException()])
def test_a_defect_keeps_its_own_error(error: BaseException) -> None:
    with pytest.raises(type(error)) as found, named_faults():
        raise error
    assert found.value is error
