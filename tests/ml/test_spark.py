"""The command line of a job for each master."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from etl.errors import RefusedError
from etl.settings import ROOT, settings
from etl.stack import configuration, machine
from etl.stack.jars import SPARK_HOME
from ml import spark

OWN = {"spark.plugins": "", "spark.python.daemon.module": "pyspark.daemon"}
ELSEWHERE = {
    **OWN,
    "spark.submit.deployMode": "client",
    "spark.executor.instances": "3",
    "spark.executor.cores": "2",
    "spark.executor.memory": "4g",
    "spark.executor.memoryOverheadFactor": "0.75",
    "spark.authenticate": "true",
    "spark.executorEnv.PYTHONPATH": str(ROOT),
    "spark.executorEnv.PYTHONDONTWRITEBYTECODE": "1",
}


@pytest.fixture(autouse=True)
def _settings_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {
        "data_dir": tmp_path, "spark_executors": 3, "spark_executor_cores": 2, "spark_executor_memory": "4g",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"WAREHOUSE_{name.upper()}", str(value))
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """Command and environment of each spark-submit that this process would have become."""
    seen: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda _path, command, environment: seen.append((command, environment)))
    return seen


def given(master: str, monkeypatch: pytest.MonkeyPatch, **more: str) -> None:
    for name, value in {"spark_master": master, **more}.items():
        monkeypatch.setenv(f"WAREHOUSE_{name.upper()}", value)
    settings.cache_clear()


def options(command: list[str]) -> dict[str, str]:
    return dict(value.split("=", 1) for flag, value in itertools.pairwise(command) if flag == "--conf")


def submit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ml.spark", "ml.score", "--full"])
    spark.main()


def test_a_driver_on_this_machine(submitted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    given("local[*]", monkeypatch)
    monkeypatch.setenv("SPARK_REMOTE", "sc://127.0.0.1")
    submit(monkeypatch)
    ((command, environment),) = submitted
    properties = tmp_path / "conf" / "loads" / "spark-defaults.conf"
    assert command[:5] == [str(SPARK_HOME / "bin" / "spark-submit"), "--master", "local[*]", "--properties-file", str(properties)]
    assert options(command) == OWN
    assert command[-6:] == ["--name", "ml.score", spark.__file__, "--submitted", "ml.score", "--full"]
    assert environment["HADOOP_CONF_DIR"] == str(properties.parent)
    assert "SPARK_REMOTE" not in environment


def test_a_job_needs_no_stack_that_wrote_its_configuration(submitted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    given("yarn", monkeypatch, resourcemanager_host="manager.bank", port_offset="1")
    submit(monkeypatch)
    written = tmp_path / "conf" / "loads"
    assert {path.name for path in written.iterdir()} == {
        "core-site.xml", "hdfs-site.xml", "hive-site.xml", "yarn-site.xml", "log4j2.properties", "spark-defaults.conf",
    }  # fmt: skip
    assert "<value>manager.bank:8033</value>" in (written / "yarn-site.xml").read_text()
    assert (tmp_path / "tmp" / "loads").is_dir()


def test_executors_on_yarn(submitted, monkeypatch: pytest.MonkeyPatch):
    given("yarn", monkeypatch)
    submit(monkeypatch)
    ((command, _),) = submitted
    assert command[1:3] == ["--master", "yarn"]
    assert options(command) == {
        **ELSEWHERE,
        "spark.yarn.jars": f"local:{SPARK_HOME}/jars/*",
        "spark.yarn.am.memory": "512m",
        "spark.yarn.appMasterEnv.JAVA_HOME": str(machine.java_home()),
        "spark.executorEnv.JAVA_HOME": str(machine.java_home()),
    }
    # The jars that Spark itself does not have come from the configuration of the loads.
    assert "spark.executor.extraClassPath" in configuration.spark_defaults("loads")


def test_executors_on_kubernetes(submitted, monkeypatch: pytest.MonkeyPatch):
    given(
        "k8s://https://kubernetes.default.svc", monkeypatch,
        spark_driver_host="10.1.2.3", spark_driver_pod="score-1", spark_image="card-fraud/warehouse:0.1.0", spark_namespace="warehouse",
    )  # fmt: skip
    submit(monkeypatch)
    ((command, _),) = submitted
    assert command[1:3] == ["--master", "k8s://https://kubernetes.default.svc"]
    assert options(command) == {
        **ELSEWHERE,
        "spark.driver.host": "10.1.2.3",
        "spark.driver.bindAddress": "10.1.2.3",
        "spark.kubernetes.container.image": "card-fraud/warehouse:0.1.0",
        "spark.kubernetes.namespace": "warehouse",
        "spark.kubernetes.executor.podTemplateFile": str(spark.EXECUTOR_POD),
        "spark.kubernetes.executor.limit.cores": "2",
        "spark.kubernetes.executor.disableConfigMap": "true",
        "spark.kubernetes.driver.service.deleteOnTermination": "false",
        "spark.kubernetes.driver.ownPersistentVolumeClaim": "false",
        "spark.kubernetes.driver.pod.name": "score-1",
    }


def test_an_executors_pod_may_do_nothing_that_it_need_not():
    pod = yaml.safe_load(spark.EXECUTOR_POD.read_text())["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("master", "sentence"),
    [
        ("k8s://https://10.0.0.1", "spark_driver_host is empty"),
        ("mesos://host", "spark_master is mesos://host"),
        ("locale", "it may be connect"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(submitted, monkeypatch: pytest.MonkeyPatch, master: str, sentence: str):
    given(master, monkeypatch)
    with pytest.raises(RefusedError, match=sentence):
        submit(monkeypatch)
    assert not submitted
