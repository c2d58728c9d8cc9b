"""What the roles reserve against what a cluster has, once it is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.config.configure import ConfigError
from cluster.config.recipe import RunConfig
from cluster.config.tree import Problem
from cluster.run.checks.findings import Checked, Finding

ON_GPU = "actors.num_gpus=1 ranks.num_gpus=1"


def fits_cluster(
    config: RunConfig,
    resources: Mapping[str, float],
    nodes: Sequence[Mapping[str, float]] = (),
    free: Mapping[str, float] | None = None,
    grows: bool = False,
) -> list[str]:
    """Warnings about what the cluster has and what the roles ask for.

    Args:
        resources: `ray.cluster_resources()`.
        nodes: the resources of each living node (`ray.nodes()`), if known.
        free: `ray.available_resources()`, if known.
        grows: an autoscaler adds nodes on demand: what doesn't fit is a warning.

    Raises:
        ConfigError: roles that can't be placed, an embedded store that not all of them reach.
    """
    found = Checked.of(cluster_findings(config, resources, nodes, free or resources))
    if found.problems and not grows:
        raise ConfigError(found.problems)
    return [*(f"{p} (or the autoscaler's nodes have it)" for p in found.problems), *found.warnings]


@dataclass(frozen=True)
class Demand:
    """What the processes of a role reserve."""

    key: str
    count: int
    each: Mapping[str, float]

    def __str__(self) -> str:
        return f"{self.key} {self.count} x ({_amounts(self.each)})"


def demands(config: RunConfig, at_first: bool = False) -> list[Demand]:
    """Of each role, by Ray's names of resources.

    Args:
        at_first: of the actors, only those that must be there before the run begins.
    """

    reward, actors = config.reward, config.actors
    own = {term: of for term, of in reward.services.items() if of.app is None}
    services = [Demand(reward.key(term), of.at_first, reserved(of)) for term, of in own.items()]
    return [
        Demand("actors", actors.at_first if at_first else actors.count, reserved(actors)),
        *services,
        Demand("ranks", config.ranks.count, reserved(config.ranks)),
    ]


def reserved(role: Any) -> dict[str, float]:
    """What a process of a role reserves."""
    wanted = {"CPU": role.num_cpus, "GPU": role.num_gpus, **role.resources}
    return {name: amount for name, amount in wanted.items() if amount > 0}


def cluster_findings(
    config: RunConfig, resources: Mapping[str, float], nodes: Sequence[Mapping[str, float]], free: Mapping[str, float]
) -> Iterator[Finding]:
    """Problems and warnings of `fits_cluster`."""
    roles = demands(config, at_first=True)
    yield from _amounts_of_all(roles, resources, free)
    if not [*_amounts_of_all(roles, resources, resources)]:
        yield from _joining_later(config, resources)
    yield from _largest_node(roles, nodes)
    yield from _shares_of_gpus(roles, resources.get("GPU", 0))
    yield from _reach_of_store(config, resources, nodes)
    if resources.get("GPU") and not any(role.each.get("GPU") for role in roles):
        yield (
            f"the cluster has {resources['GPU']:g} GPUs and every role computes on CPUs: to use them add "
            f"{ON_GPU} (configs/gpu.yaml)"
        )


def _amounts_of_all(
    roles: Sequence[Demand], resources: Mapping[str, float], free: Mapping[str, float]
) -> Iterator[Finding]:
    """Sums over the roles against what there is, and what is free of it."""
    for name in dict.fromkeys(name for role in roles for name in role.each):
        asked = sum(role.count * role.each.get(name, 0) for role in roles)
        there = resources.get(name, 0)
        if exceeds(asked, there):
            askers = [role for role in roles if role.each.get(name)]
            key = max(askers, key=lambda role: role.count * role.each[name]).key
            yield Problem(
                _setting(key, name),
                f"the roles ask for {asked:g} {name}, and the cluster has {there:g} ({_told(roles)})",
                f"lower {' or '.join(_setting(role.key, name) for role in askers)} or their number, or add nodes",
            )
        elif exceeds(asked, free.get(name, 0)):
            yield (
                f"{asked:g} {name} are asked for, {free.get(name, 0):g} of the cluster's {there:g} are free now: "
                "the run waits for whoever holds the others, as long as start_timeout_s"
            )


def _joining_later(config: RunConfig, resources: Mapping[str, float]) -> Iterator[Finding]:
    """Actors that there is no room for yet, and that the run doesn't wait for."""
    count, least = config.actors.count, config.actors.at_first
    lacking = [f.key for f in _amounts_of_all(demands(config), resources, resources) if isinstance(f, Problem)]
    if least < count and lacking:
        yield (
            f"actors.count={count}, of which actors.min={least} begin: there is no room for all of them yet "
            f"({', '.join(lacking)}), and the others join as nodes are added"
        )


def _largest_node(roles: Sequence[Demand], nodes: Sequence[Mapping[str, float]]) -> Iterator[Finding]:
    """A process has to fit into one node."""
    for role in roles if nodes else ():
        if not any(_fits(role.each, node) for node in nodes):
            largest = _amounts(max(nodes, key=_size))
            what = f"one process asks for {_amounts(role.each)}, and the largest node has {largest}"
            yield Problem(role.key, what, f"lower {role.key}.num_cpus, num_gpus or resources, or add such a node")


def _shares_of_gpus(roles: Sequence[Demand], gpus: float) -> Iterator[Finding]:
    """A share has to fit into one GPU."""
    shares = [role.each.get("GPU", 0.0) for role in roles for _ in range(role.count)]
    if not exceeds(sum(shares), gpus) and not packs(shares, int(gpus)):
        yield Problem(
            "num_gpus",
            f"a process uses one GPU, and these shares don't fill {gpus:g} of them without a rest ({_told(roles)})",
            "choose shares that add up to whole GPUs, such as 0.75 and 0.25",
        )


def _reach_of_store(
    config: RunConfig, resources: Mapping[str, float], nodes: Sequence[Mapping[str, float]]
) -> Iterator[Finding]:
    """An embedded store is reached from its own machine."""
    members = [name for name in resources if name.startswith("node:") and name != "node:__internal_head__"]
    machines = max(len(members), len(nodes))
    if not config.store.is_embedded or machines < 2:
        return
    what = f"the cluster has {machines} machines, and the embedded store listens on loopback"
    if config.actors.resources and config.ranks.resources:
        yield f"{what}: actors and ranks must be pinned to the driver's machine; else give a store.url"
    else:
        action = "start a Redis or Valkey and give its store.url, or use a cluster of one machine"
        yield Problem("store.url", what, action)


def packs(shares: Sequence[float], gpus: int) -> bool:
    """Whether shares of GPUs, each below 1 or whole, fit into `gpus`, the largest first, each where the least is left.

    For the few sizes that three roles have, that finds a place whenever there is one.
    """
    free = [1.0] * (gpus - round(sum(share for share in shares if share >= 1)))
    for share in sorted((share for share in shares if 0 < share < 1), reverse=True):
        fitting = [i for i, left in enumerate(free) if left >= share - 1e-9]
        if not fitting:
            return False
        free[min(fitting, key=lambda i: free[i])] -= share
    return True


def exceeds(asked: float, there: float) -> bool:
    """Whether more is asked for; fractions add up to whole numbers only about."""
    return asked > there * (1 + 1e-9)


def _told(roles: Sequence[Demand]) -> str:
    return "; ".join(map(str, roles))


def _fits(each: Mapping[str, float], node: Mapping[str, float]) -> bool:
    return not any(exceeds(amount, node.get(name, 0)) for name, amount in each.items())


def _size(node: Mapping[str, float]) -> tuple[float, float]:
    return node.get("GPU", 0), node.get("CPU", 0)


def _setting(role: str, resource: str) -> str:
    return {"CPU": f"{role}.num_cpus", "GPU": f"{role}.num_gpus"}.get(resource, f"{role}.resources")


def _amounts(resources: Mapping[str, float]) -> str:
    shown = {k: v for k, v in resources.items() if not k.startswith("node:") and "memory" not in k}
    return ", ".join(f"{v:g} {k}" for k, v in shown.items()) or "nothing"
