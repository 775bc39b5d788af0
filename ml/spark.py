"""A Spark session wherever the setting `spark_master` says: the warm loads server, this machine, YARN or Kubernetes.

`python -m ml.spark MODULE [ARGUMENT...]` (bash/submit.sh) runs a module's `main` there; the module itself only calls
`spark_session` and is the same everywhere.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from etl.databases import password
from etl.errors import RefusedError, UnavailableError
from etl.log import run_main
from etl.screens import Update, progress
from etl.settings import ROOT, settings
from etl.stack import machine

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

    from pyspark.sql import SparkSession
    from pyspark.sql.connect.shell.progress import StageInfo

SUBMITTED = "--submitted"
"""First argument of this module when spark-submit runs it as the driver."""

CONNECT_VARIABLES = ("SPARK_REMOTE", "SPARK_LOCAL_REMOTE", "SPARK_API_MODE", "SPARK_CONNECT_MODE_ENABLED")

EXECUTOR_POD = ROOT / "ml" / "executor_pod.yaml"
"""What Spark's own options cannot say of an executor's pod."""

RETRIES = 5
"""How often a call is tried again while the server does not answer: some seventeen seconds in all."""


def spark_session(app: str) -> SparkSession:
    """Return this process's session, opened where there is none; it ends with the process.

    Parameters
    ----------
    app
        Name of the job, for Spark's own pages.

    Raises
    ------
    UnavailableError
        When the loads server does not answer.
    RefusedError
        When another master is set and this process was not started by `bash/submit.sh`.
    """
    from pyspark.sql import SparkSession

    here = settings()
    if here.spark_master != "connect":
        if "SPARK_ENV_LOADED" not in os.environ:
            raise RefusedError(f"spark_master is {here.spark_master}: run this module through bash/submit.sh, which starts its driver")
        session = SparkSession.builder.appName(app).enableHiveSupport().getOrCreate()
    else:
        from grpc import RpcError
        from pyspark.errors import PySparkException
        from pyspark.sql.connect.client.retries import DefaultPolicy

        # Never two: MLlib's models are looked for in the first.
        if (active := SparkSession.getActiveSession()) is not None:
            return active
        # PySpark logs every failed query whole, its exception says the same.
        logging.getLogger("DataFrameQueryContextLogger").disabled = True
        logging.getLogger("SQLQueryContextLogger").disabled = True
        address = f"{here.loads_host}:{here.port('connect')}"
        unavailable = UnavailableError(f"Spark Connect at {address} does not answer; start it with bash/stack.sh up")
        # Spark's client would ask for ten minutes.
        if not machine.answers(here.loads_host, here.port("connect")):
            raise unavailable
        try:
            session = _connected(address, app)
            session.conf.set("spark.sql.connect.serverStacktrace.enabled", "false")
        except (RpcError, PySparkException) as error:
            if "UNAUTHENTICATED" in str(error):
                raise RefusedError(
                    f"Spark Connect at {address} has another password than that of the role etl in {here.passfile}; "
                    "correct the file, or start the loads server again"
                ) from error
            raise unavailable from error
        session.client.set_retry_policies([DefaultPolicy(max_retries=RETRIES)])  # type: ignore[operator]
        if sys.stderr.isatty():
            session.registerProgressHandler(_Bar(app))
    atexit.register(_stop, session)
    return session


def _connected(address: str, app: str) -> SparkSession:
    from pyspark.sql.connect.client import DefaultChannelBuilder
    from pyspark.sql.connect.session import SparkSession as ConnectSession

    channel = DefaultChannelBuilder(f"sc://{address}/;user_id={settings().hdfs_user}")
    # As a header: Spark's own option for it insists on TLS, and each session shows its `remote` as a setting.
    channel.set("authorization", f"Bearer {password('etl')}")
    # What PySpark's other builder says to its functions.
    os.environ["SPARK_CONNECT_MODE_ENABLED"] = "1"
    builder = ConnectSession.builder.channelBuilder(channel).appName(app)
    return cast("SparkSession", builder.create())


def main_snapshot(spark: SparkSession, table: str) -> int | None:
    """Return the newest snapshot of an Iceberg table, None while it has none."""
    row = spark.sql(f"SELECT snapshot_id FROM {table}.refs WHERE name = 'main'").first()
    return None if row is None else int(row[0])


class _Bar:
    """A bar of the tasks that Spark has done for the present statement."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._open = contextlib.ExitStack()
        self._update: Update | None = None

    def __call__(self, *, stages: Iterable[StageInfo] | None, done: bool, **_: object) -> None:
        if done:
            self._open.close()
            self._update = None
            return
        if self._update is None:
            self._update = self._open.enter_context(progress(self._app))
        known = list(stages or ())
        # Spark tells of a stage when it begins: how many follow is not known.
        self._update(sum(stage.num_completed_tasks for stage in known), sum(stage.num_tasks for stage in known) or None)


def _stop(session: SparkSession) -> None:
    """End a session, unless its server has gone."""
    if settings().spark_master != "connect" or machine.answers(settings().loads_host, settings().port("connect")):
        session.stop()
    else:
        # Or its own end would ask the lost server for seconds.
        session.client.close()  # type: ignore[operator]


def ship(*modules: ModuleType) -> None:
    """Let functions of these modules travel to workers with their code, not as names.

    A warm worker that imported a module yesterday would go on running yesterday's code.
    """
    from pyspark import cloudpickle

    for module in modules:
        cloudpickle.register_pickle_by_value(module)


def _run_module(arguments: list[str]) -> None:
    # The module's own `if __name__ == "__main__"` runs, its command line is what followed its name.
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def submit_options(master: str) -> dict[str, object]:
    """Return what a job under spark-submit has beside the configuration of the loads.

    Parameters
    ----------
    master
        As the setting `spark_master` names it.

    Raises
    ------
    RefusedError
        When the master is none of those that are known, or executors could not reach the driver.
    """
    from etl.stack import jars

    here = settings()
    # The loads server's Connect port is its own, and workers elsewhere do not have this project's modules.
    options: dict[str, object] = {"spark.plugins": "", "spark.python.daemon.module": "pyspark.daemon"}
    if re.fullmatch(r"local(\[.+\])?", master):
        return options
    elsewhere = {
        **options,
        "spark.submit.deployMode": "client",
        "spark.executor.instances": here.spark_executors,
        "spark.executor.cores": here.spark_executor_cores,
        "spark.executor.memory": here.spark_executor_memory,
        "spark.executor.memoryOverheadFactor": 0.75,
        # Whoever reaches the driver's port could run code in it.
        "spark.authenticate": "true",
        "spark.executorEnv.PYTHONPATH": ROOT,
        "spark.executorEnv.PYTHONDONTWRITEBYTECODE": "1",
    }
    if here.spark_driver_host:
        elsewhere |= {"spark.driver.host": here.spark_driver_host, "spark.driver.bindAddress": here.spark_driver_host}
    if master == "yarn":
        # Nodes have Java, jars, Python and this project at the same places: nothing is uploaded.
        return elsewhere | {
            "spark.yarn.jars": f"local:{jars.PYSPARK_JARS}/*",
            "spark.yarn.am.memory": "512m",
            "spark.yarn.appMasterEnv.JAVA_HOME": machine.java_home(),
            "spark.executorEnv.JAVA_HOME": machine.java_home(),
        }
    if master.startswith("k8s://"):
        if not here.spark_driver_host:
            raise RefusedError("spark_driver_host is empty: executors on Kubernetes need the driver's address, in a pod the pod's own")
        kubernetes = {
            "container.image": here.spark_image,
            "namespace": here.spark_namespace,
            "executor.podTemplateFile": EXECUTOR_POD,
            "executor.limit.cores": here.spark_executor_cores,
            # Executors read no configuration: jobs send theirs along, and the driver needs no right to make ConfigMaps.
            "executor.disableConfigMap": "true",
            # There is neither, and looking for them would ask for more rights.
            "driver.service.deleteOnTermination": "false",
            "driver.ownPersistentVolumeClaim": "false",
        }
        if here.spark_driver_pod:
            kubernetes["driver.pod.name"] = here.spark_driver_pod
        return elsewhere | {f"spark.kubernetes.{name}": value for name, value in kubernetes.items()}
    raise RefusedError(f"spark_master is {master}: it may be connect, local[*], yarn or k8s://...")


def _submit(arguments: list[str]) -> None:
    """Become spark-submit, with the configuration of the loads and this module as the driver."""
    from etl.stack import configuration, jars
    from etl.stack.servers import spark_environment

    here = settings()
    options = submit_options(here.spark_master)
    # A container or an agent has no stack that would have made these.
    configuration.write_job()
    (here.data_dir / "tmp" / "loads").mkdir(parents=True, exist_ok=True)
    command = [
        str(jars.SPARK_HOME / "bin" / "spark-submit"),
        "--master", here.spark_master,
        "--properties-file", str(configuration.folder("loads") / "spark-defaults.conf"),
        *(part for name, value in options.items() for part in ("--conf", f"{name}={value}")),
        "--name", arguments[0],
        str(Path(__file__)), SUBMITTED, *arguments,
    ]  # fmt: skip
    # What is left of a Connect session in the caller's environment would turn this driver into a client.
    inherited = {name: value for name, value in os.environ.items() if name not in CONNECT_VARIABLES}
    environment = {**inherited, **spark_environment("loads"), "PYSPARK_DRIVER_PYTHON": sys.executable}
    os.execve(command[0], command, environment)


def main() -> None:
    """Run a module in this process (the warm server does the work), or under spark-submit."""
    arguments = sys.argv[1:]
    if arguments[:1] == [SUBMITTED]:
        # spark-submit put this file's folder first: its modules are known as ml.*, never by their bare names.
        sys.path[0] = str(ROOT)
        _run_module(arguments[1:])
    elif settings().spark_master == "connect":
        _run_module(arguments)
    else:
        _submit(arguments)


if __name__ == "__main__":
    run_main(main)
