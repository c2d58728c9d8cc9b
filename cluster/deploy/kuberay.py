"""Manifests for Kubernetes with the KubeRay operator: cluster, job, reward service, storage, store."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

from cluster.config.configure import ConfigError
from cluster.config.recipe import RunConfig
from cluster.deploy import deployed
from cluster.deploy.layout import ACTOR, LEARNER, REWARD, Group, Hosts, groups_of
from cluster.deploy.noted import Noted, text_of
from cluster.deploy.pods import (
    DASHBOARD,
    METRICS,
    RECIPE_FILE,
    RECIPE_FOLDER,
    SERVE,
    Names,
    container_security,
    head_template,
    worker_template,
)
from cluster.deploy.store_manifest import PORT, store_documents
from reward_service.settings import check_name

RETRIES = 5
IDLE_S = 300  # before a node that has nothing to do goes
PLACED_S = 3600  # for the pods of a job to come


def manifests(config: RunConfig, names: Names, hosts: Hosts) -> dict[str, list[Any]]:
    """File -> documents, of which `noted.bare` makes plain ones.

    Args:
        config: as the user gave it.

    Raises:
        ConfigError: roles that don't fit into the hosts.
    """
    config = configured(config, names, hosts)
    groups = groups_of(config, hosts)
    files = {
        "storage.yaml": [_claim(names)],
        "recipe.yaml": [_recipe(config, names)],
        "standing/raycluster.yaml": [_ray_cluster(names, groups)],
        "rayjob.yaml": [_ray_job(names, groups)],
        "network.yaml": [_network(names)],
    }
    if _own_store(config, names):
        files["store.yaml"] = store_documents(config, names)
    if any(of.app is None for of in config.reward.services.values()):
        files["standing/rayservice.yaml"] = [_ray_service(config, names, groups)]
    return files


def configured(config: RunConfig, names: Names, hosts: Hosts) -> RunConfig:
    """The recipe as it runs there."""
    config = deployed.on_shared_storage(config, names.work)
    config = deployed.patient(deployed.joining(deployed.pinned(config), autoscaling=True))
    config = deployed.with_store(config, f"redis://{names.store}:{PORT}")
    return deployed.with_actors(config, hosts)


def texts(files: Mapping[str, list[Any]], names: Names) -> dict[str, str]:
    """File -> its text, of `manifests`."""
    return {"secrets.sh": _secrets(names), **{file: text_of(found, HEADS[file]) for file, found in files.items()}}


def _own_store(config: RunConfig, names: Names) -> bool:
    return config.store.url == f"redis://{names.store}:{PORT}"


def entrypoint(names: Names) -> str:
    """What a job runs: a new run, or what there is of it in its folder."""
    return shlex.join(["restorl", "train", f"{RECIPE_FOLDER}/{RECIPE_FILE}", "--run", names.run, "--resume-if-there"])


def cluster_spec(names: Names, groups: Sequence[Group]) -> dict[str, Any]:
    """Of a RayCluster, by itself or in a job or service."""
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token", "secretName": names.secret},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": IDLE_S,
            "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "2Gi"}},
            "securityContext": container_security(),
        },
        "headGroupSpec": {
            "rayStartParams": {"dashboard-host": "0.0.0.0", "metrics-export-port": str(METRICS)},
            "resources": {"CPU": "0"},
            "template": head_template(names),
        },
        "workerGroupSpecs": [_worker_group(names, group) for group in groups],
    }


def _worker_group(names: Names, group: Group) -> dict[str, Any]:
    resources = {"CPU": str(group.cpus), **({"GPU": str(group.gpus)} if group.gpus else {})}
    resources |= {name: str(amount) for name, amount in group.offers.items()}
    spec = {
        "groupName": group.name,
        "replicas": group.first,
        "minReplicas": group.least,
        "maxReplicas": group.most,
        "labels": {"ray.io/market-type": "spot" if group.name == ACTOR else "on-demand"},
        "rayStartParams": {"metrics-export-port": str(METRICS)},
        "resources": Noted(resources, f"Of a node, for {group.processes} processes: the recipe's roles ask for them."),
        "template": worker_template(names, group),
    }
    return {"groupName": Noted(spec.pop("groupName"), SCALE[group.name] if group.first else IDLE), **spec}


SCALE = {
    ACTOR: "Nodes come and go with the actors: maxReplicas is what `restorl actors scale N` finds room in.",
    REWARD: "Ray Serve scales the replicas by their queue (reward.min_replicas, max_replicas), nodes follow.",
    LEARNER: "As many nodes as the ranks take, throughout the run: minReplicas must stay maxReplicas.",
}
IDLE = "None until a run asks for them."


def _ray_cluster(names: Names, groups: Sequence[Group]) -> dict[str, Any]:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": names.metadata(f"{names.name}-cluster"),
        "spec": cluster_spec(names, groups),
    }


def _ray_job(names: Names, groups: Sequence[Group]) -> dict[str, Any]:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": names.metadata(names.name),
        "spec": {
            "entrypoint": Noted(
                entrypoint(names),
                "Every attempt goes on with what the run folder and the store hold. Change: recipe.yaml.",
            ),
            "backoffLimit": Noted(RETRIES, "Attempts after the first, each on a cluster of its own."),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "preRunningDeadlineSeconds": PLACED_S,
            "rayClusterSpec": cluster_spec(names, groups),
        },
    }


def _ray_service(config: RunConfig, names: Names, groups: Sequence[Group]) -> dict[str, Any]:
    """A cluster that has the recipe's rewards and stays, for the runs that are submitted to it."""
    own = {term: of for term, of in config.reward.services.items() if of.app is None}
    single = len(own) == 1
    applications = []
    for term, settings in own.items():
        name = names.name if single else f"{names.name}-{term}"
        try:
            check_name(name)
        except ValueError as error:
            raise ConfigError.of(f"--name {names.name}: {error}; give another") from None
        arguments = {"name": name, **asdict(settings)}
        application = {"name": name, "route_prefix": None, "import_path": "reward_service.application:standing"}
        applications.append({**application, "args": json.loads(json.dumps(arguments))})
    # Its head's proxy tells KubeRay that the service is ready; it has no route, so that nothing is scored through it.
    serve = {"proxy_location": "HeadOnly", "applications": applications}
    idle = [g if g.name == REWARD else _none_at_first(g) for g in groups]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": names.metadata(f"{names.name}-reward"),
        "spec": {
            "upgradeStrategy": Noted(
                {"type": "None"}, "A new cluster would end the runs on this one; settings change in place."
            ),
            "serveConfigV2": text_of([serve]),
            "rayClusterConfig": cluster_spec(names, idle),
        },
    }


def _none_at_first(group: Group) -> Group:
    """Runs bring them, and their end takes them away."""
    return replace(group, least=0, first=0)


def _claim(names: Names) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": names.metadata(names.claim),
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": Noted(
                "shared", "Change: a class that many nodes can write to, with file locks (NFS with its lock service)."
            ),
            "resources": {"requests": {"storage": "500Gi"}},
        },
    }


def _recipe(config: RunConfig, names: Names) -> dict[str, Any]:
    text = text_of([deployed.recipe_of(config)])
    data = {RECIPE_FILE: text}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": names.metadata(names.recipe), "data": data}


def _network(names: Names) -> dict[str, Any]:
    """Pods of the deployment reach one another; others the dashboard, which asks for the token, metrics and health.

    KubeRay asks the head's proxy of Ray Serve for its health, without which a RayService is never ready.
    """
    own = {"matchLabels": names.labels}
    ports = [{"protocol": "TCP", "port": port} for port in (DASHBOARD, METRICS, SERVE)]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": names.metadata(names.name),
        "spec": {
            "podSelector": own,
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": own}]},
                Noted(
                    {"from": [{"namespaceSelector": {}}], "ports": ports},
                    "KubeRay's operator, who submits jobs, and Prometheus. Change: the namespaces they are in.",
                ),
            ],
        },
    }


def _secrets(names: Names) -> str:
    return "\n".join(
        [
            "#!/bin/sh",
            "# Once: the token of Ray and the password of the store, drawn here and kept in the cluster only.",
            "set -eu",
            f"kubectl create secret generic {names.secret} \\",
            '    --from-literal=auth_token="$(openssl rand -hex 32)" \\',
            '    --from-literal=store_password="$(openssl rand -hex 32)"',
            "",
        ]
    )


HEADS = {
    "storage.yaml": "Where data, models and runs are, for all pods. Kept when jobs and clusters go.",
    "recipe.yaml": "The recipe as it runs here; docs/cli.md says what its keys mean. Paths are those in the pods.",
    "standing/raycluster.yaml": "A cluster that stays, to submit jobs to by hand. For one run take rayjob.yaml.",
    "rayjob.yaml": "The run: a cluster of its own, which goes when it has ended, and comes again if it was cut off.",
    "network.yaml": "Who may reach the pods. Needs a network plug-in that knows policies.",
    "store.yaml": "The trajectory store. It stays when the cluster of a job goes, so that nothing is rolled out twice.",
    "standing/rayservice.yaml": "The recipe's rewards on a cluster that stays; runs submitted to it share them.",
}
