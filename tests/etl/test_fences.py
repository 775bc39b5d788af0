"""Which fences stand around the readers server, and that the servers are told."""

from __future__ import annotations

import pwd
from collections.abc import Iterator
from pathlib import Path

import pytest

from etl.settings import settings
from etl.stack import configuration, machine
from etl.stack.control import fences
from etl.stack.servers import one_server

NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def machine_of_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """A machine on which the stack runs as root, and the user `nobody` may read its programs."""
    sockets = tmp_path / "tcp"
    sockets.touch()
    monkeypatch.setattr(machine, "SOCKETS", sockets)
    monkeypatch.setattr(machine, "is_root", lambda: True)
    monkeypatch.setattr(machine, "can_enter", lambda *_: True)
    monkeypatch.setenv("WAREHOUSE_READERS_OS_USER", "nobody")
    settings.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    settings.cache_clear()


def missing(*running: str) -> list[str]:
    return [line for line in fences(running) if "missing" in line]


def test_hadoops_servers_and_the_metastore_are_told_whom_to_check(machine_of_root: pytest.MonkeyPatch) -> None:
    told = configuration.readers_checks()
    assert (told["warehouse.readers.uid"], told["warehouse.readers.user"]) == (NOBODY.pw_uid, "reader")
    assert one_server("metastore").command[-1] == str(NOBODY.pw_uid)
    assert one_server("readers_metastore").command[-1] == str(settings().port("readers_metastore"))
    assert missing() == []


def test_an_ordinary_user_has_nobody_to_check(machine_of_root: pytest.MonkeyPatch) -> None:
    machine_of_root.setattr(machine, "is_root", lambda: False)
    assert configuration.readers_checks() == {}
    assert one_server("metastore").command[-1] == str(settings().port("metastore"))
    own, claims = missing()
    assert "no operating-system user of its own (the stack does not run as root)" in own
    assert claims.endswith("HDFS, YARN and the loads' metastore cannot tell its processes from the loads'")


def test_programs_that_only_root_may_enter_leave_no_user_of_its_own(machine_of_root: pytest.MonkeyPatch) -> None:
    machine_of_root.setattr(machine, "can_enter", lambda *_: False)
    assert "only root may enter" in missing()[0]


def test_servers_that_ask_nobody_are_named_while_they_run(machine_of_root: pytest.MonkeyPatch) -> None:
    kafka, mlflow = missing("kafka", "mlflow")
    assert "Kafka believes every process of this machine" in kafka
    assert "MLflow's page believes every process of this machine" in mlflow
    machine_of_root.setenv("WAREHOUSE_KAFKA_SECURITY", "SASL_SSL")
    settings.cache_clear()
    assert missing("kafka") == []


def test_elsewhere_than_on_linux_nobody_knows_whose_a_socket_is(machine_of_root: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine_of_root.setattr(machine, "SOCKETS", tmp_path / "none")
    assert configuration.readers_checks() == {}
    (claims,) = missing()
    assert claims.endswith("not Linux)")


def test_servers_that_others_reach_need_a_fence_of_the_network(machine_of_root: pytest.MonkeyPatch) -> None:
    machine_of_root.setenv("WAREHOUSE_HOST", "0.0.0.0")
    settings.cache_clear()
    (told,) = missing()
    assert "on Kubernetes a NetworkPolicy stands for it" in told
