"""What is wrong with manifests although their schema allows it: refusals of KubeRay, and what a run stumbles over."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from cluster.config.configure import ConfigError, build_config
from cluster.config.recipe import RunConfig
from cluster.deploy.kuberay_rules import containers_of, refusals
from cluster.deploy.layout import most_replicas
from cluster.run.checks.resources import demands

SPECS = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}
SECRET_WORDS = ("PASSWORD", "TOKEN", "SECRET")


def traps(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence for each: which object, what, what to do. Nothing if the documents are well.

    Args:
        documents: plain, as of one folder: a recipe in a ConfigMap is held against the groups of all clusters.
    """
    found = []
    for document in documents:
        found += [f"{name_of(document)}: {what}" for what in _all_of(document, documents)]
    return list(dict.fromkeys(found))


def name_of(document: Mapping[str, Any]) -> str:
    """Kind and name, for people."""
    metadata = document.get("metadata")
    return f"{document.get('kind')} {metadata.get('name') if isinstance(metadata, Mapping) else None}"


OTHER_TYPE = (TypeError, ValueError, AttributeError, KeyError)  # of looking into what isn't of the schema's types


def _all_of(document: Mapping[str, Any], documents: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for look in (refusals(document), _of_house(document, documents)):
        try:
            yield from look
        except OTHER_TYPE as error:
            yield (
                f"something in it is of another type than the schema wants, such as a number in quotation marks or a "
                f"list for a mapping ({error}), so that it can't be judged; `kubectl apply --dry-run=server` says which"
            )


def _of_house(document: Mapping[str, Any], documents: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    kind, spec = document.get("kind"), document.get("spec") or {}
    if kind == "StatefulSet":
        yield from _pods(spec)
    if kind == "ConfigMap":
        yield from _recipes(document, documents)
    if kind not in SPECS:
        return
    cluster = spec
    for key in SPECS[kind]:
        cluster = cluster.get(key) or {}
    groups = groups_of_spec(cluster)
    for group in groups:
        yield from (f"group {group_name(group)!r}: {what}" for what in _pods(group))
        yield from (f"group {group_name(group)!r}: {what}" for what in _shared_memory(group))
    if (cluster.get("authOptions") or {}).get("mode") != "token":
        yield "authOptions.mode isn't token: whoever reaches the cluster runs code on it; set it, with a secretName"
    if kind == "RayJob":
        yield from _job(spec, groups)


def groups_of_spec(cluster: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The head's group first."""
    return [cluster.get("headGroupSpec") or {}, *(cluster.get("workerGroupSpecs") or [])]


def group_name(group: Mapping[str, Any]) -> str:
    return str(group.get("groupName", "head"))


def _pod(group: Mapping[str, Any]) -> Mapping[str, Any]:
    return (group.get("template") or {}).get("spec") or {}


def _pods(group: Mapping[str, Any]) -> Iterator[str]:
    """Secrets in plain text, mounts without a volume, root."""
    pod = _pod(group)
    volumes = {volume.get("name") for volume in pod.get("volumes") or []}
    volumes |= {(claim.get("metadata") or {}).get("name") for claim in group.get("volumeClaimTemplates") or []}
    for container in pod.get("containers") or []:
        for env in container.get("env") or []:
            if env.get("value") and any(env.get("name", "").endswith(word) for word in SECRET_WORDS):
                yield f"{env['name']} stands there in plain text; take it from a Secret (valueFrom.secretKeyRef)"
        for mount in container.get("volumeMounts") or []:
            if mount.get("name") not in volumes:
                yield f"{mount.get('mountPath')} is mounted from {mount.get('name')!r}, a volume that isn't there"
        user = (container.get("securityContext") or {}).get("runAsUser", _user(pod))
        if user == 0:
            yield f"container {container.get('name')!r} runs as root; the image's user is 1000"


def _user(pod: Mapping[str, Any]) -> Any:
    return (pod.get("securityContext") or {}).get("runAsUser")


def _shared_memory(group: Mapping[str, Any]) -> Iterator[str]:
    """/dev/shm is 64 MB in a pod; Ray's object store then goes to the disk, and NCCL fails."""
    pod, containers = _pod(group), containers_of(group)
    mounted = {
        m.get("name") for c in containers[:1] for m in c.get("volumeMounts") or [] if m.get("mountPath") == "/dev/shm"
    }
    found = [volume.get("emptyDir") or {} for volume in pod.get("volumes") or [] if volume.get("name") in mounted]
    if not any(volume.get("medium") == "Memory" for volume in found):
        yield "/dev/shm has no volume of memory (emptyDir with medium=Memory); give it one"
        return
    limit = ((containers[0].get("resources") or {}).get("limits") or {}).get("memory") if containers else None
    size = found[0].get("sizeLimit")
    if limit is not None and size is not None and bytes_of(size) > bytes_of(limit):
        yield f"/dev/shm of {size} is more than the pod's memory of {limit}, of which it is a part; lower it"


UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def bytes_of(quantity: object) -> float:
    """Of a quantity such as 4Gi; infinite if it is written otherwise, which Kubernetes tells."""
    text = str(quantity)
    digits = text.rstrip("kKMGTi")
    try:
        return float(digits) * UNITS[text[len(digits) :]]
    except (ValueError, KeyError):
        return math.inf


def _job(spec: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    try:
        words = shlex.split(str(spec.get("entrypoint") or ""))
    except ValueError as error:
        yield f"entrypoint={spec.get('entrypoint')!r} is no command of a shell ({error}); correct it"
        return
    if "train" not in words:
        return
    options = dict(zip(words, words[1:], strict=False))
    again = {"--resume-if-there", "--resume"} & set(words)
    if (spec.get("backoffLimit") or 0) > 0 and not again:
        yield "backoffLimit, and its entrypoint starts anew with each attempt; add --resume-if-there"
    run = options.get("--run") or options.get("--resume")
    if run is None:
        yield "its entrypoint names no run folder, so that none can be resumed; add --run FOLDER"
        return
    for group in groups:
        if not any(PurePosixPath(run).is_relative_to(path) for path in _claimed(group)):
            yield f"group {group_name(group)!r}: the run folder {run} isn't on a volume with a persistentVolumeClaim"


def _claimed(group: Mapping[str, Any]) -> list[str]:
    """Where volumes are mounted that outlive the pod."""
    kept = {v.get("name") for v in _pod(group).get("volumes") or [] if v.get("persistentVolumeClaim")}
    mounts = [mount for c in containers_of(group)[:1] for mount in c.get("volumeMounts") or []]
    return [str(mount.get("mountPath")) for mount in mounts if mount.get("name") in kept]


def _recipes(document: Mapping[str, Any], documents: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Of a ConfigMap: whether recipes in it are valid, and the clusters that mount it have what their roles ask for."""
    name = (document.get("metadata") or {}).get("name")
    for file, text in (document.get("data") or {}).items():
        if not str(file).endswith(".yaml"):
            continue
        try:
            config = build_config(RunConfig, yaml.safe_load(text))
        except (ConfigError, yaml.YAMLError) as error:
            yield f"{file}: {'; '.join(str(error).splitlines())}"
            continue
        if config.store.is_embedded:
            yield f"{file}: store.url=embedded dies with the pod of the driver; give the store's address"
        for other in documents:
            try:
                found = list(_room(config, other, name))
            except OTHER_TYPE as error:
                found = [f"it can't be held against {name_of(other)}, which isn't of the schema's types ({error})"]
            yield from (f"{file}: {what}" for what in found)


def _room(config: RunConfig, document: Mapping[str, Any], recipe: object) -> Iterator[str]:
    kind = document.get("kind")
    if kind not in SPECS:
        return
    cluster = document.get("spec") or {}
    for key in SPECS[kind]:
        cluster = cluster.get(key) or {}
    groups = [g for g in groups_of_spec(cluster)[1:] if _mounts(g, recipe)]
    most = {config.reward.key(term): most_replicas(of) for term, of in config.reward.services.items()}
    needs = {demand.key: (most.get(demand.key, demand.count), demand.each) for demand in demands(config)}
    for key, (count, each) in needs.items() if groups else ():
        fitting = [(group, _places(group, each)) for group in groups]
        room = sum(places * (group.get("maxReplicas") or 0) for group, places in fitting)
        if room < count:
            asked = ", ".join(f"{amount:g} {name}" for name, amount in each.items())
            yield f"{key} wants {count} x ({asked}), and the groups of {kind} have room for {room}; raise maxReplicas"
        if kind == "RayJob" and key == "ranks":
            for group, places in fitting:
                if places and group.get("minReplicas") != group.get("maxReplicas"):
                    yield f"ranks are in group {group_name(group)!r} of {kind}: its minReplicas must be its maxReplicas"


def _mounts(group: Mapping[str, Any], recipe: object) -> bool:
    volumes = _pod(group).get("volumes") or []
    return any((volume.get("configMap") or {}).get("name") == recipe for volume in volumes)


def _places(group: Mapping[str, Any], each: Mapping[str, float]) -> int:
    """Processes that fit on a node of the group."""
    there = {name: bytes_of(amount) for name, amount in (group.get("resources") or {}).items()}
    return min((int(there.get(name, 0) / amount + 1e-9) for name, amount in each.items() if amount), default=0)
