"""Dockerfiles by hadolint, the compose file by its specification, and the rules that every service keeps."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from etl.settings import ROOT, Settings
from etl.stack.servers import _DESCRIBED

DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose.yaml"
DOCKERFILES = sorted(DOCKER.rglob("Dockerfile"))

services: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
everyone = pytest.mark.parametrize("name", services)


def names(text: str) -> set[str]:
    """Names of settings that a text sets."""
    return set(re.findall(r"\bWAREHOUSE_([A-Z_]+)\b", text))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(DOCKER)))
def test_hadolint_finds_nothing(path: Path):
    told = subprocess.run([Path(sys.executable).with_name("hadolint"), "-c", ROOT / ".hadolint.yaml", path], capture_output=True, text=True)
    assert (told.returncode, told.stdout) == (0, "")


def test_the_compose_file_is_valid_by_its_specification():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout


def test_a_wrong_compose_file_is_not(tmp_path: Path):
    wrong = tmp_path / "compose.yaml"
    wrong.write_text("services: {a: {image: b, restarts: always}}\n")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(wrong)]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 1
    assert "restarts" in told.stdout


@everyone
def test_a_service_has_a_read_only_root_no_capability_and_limits(name: str):
    service = services[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert service["networks"] == ["warehouse"]


@everyone
def test_a_service_listens_on_this_machine_only(name: str):
    assert all(port.startswith("127.0.0.1:") for port in services[name].get("ports", []))


@everyone
def test_what_a_service_waits_for_can_happen(name: str):
    for other, waits in services[name].get("depends_on", {}).items():
        if waits["condition"] == "service_completed_successfully":
            assert services[other]["restart"] == "no"
        else:
            assert waits["condition"] == "service_healthy"
            # Postgres's image has no health check of its own; ours do, in their Dockerfile.
            assert "card-fraud/" in services[other]["image"] or "test" in services[other]["healthcheck"]


@everyone
def test_an_image_is_pinned_and_ours_are_built_here(name: str):
    image = services[name]["image"]
    if image.startswith("card-fraud/"):
        built = re.match(r"card-fraud/([a-z-]+):", image)
        assert built
        assert built[1] in (ROOT / "bash" / "build_images.sh").read_text()
    else:
        assert re.search(r":v?\d+\.\d+", image)


def test_a_volume_that_ours_write_is_mounted_on_a_folder_of_their_user():
    """Docker gives a new volume the owner of the folder that it covers, root where there is none."""
    (made,) = re.findall(r"install -d -o warehouse -g warehouse ((?:.|\\\n)+?)\nENV", (DOCKER / "Dockerfile").read_text())
    for name, service in services.items():
        if service["image"].startswith("card-fraud/") and name != "jenkins":
            volumes = [volume.split(":") for volume in service.get("volumes", [])]
            assert {place for _, place, *options in volumes if "ro" not in options} <= set(made.replace("\\", "").split()), name


def test_the_readers_server_gets_no_secret_and_its_metastore_only_its_own():
    mounted = {name: {volume.split(":")[0] for volume in service.get("volumes", [])} for name, service in services.items()}
    assert {name for name, volumes in mounted.items() if "secrets" in volumes} == {
        "secrets", "postgres", "prepare-stores", "metastore", "prepare-hive", "warehouse", "jenkins", "stream", "notify",
    }  # fmt: skip
    assert {name for name, volumes in mounted.items() if "secrets-api" in volumes} == {"secrets", "api"}
    assert {name for name, volumes in mounted.items() if "secrets-loads" in volumes} == {"secrets", "loads"}
    assert {name for name, volumes in mounted.items() if "secrets-readers" in volumes} == {"secrets", "readers-metastore"}


def test_the_api_reads_the_keys_that_the_verbs_write_and_nobody_else_sees_them():
    mounts = {name: [volume.split(":") for volume in service.get("volumes", [])] for name, service in services.items()}
    keys = {name: [mount for mount in found if mount[0] == "api-keys"] for name, found in mounts.items()}
    # A folder, not the file: the verb replaces the file, and who mounts the old one would never see the new one.
    assert {name: found for name, found in keys.items() if found} == {
        "warehouse": [["api-keys", "/run/secrets/api"]],
        "api": [["api-keys", "/run/secrets/api", "ro"]],
    }
    for name in ("warehouse", "api"):
        assert services[name]["environment"]["WAREHOUSE_API_KEYS_FILE"] == "/run/secrets/api/api_keys.yaml"


@pytest.mark.parametrize("path", [COMPOSE, *DOCKERFILES], ids=lambda path: str(path.relative_to(DOCKER)))
def test_every_setting_that_is_set_exists(path: Path):
    known = {field.upper() for field in Settings.model_fields} | {"VENV"}
    assert names(path.read_text()) <= known


def test_every_server_of_the_local_stack_has_a_service_but_the_optional_ones():
    commands = {" ".join(service.get("command", [])) for service in services.values()}
    optional = {"postgres", "watch", "mlflow", "resourcemanager", "nodemanager", "kafka", "api", "stream", "notify"}
    assert set(_DESCRIBED) - commands <= optional
    assert {"postgres", "kafka", "api", "stream", "notify"} <= services.keys()


def test_postgres_is_made_as_on_the_local_stack():
    arguments = services["postgres"]["environment"]["POSTGRES_INITDB_ARGS"].split()
    assert {"--encoding=UTF8", "--locale=C", "--data-checksums"} <= set(arguments)


def test_the_api_image_has_every_module_that_it_imports(tmp_path: Path):
    stage = (DOCKER / "Dockerfile").read_text().split("FROM python AS api\n")[1]
    for *sources, target in (line.split()[1:] for line in stage.splitlines() if line.startswith("COPY ") and "--from" not in line):
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / target)
            else:
                (tmp_path / target).mkdir(exist_ok=True)
                shutil.copy(ROOT / source, tmp_path / target)
    # Isolated: nothing of this repository but the copy is found.
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import api.__main__, api.check, api.topics; api.__main__.create()"
    told = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
