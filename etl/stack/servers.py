"""The servers of the local stack: command, user, ports, readiness, and what each waits for."""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2

from etl.errors import RefusedError
from etl.settings import ROOT, settings
from etl.stack import configuration, jars, machine, postgres

ADD_OPENS = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in ("java.lang", "java.util", "java.net", "java.nio")]
STALE_SECONDS = 30
"""A process without a port touches its heartbeat every ten seconds; after this many it is not ready."""
STILL_SECONDS = 60
"""So long a query of the stream job may stand still with something before it."""
LOG4J1_OVER_2 = "-Dlog4j1.compatibility=true"


@dataclass(frozen=True)
class Server:
    """One supervised server."""

    name: str
    command: list[str]
    ports: dict[str, int]
    is_ready: Callable[[], bool]
    after: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    os_user: str | None = None
    # Another user may not be able to enter the clone.
    folder: Path = Path("/")
    stop_signal: str = "TERM"
    group: str = "base"
    stop_seconds: int = 20


def _java(heap: str, class_path: list[Path], main: str, *arguments: str, options: tuple[str, ...] = ()) -> list[str]:
    return [
        str(machine.java_home() / "bin" / "java"), f"-Xmx{heap}", "-XX:+UseSerialGC", "-Xss512k",
        "-XX:ReservedCodeCacheSize=96m", *ADD_OPENS, *options, "-cp", os.pathsep.join(map(str, class_path)), main, *arguments,
    ]  # fmt: skip


def _get(url: str) -> dict[str, object]:
    # Whether the certificate is the right one for a name, clients ask; here the server is asked whether it works.
    unchecked = ssl._create_unverified_context()  # noqa: S323
    with urllib.request.urlopen(url, timeout=3, context=unchecked) as answer:  # noqa: S310 - the address is our own
        return json.load(answer)


def _jmx(bean: str) -> dict[str, object]:
    url = f"{settings().webhdfs_url}/jmx?qry=Hadoop:service=NameNode,name={bean}"
    return _get(url)["beans"][0]  # type: ignore[index]


def _namenode_ready() -> bool:
    return _jmx("NameNodeStatus")["State"] == "active"


def _datanode_ready() -> bool:
    # It is alive before it has told of its space; until then nothing can be written.
    state = _jmx("FSNamesystemState")
    return state["NumLiveDataNodes"] != 0 and state["CapacityRemaining"] != 0 and _jmx("NameNodeInfo")["Safemode"] == ""


def _resourcemanager_ready() -> bool:
    return yarn_page("info")["state"] == "STARTED"


def _nodemanager_ready() -> bool:
    return yarn_page("metrics")["activeNodes"] != 0


def yarn_page(name: str) -> dict[str, object]:
    """Return what the ResourceManager tells of its cluster: `info`, `metrics`."""
    here = settings()
    return _get(f"http://{here.resourcemanager_host}:{here.port('resourcemanager_http')}/ws/v1/cluster/{name}")


def _postgres_ready() -> bool:
    try:
        psycopg2.connect(settings().dsn("postgres", "postgres"), connect_timeout=2).close()
    except psycopg2.OperationalError:
        return False
    return True


def _listens(port: int) -> Callable[[], bool]:
    return lambda: machine.answers(settings().host, port)


def _loads_ready() -> bool:
    from etl.sql_server import session

    if not machine.answers(settings().loads_host, settings().port("loads")):
        return False
    with session("loads") as opened:
        return opened.run("SELECT 1") == [(1,)]


def readers_sign(name: str) -> Path:
    """File that the readers server writes: `healthy` after a statement of its own, `restarted` with the reason of its last restart."""
    return settings().data_dir / "tmp" / "readers" / name


def _readers_ready() -> bool:
    # It asks itself, below the login: with LDAP nobody may have said who may ask here. A hung server opens its port all the same.
    if not machine.answers(settings().readers_host, settings().port("readers")):
        return False
    return time.time() - readers_sign("healthy").stat().st_mtime < STALE_SECONDS


def hadoop_java(heap: str, main: str, *arguments: str, conf: str = "hadoop") -> list[str]:
    """Return the command of a Hadoop program, its configuration in the folder `conf`."""
    return _java(heap, [configuration.folder(conf), *jars.hadoop_class_path()], main, *arguments)


def metastore_java(name: str, heap: str, main: str, *arguments: str) -> list[str]:
    """Return the command of a Hive Metastore program."""
    log = f"-Dlog4j.configurationFile={configuration.folder(name) / 'metastore-log4j2.properties'}"
    return _java(heap, [configuration.folder(name), *jars.metastore_class_path()], main, *arguments, options=(log,))


def kafka_java(heap: str, main: str, *arguments: str) -> list[str]:
    """Return the command of a Kafka program."""
    log = f"-Dlog4j2.configurationFile={configuration.folder('kafka') / 'log4j2.properties'}"
    return _java(heap, jars.kafka_class_path(), main, *arguments, options=(log,))


def metastore_environment(name: str) -> dict[str, str]:
    """Return the environment of a Hive Metastore program."""
    return {
        "METASTORE_HOME": str(jars.metastore_home()),
        "METASTORE_CONF_DIR": str(configuration.folder(name)),
        "HADOOP_USER_NAME": settings().hdfs_user if name == "metastore" else settings().hdfs_readers_user,
    }


def spark_environment(reader: configuration.Reader) -> dict[str, str]:
    """Return the environment of Spark's programs."""
    conf = str(configuration.folder(reader))
    environment = {
        "JAVA_HOME": str(machine.java_home()),
        "SPARK_HOME": str(jars.SPARK_HOME if reader == "loads" else jars.readers_home()),
        "SPARK_CONF_DIR": conf,
        "HADOOP_CONF_DIR": conf,
        "HADOOP_USER_NAME": settings().hdfs_user if reader == "loads" else settings().hdfs_readers_user,
        "SPARK_LOCAL_IP": configuration.own_address(),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
    }
    if reader == "loads":
        environment |= {
            "PYSPARK_PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            # Two cores, several workers: threads of numeric libraries would only fight.
            "OMP_NUM_THREADS": "1",
        }
    return environment


def _sql_server(reader: configuration.Reader) -> Server:
    here = settings()
    environment = spark_environment(reader)
    if reader == "loads":
        # The property says the same. Of the environment's, HiveServer2 makes a proxy user for each statement that nobody waits for
        # (dbt's). On the readers server SQL could change a property.
        del environment["HADOOP_USER_NAME"]
    ports: dict[str, int] = {reader: here.port(reader)}
    if reader == "loads":
        ports["connect"] = here.port("connect")
    apart: list[str] = []
    if reader == "readers":
        user = here.readers_os_user if machine.has_own_reader(jars.SPARK_HOME) else "-"
        apart = [
            sys.executable, "-I", str(Path(__file__).with_name("apart.py")), str(here.readers_nice), user,
            # SQL can read the environment: the readers server has only what is listed above.
            "/usr/bin/env", "-i", *(f"{name}={value}" for name, value in environment.items()),
        ]  # fmt: skip
    return Server(
        name=reader,
        command=[
            *apart,
            str(jars.SPARK_HOME / "bin" / "spark-submit"),
            "--master", "local[*]",
            "--properties-file", str(configuration.folder(reader) / "spark-defaults.conf"),
            "--class", f"org.apache.spark.sql.hive.thriftserver.{'HiveThriftServer2' if reader == 'loads' else 'ReadersServer'}",
            "spark-internal",
        ],
        ports=ports,
        is_ready=_loads_ready if reader == "loads" else _readers_ready,
        after=("metastore",) if reader == "loads" else ("readers_metastore",),
        environment=environment,
        folder=here.data_dir / "tmp" / reader,
    )  # fmt: skip


def _postgres() -> Server:
    here = settings()
    options = (f"port={here.port('postgres')}", f"listen_addresses={here.host}")
    return Server(
        "postgres",
        [str(machine.postgres_bin() / "postgres"), "-D", str(postgres.folder()), *(part for option in options for part in ("-c", option))],
        {"postgres": here.port("postgres")},
        _postgres_ready,
        os_user=here.postgres_os_user if machine.is_root() else None,
        stop_signal="INT",
    )


def _namenode() -> Server:
    here = settings()
    return Server(
        "namenode",
        hadoop_java("256m", "org.apache.hadoop.hdfs.server.namenode.NameNode"),
        {"namenode": here.port("namenode"), "namenode_http": here.port("namenode_http")},
        _namenode_ready,
    )


def _datanode() -> Server:
    here = settings()
    return Server(
        "datanode",
        hadoop_java("256m", "org.apache.hadoop.hdfs.server.datanode.DataNode"),
        {name: here.port(name) for name in ("datanode", "datanode_ipc", "datanode_http")},
        _datanode_ready,
        after=("namenode",),
    )


def _yarn(name: str, program: str, is_ready: Callable[[], bool], after: str, *ports: str) -> Server:
    return Server(
        name,
        hadoop_java("256m", f"org.apache.hadoop.yarn.server.{name}.{program}", conf="yarn"),
        {port: settings().port(port) for port in ports},
        is_ready,
        after=(after,),
        group="yarn",
    )


def _metastore(name: str, heap: str, after: tuple[str, ...]) -> Server:
    port = settings().port(name)
    # It believes everybody: processes of the readers have a metastore of their own.
    refused = machine.reader_uid(jars.SPARK_HOME) if name == "metastore" else None
    arguments = [settings().host, str(port), *([] if refused is None else [str(refused)])]
    return Server(
        name,
        metastore_java(name, heap, "org.apache.hadoop.hive.metastore.Main", *arguments),
        {name: port},
        _listens(port),
        after=after,
        environment=metastore_environment(name),
    )


def _kafka() -> Server:
    here = settings()
    return Server(
        "kafka",
        kafka_java("384m", "kafka.Kafka", str(configuration.folder("kafka") / "server.properties")),
        {"kafka": here.port("kafka"), "kafka_controller": here.port("kafka_controller")},
        _listens(here.port("kafka")),
        group="realtime",
        # It closes its logs in order, and need not look through them at the next start.
        stop_seconds=60,
    )


def heartbeat(name: str) -> Path:
    """File that a process without a port touches at least every ten seconds while it works."""
    return settings().data_dir / "run" / f"{name}.ready"


def progress(query: str) -> Path:
    """File that the stream job touches when a query has done a micro-batch, or has nothing before it."""
    return settings().data_dir / "run" / f"stream-{query}.progress"


def _stream_ready() -> bool:
    """Whether the job lives and neither query stands still with something before it, over restarts too."""
    return beats("stream") and all(
        time.time() - progress(query).stat().st_mtime < STILL_SECONDS for query in ("scores", "tables") if progress(query).exists()
    )


def beats(name: str) -> bool:
    """Whether a process without a port has touched its heartbeat of late."""
    return time.time() - heartbeat(name).stat().st_mtime < STALE_SECONDS


def _beats(name: str) -> Callable[[], bool]:
    return lambda: beats(name)


def _api_ready() -> bool:
    here = settings()
    scheme = "https" if here.api_tls_certificate_file else "http"
    return bool(_get(f"{scheme}://{configuration.own_address()}:{here.port('api')}/health/ready"))


def _realtime(name: str, module: str, is_ready: Callable[[], bool], after: tuple[str, ...], ports: dict[str, int] | None = None) -> Server:
    # Called by name: nothing of `api` is imported here.
    environment = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "WAREHOUSE_KAFKA_USER": name}
    return Server(name, [sys.executable, "-m", module], ports or {}, is_ready, after, environment, group="realtime")


def _watch() -> Server:
    # Called by name: it asks the supervisor, which imports what stands here.
    environment = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return Server("watch", [sys.executable, "-m", "etl.stack.watch"], {}, _beats("watch"), after=("readers",), environment=environment)


def _mlflow() -> Server:
    here = settings()
    return Server(
        "mlflow",
        [
            sys.executable, "-m", "mlflow", "server", "--host", here.host, "--port", str(here.port("mlflow")), "--workers", "1",
            "--backend-store-uri", here.mlflow_tracking_uri,
            "--default-artifact-root", here.models_uri,
        ],
        {"mlflow": here.port("mlflow")},
        _listens(here.port("mlflow")),
        after=("postgres",),
        # Its job runner would start eight processes that nobody asks for anything.
        environment={
            "PGPASSFILE": str(here.passfile),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
        group="mlflow",
    )  # fmt: skip


# In the order in which they start. An image has the programs of its own server only: each is described when it is asked for.
_DESCRIBED: dict[str, Callable[[], Server]] = {
    "postgres": _postgres,
    "namenode": _namenode,
    "datanode": _datanode,
    "metastore": lambda: _metastore("metastore", "256m", ("postgres", "datanode")),
    "readers_metastore": lambda: _metastore("readers_metastore", "192m", ("metastore",)),
    "loads": lambda: _sql_server("loads"),
    "readers": lambda: _sql_server("readers"),
    "watch": _watch,
    "mlflow": _mlflow,
    "resourcemanager": lambda: _yarn(
        "resourcemanager",
        "ResourceManager",
        _resourcemanager_ready,
        "datanode",
        *("resourcemanager", "scheduler", "tracker", "resourcemanager_http"),
    ),
    "nodemanager": lambda: _yarn("nodemanager", "NodeManager", _nodemanager_ready, "resourcemanager", "nodemanager", "nodemanager_http"),
    "kafka": _kafka,
    "api": lambda: _realtime("api", "api", _api_ready, ("kafka",), {"api": settings().port("api")}),
    "stream": lambda: _realtime(
        "stream", "api.stream", _stream_ready, ("kafka", "loads"), {"stream_metrics": settings().port("stream_metrics")}
    ),
    "notify": lambda: _realtime("notify", "api.notify", _beats("notify"), ("kafka", "postgres")),
}


def one_server(name: str) -> Server:
    """Return a server by its name.

    Raises
    ------
    RefusedError
        When there is no such server.
    """
    if name not in _DESCRIBED:
        raise RefusedError(f"there is no server {name}; servers are {', '.join(_DESCRIBED)}")
    return _DESCRIBED[name]()


def all_servers() -> dict[str, Server]:
    """Return every server by name, in the order in which they start."""
    return {name: describe() for name, describe in _DESCRIBED.items()}
