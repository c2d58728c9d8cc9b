"""Everything that can be known before anything starts: `before_start` without Ray, `fits_cluster` once Ray is up.

All problems are told at once. What is said here is said again, later and by one process, where it happens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from cluster.config.configure import ConfigError
from cluster.config.recipe import RunConfig
from cluster.config.tree import Problem
from cluster.run.flow import GPU, MAX_RECORD, Flow, Size, evaluated_together, flow, held_groups, rolled_sizes
from cluster.run.idle_keys import idle_keys
from cluster.run.machine import Machine, this_machine
from cluster.run.roles import feeding, placement, precision
from restoration.base_models import CheckpointError, ModelFacts, describe
from restoration.base_models.interface import SamplerSettings
from restoration.datasets.paired import PairedFolder
from restoration.image_files import find_named
from restoration.metrics import protocol
from restoration.transition import Schedule
from reward_service.scorers import SCORERS

DECODER_BYTES = (
    3072  # a pixel: at full side, in float32, 2 x 256 and 2 x 128 channels of the VAEs of SD, SDXL, SD 3, Flux
)
FREE_SHARE = 0.7  # of a GPU beside weights

Finding = Problem | str
"""What stops a run, or a warning in a sentence."""


class Facts(Protocol):
    """What the checks need of a base model: the part of `ModelFacts` that has no tensors."""

    @property
    def kind(self) -> str: ...

    @property
    def size_multiple(self) -> int: ...

    @property
    def side_limit(self) -> int | None: ...

    @property
    def vae_factor(self) -> int: ...

    @property
    def latent_channels(self) -> int: ...

    @property
    def guidance(self) -> bool: ...

    @property
    def missing_embeddings(self) -> tuple[str, ...]: ...

    def schedule(self, sampler: SamplerSettings) -> Schedule: ...


@dataclass(frozen=True)
class Checked:
    """What was found."""

    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> Checked:
        found = list(dict.fromkeys(findings))
        return cls(tuple(f for f in found if isinstance(f, Problem)), tuple(f for f in found if isinstance(f, str)))


@dataclass(frozen=True)
class Pictures:
    """Sizes of the pictures of a run, in any order, and their ids."""

    train: Sequence[Size]
    heldout: Sequence[Size]
    ids: Sequence[str] = ()

    @classmethod
    def of(cls, train: PairedFolder, heldout: PairedFolder) -> Pictures:
        ids = [*train.image_ids, *heldout.image_ids]
        return cls([p.size for p in train.pairs], [p.size for p in heldout.pairs], ids)


def before_start(
    config: RunConfig, train: PairedFolder, heldout: PairedFolder, machine: Machine | None = None
) -> list[str]:
    """Warnings, each a sentence with its way out.

    Args:
        machine: what this one has, None to look.

    Raises:
        ConfigError: with all problems.
    """
    found = examine(config, Pictures.of(train, heldout), facts_of(config), machine or this_machine())
    if found.problems:
        raise ConfigError(found.problems)
    return list(found.warnings)


def facts_of(config: RunConfig) -> ModelFacts | Problem:
    """Of the model folder, whose weights are not read."""
    try:
        return describe(config.model)
    except CheckpointError as error:
        return _told("model", str(error))


def examine(config: RunConfig, pictures: Pictures, facts: Facts | Problem, machine: Machine) -> Checked:
    """All that can be told before anything starts."""
    findings: list[Finding] = list(of_config(config, machine))
    if isinstance(facts, Problem):
        findings.append(facts)
    else:
        findings += of_model(config, facts, pictures.train, pictures.heldout)
    findings += embeddings(config, pictures.ids)
    return Checked.of(findings)


def of_config(config: RunConfig, machine: Machine) -> Iterator[Finding]:
    """What the configuration alone tells."""
    yield from names(config)
    yield from placement(config, machine)
    yield from precision(config)
    yield from feeding(config)
    yield from idle_keys(config)


def of_model(config: RunConfig, facts: Facts, train: Sequence[Size], heldout: Sequence[Size]) -> Iterator[Finding]:
    """What the model and the sizes of the pictures tell besides."""
    schedule, found = chain(config, facts)
    yield from found
    yield from conditions(config, facts)
    yield from crops(config, facts, train)
    rolled = rolled_sizes(config, train, facts.size_multiple)
    if schedule is not None and min(rolled[-1]) >= facts.vae_factor:
        moved = flow(config, rolled[-1], facts.vae_factor, facts.latent_channels, len(schedule.decisions))
        yield from store(config, moved)
    yield from evaluation(config, facts.size_multiple, heldout)
    if schedule is not None:
        yield from idle_keys_of_sampler(config.sampler, facts, schedule)


def names(config: RunConfig) -> Iterator[Finding]:
    """Names that something is looked up by."""
    try:
        protocol(config.evaluation.protocol)
    except ValueError as error:
        yield _told("evaluation.protocol", str(error))
    # Of a class by its path only the replicas, whose nodes may have other packages, can tell.
    if ":" not in config.reward.scorer and config.reward.scorer not in SCORERS:
        known = ", ".join(sorted(SCORERS))
        yield Problem("reward.scorer", f"no scorer named {config.reward.scorer!r}", f"choose {known}, or module:class")


def chain(config: RunConfig, facts: Facts) -> tuple[Schedule | None, list[Problem]]:
    """The schedule, or None where the model can't walk or train on it."""
    try:
        return facts.schedule(config.sampler), []
    except ValueError as error:
        return None, [_told("sampler", str(error))]


def idle_keys_of_sampler(sampler: SamplerSettings, facts: Facts, schedule: Schedule) -> Iterator[str]:
    """Settings of the sampler that change nothing for this model: the schedule is the same without them."""
    default = SamplerSettings()
    for name in ("eta", "noise_level", "sigma", "steps_offset"):
        value, usual = getattr(sampler, name), getattr(default, name)
        if value != usual and facts.schedule(SamplerSettings(**vars(sampler) | {name: usual})) == schedule:
            yield f"sampler.{name}={value}: has no effect on {facts.kind} with these settings; leave it out"


def crops(config: RunConfig, facts: Facts, sizes: Sequence[Size]) -> Iterator[Problem]:
    """Crops against the training pictures and the model's multiple."""
    crop, multiple = config.rollout.crop, facts.size_multiple
    smallest = min(sizes, key=min)
    limit = facts.side_limit or max(map(max, sizes))
    largest = min(min(smallest), limit) // multiple * multiple
    if not largest:
        what = f"the smallest training picture has {_wh(smallest)} pixels, the model takes multiples of {multiple}"
        yield Problem("data.root", what, "leave out pictures below that")
        return
    whole = rolled_sizes(config.model_copy(update={"rollout": replace(config.rollout, crop=0)}), sizes, multiple)
    fits = f"{largest} is the largest crop that fits"
    if len(whole) == 1 and max(whole[0]) <= limit:
        fits += f", and 0 takes whole pictures ({_wh(whole[0])})"
    if crop < 0:
        yield Problem("rollout.crop", f"{crop} pixels", f"give a multiple of {multiple}, or 0 for whole pictures")
    elif crop > min(smallest):
        small = sum(min(size) < crop for size in sizes)
        what = (
            f"{crop} pixels don't fit into {small} of {len(sizes)} training pictures, the smallest of {_wh(smallest)}"
        )
        yield Problem("rollout.crop", what, fits)
    elif crop % multiple:
        near = [n for n in (crop // multiple * multiple, -(-crop // multiple) * multiple) if 0 < n <= largest]
        what = f"{crop}: {facts.kind} works on multiples of {multiple} pixels"
        yield Problem("rollout.crop", what, f"choose {' or '.join(map(str, near))}")
    elif (side := crop or max(map(max, whole))) > limit:
        yield Problem("rollout.crop", f"{crop}: {facts.kind} knows sides up to {limit}, here are {side}", fits)
    elif not crop and len(whole) > 1 and (count := config.rollout.images_per_batch) > 1:
        what = (
            f"0 takes whole pictures, of {len(whole)} sizes from {_wh(whole[0])} to {_wh(whole[-1])}, and "
            f"rollout.images_per_batch={count} are denoised together"
        )
        yield Problem("rollout.crop", what, f"set rollout.images_per_batch=1, or a crop (at most {largest})")


def store(config: RunConfig, moved: Flow) -> Iterator[Finding]:
    """Bytes of trajectories against what the store takes: beyond it actors and learner wait for each other."""
    limit, group = config.store.max_bytes, moved.group_bytes
    smaller = "rollout.storage_dtype=bfloat16 halves a group" if config.rollout.storage_dtype == "float32" else ""
    others = ", ".join(filter(None, (smaller, "a smaller rollout.crop, fewer sampler.steps or rollouts_per_image")))
    about = (
        f"a group has {_mib(group)} ({config.rollout.rollouts_per_image} rollouts x {moved.decisions} decisions x 2 "
        f"latents {list(moved.latent)} of {config.rollout.storage_dtype})"
    )
    if group > MAX_RECORD:
        yield Problem("rollout", f"{about}; a record of the store takes {_mib(MAX_RECORD)}", f"choose {others}")
    elif moved.held_bytes > limit:
        needed = math.ceil(moved.held_bytes / 2**20) * 2**20
        why = (
            f"(source.max_staleness={config.source.max_staleness} + 1 + checkpoint_every={config.checkpoint_every}) x "
            f"source.groups_per_step={config.source.groups_per_step} = {held_groups(config)}"
        )
        room = f"{limit // group} fit" if group <= limit else "not one fits"
        yield Problem(
            "store.max_bytes",
            f"{about}; {why} of them may wait for a step or its checkpoint, and {room} into {_mib(limit)}",
            f"set store.max_bytes={needed} ({_mib(needed)}), or {others}, or a lower checkpoint_every",
        )


def evaluation(config: RunConfig, multiple: int, sizes: Sequence[Size]) -> Iterator[str]:
    """What an evaluation decodes at once on a GPU."""
    height, width, batch = evaluated_together(config, multiple, sizes)
    held = batch * height * width * DECODER_BYTES
    if config.actors.num_gpus and held > FREE_SHARE * GPU:
        fits = max(1, int(FREE_SHARE * GPU / DECODER_BYTES))
        yield (
            f"evaluation.pixels={config.evaluation.pixels}: the decoder holds about {held / 2**30:.0f} GiB for {batch} "
            f"pictures of {width}x{height}, of the {GPU / 2**30:.1f} GiB of an 80 GB GPU; set evaluation.pixels={fits} "
            "or below, for larger pictures evaluation.tile=1024"
        )


def conditions(config: RunConfig, facts: Facts) -> Iterator[Problem]:
    """What the denoiser looks at and the folder doesn't hold. Pictures with embeddings of their own may bring it."""
    if config.data.embeddings is not None:
        return
    if facts.missing_embeddings:
        what = f"{config.model} has no embedding {', '.join(facts.missing_embeddings)}, which {facts.kind} looks at"
        action = "give a folder of one file a picture, or convert the model with embeddings= (docs/models.md)"
        yield Problem("data.embeddings", what, action)
    if config.sampler.guidance_scale != 1 and not facts.guidance:
        what = f"{config.sampler.guidance_scale:g} leads away from a negative text, and {config.model} holds none"
        action = "set sampler.guidance_scale=1, or convert the model with negative_prompt= (docs/models.md)"
        yield Problem("sampler.guidance_scale", what, action)


def embeddings(config: RunConfig, image_ids: Sequence[str]) -> Iterator[Problem]:
    """A file for each picture, where pictures have embeddings of their own."""
    if (folder := config.data.embeddings) is None:
        return
    if not Path(folder).is_dir():
        yield Problem("data.embeddings", f"{folder} is no folder", "give the one with <image id>.safetensors")
    elif missing := [i for i in image_ids if not find_named(folder, f"{i}.safetensors").is_file()]:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        what = f"{folder} has no file for {len(missing)} of {len(image_ids)} pictures ({first})"
        yield Problem("data.embeddings", what, "make them, or leave data.embeddings out")


# -- the cluster ---------------------------------------------------------------------------------------------------


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


def demands(config: RunConfig) -> list[Demand]:
    """Of each role, by Ray's names of resources."""

    def each(role: Any) -> dict[str, float]:
        wanted = {"CPU": role.num_cpus, "GPU": role.num_gpus, **role.resources}
        return {name: amount for name, amount in wanted.items() if amount > 0}

    roles = (("actors", config.actors.count), ("reward", config.reward.replicas), ("ranks", config.ranks.count))
    return [Demand(key, count, each(getattr(config, key))) for key, count in roles]


def cluster_findings(
    config: RunConfig, resources: Mapping[str, float], nodes: Sequence[Mapping[str, float]], free: Mapping[str, float]
) -> Iterator[Finding]:
    """Problems and warnings of `fits_cluster`."""
    roles = demands(config)
    told = "; ".join(map(str, roles))
    names = dict.fromkeys(name for role in roles for name in role.each)
    for name in names:
        asked = sum(role.count * role.each.get(name, 0) for role in roles)
        there = resources.get(name, 0)
        if asked > there * (1 + 1e-9):
            askers = [role.key for role in roles if role.each.get(name)]
            key = max((role for role in roles if role.each.get(name)), key=lambda r: r.count * r.each[name]).key
            yield Problem(
                _setting(key, name),
                f"the roles ask for {asked:g} {name}, and the cluster has {there:g} ({told})",
                f"lower {' or '.join(_setting(k, name) for k in askers)} or their number, or add nodes",
            )
        elif asked > free.get(name, 0) * (1 + 1e-9):
            yield (
                f"{asked:g} {name} are asked for, {free.get(name, 0):g} of the cluster's {there:g} are free now: "
                "the run waits for whoever holds the others, as long as start_timeout_s"
            )
    for role in roles if nodes else ():
        if not any(_fits(role.each, node) for node in nodes):
            largest = _amounts(max(nodes, key=_size))
            what = f"one process asks for {_amounts(role.each)}, and the largest node has {largest}"
            yield Problem(role.key, what, f"lower {role.key}.num_cpus, num_gpus or resources, or add such a node")
    shares = [role.each.get("GPU", 0.0) for role in roles for _ in range(role.count)]
    if sum(shares) <= resources.get("GPU", 0) * (1 + 1e-9) and not packs(shares, int(resources.get("GPU", 0))):
        yield Problem(
            "num_gpus",
            f"a process uses one GPU, and these shares don't fill {resources['GPU']:g} of them without a rest ({told})",
            "choose shares that add up to whole GPUs, such as 0.75 and 0.25",
        )
    members = [name for name in resources if name.startswith("node:") and name != "node:__internal_head__"]
    if config.store.is_embedded and max(len(members), len(nodes)) > 1:
        pinned = config.actors.resources and config.ranks.resources
        what = f"the cluster has {max(len(members), len(nodes))} machines, and the embedded store listens on loopback"
        if pinned:
            yield f"{what}: actors and ranks must be pinned to the driver's machine; else give a store.url"
        else:
            action = "start a Redis or Valkey and give its store.url, or use a cluster of one machine"
            yield Problem("store.url", what, action)
    if resources.get("GPU") and not any(role.each.get("GPU") for role in roles):
        yield (
            f"the cluster has {resources['GPU']:g} GPUs and every role computes on CPUs: to use them add "
            "actors.num_gpus=1 ranks.num_gpus=1 (configs/gpu.yaml)"
        )


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


def _told(key: str, message: str) -> Problem:
    """An error of another room, "what; what to do" or "key=value: what to do", as a problem."""
    what, _, action = message.rpartition("; ") if "; " in message else message.partition(": ")
    named = what.split("=")[0]
    if named.startswith(f"{key}.") and named.replace(".", "").isidentifier():
        key = named
    return Problem(key, what, action)


def _fits(each: Mapping[str, float], node: Mapping[str, float]) -> bool:
    return all(amount <= node.get(name, 0) * (1 + 1e-9) for name, amount in each.items())


def _size(node: Mapping[str, float]) -> tuple[float, float]:
    return node.get("GPU", 0), node.get("CPU", 0)


def _setting(role: str, resource: str) -> str:
    return {"CPU": f"{role}.num_cpus", "GPU": f"{role}.num_gpus"}.get(resource, f"{role}.resources")


def _amounts(resources: Mapping[str, float]) -> str:
    shown = {k: v for k, v in resources.items() if not k.startswith("node:") and "memory" not in k}
    return ", ".join(f"{v:g} {k}" for k, v in shown.items()) or "nothing"


def _wh(size: Size) -> str:
    return f"{size[1]}x{size[0]}"


def _mib(count: float) -> str:
    return f"{count / 2**20:.4g} MiB" if count < 2**30 else f"{count / 2**30:.4g} GiB"
