"""The manifests on a real node: bash/test_node.sh runs this file by name, for it needs a cluster.

Jobs have the manifests' own failure policies; what they run is replaced, and two limits are shorter, so that they end as each test needs.
The API is the real one, and asks a broker that these tests start.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from etl.errors import RefusedError
from etl.settings import settings
from ml import deploy
from ml.deploy import Cluster, DeployError, kubectl
from tests import brokers
from tests.brokers import OwnBroker

ADDRESS = os.environ.get("WAREHOUSE_TEST_ADDRESS", "")
"""Of this machine, as the cluster's pods reach it."""
NAMESPACE = "card-fraud-test"
TAG = deploy.project_version()
SCORED = "sleep 1"
"""Stands for bash/score.sh: no server is needed here."""


@pytest.fixture(scope="module")
def broker() -> Iterator[OwnBroker]:
    """Run a broker that pods reach; settings point to it."""
    with brokers.given(host=ADDRESS, kafka_host=ADDRESS) as own:
        own.start()
        own.prepare()
        yield own


def overlay(folder: Path, score: str = SCORED, schedule: str = "0 0 1 1 *", ready: str = "/health/ready") -> Path:
    """Write an overlay of `local` in the tests' namespace; `score` is what the CronJob's pods run."""
    folder.mkdir()
    job = "/spec/jobTemplate/spec/template/spec/containers/0"
    patches = [
        {
            "target": {"kind": "CronJob", "name": "score"},
            "patch": json.dumps(
                [
                    {"op": "replace", "path": f"{job}/args", "value": ["bash", "-c", score]},
                    {"op": "replace", "path": "/spec/schedule", "value": schedule},
                ]
            ),
        },
        {
            "target": {"kind": "Deployment", "name": "api"},
            "patch": json.dumps(
                [
                    {"op": "replace", "path": "/spec/progressDeadlineSeconds", "value": 40},
                    {"op": "replace", "path": "/spec/template/spec/containers/0/readinessProbe/httpGet/path", "value": ready},
                ]
            ),
        },
    ]
    # What these two need is not there.
    patches += [
        {"target": {"kind": "Deployment", "name": name}, "patch": json.dumps([{"op": "replace", "path": "/spec/replicas", "value": 0}])}
        for name in ("stream", "notify")
    ]
    port = settings().port("kafka")
    way = {"to": [{"ipBlock": {"cidr": f"{ADDRESS}/32"}}], "ports": [{"port": port, "protocol": "TCP"}]}
    patches.append(
        {
            "target": {"kind": "NetworkPolicy", "name": "warehouse-kafka"},
            "patch": json.dumps([{"op": "replace", "path": "/spec/egress/0", "value": way}]),
        }
    )
    content = {
        "namespace": NAMESPACE,
        "resources": [os.path.relpath(deploy.OVERLAYS / "local", folder.resolve())],
        "configMapGenerator": [
            {
                "name": "warehouse",
                "behavior": "merge",
                "literals": [f"WAREHOUSE_KAFKA_HOST={ADDRESS}", f"WAREHOUSE_KAFKA_PORT={port}"],
            }
        ],
        # Whether a model scores is tested elsewhere.
        "images": [{"name": "fraud-score", "newName": "card-fraud/warehouse"}],
        "patches": patches,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture(scope="module")
def cluster(broker: OwnBroker) -> Iterator[Cluster]:
    # A run that was killed left it.
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")
    kubectl("create", "namespace", NAMESPACE)
    try:
        one = Cluster(NAMESPACE, timeout=120)
        one.run("create", "secret", "generic", "warehouse-pgpass", "--from-literal=pgpass=*:*:*:etl:none")
        one.run("create", "secret", "generic", "warehouse-api", "--from-literal=pgpass=*:*:*:api:none", "--from-literal=api_keys.yaml=[]")
        yield one
    finally:
        kubectl("delete", "namespace", NAMESPACE)


@pytest.fixture(scope="module")
def deployed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What runs before each test: the API, and a CronJob that hardly ever fires."""
    folder = overlay(tmp_path_factory.mktemp("sound") / "overlay")
    deploy.deploy(cluster, deploy.render(folder, None, TAG))
    return folder


def wait_for(what: Callable[[], Any], seconds: float) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := what():
            return found
        time.sleep(1)
    pytest.fail(f"waited {seconds} seconds in vain")


def job_of_score(cluster: Cluster, name: str, command: str, retries: int | None = None) -> None:
    """Make a job from the CronJob that runs another command."""
    job = json.loads(cluster.run("create", "job", name, "--from=cronjob/score", "--dry-run=client", "--output=json"))
    job["spec"]["template"]["spec"]["containers"][0]["args"] = ["bash", "-c", command]
    if retries is not None:
        job["spec"]["backoffLimit"] = retries
    cluster.run("create", "-f", "-", stdin=json.dumps(job))


def failure(cluster: Cluster, name: str) -> str | None:
    conditions = cluster.get("job", name).get("status", {}).get("conditions", [])
    return next((one["reason"] for one in conditions if one["type"] == "Failed"), None)


def pods_of(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    return cluster.get("pods", "--selector", f"batch.kubernetes.io/job-name={name}")["items"]


def test_object_that_no_deployment_made_is_refused_by_name(cluster: Cluster, tmp_path: Path) -> None:
    cluster.run("create", "service", "clusterip", "api", "--tcp=80")
    with pytest.raises(RefusedError, match="has objects that no deployment made: service/api; remove them first"):
        deploy.deploy(cluster, deploy.render(overlay(tmp_path / "overlay"), None, TAG))
    cluster.run("delete", "service", "api")


def test_deployment_rolls_out_answers_and_lets_a_job_score(deployed: Path, cluster: Cluster) -> None:
    status = cluster.get("deployment", "api")["status"]
    assert status["readyReplicas"] >= 1
    assert cluster.record().tried == ""
    assert "name: api" in cluster.record().current


def test_deployment_made_twice_changes_nothing(deployed: Path, cluster: Cluster) -> None:
    rendering = deploy.render(deployed, None, TAG)
    before = cluster.get("deployment", "api")["metadata"]["generation"]
    assert kubectl("diff", *deploy.APPLY, stdin=rendering) == ""
    deploy.deploy(cluster, rendering)
    assert cluster.get("deployment", "api")["metadata"]["generation"] == before


def test_api_that_never_gets_ready_is_rolled_back(deployed: Path, cluster: Cluster, tmp_path: Path) -> None:
    replica_sets = {one["metadata"]["name"] for one in cluster.get("replicasets")["items"]}
    with pytest.raises(DeployError, match=r"deployment api is not rolled out: .*what ran before runs again"):
        deploy.deploy(cluster, deploy.render(overlay(tmp_path / "broken", schedule="1 0 1 1 *", ready="/nothing"), None, TAG))
    assert cluster.get("cronjob", "score")["spec"]["schedule"] == "0 0 1 1 *"
    serving = {one["metadata"]["name"] for one in cluster.get("replicasets")["items"] if one["status"].get("readyReplicas")}
    assert serving <= replica_sets
    assert serving
    cluster.try_api()


def test_score_run_that_fails_is_rolled_back_with_its_own_sentence(deployed: Path, cluster: Cluster, tmp_path: Path) -> None:
    broken = overlay(tmp_path / "broken", score="echo 'error: no champion yet' >&2; exit 3")
    with pytest.raises(DeployError, match=r"failed \(PodFailurePolicy\): error: no champion yet; what ran before runs again"):
        deploy.deploy(cluster, deploy.render(broken, None, TAG))
    assert cluster.get("cronjob", "score")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"][-1] == SCORED


def test_job_that_the_schedule_began_with_an_image_that_failed_goes_with_it(deployed: Path, cluster: Cluster, tmp_path: Path) -> None:
    minutely = deploy.render(overlay(tmp_path / "minutely", schedule="* * * * *"), None, TAG)
    documents = [one for one in yaml.safe_load_all(minutely) if one]
    (score,) = [one for one in documents if one["kind"] == "CronJob" and one["metadata"]["name"] == "score"]
    score["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["image"] = "card-fraud/nowhere:1"
    # Long enough for the schedule to come round.
    with pytest.raises(DeployError, match=r"did not end within 75 seconds.*what ran before runs again"):
        deploy.deploy(Cluster(NAMESPACE, timeout=75), yaml.safe_dump_all(documents))
    assert wait_for(lambda: not any("card-fraud/nowhere:1" in deploy.images([job]) for job in cluster.unfinished_jobs()), 30)


def test_attempt_that_was_killed_leaves_nothing_after_the_next(deployed: Path, cluster: Cluster, tmp_path: Path) -> None:
    # Killed after it applied: what it was is remembered, its ConfigMap is there.
    killed = overlay(tmp_path / "killed")
    extended = yaml.safe_load((killed / "kustomization.yaml").read_text())
    extended["configMapGenerator"][0]["literals"].append("WAREHOUSE_LAG_SECONDS=7")
    (killed / "kustomization.yaml").write_text(yaml.safe_dump(extended))
    rendering = deploy.render(killed, None, TAG)
    cluster.remember(deploy.replace(cluster.record(), tried=rendering))
    kubectl("apply", *deploy.APPLY, stdin=rendering)
    sound = deploy.render(deployed, None, TAG)
    deploy.deploy(cluster, sound)
    left = {one["metadata"]["name"] for one in cluster.get("configmaps")["items"] if one["metadata"]["name"].startswith("warehouse-")}
    assert left == {name for kind, name in deploy.manifests(sound) if kind == "configmap"}


def test_missing_secret_is_refused_before_anything_is_applied(cluster: Cluster, deployed: Path) -> None:
    rendering = deploy.render(deployed, None, TAG).replace("warehouse-pgpass", "warehouse-other")
    with pytest.raises(RefusedError, match=f"secret warehouse-other is missing in namespace {NAMESPACE}"):
        cluster.require_secrets(rendering)


def test_configuration_error_is_not_retried(deployed: Path, cluster: Cluster) -> None:
    job_of_score(cluster, "refused", "exit 3")
    assert wait_for(lambda: failure(cluster, "refused"), 60) == "PodFailurePolicy"
    time.sleep(15)
    assert len(pods_of(cluster, "refused")) == 1


def test_server_that_is_away_is_retried_up_to_the_limit(deployed: Path, cluster: Cluster) -> None:
    job_of_score(cluster, "away", "exit 6", retries=2)
    assert wait_for(lambda: failure(cluster, "away"), 120) == "BackoffLimitExceeded"
    assert len(pods_of(cluster, "away")) == 3


def test_pod_runs_as_an_ordinary_user_that_can_write_two_folders_only(deployed: Path, cluster: Cluster) -> None:
    job_of_score(
        cluster,
        "looks",
        "id -u; touch /opt/x 2>/dev/null || echo closed; touch /tmp/x /var/lib/warehouse/x && echo open; "
        "head -c 12 /run/secrets/warehouse/pgpass; ls /var/run/secrets/kubernetes.io 2>/dev/null || echo; echo no token",
    )
    wait_for(lambda: cluster.get("job", "looks").get("status", {}).get("succeeded"), 60)
    assert cluster.run("logs", "job/looks").split() == ["10001", "closed", "open", "*:*:*:etl:no", "no", "token"]


def test_second_run_does_not_start_while_one_scores(deployed: Path, cluster: Cluster, tmp_path: Path) -> None:
    minutely = overlay(tmp_path / "minutely", score="sleep 100", schedule="* * * * *")

    def fired() -> list[str]:
        jobs = [one["metadata"] for one in cluster.get("jobs")["items"]]
        return [job["name"] for job in jobs if "batch.kubernetes.io/cronjob-scheduled-timestamp" in job.get("annotations", {})]

    assert fired() == []
    kubectl("apply", *deploy.APPLY, stdin=deploy.render(minutely, None, TAG))
    try:
        (first,) = wait_for(fired, 90)
        held = wait_for(lambda: cluster.get("events", "--field-selector=reason=JobAlreadyActive").get("items"), 90)
        assert held[0]["involvedObject"]["name"] == "score"
        assert fired() == [first]
        assert cluster.get("job", first)["status"]["active"] == 1
    finally:
        kubectl("apply", *deploy.APPLY, stdin=deploy.render(deployed, None, TAG))


def test_suspended_scoring_stays_suspended_and_is_not_tried(deployed: Path, cluster: Cluster) -> None:
    cluster.run("patch", "cronjob", "score", "--patch", '{"spec": {"suspend": true}}')
    try:
        before = {one["metadata"]["name"] for one in cluster.get("jobs")["items"]}
        deploy.deploy(cluster, deploy.render(deployed, None, TAG))
        assert cluster.get("cronjob", "score")["spec"]["suspend"] is True
        assert {one["metadata"]["name"] for one in cluster.get("jobs")["items"]} <= before
    finally:
        cluster.run("patch", "cronjob", "score", "--patch", '{"spec": {"suspend": false}}')


def test_run_that_scores_meanwhile_is_waited_for(deployed: Path, cluster: Cluster) -> None:
    job_of_score(cluster, "meanwhile", "sleep 20")
    deploy.deploy(cluster, deploy.render(deployed, None, TAG))
    assert cluster.get("job", "meanwhile")["status"]["succeeded"] == 1


def test_verb_deploys_and_says_so(deployed: Path) -> None:
    ran = subprocess.run([deploy.ROOT / "bash" / "deploy.sh", deployed, "--tag", TAG, "--yes"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "nothing differs; what runs is tried again\n"


def test_both_reasons_are_told_where_what_ran_before_does_not_work_either(
    deployed: Path, cluster: Cluster, broker: OwnBroker, tmp_path: Path
) -> None:
    # The last: the broker stays away.
    broker.end(signal.SIGTERM)
    assert wait_for(lambda: not cluster.get("deployment", "api")["status"].get("availableReplicas"), 60)
    hasty = Cluster(NAMESPACE, timeout=60)
    with pytest.raises(
        DeployError, match=r"deployment api is not rolled out.*is applied again, but does not work now either: .*not rolled out"
    ):
        deploy.deploy(hasty, deploy.render(overlay(tmp_path / "other", schedule="1 0 1 1 *"), None, TAG))
    assert cluster.record().tried == ""
    assert cluster.get("cronjob", "score")["spec"]["schedule"] == "0 0 1 1 *"
