"""A metastore lock that a killed writer left: the metastore's house keeper releases it, and core goes on by itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from etl import ops
from etl.databases import opened
from etl.extract import extract
from etl.settings import ROOT
from etl.sql_server import Session
from etl.tables import Table
from etl.transform import take
from tests.stack.test_extract import fill, in_core, in_source, probe

__all__ = ["probe"]

RELEASED_WITHIN_SECONDS = 120

# What Iceberg's HiveTableOperations asks for around a commit, on the metastore's own protocol; then the client waits to be killed.
LOCKER = """
import time
from thrift.Thrift import TMessageType, TType
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.transport.TSocket import TSocket
from thrift.transport.TTransport import TBufferedTransport
from etl.settings import settings

EXCLUSIVE, TABLE, ACQUIRED = 3, 2, 1
transport = TBufferedTransport(TSocket(settings().metastore_host, settings().port("metastore")))
transport.open()
protocol = TBinaryProtocol(transport)

def field(number, kind, value):
    protocol.writeFieldBegin("", kind, number)
    (protocol.writeI32 if kind == TType.I32 else protocol.writeString)(value)

def end():
    protocol.writeFieldStop()

protocol.writeMessageBegin("lock", TMessageType.CALL, 1)
protocol.writeFieldBegin("rqst", TType.STRUCT, 1)
protocol.writeFieldBegin("component", TType.LIST, 1)
protocol.writeListBegin(TType.STRUCT, 1)
field(1, TType.I32, EXCLUSIVE)
field(2, TType.I32, TABLE)
field(3, TType.STRING, "core")
field(4, TType.STRING, "probe")
end()
field(3, TType.STRING, "etl")
field(4, TType.STRING, "localhost")
field(5, TType.STRING, "Iceberg-killed")
end()
end()
transport.flush()
name, kind, _ = protocol.readMessageBegin()
assert kind == TMessageType.REPLY, kind
state, inner = None, 0
while True:
    _, kind, number = protocol.readFieldBegin()
    if kind == TType.STOP:
        break
    assert number == 0, "the metastore raised"
    while True:
        _, kind, number = protocol.readFieldBegin()
        if kind == TType.STOP:
            break
        value = protocol.readI64() if kind == TType.I64 else protocol.readI32()
        state = value if number == 2 else state
assert state == ACQUIRED, state
print("locked", flush=True)
time.sleep(600)
"""


def locks() -> int:
    with opened("metastore", "metastore") as session, session.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM hive_locks WHERE hl_db = 'core' AND hl_table = 'probe'")
        (found,) = cursor.fetchone()  # type: ignore[misc]
        return int(found)


# The metastore waits a minute for a sign of life; this cannot be quicker.
@pytest.mark.slow
def test_a_lock_left_by_a_killed_writer_is_released_within_two_minutes_and_core_goes_on(
    probe: Table, hive: Session, run: ops.Run, tmp_path: Path
) -> None:
    fill(1, 20)
    extract([probe], "full", run, hive)
    take(hive, probe, run)
    fill(30, 40)
    extract([probe], "incremental", run, hive)
    locker = subprocess.Popen([sys.executable, "-c", LOCKER], cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, text=True)
    assert locker.stdout is not None
    assert locker.stdout.readline() == "locked\n"
    killed_at = time.monotonic()
    locker.kill()
    locker.wait()
    assert locks() == 1
    # Nobody helps: the commit waits for the lock.
    take(hive, probe, run)
    seconds = time.monotonic() - killed_at
    assert in_core(hive) == in_source()
    assert locks() == 0
    assert 5 < seconds < RELEASED_WITHIN_SECONDS
