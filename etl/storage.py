"""HDFS over WebHDFS, and where models' files lie."""

from __future__ import annotations

import functools

import hdfs

from etl.settings import settings


@functools.cache
def storage() -> hdfs.InsecureClient:
    """Return the WebHDFS client of the loads' user; paths are absolute, below `settings().warehouse_path`."""
    return hdfs.InsecureClient(settings().webhdfs_url, user=settings().hdfs_user, timeout=60)


def models_uri() -> str:
    """Return where files of MLflow's runs lie: the setting `models_path`, by default a folder of this machine."""
    return settings().models_path.rstrip("/") or (settings().data_dir / "mlflow").resolve().as_uri()
