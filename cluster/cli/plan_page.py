"""What `restorl plan` prints."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from cluster.cli.output import table_lines
from cluster.config.configure import plain
from cluster.config.recipe import RunConfig
from cluster.plan.gpus import FACTOR, NETWORKS, GpuKind
from cluster.plan.measured import Measured
from cluster.plan.model import (
    ACTORS,
    ADMISSION,
    CHECKPOINTS,
    DRIVER,
    INTAKE,
    RANKS,
    STORE,
    Costs,
    Counts,
    Loop,
    reward_part,
)
from cluster.plan.search import Shares, Split, best
from cluster.run.memory_plan import CONTEXT, RoleMemory
from reward_service.settings import RewardSettings

GIB = 2**30
WAYS = {
    ACTORS: "rollouts",
    RANKS: "the learner's steps",
    ADMISSION: "the way of a batch: too few groups are under way to keep any role busy; raise source.max_staleness or "
    "source.groups_per_step",
    STORE: "the trajectory store: one server takes no more; rollout.storage_dtype=float16 halves a group",
    INTAKE: "fetching trajectories: more ranks share them",
    DRIVER: "the driver: larger rollout batches (rollout.images_per_batch) give it fewer calls",
    CHECKPOINTS: "writing checkpoints: raise checkpoint_every",
}
"""What one waits for, and what helps where no GPU does."""
REPLICAS = ("replicas", "min_replicas", "max_replicas")
MOST_WIDER = 64  # times as many groups, at most, that another batch is looked at with


@dataclass(frozen=True)
class Wider:
    """The same GPUs with another batch."""

    groups: int
    split: Split


def wider(
    loop: Loop, costs: Costs, shares: Shares, gpus: float, given: Counts, ranks: Sequence[int], split: Split
) -> Wider | None:
    """The smallest larger batch that uses nine tenths of the GPUs, or else the one that uses most.

    None where the recipe's own uses nine tenths, or a larger one hardly more.
    """
    found: Wider | None = None
    times = 1
    while (found.split if found else split).gpus < 0.9 * gpus and times < MOST_WIDER:
        times *= 2
        larger = replace(
            loop, groups=loop.groups * times, policy_rows=loop.policy_rows * times, sft_rows=loop.sft_rows * times
        )
        tried = Wider(larger.groups, best(larger, costs, shares, gpus, given, ranks))
        if tried.split.gpus > 1.1 * (found.split if found else split).gpus:
            found = tried
    return found


def page(
    *,
    recipe: str,
    config: RunConfig,
    gpus: int,
    kind: GpuKind,
    run: Measured | None,
    where: Path | None,
    split: Split,
    more: Mapping[str, float],
    wider: Wider | None,
    beside: Mapping[str, float],
    shares: Shares,
    roles: Sequence[RoleMemory],
    group_bytes: int,
) -> str:
    """All of it, for a person.

    Args:
        beside: GPUs of services that the split knows nothing of, as only evaluations ask them; by term.
    """
    found, groups, others = split.found, config.source.groups_per_step, sum(beside.values())
    parts = [
        _source(kind, run, where),
        [
            f"{recipe} on {gpus} GPUs: {overrides(config, split.counts)}",
            f"  {split.gpus + others:g} of {gpus} GPUs are used, {found.seconds:.3g} s an iteration: "
            f"{found.per_hour:.3g} iterations and {found.per_hour * groups:.3g} groups an hour",
            *(
                [f"  {others:g} of them by terms with weight 0 ({', '.join(beside)}), for evaluations"]
                if others
                else []
            ),
            f"  {config.iterations} iterations: about {_time(found.run_s(config.iterations))}, without the start and "
            "evaluations at the ends",
            f"  it waits for {WAYS.get(found.bottleneck, 'scoring')}",
        ],
        _parts(config, split, group_bytes),
        _more(split, more, shares),
        _wider(gpus, wider, others),
        _memory(kind, roles, shares),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def overrides(config: RunConfig, counts: Counts) -> str:
    """What to write behind the recipe, in words of a shell."""
    reward, words = config.reward, [f"actors.count={counts.actors}", f"ranks.count={counts.ranks}"]
    own = [name for name, of in reward.services.items() if of.app is None]
    different = len(set(counts.replicas.values())) > 1 or any(name not in counts.replicas for name in own)
    if not reward.terms or not (different or any(key in term for term in reward.terms for key in REPLICAS)):
        for count in set(counts.replicas.values()) if own else ():
            words += [f"reward.{key}={value}" for key, value in _replicas(reward, count).items()]
    else:
        # What the section says is of terms, too, that have another number, or say theirs themselves.
        terms = [
            {**given, **_replicas(reward.services[term.name], counts.replicas[term.name])}
            if term.name in counts.replicas and term.name in own
            else given
            for term, given in zip(reward.resolved.terms, reward.terms, strict=True)
        ]
        flow = yaml.safe_dump(plain(terms), default_flow_style=True, sort_keys=False, width=10**6)
        words.append(shlex.quote(f"reward.terms={flow.strip()}"))
    return " ".join(words)


def _replicas(of: RewardSettings, count: int) -> dict[str, int]:
    """The settings by which a service has so many."""
    if of.min_replicas is None:
        return {"replicas": count}
    return {"min_replicas": min(of.min_replicas, count), "max_replicas": count}


def _source(kind: GpuKind, run: Measured | None, where: Path | None) -> list[str]:
    if run is None:
        return [
            f"an ESTIMATE within a factor of {FACTOR}, nothing was measured: the networks' arithmetic against a "
            f"{kind.name} of {kind.bf16 / 1e12:.0f} TFLOP/s",
            f"in bfloat16 and {kind.bandwidth / 1e12:.2g} TB/s, of which {NETWORKS:.0%} are reached; measure a run and "
            "give it with --from",
        ]
    shown = [
        f"  {name.removesuffix('_s')}: {middle:.3g} s ({low:.3g} to {high:.3g})"
        for name, (low, middle, high) in run.spread.items()
    ]
    off = run.predicted_s / run.took_s - 1
    return [
        f"measured by {where}: {run.iterations} iterations, seconds of each, those of actors summed over them",
        *shown,
        f"  the model says {run.predicted_s:.3g} s for that run's own counts, it took {run.took_s:.3g} ({off:+.0%})",
        "  the same GPUs are assumed; what scoring takes is an upper bound, from how long rollouts waited for it",
    ]


def _parts(config: RunConfig, split: Split, group_bytes: int) -> list[str]:
    counts, found = split.counts, split.found
    processes = {ACTORS: counts.actors, RANKS: counts.ranks, INTAKE: counts.ranks}
    processes |= {reward_part(name): count for name, count in counts.replicas.items()}
    rows = [
        [name, str(processes.get(name, "")), f"{seconds:.3g}", f"{seconds / found.seconds:.0%}"]
        for name, seconds in found.parts.items()
        if seconds
    ]
    note = (
        f"admission: the way of a batch over source.max_staleness + 1 = {config.source.max_staleness + 1}; a group has "
        f"{group_bytes / 2**20:.1f} MiB"
    )
    return [*table_lines(["part", "processes", "s an iteration", "of it"], rows), note]


def _more(split: Split, more: Mapping[str, float], shares: Shares) -> list[str]:
    each = {ACTORS: shares.actor, RANKS: shares.rank, **shares.replicas}
    rows = [
        [name if name in (ACTORS, RANKS) else reward_part(name), f"{each[name]:g}", f"{gain:+.1%}"]
        for name, gain in more.items()
    ]
    return table_lines(["one more process of", "GPUs", "iterations an hour"], rows) if rows else []


def _wider(gpus: int, wider: Wider | None, others: float) -> list[str]:
    if wider is None:
        return []
    found = wider.split.found
    counts = wider.split.counts
    replicas = "".join(f", {count} of {reward_part(name)}" for name, count in counts.replicas.items())
    return [
        f"a batch of this recipe feeds no more; with source.groups_per_step={wider.groups}, which is another training, "
        f"{wider.split.gpus + others:g} of {gpus} GPUs are",
        f"used ({counts.actors} actors, {counts.ranks} ranks{replicas}): {found.per_hour:.3g} iterations and "
        f"{found.per_hour * wider.groups:.3g} groups an hour",
    ]


def _memory(kind: GpuKind, roles: Sequence[RoleMemory], shares: Shares) -> list[str]:
    each = {"actor": shares.actor, "rank": shares.rank, **shares.replicas}
    rows = []
    for role in roles:
        share = min(each.get(role.role, 0.0), 1.0)
        room = f"{share * kind.memory / GIB:.1f}" if share else "-"
        host = sum(role.host.values()) / GIB
        rows.append([role.role, f"{(role.device_bytes + CONTEXT) / GIB:.1f}", room, f"{host:.1f}"])
    head = ["memory of one", "GiB at its worst", f"of its {kind.name}", "host"]
    return table_lines(head, rows)


def _time(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"
