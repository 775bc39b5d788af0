"""HDFS over WebHDFS.

Its errors are told apart here, once for everybody: what is not there stays an `HdfsError` with the exception FileNotFoundException, a
server that does not answer is an `UnavailableError`, a file that cannot be read though every server answers a `DamagedError`.
"""

from __future__ import annotations

import functools
import posixpath
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import hdfs
import requests
import urllib3
from hdfs.util import HdfsError

from etl import nodes
from etl.errors import UnavailableError, WarehouseError
from etl.faults import of_hdfs
from etl.settings import settings

DAMAGE_ATTEMPTS, DAMAGE_PAUSE_SECONDS = 3, 2.0
"""How often a file is read again before it counts as damaged: a DataNode that starts anew reports its blocks first."""
_PROBED_BYTES = 1024 * 1024
_NO_BLOCK = ("No active nodes contain this block", "BlockMissingException", "ChecksumException")


class DamagedError(WarehouseError):
    """HDFS cannot read a file though all its servers answer: blocks are lost or damaged."""


def _with_named_faults(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def named(self: Client, path: str, *arguments: Any, **options: Any) -> Any:
        with self.named_faults(path):
            return method(self, path, *arguments, **options)

    return named


class Client(hdfs.InsecureClient):
    """A WebHDFS client whose errors say what is wrong."""

    @contextmanager
    def named_faults(self, path: str) -> Iterator[None]:
        """Turn errors of the connection, and those that HDFS reports about its servers, into this project's."""
        try:
            yield
        except HdfsError as error:
            if any(word in f"{error.exception} {error}" for word in _NO_BLOCK):
                raise self._unread(path, error) from error
            if isinstance(fault := of_hdfs(error), UnavailableError):
                raise fault from error
            raise
        except (requests.exceptions.ChunkedEncodingError, urllib3.exceptions.ProtocolError) as error:
            raise self._unread(path, error) from error
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
            raise UnavailableError(
                f"HDFS at {self.url} went away: {' '.join(str(error).split())[:300]}; run again when it answers (bash/stack.sh status)"
            ) from error

    def _unread(self, path: str, error: Exception) -> WarehouseError:
        """Return what a file's end in the middle means: a DataNode that died, or a block that is lost or damaged."""
        if self.is_damaged(path):
            return DamagedError(
                f"{path} in HDFS is damaged: its servers answer, and it cannot be read ({' '.join(str(error).split())[:200]}); "
                "bring it back from a backup, or, where it belongs to a table's batch, load the table in full"
            )
        return UnavailableError(
            f"HDFS at {self.url} cannot read {path} now: {' '.join(str(error).split())[:200]}; run again when its DataNodes answer "
            "(bash/stack.sh status)"
        )

    def is_damaged(self, path: str) -> bool:
        """Tell whether a file cannot be read again and again while every server answers."""
        for _ in range(DAMAGE_ATTEMPTS):
            if not nodes.all_answer():
                return False
            try:
                with super().read(path, chunk_size=_PROBED_BYTES) as chunks:
                    for _ in chunks:
                        pass
            except (HdfsError, requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
                if getattr(error, "exception", None) == "FileNotFoundException":
                    return False
                time.sleep(DAMAGE_PAUSE_SECONDS)
            else:
                return False
        return nodes.all_answer()

    @contextmanager
    def read(self, hdfs_path: str, **options: Any) -> Iterator[Any]:
        """Read a file; an error while its content arrives is told apart, too."""
        with self.named_faults(hdfs_path), super().read(hdfs_path, **options) as content:
            yield content

    def write(self, hdfs_path: str, data: bytes | Iterable[bytes], **options: Any) -> None:
        """Write a file; an error of who gives its content is raised as it is, and not as one of the connection to HDFS."""
        failed: list[Exception] = []

        def content(chunks: Iterable[bytes]) -> Iterator[bytes]:
            try:
                yield from chunks
            except Exception as error:
                failed.append(error)
                raise

        with self.named_faults(hdfs_path):
            try:
                super().write(hdfs_path, data=data if isinstance(data, bytes) else content(data), **options)
            except Exception:
                # Requests takes an OSError of its content for one of the connection.
                if failed:
                    raise failed[0] from failed[0].__cause__
                raise

    def status(self, hdfs_path: str, strict: bool = True) -> Any:
        """Return the status of a file or folder; not strict, None where it is not there (and not for any error, as the library has it)."""
        with self.named_faults(hdfs_path):
            try:
                return super().status(hdfs_path)
            except HdfsError as error:
                if strict or error.exception != "FileNotFoundException":
                    raise
                return None

    list = _with_named_faults(hdfs.InsecureClient.list)
    content = _with_named_faults(hdfs.InsecureClient.content)
    checksum = _with_named_faults(hdfs.InsecureClient.checksum)
    delete = _with_named_faults(hdfs.InsecureClient.delete)
    makedirs = _with_named_faults(hdfs.InsecureClient.makedirs)
    rename = _with_named_faults(hdfs.InsecureClient.rename)
    set_owner = _with_named_faults(hdfs.InsecureClient.set_owner)
    set_permission = _with_named_faults(hdfs.InsecureClient.set_permission)
    _rename = _with_named_faults(hdfs.InsecureClient._rename)


def client(user: str) -> Client:
    """Return a WebHDFS client of a user; paths are absolute, below `settings().warehouse_path`."""
    return Client(settings().webhdfs_url, user=user, timeout=60)


@functools.cache
def storage() -> Client:
    """Return the WebHDFS client of the loads' user."""
    return client(settings().hdfs_user)


def names_in(folder: str) -> list[str]:
    """Return the names in an HDFS folder, none where it does not exist."""
    try:
        return list(storage().list(folder))
    except HdfsError as error:
        if error.exception == "FileNotFoundException":
            return []
        raise


def put(path: str, content: bytes | Iterable[bytes]) -> None:
    """Write a file so that it is there whole or not at all; one that is there stays as it is."""
    if storage().status(path, strict=False) is not None:
        return
    part = posixpath.join(posixpath.dirname(path), "_" + posixpath.basename(path))
    storage().write(part, content, overwrite=True)
    storage().rename(part, path)


def replace(path: str, content: bytes) -> None:
    """Write a file in the place of one that is there; readers find the old one or the new one, whole."""
    part = posixpath.join(posixpath.dirname(path), "_replacing-" + posixpath.basename(path))
    storage().write(part, content, overwrite=True)
    # Only this option of WebHDFS, which the library's own rename lacks, replaces in one step.
    storage()._rename(part, destination=path, renameoptions="OVERWRITE")
