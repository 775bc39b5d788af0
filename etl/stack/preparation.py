"""What a server needs before it starts, and what is made in it once it answers; twice is harmless."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import uuid

import psutil

from etl.errors import RefusedError, WarehouseError
from etl.files import write
from etl.settings import ROOT, settings
from etl.stack import configuration, jars, machine, postgres
from etl.stack.servers import hadoop_java, heartbeat, kafka_java, metastore_environment, metastore_java

SANDBOX_FILES = 10_000
"""Files and folders that the sandbox may have, by HDFS's quota."""


def before(name: str) -> None:
    """Make what a server needs before it starts."""
    if step := _BEFORE.get(name):
        step()


def after(name: str) -> None:
    """Make what the others expect in a server that answers."""
    if step := _AFTER.get(name):
        step()


def make_folders() -> None:
    """Make the folders of logs and scratch files; the readers' server owns its own, and may enter no other."""
    here = settings().data_dir
    (here / "tmp" / "readers").mkdir(parents=True, exist_ok=True)
    # Scratch files of the loads hold rows, with the names of customers.
    for name in ("tmp/hadoop", "tmp/loads", "logs", "run", "hdfs", "kafka", "mlflow"):
        (here / name).mkdir(parents=True, exist_ok=True)
        (here / name).chmod(0o700)
    if machine.has_own_reader(jars.SPARK_HOME):
        user = settings().readers_os_user
        machine.ensure_os_user(user)
        shutil.chown(here / "tmp" / "readers", user)
        if not machine.can_enter(user, here):
            raise RefusedError(
                f"{here} is out of reach for the system user {user}; set WAREHOUSE_DATA_DIR to a folder that every user may enter"
            )


def _format_namenode() -> None:
    name = settings().data_dir / "hdfs" / "name"
    mark = settings().data_dir / "hdfs" / "formatted"
    if mark.exists():
        return
    # A format that was killed has no mark, and nothing was stored yet.
    shutil.rmtree(name, ignore_errors=True)
    command = hadoop_java("256m", "org.apache.hadoop.hdfs.server.namenode.NameNode", "-format", "-nonInteractive", "-force")
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise WarehouseError(f"the NameNode's folder {name} could not be formatted: {ran.stderr.strip()[-500:]}")
    mark.touch()


def _format_kafka() -> None:
    folder = settings().data_dir / "kafka"
    mark = folder / "formatted"
    if mark.exists():
        return
    # As with the NameNode: a format that was killed has no mark, and nothing was stored yet.
    shutil.rmtree(folder / "log", ignore_errors=True)
    properties = configuration.folder("kafka") / "server.properties"
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    scram = f"SCRAM-SHA-512=[name=admin,password={configuration.kafka_password('admin')}]"
    # From a file: arguments can be seen by everybody.
    arguments = folder / "format.arguments"
    write(
        arguments, "\n".join(("format", f"--cluster-id={cluster}", "--standalone", "--config", str(properties), "--add-scram", scram)), True
    )
    ran = subprocess.run(kafka_java("128m", "kafka.tools.StorageTool", f"@{arguments}"), capture_output=True, text=True, check=False)
    arguments.unlink()
    if ran.returncode:
        raise WarehouseError(f"Kafka's folder {folder} could not be formatted: {(ran.stderr or ran.stdout).strip()[-500:]}")
    mark.touch()


def _make_topics() -> None:
    _realtime("Kafka's topics", "api.topics")


def _make_api_key() -> None:
    key = settings().api_key_file or settings().data_dir / "secrets" / "api.key"
    arguments = ("add", "local", "--scope", "all", "--rate", "100000", "--out", str(key), "--if-missing")
    _realtime("the API's key of this machine", "api.keys", *arguments)


def _realtime(what: str, module: str, *arguments: str) -> None:
    # By name: nothing of `api` is imported here.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WAREHOUSE_KAFKA_USER": "admin"}
    ran = subprocess.run([sys.executable, "-m", module, *arguments], env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise WarehouseError(f"{what} could not be made: {ran.stderr.strip()[-500:]}")


def _make_metastore_schema() -> None:
    from etl.databases import opened

    with opened("metastore", "metastore") as session, session.cursor() as cursor:
        cursor.execute("SELECT to_regclass('public.\"VERSION\"')")
        row = cursor.fetchone()
        if row and row[0]:
            cursor.execute('SELECT 1 FROM "VERSION"')
            if cursor.fetchone():
                return
        # A schema whose making was killed has no version row; it is made anew.
        cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    main = "org.apache.hadoop.hive.metastore.tools.MetastoreSchemaTool"
    ran = subprocess.run(
        metastore_java("metastore", "256m", main, "-dbType", "postgres", "-initSchema"),
        env={**os.environ, **metastore_environment("metastore")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ran.returncode:
        raise WarehouseError(f"the metastore's schema could not be made: {(ran.stderr or ran.stdout).strip()[-500:]}")


def _make_hdfs_folders() -> None:
    import hdfs

    here = settings()
    # The superuser of HDFS is whoever runs the NameNode.
    client = hdfs.InsecureClient(here.webhdfs_url, user=psutil.Process().username())
    for path, owner, mode in (
        ("/", None, "755"),
        ("/tmp", None, "1777"),  # noqa: S108 - a folder of HDFS
        ("/tmp/hive-loads", here.hdfs_user, "700"),  # noqa: S108
        ("/tmp/hive-readers", here.hdfs_readers_user, "700"),  # noqa: S108
        (f"/user/{here.hdfs_user}", here.hdfs_user, "755"),
        (here.warehouse_path, here.hdfs_user, "755"),
        *((f"{here.warehouse_path}/{database}", here.hdfs_user, "755") for database in configuration.DATABASES),
        (here.sandbox_path, here.hdfs_readers_user, "755"),
        *((f"{here.warehouse_path}/{table.replace('.', '/')}", here.hdfs_user, "700") for table in configuration.PERSONAL_TABLES),
    ):
        if client.status(path, strict=False) is None:
            client.makedirs(path)
        if owner:
            client.set_owner(path, owner=owner, group=owner)
        client.set_permission(path, mode)
    set_quota(here.sandbox_path, here.sandbox_quota_mb * 2**20)


def set_quota(path: str, size: int) -> None:
    """Let HDFS take no more than `size` bytes, replicas counted, below a folder; as HDFS's superuser.

    Raises
    ------
    WarehouseError
        When HDFS does not do it.
    """
    import requests

    asked = {"op": "SETQUOTA", "user.name": psutil.Process().username(), "namespacequota": SANDBOX_FILES, "storagespacequota": size}
    told = requests.put(f"{settings().webhdfs_url}/webhdfs/v1{path}", params=asked, timeout=60)  # type: ignore[arg-type]
    if told.status_code != requests.codes.ok:
        raise WarehouseError(f"the quota of {path} could not be set: {told.text[:300]}; look at bash/stack.sh logs namenode")


def _make_hive_databases() -> None:
    from etl.sql_server import session

    with session() as opened:
        existing = {row[0] for row in opened.run("SHOW DATABASES")}
        for database in configuration.DATABASES:
            if database not in existing:
                opened.run(
                    f"CREATE DATABASE IF NOT EXISTS {database} LOCATION '{settings().hdfs_uri}{settings().warehouse_path}/{database}'"
                )


_BEFORE = {
    "postgres": postgres.initialise,
    "namenode": _format_namenode,
    "metastore": _make_metastore_schema,
    "kafka": _format_kafka,
    "api": _make_api_key,
    "stream": lambda: heartbeat("stream").unlink(missing_ok=True),
    "notify": lambda: heartbeat("notify").unlink(missing_ok=True),
}
_AFTER = {
    "postgres": postgres.ensure_databases,
    "datanode": _make_hdfs_folders,
    "metastore": postgres.grant_metastore_reader,
    "loads": _make_hive_databases,
    "kafka": _make_topics,
}
