"""`bash/backup.sh`: the warehouse's own state in one folder. Postgres's databases, HDFS, models' files; secrets are not in it.

Why the parts fit together. A file is written before anything points to it (a partition, Iceberg's metadata, a model's
version) and is never changed. Only a writer removes files, under its table's lock. So while all writers' locks are
held, the databases are dumped first and the files listed afterwards: whatever a dump points to is in the list, and stays
until it is copied. A server may still be committing for a run that died; such a commit moves a pointer of the metastore before
it removes anything, so the pointers are compared before the dump and after the copy: where one has moved, it is done again.

The locks are held shortly, for a first pass copies without them what is there already: files are copied once, by path, length and
HDFS's checksum. The manifest is written last; until then the folder holds the backup before it, whole.
"""

from __future__ import annotations

import argparse
import datetime as dt
import fcntl
import hashlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from etl import core, events, ops
from etl.batches import tool_version
from etl.databases import opened
from etl.errors import BusyError, RefusedError, WarehouseError
from etl.faults import named_faults
from etl.log import logger, run_main
from etl.maintain import DATABASES
from etl.screens import progress
from etl.settings import Role, settings
from etl.sql_server import Session, session
from etl.stack import machine
from etl.stack.postgres import OWNERS
from etl.tables import declared_tables
from etl.trees import ChangedError, Entry, Tree, each, local_chunks, sha256, tree_of, write_local

MANIFEST = "manifest.json"
JOURNAL = "copied.jsonl"
FORMAT = 1
SOURCE = "bank"
"""The database that belongs to the bank: backed up only where it is asked for."""
OWN = ("metastore", "warehouse", "mlflow")
PASSES = 3
COUNTED = ("raw", *DATABASES)


@dataclass(frozen=True)
class Dump:
    """One database of Postgres in a backup."""

    database: str
    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a finished backup holds.

    Attributes
    ----------
    trees
        Addresses of the copied trees, by name; the metastore and Iceberg's metadata name them.
    files
        Name of the list of entries, and its SHA-256.
    tables
        Rows by qualified name, as HiveQL counted them.
    pointers
        Fingerprint of what the metastore points to.
    """

    started_at: str
    finished_at: str
    version: str
    trees: dict[str, str]
    dumps: tuple[Dump, ...]
    files: str
    files_sha256: str
    file_count: int
    bytes: int
    tables: dict[str, int]
    pointers: str
    format: int = FORMAT

    def to_json(self) -> str:
        """Return its text, with a sum over itself."""
        plain = asdict(self)
        return json.dumps({**plain, "sha256": _sum(plain)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read a manifest; raises ValueError where it is not what was written."""
        plain = json.loads(text)
        if plain.pop("sha256") != _sum(plain) or plain["format"] != FORMAT:
            raise ValueError("its sum differs")
        return cls(**{**plain, "dumps": tuple(Dump(**one) for one in plain["dumps"])})

    @property
    def identity(self) -> str:
        """Tell this backup from any other."""
        return _sum(asdict(self))


def _sum(plain: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


@dataclass
class Store:
    """The folder of a backup."""

    folder: Path
    known: dict[tuple[str, str], Entry] = field(default_factory=dict)
    """What is copied, by tree and path, with the sums it had."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def path(self, entry: Entry) -> Path:
        """Return where a file's copy lies."""
        return self.folder / entry.tree / entry.path

    def manifest(self) -> Manifest | None:
        """Return the manifest, or None where no backup is finished.

        Raises
        ------
        RefusedError
            When it is damaged.
        """
        path = self.folder / MANIFEST
        if not path.exists():
            return None
        try:
            return Manifest.from_json(path.read_text(encoding="utf-8"))
        except (ValueError, KeyError, TypeError) as error:
            raise RefusedError(f"{path} is damaged ({error}); nothing was touched, take another backup") from error

    def entries(self, manifest: Manifest) -> Iterator[Entry]:
        """Return what a finished backup lists."""
        with (self.folder / manifest.files).open(encoding="utf-8") as lines:
            for line in lines:
                yield Entry(**json.loads(line))

    def recall(self) -> None:
        """Find out what is copied already: by the backup before this one, and by a run that was stopped."""
        if before := self.manifest():
            for entry in self.entries(before):
                self.known[entry.tree, entry.path] = entry
        journal = self.folder / JOURNAL
        for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []:
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError):
                # The last line of a run that was killed.
                continue
            self.known[entry.tree, entry.path] = entry

    def is_copied(self, entry: Entry, checksum: str) -> Entry | None:
        """Return the copy of a file, where there is one of this length and checksum."""
        copy = self.known.get((entry.tree, entry.path))
        if copy is None or (copy.length, copy.checksum) != (entry.length, checksum):
            return None
        path = self.path(entry)
        return copy if path.is_file() and path.stat().st_size == entry.length else None

    def remember(self, entry: Entry) -> None:
        """Note that a file is copied."""
        with self._lock:
            self.known[entry.tree, entry.path] = entry
            with (self.folder / JOURNAL).open("a", encoding="utf-8") as journal:
                journal.write(_line(entry))

    def remove_others(self, manifest: Manifest) -> None:
        """Remove what the finished backup does not hold."""
        kept = {self.path(entry) for entry in self.entries(manifest)}
        kept |= {self.folder / name for name in (MANIFEST, LOCK, manifest.files, *(dump.file for dump in manifest.dumps))}
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_dir():
                if path not in kept and not any(path.iterdir()):
                    path.rmdir()
            elif path not in kept:
                path.unlink()


LOCK = ".lock"


def _line(entry: Entry) -> str:
    return json.dumps(asdict(replace(entry, identity=""))) + "\n"


@contextmanager
def store(folder: Path) -> Iterator[Store]:
    """Open a backup's folder, alone.

    Raises
    ------
    BusyError
        When another run works in it.
    """
    # Read only: a restore may find the folder so.
    with (folder / LOCK).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"another backup or restore works in {folder}; wait for it to end") from None
        yield Store(folder)


def trees() -> dict[str, Tree]:
    """Return what is copied besides Postgres, by name."""
    return {
        "hdfs": tree_of("hdfs", f"{settings().hdfs_uri}{settings().warehouse_path}"),
        "models": tree_of("models", settings().models_uri),
    }


def pointers() -> tuple[str, int]:
    """Return a fingerprint of what the metastore points to, partitions and Iceberg's metadata, and how many tables it has."""
    with opened("metastore", "metastore") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('public.\"TBLS\"')")
        if cursor.fetchone() == (None,):
            return "", 0
        cursor.execute(
            'SELECT d."NAME", t."TBL_NAME", p."PART_NAME", s."LOCATION", o."PARAM_VALUE" FROM "TBLS" t JOIN "DBS" d USING ("DB_ID") '
            'LEFT JOIN "PARTITIONS" p USING ("TBL_ID") LEFT JOIN "SDS" s ON s."SD_ID" = coalesce(p."SD_ID", t."SD_ID") '
            'LEFT JOIN "TABLE_PARAMS" o ON o."TBL_ID" = t."TBL_ID" AND o."PARAM_KEY" = \'metadata_location\' ORDER BY 1, 2, 3'
        )
        found = cursor.fetchall()
    return hashlib.sha256(json.dumps(found).encode()).hexdigest(), len({row[:2] for row in found})


def locked(names: Sequence[str], run: ops.Run, wait_seconds: float) -> ExitStack:
    """Be the one writer of everything; the caller closes what is returned."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(ops.writer(name, run, wait_seconds))
        return stack.pop_all()


def lock_names(tables: Sequence[str]) -> list[str]:
    """Return the names of the locks under which tables are written: of those that are declared, and of some more in Iceberg."""
    declared = list(declared_tables())
    names = [*(f"raw.{name}" for name in declared), *(f"core.{name}" for name in declared), "feature.transactions"]
    names += ["mart.predictions", events.TABLE]
    names += [core.lock_name(*table.split(".")) for table in tables if table.split(".")[0] in DATABASES]
    return list(dict.fromkeys(names))


def existing(hive: Session) -> list[str]:
    """Return the qualified names of all tables."""
    return [f"{database}.{name}" for database in COUNTED for name in sorted(core.existing(hive, database))]


def dump(folder: Path, database: str, stamp: str) -> Dump:
    """Dump a database as its owner.

    Raises
    ------
    WarehouseError
        When pg_dump fails, with its own sentence.
    """
    file = folder / "postgres" / f"{database}-{stamp}.dump"
    file.parent.mkdir(exist_ok=True)
    run_program("pg_dump", database, "--format=custom", f"--file={file}")
    return Dump(database, str(file.relative_to(folder)), file.stat().st_size, sha256(local_chunks(file)))


def run_program(name: str, database: str, *arguments: str, options: str = "") -> None:
    """Run a program of Postgres on a database, as its owner."""
    role: Role = OWNERS[database]
    with opened(role, database):
        # Says in one sentence what is wrong with the server or the role.
        pass
    address = settings().dsn(role, database, f"warehouse {name}") + (f" options='{options}'" if options else "")
    command = [str(machine.postgres_program(name)), f"--dbname={address}", "--no-password", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        said = ran.stderr.strip().splitlines() or [str(ran.returncode)]
        raise WarehouseError(f"{name} of the database {database} failed: {said[0]}; correct it and run again")


class Copier:
    """Copies trees into a store, each file once."""

    def __init__(self, into: Store) -> None:
        self._store = into
        self._seen: dict[tuple[str, str, str], str] = {}
        """Checksums of this run by tree, path and identity: the second pass need not ask again."""
        self.copied_files = self.copied_bytes = 0
        self._lock = threading.Lock()

    def copy(self, sources: Sequence[Tree], listed: Path | None) -> tuple[int, int]:
        """Copy what is not copied; write the list of all entries, where one is wanted. Returns files and bytes of the trees."""
        by_name = {tree.name: tree for tree in sources}
        entries = [entry for tree in sources for entry in tree.entries()]
        total = sum(entry.length for entry in entries)
        kept: dict[int, Entry] = {at: entry for at, entry in enumerate(entries) if entry.is_folder}
        done = 0

        with progress("files", total) as shown:

            def one(item: tuple[int, Entry]) -> None:
                nonlocal done
                at, entry = item
                copy = self._one(by_name[entry.tree], entry)
                with self._lock:
                    done += entry.length
                    shown(done, total)
                    if copy is not None:
                        kept[at] = copy

            each(one, (item for item in enumerate(entries) if not item[1].is_folder))
        if listed is not None:
            write_local(listed, (_line(kept[at]).encode() for at in sorted(kept)))
        files = [entry for entry in kept.values() if not entry.is_folder]
        return len(files), sum(entry.length for entry in files)

    def _one(self, tree: Tree, entry: Entry) -> Entry | None:
        """Copy one file; None where nothing that is published can point to it."""
        try:
            place = (entry.tree, entry.path, entry.identity)
            checksum = self._seen.get(place) or tree.checksum(entry)
            copy = self._store.is_copied(entry, checksum)
            if copy is None:
                length, total = write_local(self._store.path(entry), tree.read(entry))
                if length != entry.length:
                    raise WarehouseError(f"{tree.uri}/{entry.path} gave {length} of {entry.length} bytes; look at HDFS, then run again")
                copy = replace(entry, checksum=checksum, sha256=total)
                self._store.remember(copy)
                with self._lock:
                    self.copied_files += 1
                    self.copied_bytes += length
            self._seen[place] = checksum
        except ChangedError:
            return None
        # Owner and permission as they are now.
        return replace(entry, checksum=copy.checksum, sha256=copy.sha256)


@named_faults()
def backup(into: Store, run: ops.Run, *, with_source: bool = False) -> Manifest:
    """Bring a folder up to the warehouse's present state.

    Raises
    ------
    BusyError
        When a table is written for too long, or the server goes on committing for runs that died.
    """
    began = time.monotonic()
    started_at = dt.datetime.now(dt.UTC)
    stamp = f"{started_at:%Y%m%dT%H%M%SZ}"
    sources = trees()
    copier = Copier(into)
    into.recall()
    copier.copy(list(sources.values()), None)
    logger.info("copied while the warehouse goes on", files=copier.copied_files, bytes=copier.copied_bytes)
    with session() as hive, locked(lock_names(existing(hive)), run, ops.WRITER_WAIT_SECONDS):
        held = time.monotonic()
        for _ in range(PASSES):
            before, _count = pointers()
            dumps = [dump(into.folder, database, stamp) for database in OWN]
            tables = {name: int(hive.run(f"SELECT count(*) FROM {name}")[0][0]) for name in existing(hive)}
            listed = into.folder / f"files-{stamp}.jsonl"
            count, length = copier.copy(list(sources.values()), listed)
            if pointers()[0] == before:
                break
            logger.warning("the server has committed for a run that died: dumping again")
        else:
            raise BusyError("the server goes on committing for runs that died; wait a minute and run again")
        seconds_locked = round(time.monotonic() - held, 1)
    if with_source:
        # Later than all that was loaded from it; nobody's lock holds a bank.
        dumps.append(dump(into.folder, SOURCE, stamp))
    manifest = Manifest(
        started_at=started_at.isoformat(),
        finished_at=dt.datetime.now(dt.UTC).isoformat(),
        version=tool_version(),
        trees={name: tree.uri for name, tree in sources.items()},
        dumps=tuple(dumps),
        files=listed.name,
        files_sha256=sha256(local_chunks(listed)),
        file_count=count,
        bytes=length,
        tables=tables,
        pointers=before,
    )
    # What the manifest names is on the disk before it.
    os.sync()
    write_local(into.folder / MANIFEST, [manifest.to_json().encode()])
    into.remove_others(manifest)
    logger.info(
        "backed up",
        files=count,
        bytes=length,
        copied_files=copier.copied_files,
        copied_bytes=copier.copied_bytes,
        tables=len(tables),
        seconds=round(time.monotonic() - began, 1),
        seconds_locked=seconds_locked,
    )
    return manifest


def prepared(folder: Path) -> Path:
    """Return the folder of a backup, made where it is missing, closed to others: personal data will lie in it.

    Raises
    ------
    RefusedError
        When it is under the data folder, which `bash/stack.sh reset` removes, or holds something else.
    """
    folder = folder.resolve()
    if folder.is_relative_to(settings().data_dir.resolve()):
        raise RefusedError(f"{folder} is in the data folder, which bash/stack.sh reset removes; name a folder outside, on another disk")
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / LOCK).exists())):
        raise RefusedError(f"{folder} holds something that is no backup; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    (folder / LOCK).touch()
    return folder


def main() -> None:
    """Parse the command line and back up."""
    parser = argparse.ArgumentParser(prog="bash/backup.sh", description="Back up Postgres, HDFS and models' files into a folder.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--with-source", action="store_true", help=f"also the database {SOURCE}, where it is the local stack's")
    given = parser.parse_args()
    os.umask(0o077)
    with store(prepared(given.folder)) as into, ops.run("backup") as run:
        manifest = backup(into, run, with_source=given.with_source)
    print(
        f"{given.folder}: {len(manifest.tables)} tables, {manifest.file_count:,} files, {manifest.bytes:,} bytes; "
        f"test it with bash/restore.sh {given.folder} --verify"
    )


if __name__ == "__main__":
    run_main(main)
