"""`bash/stack.sh`: start, stop and show the local servers."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from rich.table import Table

from etl.errors import BusyError, RefusedError, UnavailableError, WarehouseError
from etl.log import logger, run_main
from etl.screens import console, progress
from etl.settings import settings
from etl.stack import configuration, jars, machine, postgres, preparation, supervision, watch
from etl.stack.servers import Server, all_servers, one_server, readers_sign

NEEDED_MEMORY_GB = 4.0
LANE_MEMORY_GB = 2.0
"""Of the real-time lane, beside the others."""
NEEDED_DISK_GB = 2.0
READY_SECONDS = 120


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
    needed = NEEDED_MEMORY_GB if sum(server.group == "base" for server in servers) > 3 else 0.0
    needed += LANE_MEMORY_GB if any(server.name == "stream" for server in servers) else 0.0
    if memory < needed:
        raise RefusedError(f"{memory:.1f} GB of memory are free, the stack needs {needed:.0f} GB")
    disk = shutil.disk_usage(settings().data_dir).free / 2**30
    if disk < NEEDED_DISK_GB:
        raise RefusedError(
            f"{disk:.1f} GB of disk are free under {settings().data_dir}, the stack needs {NEEDED_DISK_GB:.0f} GB; set WAREHOUSE_DATA_DIR"
        )


def up(wanted: set[str]) -> None:
    """Start what does not run yet of some groups or single servers, in order, and return when all of it answers."""
    settings().data_dir.mkdir(parents=True, exist_ok=True)
    with _alone():
        jars.ensure()
        postgres.ensure_secrets()
        servers = {name: server for name, server in all_servers().items() if {name, server.group} & wanted}
        running = {name for name, info in supervision.states().items() if info["statename"] == "RUNNING"}
        waiting = [server for name, server in servers.items() if name not in running]
        if waiting:
            _refuse_what_cannot_work(waiting)
        preparation.make_folders()
        configuration.write_all()
        # A start that adds a group must not stop the groups that already run.
        supervision.write_configuration(all_servers())
        supervision.start_supervisor()
        _start(servers)


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
    preparation.before(server.name)
    state = supervision.states()[server.name]["statename"]
    if state not in ("RUNNING", "STARTING"):
        supervision.call("startProcess", server.name, False)
    _await(server)
    preparation.after(server.name)
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
        if server.name == "readers" and state == "running" and not watch.answers("readers"):
            state = "answers no statement"
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
    for line in fences({name for name, info in known.items() if info["statename"] == "RUNNING"}):
        print(line)
    if (reason := readers_sign("restarted")).exists():
        print(f"readers' last restart by itself: {reason.read_text()}")
    return 0 if all_up else 1


def fences(running: Collection[str] = ()) -> list[str]:
    """Say which fences stand around the readers server, and which do not while some servers are running."""
    here = settings()
    stand = [
        f"HDFS user {here.hdfs_readers_user} may only read, and write below {here.sandbox_path}",
        "metastore role may only SELECT",
        "local files closed to SQL",
        "the loads server and Spark Connect ask for the password of the role etl",
    ]
    missing = []
    if machine.has_own_reader(jars.SPARK_HOME):
        stand.append(f"own operating-system user {here.readers_os_user}")
    else:
        closed = f"only root may enter {jars.SPARK_HOME}"
        why = closed if machine.is_root() else "the stack does not run as root"
        missing.append(f"no operating-system user of its own ({why})")
    if machine.reader_uid(jars.SPARK_HOME) is not None:
        name = here.hdfs_readers_user
        stand.append(f"its processes are {name} to HDFS, and nobody to YARN and the loads' metastore")
    else:
        why = "" if machine.SOCKETS.is_file() else f" (there is no {machine.SOCKETS}: not Linux)"
        missing.append(f"HDFS, YARN and the loads' metastore cannot tell its processes from the loads'{why}")
    if not configuration.is_loopback(here.host):
        missing.append(
            f"the servers listen on {here.host} and can tell processes of this machine only; "
            "on Kubernetes a NetworkPolicy stands for it, elsewhere the network must"
        )
    if "kafka" in running and here.kafka_security == "PLAINTEXT":
        missing.append("Kafka believes every process of this machine (kafka_security)")
    if "mlflow" in running:
        missing.append("MLflow's page believes every process of this machine: stop it when nobody looks at it")
    asked = {"loopback": "nobody is asked, on this machine only", "ldap": f"LDAP ({here.readers_ldap_url})", "none": "NOBODY IS ASKED"}
    return [
        f"readers' fences: {'; '.join(stand)}",
        *(f"readers' fence missing: {one}" for one in missing),
        f"readers' door: {asked[here.readers_authentication]}; {'TLS' if here.readers_tls_file else 'no TLS'}; a statement has "
        f"{here.readers_query_seconds} s, its tasks {here.readers_result_mb} MB each",
    ]


def logs(name: str) -> None:
    """Follow a server's log."""
    path = Path(supervision.log_path(one_server(name).name))
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
    started.add_argument("--yarn", action="store_true", help="also YARN, for bash/submit.sh with spark_master=yarn")
    started.add_argument("--kafka", action="store_true", help="also the broker and its topics, for a lane that runs elsewhere")
    started.add_argument("--realtime", action="store_true", help="also the real-time lane: Kafka, its topics, and what reads them")
    commands.add_parser("down", help="stop every server; data stays")
    commands.add_parser("status", help="state, pid, memory and address of each server")
    shown = commands.add_parser("logs", help="show a server's log")
    shown.add_argument("name")
    commands.add_parser("reset", help="stop and remove all data")
    arguments = parser.parse_args()
    match arguments.command:
        case "up":
            up({"base", *(group for group in ("mlflow", "yarn", "kafka", "realtime") if getattr(arguments, group))})
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
