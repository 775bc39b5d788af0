"""The supervisor of the stack's servers: its configuration, its start, and calls to it."""

from __future__ import annotations

import subprocess
import sys
import time
import xmlrpc.client
from typing import Any

from supervisor.xmlrpc import SupervisorTransport

from etl.errors import RefusedError, UnavailableError
from etl.settings import settings
from etl.stack import configuration
from etl.stack.servers import Server

SOCKET_LENGTH_LIMIT = 100


def socket_path() -> str:
    """Path of the supervisor's socket; the system limits its length."""
    path = str(settings().data_dir / "run" / "supervisor.sock")
    if len(path) > SOCKET_LENGTH_LIMIT:
        raise RefusedError(f"the path {path} is too long for a socket; set WAREHOUSE_DATA_DIR to a shorter folder")
    return path


def call(method: str, *arguments: object) -> Any:
    """Call a method of the supervisor.

    Raises
    ------
    UnavailableError
        When the supervisor does not run.
    """
    proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=SupervisorTransport(None, None, f"unix://{socket_path()}"))
    try:
        return getattr(proxy.supervisor, method)(*arguments)
    except OSError as error:
        raise UnavailableError("the stack is down; start it with bash/stack.sh up") from error


def is_running() -> bool:
    """Tell whether the supervisor answers."""
    try:
        call("getState")
    except UnavailableError:
        return False
    return True


def states() -> dict[str, dict[str, Any]]:
    """Return what the supervisor knows of each server, by name; empty when it is down."""
    try:
        return {info["name"]: info for info in call("getAllProcessInfo")}
    except UnavailableError:
        return {}


def log_path(name: str) -> str:
    """Path of a server's log."""
    return str(settings().data_dir / "logs" / f"{name}.log")


def _quoted(value: str) -> str:
    # The supervisor expands %(name)s in every value and splits commands as a shell does.
    return '"' + value.replace("%", "%%").replace('"', '\\"') + '"'


def write_configuration(servers: dict[str, Server]) -> None:
    """Write the supervisor's own configuration file."""
    run = settings().data_dir / "run"
    logs = settings().data_dir / "logs"
    run.mkdir(parents=True, exist_ok=True)
    logs.mkdir(parents=True, exist_ok=True)
    # The settings' file system, so that a program finds its own.
    sections = [
        f"[supervisord]\nlogfile={logs}/supervisor.log\nlogfile_maxbytes=1MB\npidfile={run}/supervisor.pid\n"
        # What a server writes, no other user of the machine reads.
        f"childlogdir={logs}\nminfds=1024\nidentifier=warehouse\numask=077\n",
        f"[unix_http_server]\nfile={socket_path()}\nchmod=0700\n",
        "[rpcinterface:supervisor]\nsupervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n",
    ]
    for server in servers.values():
        environment = ",".join(f"{name}={_quoted(value)}" for name, value in server.environment.items())
        lines = [
            f"[program:{server.name}]",
            "command=" + " ".join(_quoted(part) for part in server.command),
            "autostart=false",
            "autorestart=true",
            "startsecs=1",
            "startretries=5",
            f"stopsignal={server.stop_signal}",
            f"stopwaitsecs={server.stop_seconds}",
            # The metastore's JVM ignores a signal to its group's other members; Spark's Python workers must end with it.
            "killasgroup=true",
            f"directory={server.folder}",
            "redirect_stderr=true",
            f"stdout_logfile={log_path(server.name)}",
            "stdout_logfile_maxbytes=20MB",
            "stdout_logfile_backups=2",
        ]
        if environment:
            lines.append(f"environment={environment}")
        if server.os_user:
            lines.append(f"user={server.os_user}")
        sections.append("\n".join(lines) + "\n")
    configuration.write(settings().data_dir / "conf" / "supervisord.conf", "\n".join(sections))


def start_supervisor() -> None:
    """Start the supervisor, or let a running one read its configuration again."""
    if is_running():
        added, changed, removed = call("reloadConfig")[0]
        for name in [*changed, *removed]:
            call("stopProcessGroup", name)
            call("removeProcessGroup", name)
        for name in [*added, *changed]:
            call("addProcessGroup", name)
        return
    subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "supervisor.supervisord",
            "-c",
            settings().data_dir / "conf" / "supervisord.conf",
        ],
        check=True,
        stdin=subprocess.DEVNULL,
        # It outlives this process: it must hold neither its pipes nor its terminal.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 15
    while not is_running():
        if time.monotonic() > deadline:
            raise UnavailableError(f"the supervisor did not start; see {settings().data_dir / 'logs' / 'supervisor.log'}")
        time.sleep(0.1)
