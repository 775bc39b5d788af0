"""Statements from the command line: how they are interrupted, and how much memory their answers take."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from etl import sql_server
from etl.sql_server import StatementError
from etl.stack import supervision
from tests.readers import ENDLESS, environment

QUERY = (sys.executable, "-m", "etl.query", "query")
# What would take hours: the first is computed before there is a row, the second while rows are fetched.
LONG = {
    "computing": ENDLESS,
    "fetching": "SELECT a.id FROM range(100000000) AS a CROSS JOIN range(20000) AS b WHERE a.id * b.id % 7 = 30",
}
MEGABYTE = 2**20


def task_seconds() -> dict[int, float]:
    """Return the time that each thread of the readers server which runs tasks has computed so far, by thread.

    Not the whole server's share of a core: with its nice value that is small where another program computes, as small as an idle one's.
    """
    server = psutil.Process(supervision.states()["readers"]["pid"])
    seconds = {}
    for thread in server.threads():
        with suppress(FileNotFoundError, ProcessLookupError):
            # The kernel keeps fifteen letters of "Executor task launch worker".
            if Path(f"/proc/{server.pid}/task/{thread.id}/comm").read_text().startswith("Executor task l"):
                seconds[thread.id] = thread.user_time + thread.system_time
    return seconds


def tasks_compute(seconds: float) -> bool:
    before = task_seconds()
    time.sleep(seconds)
    return any(used > before.get(thread, 0) for thread, used in task_seconds().items())


def is_at_work() -> bool:
    # Planning has a short job of its own.
    return all(tasks_compute(1) for _ in range(3))


def is_idle() -> bool:
    return not tasks_compute(2)


def wait_until(is_reached: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_reached():
        assert time.monotonic() < deadline


@pytest.mark.parametrize("statement", LONG.values(), ids=LONG.keys())
def test_an_interrupt_ends_the_statement_on_the_server(statement: str) -> None:
    wait_until(is_idle, 60)
    # A test run in the background ignores the signal, and so would its children.
    process = subprocess.Popen(
        [*QUERY, statement], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        wait_until(lambda: process.poll() is not None or is_at_work(), 60)
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, *told) == (130, "", "interrupted; nothing is lost, run the same command again\n")
    wait_until(is_idle, 60)


def test_a_statement_that_finds_no_memory_fails_alone() -> None:
    too_much = {
        "no memory left": "SELECT size(sequence(1, 300000000))",
        "give it a condition of equality": "SELECT count(*) FROM range(9000000) AS a CROSS JOIN range(9000000) AS b WHERE a.id * b.id = 3",
    }
    before = supervision.states()["readers"]["pid"]
    for said, statement in too_much.items():
        with sql_server.session("readers") as readers, pytest.raises(StatementError, match=said):
            readers.run(statement)
    with sql_server.session("readers") as readers:
        assert readers.run("SELECT count(*) FROM range(10) WHERE id % 2 = 1") == [(5,)]
    assert supervision.states()["readers"]["pid"] == before


@pytest.mark.slow
def test_a_large_answer_is_not_held_in_memory() -> None:
    statement = "SELECT id, repeat('x', 600) AS text FROM range(180000)"
    with subprocess.Popen([*QUERY, statement, "--format", "csv"], env=environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        asked, most, size = psutil.Process(process.pid), 0, 0
        while block := process.stdout.read(4 * MEGABYTE):
            size += len(block)
            most = max(most, asked.memory_info().rss)
    assert process.returncode == 0
    assert size > 100 * MEGABYTE
    assert most < size


def test_a_join_with_equal_names_and_decimals_and_nulls_comes_whole() -> None:
    statement = (
        "SELECT t.*, r.* FROM (SELECT 1L AS id, cast('0.10' AS decimal(12,2)) AS amount) AS t "
        "JOIN (SELECT 1L AS id, '' AS note, cast(NULL AS string) AS other) AS r ON t.id = r.id"
    )
    told = {
        form: subprocess.run([*QUERY, statement, "--format", form], env=environment(), capture_output=True, check=True).stdout.decode()
        for form in ("json", "csv")
    }
    assert told == {
        "json": '{"id": 1, "amount": 0.10, "id_2": 1, "note": "", "other": null}\n',
        "csv": 'id,amount,id_2,note,other\r\n1,0.10,1,"",\r\n',
    }


def test_a_terminal_shows_that_a_statement_is_at_work_and_a_pipe_does_not() -> None:
    # What takes less than a second shows nothing.
    statement = "SELECT count(*) FROM range(2000000) AS a CROSS JOIN range(2000) AS b WHERE a.id * b.id % 7 = 3"
    terminal, other = pty.openpty()
    ran = subprocess.Popen([*QUERY, statement, "--format", "csv"], env=environment(), stdout=subprocess.PIPE, stderr=other)
    os.close(other)
    shown = b""
    try:
        while block := os.read(terminal, 4096):
            shown += block
    except OSError:
        # The other end is closed: Linux says so by an error.
        pass
    os.close(terminal)
    assert ran.wait(60) == 0
    assert b"running" in shown
    quiet = subprocess.run([*QUERY, "SELECT 1", "--format", "csv"], env=environment(), capture_output=True, check=True)
    assert quiet.stderr == b""
