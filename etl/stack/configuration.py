"""Configuration files of the servers, rendered from the settings into `<data_dir>/conf`."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import shlex
import shutil
import subprocess
import urllib.parse
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape

import jinja2

from etl.databases import password
from etl.errors import RefusedError
from etl.files import write
from etl.settings import settings
from etl.stack import jars, machine
from etl.tables import DATABASES

Reader = Literal["loads", "readers"]

PERSONAL_TABLES = ("core.customers_personal", "raw.customers")
"""Tables with names and e-mail addresses: closed to everybody but the loads."""

LOG4J = """\
rootLogger.level = {level}
rootLogger.appenderRef.console.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.target = SYSTEM_ERR
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{{ISO8601}} %p %c{{1}}: %m%n
"""

AUDIT_LOG4J = """\
logger.audit.name = org.apache.hadoop.hdfs.server.namenode.FSNamesystem.audit
logger.audit.level = info
logger.audit.additivity = false
logger.audit.appenderRef.audit.ref = audit
appender.audit.type = RollingFile
appender.audit.name = audit
appender.audit.fileName = {path}
appender.audit.filePattern = {path}.%i
appender.audit.filePermissions = rw-------
# The DataNode has the same configuration, and nothing to write.
appender.audit.createOnDemand = true
appender.audit.layout.type = PatternLayout
appender.audit.layout.pattern = %d{{ISO8601}} %m%n
appender.audit.policies.type = SizeBasedTriggeringPolicy
appender.audit.policies.size = 16MB
appender.audit.strategy.type = DefaultRolloverStrategy
appender.audit.strategy.max = 4
"""
"""Who asked HDFS for what: 80 MB at most."""

SQL_LOG4J = LOG4J.format(level="warn") + "".join(
    f"logger.{name}.name = {of}\nlogger.{name}.level = {level}\n"
    for name, of, level in (
        # Each end of a session looks for a metastore of its own and for files of output, in vain: two stacks of Java for nothing.
        ("hms", "org.apache.hadoop.hive.metastore.RetryingHMSHandler", "off"),
        ("session", "org.apache.hive.service.cli.session.HiveSessionImpl", "off"),
        ("hiveconf", "org.apache.hadoop.hive.conf.HiveConf", "error"),
        # Folders are removed by Java where no program may be started; large task binaries are what wide tables have.
        ("remove", "org.apache.spark.network.util.JavaUtils", "error"),
        ("dag", "org.apache.spark.scheduler.DAGScheduler", "error"),
        # A client that goes away, or is sent away, is no fault of the server's: a stack of Java for each.
        ("thrift", "org.apache.thrift.server.TThreadPoolServer", "off"),
        # Plans are cut where they are kept as texts.
        ("plans", "org.apache.spark.sql.catalyst.util.StringUtils", "error"),
        ("filters", "org.apache.spark.sql.execution.datasources.v2.DataSourceV2Strategy", "error"),
        # A pool for each user of the readers server is made when they first ask.
        ("pools", "org.apache.spark.scheduler.FairSchedulableBuilder", "error"),
    )
)


KEYSTORE_OPENERS = ("spark-hive-thriftserver", "hive-common", "libthrift", "spark-core", "scala-library")
"""Jars whose code opens the readers' socket. Whatever SQL reads files by has others on its stack, so it cannot read the key."""
TRUST_PASSWORD = "certificates"  # noqa: S105 - what it opens is public
"""Java wants one for what everybody may read."""

READERS_SITE: dict[str, object] = {
    # The readers server may start no program: groups are not asked of `id`.
    "hadoop.security.group.mapping": "org.apache.hadoop.security.NullGroupsMapping",
    # A proxy user is another one for each statement: cached, its clients of HDFS would stay for ever.
    "fs.hdfs.impl.disable.cache": "true",
}
LOADS_LOGIN: dict[str, object] = {
    "hive.server2.authentication": "CUSTOM",
    "hive.server2.custom.authentication.class": "warehouse.LoadsLogin",
}
PARSER_MEMORY_PERCENT = 20
"""Of the heap, for the parser's cache; then it is emptied. Spark counts 9,700 bytes a state, and a state has about 5,300."""
SANDBOX_BLOCK_BYTES = 8 * 2**20
"""HDFS counts a block as full while it is written: large ones would leave a part of the sandbox's quota that nobody can use."""
READERS_MESSAGE_BYTES = 8 * 2**20
"""Of one call: as in connections.scala."""
READERS_HDFS_SITE: dict[str, object] = {"dfs.blocksize": SANDBOX_BLOCK_BYTES}


def folder(server: str) -> Path:
    """Configuration folder of a server."""
    return settings().data_dir / "conf" / server


def hdfs_audit_log() -> Path:
    """Return the newest file of the NameNode's audit log; older ones end in .1 (the oldest) and so on."""
    return settings().data_dir / "logs" / "hdfs_audit.log"


def xml(properties: dict[str, object]) -> str:
    """Render properties as Hadoop's XML."""
    rows = "".join(
        f"  <property><name>{escape(name)}</name><value>{escape(str(value))}</value></property>\n" for name, value in properties.items()
    )
    return f'<?xml version="1.0"?>\n<configuration>\n{rows}</configuration>\n'


def java_properties(properties: dict[str, object]) -> str:
    """Render properties as Java reads them."""
    return "".join(f"{name}={value}\n" for name, value in properties.items())


def core_site() -> dict[str, object]:
    """Properties that every client and server of HDFS shares."""
    reader = settings().hdfs_readers_user
    return {
        "fs.defaultFS": settings().hdfs_uri,
        # HiveServer2 runs what JDBC and ODBC ask (without waiting) as a proxy of its user for that very user: an own one may be one.
        f"hadoop.proxyuser.{reader}.users": reader,
        f"hadoop.proxyuser.{reader}.hosts": "*",
        "hadoop.tmp.dir": settings().data_dir / "tmp" / "hadoop",
        "fs.permissions.umask-mode": "022",
        "hadoop.http.staticuser.user": "nobody",
        "ipc.client.connect.max.retries": 3,
        "ipc.client.connect.max.retries.on.timeouts": 3,
    }


STATIC_USER_FILTER = "org.apache.hadoop.http.lib.StaticUserWebFilter"
"""What Hadoop has there by default."""


def readers_checks() -> dict[str, object]:
    """Properties of Hadoop's servers: processes of the readers' operating-system user are checked (etl/stack/scala/hadoop)."""
    uid = machine.reader_uid(jars.SPARK_HOME)
    if uid is None:
        return {}
    return {
        "warehouse.readers.uid": uid,
        "warehouse.readers.user": settings().hdfs_readers_user,
        # On every port: those of YARN too, which runs a program of whoever asks as the servers' user.
        "ipc.scheduler.impl": "org.apache.hadoop.ipc.CheckedCalls",
        "hadoop.http.filter.initializers": f"warehouse.CheckedPages,{STATIC_USER_FILTER}",
        "dfs.datanode.httpserver.filter.handlers": "warehouse.CheckedRequests",
    }


def hdfs_site() -> dict[str, object]:
    """Properties of HDFS: one DataNode, loopback."""
    here = settings()
    return {
        "dfs.namenode.name.dir": (here.data_dir / "hdfs" / "name").as_uri(),
        "dfs.datanode.data.dir": (here.data_dir / "hdfs" / "data").as_uri(),
        "dfs.namenode.rpc-address": f"{here.namenode_host}:{here.port('namenode')}",
        "dfs.namenode.http-address": f"{here.host}:{here.port('namenode_http')}",
        "dfs.datanode.address": f"{here.host}:{here.port('datanode')}",
        "dfs.datanode.ipc.address": f"{here.host}:{here.port('datanode_ipc')}",
        "dfs.datanode.http.address": f"{here.host}:{here.port('datanode_http')}",
        "dfs.datanode.hostname": here.datanode_host,
        "dfs.namenode.datanode.registration.ip-hostname-check": "false",
        "dfs.replication": 1,
        "dfs.permissions.enabled": "true",
        # Who may read a file, the NameNode says; without tokens the DataNode gives a block to everybody.
        "dfs.block.access.token.enable": "true",
        # HDFS refuses a full disk before the machine's disk is full.
        "dfs.datanode.du.reserved": 512 * 1024 * 1024,
        "dfs.namenode.safemode.extension": 0,
        "dfs.client.block.write.replace-datanode-on-failure.policy": "NEVER",
        "dfs.datanode.handler.count": 10,
        # One node: a client that lost it waits seconds, not minutes, before it says so.
        "dfs.client.socket-timeout": 30000,
        "dfs.client.max.block.acquire.failures": 2,
        "dfs.heartbeat.interval": 1,
        # Closing a file asks until its last block is reported: 400 ms between two questions, the default, is most of the
        # time that many small files take.
        "dfs.client.block.write.locateFollowingBlock.initial.delay.ms": 10,
    }


def yarn_site() -> dict[str, object]:
    """Properties of YARN: one ResourceManager, one NodeManager, and memory for a machine of two cores."""
    here = settings()
    manager = here.resourcemanager_host
    return {
        "yarn.resourcemanager.hostname": manager,
        "yarn.resourcemanager.bind-host": here.host,
        "yarn.resourcemanager.address": f"{manager}:{here.port('resourcemanager')}",
        "yarn.resourcemanager.scheduler.address": f"{manager}:{here.port('scheduler')}",
        "yarn.resourcemanager.resource-tracker.address": f"{manager}:{here.port('tracker')}",
        "yarn.resourcemanager.webapp.address": f"{manager}:{here.port('resourcemanager_http')}",
        # Nobody administers it: any free port.
        "yarn.resourcemanager.admin.address": f"{manager}:0",
        "yarn.resourcemanager.am.max-attempts": 1,
        "yarn.nodemanager.hostname": here.nodemanager_host,
        "yarn.nodemanager.bind-host": here.host,
        "yarn.nodemanager.address": f"{here.nodemanager_host}:0",
        "yarn.nodemanager.localizer.address": f"{here.nodemanager_host}:{here.port('nodemanager')}",
        "yarn.nodemanager.webapp.address": f"{here.nodemanager_host}:{here.port('nodemanager_http')}",
        "yarn.nodemanager.local-dirs": here.data_dir / "tmp" / "yarn",
        "yarn.nodemanager.log-dirs": here.data_dir / "logs" / "yarn",
        "yarn.nodemanager.log.retain-seconds": 86400,
        # A driver's own AM and two executors with their Python workers; more waits its turn.
        "yarn.nodemanager.resource.memory-mb": 5120,
        "yarn.nodemanager.resource.cpu-vcores": 4,
        "yarn.scheduler.minimum-allocation-mb": 128,
        # Java reserves far more addresses than it uses.
        "yarn.nodemanager.vmem-check-enabled": "false",
        # A machine's disk may be fuller than the default limit of 90 %: the stack itself looks for free space.
        "yarn.nodemanager.disk-health-checker.max-disk-utilization-per-disk-percentage": 99.5,
        "yarn.nm.liveness-monitor.expiry-interval-ms": 30000,
    }


def capacity_scheduler() -> dict[str, object]:
    """Properties of YARN's scheduler: one queue for all, whose applications may use all of it."""
    queue = "yarn.scheduler.capacity.root"
    return {
        f"{queue}.queues": "default",
        f"{queue}.default.capacity": 100,
        "yarn.scheduler.capacity.maximum-am-resource-percent": 0.5,
    }


def kafka_properties() -> dict[str, object]:
    """Properties of the Kafka broker: one node that is its own controller."""
    here = settings()
    controller = f"{own_address()}:{here.port('kafka_controller')}"
    name = here.kafka_security
    return {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.bootstrap.servers": controller,
        "controller.listener.names": "CONTROLLER",
        "listeners": f"{name}://{here.host}:{here.port('kafka')},CONTROLLER://{controller}",
        "advertised.listeners": f"{name}://{here.kafka_host}:{here.port('kafka')}",
        "listener.security.protocol.map": f"{name}:{name},CONTROLLER:{'PLAINTEXT' if name == 'PLAINTEXT' else 'SSL'}",
        "inter.broker.listener.name": name,
        **(kafka_security() if name == "SASL_SSL" else {}),
        "log.dirs": here.data_dir / "kafka" / "log",
        # A misspelt topic is an error; topics are declared in api/topics.yaml.
        "auto.create.topics.enable": "false",
        # What a producer says of the time would decide how long its messages stay.
        "log.message.timestamp.type": "LogAppendTime",
        "message.max.bytes": 2 * 1024 * 1024,
        "default.replication.factor": 1,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 4,
        # One broker has no replica to ask after a power failure: what it acknowledged is on the disk within a second.
        "log.flush.interval.ms": 1000,
        "log.flush.scheduler.interval.ms": 500,
        # Only whole segments are removed: small ones keep to the retention.
        "log.segment.bytes": 64 * 1024 * 1024,
        "log.index.size.max.bytes": 1024 * 1024,
        "log.retention.check.interval.ms": 60000,
        "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "background.threads": 2,
        "group.initial.rebalance.delay.ms": 0,
    }


def kafka_password(user: str) -> str:
    """Return the password of a user of the local Kafka broker, made where there is none."""
    path = settings().kafka_secrets / f"{user}.password"
    if not path.exists():
        write(path, secrets.token_urlsafe(24), private=True)
    return path.read_text().strip()


def kafka_security() -> dict[str, object]:
    """Properties of a broker that asks who is there: users by SCRAM over TLS, the controller by the broker's own certificate."""
    folder = settings().kafka_secrets
    if missing := [name for name in ("broker.pem", "ca.pem") if not (folder / name).is_file()]:
        raise RefusedError(f"{folder} has no {' and no '.join(missing)}, which Kafka needs with SASL_SSL; run bash/certificates.sh")
    login = "org.apache.kafka.common.security.scram.ScramLoginModule"
    return {
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-512",
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f'{login} required username="admin" password="{kafka_password("admin")}";',
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": folder / "broker.pem",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": folder / "ca.pem",
        "listener.name.controller.ssl.client.auth": "required",
        "ssl.principal.mapping.rules": "RULE:^CN=broker$/broker/,DEFAULT",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:admin;User:broker",
    }


def metastore_uri(reader: Reader) -> str:
    """Return the address of the loads' or of the readers' Hive Metastore."""
    here = settings()
    if reader == "loads":
        return f"thrift://{here.metastore_host}:{here.port('metastore')}"
    return f"thrift://{here.readers_metastore_host}:{here.port('readers_metastore')}"


def metastore_site(reader: Reader) -> dict[str, object]:
    """Properties of a Hive Metastore; the readers' one has a Postgres role that can only read."""
    here = settings()
    role: Literal["metastore", "metastore_reader"] = "metastore" if reader == "loads" else "metastore_reader"
    return {
        "javax.jdo.option.ConnectionURL": f"jdbc:postgresql://{here.postgres_host}:{here.port('postgres')}/metastore",
        "javax.jdo.option.ConnectionDriverName": "org.postgresql.Driver",
        "javax.jdo.option.ConnectionUserName": role,
        "javax.jdo.option.ConnectionPassword": password(role),
        "metastore.warehouse.dir": f"{here.hdfs_uri}{here.warehouse_path}",
        "metastore.thrift.uris": metastore_uri(reader),
        "metastore.schema.verification": "true",
        "datanucleus.schema.autoCreateAll": "false",
        "metastore.stats.autogather": "false",
        "metastore.expression.proxy": "org.apache.hadoop.hive.metastore.DefaultPartitionExpressionProxy",
        "metastore.task.threads.remote": "",
        # Without the house keeper a killed writer's lock would stay for ever. The readers' metastore may not write:
        # it gets a task that only looks after its own memory (an empty list would mean the default ones).
        "metastore.task.threads.always": "org.apache.hadoop.hive.metastore.txn.AcidHouseKeeperService"
        if reader == "loads"
        else "org.apache.hadoop.hive.metastore.MaterializationsRebuildLockCleanerTask",
        "metastore.txn.timeout": "60s",
        "metastore.timedout.txn.reaper.interval": "10s",
        "metastore.acid.housekeeper.interval": "30s",
        "hive.timedout.txn.reaper.interval": "30s",
        "metastore.server.min.threads": 4,
        # What the readers' role may not do is tried ten times all the same: at once, not in twenty seconds.
        "metastore.hmshandler.retry.interval": "2s" if reader == "loads" else "50ms",
        # Iceberg drops columns by their ids; the metastore would compare them by position.
        "metastore.disallow.incompatible.col.type.changes": "false",
    }


HIVE_AUTHORIZATION = "org.apache.hadoop.hive.ql.security.authorization.plugin"


def hive_site(reader: Reader) -> dict[str, object]:
    """Properties of Spark's Hive client and of its HiveServer2 protocol."""
    here = settings()
    # Local scratch folders follow java.io.tmpdir, one for each session: sessions that share one remove it from each other.
    return {
        "hive.metastore.uris": metastore_uri(reader),
        "hive.metastore.client.socket.timeout": "60s",
        "hive.server2.enable.doAs": "false",
        "hive.server2.thrift.bind.host": here.host,
        "hive.server2.thrift.port": here.port(reader),
        "hive.exec.scratchdir": f"{here.hdfs_uri}/tmp/hive-{reader}",  # noqa: S108 - a folder of HDFS
        "hive.server2.logging.operation.enabled": "false",
        "hive.server2.idle.session.timeout": "6h",
        **({"hive.server2.thrift.max.message.size": READERS_MESSAGE_BYTES} if reader == "readers" else {}),
        **(readers_access() if reader == "readers" else LOADS_LOGIN),
        # A session's first metadata call, such as an ODBC driver's GetTables, makes an authorizer, though nobody asks it anything, and
        # opens an embedded metastore for it unless this is said to be done. The readers' Java policy refuses that one.
        "hive.security.authorization.manager": f"{HIVE_AUTHORIZATION}.fallback.FallbackHiveAuthorizerFactory",
        "hive.internal.ss.authz.settings.applied.marker": "true",
    }


def readers_access() -> dict[str, object]:
    """Properties of who may ask the readers server, and of its TLS.

    Raises
    ------
    RefusedError
        When it would be open to others than those whom the settings name.
    """
    here = settings()
    properties: dict[str, object] = {"hive.server2.authentication": "NONE"}
    if here.readers_authentication == "loopback" and not is_loopback(here.host):
        raise RefusedError(
            f"the readers server would listen on {here.host} and ask nobody for a password: whoever reaches port {here.port('readers')} "
            "would read every transaction; set readers_authentication to ldap, or to none where the network lets nobody else reach it"
        )
    if here.readers_authentication == "ldap":
        url = urllib.parse.urlsplit(here.readers_ldap_url)
        if url.scheme not in ("ldap", "ldaps") or not url.hostname or "%s" not in here.readers_ldap_user_dn:
            raise RefusedError(
                f"readers_authentication is ldap, but readers_ldap_url is {here.readers_ldap_url!r} and readers_ldap_user_dn "
                f"{here.readers_ldap_user_dn!r}; give them as in ldaps://ldap.example.com and uid=%s,ou=people,dc=example,dc=com"
            )
        if url.scheme == "ldap" and not is_loopback(url.hostname):
            raise RefusedError(f"readers_ldap_url {here.readers_ldap_url} would send passwords in the clear; give it as ldaps://")
        if here.readers_tls_file is None and not is_loopback(here.host):
            raise RefusedError(
                f"the readers server would listen on {here.host} and take passwords in the clear; "
                "give it a certificate: bash/certificates.sh readers, then readers_tls_file"
            )
        properties |= {
            "hive.server2.authentication": "LDAP",
            "hive.server2.authentication.ldap.url": here.readers_ldap_url,
            "hive.server2.authentication.ldap.userDNPattern": here.readers_ldap_user_dn,
        }
    if here.readers_tls_file is not None:
        properties |= {
            "hive.server2.use.SSL": "true",
            "hive.server2.keystore.path": readers_keystore(),
            "hive.server2.keystore.password": _keystore_password(),
        }
    return properties


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached by processes of this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def readers_keystore() -> Path:
    """Key and certificate of the readers server as Java takes them; its policy keeps SQL from reading it."""
    return settings().data_dir / "conf" / "readers_tls" / "readers.p12"


def _keystore_password() -> str:
    path = readers_keystore().with_suffix(".password")
    if not path.exists():
        write(path, secrets.token_urlsafe(24), private=True)
    return path.read_text()


def write_readers_keystore() -> None:
    """Write `readers_tls_file`, where there is one, as the keystore that Java takes.

    Raises
    ------
    RefusedError
        When the file is missing or holds no key with its certificates.
    """
    pem, store = settings().readers_tls_file, readers_keystore()
    if pem is None:
        return
    if not pem.is_file():
        raise RefusedError(f"readers_tls_file {pem} is not there; bash/certificates.sh readers makes one, or name the bank's")
    partial = store.with_suffix(".partial")
    write(partial, "", private=True)
    ran = subprocess.run(
        ["openssl", "pkcs12", "-export", "-in", pem, "-out", partial, "-name", "readers", "-passout", "stdin"],
        input=_keystore_password(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ran.returncode:
        raise RefusedError(f"readers_tls_file {pem} holds no key with its certificates: {ran.stderr.strip()[-300:]}")
    if machine.has_own_reader(jars.SPARK_HOME):
        shutil.chown(partial, settings().readers_os_user)
    partial.replace(store)


def _write_ldap_trust() -> None:
    authorities, store = settings().readers_ldap_ca_file, folder("readers") / "ldap.p12"
    if authorities is None:
        return
    certificates = re.findall(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", _text_of(authorities), re.DOTALL)
    if not certificates:
        raise RefusedError(f"readers_ldap_ca_file {authorities} holds no certificates; name those of LDAP's authority, PEM")
    store.unlink(missing_ok=True)
    for number, certificate in enumerate(certificates):
        subprocess.run(
            [
                machine.java_home() / "bin" / "keytool", "-importcert", "-noprompt", "-alias", str(number),
                "-keystore", store, "-storetype", "PKCS12", "-storepass", TRUST_PASSWORD,
            ],
            input=certificate, capture_output=True, text=True, check=True,
        )  # fmt: skip


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def own_address() -> str:
    """Return an address of this machine for what only its own processes use."""
    return "127.0.0.1" if settings().host == "0.0.0.0" else settings().host  # noqa: S104 - compared, not bound


def spark_defaults(reader: Reader) -> dict[str, object]:
    """Spark properties of a SQL server; the loads' are those of every PySpark job as well."""
    here = settings()
    class_path = os.pathsep.join(map(str, jars.spark_class_path()))
    catalog = "spark.sql.catalog.spark_catalog"
    properties: dict[str, object] = {
        # In spark.jars they would be closed with the session that first used them.
        "spark.driver.extraClassPath": class_path,
        "spark.executor.extraClassPath": class_path,
        "spark.driver.extraJavaOptions": f"-Djava.io.tmpdir={here.data_dir / 'tmp' / reader} -XX:+UseParallelGC -XX:MaxMetaspaceSize=512m "
        f"-DHADOOP_USER_NAME={here.hdfs_user if reader == 'loads' else here.hdfs_readers_user}",
        "spark.local.dir": here.data_dir / "tmp" / reader,
        # Nobody else speaks to the driver of a SQL server: its tasks run in it.
        "spark.driver.bindAddress": own_address(),
        "spark.driver.host": own_address(),
        # The driver has a port all the same. Its secret is made at the start and stays in its memory.
        "spark.authenticate": "true",
        "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
        catalog: "org.apache.iceberg.spark.SparkSessionCatalog",
        f"{catalog}.type": "hive",
        # With the cache on, a session goes on reading the snapshot that it saw first.
        f"{catalog}.cache-enabled": "false",
        "spark.sql.catalogImplementation": "hive",
        # A metastore client of its own: the HiveServer2 layer closes the one that it finds on a session's thread, and with the
        # built-in jars that would be the one of all sessions. Some twenty at a time then hang each other for ever.
        "spark.sql.hive.metastore.jars": "path",
        "spark.sql.hive.metastore.jars.path": f"file://{(jars.SPARK_HOME if reader == 'loads' else jars.readers_home()) / 'jars'}/*.jar",
        "spark.sql.warehouse.dir": f"{here.hdfs_uri}{here.warehouse_path}",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": 4,
        "spark.sql.parquet.compression.codec": "zstd",
        "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
        "spark.sql.hive.metastorePartitionPruning": "true",
        # The metastore on Postgres cannot compare days, those of raw.events (it binds them as text): Spark does it then.
        "spark.sql.hive.metastorePartitionPruningFallbackOnException": "true",
        # Parquet tables of raw are read by Spark's reader, listed anew at each query.
        "spark.sql.hive.manageFilesourcePartitions": "true",
        "spark.sql.hive.filesourcePartitionFileCacheSize": 0,
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.execution.arrow.maxRecordsPerBatch": 50000,
        # Any other limit lets Spark add up the bytes of every column at every row (a tenth of the features job).
        "spark.sql.execution.arrow.maxBytesPerBatch": 2**31 - 1,
        "spark.sql.debug.maxToStringFields": 200,
        # Without it expire_snapshots hung on a warm server of two cores.
        "spark.locality.wait": "0s",
        "spark.ui.showConsoleProgress": "false",
        "spark.ui.enabled": "false",
        "spark.hadoop.iceberg.hive.lock-heartbeat-interval-ms": 20000,
        "spark.hadoop.iceberg.hive.lock-timeout-ms": 150000,
    }
    if reader == "loads":
        properties |= {
            "spark.driver.memory": here.loads_memory,
            "spark.driver.extraClassPath": os.pathsep.join((class_path, str(jars.loads_login()))),
            "spark.plugins": "org.apache.spark.sql.connect.SparkConnectPlugin",
            "spark.connect.grpc.binding.address": here.host,
            "spark.connect.grpc.binding.port": here.port("connect"),
            "spark.connect.grpc.arrow.maxBatchSize": "16m",
            "spark.python.daemon.module": "etl.stack.python_daemon",
        }
    else:
        own = os.pathsep.join((class_path, str(jars.readers_guard())))
        properties |= {
            "spark.driver.memory": here.readers_memory,
            "spark.driver.extraClassPath": own,
            # The one place where it may write: tables of Iceberg that need no metastore.
            "spark.sql.catalog.sandbox": "org.apache.spark.sql.warehouse.Sandbox",
            "spark.sql.catalog.sandbox.type": "hadoop",
            "spark.sql.catalog.sandbox.warehouse": f"{here.hdfs_uri}{here.sandbox_path}",
            "spark.sql.catalog.sandbox.cache-enabled": "false",
            # A block is as large as a row group, or larger.
            "spark.sql.catalog.sandbox.table-default.write.parquet.row-group-size-bytes": SANDBOX_BLOCK_BYTES,
            # Where the blocks lie is asked of the NameNode file by file, and helps nobody on one machine: a fifth of a small query.
            "spark.sql.iceberg.locality.enabled": "false",
            # A task that finds no memory fails its statement; by default it would end the server and with it everybody's.
            "spark.executor.killOnFatalError.depth": 0,
            # Results stream to the client part by part: a large answer does not fill the server.
            "spark.sql.thriftServer.incrementalCollect": "true",
            # What the parser has learned of the grammar stays for ever by default: after a thousand statements of all kinds it had 480 MB.
            "spark.sql.parser.manageParserCaches": "true",
            "spark.sql.parser.parserDfaCacheFlushRatio": PARSER_MEMORY_PERCENT,
            # `SELECT * FROM text.`/etc/passwd`` and its like are refused by SQL already.
            "spark.sql.runSQLOnFiles": "false",
            # Texts and plans of ended statements stay in memory: few of them, and short.
            "spark.sql.thriftserver.ui.retainedStatements": 10,
            "spark.sql.thriftserver.ui.retainedSessions": 10,
            "spark.sql.ui.retainedExecutions": 5,
            "spark.sql.maxPlanStringLength": 10000,
            # ${env:...} and ${system:...} stay as they are.
            "spark.sql.variable.substitute": "false",
            "spark.warehouse.readers.databases": ",".join(DATABASES),
            "spark.warehouse.readers.closed": ",".join(PERSONAL_TABLES),
            "spark.sql.extensions": ",".join(
                (
                    str(properties["spark.sql.extensions"]),
                    "org.apache.spark.sql.warehouse.ResultLimit",
                    "org.apache.spark.sql.warehouse.Bounds",
                    # Last: its parser is the outermost.
                    "org.apache.spark.sql.warehouse.Allowed",
                )
            ),
            "spark.warehouse.readers.seconds": here.readers_query_seconds,
            "spark.warehouse.readers.bytes": here.readers_result_mb * 2**20,
            "spark.driver.maxResultSize": f"{here.readers_result_mb}m",
            # A row of constants would be worked out by the server's planner, not by a task.
            "spark.sql.optimizer.excludedRules": "org.apache.spark.sql.catalyst.optimizer.ConvertToLocalRelation",
            "spark.sql.parser.eagerEvalOfUnresolvedInlineTable": "false",
            # Each user has a pool of tasks.
            "spark.scheduler.mode": "FAIR",
        }
        options = [
            str(properties["spark.driver.extraJavaOptions"]),
            f"-Duser.home={here.data_dir / 'tmp' / 'readers'}",
            # A statement that fills the memory is ended; threads of Spark's own, which must not, would see the error too.
            "-XX:-UseGCOverheadLimit",
            "-Djava.security.manager",
            f"-Djava.security.policy=={folder('readers') / 'java.policy'}",
        ]
        if here.readers_ldap_ca_file is not None:
            options += [
                f"-Djavax.net.ssl.trustStore={folder('readers') / 'ldap.p12'}",
                f"-Djavax.net.ssl.trustStorePassword={TRUST_PASSWORD}",
            ]
        properties["spark.driver.extraJavaOptions"] = " ".join(options)
    return properties


def spark_conf(properties: dict[str, object]) -> str:
    """Render Spark's properties file."""
    return "".join(f"{name} {value}\n" for name, value in properties.items())


def readers_policy() -> str:
    """Render the readers server's Java policy."""
    here = settings()
    template = (Path(__file__).parent / "readers.policy.j2").read_text()
    ports = {here.port(name) for name in ("namenode", "datanode", "readers_metastore")}
    hosts = {"localhost", own_address(), here.namenode_host, here.datanode_host, here.readers_metastore_host}
    if here.readers_ldap_url:
        ldap = urllib.parse.urlsplit(here.readers_ldap_url)
        hosts |= {str(ldap.hostname)}
        ports |= {ldap.port or (636 if ldap.scheme == "ldaps" else 389)}
    return jinja2.Template(template, undefined=jinja2.StrictUndefined).render(
        keystore=readers_keystore() if here.readers_tls_file else None,
        openers=[jar for name in KEYSTORE_OPENERS for jar in (jars.readers_home() / "jars").glob(f"{name}[_-]*.jar")],
        program=[jars.SPARK_HOME, jars.readers_home(), here.jars_dir / "spark", jars.readers_guard(), folder("readers")],
        guard=jars.readers_guard(),
        scratch=here.data_dir / "tmp" / "readers",
        hosts=sorted(hosts),
        ports=sorted(ports),
    )


def write_server(name: str) -> None:
    """Write the configuration of one server, where it has any."""
    match name:
        case "namenode" | "datanode":
            _write_hadoop("hadoop", readers_checks())
            write(folder("hadoop") / "log4j2.properties", LOG4J.format(level="warn") + AUDIT_LOG4J.format(path=hdfs_audit_log()))
        case "resourcemanager" | "nodemanager":
            _write_hadoop("yarn", readers_checks())
            write(folder("yarn") / "yarn-site.xml", xml(yarn_site()))
            write(folder("yarn") / "capacity-scheduler.xml", xml(capacity_scheduler()))
        case "metastore" | "readers_metastore":
            _write_hadoop(name)
            write(folder(name) / "metastore-log4j2.properties", LOG4J.format(level="warn"))
            write(folder(name) / "metastore-site.xml", xml(metastore_site("loads" if name == "metastore" else "readers")), private=True)
        case "loads":
            write_job()
            # Who has the password of the role `etl` is `etl` here too. spark-submit reads this file.
            secret = f"SPARK_CONNECT_AUTHENTICATE_TOKEN={shlex.quote(password('etl'))}\n"
            write(folder("loads") / "spark-env.sh", secret, private=True)
        case "kafka":
            write(folder("kafka") / "log4j2.properties", LOG4J.format(level="warn"))
            write(folder("kafka") / "server.properties", java_properties(kafka_properties()), private=True)
        case "readers":
            _write_spark("readers")
            write_readers_keystore()
            _write_ldap_trust()
            write(folder("readers") / "java.policy", readers_policy())


def write_job() -> None:
    """Write the configuration of a job under spark-submit, that of the loads server without its password."""
    _write_spark("loads")
    write(folder("loads") / "yarn-site.xml", xml(yarn_site()))


def _write_hadoop(server: str, checks: dict[str, object] | None = None) -> None:
    # The checks in both: the defaults of either file win over what stands in the other.
    core, hdfs = (READERS_SITE, READERS_HDFS_SITE) if server == "readers" else (checks or {}, checks or {})
    write(folder(server) / "core-site.xml", xml(core_site() | core))
    write(folder(server) / "hdfs-site.xml", xml(hdfs_site() | hdfs))
    write(folder(server) / "log4j2.properties", LOG4J.format(level="warn"))


def _write_spark(reader: Reader) -> None:
    _write_hadoop(reader)
    write(folder(reader) / "log4j2.properties", SQL_LOG4J)
    write(folder(reader) / "hive-site.xml", xml(hive_site(reader)))
    write(folder(reader) / "spark-defaults.conf", spark_conf(spark_defaults(reader)))


def write_all() -> None:
    """Write the configuration of every server."""
    for name in ("namenode", "resourcemanager", "metastore", "readers_metastore", "loads", "readers", "kafka"):
        write_server(name)
