"""What KubeRay refuses although the schema allows it, as its own validation of RayCluster, RayJob, RayService has it.

An object that it refuses is accepted by Kubernetes and then nothing happens, but for an event that nobody looks at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

V2 = "RAY_enable_autoscaler_v2"
FT_ANNOTATION = "ray.io/ft-enabled"
LONGEST_NAME = {"RayCluster": 53, "RayJob": 47, "RayService": 47}
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_START_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")


def refusals(document: Mapping[str, Any]) -> Iterator[str]:
    """Sentences without the object's name; nothing for kinds that aren't KubeRay's."""
    kind, spec = document.get("kind", ""), document.get("spec") or {}
    if kind not in LONGEST_NAME:
        return
    metadata = document.get("metadata") or {}
    yield from _name(kind, str(metadata.get("name", "")))
    annotations = metadata.get("annotations") or {}
    if kind == "RayCluster":
        yield from cluster_refusals(spec, annotations)
    elif kind == "RayJob":
        yield from _job(spec)
        if spec.get("rayClusterSpec"):
            yield from _no_kubernetes_token(spec["rayClusterSpec"], kind)
            yield from cluster_refusals(spec["rayClusterSpec"], annotations)
    else:
        yield from _service(spec)
        yield from _no_kubernetes_token(spec.get("rayClusterConfig") or {}, kind)
        yield from cluster_refusals(spec.get("rayClusterConfig") or {}, annotations)


def _name(kind: str, name: str) -> Iterator[str]:
    longest = LONGEST_NAME[kind]
    if len(name) > longest or not _NAME.fullmatch(name):
        yield f"metadata.name={name!r}: small letters, digits and dashes, a letter first, {longest} at most"


def cluster_refusals(spec: Mapping[str, Any], annotations: Mapping[str, Any]) -> Iterator[str]:
    """Of the spec of a RayCluster, wherever it stands."""
    head, workers = spec.get("headGroupSpec") or {}, spec.get("workerGroupSpecs") or []
    groups = [("headGroupSpec", head), *((f"group {group.get('groupName')!r}", group) for group in workers)]
    for where, group in groups:
        if not containers_of(group):
            yield f"{where}: a pod template needs a container"
        yield from _group(where, group)
    names = [group.get("groupName") for group in workers]
    yield from (f"two groups are called {name!r}" for name in dict.fromkeys(names) if names.count(name) > 1)
    yield from _autoscaler(spec, head, groups, workers)
    yield from _token(spec)
    yield from _fault_tolerance(spec, head, annotations)


def containers_of(group: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of a group's pods; the first is Ray's."""
    return ((group.get("template") or {}).get("spec") or {}).get("containers") or []


def environment(group: Mapping[str, Any]) -> dict[str, Any]:
    """Variable -> value of Ray's container, None for one from elsewhere."""
    found = containers_of(group)
    return {env.get("name", ""): env.get("value") for env in (found[0].get("env") or [])} if found else {}


def _group(where: str, group: Mapping[str, Any]) -> Iterator[str]:
    params, resources = group.get("rayStartParams") or {}, group.get("resources") or {}
    twice = [name for name in _START_RESOURCES if params.get(name)]
    if twice and resources:
        yield f"{where}: rayStartParams.{twice[0]} beside resources; give either"
    if "labels" in params:
        yield f"{where}: rayStartParams.labels isn't supported; use labels of the group"
    for key, value in (group.get("labels") or {}).items():
        if len(str(value)) > 63 or not _LABEL_VALUE.fullmatch(str(value)):
            yield f"{where}: labels[{key!r}]={value!r} is no value of a label"
    least, most = group.get("minReplicas"), group.get("maxReplicas")
    for name, count in (("minReplicas", least), ("maxReplicas", most), ("idleTimeoutSeconds", _idle(group))):
        if count is not None and count < 0:
            yield f"{where}: {name}={count} is below 0"
    if least is not None and most is not None and least > most:
        yield f"{where}: minReplicas={least} is more than maxReplicas={most}"


def _idle(group: Mapping[str, Any]) -> Any:
    return group.get("idleTimeoutSeconds")


def _autoscaler(
    spec: Mapping[str, Any],
    head: Mapping[str, Any],
    groups: list[tuple[str, Mapping[str, Any]]],
    workers: list[Mapping[str, Any]],
) -> Iterator[str]:
    options, given = spec.get("autoscalerOptions") or {}, environment(head).get(V2)
    by_variable = given in ("1", "true")
    if not spec.get("enableInTreeAutoscaling"):
        if by_variable:
            yield f"headGroupSpec: {V2}={given} without enableInTreeAutoscaling"
        for group in workers:
            if group.get("minReplicas") is None or group.get("maxReplicas") is None:
                yield f"group {group.get('groupName')!r}: without an autoscaler it needs minReplicas and maxReplicas"
        return
    if options.get("version") is not None and V2 in environment(head):
        yield f"headGroupSpec: {V2} beside autoscalerOptions.version; take it out"
    if (options.get("idleTimeoutSeconds") or 0) < 0:
        yield f"autoscalerOptions.idleTimeoutSeconds={options['idleTimeoutSeconds']} is below 0"
    if any(env.get("name") == "KUBERAY_GEN_AUTOSCALER_START_CMD" for env in options.get("env") or []):
        yield "autoscalerOptions.env: KUBERAY_GEN_AUTOSCALER_START_CMD is KubeRay's own; take it out"
    second = options.get("version") == "v2" or by_variable
    for where, group in groups:
        policy = ((group.get("template") or {}).get("spec") or {}).get("restartPolicy")
        if second and policy not in (None, "Never"):
            yield f"{where}: restartPolicy={policy} with autoscaler v2; take it out, or write Never"
        if group.get("suspend"):
            yield f"{where}: suspend with an autoscaler"
        for name in ("idleTimeoutSeconds", "priority"):
            if group.get(name) is not None and not second:
                yield f"{where}: {name} needs autoscalerOptions.version=v2"


def _token(spec: Mapping[str, Any]) -> Iterator[str]:
    options = spec.get("authOptions") or {}
    ray = str(spec.get("rayVersion") or "")
    if options.get("mode") != "token":
        if options.get("enableK8sTokenAuth"):
            yield "authOptions.enableK8sTokenAuth without mode=token"
        return
    least = (2, 55) if options.get("enableK8sTokenAuth") else (2, 52)
    if (parsed := _version(ray)) is None or parsed < least:
        yield f"rayVersion={ray!r}: authOptions.mode=token needs it, at least {least[0]}.{least[1]}.0"
    if options.get("enableK8sTokenAuth") and options.get("secretName"):
        yield "authOptions.enableK8sTokenAuth beside secretName; give either"


def _no_kubernetes_token(spec: Mapping[str, Any], kind: str) -> Iterator[str]:
    if (spec.get("authOptions") or {}).get("enableK8sTokenAuth"):
        yield f"authOptions.enableK8sTokenAuth isn't supported for a {kind}; give a secretName"


def _version(text: str) -> tuple[int, int] | None:
    found = re.match(r"v?(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def _fault_tolerance(spec: Mapping[str, Any], head: Mapping[str, Any], annotations: Mapping[str, Any]) -> Iterator[str]:
    options, env = spec.get("gcsFaultToleranceOptions"), environment(head)
    params = head.get("rayStartParams") or {}
    if options is None:
        if "RAY_REDIS_ADDRESS" in env and not annotations.get(FT_ANNOTATION):
            yield "headGroupSpec: RAY_REDIS_ADDRESS without gcsFaultToleranceOptions"
    else:
        if annotations.get(FT_ANNOTATION):
            yield f"{FT_ANNOTATION} beside gcsFaultToleranceOptions; take the annotation out"
        for name in ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS"):
            if name in env:
                yield f"headGroupSpec: {name} beside gcsFaultToleranceOptions, which has a field for it"
        if params.get("redis-password"):
            yield "headGroupSpec: rayStartParams.redis-password beside gcsFaultToleranceOptions.redisPassword"
    if params.get("redis-username") or "REDIS_USERNAME" in env:
        yield "headGroupSpec: give the user name of Redis as gcsFaultToleranceOptions.redisUsername"


def _job(spec: Mapping[str, Any]) -> Iterator[str]:
    mode, retries, selector = spec.get("submissionMode"), spec.get("backoffLimit") or 0, spec.get("clusterSelector")
    if not spec.get("rayClusterSpec") and not selector:
        yield "a RayJob needs rayClusterSpec or clusterSelector"
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "suspend without shutdownAfterJobFinishes"
    if selector:
        if not selector.get("ray.io/cluster"):
            yield "clusterSelector without the name of a cluster (ray.io/cluster)"
        if spec.get("suspend"):
            yield "suspend with clusterSelector"
        if mode == "SidecarMode":
            yield "submissionMode=SidecarMode with clusterSelector"
        if retries > 0:
            yield f"backoffLimit={retries} with clusterSelector: there is no cluster to make anew; take it out"
    if mode == "InteractiveMode" and retries > 0:
        yield f"backoffLimit={retries} with submissionMode=InteractiveMode; take it out"
    if mode == "SidecarMode":
        yield from _sidecar(spec)
    for name, least in (("backoffLimit", 0), ("activeDeadlineSeconds", 1), ("preRunningDeadlineSeconds", 1)):
        if spec.get(name) is not None and spec[name] < least:
            yield f"{name}={spec[name]}: at least {least}"
    try:
        if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML") or "{}"), dict):
            yield "runtimeEnvYAML holds no `key: value` lines"
    except yaml.YAMLError as error:
        yield f"runtimeEnvYAML is no YAML ({str(error).splitlines()[0]})"
    yield from _deletion(spec)


def _sidecar(spec: Mapping[str, Any]) -> Iterator[str]:
    for name in ("submitterPodTemplate", "submitterConfig"):
        if spec.get(name):
            yield f"{name} with submissionMode=SidecarMode"
    head = (spec.get("rayClusterSpec") or {}).get("headGroupSpec") or {}
    policy = ((head.get("template") or {}).get("spec") or {}).get("restartPolicy")
    if policy not in (None, "Never"):
        yield f"headGroupSpec: restartPolicy={policy} with submissionMode=SidecarMode; write Never"


def _deletion(spec: Mapping[str, Any]) -> Iterator[str]:
    shutdown, ttl, strategy = (
        spec.get("shutdownAfterJobFinishes"),
        spec.get("ttlSecondsAfterFinished") or 0,
        spec.get("deletionStrategy"),
    )
    if ttl < 0 or (ttl and not shutdown):
        yield f"ttlSecondsAfterFinished={ttl}: 0 or more, and only with shutdownAfterJobFinishes"
    if strategy is None:
        return
    rules = strategy.get("deletionRules") or []
    plain = {name: (strategy[name] or {}).get("policy") for name in ("onSuccess", "onFailure") if name in strategy}
    if rules and plain:
        yield "deletionStrategy has deletionRules beside onSuccess or onFailure; give either"
    if rules and shutdown:
        yield "deletionStrategy.deletionRules beside shutdownAfterJobFinishes; give either"
    if not rules and (set(plain) != {"onSuccess", "onFailure"} or None in plain.values()):
        yield "deletionStrategy needs deletionRules, or a policy of both onSuccess and onFailure"
    policies = [*plain.values(), *(rule.get("policy") for rule in rules)]
    if "DeleteWorkers" in policies and (spec.get("rayClusterSpec") or {}).get("enableInTreeAutoscaling"):
        yield "deletionStrategy: DeleteWorkers with an autoscaler; choose DeleteCluster"
    if spec.get("clusterSelector") and {"DeleteWorkers", "DeleteCluster"} & set(policies):
        yield "deletionStrategy: a cluster that was selected isn't deleted; choose DeleteSelf or DeleteNone"
    if shutdown and "DeleteNone" in plain.values():
        yield "deletionStrategy: DeleteNone with shutdownAfterJobFinishes"
    yield from _rules(rules)


def _rules(rules: list[Mapping[str, Any]]) -> Iterator[str]:
    times: dict[tuple[str, str], dict[str, int]] = {}
    for i, rule in enumerate(rules):
        condition, policy = rule.get("condition") or {}, str(rule.get("policy"))
        states = [name for name in ("jobStatus", "jobDeploymentStatus") if condition.get(name)]
        if len(states) != 1:
            yield f"deletionRules[{i}]: its condition needs either jobStatus or jobDeploymentStatus"
            continue
        of = times.setdefault((states[0], str(condition[states[0]])), {})
        if policy in of:
            yield f"deletionRules[{i}]: a second {policy} for {states[0]}={condition[states[0]]}"
            continue
        of[policy] = condition.get("ttlSeconds") or 0
    for (state, value), of in times.items():
        there = [(policy, of[policy]) for policy in _ORDER if policy in of]
        for (earlier, soon), (later, late) in zip(there, there[1:], strict=False):
            if late < soon:
                yield f"deletionRules for {state}={value}: {later} after {late} s comes before {earlier} after {soon} s"


def _service(spec: Mapping[str, Any]) -> Iterator[str]:
    head = (spec.get("rayClusterConfig") or {}).get("headGroupSpec") or {}
    if ((head.get("headService") or {}).get("metadata") or {}).get("name"):
        yield "rayClusterConfig.headGroupSpec.headService.metadata.name is KubeRay's to choose; take it out"
    if (spec.get("rayClusterDeletionDelaySeconds") or 0) < 0:
        yield f"rayClusterDeletionDelaySeconds={spec['rayClusterDeletionDelaySeconds']} is below 0"
    strategy = spec.get("upgradeStrategy") or {}
    kind, options = strategy.get("type"), strategy.get("clusterUpgradeOptions")
    if kind not in (None, "None", "NewCluster", "NewClusterWithIncrementalUpgrade"):
        yield f"upgradeStrategy.type={kind}: choose NewCluster, NewClusterWithIncrementalUpgrade or None"
    if kind == "NewClusterWithIncrementalUpgrade":
        if not (spec.get("rayClusterConfig") or {}).get("enableInTreeAutoscaling"):
            yield "upgradeStrategy.type=NewClusterWithIncrementalUpgrade without an autoscaler"
        if not options or not options.get("gatewayClassName"):
            yield "upgradeStrategy.clusterUpgradeOptions.gatewayClassName is missing"
