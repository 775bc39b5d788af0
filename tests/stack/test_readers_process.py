"""What a process of the readers' operating-system user reaches, should a statement ever run a program there."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from etl import sql_server
from etl.errors import RefusedError
from etl.settings import settings
from etl.stack import configuration, jars, machine, supervision
from etl.stack.control import fences
from etl.stack.servers import hadoop_java
from etl.storage import storage
from tests.attacker import CLIENTS, message, run

SERVERS_USER = psutil.Process().username()

SERVER = "org.apache.hadoop.hdfs.server.protocol"
OTHER_PROTOCOLS = (
    # A DataNode is given the keys of all blocks.
    (f"{SERVER}.DatanodeProtocol", "versionRequest"),
    (f"{SERVER}.NamenodeProtocol", "getBlockKeys"),
    ("org.apache.hadoop.security.RefreshUserMappingsProtocol", "refreshUserToGroupsMappings"),
    ("org.apache.hadoop.ha.HAServiceProtocol", "getServiceStatus"),
)
PRIVATE = "/warehouse/core/customers_personal"
PAGES = (
    "/jmx",
    "/conf",
    "/logLevel?log=a&level=debug",
    "/stacks",
    "/logs/",
    "/imagetransfer?getimage=1&txid=latest",
    "/fsck?ugi=etl&path=/",
    "//jmx",
    "/webhdfs/v1/../../jmx",
    "/webhdfs/v1/%2e%2e/%2e%2e/jmx",
    "/;a=b/jmx",
)


@pytest.fixture(scope="module", autouse=True)
def user() -> str:
    """The readers' operating-system user."""
    if not machine.has_own_reader(jars.SPARK_HOME):
        pytest.skip("only a stack that runs as root has a user of its own for the readers")
    return settings().readers_os_user


def at(port: str) -> list[object]:
    return [settings().host, settings().port(port)]


def is_there(path: str) -> bool:
    return storage().status(path, strict=False) is not None


# --- the NameNode's calls -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["etl", "hdfs", "root", "Reader", ""])
def test_hdfs_takes_no_name_from_it_but_its_own(user: str, name: str):
    said = run(user, "call", at("namenode"), name)
    assert said.startswith("refused: org.apache.hadoop.security.AccessControlException: ")
    assert "a process of the readers' operating-system user may be reader only, not " in said


PROXIES = [("etl", "reader"), ("root", "reader"), ("reader", "etl"), ("reader", "root")]


@pytest.mark.parametrize(("name", "real"), PROXIES)
def test_it_is_a_proxy_for_nobody_and_nobody_is_one_for_it(user: str, name: str, real: str):
    assert "not allowed to impersonate" in run(user, "call", at("namenode"), name, real)


def test_its_own_name_is_answered_also_as_a_proxy_of_itself(user: str):
    for real in ("", "reader"):
        assert run(user, "call", at("namenode"), "reader", real) == "answered"


def test_processes_of_the_servers_user_are_who_they_say(user: str):
    for name in ("etl", "root", "reader"):
        assert run(SERVERS_USER, "call", at("namenode"), name) == "answered"


@pytest.mark.parametrize(("protocol", "method"), OTHER_PROTOCOLS)
def test_it_speaks_no_protocol_but_that_of_clients(user: str, protocol: str, method: str):
    # What a connection says at its start binds no call.
    for context in (protocol, CLIENTS):
        said = run(user, "call", at("namenode"), "reader", "", protocol, method, "", context)
        assert f"may not call {protocol}" in said


def test_the_datanode_takes_no_call_from_it(user: str):
    protocol = "org.apache.hadoop.hdfs.protocol.ClientDatanodeProtocol"
    asked = (protocol, "getDatanodeInfo", "", protocol)
    for name in ("root", "reader"):
        said = run(user, "call", at("datanode_ipc"), name, "", *asked)
        assert said.startswith("refused: org.apache.hadoop.security.AccessControlException")
    assert run(SERVERS_USER, "call", at("datanode_ipc"), "root", "", *asked) == "answered"


def test_a_call_whose_process_has_gone_is_not_made(user: str):
    """The kernel says of a socket that is closed that it is root's."""
    path = "/warehouse/hasty"
    made = message(f1=path, f2=message(f1=0o755), f3=1).hex()
    run(user, "hasty_calls", at("namenode"), 200, "etl", "mkdirs", made)
    # Calls are made in their order: this one comes after.
    assert run(user, "call", at("namenode"), "reader") == "answered"
    assert not is_there(path)
    assert run(SERVERS_USER, "call", at("namenode"), "etl", "", CLIENTS, "mkdirs", made) == "answered"
    assert is_there(path)
    storage().delete(path)


@pytest.mark.parametrize(("name", "said"), [("reader", "/warehouse"), ("etl", "may be reader only, not etl")])
def test_hadoops_own_client_gets_the_answer_or_the_sentence(user: str, name: str, said: str):
    command = hadoop_java("128m", "org.apache.hadoop.fs.FsShell", "-ls", "/", conf="readers")
    claimed = {"HADOOP_USER_NAME": name}
    ran = subprocess.run(command, env=claimed, cwd="/", user=user, capture_output=True, text=True)
    assert said in ran.stdout + ran.stderr
    assert (ran.returncode == 0) == (name == "reader")


# --- pages --------------------------------------------------------------------------------------------------

CLAIMS = (
    "user.name=etl",
    "user.name=hdfs",
    "user.name=root",
    "User.Name=etl",
    "user%2Ename=etl",
    "user.name=reader&user.name=etl",
    "USER.NAME=etl&user.name=reader",
    "user.name=reader&doas=etl",
    "user.name=reader&DoAs=etl",
    "user.name=reader&delegation=x",
    "",
)


@pytest.mark.parametrize("port", ["namenode_http", "datanode_http"])
@pytest.mark.parametrize("claim", CLAIMS)
def test_webhdfs_takes_no_name_from_it_but_its_own(user: str, port: str, claim: str):
    to = f"namenoderpcaddress={settings().namenode_host}:{settings().port('namenode')}"
    for method, path in (("GET", f"{PRIVATE}?op=OPEN&offset=0"), ("PUT", "/claimed?op=CREATE&overwrite=true")):
        status, _, said = run(user, "page", at(port), method, f"/webhdfs/v1{path}&{to}&{claim}")
        assert status == 403
        assert "may ask with user.name=reader only" in said
    assert not is_there("/claimed")


def test_a_name_in_a_form_counts_too(user: str):
    form = ("user.name=etl&doas=etl", "application/x-www-form-urlencoded")
    for claim in ("user.name=reader", ""):
        path = f"/webhdfs/v1/claimed?op=MKDIRS&{claim}"
        assert run(user, "page", at("namenode_http"), "PUT", path, *form)[0] == 403
    assert not is_there("/claimed")


def test_webhdfs_answers_its_own_name_within_its_rights(user: str):
    names, blocks = at("namenode_http"), at("datanode_http")
    path = f"/webhdfs/v1{settings().sandbox_path}/of-a-process"

    def redirected(method: str, operation: str) -> str:
        status, place, _ = run(user, "page", names, method, f"{path}?op={operation}&user.name=reader")
        assert status == 307
        return "/" + place.split("/", 3)[3]

    written = run(user, "page", blocks, "PUT", redirected("PUT", "CREATE&overwrite=true"), "own", "text/plain")
    assert written[0] == 201
    assert run(user, "page", blocks, "GET", redirected("GET", "OPEN"))[::2] == [200, "own"]
    assert run(user, "page", names, "DELETE", f"{path}?op=DELETE&user.name=reader")[0] == 200
    status, _, said = run(user, "page", names, "GET", f"/webhdfs/v1{PRIVATE}?op=LISTSTATUS&user.name=reader")
    assert (status, "AccessControlException" in said) == (403, True)


def info_port() -> list[object]:
    """The DataNode's own page server, behind the one that people know."""
    known = {settings().port(name) for name in ("datanode", "datanode_ipc", "datanode_http")}
    connections = psutil.Process(supervision.states()["datanode"]["pid"]).net_connections("tcp")
    (port,) = {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN} - known
    return ["127.0.0.1", port]


def test_no_other_page_of_hadoop_is_its_own(user: str):
    for address in (at("namenode_http"), at("datanode_http"), info_port()):
        for path in PAGES:
            assert run(user, "page", address, "GET", path)[0] == 403, (address, path)
        assert run(SERVERS_USER, "page", address, "GET", "/jmx")[0] == 200


# --- blocks -------------------------------------------------------------------------------------------------


@pytest.fixture
def private_block() -> Iterator[tuple[str, int, int]]:
    """A file that is closed to the readers: pool, number and generation stamp of its block."""
    import requests

    path = f"{PRIVATE}/of-the-tests"
    storage().write(path, b"personal", overwrite=True)
    page = f"{settings().webhdfs_url}/webhdfs/v1{path}?op=GET_BLOCK_LOCATIONS&user.name=etl"
    asked = requests.get(page, timeout=30).json()
    block = asked["LocatedBlocks"]["locatedBlocks"][0]["block"]
    yield block["blockPoolId"], block["blockId"], block["generationStamp"]
    storage().delete(path)


def test_the_datanode_gives_no_block_without_a_token(user: str, private_block: tuple[str, int, int]):
    access_token_error = 5
    assert run(user, "block", at("datanode"), *private_block) == access_token_error
    path = message(f1=f"{PRIVATE}/of-the-tests", f2=0, f3=100).hex()
    said = run(user, "call", at("namenode"), "reader", "", CLIENTS, "getBlockLocations", path)
    assert "Permission denied: user=reader" in said


# --- the loads' servers -------------------------------------------------------------------------------------


def test_it_can_open_no_file_with_a_secret(user: str):
    here = settings()
    exported = configuration.folder("loads") / "spark-env.sh"
    sites = [configuration.folder(name) / "metastore-site.xml" for name in ("metastore", "readers_metastore")]
    pids = {name: state["pid"] for name, state in supervision.states().items() if state["pid"]}
    environments = [f"/proc/{pid}/environ" for name, pid in pids.items() if name != "readers"]
    secret = [*map(str, (here.passfile, exported, *sites)), *environments]
    assert run(SERVERS_USER, "readable", secret) == secret
    assert run(user, "readable", secret) == []
    files = (path for path in (here.data_dir / "conf").rglob("*") if path.is_file())
    assert [path for path in files if sql_server.password("etl") in path.read_text()] == [exported]


def test_it_can_open_no_file_of_the_data_folder_but_its_own_and_reports(user: str):
    """Scratch files of the loads hold rows, HDFS's folder holds everything."""
    here = settings()
    own = [configuration.folder("readers"), here.data_dir / "tmp" / "readers", here.jars_dir, here.data_dir / "report"]
    # The other servers' configuration, without their secrets.
    allowed = [*own, here.data_dir / "conf"]
    # And so for every other user of this machine.
    for name in (user, "nobody"):
        opened = run(name, "readable_below", str(here.data_dir))
        assert [path for path in opened if not any(Path(path).is_relative_to(place) for place in allowed)] == []
        assert str(configuration.folder("readers") / "hive-site.xml") in opened


@pytest.mark.parametrize("given", ["", "none", "etl"])
def test_the_loads_server_asks_for_its_password(given: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sql_server, "password", lambda _: given)
    with pytest.raises(RefusedError, match="has another password than that of"), sql_server.session():
        pass


@pytest.mark.parametrize("header", ["", ";authorization=Bearer%20none", ";authorization=Bearer"])
def test_spark_connect_asks_for_the_same(header: str):
    from pyspark.errors.exceptions.connect import SparkConnectGrpcException
    from pyspark.sql.connect.client import SparkConnectClient

    host, port = at("connect")
    client = SparkConnectClient(f"sc://{host}:{port}/;user_id=etl{header}")
    client.set_retry_policies([])
    with pytest.raises(SparkConnectGrpcException, match="UNAUTHENTICATED"):
        client.get_configs("spark.app.name")
    client.close()


@pytest.mark.parametrize("server", ["loads", "readers"])
def test_the_driver_of_a_sql_server_asks_too_and_no_statement_shows_its_secret(server: str):
    with sql_server.session(server) as opened:  # type: ignore[arg-type]
        assert opened.run("SET spark.authenticate") == [("spark.authenticate", "true")]
        settings_shown = str(opened.run("SET")) + str(opened.run("SET spark.authenticate.secret"))
    assert sql_server.password("etl") not in settings_shown
    assert "authenticate.secret', '*********(redacted)" in settings_shown


def test_the_loads_metastore_answers_others_only(user: str):
    assert "get_all_databases" in run(user, "metastore", at("readers_metastore"))
    assert run(user, "metastore", at("metastore")) == ""
    assert "get_all_databases" in run(SERVERS_USER, "metastore", at("metastore"))


def test_the_readers_metastore_is_nobody_else_in_hdfs(user: str):
    """It runs as the servers' user, so the NameNode believes what it says."""
    place = f"{settings().hdfs_uri}{settings().warehouse_path}/claimed"
    said = run(user, "make_database", at("readers_metastore"), "etl", "claimed", place)
    assert "user=reader" in said
    assert not is_there(f"{settings().warehouse_path}/claimed")


def test_postgres_asks_for_a_password(user: str):
    assert run(user, "postgres", at("postgres"), "etl", "warehouse") == "SCRAM-SHA-256"


def test_status_says_that_the_fence_stands(user: str):
    told = "\n".join(fences())
    assert "its processes are reader to HDFS, and nobody to YARN and the loads' metastore" in told
    assert "missing" not in told
