from __future__ import annotations

import gzip
import json
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.config.configure import build_config
from cluster.config.recipe import RunConfig
from cluster.deploy import kuberay
from cluster.deploy.kuberay_rules import containers_of
from cluster.deploy.layout import Hosts
from cluster.deploy.pods import HEALTH
from cluster.deploy.traps import groups_of_spec, traps
from tests.cluster.deploy.cases import GPU, NAMES, SCHEMAS, cluster_of, group, of_kind, recipe, rendered, schema

CPU = ("model=models/demo", "actors.num_gpus=0", "ranks.num_gpus=0", "reward.num_gpus=0")
KINDS = ("RayCluster", "RayJob", "RayService")
CASES = {
    "gpus": (GPU, Hosts()),
    "cpus": (CPU, Hosts()),
    "many": (GPU, Hosts(gpus=64, gpus_per_node=8)),
    "terms": ((*GPU, "reward.terms=[{scorer: piqe}, {scorer: lite0_levels}, {scorer: psnr}]"), Hosts()),
    "shared": ((*GPU, "reward.app=iqa"), Hosts()),
    "own store": ((*GPU, "store.url=rediss://store:1", "store.password_env=MINE"), Hosts()),
}


@pytest.fixture(params=CASES, scope="module")
def documents(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    overrides, hosts = CASES[request.param]
    return rendered(*overrides, hosts=hosts)


def test_every_object_of_kuberay_is_valid_under_its_schema(documents: list[dict[str, Any]]) -> None:
    found = [document for document in documents if document["kind"] in KINDS]
    for document in found:
        jsonschema.Draft202012Validator(schema(document["kind"])).validate(document)
    assert len(found) >= 2


def test_a_key_that_kubernetes_would_drop_is_found_by_the_schema() -> None:
    document = of_kind(rendered(), "RayJob")
    cluster_of(document)["headGroupSpec"]["template"]["spec"]["restartPolice"] = "Never"
    with pytest.raises(jsonschema.ValidationError, match="restartPolice"):
        jsonschema.Draft202012Validator(schema("RayJob")).validate(document)


def test_the_other_objects_are_valid_where_those_schemas_hold_theirs(documents: list[dict[str, Any]]) -> None:
    """Kubernetes' own schemas aren't here, but those of KubeRay have pods, services, claims and rules of networks."""
    cluster = schema("RayCluster")["properties"]["spec"]["properties"]
    head = cluster["headGroupSpec"]["properties"]
    volumes = head["template"]["properties"]["spec"]["properties"]["volumes"]["items"]["properties"]
    claim = volumes["ephemeral"]["properties"]["volumeClaimTemplate"]["properties"]["spec"]
    rule = cluster["networkPolicy"]["properties"]["head"]["properties"]["ingressRules"]["items"]

    def check(part: dict[str, Any], value: Any) -> None:
        jsonschema.Draft202012Validator(part).validate(value)

    check(claim, of_kind(documents, "PersistentVolumeClaim")["spec"])
    for each in of_kind(documents, "NetworkPolicy")["spec"]["ingress"]:
        check(rule, each)
    if any(document["kind"] == "StatefulSet" for document in documents):
        store = of_kind(documents, "StatefulSet")["spec"]
        check(head["template"], store["template"])
        check(claim, store["volumeClaimTemplates"][0]["spec"])
        check(head["headService"]["properties"]["spec"], of_kind(documents, "Service")["spec"])
        assert store["selector"]["matchLabels"] == store["template"]["metadata"]["labels"]


def test_no_trap_is_left(documents: list[dict[str, Any]]) -> None:
    assert traps(documents) == []


def test_rays_autoscaler_reads_the_groups_and_finds_the_resources_of_the_roles(documents: list[dict[str, Any]]) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    for document in (d for d in documents if d["kind"] in KINDS):
        metadata = {**document["metadata"], "namespace": "default"}
        found = _derive_autoscaling_config_from_ray_cr({"metadata": metadata, "spec": cluster_of(document)})
        types = found["available_node_types"]
        assert types["headgroup"]["resources"]["CPU"] == 0  # no role of a run lands beside its driver
        for each in cluster_of(document)["workerGroupSpecs"]:
            resources = {**types[each["groupName"]]["resources"]}
            resources.pop("memory")
            assert resources == {name: int(amount) for name, amount in each["resources"].items()}
            assert types[each["groupName"]]["max_workers"] == each["maxReplicas"]


def test_the_recipe_in_the_manifests_is_the_one_that_was_configured() -> None:
    text = of_kind(rendered(), "ConfigMap")["data"]["recipe.yaml"]
    config = build_config(RunConfig, yaml.safe_load(text))
    assert config == kuberay.configured(recipe(*GPU), NAMES, Hosts())
    assert config.cluster.address == "auto" and config.cluster.autoscaling
    assert config.store.url == "redis://diffbir-store:6379"


def test_actors_may_go_rewards_scale_and_ranks_stay() -> None:
    cluster = cluster_of(of_kind(rendered(), "RayJob"))
    counts = [(g["groupName"], g["minReplicas"], g["replicas"], g["maxReplicas"]) for g in cluster["workerGroupSpecs"]]
    assert counts == [("actor", 0, 6, 12), ("reward", 1, 1, 4), ("learner", 1, 1, 1)]
    assert [g["labels"]["ray.io/market-type"] for g in cluster["workerGroupSpecs"]] == [
        "spot",
        "on-demand",
        "on-demand",
    ]
    service = cluster_of(of_kind(rendered(), "RayService"))
    assert [g["replicas"] for g in service["workerGroupSpecs"]] == [0, 1, 0]


def test_the_store_outlives_the_cluster_of_a_job_and_nothing_holds_a_secret() -> None:
    documents = rendered()
    store = of_kind(documents, "StatefulSet")["spec"]
    assert [claim["metadata"]["name"] for claim in store["volumeClaimTemplates"]] == ["data"]
    (container,) = store["template"]["spec"]["containers"]
    assert container["command"][:4] == ["restorl", "deploy", "store", container["volumeMounts"][0]["mountPath"]]
    (password,) = (env for env in container["env"] if env["name"] == "STORE_PASSWORD")
    assert password["valueFrom"]["secretKeyRef"] == {"name": "diffbir-secrets", "key": "store_password"}
    job = cluster_of(of_kind(documents, "RayJob"))
    assert job["authOptions"] == {"mode": "token", "secretName": "diffbir-secrets"}
    (head,) = containers_of(job["headGroupSpec"])
    assert password in head["env"]
    assert "stringData" not in json.dumps(documents) and not any(d["kind"] == "Secret" for d in documents)


def test_who_is_outside_reaches_what_kuberay_and_prometheus_ask_for() -> None:
    """KubeRay: the dashboard of jobs and services, and the health of Ray Serve's proxy where it listens by default."""
    from ray.serve._private.constants import DEFAULT_HTTP_PORT

    inside, outside = of_kind(rendered(), "NetworkPolicy")["spec"]["ingress"]
    assert "ports" not in inside
    assert {port["port"] for port in outside["ports"]} == {8265, 8080, DEFAULT_HTTP_PORT}


def test_a_job_goes_on_with_its_run_folder_which_is_on_a_claim_of_every_pod() -> None:
    job = of_kind(rendered(), "RayJob")
    assert job["spec"]["entrypoint"].endswith("--run /mnt/restorl/runs/diffbir --resume-if-there")
    assert job["spec"]["backoffLimit"] > 0 and job["spec"]["shutdownAfterJobFinishes"]
    for each in groups_of_spec(cluster_of(job)):
        volumes = {volume["name"]: volume for volume in each["template"]["spec"]["volumes"]}
        assert volumes["work"]["persistentVolumeClaim"]["claimName"] == "diffbir-work"


def test_pods_have_shared_memory_probes_and_a_user_without_rights() -> None:
    from ray.dashboard import http_server_agent

    for each in groups_of_spec(cluster_of(of_kind(rendered(), "RayJob"))):
        pod = each["template"]["spec"]
        (container,) = pod["containers"]
        (shm,) = (volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm")
        memory = int(container["resources"]["limits"]["memory"].removesuffix("Gi"))
        assert shm["medium"] == "Memory" and 0.3 * memory < int(shm["sizeLimit"].removesuffix("Gi")) <= memory / 2
        assert pod["securityContext"]["runAsNonRoot"] and pod["restartPolicy"] == "Never"
        assert container["readinessProbe"]["httpGet"] == container["livenessProbe"]["httpGet"] == HEALTH
    with open(http_server_agent.__file__, encoding="utf-8") as file:
        assert f'"{HEALTH["path"]}"' in file.read()  # of the paths that ask for no token


def test_ray_serve_takes_the_configuration_of_the_service_and_builds_it_as_one_that_stands_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
    from ray.serve._private.utils import import_attr  # type: ignore[attr-defined]
    from ray.serve.schema import ServeDeploySchema

    from reward_service import ownership

    claimed: list[tuple[str, bool]] = []
    monkeypatch.setattr(ownership, "claim", lambda name, stands_alone=False: claimed.append((name, stands_alone)))
    text = of_kind(rendered(), "RayService")["spec"]["serveConfigV2"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(text))
    (app,) = config.applications
    built = call_user_app_builder_with_args_if_necessary(import_attr(app.import_path), app.args)
    assert claimed == [("diffbir", True)] == [(app.name, True)]
    settings = built._bound_deployment.init_args[0]
    assert (settings["num_gpus"], settings["max_replicas"], settings["resources"]) == (1.0, 4, {"reward": 1.0})
    assert app.route_prefix is None


def test_a_name_that_a_runs_own_service_could_have_is_refused_for_the_service() -> None:
    from reward_service.application import standing

    with pytest.raises(ValueError, match="the name of a service that stands alone"):
        standing({"name": "reward-x"})


def test_the_schemas_are_those_of_the_three_kinds() -> None:
    for kind in KINDS:
        with gzip.open(SCHEMAS / f"{kind}.v1.schema.json.gz") as file:
            assert "spec" in json.load(file)["properties"]


def test_a_learner_of_more_ranks_than_a_host_has_gpus_takes_several_pods() -> None:
    job = of_kind(rendered(*GPU, "ranks.count=16"), "RayJob")
    learner = group(cluster_of(job), "learner")
    assert learner["minReplicas"] == learner["maxReplicas"] == 2
    assert learner["resources"] == {"CPU": "32", "GPU": "8", "learner": "8"}
