"""What a deployment renders, refuses and removes, as far as that needs no cluster (bash/test_node.sh has one)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from etl.errors import RefusedError, UnavailableError
from etl.settings import ROOT
from ml import deploy
from ml.deploy import Record


def rendering(*names: str) -> str:
    """Render Deployments and, where the name has a dash, ConfigMaps."""
    kinds = {name: "apiVersion: v1\nkind: ConfigMap" if "-" in name else "apiVersion: apps/v1\nkind: Deployment" for name in names}
    return "---\n".join(f"{kind}\nmetadata: {{name: {name}}}\n" for name, kind in kinds.items())


def test_object_that_is_no_longer_declared_is_removed() -> None:
    assert deploy.obsolete(Record(current=rendering("api", "stream")), rendering("api")) == [("deployment.apps", "stream")]


def test_object_of_an_attempt_that_was_killed_is_removed() -> None:
    assert deploy.obsolete(Record(current=rendering("api"), tried=rendering("api", "stream")), rendering("api")) == [
        ("deployment.apps", "stream")
    ]


def test_settings_outlive_their_rendering_by_one_deployment() -> None:
    record = Record(current=rendering("api", "warehouse-b"), previous=rendering("api", "warehouse-a"))
    assert deploy.obsolete(record, rendering("api", "warehouse-c")) == [("configmap", "warehouse-a")]


def test_namespace_is_never_removed() -> None:
    namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: card-fraud}\n"
    assert deploy.obsolete(Record(tried=namespace + "---\n" + rendering("api")), "") == [("deployment.apps", "api")]


def test_unknown_overlay_is_refused_by_name() -> None:
    with pytest.raises(RefusedError, match="there is no overlay staging; there are local, production"):
        deploy.overlay_folder("staging")


def test_cluster_that_is_away_is_told_from_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "kubeconfig"
    # Port 9 of loopback: nobody listens there.
    config.write_text(
        "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'http://127.0.0.1:9'}}]\n"
        "contexts: [{name: x, context: {cluster: c}}]\ncurrent-context: x\n"
    )
    monkeypatch.setenv("KUBECONFIG", str(config))
    with pytest.raises(UnavailableError, match="does not answer"):
        deploy.kubectl("get", "--raw=/readyz")


def test_machine_without_kubectl_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RefusedError, match="kubectl is not on the path"):
        deploy.kubectl("version")


def test_exit_code_of_a_refusal_is_three() -> None:
    ran = subprocess.run([ROOT / "bash" / "deploy.sh", "staging"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (3, "error: there is no overlay staging; there are local, production\n")
