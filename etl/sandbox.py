"""`bash/sandbox.sh`: the tables that analysts make themselves, in the catalog `sandbox` of the readers server.

It is a catalog of Iceberg without a metastore: a table is a folder of HDFS, and a commit a rename in it. So the readers server needs no
right to write anywhere else, whoever may ask it may make tables, and HDFS itself keeps the quota. What lies there is in no backup.
"""

from __future__ import annotations

import argparse
import datetime as dt
import functools
from dataclasses import dataclass
from typing import Any

from hdfs.util import HdfsError

from etl.errors import WarehouseError
from etl.faults import named_faults
from etl.log import logger, run_main
from etl.screens import console
from etl.settings import settings
from etl.storage import Client, client

CATALOG = "sandbox"
LEFT_OVER_DAYS = 1.0
"""Age at which files that no table has are removed: whoever is making one now has newer ones."""


@dataclass(frozen=True)
class SandboxTable:
    """A table of the sandbox: its name without the catalog's, and the time of its first commit."""

    name: str
    folder: str
    created_at: dt.datetime


@functools.cache
def files() -> Client:
    """Return the WebHDFS client of the readers' user, to whom the tables belong."""
    return client(settings().hdfs_readers_user)


def tables() -> list[SandboxTable]:
    """Return the sandbox's tables by name."""
    return sorted((one for one in _walk(settings().sandbox_path) if isinstance(one, SandboxTable)), key=lambda one: one.name)


@named_faults()
def expire(keep_days: float) -> list[str]:
    """Remove tables older than so many days, and what killed statements left; return the tables' names.

    Raises
    ------
    WarehouseError
        When something could not be removed, after all else was.
    """
    now = dt.datetime.now(dt.UTC)
    removed, failed = [], []
    for one in _walk(settings().sandbox_path):
        try:
            if isinstance(one, SandboxTable):
                if one.created_at < now - dt.timedelta(days=keep_days):
                    files().delete(one.folder, recursive=True)
                    removed.append(one.name)
                    logger.info("removed", table=f"{CATALOG}.{one.name}", created=f"{one.created_at:%Y-%m-%d}")
            elif one[1] < now - dt.timedelta(days=LEFT_OVER_DAYS):
                # Not what has come into a folder meanwhile.
                _remove_if_alone(one[0])
        except HdfsError as error:
            failed.append(f"{one.folder if isinstance(one, SandboxTable) else one[0]}: {error}")
    if failed:
        raise WarehouseError(f"{len(failed)} could not be removed from the sandbox, all else was looked at; first {failed[0]}")
    return removed


def _walk(root: str) -> list[SandboxTable | tuple[str, dt.datetime]]:
    """Return tables, and the path and time of every file that none has and of every folder that holds none, what lies in it first."""
    found: list[SandboxTable | tuple[str, dt.datetime]] = []
    # Not by recursion: users nest namespaces as deep as HDFS allows.
    waiting = [(root, dt.datetime.now(dt.UTC))]
    while waiting:
        folder, changed = waiting.pop()
        # Users may give a namespace any name, that of a table's file too.
        commits = [one for one in _listed(f"{folder}/metadata") if one[0].endswith(".metadata.json") and one[1]["type"] == "FILE"]
        if commits and folder != root:
            name = folder.removeprefix(f"{root}/").replace("/", ".")
            found.append(SandboxTable(name, folder, min(_time(status) for _, status in commits)))
            continue
        listed = _listed(folder)
        if folder != root:
            found.append((folder, max((_time(status) for _, status in listed), default=changed)))
        for name, status in listed:
            if status["type"] == "DIRECTORY":
                waiting.append((f"{folder}/{name}", _time(status)))
            else:
                found.append((f"{folder}/{name}", _time(status)))
    return found[::-1]


def _listed(folder: str) -> list[tuple[str, dict[str, Any]]]:
    try:
        return list(files().list(folder, status=True))
    except HdfsError as error:
        # Somebody dropped it meanwhile, or it is no folder.
        if error.exception in ("FileNotFoundException", None):
            return []
        raise


def _remove_if_alone(path: str) -> None:
    try:
        files().delete(path)
    except HdfsError as error:
        if "PathIsNotEmptyDirectoryException" not in str(error.exception):
            raise


def _time(status: dict[str, Any]) -> dt.datetime:
    return dt.datetime.fromtimestamp(status["modificationTime"] / 1000, dt.UTC)


@named_faults()
def show() -> None:
    """Print the sandbox's tables, and how much of its room is taken."""
    from rich.table import Table

    screen = Table("table", "files", "MB", "created", "removed from")
    for one in tables():
        held = files().content(one.folder)
        ends = one.created_at + dt.timedelta(days=settings().sandbox_keep_days)
        screen.add_row(
            f"{CATALOG}.{one.name}",
            f"{int(held['fileCount']):,}",
            f"{int(held['length']) / 2**20:,.1f}",
            f"{one.created_at:%Y-%m-%d}",
            f"{ends:%Y-%m-%d}",
        )
    console().print(screen)
    told = files().content(settings().sandbox_path)
    print(f"{int(told['spaceConsumed']) / 2**20:,.1f} of {int(told['spaceQuota']) / 2**20:,.0f} MB are taken")


def main() -> None:
    """Parse the command line and show the tables."""
    argparse.ArgumentParser(prog="bash/sandbox.sh", description=__doc__).parse_args()
    show()


if __name__ == "__main__":
    run_main(main)
