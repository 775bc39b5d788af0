"""One server in the foreground, as a container runs it: `python -m etl.stack.serve run|check|prepare NAME...`.

The same servers as those of `bash/stack.sh`, without its supervisor: whoever runs the container starts them again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from etl.databases import password
from etl.errors import UnavailableError
from etl.files import write
from etl.log import logger, run_main
from etl.settings import Role, settings
from etl.stack import configuration, postgres, preparation
from etl.stack.servers import beats, one_server


def run(name: str) -> None:
    """Write a server's configuration, prepare it, and become it."""
    server = one_server(name)
    preparation.make_folders()
    write(_served(), name)
    configuration.write_server(name)
    preparation.before(name)
    os.chdir(server.folder)
    os.execvpe(server.command[0], server.command, {**os.environ, **server.environment})


def _served() -> Path:
    """File with the name of the server that this container runs."""
    return settings().data_dir / "run" / "server"


def check(name: str = "") -> None:
    """Do nothing where a server, by default the one that `run` became, answers as it should.

    Raises
    ------
    UnavailableError
        When it does not.
    """
    try:
        name = name or _served().read_text()
        is_ready = one_server(name).is_ready()
    except (OSError, LookupError, ValueError) as error:
        raise UnavailableError(f"{name or 'the server'} does not answer: {error}") from error
    if not is_ready:
        raise UnavailableError(f"{name} is not ready")


def alive(name: str) -> None:
    """Do nothing where a server that touches a heartbeat has done so of late.

    Raises
    ------
    UnavailableError
        When it has not.
    """
    try:
        is_alive = beats(name)
    except OSError as error:
        raise UnavailableError(f"{name} does not live: {error}") from error
    if not is_alive:
        raise UnavailableError(f"{name} has not given a sign of life for a while")


def prepare(names: list[str]) -> None:
    """Make in servers that answer what the others expect: roles, databases, folders; `secrets` makes passwords."""
    for name in names:
        if name == "secrets":
            postgres.ensure_secrets()
            # Postgres's own image, the readers' metastore, API and loads server get theirs and no other.
            folder = settings().passfile.parent
            write(folder / "postgres.password", password("postgres"), private=True)
            own: dict[str, Role] = {"readers": "metastore_reader", "api": "api", "loads": "etl"}
            for place, role in own.items():
                write(folder / place / "pgpass", f"*:*:*:{role}:{password(role)}\n", private=True)
        else:
            preparation.after(name)
        logger.info("prepared", server=name)


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m etl.stack.serve", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="become the server").add_argument("name")
    commands.add_parser("check", help="exit code 0 when it answers as it should").add_argument("name", nargs="?", default="")
    commands.add_parser("alive", help="exit code 0 when it lives, whether it gets on or not").add_argument("name")
    commands.add_parser("prepare", help="make in servers that answer what others expect").add_argument("names", nargs="+")
    arguments = parser.parse_args()
    match arguments.command:
        case "run":
            run(arguments.name)
        case "check":
            check(arguments.name)
        case "alive":
            alive(arguments.name)
        case "prepare":
            prepare(arguments.names)


if __name__ == "__main__":
    run_main(main)
