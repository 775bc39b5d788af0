"""HDFS over WebHDFS."""

from __future__ import annotations

import functools

import hdfs

from etl.settings import settings


@functools.cache
def storage() -> hdfs.InsecureClient:
    """Return the WebHDFS client of the loads' user; paths are absolute, below `settings().warehouse_path`."""
    return hdfs.InsecureClient(settings().webhdfs_url, user=settings().hdfs_user, timeout=60)
