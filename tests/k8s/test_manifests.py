"""Every overlay, as bash/deploy.sh renders it, fits Kubernetes' schemas and keeps the rules of tests/k8s/policies.py."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from ml import deploy
from tests.k8s import policies
from tests.k8s.policies import Manifest, Rule

KUBERNETES = "1.35"
OVERLAYS = sorted(path.name for path in deploy.OVERLAYS.iterdir())


@functools.cache
def rendered(name: str) -> list[Manifest]:
    return [manifest for manifest in yaml.safe_load_all(deploy.render(deploy.OVERLAYS / name, "7", "0.1.0")) if manifest]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_fits_the_schemas(overlay: str) -> None:
    for manifest in rendered(overlay):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_schema_refuses_a_field_that_does_not_exist() -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "api"}, "spec": {"minimum": 1}},
            KUBERNETES,
            strict=True,
        )


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("rule", policies.RULES, ids=lambda rule: rule.__name__)
def test_overlay_keeps_the_rule(rule: Rule, overlay: str) -> None:
    assert rule(rendered(overlay)) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_score_is_the_model_s_image_and_the_rest_the_code_s(overlay: str) -> None:
    images = {told: container["image"].rpartition("/")[2] for told, container in policies.containers(rendered(overlay))}
    assert images.pop("CronJob score, container score") == "fraud-score:7"
    assert set(images.values()) == {"warehouse:0.1.0", "api:0.1.0"}


@pytest.mark.parametrize("rule", [policies.pods_are_restricted, policies.scratch_space_is_limited], ids=lambda rule: rule.__name__)
def test_pod_of_an_executor_keeps_the_rule(rule: Rule) -> None:
    pod = yaml.safe_load((deploy.ROOT / "ml" / "executor_pod.yaml").read_text())
    pod["metadata"]["name"] = "executor"
    assert rule([pod]) == []


def test_executors_of_spark_have_the_image_of_the_code_that_starts_them() -> None:
    (settings,) = policies.of_kind(rendered("production"), "ConfigMap")
    assert settings["data"]["WAREHOUSE_SPARK_IMAGE"] == "registry.example.com/card-fraud/warehouse:0.1.0"


def test_change_of_a_setting_changes_what_pods_refer_to(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "resources": [os.path.relpath(deploy.OVERLAYS / "local", tmp_path)],
                "namespace": "card-fraud",
                "configMapGenerator": [{"name": "warehouse", "behavior": "merge", "literals": ["WAREHOUSE_SPARK_MASTER=local[2]"]}],
            }
        )
    )

    def referred(rendering: str) -> set[str]:
        manifests = [one for one in yaml.safe_load_all(rendering) if one]
        return {
            source["configMapRef"]["name"] for _, container in policies.containers(manifests) for source in container.get("envFrom", [])
        }

    before = referred(deploy.render(deploy.OVERLAYS / "local", "7", "0.1.0"))
    after = referred(deploy.render(tmp_path, "7", "0.1.0"))
    assert len(before) == len(after) == 1
    assert before != after
