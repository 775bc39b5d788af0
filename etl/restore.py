"""`bash/restore.sh`: bring the warehouse back from a backup (`etl/backup.py`), into a stack that holds no table.

Nothing is touched before every sum of the backup is verified. Files come first, Postgres afterwards, the metastore last and
in one transaction: what a killed restore has done points to nothing yet, and the next one goes on. A mark in HDFS
says which restore was begun: only that one may go on over what it has filled itself.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from etl import backup, ops
from etl.backup import SOURCE, Manifest, Store
from etl.databases import opened
from etl.errors import ReconciliationError, RefusedError, WarehouseError
from etl.faults import named_faults
from etl.log import logger, run_main
from etl.screens import progress
from etl.settings import settings
from etl.sql_server import session
from etl.stack import control, supervision
from etl.storage import storage
from etl.tables import declared_tables
from etl.trees import Entry, Tree, each, local_chunks, sha256

if TYPE_CHECKING:
    from psycopg2.extensions import cursor

MARK = "_restoring"
# Whatever still reads the metastore's tables must not hang the restore.
LOCK_TIMEOUT = "-c lock_timeout=60s"
# They keep in memory what the restored metastore no longer says, such as the next free numbers of its tables.
RESTARTED = ("metastore", "readers_metastore", "loads", "readers")
NAMED = 3


def finished(store: Store) -> Manifest:
    """Return the manifest.

    Raises
    ------
    RefusedError
        When there is no finished backup, or the manifest is damaged.
    """
    manifest = store.manifest()
    if manifest is None:
        raise RefusedError(f"{store.folder} holds no finished backup; finish it with bash/backup.sh, or name another folder")
    return manifest


def verify(store: Store) -> Manifest:
    """Compare every file of a backup with its sum.

    Raises
    ------
    RefusedError
        When something is missing or damaged.
    """
    manifest = finished(store)
    expected = [(store.folder / dump.file, dump.bytes, dump.sha256) for dump in manifest.dumps]
    listed = store.folder / manifest.files
    damaged: list[Path] = []
    total = sum(dump.bytes for dump in manifest.dumps) + manifest.bytes
    done, lock = 0, threading.Lock()
    with progress("sums", total) as shown:

        def one(item: tuple[Path, int, str]) -> None:
            nonlocal done
            path, length, expected_sum = item
            if not path.is_file() or path.stat().st_size != length or sha256(local_chunks(path)) != expected_sum:
                damaged.append(path)
            with lock:
                done += length
                shown(done, total)

        # What is listed can be believed only if the list can.
        if listed.is_file() and sha256(local_chunks(listed)) == manifest.files_sha256:
            expected += [(store.path(entry), entry.length, entry.sha256) for entry in store.entries(manifest) if not entry.is_folder]
            each(one, expected)
        else:
            damaged.append(listed)
    if damaged:
        named = ", ".join(str(path) for path in sorted(damaged)[:NAMED])
        raise RefusedError(
            f"{len(damaged)} of {len(expected)} files of the backup are damaged or missing ({named}); nothing was touched; "
            "restore another backup, or, where the warehouse still stands, remove these files and run bash/backup.sh again"
        )
    logger.info("every sum is right", files=len(expected), bytes=total)
    return manifest


def refuse_other_addresses(manifest: Manifest, here: dict[str, str]) -> None:
    """Refuse a stack at another address: the metastore, Iceberg's metadata and MLflow name files by it.

    Raises
    ------
    RefusedError
        Naming both addresses.
    """
    for name, uri in manifest.trees.items():
        if here[name] != uri:
            raise RefusedError(
                f"the backup's {name} files lie at {uri}, this stack's at {here[name]}, and the metastore and Iceberg's metadata name them "
                "by their whole address; restore to a stack with the same WAREHOUSE_NAMENODE_HOST, ports, WAREHOUSE_WAREHOUSE_PATH, "
                "WAREHOUSE_MODELS_PATH and WAREHOUSE_DATA_DIR"
            )


def what_is_held(manifest: Manifest) -> list[str]:
    """Return what the stack holds that a restore would replace."""
    found = []
    if tables := backup.pointers()[1]:
        found.append(f"{tables} tables of Hive")
    checks = {"mlflow": ["public.runs"], SOURCE: [table.source for table in declared_tables().values()]}
    for database in (dump.database for dump in manifest.dumps if dump.database in checks):
        with opened(backup.OWNERS[database], database) as connection, connection.cursor() as cursor:
            found += [f"{name} of the database {database}" for name in checks[database] if _has_rows(cursor, name)]
    return found


def _has_rows(cursor: cursor, table: str) -> bool:
    cursor.execute("SELECT to_regclass(%s)", (table,))
    if cursor.fetchone() == (None,):
        return False
    cursor.execute(f"SELECT EXISTS (SELECT 1 FROM {table})")
    return cursor.fetchone() == (True,)


def bring_files(store: Store, manifest: Manifest, trees: dict[str, Tree]) -> None:
    """Bring back files, owners and permissions; what is there already and equal stays.

    Raises
    ------
    WarehouseError
        When a file is not what was backed up after it was written.
    """
    present = {(entry.tree, entry.path): entry for tree in trees.values() for entry in tree.entries()}
    entries = list(store.entries(manifest))
    # Folders first, and with their permissions: what is personal is closed before it arrives.
    for entry in entries:
        if entry.is_folder and (entry.tree, entry.path) not in present:
            trees[entry.tree].make_folder(entry)
    _settle(entries, trees, only_folders=True)
    done, written, lock = 0, 0, threading.Lock()
    with progress("files", manifest.bytes) as shown:

        def one(entry: Entry) -> None:
            nonlocal done, written
            tree = trees[entry.tree]
            there = present.get((entry.tree, entry.path))
            is_new = there is None or there.length != entry.length or not tree.holds(entry)
            if is_new:
                tree.write(entry, local_chunks(store.path(entry)))
                if not tree.holds(entry):
                    raise WarehouseError(
                        f"{tree.uri}/{entry.path} is not what was backed up after it was written; look at its servers, then run again"
                    )
            with lock:
                done += entry.length
                written += is_new
                shown(done, manifest.bytes)

        each(one, (entry for entry in entries if not entry.is_folder))
    _settle(entries, trees)
    logger.info("files are back", files=manifest.file_count, written=written, bytes=manifest.bytes)


def _settle(entries: Sequence[Entry], trees: dict[str, Tree], *, only_folders: bool = False) -> None:
    present = {(entry.tree, entry.path): entry for tree in trees.values() for entry in tree.entries()}
    for entry in entries:
        if entry.is_folder or not only_folders:
            trees[entry.tree].settle(entry, present[entry.tree, entry.path])


def bring_databases(store: Store, manifest: Manifest) -> None:
    """Bring back Postgres's databases, each in one transaction; the metastore last, for it makes all the rest visible."""
    for dump in sorted(manifest.dumps, key=lambda dump: dump.database == "metastore"):
        backup.run_program(
            "pg_restore",
            dump.database,
            "--clean",
            "--if-exists",
            "--no-owner",
            "--single-transaction",
            "--exit-on-error",
            str(store.folder / dump.file),
            options=LOCK_TIMEOUT,
        )
        if dump.database == "warehouse":
            with opened("etl", "warehouse") as connection, connection.cursor() as cursor:
                cursor.execute(
                    "UPDATE ops.runs SET state = 'failed', error = 'was running when the backup was taken' WHERE state = 'running'"
                )
        logger.info("database is back", database=dump.database)


@named_faults()
def restore(store: Store, *, force: bool = False) -> Manifest:
    """Bring everything back.

    Raises
    ------
    RefusedError
        When the backup is damaged or of another address, or the stack holds data; nothing is touched then.
    """
    trees = backup.trees()
    refuse_other_addresses(finished(store), {name: tree.uri for name, tree in trees.items()})
    manifest = verify(store)
    mark = f"{settings().warehouse_path}/{MARK}"
    names = backup.lock_names(list(manifest.tables))
    with backup.locked(names, ops.Run(f"restore-{os.getpid()}", "restore"), wait_seconds=2):
        fingerprint, count = backup.pointers()
        # The metastore came last: whatever else was to come is there, but files may have been lost since.
        is_same = count > 0 and fingerprint == manifest.pointers
        is_own = _read(mark) == manifest.identity and count == 0
        if not force and not is_same and not is_own and (held := what_is_held(manifest)):
            raise RefusedError(
                f"this stack holds data already ({', '.join(held)}); nothing was touched; empty it with bash/stack.sh reset and up, "
                "or add --force to replace it by the backup"
            )
        storage().write(mark, data=manifest.identity.encode(), overwrite=True)
        bring_files(store, manifest, trees)
        if force or not is_same:
            stop_readers_of_the_metastore()
            bring_databases(store, manifest)
        storage().delete(mark)
    return manifest


def _read(path: str) -> str:
    if storage().status(path, strict=False) is None:
        return ""
    with storage().read(path) as reader:
        return reader.read().decode()


def stop_readers_of_the_metastore() -> None:
    """Stop the local servers that keep what the metastore said; elsewhere there is no supervisor, and a person does it."""
    running = [name for name, info in supervision.states().items() if info["statename"] == "RUNNING"]
    for name in reversed(RESTARTED):
        if name in running:
            supervision.call("stopProcess", name)


def check(manifest: Manifest) -> None:
    """Compare the rows of every table, as HiveQL counts them, with the backup's.

    Raises
    ------
    ReconciliationError
        When a table has other rows.
    """
    with session() as hive:
        present = set(backup.existing(hive))
        found = {name: int(hive.run(f"SELECT count(*) FROM {name}")[0][0]) if name in present else None for name in manifest.tables}
    if wrong := [f"{name} has {found[name]} rows, had {rows}" for name, rows in manifest.tables.items() if found[name] != rows]:
        raise ReconciliationError(f"the restored warehouse differs from the backup: {'; '.join(wrong)}; restore again with --force")
    logger.info("every table has its rows", tables=len(found), rows=sum(manifest.tables.values()))


def main() -> None:
    """Parse the command line and restore."""
    parser = argparse.ArgumentParser(prog="bash/restore.sh", description="Bring the warehouse back from a backup.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--verify", action="store_true", help="compare the backup's files with their sums; touch nothing")
    only.add_argument("--check", action="store_true", help="compare the warehouse's rows with the backup's")
    only.add_argument("--force", action="store_true", help="replace what the stack holds")
    given = parser.parse_args()
    began = time.monotonic()
    if not (given.folder / backup.LOCK).exists():
        raise RefusedError(f"{given.folder} holds no backup; name the folder that bash/backup.sh was given")
    with backup.store(given.folder.resolve()) as store:
        if given.verify:
            manifest = verify(store)
        elif given.check:
            manifest = finished(store)
            check(manifest)
        else:
            manifest = restore(store, force=given.force)
            if not supervision.is_running():
                print(
                    "restored; start the metastores and the SQL servers anew, for they remember the old state; then: "
                    f"bash/restore.sh {given.folder} --check"
                )
                return
            control.up({"base"})
            check(manifest)
            logger.info("restored", seconds=round(time.monotonic() - began, 1), state_of=manifest.finished_at)
    print(f"{given.folder}: backup of {manifest.finished_at}, {len(manifest.tables)} tables, {sum(manifest.tables.values()):,} rows: right")


if __name__ == "__main__":
    run_main(main)
