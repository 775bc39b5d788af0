"""Features, training and scoring by a driver of their own, here and on YARN, end as on the warm server: row for row."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from etl import ops
from etl.settings import ROOT, settings
from etl.sql_server import Session
from etl.stack import control, jars, machine, supervision
from etl.stack.servers import yarn_page
from ml import models, registry
from tests import attacker
from tests.stack.test_main_job import INPUTS, bank, load

__all__ = ["bank"]

pytestmark = pytest.mark.slow
VERBS = (["features", "full"], ["train", "logistic_regression", "xgboost"], ["score"])


@dataclass(frozen=True)
class Ended:
    """What the three verbs left."""

    features: list[tuple[Any, ...]]
    versions: list[dict[str, str]]
    probabilities: np.ndarray
    predictions: list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def yarn(stack: None) -> Iterator[None]:
    control.up({"base", "yarn"})
    yield
    for name in ("nodemanager", "resourcemanager"):
        supervision.call("stopProcess", name)


def forget(hive: Session) -> None:
    for table in ("feature.transactions", "mart.predictions"):
        hive.run(f"DROP TABLE IF EXISTS {table}")
    for found in registry.client().search_registered_models():
        registry.client().delete_registered_model(found.name)


def all_verbs(master: str, hive: Session) -> Ended:
    """Build features, train and score from nothing on a master."""
    forget(hive)
    for verb, *arguments in VERBS:
        told = subprocess.run(
            [ROOT / "bash" / f"{verb}.sh", *arguments],
            env={**os.environ, "WAREHOUSE_SPARK_MASTER": master}, capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip
        assert told.returncode == 0, told.stderr[-3000:]
    names, features = hive.query("SELECT * FROM feature.transactions ORDER BY transaction_id")
    columns = dict(zip(names, zip(*features, strict=True), strict=True))
    found = sorted(registry.client().search_model_versions("name='card_fraud'"), key=lambda version: int(version.version))
    scores = []
    for version in found:
        model = models.load(
            registry.read_files(registry.Version("card_fraud", int(version.version), version.source, version.run_id, version.tags))
        )
        rows = models.matrix({name: np.array(columns[name], float) for name in model.features}, model.features)
        scores.append(model.probability(rows))
    told_of = ("model", "average_precision", "train_from", "test_from")
    return Ended(
        features,
        [{name: version.tags[name] for name in told_of} for version in found],
        np.stack(scores),
        sorted(hive.run("SELECT * EXCEPT (scored_at) FROM mart.predictions")),
    )


def test_a_driver_of_its_own_here_and_on_yarn_leaves_what_the_warm_server_leaves(bank: None, yarn: None, hive: Session, run: ops.Run):
    done_before = yarn_page("metrics")
    load(hive, run, "full", INPUTS)
    warm = all_verbs("connect", hive)
    assert len(warm.features) == len(warm.predictions) == 800
    assert len(warm.versions) == 2
    assert len(np.unique(warm.probabilities)) > 2
    for master in ("local[*]", "yarn"):
        seen = all_verbs(master, hive)
        assert seen.features == warm.features, master
        assert seen.versions == warm.versions, master
        assert np.array_equal(seen.probabilities, warm.probabilities), master
        assert seen.predictions == warm.predictions, master
    forget(hive)
    # They really ran there.
    done = yarn_page("metrics")
    assert [done[name] - done_before[name] for name in ("appsCompleted", "appsFailed", "appsKilled")] == [len(VERBS), 0, 0]


def test_a_process_of_the_readers_starts_nothing_there(yarn: None):
    """YARN would run its program as the servers' own user."""
    here = settings()
    if not machine.has_own_reader(jars.SPARK_HOME):
        pytest.skip("only a stack that runs as root has a user of its own for the readers")
    protocol = "org.apache.hadoop.yarn.api.ApplicationClientProtocolPB"
    asked = (protocol, "getNewApplication", "", protocol)
    address = [here.host, here.port("resourcemanager")]
    for name in ("root", "etl", "reader"):
        said = attacker.run(here.readers_os_user, "call", address, name, "", *asked)
        assert said.startswith("refused: org.apache.hadoop.security.AccessControlException"), name
    assert attacker.run("root", "call", address, "etl", "", *asked) == "answered"
    new = ("POST", "/ws/v1/cluster/apps/new-application?user.name=reader")
    pages = [here.host, here.port("resourcemanager_http")]
    assert attacker.run(here.readers_os_user, "page", pages, *new)[0] == 403
    assert attacker.run("root", "page", pages, *new)[0] == 200
    node = [here.host, here.port("nodemanager_http")]
    assert attacker.run(here.readers_os_user, "page", node, "GET", "/ws/v1/node/info")[0] == 403
    assert attacker.run("root", "page", node, "GET", "/ws/v1/node/info")[0] == 200
