"""Which groups of nodes a recipe wants: processes a node, nodes, and what each node offers. Plain arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cluster.config.configure import ConfigError
from cluster.config.recipe import RoleSettings, RunConfig
from reward_service.settings import RewardSettings

ACTOR, REWARD, LEARNER = "actor", "reward", "learner"
GROWTH = 2  # times the actors of the recipe, that `restorl actors scale` finds nodes for
_FOLDED = 1e-9  # fractions add up to whole numbers only about


@dataclass(frozen=True)
class Hosts:
    """What there is to run on.

    Attributes:
        gpus: of the whole cluster, shared out: ranks and rewards get what the recipe says, actors the rest; None: as
            many as the recipe asks for.
        gpus_per_node: of a host; None: not known.
        whole: a node is a whole host (a machine, a cloud's instance), else it may have a part of its GPUs (a pod).
    """

    gpus: int | None = None
    gpus_per_node: int | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        for name, value in (("--gpus", self.gpus), ("--gpus-per-node", self.gpus_per_node)):
            if value is not None and value < 1:
                raise ConfigError.of(f"{name} {value}: at least 1; leave it out for what the recipe asks for")
        if self.gpus is not None and self.gpus_per_node is not None and self.gpus % self.gpus_per_node:
            raise ConfigError.of(
                f"--gpus {self.gpus} on nodes of {self.gpus_per_node} GPUs leaves a part of a node; give a multiple of "
                f"{self.gpus_per_node}, or another --gpus-per-node"
            )

    @property
    def host(self) -> int:
        """GPUs of a host: of eight where pods take parts of it, of one where a node is a whole host."""
        return self.gpus_per_node or (1 if self.whole else 8)


@dataclass(frozen=True)
class Group:
    """Nodes of one role, all alike.

    Attributes:
        name: actor, reward or learner.
        processes: of the role on a node.
        cpus, gpus: of a node.
        offers: custom resources of a node, which its processes ask for.
        least, first, most: nodes; `first` to begin with, and an autoscaler keeps their number between the others.
    """

    name: str
    processes: int
    cpus: int
    gpus: int
    offers: Mapping[str, int]
    least: int
    first: int
    most: int


def groups_of(config: RunConfig, hosts: Hosts) -> tuple[Group, ...]:
    """Of actors, rewards (unless no service is the run's own) and learner ranks.

    Args:
        config: of `deployed.pinned`, in which each role asks for a custom resource.

    Raises:
        ConfigError: roles that don't fit into the hosts.
    """
    learner = _learner(config.ranks, hosts)
    reward = _reward(config, hosts)
    actor = _of_role(ACTOR, config.actors, hosts)
    actor = replace(actor, least=0, most=actor.first if hosts.gpus else actor.first * GROWTH)
    if hosts.gpus is not None:
        _check_gpus(hosts.gpus, config, learner, reward, actor)
    return tuple(group for group in (actor, reward, learner) if group is not None)


def actors_on(config: RunConfig, hosts: Hosts) -> int:
    """How many actors the cluster has room for; the recipe's number if they need no GPU or `hosts.gpus` isn't known.

    Raises:
        ConfigError: there is room for none.
    """
    if hosts.gpus is None or not config.actors.num_gpus:
        return config.actors.count
    learner, reward = _learner(config.ranks, hosts), _reward(config, hosts)
    actor = _of_role(ACTOR, config.actors, hosts)
    taken = _gpus(learner) + _gpus(reward)
    nodes = (hosts.gpus - taken) // actor.gpus
    if nodes < 1:
        _check_gpus(hosts.gpus, config, learner, reward, replace(actor, most=1))
    return nodes * actor.processes


def _check_gpus(gpus: int, config: RunConfig, learner: Group, reward: Group | None, actor: Group) -> None:
    if _gpus(learner) > gpus:
        raise ConfigError.of(
            f"--gpus {gpus}: the {config.ranks.count} learner ranks of the recipe alone take {_gpus(learner)}; lower "
            "ranks.count, or give more GPUs"
        )
    if _gpus(learner) + _gpus(reward) + _gpus(actor) > gpus:
        told = f"{_gpus(learner)} for learner ranks, {_gpus(reward)} for rewards, {_gpus(actor)} for actors"
        raise ConfigError.of(
            f"--gpus {gpus}: {told} are needed at least; give more GPUs, or lower ranks.count, reward.max_replicas or "
            "reward.replicas"
        )


def _gpus(group: Group | None) -> int:
    return 0 if group is None else group.most * group.gpus


def _learner(ranks: RoleSettings, hosts: Hosts) -> Group:
    """Never scaled in a run. Ranks of a node reach each other's GPUs directly, so that pods hold what a host holds."""
    group = _of_role(LEARNER, ranks, hosts, most_a_pod=int(hosts.host / ranks.num_gpus) if ranks.num_gpus >= 1 else 1)
    if group.first > 1 and ranks.count % group.processes:
        raise ConfigError.of(
            f"ranks.count={ranks.count} don't fill nodes of {group.processes} each; make it a multiple of "
            f"{group.processes}, or give another --gpus-per-node"
        )
    return replace(group, least=group.first, most=group.first)


def _reward(config: RunConfig, hosts: Hosts) -> Group | None:
    """One group for all services: its nodes have what the largest replica asks for."""
    services = [of for of in config.reward.services.values() if of.app is None]
    if not services:
        return None
    each = RoleSettings(
        count=sum(of.at_first for of in services),
        num_cpus=max(of.num_cpus for of in services),
        num_gpus=max(of.num_gpus for of in services),
        resources=_largest([of.resources for of in services]),
    )
    group = _of_role(REWARD, each, hosts)
    most = sum(most_replicas(of) for of in services)
    return replace(group, least=group.first, most=math.ceil(most / group.processes))


def most_replicas(service: RewardSettings) -> int:
    return service.replicas if service.max_replicas is None else service.max_replicas


def _of_role(name: str, role: RoleSettings, hosts: Hosts, most_a_pod: int = 1) -> Group:
    share, key = role.num_gpus, {ACTOR: "actors", REWARD: "reward", LEARNER: "ranks"}[name]
    if share > hosts.host:
        raise ConfigError.of(f"{key}.num_gpus={share:g} on hosts of {hosts.host} GPUs; give a larger --gpus-per-node")
    if not share:
        processes, gpus = 1, 0
    elif hosts.whole:
        processes, gpus = int(hosts.host / share + _FOLDED), hosts.host
    elif share < 1:
        processes, gpus = int(1 / share + _FOLDED), 1
    else:
        processes = min(most_a_pod, role.count)
        gpus = processes * math.ceil(share)
    return Group(
        name=name,
        processes=processes,
        cpus=max(math.ceil(role.num_cpus * processes - _FOLDED), 1),
        gpus=gpus,
        offers={resource: math.ceil(amount * processes - _FOLDED) for resource, amount in role.resources.items()},
        least=0,
        first=math.ceil(role.count / processes),
        most=math.ceil(role.count / processes),
    )


def _largest(amounts: list[dict[str, float]]) -> dict[str, float]:
    found: dict[str, Any] = {}
    for resources in amounts:
        found |= {name: max(amount, found.get(name, 0)) for name, amount in resources.items()}
    return found
