"""Each trap is laid into manifests that are well, and found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from cluster.deploy.traps import bytes_of, traps
from tests.cluster.deploy.cases import cluster_of, group, of_kind, rendered

Documents = list[dict[str, Any]]
V2 = "RAY_enable_autoscaler_v2"


def job(documents: Documents) -> dict[str, Any]:
    return of_kind(documents, "RayJob")


def cluster(documents: Documents) -> dict[str, Any]:
    return cluster_of(job(documents))


def pod(documents: Documents, name: str = "actor") -> dict[str, Any]:
    found: dict[str, Any] = group(cluster(documents), name)["template"]["spec"]
    return found


def head(documents: Documents) -> dict[str, Any]:
    found: dict[str, Any] = cluster(documents)["headGroupSpec"]
    return found


def env(documents: Documents, name: str, value: str) -> None:
    head(documents)["template"]["spec"]["containers"][0]["env"].append({"name": name, "value": value})


def recipe(documents: Documents, **values: Any) -> None:
    data = of_kind(documents, "ConfigMap")["data"]
    data["recipe.yaml"] = yaml.safe_dump({**yaml.safe_load(data["recipe.yaml"]), **values})


def deletion(success: str, failure: str) -> dict[str, Any]:
    return {"deletionStrategy": {"onSuccess": {"policy": success}, "onFailure": {"policy": failure}}}


def rules(*rules: tuple[str, int]) -> dict[str, Any]:
    made = [{"policy": p, "condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": s}} for p, s in rules]
    return {
        "shutdownAfterJobFinishes": False,
        "ttlSecondsAfterFinished": 0,
        "deletionStrategy": {"deletionRules": made},
    }


def change(place: Callable[[Documents], dict[str, Any]], **values: Any) -> Callable[[Documents], None]:
    return lambda documents: place(documents).update(values)


def spec(documents: Documents) -> dict[str, Any]:
    found: dict[str, Any] = job(documents)["spec"]
    return found


def service(documents: Documents) -> dict[str, Any]:
    found: dict[str, Any] = of_kind(documents, "RayService")["spec"]
    return found


def actors(documents: Documents) -> dict[str, Any]:
    return group(cluster(documents), "actor")


def learner(documents: Documents) -> dict[str, Any]:
    return group(cluster(documents), "learner")


TRAPS: dict[str, Callable[[Documents], object]] = {
    "restartPolicy=Always with autoscaler v2": change(pod, restartPolicy="Always"),
    "headGroupSpec: restartPolicy=OnFailure": lambda d: head(d)["template"]["spec"].update(restartPolicy="OnFailure"),
    f"{V2} beside autoscalerOptions.version": lambda d: env(d, V2, "1"),
    f"{V2}=1 without enableInTreeAutoscaling": lambda d: (
        env(d, V2, "1"),
        cluster(d).update(enableInTreeAutoscaling=False),
    ),
    "minReplicas=9 is more than maxReplicas=1": change(learner, minReplicas=9),
    "minReplicas=-1 is below 0": change(actors, minReplicas=-1),
    "rayStartParams.num-cpus beside resources": change(actors, rayStartParams={"num-cpus": "1"}),
    "rayStartParams.labels isn't supported": change(actors, rayStartParams={"labels": "a=b"}),
    "is no value of a label": change(actors, labels={"a": "b c"}),
    "rayVersion='2.51.0': authOptions.mode=token needs it, at least 2.52": change(cluster, rayVersion="2.51.0"),
    "rayVersion='': authOptions.mode=token": change(cluster, rayVersion=""),
    "isn't supported for a RayJob; give a secretName": change(
        cluster, authOptions={"mode": "token", "enableK8sTokenAuth": True}
    ),
    "isn't supported for a RayService": lambda d: cluster_of(of_kind(d, "RayService")).update(
        authOptions={"mode": "token", "enableK8sTokenAuth": True}
    ),
    "enableK8sTokenAuth beside secretName": lambda d: cluster_of(of_kind(d, "RayCluster"))["authOptions"].update(
        enableK8sTokenAuth=True
    ),
    "enableK8sTokenAuth without mode=token": change(cluster, authOptions={"enableK8sTokenAuth": True}),
    "suspend with an autoscaler": change(actors, suspend=True),
    "idleTimeoutSeconds needs autoscalerOptions.version=v2": lambda d: (
        cluster(d).update(autoscalerOptions={}),
        actors(d).update(idleTimeoutSeconds=60),
    ),
    "two groups are called 'actor'": change(learner, groupName="actor"),
    "a pod template needs a container": change(pod, containers=[]),
    "RAY_REDIS_ADDRESS without gcsFaultToleranceOptions": lambda d: env(d, "RAY_REDIS_ADDRESS", "redis:6379"),
    "REDIS_PASSWORD beside gcsFaultToleranceOptions": lambda d: (
        env(d, "REDIS_PASSWORD", ""),
        cluster(d).update(gcsFaultToleranceOptions={"redisAddress": "redis:6379"}),
    ),
    "metadata.name='Run'": lambda d: job(d)["metadata"].update(name="Run"),
    "47 at most": lambda d: job(d)["metadata"].update(name="x" * 48),
    "DeleteWorkers with an autoscaler": change(spec, **deletion("DeleteWorkers", "DeleteCluster")),
    "DeleteNone with shutdownAfterJobFinishes": change(spec, **deletion("DeleteNone", "DeleteCluster")),
    "deletionStrategy: DeleteWorkers with": change(spec, **rules(("DeleteWorkers", 1))),
    "deletionRules beside shutdownAfterJobFinishes": change(
        spec, **{**rules(("DeleteSelf", 1)), "shutdownAfterJobFinishes": True}
    ),
    "DeleteSelf after 1 s comes before DeleteCluster after 2 s": change(
        spec, **rules(("DeleteCluster", 2), ("DeleteSelf", 1))
    ),
    "a second DeleteSelf": change(spec, **rules(("DeleteSelf", 2), ("DeleteSelf", 1))),
    "deletionStrategy needs deletionRules, or": change(spec, deletionStrategy={"onSuccess": {"policy": "DeleteSelf"}}),
    "ttlSecondsAfterFinished=600: 0 or more": change(spec, shutdownAfterJobFinishes=False),
    "backoffLimit=5 with clusterSelector": change(spec, clusterSelector={"ray.io/cluster": "a"}),
    "backoffLimit=5 with submissionMode=InteractiveMode": change(spec, submissionMode="InteractiveMode"),
    "submitterConfig with submissionMode=SidecarMode": change(
        spec, submissionMode="SidecarMode", submitterConfig={"backoffLimit": 1}
    ),
    "a RayJob needs rayClusterSpec or clusterSelector": change(spec, rayClusterSpec=None),
    "runtimeEnvYAML is no YAML": change(spec, runtimeEnvYAML="a: ["),
    "backoffLimit=-1: at least 0": change(spec, backoffLimit=-1),
    "preRunningDeadlineSeconds=0: at least 1": change(spec, preRunningDeadlineSeconds=0),
    "upgradeStrategy.type=Rolling: choose": change(service, upgradeStrategy={"type": "Rolling"}),
    "gatewayClassName is missing": change(service, upgradeStrategy={"type": "NewClusterWithIncrementalUpgrade"}),
    "headService.metadata.name is KubeRay's to choose": lambda d: service(d)["rayClusterConfig"][
        "headGroupSpec"
    ].update(headService={"metadata": {"name": "mine"}}),
    "STORE_PASSWORD stands there in plain text": lambda d: env(d, "STORE_PASSWORD", "secret"),
    "is mounted from 'work', a volume that isn't there": change(pod, volumes=[]),
    "/dev/shm has no volume of memory": lambda d: pod(d)["volumes"][2].update(emptyDir={}),
    "/dev/shm of 99Gi is more than the pod's memory": lambda d: pod(d)["volumes"][2]["emptyDir"].update(
        sizeLimit="99Gi"
    ),
    "runs as root": lambda d: pod(d)["securityContext"].update(runAsUser=0),
    "authOptions.mode isn't token": change(cluster, authOptions={"mode": "disabled"}),
    "starts anew with each attempt; add --resume-if-there": change(
        spec, entrypoint="restorl train a.yaml --run /mnt/restorl/r"
    ),
    "names no run folder": change(spec, entrypoint="restorl train a.yaml --resume-if-there"),
    "is no command of a shell (No closing quotation)": change(spec, entrypoint="restorl train 'a.yaml"),
    "can't be held against RayJob diffbir": change(learner, resources=["CPU"]),
    "the run folder /tmp/r isn't on a volume": change(
        spec, entrypoint="restorl train a.yaml --run /tmp/r --resume-if-there"
    ),
    "store.url=embedded dies with the pod": lambda d: recipe(d, store={}),
    "actors wants 13 x (4 CPU, 1 GPU, 1 actor), and the groups of RayJob have room for 12": lambda d: recipe(
        d, actors={"count": 13, "num_cpus": 4, "num_gpus": 1, "resources": {"actor": 1}}
    ),
    "reward wants 4 x": lambda d: group(cluster(d), "reward").update(maxReplicas=3),
    "its minReplicas must be its maxReplicas": change(learner, minReplicas=0),
    "recipe.yaml: reward.replica: unknown key": lambda d: recipe(d, reward={"replica": 2}),
}


OF_OTHER_TYPES: dict[str, Callable[[Documents], object]] = {
    "a number in quotation marks": change(actors, minReplicas="1"),
    "retries in quotation marks": change(spec, backoffLimit="5"),
    "seconds in quotation marks": change(spec, ttlSecondsAfterFinished="600"),
    "a list of labels": change(actors, labels=["a"]),
    "a text for a template": change(actors, template="pod"),
    "a number for a list of groups": change(cluster, workerGroupSpecs=3),
    "a list for a name": lambda d: job(d).update(metadata=["a"]),
    "a list for a spec": lambda d: job(d).update(spec=["a"]),
}


@pytest.fixture
def documents() -> Documents:
    return rendered()


@pytest.mark.parametrize("told", TRAPS)
def test_a_trap_is_found(told: str, documents: Documents) -> None:
    TRAPS[told](documents)
    assert any(told in problem for problem in traps(documents)), traps(documents)


@pytest.mark.parametrize("what", OF_OTHER_TYPES)
def test_a_value_of_another_type_is_told_of_its_object_and_the_others_are_judged(
    what: str, documents: Documents
) -> None:
    OF_OTHER_TYPES[what](documents)
    env_of_service = cluster_of(of_kind(documents, "RayService"))["headGroupSpec"]["template"]["spec"]["containers"][0]
    env_of_service["env"].append({"name": "A_TOKEN", "value": "x"})
    found = traps(documents)
    assert any(p.startswith("RayJob ") and "of another type than the schema wants" in p for p in found), found
    assert any(p.startswith("RayService ") and "A_TOKEN stands there in plain text" in p for p in found), found


def test_what_was_rendered_has_none(documents: Documents) -> None:
    assert traps(documents) == []


@pytest.mark.parametrize(
    ("quantity", "count"), [("4Gi", 2**32), ("500M", 5e8), ("8", 8.0), (2, 2.0), ("x", float("inf"))]
)
def test_quantities_are_read_as_kubernetes_does(quantity: object, count: float) -> None:
    assert bytes_of(quantity) == count


def test_objects_that_are_hardly_there_are_no_reason_to_fail() -> None:
    for kind in ("RayJob", "RayCluster", "RayService", "ConfigMap", "StatefulSet", "Other"):
        assert isinstance(traps([{"kind": kind}, {"kind": kind, "metadata": None, "spec": None, "data": None}]), list)
