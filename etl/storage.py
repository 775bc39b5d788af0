"""HDFS over WebHDFS."""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Iterable

import hdfs
from hdfs.util import HdfsError

from etl.settings import settings


@functools.cache
def storage() -> hdfs.InsecureClient:
    """Return the WebHDFS client of the loads' user; paths are absolute, below `settings().warehouse_path`."""
    return hdfs.InsecureClient(settings().webhdfs_url, user=settings().hdfs_user, timeout=60)


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
