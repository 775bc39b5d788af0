"""Every setting of the warehouse, with its unit and default, in one class."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from etl.files import write

ROOT = Path(__file__).resolve().parent.parent

Role = Literal["postgres", "bank", "extractor", "etl", "metastore", "metastore_reader", "mlflow", "api"]


class Settings(BaseSettings):
    """Settings come from the environment (`WAREHOUSE_<NAME>`) or from `.env`; secrets come as files.

    Two copies of the stack run side by side when `data_dir` and `port_offset` differ.
    """

    model_config = SettingsConfigDict(env_prefix="WAREHOUSE_", env_file=ROOT / ".env", extra="forbid")

    data_dir: Path = Field(ROOT / "var", description="folder of servers' data, jars, logs, secrets and reports")
    jars_dir: Path = Field(ROOT / "var" / "jars", description="folder of the jars that etl/stack/ivy.xml names")
    pgpass_file: Path | None = Field(None, description="passwords of Postgres's roles as libpq reads them; empty: data_dir/secrets/pgpass")
    java_home: str = Field("", description="folder of a Java 17 or 21; empty: found on this machine")
    host: str = Field("127.0.0.1", description="address on which the local servers listen; 0.0.0.0 in a container")
    port_offset: int = Field(0, ge=0, le=40000, description="added to every port below")

    postgres_host: str = Field("127.0.0.1", description="Postgres of bank (the source), metastore, warehouse and mlflow")
    postgres_port: int = Field(15432, description="port of Postgres")
    namenode_host: str = Field("127.0.0.1", description="HDFS NameNode")
    namenode_port: int = Field(8020, description="port of the NameNode's file system protocol")
    namenode_http_port: int = Field(9870, description="port of the NameNode's page and of WebHDFS")
    datanode_host: str = Field("127.0.0.1", description="name under which the DataNode is reached")
    datanode_port: int = Field(9866, description="port of the DataNode's data transfer")
    datanode_ipc_port: int = Field(9867, description="port of the DataNode's IPC")
    datanode_http_port: int = Field(9864, description="port of the DataNode's page and of WebHDFS")
    metastore_host: str = Field("127.0.0.1", description="Hive Metastore of the loads")
    metastore_port: int = Field(9083, description="port of the Hive Metastore of the loads")
    readers_metastore_host: str = Field("127.0.0.1", description="Hive Metastore of the readers")
    readers_metastore_port: int = Field(9084, description="port of the Hive Metastore of the readers (SELECT only)")
    loads_host: str = Field("127.0.0.1", description="HiveServer2-protocol server of the loads")
    loads_port: int = Field(10001, description="port of the loads server")
    connect_port: int = Field(15002, description="port of Spark Connect on the loads server")
    readers_host: str = Field("127.0.0.1", description="HiveServer2-protocol server of Power BI and analysts")
    readers_port: int = Field(10000, description="port of the readers server")
    readers_authentication: Literal["loopback", "ldap", "none"] = Field(
        "loopback",
        description="who may ask the readers server: whoever is on this machine (loopback), users of LDAP (ldap), "
        "or everybody who reaches its port (none): only where the network lets nobody else do so, as that of docker/compose.yaml",
    )
    readers_ldap_url: str = Field("", description="LDAP server of readers_authentication=ldap; ldaps:// beyond this machine")
    readers_ldap_user_dn: str = Field("", description="name of a user in LDAP, %s for the user: uid=%s,ou=people,dc=example,dc=com")
    readers_ldap_ca_file: Path | None = Field(None, description="certificates that LDAP's is signed by, PEM; empty: those that Java trusts")
    readers_tls_file: Path | None = Field(None, description="key and certificate chain of the readers server, PEM; empty: no TLS")
    readers_ca_file: Path | None = Field(
        None, description="certificates that the readers server's is signed by, PEM: clients speak TLS then; empty: as readers_tls_file"
    )
    readers_user: str = Field("reader", description="user of bash/query.sh on the readers server")
    readers_password_file: Path | None = Field(None, description="password of readers_user in LDAP; empty: none")
    readers_query_seconds: int = Field(600, ge=0, description="time after which the readers server ends a statement, seconds; 0: never")
    readers_result_mb: int = Field(
        64, ge=1, description="size up to which the readers server gives an answer, MB of its rows as they are in memory"
    )
    readers_nice: int = Field(10, ge=0, le=19, description="how far the readers server stands back for the loads' when both want the CPU")
    mlflow_port: int = Field(5000, description="port of MLflow's page")
    dashboard_port: int = Field(8501, description="port of the dashboard, loopback only")
    resourcemanager_host: str = Field("127.0.0.1", description="YARN ResourceManager")
    resourcemanager_port: int = Field(8032, description="port of the YARN ResourceManager")
    resourcemanager_http_port: int = Field(8088, description="port of the ResourceManager's page")
    scheduler_port: int = Field(8030, description="port of the ResourceManager's scheduler")
    tracker_port: int = Field(8031, description="port of the ResourceManager's resource tracker")
    nodemanager_host: str = Field("127.0.0.1", description="name under which the NodeManager is reached")
    nodemanager_port: int = Field(8040, description="port of the NodeManager's localizer")
    nodemanager_http_port: int = Field(8042, description="port of the NodeManager's page")
    api_host: str = Field("127.0.0.1", description="address on which the API listens; 0.0.0.0 in a container")
    api_port: int = Field(8080, description="port of the API")
    api_key_file: Path | None = Field(None, description="key that bash/stream_csv.sh has at the API; empty: data_dir/secrets/api.key")
    api_keys_file: Path | None = Field(None, description="hashed keys of the API's clients; empty: data_dir/secrets/api_keys.yaml")
    api_tls_certificate_file: Path | None = Field(None, description="certificate chain of the API, PEM; empty: plain HTTP")
    api_tls_key_file: Path | None = Field(None, description="private key of the API's certificate, PEM")
    api_ca_file: Path | None = Field(
        None,
        description="certificates that the API's is signed by, PEM: bash/stream_csv.sh speaks TLS then; empty: as these settings' API",
    )
    kafka_host: str = Field("127.0.0.1", description="Kafka broker")
    kafka_port: int = Field(9092, description="port of the Kafka broker")
    kafka_security: Literal["PLAINTEXT", "SASL_SSL"] = Field("PLAINTEXT", description="SASL_SSL: TLS, SCRAM-SHA-512 and rights by user")
    kafka_user: str = Field("replay", description="user of this process with SASL_SSL; the lane's servers have their own")
    kafka_password_file: Path | None = Field(None, description="password of kafka_user; empty: data_dir/secrets/kafka/USER.password")
    kafka_ca_file: Path | None = Field(
        None, description="certificates that the broker's is signed by; empty: data_dir/secrets/kafka/ca.pem"
    )
    kafka_controller_port: int = Field(9093, description="port of the Kafka broker's own controller, loopback only")

    stream_metrics_port: int = Field(9108, description="port of the stream job's metrics")
    stream_memory: str = Field("1g", description="heap of the stream job, as Java writes it")
    stream_batch_rows: int = Field(10000, ge=1, description="messages that the stream job takes at a time")
    stream_tables_seconds: float = Field(10, gt=0, description="how often the stream job commits to the tables, seconds")

    postgres_os_user: str = Field("postgres", description="operating-system user of Postgres when the stack runs as root")
    readers_os_user: str = Field("warehouse-reader", description="operating-system user of the readers server as root")

    hdfs_user: str = Field("etl", description="HDFS user of the loads")
    hdfs_readers_user: str = Field("reader", description="HDFS user of the readers server")
    warehouse_path: str = Field("/warehouse", description="HDFS folder of all tables")
    sandbox_path: str = Field("/sandbox", description="HDFS folder of the tables that analysts make, outside the warehouse's")
    sandbox_quota_mb: int = Field(1024, ge=1, description="room that all tables of the sandbox share, MB, replicas counted")
    sandbox_keep_days: float = Field(30, gt=0, description="age at which bash/maintain.sh removes a table of the sandbox, days")
    spark_master: str = Field("connect", description="connect (the warm loads server), local[*], yarn or k8s://...")
    loads_memory: str = Field("1536m", description="heap of the loads server, as Java writes it")
    readers_memory: str = Field("640m", description="heap of the readers server, as Java writes it")

    lag_seconds: float = Field(5.0, ge=0, description="how far next_from stays behind the horizon, seconds")
    max_deleted_share: float = Field(0.01, ge=0, le=1, description="share of a table's keys that a sweep may delete")
    erased_text: str = Field(
        "erased", min_length=1, description="what stands in the place of a name that was erased, in the source as well"
    )
    extract_streams: int = Field(2, ge=1, description="parallel COPY streams of an extract")
    models_path: str = Field("", description="folder (file:///...) or HDFS address of models' files; empty: mlflow under data_dir")
    model_dir: Path | None = Field(None, description="folder of an exported champion (the model image's); empty: the registry's")
    as_of: str = Field("", description="'now' for features, training and scoring, ISO 8601; empty: newest transaction")
    git_commit: str = Field("", description="commit of this code, in an image; empty: asked of git")
    notify_file: Path = Field(ROOT / "api" / "notify.yaml", description="where alerts are sent: channels, templates, retries")
    notifications_keep_days: float = Field(
        60,
        ge=38,
        description="age up to which alerts that were sent stay known, days; Kafka may deliver one again for 37 (api/topics.yaml)",
    )
    log_format: Literal["text", "json"] = Field("text", description="log lines for people (text) or machines (json)")

    spark_executors: int = Field(2, ge=1, description="executors of a job on YARN or Kubernetes")
    spark_executor_cores: int = Field(1, ge=1, description="tasks that an executor runs at a time")
    spark_executor_memory: str = Field("1g", description="heap of an executor; its Python workers get three quarters of that beside it")
    spark_driver_host: str = Field("", description="address at which executors elsewhere reach the driver; empty: this machine's loopback")
    spark_driver_pod: str = Field("", description="name of the pod that the driver runs in: executors on Kubernetes end with it")
    spark_image: str = Field("card-fraud/warehouse", description="image of executors on Kubernetes")
    spark_namespace: str = Field("default", description="namespace of executors on Kubernetes")

    def port(self, name: str) -> int:
        """Return the port of a server, offset included; `name` is a field without `_port`."""
        return int(getattr(self, f"{name}_port")) + self.port_offset

    @functools.cached_property
    def passfile(self) -> Path:
        """The pgpass file as libpq takes it: where others may read the given one (a mounted secret), a private copy."""
        given = self.pgpass_file or self.data_dir / "secrets" / "pgpass"
        if not given.exists() or not given.stat().st_mode & 0o077:
            return given
        copy = self.data_dir / "run" / "pgpass"
        write(copy, given.read_text(), private=True)
        return copy

    @property
    def kafka_secrets(self) -> Path:
        """Folder of the local broker's certificates and of its users' passwords."""
        return self.data_dir / "secrets" / "kafka"

    def dsn(self, role: Role, dbname: str, application_name: str = "warehouse") -> str:
        """Return a libpq connection string; the password comes from the pgpass file, never from here."""
        return (
            f"host={self.postgres_host} port={self.port('postgres')} dbname={dbname} user={role} "
            f"passfile={self.passfile} application_name='{application_name}'"
        )

    @property
    def hdfs_uri(self) -> str:
        """Default file system, `hdfs://host:port`."""
        return f"hdfs://{self.namenode_host}:{self.port('namenode')}"

    @property
    def models_uri(self) -> str:
        """Where files of MLflow's runs lie: `models_path`, by default a folder of this machine."""
        return self.models_path.rstrip("/") or (self.data_dir / "mlflow").resolve().as_uri()

    @property
    def mlflow_tracking_uri(self) -> str:
        """Address of MLflow's store; the password comes from the pgpass file (PGPASSFILE)."""
        return f"postgresql+psycopg2://mlflow@{self.postgres_host}:{self.port('postgres')}/mlflow"

    @property
    def webhdfs_url(self) -> str:
        """Address of WebHDFS."""
        return f"http://{self.namenode_host}:{self.port('namenode_http')}"


@functools.cache
def settings() -> Settings:
    """Return the settings of this process, read once."""
    return Settings()


def example() -> str:
    """Return `.env.example`: every setting with its meaning and default, commented out."""
    lines = ["# Settings of the warehouse; copy to .env and uncomment what differs. Made by: python -m etl.settings > .env.example"]
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, Path) and default.is_relative_to(ROOT):
            default = default.relative_to(ROOT)
        lines += ["", f"# {field.description}", f"#WAREHOUSE_{name.upper()}={default}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(example(), end="")
