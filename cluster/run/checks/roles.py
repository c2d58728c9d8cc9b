"""Roles against devices and work: where each computes, in which precision, and whether there is work for all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from cluster.config.recipe import RunConfig
from cluster.config.tree import Problem
from cluster.jobs import effective_address
from cluster.run.checks.findings import Finding
from cluster.run.checks.resources import ON_GPU, demands, exceeds
from cluster.run.flow import SLOTS_PER_ACTOR, groups_in_flight
from cluster.run.machine import ADVICE, Machine
from restoration.precision import AUTO

CLIP_OF_BF16 = 1e-3  # ε below which rounding to bfloat16 shows in the ratio


def placement(config: RunConfig, machine: Machine) -> Iterator[Finding]:
    """GPUs that the roles reserve, and what this machine has, if the cluster is this machine's own."""
    services = {config.reward.key(term): of for term, of in config.reward.services.items() if of.app is None}
    roles: dict[str, Any] = {"actors": config.actors, "ranks": config.ranks, **services}
    for key, role in roles.items():
        gpus = role.num_gpus
        if gpus > 1 and gpus != int(gpus):
            yield Problem(f"{key}.num_gpus", f"{gpus:g}", "Ray gives a part of one GPU (below 1), or whole ones")
        elif gpus > 1 and key not in services:
            what = "rank" if key == "ranks" else "actor"
            yield Problem(
                f"{key}.num_gpus",
                f"{gpus:g}: one {what} computes on one GPU, the others would lie idle",
                f"set {key}.num_gpus=1 and {key}.count to the number of GPUs",
            )
    if 0 < config.ranks.num_gpus < 1 and config.ranks.count > 1:
        yield Problem(
            "ranks.num_gpus",
            f"{config.ranks.num_gpus:g} with ranks.count={config.ranks.count}: ranks would share a GPU, which NCCL "
            "refuses",
            "set ranks.num_gpus=1, or ranks.count=1 on a part of a GPU",
        )
    used = [key for key, role in roles.items() if role.num_gpus]
    own = effective_address(config.cluster) == "local"
    for term, service in config.reward.services.items():
        if own and service.app is not None:
            yield Problem(
                f"{config.reward.key(term)}.app",
                f"{service.app}: a service that stands alone is on a cluster, and this run starts a Ray of its own",
                "give cluster.address, or leave app out",
            )
    if own:
        yield from _own_machine(config, machine, used)
    if used and config.ranks.num_gpus == 0:
        yield (
            f"ranks.num_gpus=0: the learner computes on the CPU (with {config.ranks.threads} threads) while "
            f"{', '.join(used)} use GPUs; add ranks.num_gpus=1"
        )
    if used and config.actors.num_gpus == 0:
        yield (
            f"actors.num_gpus=0: rollouts and evaluations are denoised on CPUs while {', '.join(used)} use GPUs; add "
            "actors.num_gpus=1"
        )
    if not own and config.store.is_embedded and config.cluster.address.startswith("ray://"):
        yield Problem(
            "store.url",
            f"the embedded store listens on loopback, and the cluster is behind {config.cluster.address}",
            "give a store.url that the cluster reaches",
        )


def _own_machine(config: RunConfig, machine: Machine, used: list[str]) -> Iterator[Finding]:
    if used and machine.trouble:
        yield Problem(
            f"{used[0]}.num_gpus",
            f"this machine has {machine.gpus} GPUs that can't be used: {machine.trouble}",
            f"{ADVICE}, or set num_gpus=0 for {', '.join(used)}",
        )
    elif used and not machine.gpus:
        yield f"{', '.join(used)} ask for GPUs, and this machine shows none: Ray will have no place for them"
    elif machine.trouble:
        yield f"this machine has {machine.gpus} GPUs that can't be used: {machine.trouble}; {ADVICE}"
    elif machine.gpus and not used:
        yield (
            f"this machine has {machine.gpus} GPUs and every role computes on the CPU, with {config.actors.threads} "
            f"threads an actor: to use one add {ON_GPU} (docs/gpu.md; half of one each: 0.5)"
        )
    limits = {"CPU": ("num_cpus", config.cluster.num_cpus), "GPU": ("num_gpus", config.cluster.num_gpus)}
    for resource, (name, limit) in limits.items():
        asked = {role.key: role.count * role.each.get(resource, 0) for role in demands(config, at_first=True)}
        if limit is not None and exceeds(sum(asked.values()), limit):
            told = ", ".join(f"{key} {amount:g}" for key, amount in asked.items() if amount)
            yield Problem(
                f"cluster.{name}",
                f"{limit}, and the roles ask for {sum(asked.values()):g} ({told})",
                f"raise it, or lower {name} of the roles",
            )


@dataclass(frozen=True)
class NumberType:
    """A setting of a number type: as it was `given`, and what it means (`means`) on the device of its role."""

    given: str
    means: str
    device: str

    def __str__(self) -> str:
        return f"{self.means} ({AUTO})" if self.given == AUTO else self.given


def number_types(config: RunConfig, machine: Machine) -> dict[str, NumberType]:
    """By the setting's key. Of GPUs and of other machines nothing is known: there `auto` is told as bfloat16."""
    slow = ("cpu",) if effective_address(config.cluster) == "local" and not machine.bf16 else ()
    rollout, learner, actors, ranks = config.rollout, config.learner, config.actors.device, config.ranks.device

    def of(given: str, device: str) -> NumberType:
        return NumberType(given, given if given != AUTO else "float32" if device in slow else "bfloat16", device)

    found = {
        "rollout.condition_dtype": of(rollout.condition_dtype, actors),
        "rollout.denoise_dtype": of(rollout.denoise_dtype, actors),
        "rollout.decode_dtype": of(rollout.decode_dtype, actors),
        "learner.dtype": of(learner.dtype, ranks),
        "adapt.frozen_dtype": of(config.adapt.frozen_dtype, ranks),
        "evaluation.dtype": of(config.evaluation.dtype, actors),
    }
    if found["adapt.frozen_dtype"].given == AUTO and found["learner.dtype"].means == "float32":
        found["adapt.frozen_dtype"] = NumberType(AUTO, "float32", ranks)  # as `restoration.adapters.frozen_type`
    return found


def as_here(config: RunConfig, machine: Machine) -> RunConfig:
    """The same configuration with what each `auto` of a number type means."""
    rooms: dict[str, dict[str, str]] = {}
    for key, found in number_types(config, machine).items():
        room, _, name = key.partition(".")
        rooms.setdefault(room, {})[name] = found.means
    return config.model_copy(update={room: replace(getattr(config, room), **names) for room, names in rooms.items()})


def precision(config: RunConfig, machine: Machine) -> Iterator[Finding]:
    """Number types against devices and the clip."""
    rollout, learner, types = config.rollout, config.learner, number_types(config, machine)
    computed = {key: types[key] for key in ("rollout.denoise_dtype", "rollout.decode_dtype", "learner.dtype")}
    slow = [key for key, found in computed.items() if found.given == "float32" and found.device == "cuda"]
    if slow:
        yield f"{', '.join(slow)}: float32 on a GPU takes several times as long as bfloat16 (configs/gpu.yaml)"
    named = [key for key, found in types.items() if found.given == "bfloat16" and found.device == "cpu"]
    if named and not machine.bf16 and effective_address(config.cluster) == "local":
        yield (
            f"{', '.join(named)}=bfloat16: this processor doesn't multiply it natively and takes about ten times as "
            f"long as in float32; set {'it' if len(named) == 1 else 'them'} to auto"
        )
    full = [key for key, found in computed.items() if found.means == "float32" and key != "rollout.decode_dtype"]
    if config.adapt.frozen_dtype == "bfloat16" and full:
        what = f"bfloat16, and {', '.join(full)} float32: products of two types"
        yield Problem("adapt.frozen_dtype", what, "set it to float32 or auto, or these to bfloat16")
    conditions, frozen = types["rollout.condition_dtype"], types["adapt.frozen_dtype"]
    same_device = conditions.device == frozen.device or AUTO not in (conditions.given, frozen.given)
    if config.objective.needs_policy and conditions.means != frozen.means and same_device:
        what = f"{conditions}, and the learner makes conditions in adapt.frozen_dtype={frozen}: its replay sees others"
        yield Problem("rollout.condition_dtype", what, "set both to the same")
    on_gpu = {bool(config.actors.num_gpus), bool(config.ranks.num_gpus)}
    autos = [k for k in ("adapt.frozen_dtype", "learner.dtype") if types[k].given == AUTO]
    if autos and "float32" not in (rollout.denoise_dtype, learner.dtype) and len(on_gpu) > 1:
        yield (
            f"{', '.join(autos)}=auto: actors and ranks compute on different devices, where it may mean different "
            "types and another policy; set it to float32 or bfloat16"
        )
    rows = rollout.images_per_batch * rollout.rollouts_per_image
    reduced = types["rollout.denoise_dtype"].means == "bfloat16" and config.objective.needs_policy
    recomputed = learner.old_log_probs == "recompute"
    if reduced and not recomputed and config.objective.clip < CLIP_OF_BF16 and rows != learner.micro_batch:
        yield (
            f"objective.clip={config.objective.clip:g} in bfloat16, with rollouts of {rows} rows (rollout."
            f"images_per_batch x rollouts_per_image) and learner.micro_batch={learner.micro_batch}: other batch shapes "
            "round otherwise, so that the ratio of a first replay may lie outside the clip; make them equal, or set "
            "learner.old_log_probs=recompute"
        )


def feeding(config: RunConfig) -> Iterator[Finding]:
    """Whether admission lets all actors have work, and a batch all ranks."""
    count, item = config.actors.count, config.rollout.images_per_batch
    groups = groups_in_flight(config)
    items, slots = groups // item, SLOTS_PER_ACTOR * count
    if items < slots:
        staleness, batch = config.source.max_staleness, config.source.groups_per_step
        why = (
            f"actors.count={count}: at most {items} rollout batches are out at a time ((source.max_staleness="
            f"{staleness} + 1) x source.groups_per_step={batch} / rollout.images_per_batch={item}), and {count} actors "
            f"take {slots}, one being denoised and one waiting for its scores, each"
        )
        idle = f"{count - items} actors have nothing to do" if items < count else "some wait for scores without another"
        yield f"{why}: {idle}. {_ways_to_feed(config)}"
    update = max(1, batch_of_update(config))
    rows = update * config.rollout.rollouts_per_image
    if config.objective.needs_sft and config.ranks.count > rows:
        yield (
            f"ranks.count={config.ranks.count}: an update has {rows} samples of L_diff (rollouts), so that "
            f"{config.ranks.count - rows} ranks have none; raise source.groups_per_step or lower "
            "learner.updates_per_batch or ranks.count"
        )
    if config.learner.updates_per_batch > config.source.groups_per_step:
        groups = config.source.groups_per_step
        what = f"{config.learner.updates_per_batch} updates of source.groups_per_step={groups} groups"
        yield Problem("learner.updates_per_batch", what, "lower it, or raise source.groups_per_step: one an update")


def batch_of_update(config: RunConfig) -> int:
    """Groups of the smallest update."""
    return config.source.groups_per_step // config.learner.updates_per_batch


def _ways_to_feed(config: RunConfig) -> str:
    slots, item = SLOTS_PER_ACTOR * config.actors.count, config.rollout.images_per_batch
    staleness, batch = config.source.max_staleness, config.source.groups_per_step
    ways = []
    smaller = [n for n in range(1, item) if batch % n == 0 and (staleness + 1) * batch // n >= slots]
    if smaller:
        ways.append(f"rollout.images_per_batch={smaller[-1]}")
    ways.append(f"source.groups_per_step={math.ceil(slots * item / (staleness + 1) / item) * item}")
    fewer = (staleness + 1) * batch // item // SLOTS_PER_ACTOR
    if fewer:
        ways.append(f"actors.count={fewer}")
    return f"All are fed with {', '.join(ways[:-1])}{' or ' if len(ways) > 1 else ''}{ways[-1]}"
