"""Rules that every rendering of k8s/ keeps; each takes its objects and returns a sentence for each that breaks it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

Manifest = dict[str, Any]
Rule = Callable[[list[Manifest]], list[str]]

REQUIREMENTS = ("cpu", "memory", "ephemeral-storage")
CONFIGURATION_ERRORS = {2, 3}
SECRETS = {"warehouse-pgpass", "warehouse-api"}
"""Made by who installs; nothing else may be needed."""


def name(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def job_specs(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for manifest in of_kind(manifests, "CronJob"):
        yield name(manifest), manifest["spec"]["jobTemplate"]["spec"]
    for manifest in of_kind(manifests, "Job"):
        yield name(manifest), manifest["spec"]


def templates(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for told, spec in job_specs(manifests):
        yield told, spec["template"]
    for manifest in of_kind(manifests, "Deployment"):
        yield name(manifest), manifest["spec"]["template"]
    for manifest in of_kind(manifests, "Pod"):
        yield name(manifest), manifest


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for told, template in templates(manifests):
        yield told, template["spec"]


def containers(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for told, pod in pods(manifests):
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            yield f"{told}, container {container['name']}", container


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Tell whether a label selector takes these labels."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    return all(one["operator"] == "In" and labels.get(one["key"]) in one.get("values", []) for one in selector.get("matchExpressions", []))


EXPECTED = {
    "CronJob": {"score", "train", "maintain"},
    "Deployment": {"api", "stream", "notify"},
    "Service": {"api"},
    "HorizontalPodAutoscaler": {"api"},
    "PodDisruptionBudget": {"api"},
}


def everything_is_there(manifests: list[Manifest]) -> list[str]:
    """Rules about objects hold where there are none."""
    there = {(one["kind"], one["metadata"]["name"]) for one in manifests}
    return [f"there is no {kind} {one}" for kind, names in EXPECTED.items() for one in sorted(names) if (kind, one) not in there]


# --- pods ---------------------------------------------------------------------------------------------------------------


def objects_are_in_one_namespace(manifests: list[Manifest]) -> list[str]:
    names = [one["metadata"]["name"] for one in of_kind(manifests, "Namespace")]
    inside = [one for one in manifests if one["kind"] not in ("Namespace", "ClusterRole", "ClusterRoleBinding")]
    return [f"{name(one)} is not in namespace {', '.join(names)}" for one in inside if [one["metadata"].get("namespace")] != names]


def namespace_enforces_restricted(manifests: list[Manifest]) -> list[str]:
    level = "pod-security.kubernetes.io/enforce"
    found = of_kind(manifests, "Namespace")
    wrong = [name(one) for one in found if one["metadata"].get("labels", {}).get(level) != "restricted"]
    return [f"{one} does not enforce PodSecurity restricted" for one in wrong] or ([] if found else ["there is no Namespace"])


def pods_are_restricted(manifests: list[Manifest]) -> list[str]:
    broken = []
    for told, pod in pods(manifests):
        security = pod.get("securityContext", {})
        if security.get("runAsNonRoot") is not True or security.get("runAsUser") != 10001 or security.get("runAsGroup") != 10001:
            broken.append(f"{told} does not run as user and group 10001")
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            broken.append(f"{told} has no seccomp profile")
        if any(pod.get(one) for one in ("hostNetwork", "hostPID", "hostIPC")) or any("hostPath" in one for one in pod.get("volumes", [])):
            broken.append(f"{told} reaches into its node")
    for told, container in containers(manifests):
        security = container.get("securityContext", {})
        if security.get("allowPrivilegeEscalation") is not False:
            broken.append(f"{told} may gain privileges")
        if security.get("readOnlyRootFilesystem") is not True:
            broken.append(f"{told} can write to its image")
        if security.get("capabilities") != {"drop": ["ALL"]}:
            broken.append(f"{told} keeps capabilities")
    return broken


def scratch_space_is_limited(manifests: list[Manifest]) -> list[str]:
    return [
        f"{told}, volume {volume['name']} may fill the node's disk"
        for told, pod in pods(manifests)
        for volume in pod.get("volumes", [])
        if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {})
    ]


def containers_request_and_limit(manifests: list[Manifest]) -> list[str]:
    return [
        f"{told} has no {kind[:-1]} of {resource}"
        for told, container in containers(manifests)
        for kind in ("requests", "limits")
        for resource in REQUIREMENTS
        if resource not in container.get("resources", {}).get(kind, {})
    ]


def images_are_pinned(manifests: list[Manifest]) -> list[str]:
    return [
        f"{told} runs {container['image']}, whichever that is"
        for told, container in containers(manifests)
        if not re.search(r":[^/:]+$", container["image"]) or container["image"].endswith(":latest")
    ]


# --- rights and secrets -------------------------------------------------------------------------------------------------


def tokens_are_sparks_only(manifests: list[Manifest]) -> list[str]:
    broken = [
        f"{name(one)} gives its token to every pod"
        for one in of_kind(manifests, "ServiceAccount")
        if one.get("automountServiceAccountToken") is not False
    ]
    accounts = {one["metadata"]["name"] for one in of_kind(manifests, "ServiceAccount")}
    for told, pod in pods(manifests):
        if pod.get("serviceAccountName") not in accounts:
            broken.append(f"{told} has no account of its own")
        if pod.get("automountServiceAccountToken") is not False and pod.get("serviceAccountName") != "spark-driver":
            broken.append(f"{told} gets a token")
    return broken


def roles_are_small(manifests: list[Manifest]) -> list[str]:
    broken = [f"{name(one)} reaches beyond its namespace" for one in of_kind(manifests, "ClusterRole", "ClusterRoleBinding")]
    for role in of_kind(manifests, "Role"):
        for rule in role["rules"]:
            if not set(rule["resources"]) <= {"pods", "services", "configmaps"} or "*" in rule["verbs"]:
                broken.append(f"{name(role)} may {'/'.join(rule['verbs'])} {'/'.join(rule['resources'])}")
    for binding in of_kind(manifests, "RoleBinding"):
        broken += [f"{name(binding)} is for {one['name']}" for one in binding["subjects"] if one["name"] != "spark-driver"]
    return broken


def secrets_are_references(manifests: list[Manifest]) -> list[str]:
    broken = [f"{name(one)} stands in the repository" for one in of_kind(manifests, "Secret")]
    for told, pod in pods(manifests):
        for volume in pod.get("volumes", []):
            secret = volume.get("secret", {})
            if secret and (secret["secretName"] not in SECRETS or secret.get("defaultMode") != 0o440):
                broken.append(f"{told}, volume {volume['name']}: a secret is one of {', '.join(sorted(SECRETS))}, readable by its group")
    for told, container in containers(manifests):
        if any("secretKeyRef" in one.get("valueFrom", {}) for one in container.get("env", [])) or any(
            "secretRef" in one for one in container.get("envFrom", [])
        ):
            broken.append(f"{told} has a secret in its environment")
    for one in of_kind(manifests, "ConfigMap"):
        broken += [f"{name(one)}: {key} looks like a secret" for key in one.get("data", {}) if re.search("(?i)password|token|secret", key)]
    return broken


def settings_come_from_the_config_map(manifests: list[Manifest]) -> list[str]:
    """A ConfigMap whose name ends in its content's hash: a change of a setting is a change of the pod."""
    known = {one["metadata"]["name"] for one in of_kind(manifests, "ConfigMap")}
    broken = []
    for told, container in containers(manifests):
        for source in container.get("envFrom", []):
            used = source.get("configMapRef", {}).get("name", "")
            if not re.fullmatch(r"warehouse-[a-z0-9]{10}", used) or used not in known:
                broken.append(f"{told} reads its settings from {used or 'elsewhere'}")
        if any("value" in one for one in container.get("env", [])):
            broken.append(f"{told} has a setting of its own")
    return broken


# --- jobs ---------------------------------------------------------------------------------------------------------------


def cron_jobs_never_overlap_and_are_bounded(manifests: list[Manifest]) -> list[str]:
    broken = []
    for manifest in of_kind(manifests, "CronJob"):
        spec = manifest["spec"]
        if spec.get("concurrencyPolicy") != "Forbid":
            broken.append(f"{name(manifest)} may run twice at a time")
        if spec.get("timeZone") != "Etc/UTC":
            broken.append(f"{name(manifest)} follows its controller's clock")
        # Without it, a hundred missed firings stop a CronJob for ever.
        broken += [
            f"{name(manifest)} has no {key}"
            for key in ("startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit")
            if key not in spec
        ]
    for told, spec in job_specs(manifests):
        broken += [
            f"{told} has no {key}" for key in ("backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished") if key not in spec
        ]
        if spec.get("podReplacementPolicy") != "Failed":
            broken.append(f"{told} may have two pods at a time")
    return broken


def configuration_errors_are_not_retried(manifests: list[Manifest]) -> list[str]:
    broken = []
    for told, spec in job_specs(manifests):
        names = {container["name"] for container in spec["template"]["spec"]["containers"]}
        rules = spec.get("podFailurePolicy", {}).get("rules", [])
        stops: set[int] = set()
        for rule in rules:
            codes = rule.get("onExitCodes", {})
            if codes and codes.get("containerName") not in names:
                broken.append(f"{told} looks at container {codes.get('containerName')}, which it does not have")
            elif rule["action"] == "FailJob" and codes.get("operator") == "In":
                stops |= set(codes["values"])
        if stops != CONFIGURATION_ERRORS:
            broken.append(f"{told} stops at exit codes {sorted(stops)}, not at {sorted(CONFIGURATION_ERRORS)}")
        ignored = [one["type"] for rule in rules if rule["action"] == "Ignore" for one in rule.get("onPodConditions", [])]
        if ignored != ["DisruptionTarget"]:
            broken.append(f"{told} counts a drained node as its failure")
        if spec["template"]["spec"].get("restartPolicy") != "Never":
            broken.append(f"{told} restarts in place: its failure policy is not asked")
    return broken


# --- the API ------------------------------------------------------------------------------------------------------------


def probes_are_there(manifests: list[Manifest]) -> list[str]:
    return [
        f"{name(manifest)}, container {container['name']} has no {probe}"
        for manifest in of_kind(manifests, "Deployment")
        for container in manifest["spec"]["template"]["spec"]["containers"]
        for probe in ("livenessProbe", "readinessProbe")
        if probe not in container
    ]


def roll_outs_lose_nothing(manifests: list[Manifest]) -> list[str]:
    broken = []
    services = [one["spec"].get("selector", {}) for one in of_kind(manifests, "Service")]
    for manifest in of_kind(manifests, "Deployment"):
        spec = manifest["spec"]
        labels = spec["template"]["metadata"]["labels"]
        if "progressDeadlineSeconds" not in spec or "revisionHistoryLimit" not in spec:
            broken.append(f"{name(manifest)} does not say when a roll-out has failed, or what is kept of it")
        if not any(one and one.items() <= labels.items() for one in services):
            continue
        if spec.get("strategy", {}).get("rollingUpdate", {}).get("maxUnavailable") != 0:
            broken.append(f"{name(manifest)} takes pods away before others are there")
        if "replicas" in spec:
            broken.append(f"{name(manifest)} and its autoscaler both say how many pods there are")
        pod = spec["template"]["spec"]
        waits = [one.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0) for one in pod["containers"]]
        if not all(0 < one < pod.get("terminationGracePeriodSeconds", 30) for one in waits):
            broken.append(f"{name(manifest)} ends while requests still arrive")
        if not pod.get("topologySpreadConstraints"):
            broken.append(f"{name(manifest)} may have all its pods on one node")
    return broken


def served_deployments_scale_and_survive_drains(manifests: list[Manifest]) -> list[str]:
    scaled = {
        one["spec"]["scaleTargetRef"]["name"]
        for one in of_kind(manifests, "HorizontalPodAutoscaler")
        if 2 <= one["spec"].get("minReplicas", 1) < one["spec"]["maxReplicas"]
    }
    budgets = [one["spec"] for one in of_kind(manifests, "PodDisruptionBudget") if one["spec"].get("maxUnavailable") == 1]
    services = [one["spec"].get("selector", {}) for one in of_kind(manifests, "Service")]
    broken = []
    for manifest in of_kind(manifests, "Deployment"):
        labels = manifest["spec"]["template"]["metadata"]["labels"]
        if not any(one and one.items() <= labels.items() for one in services):
            continue
        if manifest["metadata"]["name"] not in scaled:
            broken.append(f"{name(manifest)} is not scaled between two pods and more")
        if not any(selects(one["selector"], labels) for one in budgets):
            broken.append(f"{name(manifest)} may lose all its pods to a drain")
    return broken


def services_reach_pods(manifests: list[Manifest]) -> list[str]:
    broken = []
    for service in of_kind(manifests, "Service"):
        for port in service["spec"]["ports"]:
            found = [
                container
                for _, template in templates(manifests)
                if service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
                for container in template["spec"]["containers"]
                if port["targetPort"] in [one.get("name") for one in container.get("ports", [])]
            ]
            if not found:
                broken.append(f"{name(service)}: no pod has port {port['targetPort']}")
    return broken


# --- the network --------------------------------------------------------------------------------------------------------


def network_is_closed_by_default(manifests: list[Manifest]) -> list[str]:
    for one in of_kind(manifests, "NetworkPolicy"):
        spec = one["spec"]
        if not spec["podSelector"] and set(spec["policyTypes"]) == {"Ingress", "Egress"} and not {"ingress", "egress"} & spec.keys():
            return []
    return ["no NetworkPolicy denies everything by default"]


def ways_out_are_named(manifests: list[Manifest]) -> list[str]:
    broken = []
    for policy in of_kind(manifests, "NetworkPolicy"):
        for direction, peer in (("egress", "to"), ("ingress", "from")):
            for way in policy["spec"].get(direction, []):
                peers = way.get(peer) or []
                if not peers or any(one.get("ipBlock", {}).get("cidr") in ("0.0.0.0/0", "::/0") for one in peers):
                    broken.append(f"{name(policy)} opens {direction} to anyone")
                inside = all("podSelector" in one and "namespaceSelector" not in one for one in peers)
                if not way.get("ports") and not inside:
                    broken.append(f"{name(policy)} opens {direction} on every port")
    return broken


def pods_that_need_servers_may_reach_them(manifests: list[Manifest]) -> list[str]:
    """Who has the password file speaks to Postgres, HDFS, metastore and loads server; the API and the notifier to fewer."""
    warehouse = {53, 15432, 8020, 9866, 9870, 9864, 9083, 10001, 15002}
    of_component = {"api": {53, 9092, 10000, 15432}, "notify": {53, 15432, 9092}, "stream": warehouse | {9092}}
    broken = []
    for told, template in templates(manifests):
        needed = of_component.get(template["metadata"]["labels"].get("app.kubernetes.io/component"), warehouse)
        has_password = any("secret" in one for one in template["spec"].get("volumes", []))
        mine = [
            policy["spec"]
            for policy in of_kind(manifests, "NetworkPolicy")
            if selects(policy["spec"]["podSelector"], template["metadata"]["labels"])
        ]
        ports = {port["port"] for spec in mine for way in spec.get("egress", []) for port in way.get("ports", [])}
        if has_password and not needed <= ports:
            broken.append(f"{told} cannot reach ports {', '.join(map(str, sorted(needed - ports)))}")
        if not has_password and ports:
            broken.append(f"{told} needs no way out and has one")
    return broken


RULES: tuple[Rule, ...] = (
    everything_is_there,
    objects_are_in_one_namespace,
    namespace_enforces_restricted,
    pods_are_restricted,
    scratch_space_is_limited,
    containers_request_and_limit,
    images_are_pinned,
    tokens_are_sparks_only,
    roles_are_small,
    secrets_are_references,
    settings_come_from_the_config_map,
    cron_jobs_never_overlap_and_are_bounded,
    configuration_errors_are_not_retried,
    probes_are_there,
    roll_outs_lose_nothing,
    served_deployments_scale_and_survive_drains,
    services_reach_pods,
    network_is_closed_by_default,
    ways_out_are_named,
    pods_that_need_servers_may_reach_them,
)
