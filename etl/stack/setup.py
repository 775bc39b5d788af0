"""Check or install what the servers need: Java, Postgres's programs, jars."""

from __future__ import annotations

import subprocess

from etl.errors import RefusedError
from etl.log import logger, run_main
from etl.stack import jars, machine


def main() -> None:
    """Prepare this machine; every step says what it did or what is missing."""
    try:
        machine.java_home()
    except RefusedError:
        command = machine.install_hint()
        if command is None:
            raise
        logger.info("java: installing", command=" ".join(command))
        if command[0] == "apt-get":
            subprocess.run(["apt-get", "update", "-qq"], check=False)
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        machine.java_home.cache_clear()
        machine.java_home()
    machine.postgres_bin()
    jars.ensure()


if __name__ == "__main__":
    run_main(main)
