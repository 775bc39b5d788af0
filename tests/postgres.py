"""A Postgres of its own for tests: empty databases with the files under `sql/` applied, gone afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from etl.databases import connect, opened
from etl.errors import UnavailableError
from etl.settings import Role, settings
from etl.stack import machine, postgres

# Tests may lose everything at a power cut; fsync would cost them minutes.
FAST = ("-c", "fsync=off", "-c", "full_page_writes=off", "-c", "shared_buffers=64MB", "-c", "max_prepared_transactions=10")


@contextmanager
def scratch_postgres() -> Iterator[None]:
    """Run a Postgres on a free port with the stack's roles and databases; the settings point to it meanwhile.

    The folder lies directly under the system's temporary folder: as root the server drops to another user, who may not
    enter pytest's own folders.
    """
    folder = Path(tempfile.mkdtemp(prefix="warehouse-test-"))
    folder.chmod(0o755)
    before = dict(os.environ)
    port = _free_port()
    os.environ |= {"WAREHOUSE_DATA_DIR": str(folder), "WAREHOUSE_POSTGRES_PORT": str(port), "WAREHOUSE_PORT_OFFSET": "0"}
    settings.cache_clear()
    server = None
    try:
        postgres.ensure_secrets()
        postgres.initialise()
        server = _start(port, folder / "postgres.log")
        postgres.ensure_databases()
        yield
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=30)
        os.environ.clear()
        os.environ.update(before)
        settings.cache_clear()
        shutil.rmtree(folder, ignore_errors=True)


def _start(port: int, log: Path) -> subprocess.Popen[bytes]:
    command = [
        machine.postgres_bin() / "postgres",
        "-D",
        postgres.folder(),
        "-c",
        f"port={port}",
        "-c",
        "listen_addresses=127.0.0.1",
        *FAST,
    ]
    user = settings().postgres_os_user if machine.is_root() else None
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd="/", stdout=output, stderr=output, user=user, group=user, extra_groups=[] if user else None)
    deadline = time.monotonic() + 30
    while True:
        try:
            connect("postgres", "postgres").close()
            return server
        except UnavailableError:
            if server.poll() is not None or time.monotonic() > deadline:
                server.kill()
                raise RuntimeError(f"Postgres did not start:\n{log.read_text()}") from None
            time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rows(statement: str, *parameters: object, role: Role = "bank", dbname: str = "bank") -> list[tuple[object, ...]]:
    """Run one statement, commit, and return its rows (none for a statement that returns none)."""
    with opened(role, dbname, "test") as session, session.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []
