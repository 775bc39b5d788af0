"""The images, really built and run: user, read-only root, nothing to write or to compile with, health, and a load by the warehouse image.

They run on this machine's network, so that they reach the local stack of the tests. CONTAINER_TOOL names docker or podman;
CONTAINER_BUILD_OPTIONS is what bash/build_images.sh takes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest
import yaml
from confluent_kafka import Consumer, TopicPartition

from etl import ops
from etl.settings import ROOT, settings
from etl.sql_server import Session
from ml import registry
from tests.api.server import GOOD
from tests.postgres import rows
from tests.stack.test_main_job import INPUTS, bank, load

__all__ = ["bank"]

pytestmark = pytest.mark.slow

TAG = "test"
IMAGES = ("warehouse", "sql-server", "hadoop", "metastore", "kafka", "api")
MEGABYTES = {"warehouse": 1300, "api": 300}
SECRETS = {f"/run/secrets/{place}" for place in ("api", "warehouse", "warehouse/api", "warehouse/loads", "warehouse/readers")}
WRITABLE = {"/tmp", "/var/lib/warehouse", "/var/tmp", "/run/lock"} | SECRETS
SAFE = ("--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp", "--network", "host")


def ran(*command: str | Path, expect: int = 0) -> str:
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == expect, f"{' '.join(map(str, command))}: {told.returncode}\n{told.stdout[-2000:]}\n{told.stderr[-2000:]}"
    return told.stdout


@pytest.fixture(scope="session")
def tool() -> str:
    found = os.environ.get("CONTAINER_TOOL") or next((one for one in ("docker", "podman") if shutil.which(one) and works(one)), "")
    assert found, "these tests need docker or podman"
    return found


def works(tool: str) -> bool:
    return subprocess.run([tool, "info"], capture_output=True).returncode == 0


@pytest.fixture(scope="session")
def built(tool: str) -> dict[str, int]:
    """Sizes of the images in bytes, built now."""
    environment = {**os.environ, "CONTAINER_TOOL": tool}
    told = subprocess.run([ROOT / "bash" / "build_images.sh", "--tag", TAG, *IMAGES], env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr[-3000:]
    return {image: int(ran(tool, "image", "inspect", "--format", "{{.Size}}", f"card-fraud/{image}:{TAG}")) for image in IMAGES}


def in_image(tool: str, image: str, *command: str) -> str:
    """Return what a command in an image prints, with nothing but its own files."""
    return ran(tool, "run", "--rm", "--entrypoint", "", "--cap-drop", "all", f"card-fraud/{image}:{TAG}", *command)


@pytest.mark.parametrize("image", MEGABYTES)
def test_an_image_is_small(built: dict[str, int], image: str):
    print(image, built[image])
    assert built[image] < MEGABYTES[image] * 1_000_000


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_its_own_user(tool: str, built: dict[str, int], image: str):
    assert in_image(tool, image, "id").startswith("uid=10001(warehouse) gid=10001(warehouse)")


@pytest.mark.parametrize("image", IMAGES)
def test_its_user_may_write_nothing_but_the_folders_that_are_mounted(tool: str, built: dict[str, int], image: str):
    # Folders that it may not even enter are told as errors.
    kinds = "-xdev -writable \\( -type d -o -type f \\) -not -path '/proc/*' -not -path '/dev/*'"
    looked = set(in_image(tool, image, "sh", "-c", f"find / {kinds} 2>/dev/null || true").split())
    assert "/tmp" in looked
    assert looked <= WRITABLE


@pytest.mark.parametrize("image", IMAGES)
def test_no_compiler_package_cache_or_installer_is_left(tool: str, built: dict[str, int], image: str):
    programs = "for one in gcc cc javac pip pip3 uv git curl; do command -v $one; done"
    kept = "find /var/lib/apt/lists /var/cache/apt/archives ~root/.cache -type f -name '*[^k]' 2>/dev/null"
    assert in_image(tool, image, "sh", "-c", f"{programs}; {kept}; true").split() == []


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_says_what_it_is(tool: str, built: dict[str, int], image: str):
    labels = json.loads(ran(tool, "image", "inspect", f"card-fraud/{image}:{TAG}"))[0]["Config"]["Labels"]
    assert labels["org.opencontainers.image.title"] == f"card-fraud/{image}"
    assert labels["org.opencontainers.image.version"] == TAG
    assert len(labels["org.opencontainers.image.revision"].removesuffix("-dirty")) == 40


def health_check(tool: str, image: str) -> list[str]:
    """Return the command of an image's health check."""
    shown = json.loads(ran(tool, "image", "inspect", f"card-fraud/{image}:{TAG}"))[0]
    # Podman tells it beside Docker's place.
    return list((shown.get("Healthcheck") or shown["Config"]["Healthcheck"])["Test"][1:])


@contextmanager
def started(tool: str, image: str, *command: str, folder: Path, **environment: object) -> Iterator[str]:
    """Run a server's image until it answers its own health check; gives the container's name."""
    name = f"warehouse-test-{'-'.join(command) or image}"
    subprocess.run([tool, "rm", "--force", name], capture_output=True)
    options = [part for key, value in environment.items() for part in ("--env", f"WAREHOUSE_{key.upper()}={value}")]
    mounts = [f"{folder}:/var/lib/warehouse", f"{settings().passfile}:/run/secrets/warehouse/pgpass:ro"]
    ran(tool, "run", "--detach", "--name", name, *SAFE, *options, *(part for mount in mounts for part in ("--volume", mount)),
        f"card-fraud/{image}:{TAG}", *command)  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        check = health_check(tool, image)
        while subprocess.run([tool, "exec", name, *check], capture_output=True).returncode:
            logs = subprocess.run([tool, "logs", name], capture_output=True, text=True)
            assert time.monotonic() < deadline, logs.stdout[-2000:] + logs.stderr[-2000:]
            time.sleep(1)
        yield name
    finally:
        ran(tool, "rm", "--force", name)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that the images' user may write."""
    made = tmp_path_factory.mktemp("data")
    os.chown(made, 10001, 10001)
    return made


@pytest.fixture
def secrets(folder: Path) -> dict[str, object]:
    """The stack's own addresses, and its passwords as the images' user may read them."""
    copy = folder / "pgpass"
    copy.write_text(settings().passfile.read_text())
    os.chown(copy, 10001, 10001)
    copy.chmod(0o600)
    return {"port_offset": settings().port_offset, "pgpass_file": "/var/lib/warehouse/pgpass"}


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True


def test_a_transaction_goes_through_the_api_to_the_broker(tool: str, built: dict[str, int], folder: Path):
    ports = {"port_offset": settings().port_offset + 500, "host": "127.0.0.1", "kafka_host": "127.0.0.1"}
    key = "one of a client"
    (folder / "api_keys.yaml").write_text(
        yaml.safe_dump([{"client": "c", "sha256": sha256(key.encode()).hexdigest(), "scopes": ["ingest"], "rate": 1, "burst": 1}])
    )
    own = {"api_host": "127.0.0.1", "api_keys_file": "/var/lib/warehouse/api_keys.yaml"}
    with started(tool, "kafka", "kafka", folder=folder, **ports), started(tool, "api", folder=folder, **ports, **own):
        options = [part for name, value in ports.items() for part in ("--env", f"WAREHOUSE_{name.upper()}={value}")]
        prepare = ("python", "-m", "etl.stack.serve", "prepare", "kafka")
        ran(tool, "run", "--rm", *SAFE, *options, "--volume", f"{folder}:/var/lib/warehouse", f"card-fraud/warehouse:{TAG}", *prepare)
        address = f"http://127.0.0.1:{settings().port('api') + 500}"
        deadline = time.monotonic() + 60
        while not answers(f"{address}/health/ready"):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        request = urllib.request.Request(
            f"{address}/transactions",
            json.dumps(GOOD).encode(),
            {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.load(answer)["accepted"] == [GOOD["transaction_id"]]
        consumer = Consumer({"bootstrap.servers": f"127.0.0.1:{settings().port('kafka') + 500}", "group.id": "test"})
        try:
            consumer.assign(
                [
                    TopicPartition("transactions", number, 0)
                    for number in consumer.list_topics("transactions", 30).topics["transactions"].partitions
                ]
            )
            (message,) = consumer.consume(1, 30)
            assert json.loads(message.value() or b"")["transaction_id"] == GOOD["transaction_id"]
        finally:
            consumer.close()


def test_hadoop_stores_files(tool: str, built: dict[str, int], folder: Path):
    ports = {"port_offset": settings().port_offset + 500, "host": "127.0.0.1"}
    with (
        started(tool, "hadoop", "namenode", folder=folder, **ports),
        started(tool, "hadoop", "datanode", folder=folder, **ports),
    ):
        import hdfs

        client = hdfs.InsecureClient(f"http://127.0.0.1:{settings().port('namenode_http') + 500}", user="warehouse")
        client.write("/hello", b"stored")
        with client.read("/hello") as reader:
            assert reader.read() == b"stored"


def test_the_metastore_and_the_sql_server_answer(tool: str, built: dict[str, int], folder: Path, secrets: dict[str, object], hive: Session):
    expected = hive.run("SHOW DATABASES")
    own = {**secrets, "host": "127.0.0.1", "metastore_port": 9085, "loads_port": 10003, "connect_port": 15004}
    with started(tool, "metastore", "metastore", folder=folder, **own), started(tool, "sql-server", "loads", folder=folder, **own) as loads:
        asked = "from etl.sql_server import session\nwith session() as s: print(s.run('SHOW DATABASES'))"
        assert ran(tool, "exec", loads, "python", "-c", asked).strip() == str(expected)


def test_the_readers_metastore_and_sql_server_answer_and_write_nothing(
    tool: str, built: dict[str, int], folder: Path, secrets: dict[str, object], hive: Session
):
    expected = hive.run("SHOW DATABASES")
    own = {**secrets, "host": "127.0.0.1", "readers_metastore_port": 9086, "readers_port": 10004}
    with (
        started(tool, "metastore", "readers_metastore", folder=folder, **own),
        started(tool, "sql-server", "readers", folder=folder, **own) as readers,
    ):
        session = "from etl.sql_server import session\nwith session('readers') as s: print(s.run({!r}))"
        assert ran(tool, "exec", readers, "python", "-c", session.format("SHOW DATABASES")).strip() == str(expected)
        ran(tool, "exec", readers, "python", "-c", session.format("CREATE DATABASE ours"), expect=1)
        own_table = {
            "CREATE TABLE sandbox.image AS SELECT 7 AS a": "[]",
            "SELECT * FROM sandbox.image": "[(7,)]",
            "DROP TABLE sandbox.image": "[]",
        }
        for statement, answer in own_table.items():
            assert ran(tool, "exec", readers, "python", "-c", session.format(statement)).strip() == answer
    assert hive.run("SHOW DATABASES") == expected


def test_yarn_has_a_node(tool: str, built: dict[str, int], folder: Path):
    ports = {"port_offset": settings().port_offset + 500, "host": "127.0.0.1"}
    with (
        started(tool, "hadoop", "resourcemanager", folder=folder, **ports),
        started(tool, "hadoop", "nodemanager", folder=folder, **ports),
    ):
        page = f"http://127.0.0.1:{settings().port('resourcemanager_http') + 500}/ws/v1/cluster/metrics"
        deadline = time.monotonic() + 60
        while (active := metrics(page)["activeNodes"]) == 0:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert active == 1


def metrics(page: str) -> dict[str, int]:
    with urllib.request.urlopen(page, timeout=10) as answer:
        return dict(json.load(answer))


def test_the_warehouse_image_loads_a_table(tool: str, built: dict[str, int], folder: Path, secrets: dict[str, object], hive: Session):
    rows("DELETE FROM bank.terminals")
    rows("INSERT INTO bank.terminals SELECT n, 'terminal ' || n, 'BE', 'fuel' FROM generate_series(1, 25) n")
    options = [part for key, value in secrets.items() for part in ("--env", f"WAREHOUSE_{key.upper()}={value}")]
    image = [*SAFE, *options, "--volume", f"{folder}:/var/lib/warehouse", f"card-fraud/warehouse:{TAG}"]
    ran(tool, "run", "--rm", *image, *health_check(tool, "warehouse"))
    told = ran(tool, "run", "--rm", *image, "bash/load.sh", "full", "terminals")
    assert "error" not in told
    assert hive.run("SELECT count(*), max(terminal_id) FROM core.terminals") == [(25, 25)]


def test_the_model_image_scores_with_the_champion_that_it_holds(
    tool: str, built: dict[str, int], folder: Path, secrets: dict[str, object], bank: None, hive: Session, run: ops.Run
):
    hive.run("DROP TABLE IF EXISTS mart.predictions")
    load(hive, run, "full", INPUTS)
    environment = {**os.environ, "CONTAINER_TOOL": tool}
    for verb in (["features.sh", "full"], ["train.sh", "logistic_regression"], ["build_images.sh", "--tag", TAG, "model"]):
        told = subprocess.run([ROOT / "bash" / verb[0], *verb[1:]], env=environment, capture_output=True, text=True)
        assert told.returncode == 0, told.stderr[-3000:]
    champion = registry.required_champion()
    # Another one is promoted: the image scores with its own.
    with registry.tracked("image", {}) as run_id:
        registry.promote(registry.register(run_id, {"model.json": b"{}"}, {"model": "other"}))
    options = [part for key, value in secrets.items() for part in ("--env", f"WAREHOUSE_{key.upper()}={value}")]
    ran(tool, "run", "--rm", *SAFE, *options, "--volume", f"{folder}:/var/lib/warehouse", f"fraud-score:{champion.version}")
    assert hive.run("SELECT count(DISTINCT transaction_id), min(model_version), max(model_version) FROM mart.predictions") == [
        (800, champion.version, champion.version)
    ]
