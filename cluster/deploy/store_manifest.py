"""The trajectory store on Kubernetes: a server with an append-only file on a claim of its own."""

from __future__ import annotations

import math
from typing import Any

from cluster.config.recipe import RunConfig
from cluster.deploy.noted import Noted
from cluster.deploy.pods import Names, container_security, from_secret, pod_security

PORT = 6379
MIB = 2**20
FILE_SHARE = 4  # times the memory: the append-only file doubles before it is written anew, beside the old one
FOLDER = "/data"


def store_documents(config: RunConfig, names: Names) -> list[Any]:
    """Service and StatefulSet; the password comes from the Secret."""
    labels = {**names.labels, "app.kubernetes.io/component": "store"}
    memory = memory_mib(config)
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": names.metadata(names.store),
        "spec": {"selector": labels, "ports": [{"name": "store", "port": PORT}]},
    }
    container = {
        "name": "store",
        "image": Noted(
            names.image, "The image has the server that the tests run; its version is in requirements.lock."
        ),
        "command": ["restorl", "deploy", "store", FOLDER, "--port", str(PORT), "--memory-mib", str(memory)],
        "env": [from_secret(names, "STORE_PASSWORD", "store_password")],
        "ports": [{"name": "store", "containerPort": PORT}],
        # Half as much again, for the pages that change while a child writes the file anew.
        "resources": {
            "requests": {"cpu": "2", "memory": f"{math.ceil(memory * 1.5)}Mi"},
            "limits": {"memory": f"{math.ceil(memory * 1.5)}Mi"},
        },
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 5},
        "livenessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 10, "failureThreshold": 30},
        "securityContext": container_security(),
        "volumeMounts": [{"name": "data", "mountPath": FOLDER}],
    }
    stateful_set = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": names.metadata(names.store),
        "spec": {
            "serviceName": names.store,
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "securityContext": pod_security(),
                    "containers": [container],
                },
            },
            "volumeClaimTemplates": [
                {
                    "metadata": {"name": "data"},
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "resources": {
                            "requests": Noted(
                                {"storage": f"{max(math.ceil(FILE_SHARE * memory / 1024), 10)}Gi"},
                                "Change: storageClassName beside resources; a local disk is fastest.",
                            )
                        },
                    },
                }
            ],
        },
    }
    return [service, stateful_set]


def memory_mib(config: RunConfig) -> int:
    """At which the server refuses more trajectories."""
    settings = config.store.with_ledger_of(config.iterations * config.source.groups_per_step)
    return math.ceil(settings.maxmemory / MIB)
