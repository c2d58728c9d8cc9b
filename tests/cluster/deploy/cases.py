"""Recipes as they are deployed, and KubeRay's schemas."""

from __future__ import annotations

import gzip
import json
import shlex
from functools import cache
from pathlib import Path
from typing import Any

from cluster.config.configure import load_config
from cluster.config.recipe import RunConfig
from cluster.deploy import kuberay
from cluster.deploy.layout import Hosts
from cluster.deploy.noted import bare
from cluster.deploy.order import Order
from cluster.deploy.pods import Names

ROOT = Path(__file__).parents[3]
SCHEMAS = Path(__file__).parent / "kuberay"
NAMES = Names("diffbir", "registry/restorl:1", "/mnt/restorl")
GPU = ("model=models/mine", "data.root=data/LOLv1", "ranks.count=8", "actors.count=6", "reward.replicas=4")


@cache
def recipe(*overrides: str, path: str = "configs/gpu/diffbir.yaml") -> RunConfig:
    return load_config(RunConfig, ROOT / path, overrides)


def order(target_whole: bool = True, gpus: int | None = None, per_node: int | None = None) -> Order:
    return Order("diffbir", "/mnt/restorl", "out", "restorl:1", Hosts(gpus, per_node, target_whole))


def rendered(*overrides: str, hosts: Hosts | None = None) -> list[dict[str, Any]]:
    """Plain documents for KubeRay, new ones each time."""
    found: list[dict[str, Any]] = json.loads(_rendered(overrides or GPU, hosts or Hosts()))
    return found


@cache
def _rendered(overrides: tuple[str, ...], hosts: Hosts) -> str:
    files = kuberay.manifests(recipe(*overrides), NAMES, hosts)
    return json.dumps([bare(document) for found in files.values() for document in found])


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (document for document in documents if document["kind"] == kind)
    return found


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    """The spec of the cluster in an object of KubeRay."""
    spec: dict[str, Any] = document["spec"]
    key = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}.get(document["kind"])
    return spec[key] if key else spec


def group(cluster: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (each for each in cluster["workerGroupSpecs"] if each["groupName"] == name)
    return found


@cache
def schema(kind: str) -> dict[str, Any]:
    """Of a kind; keys that Kubernetes would drop without a word are not allowed, either."""
    with gzip.open(SCHEMAS / f"{kind}.v1.schema.json.gz") as file:
        found: dict[str, Any] = _strict(json.load(file))
    return found


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(each) for each in node]
    if not isinstance(node, dict):
        return node
    closed = {"additionalProperties": False} if "properties" in node and "additionalProperties" not in node else {}
    return {key: _strict(value) for key, value in node.items()} | closed


def ray_start(group_spec: dict[str, Any], head: bool) -> list[str]:
    """What KubeRay's operator runs in the first container of a group, as words."""
    params = dict(group_spec.get("rayStartParams", {}))
    offers = dict(group_spec["resources"])
    for name, flag in (("CPU", "num-cpus"), ("GPU", "num-gpus")):
        if name in offers:
            params[flag] = offers.pop(name)
    if offers:
        params["resources"] = json.dumps({name: int(amount) for name, amount in offers.items()})
    flags = [f"--{name}={value}" for name, value in params.items()]
    return ["ray", "start", *(["--head"] if head else []), *flags, "--block", "--dashboard-agent-listen-port=52365"]


def shell_commands(text: str, program: str) -> list[list[str]]:
    """The words of each call of a program in a script; what the shell puts in is one word."""
    joined = text.replace("\\\n", " ")
    found = []
    for line in joined.splitlines():
        if line.lstrip().startswith("#"):
            continue
        for part in line.split(";"):
            words = _words(part)
            while program in words:
                words = words[words.index(program) :]
                ends = next((i for i, word in enumerate(words) if word in ("&", ">", "|", "2>", "&&", "||")), None)
                found.append(words[:ends])
                words = words[1:]
    return found


def _words(part: str) -> list[str]:
    try:
        return shlex.split(part)
    except ValueError:  # a quotation over several parts, in which no program of ours stands
        return []
