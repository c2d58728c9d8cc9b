"""Whether a cluster could ever hold the replicas. Plain arithmetic, no Ray in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reward_service.settings import RewardSettings

_FOLDED = 1e-9  # Ray counts in ten-thousandths: fractions add up to 1 only about


def wanted_by(settings: RewardSettings) -> dict[str, float]:
    """What one replica reserves, by Ray's names; only what is above 0."""
    all_of = {"CPU": settings.num_cpus, "GPU": settings.num_gpus, **settings.resources}
    return {name: amount for name, amount in all_of.items() if amount > 0}


def room_for(wanted: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> int | None:
    """How many replicas fit into empty nodes; None: any number, as nothing is reserved."""
    if not wanted:
        return None
    return sum(min(int(node.get(name, 0.0) / amount + _FOLDED) for name, amount in wanted.items()) for node in nodes)


def shortage(settings: RewardSettings, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """Why these nodes can't hold the replicas even when nothing else runs on them; None if they can."""
    wanted = wanted_by(settings)
    room = room_for(wanted, nodes)
    if room is None or room >= settings.at_first:
        return None
    there = "; ".join(_words({n: node.get(n, 0.0) for n in wanted}) for node in nodes) or "none"
    return (
        f"each of its {settings.at_first} replicas wants {_words(wanted)}, and the cluster has room for {room} "
        f"(its nodes: {there}); lower reward.replicas, reward.num_cpus, reward.num_gpus or reward.resources, "
        "or add nodes"
    )


def _words(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
