"""A readers server of a test's own beside the stack's, with settings of its own: started as a container starts it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from etl.errors import UnavailableError
from etl.settings import ROOT, settings
from etl.stack import serve

ATTACH_SECONDS = 20
PORT = 10077
"""Before the offset is added; no server of a stack has one that ends so."""
STARTING_SECONDS = 180
ENDLESS = "SELECT count(*) FROM range(100000000) AS a CROSS JOIN range(20000) AS b WHERE a.id * b.id % 7 = 3"
"""Takes hours, and all of them before there is a row."""
SERVE = (sys.executable, "-m", "etl.stack.serve")


def environment() -> dict[str, str]:
    """Environment of a process that is not this one."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@contextmanager
def given(**changed: object) -> Iterator[Path]:
    """Let the settings of this process and its children name a readers server of their own, and its data folder."""
    folder = Path(tempfile.mkdtemp(prefix="readers-"))
    folder.chmod(0o755)
    # The stack's loads server goes on asking for its password.
    own = {"data_dir": folder, "readers_port": PORT, "pgpass_file": settings().passfile}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**own, **changed}.items():
            patch.setenv(f"WAREHOUSE_{name.upper()}", str(value))
        settings.cache_clear()
        try:
            yield folder
        finally:
            patch.undo()
            settings.cache_clear()
            shutil.rmtree(folder)


@contextmanager
def started(folder: Path) -> Iterator[Path]:
    """Run the server that the settings name; yield its log."""
    log = folder / "readers.log"
    with log.open("wb") as file:
        process = subprocess.Popen([*SERVE, "run", "readers"], cwd=ROOT, env=environment(), stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + STARTING_SECONDS
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                serve.check("readers")
                break
            except UnavailableError:
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.3)
        yield log
    finally:
        process.terminate()
        process.wait(60)


def system_properties(pid: int) -> dict[str, str]:
    """Return the system properties of a Java process, by the protocol of jcmd, which is not in a JRE."""
    door = Path(f"/proc/{pid}/root/tmp/.java_pid{pid}")
    mark = Path(f"/proc/{pid}/cwd/.attach_pid{pid}")
    if not door.exists():
        mark.touch()
        os.kill(pid, signal.SIGQUIT)
        deadline = time.monotonic() + ATTACH_SECONDS
        while not door.exists():
            assert time.monotonic() < deadline, f"process {pid} opened no socket for jcmd"
            time.sleep(0.1)
        mark.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as opened:
        opened.connect(str(door))
        opened.sendall(b"1\0jcmd\0VM.system_properties\0\0\0")
        with opened.makefile("rb") as answer:
            lines = answer.read().decode().splitlines()
    assert lines[0] == "0", lines
    return dict(line.split("=", 1) for line in lines if "=" in line)
