"""Pods of a Ray cluster on Kubernetes: what runs, as whom, with which resources, volumes and probes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cluster.deploy.deployed import PASSWORD
from cluster.deploy.layout import ACTOR, LEARNER, REWARD, Group
from cluster.deploy.noted import Noted

USER = 1000  # as in the Dockerfile
RECIPE_FOLDER, RECIPE_FILE = "/etc/restorl", "recipe.yaml"
HEALTH = {"path": "/api/healthz", "port": 52365}  # of the dashboard's agent on every node; it asks for no token
DASHBOARD, METRICS, GCS, CLIENT, SERVE = 8265, 8080, 6379, 10001, 8000
SHM_SHARE = 0.4  # of a pod's memory: Ray's object store takes 0.3 of it
HEAD_CPUS, HEAD_GIB = 4, 16
GIB_OF_GPU = {ACTOR: 24, REWARD: 32, LEARNER: 48}
GIB_OF_CPU = {ACTOR: 6, REWARD: 4, LEARNER: 6}
STOP_WAIT_S = 300  # for a checkpoint that is being written, after which a driver that is stopped is killed


@dataclass(frozen=True)
class Names:
    """What the objects of a deployment are called, and what they run.

    Attributes:
        name: of the run, with which every other begins.
        image: of Dockerfile, in a registry that the nodes reach.
        work: where the shared storage with data, models and runs is mounted.
        password_env: the variable that the store's password is in.
    """

    name: str
    image: str
    work: str
    password_env: str = PASSWORD

    @property
    def secret(self) -> str:
        return f"{self.name}-secrets"

    @property
    def claim(self) -> str:
        return f"{self.name}-work"

    @property
    def recipe(self) -> str:
        return f"{self.name}-recipe"

    @property
    def store(self) -> str:
        return f"{self.name}-store"

    @property
    def run(self) -> str:
        return f"{self.work}/runs/{self.name}"

    @property
    def labels(self) -> dict[str, str]:
        return {"app.kubernetes.io/part-of": "restorl", "app.kubernetes.io/instance": self.name}

    def metadata(self, name: str) -> dict[str, Any]:
        return {"name": name, "labels": self.labels}


def head_template(names: Names) -> dict[str, Any]:
    """Ray's directory, dashboard and autoscaler, and the driver of a run; no role of it."""
    container = {
        **_container(names, "ray-head", HEAD_CPUS, HEAD_GIB, 0),
        "ports": [
            {"name": name, "containerPort": port}
            for name, port in (("gcs", GCS), ("dashboard", DASHBOARD), ("client", CLIENT), ("metrics", METRICS))
        ],
    }
    container["env"] += [
        from_secret(names, names.password_env, "store_password"),
        {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": str(STOP_WAIT_S)},
    ]
    return _template(names, container, HEAD_GIB, grace_s=STOP_WAIT_S)


def worker_template(names: Names, group: Group) -> dict[str, Any]:
    """A node of a role."""
    memory = memory_of(group)
    container = _container(names, "ray-worker", group.cpus, memory, group.gpus)
    container["ports"] = [{"name": "metrics", "containerPort": METRICS}]
    template = _template(names, container, memory, grace_s=60)
    template["spec"] = Noted({"automountServiceAccountToken": False, **template["spec"]}, PLACES[group.name])
    return template


def memory_of(group: Group) -> int:
    """GiB of a node."""
    return group.processes * (GIB_OF_GPU if group.gpus else GIB_OF_CPU)[group.name]


PLACES = {
    ACTOR: "Spot nodes will do: what a lost actor had is given out again. Change: name them, such as\n"
    '  nodeSelector: {cloud.google.com/gke-spot: "true"}\n'
    '  tolerations: [{key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}]',
    REWARD: "Change: a nodeSelector for the GPU that the scorer needs.",
    LEARNER: "On demand: a lost rank costs the steps since the last checkpoint. Change: a nodeSelector for its GPU.",
}


def from_secret(names: Names, variable: str, key: str) -> dict[str, Any]:
    """An environment variable."""
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": names.secret, "key": key}}}


def _container(names: Names, name: str, cpus: int, memory: int, gpus: int) -> dict[str, Any]:
    amounts = {"cpu": str(cpus), "memory": f"{memory}Gi", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    probe = {"httpGet": dict(HEALTH), "periodSeconds": 5, "timeoutSeconds": 5}
    return {
        "name": name,
        "image": names.image,
        "workingDir": names.work,
        "env": [
            {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
            {"name": "OMP_WAIT_POLICY", "value": "PASSIVE"},
        ],
        "resources": Noted(
            {"requests": amounts, "limits": amounts},
            "Change: memory by `restorl train RECIPE --dry-run`, and the name of your GPUs' resource.",
        ),
        "readinessProbe": {**probe, "initialDelaySeconds": 10, "failureThreshold": 12},
        "livenessProbe": {**probe, "initialDelaySeconds": 60, "failureThreshold": 60},
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "work", "mountPath": names.work},
            {"name": "recipe", "mountPath": RECIPE_FOLDER, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }


def _template(names: Names, container: dict[str, Any], memory: int, grace_s: int) -> dict[str, Any]:
    return {
        "metadata": {"labels": names.labels},
        "spec": {
            "restartPolicy": "Never",  # the only one that autoscaler v2 goes with
            "terminationGracePeriodSeconds": grace_s,
            "enableServiceLinks": False,  # variables such as STORE_PORT, named after services
            "securityContext": pod_security(),
            "containers": [container],
            "volumes": [
                {"name": "work", "persistentVolumeClaim": {"claimName": names.claim}},
                {"name": "recipe", "configMap": {"name": names.recipe}},
                {
                    "name": "shm",
                    "emptyDir": Noted(
                        {"medium": "Memory", "sizeLimit": f"{math.ceil(memory * SHM_SHARE)}Gi"},
                        "Ray's object store and the processes of a GPU meet there; it counts as memory of the pod.",
                    ),
                },
            ],
        },
    }


def pod_security() -> dict[str, Any]:
    """As the user of the image, to whom mounted storage belongs."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
