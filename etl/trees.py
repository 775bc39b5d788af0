"""Trees of files that a backup copies and a restore brings back: a folder of HDFS, or one of this machine.

Both say of each file whether it still is the one that was copied, and give back content, owner and permission.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import unquote, urlsplit

import psutil
from hdfs.util import HdfsError

from etl.errors import WarehouseError
from etl.settings import settings
from etl.storage import client, storage

STREAMS = 4
"""Files that are copied at a time."""
CHUNK_BYTES = 1024 * 1024
SHA256 = "sha256"

Item = TypeVar("Item")


@dataclass(frozen=True)
class Entry:
    """A file or a folder of a tree.

    Attributes
    ----------
    tree
        Name of its tree in the backup.
    path
        Below the tree's root, without a leading slash; empty for the root itself.
    owner, group, permission
        As HDFS tells them, the permission in octal digits; of a file of this machine the permission only.
    length, block_size
        Of a file, bytes.
    checksum
        Of a file's content, as its tree computes it.
    sha256
        Of a file's content, as it was copied.
    identity
        Changes whenever the file does, and is free to ask for; it is not kept.
    """

    tree: str
    path: str
    is_folder: bool
    permission: str
    owner: str = ""
    group: str = ""
    length: int = 0
    block_size: int = 0
    checksum: str = ""
    sha256: str = ""
    identity: str = ""


class ChangedError(Exception):
    """A file is being written, or went away while it was read: nothing that is published points to it."""


class Tree(Protocol):
    """What copying needs of a tree."""

    name: str
    uri: str

    def entries(self) -> Iterator[Entry]:
        """Return folders and files, a folder before what lies in it; nothing where there is no tree."""

    def checksum(self, entry: Entry) -> str:
        """Return the checksum of a file's content; raises ChangedError."""

    def read(self, entry: Entry) -> Iterator[bytes]:
        """Return a file's content, a part at a time; raises ChangedError."""

    def holds(self, entry: Entry) -> bool:
        """Tell whether the tree's file is the one that was backed up."""

    def write(self, entry: Entry, content: Iterable[bytes]) -> None:
        """Write a file whole, over the one that is there."""

    def make_folder(self, entry: Entry) -> None:
        """Make a folder."""

    def settle(self, entry: Entry, present: Entry) -> None:
        """Give what is there the owner and the permission of what was backed up."""


class HdfsTree:
    """A folder of HDFS."""

    def __init__(self, name: str, root: str) -> None:
        self.name = name
        self.uri = f"{settings().hdfs_uri}{root}"
        self._root = root

    def _path(self, entry: Entry) -> str:
        return f"{self._root}/{entry.path}".rstrip("/")

    def entries(self) -> Iterator[Entry]:
        """Return folders and files as HDFS lists them."""
        top = storage().status(self._root, strict=False)
        if top is None:
            return
        yield self._entry("", top)
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            try:
                listed = storage().list(f"{self._root}/{folder}".rstrip("/"), status=True)
            except HdfsError as error:
                # What a run removes while it is listed was published by none.
                if error.exception == "FileNotFoundException":
                    continue
                raise
            for name, status in listed:
                entry = self._entry(f"{folder}/{name}".lstrip("/"), status)
                if entry.is_folder:
                    waiting.append(entry.path)
                yield entry

    def _entry(self, path: str, status: dict[str, object]) -> Entry:
        return Entry(
            self.name,
            path,
            status["type"] == "DIRECTORY",
            str(status["permission"]),
            str(status["owner"]),
            str(status["group"]),
            int(str(status["length"])),
            int(str(status["blockSize"])),
            identity=f"{status['fileId']} {status['length']} {status['modificationTime']}",
        )

    def checksum(self, entry: Entry) -> str:
        """Return HDFS's own checksum, with the name of its algorithm; of a file that has none, the SHA-256."""
        try:
            found = storage().checksum(self._path(entry))
        except HdfsError as error:
            if "is under construction" in str(error):
                raise ChangedError from error
            self._raise_if_changed(entry, error)
            if error.exception == "NullPointerException":
                # Spark writes the checkpoints of its streams without checksums, and a DataNode that is asked for one has no other word.
                return f"{SHA256} {sha256(self.read(entry))}"
            raise
        return f"{found['algorithm']} {found['bytes']}"

    def read(self, entry: Entry) -> Iterator[bytes]:
        """Return a file's content; the DataNode compares it with its checksums on the way."""
        try:
            with storage().read(self._path(entry), chunk_size=CHUNK_BYTES) as chunks:
                yield from chunks
        except (HdfsError, WarehouseError) as error:
            self._raise_if_changed(entry, error)
            raise
        # What is written over meanwhile is neither the old nor the new one.
        self._raise_if_changed(entry)

    def _raise_if_changed(self, entry: Entry, error: Exception | None = None) -> None:
        status = storage().status(self._path(entry), strict=False)
        if status is None or self._entry(entry.path, status).identity != entry.identity:
            raise ChangedError from error

    def holds(self, entry: Entry) -> bool:
        """Compare HDFS's checksums; where it computes them in another way than the backup's, the content."""
        found = self.checksum(entry)
        if found.split()[0] == entry.checksum.split()[0]:
            return found == entry.checksum
        return sha256(self.read(entry)) == entry.sha256

    def write(self, entry: Entry, content: Iterable[bytes]) -> None:
        """Write a file with the block size that it had: HDFS's checksum depends on it."""
        storage().write(self._path(entry), data=content, overwrite=True, permission=entry.permission, blocksize=entry.block_size or None)

    def make_folder(self, entry: Entry) -> None:
        """Make a folder."""
        storage().makedirs(self._path(entry), permission=entry.permission)

    def settle(self, entry: Entry, present: Entry) -> None:
        """Set what differs."""
        if present.permission != entry.permission:
            storage().set_permission(self._path(entry), entry.permission)
        if (present.owner, present.group) != (entry.owner, entry.group):
            try:
                # Only HDFS's superuser may: whoever runs the NameNode, as on the local stack.
                superuser = client(psutil.Process().username())
                superuser.set_owner(self._path(entry), owner=entry.owner, group=entry.group)
            except HdfsError as error:
                raise WarehouseError(
                    f"{self._path(entry)} in HDFS belongs to {present.owner}:{present.group}, not to {entry.owner}:{entry.group}, and "
                    f"{psutil.Process().username()} may not change it; restore as the user that runs the NameNode"
                ) from error


class LocalTree:
    """A folder of this machine."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.uri = root.as_uri()
        self._root = root

    def entries(self) -> Iterator[Entry]:
        """Return folders and files."""
        if not self._root.exists():
            return
        for path in [self._root, *sorted(self._root.rglob("*"))]:
            status = path.stat()
            relative = path.relative_to(self._root).as_posix()
            yield Entry(
                self.name,
                "" if relative == "." else relative,
                path.is_dir(),
                f"{status.st_mode & 0o777:o}",
                length=0 if path.is_dir() else status.st_size,
                identity=f"{status.st_ino} {status.st_size} {status.st_mtime_ns}",
            )

    def checksum(self, entry: Entry) -> str:
        """Return the SHA-256: models' files are few and small."""
        return f"{SHA256} {sha256(self.read(entry))}"

    def read(self, entry: Entry) -> Iterator[bytes]:
        """Return a file's content."""
        try:
            yield from local_chunks(self._root / entry.path)
        except FileNotFoundError as error:
            raise ChangedError from error

    def holds(self, entry: Entry) -> bool:
        """Compare the content."""
        return self.checksum(entry) == entry.checksum

    def write(self, entry: Entry, content: Iterable[bytes]) -> None:
        """Write a file whole."""
        write_local(self._root / entry.path, content)

    def make_folder(self, entry: Entry) -> None:
        """Make a folder."""
        (self._root / entry.path).mkdir(parents=True, exist_ok=True)

    def settle(self, entry: Entry, present: Entry) -> None:
        """Set the permission."""
        if present.permission != entry.permission:
            (self._root / entry.path).chmod(int(entry.permission, 8))


def tree_of(name: str, uri: str) -> Tree:
    """Return the tree at an address, `hdfs://...` of this warehouse or `file:///...`."""
    parts = urlsplit(uri)
    return HdfsTree(name, unquote(parts.path)) if parts.scheme == "hdfs" else LocalTree(name, Path(unquote(parts.path)))


def local_chunks(path: Path) -> Iterator[bytes]:
    """Return the content of a file of this machine, a part at a time."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def sha256(content: Iterable[bytes]) -> str:
    """Return the SHA-256 of a content."""
    total = hashlib.sha256()
    for chunk in content:
        total.update(chunk)
    return total.hexdigest()


def write_local(path: Path, content: Iterable[bytes]) -> tuple[int, str]:
    """Write a file of this machine whole or not at all; return its bytes and SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    total, length = hashlib.sha256(), 0
    with partial.open("wb") as file:
        for chunk in content:
            file.write(chunk)
            total.update(chunk)
            length += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return length, total.hexdigest()


def each(work: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Do some work for each of many items, a few at a time; the first failure stops the others and is raised."""
    iterator, lock, stopped = iter(items), threading.Lock(), threading.Event()

    def drain() -> None:
        try:
            while not stopped.is_set():
                with lock:
                    item = next(iterator, None)
                if item is None:
                    return
                work(item)
        except BaseException:
            stopped.set()
            raise

    with ThreadPoolExecutor(STREAMS) as pool:
        for ended in [pool.submit(drain) for _ in range(STREAMS)]:
            ended.result()
