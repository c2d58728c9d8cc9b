from __future__ import annotations

import pytest

from cluster.config.configure import ConfigError
from cluster.deploy import deployed
from cluster.deploy.layout import Group, Hosts, actors_on, groups_of
from tests.cluster.deploy.cases import GPU, recipe


def layout(*overrides: str, hosts: Hosts | None = None) -> dict[str, Group]:
    hosts = hosts or Hosts()
    config = deployed.with_actors(deployed.pinned(recipe(*GPU, *overrides)), hosts)
    return {group.name: group for group in groups_of(config, hosts)}


def test_a_pod_has_one_process_but_ranks_that_share_a_host() -> None:
    groups = layout()
    assert {name: (g.processes, g.gpus, g.cpus) for name, g in groups.items()} == {
        "actor": (1, 1, 4),
        "reward": (1, 1, 1),
        "learner": (8, 8, 32),
    }
    assert {name: (g.least, g.first, g.most) for name, g in groups.items()} == {
        "actor": (0, 6, 12),
        "reward": (1, 1, 4),
        "learner": (1, 1, 1),
    }
    assert {name: dict(g.offers) for name, g in groups.items()} == {
        "actor": {"actor": 1},
        "reward": {"reward": 1},
        "learner": {"learner": 8},
    }


def test_whole_hosts_are_filled_and_shares_of_a_gpu_share_a_node() -> None:
    groups = layout("actors.num_gpus=0.5", hosts=Hosts(gpus_per_node=4, whole=True))
    assert [(g.processes, g.gpus, g.first) for g in groups.values()] == [(8, 4, 1), (4, 4, 1), (4, 4, 2)]
    assert groups["learner"].least == groups["learner"].most == 2
    assert layout("reward.num_gpus=0.35")["reward"].processes == 2


def test_roles_on_cpus_have_a_pod_each_without_gpus() -> None:
    groups = layout("actors.num_gpus=0", "ranks.num_gpus=0", "reward.num_gpus=0", "ranks.count=2")
    assert [(g.processes, g.gpus, g.first) for g in groups.values()] == [(1, 0, 6), (1, 0, 1), (1, 0, 2)]


def test_actors_take_the_gpus_that_ranks_and_rewards_leave() -> None:
    hosts = Hosts(gpus=32)
    assert actors_on(deployed.pinned(recipe(*GPU)), hosts) == 32 - 8 - 4
    assert layout(hosts=hosts)["actor"].most == 20
    assert layout(hosts=Hosts(gpus=32, gpus_per_node=8, whole=True))["actor"].first == 2  # hosts, of 8 actors each


def test_resources_that_the_recipe_names_are_the_ones_that_nodes_offer() -> None:
    groups = layout("actors.resources={rollout: 2}", "reward.resources={scorer: 0.5}")
    assert dict(groups["actor"].offers) == {"rollout": 2} and dict(groups["reward"].offers) == {"scorer": 1}


def test_terms_share_a_group_whose_nodes_have_what_the_largest_asks_for_and_one_that_stands_alone_has_none() -> None:
    terms = "reward.terms=[{scorer: piqe, num_gpus: 0, num_cpus: 3}, {scorer: lite0_levels}, {scorer: psnr}]"
    reward = layout(terms, "reward.replicas=1")["reward"]
    assert (reward.cpus, reward.gpus, reward.first, reward.most) == (3, 1, 2, 2)
    assert "reward" not in layout("reward.app=shared")


@pytest.mark.parametrize(
    ("overrides", "hosts", "told"),
    [
        ((), {"gpus": 4}, "the 8 learner ranks of the recipe alone take 8; lower ranks.count"),
        ((), {"gpus": 12}, "8 for learner ranks, 4 for rewards, 1 for actors are needed at least"),
        ((), {"gpus": 12, "gpus_per_node": 8}, "leaves a part of a node; give a multiple of 8"),
        ((), {"gpus": 0}, "--gpus 0: at least 1"),
        ((), {"gpus_per_node": -1}, "--gpus-per-node -1: at least 1"),
        (("ranks.count=12",), {"gpus_per_node": 8}, "ranks.count=12 don't fill nodes of 8 each"),
        (("actors.num_gpus=2",), {"whole": True}, "actors.num_gpus=2 on hosts of 1 GPUs"),
    ],
)
def test_what_does_not_fit_is_one_line_with_its_way_out(
    overrides: tuple[str, ...], hosts: dict[str, int], told: str
) -> None:
    with pytest.raises(ConfigError) as error:
        layout(*overrides, hosts=Hosts(**hosts))
    assert told in str(error.value) and len(str(error.value).splitlines()) == 1 and "; " in str(error.value)
