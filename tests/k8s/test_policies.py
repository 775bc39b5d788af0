"""Each rule of tests/k8s/policies.py finds what it is for."""

from __future__ import annotations

import textwrap

import pytest
import yaml

from tests.k8s import policies
from tests.k8s.policies import Rule

BROKEN: list[tuple[Rule, str, list[str]]] = [
    (
        policies.everything_is_there,
        """
        kind: CronJob
        metadata: {name: score}
        ---
        kind: CronJob
        metadata: {name: maintain}
        ---
        kind: Deployment
        metadata: {name: api}
        ---
        kind: Deployment
        metadata: {name: notify}
        ---
        kind: Service
        metadata: {name: api}
        ---
        kind: HorizontalPodAutoscaler
        metadata: {name: api}
        """,
        ["there is no CronJob train", "there is no Deployment stream", "there is no PodDisruptionBudget api"],
    ),
    (
        policies.objects_are_in_one_namespace,
        """
        kind: Namespace
        metadata: {name: card-fraud}
        ---
        kind: Service
        metadata: {name: api}
        """,
        ["Service api is not in namespace card-fraud"],
    ),
    (
        policies.namespace_enforces_restricted,
        """
        kind: Namespace
        metadata:
          name: card-fraud
          labels: {pod-security.kubernetes.io/enforce: baseline}
        """,
        ["Namespace card-fraud does not enforce PodSecurity restricted"],
    ),
    (
        policies.pods_are_restricted,
        """
        kind: Deployment
        metadata: {name: api}
        spec:
          template:
            spec:
              hostNetwork: true
              securityContext: {runAsNonRoot: true, runAsUser: 0}
              containers:
                - name: api
                  securityContext: {readOnlyRootFilesystem: false, capabilities: {drop: [ALL], add: [NET_RAW]}}
        """,
        [
            "Deployment api does not run as user and group 10001",
            "Deployment api has no seccomp profile",
            "Deployment api reaches into its node",
            "Deployment api, container api may gain privileges",
            "Deployment api, container api can write to its image",
            "Deployment api, container api keeps capabilities",
        ],
    ),
    (
        policies.scratch_space_is_limited,
        """
        kind: Deployment
        metadata: {name: api}
        spec:
          template:
            spec:
              containers: []
              volumes: [{name: tmp, emptyDir: {}}, {name: data, emptyDir: {sizeLimit: 1Gi}}]
        """,
        ["Deployment api, volume tmp may fill the node's disk"],
    ),
    (
        policies.containers_request_and_limit,
        """
        kind: CronJob
        metadata: {name: score}
        spec:
          jobTemplate:
            spec:
              template:
                spec:
                  containers:
                    - name: score
                      resources:
                        requests: {cpu: 1, memory: 1Gi, ephemeral-storage: 1Gi}
                        limits: {cpu: 1, ephemeral-storage: 1Gi}
        """,
        ["CronJob score, container score has no limit of memory"],
    ),
    (
        policies.images_are_pinned,
        """
        kind: Deployment
        metadata: {name: api}
        spec:
          template:
            spec:
              containers:
                - {name: one, image: "registry.example.com:5000/card-fraud/api"}
                - {name: two, image: "card-fraud/api:latest"}
                - {name: three, image: "registry.example.com:5000/card-fraud/api:0.1.0"}
        """,
        [
            "Deployment api, container one runs registry.example.com:5000/card-fraud/api, whichever that is",
            "Deployment api, container two runs card-fraud/api:latest, whichever that is",
        ],
    ),
    (
        policies.tokens_are_sparks_only,
        """
        kind: ServiceAccount
        metadata: {name: batch}
        ---
        kind: Deployment
        metadata: {name: api}
        spec: {template: {spec: {serviceAccountName: batch, containers: []}}}
        ---
        kind: Deployment
        metadata: {name: stream}
        spec: {template: {spec: {automountServiceAccountToken: false, containers: []}}}
        """,
        [
            "ServiceAccount batch gives its token to every pod",
            "Deployment api gets a token",
            "Deployment stream has no account of its own",
        ],
    ),
    (
        policies.roles_are_small,
        """
        kind: ClusterRole
        metadata: {name: all}
        ---
        kind: Role
        metadata: {name: spark-driver}
        rules: [{resources: [pods, secrets], verbs: [get]}]
        ---
        kind: RoleBinding
        metadata: {name: spark-driver}
        subjects: [{name: batch}]
        """,
        [
            "ClusterRole all reaches beyond its namespace",
            "Role spark-driver may get pods/secrets",
            "RoleBinding spark-driver is for batch",
        ],
    ),
    (
        policies.secrets_are_references,
        """
        kind: Secret
        metadata: {name: warehouse-pgpass}
        ---
        kind: ConfigMap
        metadata: {name: warehouse}
        data: {WAREHOUSE_POSTGRES_PASSWORD: x}
        ---
        kind: Deployment
        metadata: {name: api}
        spec:
          template:
            spec:
              containers:
                - {name: api, envFrom: [{secretRef: {name: warehouse-pgpass}}]}
              volumes:
                - {name: pgpass, secret: {secretName: warehouse-pgpass, defaultMode: 0444}}
        """,
        [
            "Secret warehouse-pgpass stands in the repository",
            "Deployment api, volume pgpass: a secret is one of warehouse-api, warehouse-pgpass, readable by its group",
            "Deployment api, container api has a secret in its environment",
            "ConfigMap warehouse: WAREHOUSE_POSTGRES_PASSWORD looks like a secret",
        ],
    ),
    (
        policies.settings_come_from_the_config_map,
        """
        kind: ConfigMap
        metadata: {name: warehouse}
        ---
        kind: Deployment
        metadata: {name: api}
        spec:
          template:
            spec:
              containers:
                - {name: api, envFrom: [{configMapRef: {name: warehouse}}], env: [{name: WAREHOUSE_SPARK_MASTER, value: connect}]}
        """,
        [
            "Deployment api, container api reads its settings from warehouse",
            "Deployment api, container api has a setting of its own",
        ],
    ),
    (
        policies.cron_jobs_never_overlap_and_are_bounded,
        """
        kind: CronJob
        metadata: {name: score}
        spec:
          concurrencyPolicy: Replace
          successfulJobsHistoryLimit: 3
          failedJobsHistoryLimit: 3
          jobTemplate:
            spec: {backoffLimit: 4, ttlSecondsAfterFinished: 60, template: {}}
        """,
        [
            "CronJob score may run twice at a time",
            "CronJob score follows its controller's clock",
            "CronJob score has no startingDeadlineSeconds",
            "CronJob score has no activeDeadlineSeconds",
            "CronJob score may have two pods at a time",
        ],
    ),
    (
        policies.configuration_errors_are_not_retried,
        """
        kind: Job
        metadata: {name: train}
        spec:
          podFailurePolicy:
            rules:
              - {action: FailJob, onExitCodes: {containerName: train, operator: In, values: [3]}}
              - {action: FailJob, onExitCodes: {containerName: score, operator: In, values: [2]}}
          template:
            spec: {restartPolicy: OnFailure, containers: [{name: train}]}
        """,
        [
            "Job train looks at container score, which it does not have",
            "Job train stops at exit codes [3], not at [2, 3]",
            "Job train counts a drained node as its failure",
            "Job train restarts in place: its failure policy is not asked",
        ],
    ),
    (
        policies.probes_are_there,
        """
        kind: Deployment
        metadata: {name: api}
        spec: {template: {spec: {containers: [{name: api, livenessProbe: {httpGet: {path: /health/live, port: http}}}]}}}
        """,
        ["Deployment api, container api has no readinessProbe"],
    ),
    (
        policies.roll_outs_lose_nothing,
        """
        kind: Service
        metadata: {name: api}
        spec: {selector: {app.kubernetes.io/component: api}}
        ---
        kind: Deployment
        metadata: {name: api}
        spec:
          replicas: 2
          strategy: {rollingUpdate: {maxUnavailable: 1}}
          template:
            metadata: {labels: {app.kubernetes.io/component: api}}
            spec:
              containers: [{name: api, lifecycle: {preStop: {sleep: {seconds: 30}}}}]
        """,
        [
            "Deployment api does not say when a roll-out has failed, or what is kept of it",
            "Deployment api takes pods away before others are there",
            "Deployment api and its autoscaler both say how many pods there are",
            "Deployment api ends while requests still arrive",
            "Deployment api may have all its pods on one node",
        ],
    ),
    (
        policies.served_deployments_scale_and_survive_drains,
        """
        kind: Service
        metadata: {name: api}
        spec: {selector: {app.kubernetes.io/component: api}}
        ---
        kind: Deployment
        metadata: {name: api}
        spec: {template: {metadata: {labels: {app.kubernetes.io/component: api}}}}
        ---
        kind: HorizontalPodAutoscaler
        metadata: {name: api}
        spec: {scaleTargetRef: {name: api}, minReplicas: 1, maxReplicas: 4}
        ---
        kind: PodDisruptionBudget
        metadata: {name: api}
        spec: {maxUnavailable: 1, selector: {matchLabels: {app.kubernetes.io/component: other}}}
        """,
        ["Deployment api is not scaled between two pods and more", "Deployment api may lose all its pods to a drain"],
    ),
    (
        policies.services_reach_pods,
        """
        kind: Service
        metadata: {name: api}
        spec: {selector: {app.kubernetes.io/component: api}, ports: [{port: 80, targetPort: web}]}
        ---
        kind: Deployment
        metadata: {name: api}
        spec:
          template:
            metadata: {labels: {app.kubernetes.io/component: api}}
            spec: {containers: [{name: api, ports: [{name: http}]}]}
        """,
        ["Service api: no pod has port web"],
    ),
    (
        policies.network_is_closed_by_default,
        """
        kind: NetworkPolicy
        metadata: {name: default-deny}
        spec: {podSelector: {}, policyTypes: [Ingress]}
        """,
        ["no NetworkPolicy denies everything by default"],
    ),
    (
        policies.ways_out_are_named,
        """
        kind: NetworkPolicy
        metadata: {name: everywhere}
        spec: {podSelector: {}, egress: [{ports: [{port: 443}]}]}
        ---
        kind: NetworkPolicy
        metadata: {name: every-port}
        spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}
        """,
        [
            "NetworkPolicy everywhere opens egress to anyone",
            "NetworkPolicy every-port opens ingress to anyone",
            "NetworkPolicy every-port opens ingress on every port",
        ],
    ),
    (
        policies.pods_that_need_servers_may_reach_them,
        """
        kind: NetworkPolicy
        metadata: {name: dns}
        spec: {podSelector: {matchLabels: {app.kubernetes.io/component: score}}, egress: [{ports: [{port: 53}]}]}
        ---
        kind: NetworkPolicy
        metadata: {name: others}
        spec: {podSelector: {matchLabels: {app.kubernetes.io/component: api}}, egress: [{ports: [{port: 8020}]}]}
        ---
        kind: Deployment
        metadata: {name: score}
        spec:
          template:
            metadata: {labels: {app.kubernetes.io/component: score}}
            spec: {volumes: [{secret: {secretName: warehouse-pgpass}}]}
        ---
        kind: Deployment
        metadata: {name: api}
        spec:
          template:
            metadata: {labels: {app.kubernetes.io/component: api}}
            spec: {volumes: [{secret: {secretName: warehouse-api}}]}
        ---
        kind: Deployment
        metadata: {name: other}
        spec: {template: {metadata: {labels: {app.kubernetes.io/component: api}}, spec: {}}}
        """,
        [
            "Deployment score cannot reach ports 8020, 9083, 9864, 9866, 9870, 10001, 15002, 15432",
            "Deployment api cannot reach ports 53, 9092, 10000, 15432",
            "Deployment other needs no way out and has one",
        ],
    ),
]


@pytest.mark.parametrize(("rule", "manifests", "sentences"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_rule_names_what_breaks_it(rule: Rule, manifests: str, sentences: list[str]) -> None:
    assert rule(list(yaml.safe_load_all(textwrap.dedent(manifests)))) == sentences


def test_every_rule_is_shown_to_be_able_to_fail() -> None:
    assert [rule for rule, _, _ in BROKEN] == list(policies.RULES)
