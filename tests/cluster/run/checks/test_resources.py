from __future__ import annotations

from collections.abc import Mapping

import pytest

from cluster.config.configure import ConfigError
from cluster.run.checks.resources import fits_cluster, packs
from tests.cluster.run.checks.cases import config_of

ONE = {"CPU": 8.0, "GPU": 4.0, "memory": 1e9, "node:10.0.0.1": 1.0, "node:__internal_head__": 1.0}
TWO = ONE | {"CPU": 16.0, "node:10.0.0.2": 1.0}


@pytest.mark.parametrize(
    ("overrides", "resources", "nodes", "key", "said"),
    [
        (["actors.count=7"], ONE, [], "actors.num_cpus", "ask for 9 CPU, and the cluster has 8 (actors 7 x (1 CPU)"),
        (["actors.num_gpus=1", "actors.count=4", "ranks.num_gpus=1"], ONE, [], "actors.num_gpus", "ask for 5 GPU"),
        (["reward.resources={big: 1}"], ONE, [], "reward.resources", "the roles ask for 1 big, and the cluster has 0"),
        (
            ["ranks.num_cpus=6"],
            ONE,
            [{"CPU": 4.0}, {"CPU": 4.0}],
            "ranks",
            "asks for 6 CPU, and the largest node has 4",
        ),
        ([], TWO, [], "store.url", "the cluster has 2 machines, and the embedded store listens on loopback"),
    ],
)
def test_roles_that_the_cluster_cannot_hold_are_refused_before_anything_is_deployed(
    overrides: list[str], resources: dict[str, float], nodes: list[Mapping[str, float]], key: str, said: str
) -> None:
    url = [] if key == "store.url" else ["store.url=redis://x:1"]
    with pytest.raises(ConfigError) as caught:
        fits_cluster(config_of(*overrides, *url), resources, nodes)
    (problem,) = caught.value.problems
    assert problem.key == key and said in str(problem)


def test_roles_that_fit_are_let_through_and_a_cluster_that_grows_only_warns() -> None:
    assert fits_cluster(config_of("actors.num_gpus=1", "actors.count=2"), ONE, [ONE]) == []
    (warning,) = fits_cluster(config_of("actors.count=7", "actors.num_gpus=0.1"), ONE, [ONE], grows=True)
    assert "ask for 9 CPU" in warning and "autoscaler" in warning


def test_only_the_actors_that_a_run_begins_with_must_have_room_and_the_others_are_told() -> None:
    (warning,) = fits_cluster(config_of("actors.count=90", "actors.min=2", "actors.num_gpus=1"), ONE, [ONE])
    assert warning.startswith("actors.count=90, of which actors.min=2 begin: there is no room for all of them yet")
    assert "(actors.num_cpus, actors.num_gpus), and the others join as nodes are added" in warning
    with pytest.raises(ConfigError, match="the roles ask for 9 CPU"):
        fits_cluster(config_of("actors.count=90", "actors.min=7", "actors.num_gpus=0.1"), ONE, [ONE])


@pytest.mark.parametrize(
    ("shares", "gpus", "fit"),
    [
        ([0.75, 0.25, 1], 2, True),
        ([0.6, 0.6, 0.8], 2, False),
        ([0.5] * 4 + [0.25] * 4, 3, True),
        ([0.7, 0.3, 0.7, 0.3, 2], 4, True),
        ([], 0, True),
    ],
)
def test_shares_of_gpus_fit_only_into_whole_ones(shares: list[float], gpus: int, fit: bool) -> None:
    assert packs(shares, gpus) is fit


def test_shares_that_leave_a_rest_in_each_gpu_are_refused() -> None:
    config = config_of("actors.count=2", "actors.num_gpus=0.6", "ranks.num_gpus=0.8")
    with pytest.raises(ConfigError, match="num_gpus: a process uses one GPU.*such as 0.75 and 0.25"):
        fits_cluster(config, ONE | {"GPU": 2.0})


def test_what_other_runs_hold_and_gpus_that_nobody_asked_for_are_told() -> None:
    busy, idle = fits_cluster(config_of(), ONE, [ONE], free={"CPU": 2.0})
    assert busy.startswith("3 CPU are asked for, 2 of the cluster's 8 are free now")
    assert "the cluster has 4 GPUs and every role computes on CPUs" in idle


def test_pinned_roles_may_share_an_embedded_store_on_several_machines() -> None:
    pinned = ("actors.resources={here: 1}", "ranks.resources={here: 1}", "actors.num_gpus=1")
    (warning,) = fits_cluster(config_of(*pinned), TWO | {"here": 2.0})
    assert "must be pinned to the driver's machine" in warning
