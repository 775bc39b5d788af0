"""Deploy an overlay of `k8s/`: show what changes, apply it, wait, try it, and go back to what ran before when that fails.

What ran before is known from the cluster, not from this machine: the ConfigMap `deployment` holds the rendering that runs, the one
before it, and the one that is being tried. So a deployment may be killed anywhere, and the next one, from wherever, knows what to remove.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from etl.errors import BusyError, RefusedError, UnavailableError, WarehouseError
from etl.log import logger, run_main
from etl.settings import ROOT, settings

OVERLAYS = ROOT / "k8s" / "overlays"
RECORD = "deployment"
APPLY = ("--server-side", "--force-conflicts", "--field-manager=deploy", "-f", "-")
"""What was changed by hand is shown as a difference and undone; fields that no manifest names stay as they are."""

AWAY = ("was refused", "Unable to connect to the server", "i/o timeout", "no configuration has been provided")

Manifest = dict[str, Any]
Key = tuple[str, str]
"""An object's kind (with its group) and name."""


class DeployError(WarehouseError):
    """The cluster did not take the deployment, or it does not work there."""


@dataclass(frozen=True)
class Record:
    """What the cluster remembers of its deployments, as renderings; empty where there is none.

    Attributes
    ----------
    version
        Of the object that holds it: who writes over another's is told.
    """

    version: str = ""
    current: str = ""
    previous: str = ""
    tried: str = ""


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """Run kubectl and return what it printed.

    Raises
    ------
    RefusedError
        When there is no kubectl.
    UnavailableError
        When the cluster does not answer.
    DeployError
        When kubectl fails otherwise, with its own sentence.
    """
    try:
        ran = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise RefusedError("kubectl is not on the path; install it") from error
    # `diff` ends in 1 where there are differences.
    if ran.returncode == 0 or (arguments[0] == "diff" and ran.returncode == 1):
        return ran.stdout
    told = " ".join(ran.stderr.split()) or f"exit code {ran.returncode}"
    if any(sign in told for sign in AWAY):
        raise UnavailableError(f"the cluster of kubectl's context does not answer: {told}")
    raise DeployError(f"kubectl {' '.join(arguments[:2])}: {told}")


def overlay_folder(name: str) -> Path:
    """Return the folder of an overlay, given by its name or its path.

    Raises
    ------
    RefusedError
        When there is none.
    """
    folder = Path(name) if "/" in name else OVERLAYS / name
    if not (folder / "kustomization.yaml").exists():
        raise RefusedError(f"there is no overlay {name}; there are {', '.join(sorted(path.name for path in OVERLAYS.iterdir()))}")
    return folder.resolve()


def render(overlay: Path, model_version: str | None, tag: str) -> str:
    """Render an overlay with the versions of its images.

    Parameters
    ----------
    overlay
        Its folder.
    model_version
        Tag of `fraud-score`; None asks the registry for the champion.
    tag
        Of the other images.
    """
    named = manifests(kubectl("kustomize", str(overlay))).values()
    used = sorted(images(named))
    if model_version is None and any(image.endswith("fraud-score") for image in used):
        model_version = _champion()
    content: Manifest = {
        "images": [{"name": image, "newTag": model_version if image.endswith("fraud-score") else tag} for image in used],
    }
    if any("WAREHOUSE_SPARK_IMAGE" in manifest.get("data", {}) for manifest in named):
        # Executors have the image of the code that starts them.
        train = "spec.jobTemplate.spec.template.spec.containers.0.image"
        content["replacements"] = [
            {
                "source": {"kind": "CronJob", "name": "train", "fieldPath": train},
                "targets": [{"select": {"kind": "ConfigMap", "name": "warehouse"}, "fieldPaths": ["data.WAREHOUSE_SPARK_IMAGE"]}],
            }
        ]
    scratch = settings().data_dir.resolve() / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="deploy-") as folder:
        # Kustomize takes other folders by relative paths only.
        content["resources"] = [os.path.relpath(overlay, folder)]
        Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(content))
        return kubectl("kustomize", folder)


def project_version() -> str:
    """Return the tag that bash/build_images.sh gives to images by default."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def _champion() -> str:
    from ml import registry

    return str(registry.required_champion().version)


def manifests(rendering: str) -> dict[Key, Manifest]:
    """Return the objects of a rendering by kind and name."""
    found = [manifest for manifest in yaml.safe_load_all(rendering) if manifest]
    return {(_kind(manifest), manifest["metadata"]["name"]): manifest for manifest in found}


def _kind(manifest: Manifest) -> str:
    group = manifest["apiVersion"].rpartition("/")[0].partition("/")[0]
    return f"{manifest['kind']}.{group}".lower().rstrip(".")


def containers(manifest: Manifest) -> list[Manifest]:
    """Return the containers of an object that has pods."""
    pod = _pod(manifest)
    return [*pod.get("initContainers", []), *pod.get("containers", [])]


def images(of: Iterable[Manifest]) -> set[str]:
    """Return the images that the containers of some objects have."""
    return {container["image"] for manifest in of for container in containers(manifest)}


def _pod(manifest: Manifest) -> Manifest:
    """Return what an object says of its pods; empty where it has none."""
    spec = manifest.get("spec", {})
    return spec.get("jobTemplate", {}).get("spec", spec).get("template", {}).get("spec", {})


def obsolete(record: Record, rendering: str) -> list[Key]:
    """Return what earlier renderings left behind, in the order in which it is removed.

    A ConfigMap outlives its rendering by one deployment: a job that runs may still start a pod with it.
    """
    before = manifests(record.previous) | manifests(record.tried) | manifests(record.current)
    kept = set(manifests(rendering)) | {key for key in manifests(record.current) if key[0] == "configmap"}
    # Its secret is not ours to remove.
    return [key for key in before if key not in kept and key[0] != "namespace"]


class Cluster:
    """The cluster of kubectl's context, in one namespace."""

    def __init__(self, namespace: str, timeout: int) -> None:
        self.namespace = namespace
        self.timeout = timeout

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl in this namespace."""
        return kubectl(*arguments, "--namespace", self.namespace, stdin=stdin)

    def get(self, *arguments: str) -> Manifest:
        """Return an object or a list of them; empty where there is none."""
        told = self.run("get", *arguments, "--ignore-not-found", "--output=json")
        return json.loads(told) if told else {}

    def require_secrets(self, rendering: str) -> None:
        """Refuse where a secret is missing that a pod would wait for."""
        for manifest in manifests(rendering).values():
            for volume in _pod(manifest).get("volumes", []):
                name = volume.get("secret", {}).get("secretName")
                if name and not self.run("get", "secret", name, "--ignore-not-found", "--output=name"):
                    raise RefusedError(
                        f"secret {name} is missing in namespace {self.namespace}; make both as docs/operations.md says under Kubernetes"
                    )

    def require_empty(self, rendering: str) -> None:
        """Refuse where objects are there that no deployment made: none would know how to go back to them."""
        there = self.run("get", "-f", "-", "--ignore-not-found", "--output=name", stdin=rendering).split()
        if strangers := [name for name in there if not name.startswith("namespace/")]:
            raise RefusedError(f"namespace {self.namespace} has objects that no deployment made: {', '.join(strangers)}; remove them first")

    def record(self) -> Record:
        """Return what this namespace remembers."""
        held = self.get("configmap", RECORD)
        return Record(held["metadata"]["resourceVersion"], **held["data"]) if held else Record()

    def remember(self, record: Record) -> Record:
        """Write a record over the version that was read.

        Raises
        ------
        BusyError
            When another deployment wrote meanwhile.
        """
        metadata = {"name": RECORD, "namespace": self.namespace} | ({"resourceVersion": record.version} if record.version else {})
        data = {"current": record.current, "previous": record.previous, "tried": record.tried}
        held = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
        try:
            told = self.run("replace" if record.version else "create", "--output=json", "-f", "-", stdin=json.dumps(held))
        except DeployError as error:
            if "has been modified" in str(error) or "AlreadyExists" in str(error):
                raise BusyError(f"another deployment to namespace {self.namespace} has begun meanwhile; see how it ends") from error
            raise
        return replace(record, version=json.loads(told)["metadata"]["resourceVersion"])

    def roll_out(self, rendering: str) -> None:
        """Wait until the Deployments of a rendering that was applied are rolled out."""
        for (kind, name), manifest in manifests(rendering).items():
            if kind == "deployment.apps":
                logger.info("rolling out", deployment=name)
                try:
                    self.run("rollout", "status", f"deployment/{name}", f"--timeout={self.timeout}s")
                except DeployError as error:
                    labels = manifest["spec"]["selector"]["matchLabels"]
                    raise DeployError(f"deployment {name} is not rolled out: {self._why(labels) or error}") from error

    def unfinished_jobs(self) -> list[Manifest]:
        """Return the jobs that have not ended."""
        return [job for job in self.get("jobs").get("items", []) if not _ended(job)]

    def remove(self, keys: list[Key]) -> None:
        """Remove objects; what is gone already is no error."""
        for kind, name in keys:
            logger.info("removing", kind=kind, name=name)
            self.run("delete", kind, name, "--ignore-not-found", "--wait=false")

    def _why(self, labels: dict[str, str]) -> str:
        """Say what the pods with these labels that are not ready wait for."""
        told = []
        for pod in self.get("pods", "--selector", ",".join(f"{name}={value}" for name, value in labels.items())).get("items", []):
            waits = [one["message"] for one in pod["status"].get("conditions", []) if one["status"] != "True" and "message" in one]
            for status in pod["status"].get("containerStatuses", []):
                state = status["state"].get("waiting") or status["state"].get("terminated") or {}
                waits += [f"{state['reason']} {state.get('message', '')}".strip()] if state else []
            told += [f"pod {pod['metadata']['name']}: {', '.join(dict.fromkeys(waits))}"] if waits else []
        return "; ".join(told)

    def try_api(self) -> None:
        """Ask the API whether it is ready, through its service's port; the way of a port-forward is closed by no NetworkPolicy."""
        command = ["kubectl", "--namespace", self.namespace, "port-forward", "service/api", ":http"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as forward:
            try:
                line = forward.stdout.readline() if forward.stdout else ""
                if not line.startswith("Forwarding from"):
                    raise DeployError(f"the API cannot be reached: {forward.stderr.read().strip() if forward.stderr else line}")
                with urllib.request.urlopen(f"http://{line.split()[2]}/health/ready", timeout=10) as answer:
                    logger.info("the API is ready", answer=answer.read().decode())
            except OSError as error:
                raise DeployError(f"the API does not answer on /health/ready: {error}") from error
            finally:
                forward.terminate()

    def try_score(self) -> None:
        """Let a job made from the CronJob `score` run to its end; whoever suspended that wants no score."""
        if self.get("cronjob", "score")["spec"].get("suspend"):
            logger.warning("scoring is suspended, so it is not tried")
            return
        # One that runs has the table: ours would be told that it is being written.
        for job in self.unfinished_jobs():
            if any(owner["kind"] == "CronJob" and owner["name"] == "score" for owner in job["metadata"].get("ownerReferences", [])):
                self._end_of(job["metadata"]["name"])
        name = f"score-try-{time.strftime('%Y%m%d%H%M%S', time.gmtime())}"
        self.run("create", "job", name, "--from=cronjob/score")
        failed = self._end_of(name)
        if failed:
            said = ""
            with contextlib.suppress(DeployError):
                said = self.run("logs", f"job/{name}", "--tail=1").strip()
            raise DeployError(f"job {name} failed ({failed.get('reason')}): {said or failed.get('message')}")

    def _end_of(self, name: str) -> Manifest:
        """Wait for the end of a job; returns why it failed, nothing where it did not, or is gone."""
        logger.info("scoring", job=name)
        until = time.monotonic() + self.timeout
        while time.monotonic() < until:
            # A cluster that does not answer for a moment may still answer in time.
            with contextlib.suppress(UnavailableError):
                job = self.get("job", name)
                if not job or (ended := _ended(job)):
                    return ended.get("Failed", {}) if job else {}
            time.sleep(2)
        why = self._why({"batch.kubernetes.io/job-name": name})
        self.remove([("job.batch", name)])
        raise DeployError(f"job {name} did not end within {self.timeout} seconds: {why or 'it was still running'}")


def _ended(job: Manifest) -> dict[str, Manifest]:
    """Return the conditions by which a job has ended, by type; none while it has not."""
    conditions = job.get("status", {}).get("conditions", [])
    return {one["type"]: one for one in conditions if one["type"] in ("Complete", "Failed") and one["status"] == "True"}


def deploy(cluster: Cluster, rendering: str) -> None:
    """Apply a rendering, try it, and remember it; or go back to the one that the cluster remembers.

    Raises
    ------
    DeployError
        When it failed; the sentence says what did, and what runs now.
    UnavailableError
        When the cluster went away meanwhile: what was tried is remembered there, and the next deployment goes on, or goes back.
    RefusedError
        When the namespace has objects already that no deployment made.
    """
    before = cluster.record()
    if not before.version:
        cluster.require_empty(rendering)
    if before.tried:
        logger.warning("an earlier deployment did not end; what only it has is removed")
        cluster.remove(obsolete(replace(before, previous=""), f"{before.current}\n---\n{rendering}"))
    record = cluster.remember(replace(before, tried=rendering))
    try:
        kubectl("apply", *APPLY, stdin=rendering)
        cluster.roll_out(rendering)
        cluster.try_api()
        cluster.try_score()
    except UnavailableError as error:
        raise UnavailableError(f"{error}; this deployment is unfinished: run it again when the cluster answers") from error
    except DeployError as error:
        # Whoever wrote meanwhile decides what runs.
        record = cluster.remember(record)
        logger.error("rolling back", reason=str(error))
        if record.current:
            kubectl("apply", *APPLY, stdin=record.current)
        cluster.remove(obsolete(replace(record, previous=""), record.current))
        failed = images(manifests(rendering).values()) - images(manifests(record.current).values())
        # One that cannot begin holds back its CronJob's next ones.
        cluster.remove([("job.batch", job["metadata"]["name"]) for job in cluster.unfinished_jobs() if failed & images([job])])
        cluster.remember(replace(record, tried=""))
        raise DeployError(f"{error}; {_now(cluster, record.current)}") from error
    previous = before.current if before.current != rendering else before.previous
    cluster.remember(replace(record, current=rendering, previous=previous, tried=""))
    cluster.remove(obsolete(replace(before, tried=""), rendering))


def _now(cluster: Cluster, current: str) -> str:
    """Say what runs after a rendering was applied again."""
    if not current:
        return "nothing ran before, so all of it is removed"
    try:
        cluster.roll_out(current)
    except DeployError as error:
        return f"what ran before is applied again, but does not work now either: {error}"
    return "what ran before runs again"


def _confirmed(yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise RefusedError("nobody can be asked whether to apply this; say --yes")
    if input("apply this? [y/N] ").strip().lower() != "y":
        raise RefusedError("nothing was applied")


def main() -> None:
    """Parse the command line and deploy."""
    parser = argparse.ArgumentParser(prog="bash/deploy.sh", description=__doc__)
    parser.add_argument("overlay", help="a folder of k8s/overlays, or the path of one elsewhere")
    parser.add_argument("--model-version", help="which fraud-score image scores; by default the champion's")
    parser.add_argument("--tag", help="of the other images; by default this project's version")
    parser.add_argument("--timeout", type=int, default=600, help="for each roll-out and for the score run, seconds")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    arguments = parser.parse_args()
    rendering = render(overlay_folder(arguments.overlay), arguments.model_version, arguments.tag or project_version())
    (namespace,) = [name for kind, name in manifests(rendering) if kind == "namespace"]
    cluster = Cluster(namespace, arguments.timeout)
    server = kubectl("config", "view", "--minify", "--output=jsonpath={.clusters[0].cluster.server}")
    logger.info("deploying", overlay=arguments.overlay, namespace=namespace, cluster=server)
    cluster.require_secrets(rendering)
    difference = kubectl("diff", *APPLY, stdin=rendering)
    print(difference or "nothing differs; what runs is tried again\n", end="", flush=True)
    if difference:
        _confirmed(arguments.yes)
    deploy(cluster, rendering)
    logger.info("deployed", overlay=arguments.overlay, namespace=namespace)


if __name__ == "__main__":
    run_main(main)
