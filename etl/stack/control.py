"""`bash/stack.sh`: start, stop and show the local servers."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from rich.table import Table

from etl.errors import BusyError, RefusedError, UnavailableError, WarehouseError
from etl.log import logger, run_main
from etl.screens import console, progress
from etl.settings import settings
from etl.stack import configuration, jars, machine, postgres, supervision
from etl.stack.servers import Server, all_servers, hadoop_java, metastore_environment, metastore_java

NEEDED_MEMORY_GB = 4.0
NEEDED_DISK_GB = 2.0
READY_SECONDS = 120
DATABASES = ("raw", "core", "feature", "mart", "ops")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let one `up`, `down` or `reset` work at a time."""
    run = settings().data_dir / "run"
    run.mkdir(parents=True, exist_ok=True)
    with (run / "stack.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError("another bash/stack.sh is at work on this data folder; wait for it to end") from None
        yield


def _refuse_what_cannot_work(servers: list[Server]) -> None:
    """Name a taken port, too little memory or disk before anything starts."""
    taken = [
        f"port {port} ({name} of {server.name}) is taken by {owner}"
        for server in servers
        for name, port in server.ports.items()
        if (owner := machine.taken_port(settings().host, port))
    ]
    if taken:
        raise RefusedError("; ".join(taken) + "; stop it, or set WAREHOUSE_PORT_OFFSET to shift every port of this stack")
    memory = psutil.virtual_memory().available / 2**30
    if memory < NEEDED_MEMORY_GB and len(servers) > 3:
        raise RefusedError(f"{memory:.1f} GB of memory are free, the stack needs {NEEDED_MEMORY_GB:.0f} GB")
    disk = shutil.disk_usage(settings().data_dir).free / 2**30
    if disk < NEEDED_DISK_GB:
        raise RefusedError(
            f"{disk:.1f} GB of disk are free under {settings().data_dir}, the stack needs {NEEDED_DISK_GB:.0f} GB; set WAREHOUSE_DATA_DIR"
        )


def up(groups: set[str]) -> None:
    """Start what does not run yet, in order, and return when all of it answers."""
    settings().data_dir.mkdir(parents=True, exist_ok=True)
    with _alone():
        jars.ensure()
        postgres.ensure_secrets()
        servers = {name: server for name, server in all_servers().items() if server.group in groups}
        running = {name for name, info in supervision.states().items() if info["statename"] == "RUNNING"}
        waiting = [server for name, server in servers.items() if name not in running]
        if waiting:
            _refuse_what_cannot_work(waiting)
        _folders()
        postgres.initialise()
        configuration.write_all()
        _format_namenode()
        # A start that adds a group must not stop the groups that already run.
        supervision.write_configuration(all_servers())
        supervision.start_supervisor()
        _start(servers)


def _folders() -> None:
    here = settings().data_dir
    for name in ("tmp/hadoop", "tmp/loads", "tmp/readers", "logs", "run", "hdfs"):
        (here / name).mkdir(parents=True, exist_ok=True)
    if machine.has_own_reader(jars.SPARK_HOME):
        user = settings().readers_os_user
        machine.ensure_os_user(user)
        shutil.chown(here / "tmp" / "readers", user)
        if not machine.can_enter(user, here):
            raise RefusedError(
                f"{here} is out of reach for the system user {user}; set WAREHOUSE_DATA_DIR to a folder that every user may enter"
            )


def _format_namenode() -> None:
    name = settings().data_dir / "hdfs" / "name"
    mark = settings().data_dir / "hdfs" / "formatted"
    if mark.exists():
        return
    # A format that was killed has no mark, and nothing was stored yet.
    shutil.rmtree(name, ignore_errors=True)
    command = hadoop_java("256m", "org.apache.hadoop.hdfs.server.namenode.NameNode", "-format", "-nonInteractive", "-force")
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise WarehouseError(f"the NameNode's folder {name} could not be formatted: {ran.stderr.strip()[-500:]}")
    mark.touch()


def _start(servers: dict[str, Server]) -> None:
    """Start each server as soon as those it waits for are ready and prepared."""
    done: set[str] = set()
    failure: BaseException | None = None
    with ThreadPoolExecutor(len(servers)) as pool, progress("servers", len(servers)) as shown:
        under_way = {}
        while len(done) < len(servers):
            for name, server in servers.items():
                if failure is None and name not in done and name not in under_way and done.issuperset(server.after):
                    under_way[name] = pool.submit(_start_one, server)
            for name, future in list(under_way.items()):
                if future.done():
                    del under_way[name]
                    failure = failure or future.exception()
                    done.add(name)
                    shown(len(done), len(servers))
            if failure is not None and not under_way:
                raise failure
            time.sleep(0.05)


def _start_one(server: Server) -> None:
    started = time.monotonic()
    before = PREPARE_BEFORE.get(server.name)
    if before:
        before()
    state = supervision.states()[server.name]["statename"]
    if state not in ("RUNNING", "STARTING"):
        supervision.call("startProcess", server.name, False)
    _await(server)
    after = PREPARE_AFTER.get(server.name)
    if after:
        after()
    if state != "RUNNING":
        logger.info("up", server=server.name, seconds=round(time.monotonic() - started, 1))


def _await(server: Server) -> None:
    deadline = time.monotonic() + READY_SECONDS
    problem = ""
    pids: set[int] = set()
    while time.monotonic() < deadline:
        info = supervision.states().get(server.name, {})
        pids.add(int(info.get("pid", 0)))
        # The supervisor starts a dead server again; one that dies three times will not live.
        if info.get("statename") == "FATAL" or len(pids - {0}) > 3:
            break
        try:
            if server.is_ready():
                return
        except (OSError, LookupError, ValueError, WarehouseError) as error:
            # Not ready yet; the last reason is told when time runs out.
            problem = str(error)
        time.sleep(0.2)
    if info.get("statename") == "RUNNING":
        # Alive but of no use; the next `up` starts it anew.
        supervision.call("stopProcess", server.name)
    raise UnavailableError(
        f"{server.name} did not become ready ({info.get('statename', 'unknown')}{': ' + problem if problem else ''}); "
        f"its last line: {_last_line(server.name)}; see bash/stack.sh logs {server.name}"
    )


def _last_line(name: str) -> str:
    path = Path(supervision.log_path(name))
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "(none)")


def _make_metastore_schema() -> None:
    from etl.databases import opened

    with opened("metastore", "metastore") as session, session.cursor() as cursor:
        cursor.execute("SELECT to_regclass('public.\"VERSION\"')")
        row = cursor.fetchone()
        if row and row[0]:
            cursor.execute('SELECT 1 FROM "VERSION"')
            if cursor.fetchone():
                return
        # A schema whose making was killed has no version row; it is made anew.
        cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    main = "org.apache.hadoop.hive.metastore.tools.MetastoreSchemaTool"
    ran = subprocess.run(
        metastore_java("metastore", "256m", main, "-dbType", "postgres", "-initSchema"),
        env={**os.environ, **metastore_environment("metastore")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ran.returncode:
        raise WarehouseError(f"the metastore's schema could not be made: {(ran.stderr or ran.stdout).strip()[-500:]}")


def _make_hdfs_folders() -> None:
    import hdfs

    here = settings()
    # The superuser of HDFS is whoever runs the NameNode.
    client = hdfs.InsecureClient(here.webhdfs_url, user=psutil.Process().username())
    for path, owner, mode in (
        ("/", None, "755"),
        ("/tmp", None, "1777"),  # noqa: S108 - a folder of HDFS
        ("/tmp/hive-loads", here.hdfs_user, "700"),  # noqa: S108
        ("/tmp/hive-readers", here.hdfs_readers_user, "700"),  # noqa: S108
        (f"/user/{here.hdfs_user}", here.hdfs_user, "755"),
        (here.warehouse_path, here.hdfs_user, "755"),
        *((f"{here.warehouse_path}/{database}", here.hdfs_user, "755") for database in DATABASES),
        # Personal data: closed to everybody but the loads.
        (f"{here.warehouse_path}/core/customers_personal", here.hdfs_user, "700"),
        (f"{here.warehouse_path}/raw/customers", here.hdfs_user, "700"),
    ):
        if client.status(path, strict=False) is None:
            client.makedirs(path)
        if owner:
            client.set_owner(path, owner=owner, group=owner)
        client.set_permission(path, mode)


def _make_hive_databases() -> None:
    from etl.sql_server import session

    with session() as opened:
        existing = {row[0] for row in opened.run("SHOW DATABASES")}
        for database in DATABASES:
            if database not in existing:
                opened.run(
                    f"CREATE DATABASE IF NOT EXISTS {database} LOCATION '{settings().hdfs_uri}{settings().warehouse_path}/{database}'"
                )


PREPARE_BEFORE = {"metastore": _make_metastore_schema}
PREPARE_AFTER = {
    "postgres": postgres.ensure_databases,
    "datanode": _make_hdfs_folders,
    "metastore": postgres.grant_metastore_reader,
    "loads": _make_hive_databases,
}


def down() -> None:
    """Stop every server, the last started first."""
    with _alone():
        if not supervision.is_running():
            logger.info("the stack is down")
            return
        for name in reversed(all_servers()):
            if supervision.states().get(name, {}).get("statename") in ("RUNNING", "STARTING", "BACKOFF"):
                supervision.call("stopProcess", name)
        pid = supervision.call("getPID")
        supervision.call("shutdown")
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).wait(30)
        logger.info("the stack is down")


def memory_bytes(pid: int) -> int:
    """Resident memory of a process and its children; pages that Postgres's processes share count once."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        total = 0
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                full = member.memory_full_info() if hasattr(member, "memory_full_info") else member.memory_info()
                total += getattr(full, "pss", full.rss)
        return total
    return 0


def status() -> int:
    """Print state, pid, memory and address of each server; 0 when all of the base group run."""
    known = supervision.states()
    table = Table(title="local stack", title_justify="left")
    for column in ("server", "state", "pid", "memory", "address"):
        table.add_column(column, justify="right" if column in ("pid", "memory") else "left")
    total, all_up = 0, True
    for server in all_servers().values():
        info = known.get(server.name, {})
        state = str(info.get("statename", "STOPPED")).lower()
        pid = int(info.get("pid", 0))
        memory = memory_bytes(pid) if pid else 0
        total += memory
        if server.group == "base":
            all_up &= state == "running"
        elif state == "stopped":
            continue
        addresses = ", ".join(f"{settings().host}:{port}" for port in server.ports.values())
        table.add_row(server.name, state, str(pid or ""), f"{memory / 2**20:,.0f} MB" if pid else "", addresses)
    table.add_section()
    table.add_row("all", "up" if all_up else "not all up", "", f"{total / 2**20:,.0f} MB", f"data: {settings().data_dir}")
    console().print(table)
    for line in fences():
        print(line)
    return 0 if all_up else 1


def fences() -> list[str]:
    """Say which fences stand around the readers server."""
    own_user = (
        f"own operating-system user {settings().readers_os_user}"
        if machine.has_own_reader(jars.SPARK_HOME)
        else "no operating-system user of its own: not root, or a folder that only root may enter"
    )
    return [
        f"readers' fences: {own_user}; HDFS user {settings().hdfs_readers_user} may only read; "
        "metastore role may only SELECT; local files closed to SQL"
    ]


def logs(name: str) -> None:
    """Follow a server's log."""
    if name not in all_servers():
        raise RefusedError(f"there is no server {name}; servers are {', '.join(all_servers())}")
    path = Path(supervision.log_path(name))
    if not path.exists():
        raise RefusedError(f"{name} has not logged anything yet; start it with bash/stack.sh up")
    follow = ["-f"] if sys.stdout.isatty() else []
    os.execvp("tail", ["tail", "-n", "200", *follow, str(path)])


def reset() -> None:
    """Stop the stack and remove all of its data; jars stay."""
    down()
    here = settings().data_dir
    with _alone():
        for entry in here.iterdir():
            # Another stack may have its own folder in here, as that of the tests has.
            is_other = (entry / "run" / "stack.lock").exists()
            if entry != settings().jars_dir and entry.name != "run" and not is_other:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    logger.info("all data is removed", folder=str(here))


def main() -> int | None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="bash/stack.sh", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    started = commands.add_parser("up", help="start what does not run yet; twice is harmless")
    started.add_argument("--mlflow", action="store_true", help="also MLflow's page")
    commands.add_parser("down", help="stop every server; data stays")
    commands.add_parser("status", help="state, pid, memory and address of each server")
    shown = commands.add_parser("logs", help="show a server's log")
    shown.add_argument("name")
    commands.add_parser("reset", help="stop and remove all data")
    arguments = parser.parse_args()
    match arguments.command:
        case "up":
            up({"base", *(["mlflow"] if arguments.mlflow else [])})
        case "down":
            down()
        case "status":
            return status()
        case "logs":
            logs(arguments.name)
        case "reset":
            reset()
    return 0


if __name__ == "__main__":
    run_main(main)
