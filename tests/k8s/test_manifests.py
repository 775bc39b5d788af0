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
# The stream job's component is in no overlay yet; it has to fit all the same.
OVERLAYS = [*sorted(path.name for path in deploy.OVERLAYS.iterdir()), "local with the stream job"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("overlays")


@functools.cache
def rendered(name: str, folder: Path) -> list[Manifest]:
    overlay = deploy.OVERLAYS / name
    if not overlay.exists():
        overlay = folder / "stream"
        overlay.mkdir()
        stream = {
            "namespace": "card-fraud",
            "resources": [os.path.relpath(deploy.OVERLAYS / "local", overlay)],
            "components": [os.path.relpath(deploy.OVERLAYS.parent / "components" / "stream", overlay)],
        }
        (overlay / "kustomization.yaml").write_text(yaml.safe_dump(stream))
    return [manifest for manifest in yaml.safe_load_all(deploy.render(overlay, "7", "0.1.0")) if manifest]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_fits_the_schemas(overlay: str, folder: Path) -> None:
    for manifest in rendered(overlay, folder):
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
def test_overlay_keeps_the_rule(rule: Rule, overlay: str, folder: Path) -> None:
    assert rule(rendered(overlay, folder)) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_score_is_the_model_s_image_and_the_rest_the_code_s(overlay: str, folder: Path) -> None:
    images = {told: container["image"].rpartition("/")[2] for told, container in policies.containers(rendered(overlay, folder))}
    assert images.pop("CronJob score, container score") == "fraud-score:7"
    assert set(images.values()) == {"warehouse:0.1.0", "api:0.1.0"}


def test_executors_of_spark_have_the_image_of_the_code_that_starts_them(folder: Path) -> None:
    (settings,) = policies.of_kind(rendered("production", folder), "ConfigMap")
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
