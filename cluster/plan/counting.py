"""Arithmetic and memory of a recipe, counted on the meta device: seconds of work, with neither weights nor a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch

from cluster.config.recipe import RunConfig
from cluster.plan.estimate import Arithmetic
from cluster.plan.model import PlanError
from cluster.plan.recipe import services_of
from cluster.run.flow import Flow, Size
from cluster.run.memory_plan import CONTEXT, RoleMemory, frozen_type, memory_plan, setup_of
from cluster.run.reward_memory import OWLS, owl_config, reward_memory
from restoration.base_models import ModelFacts
from restoration.checkpoints import empty
from restoration.flops import Flops, pass_flops
from restoration.footprint import counts_of, rank_bytes
from restoration.precision import DTYPES
from reward_service.scorers.mplug_owl2.config import OwlConfig
from reward_service.scorers.mplug_owl2.network import LevelReader, Owl2
from reward_service.settings import RewardSettings

GIB = 2**30


def arithmetic(config: RunConfig, facts: ModelFacts, moved: Flow) -> Arithmetic:
    """Of one picture or row of what is rolled out; number types resolved (`checks.roles.as_here`)."""
    found = pass_flops(
        facts.skeleton,
        config.adapt,
        *moved.picture,
        guidance_scale=config.sampler.guidance_scale,
        checkpointing=config.learner.gradient_checkpointing,
    )
    counts, compute = counts_of(facts.skeleton, config.adapt.targets), DTYPES[config.learner.dtype]
    setup = setup_of(config, compute)
    weights = counts.policy * frozen_type(config, compute).itemsize
    score = {name: flops for name, of in services_of(config).items() if (flops := scorer_flops(of)) is not None}
    return Arithmetic(
        condition=found.condition,
        denoise=found.denoise,
        decode=found.decode,
        replay=found.replay,
        sft=found.sft,
        forward=found.denoise,
        frozen_bytes=weights,
        trained=setup.trained(counts),
        score=score,
    )


def scorer_flops(reward: RewardSettings) -> float | None:
    """FLOP of a picture; None where the size of the scorer isn't known, and of one that stands alone."""
    if reward.scorer not in OWLS or reward.app is not None:
        return None
    return _owl_flops(owl_config(reward.params))


@lru_cache(maxsize=4)
def _owl_flops(config: OwlConfig) -> float:
    with torch.device("meta"), torch.no_grad():
        reader = LevelReader(empty(lambda: Owl2(config)))
        side = config.vision.image_size
        with Flops() as counted:
            reader(torch.empty(1, 3, side, side))
    return float(counted.total)


def memory_of(config: RunConfig, facts: ModelFacts, moved: Flow, heldout: Sequence[Size]) -> list[RoleMemory]:
    """Of an actor, a rank, and a replica of each service whose scorer's size is known."""
    own = {name: of for name, of in services_of(config).items() if of.app is None}
    replicas = [reward_memory(of, name) for name, of in own.items()]
    return [*memory_plan(config, facts, moved, heldout), *filter(None, replicas)]


def with_ranks(config: RunConfig, facts: ModelFacts, rank: RoleMemory, count: int) -> RoleMemory:
    """The memory of a rank, where there are `count` of them."""
    setup = replace(setup_of(config, DTYPES[config.learner.dtype]), ranks=count)
    kept, _ = rank_bytes(counts_of(facts.skeleton, config.adapt.targets), setup)
    return replace(rank, kept=kept)


def ranks_that_fit(
    config: RunConfig, facts: ModelFacts, rank: RoleMemory, room: float, most: int, kind: str
) -> list[int]:
    """The numbers of ranks, ascending, each of which has `room` bytes of its GPU for itself.

    Raises:
        PlanError: it is too little, however many there are.
    """
    if config.ranks.num_gpus == 0:
        return [config.ranks.count]
    counts = range(1, max(1, most) + 1) if config.ranks.num_gpus == 1 else range(1, 2)
    worst = max(rank.passes.values(), default=0)
    setup, numbers = setup_of(config, DTYPES[config.learner.dtype]), counts_of(facts.skeleton, config.adapt.targets)
    needs = {n: sum(rank_bytes(numbers, replace(setup, ranks=n))[0].values()) + worst + CONTEXT for n in counts}
    found = [n for n, need in needs.items() if need <= room]
    if not found:
        told = "" if len(needs) == 1 else f" even as one of {max(needs)}"
        raise PlanError(
            f"ranks: a rank needs about {min(needs.values()) / GIB:.1f} GiB{told}, and {room / GIB:.1f} of a {kind} "
            "are its; give more GPUs with optimiser.zero_stage=3, lower learner.micro_batch or rollout.crop, set "
            "learner.gradient_checkpointing=true or optimiser.offload=cpu, or take larger GPUs"
        )
    return found


def require_room(role: RoleMemory, share: float, memory: float, key: str, kind: str) -> None:
    """Raises:
    PlanError: a process of the role needs more than its share of a GPU.
    """
    room, need = min(share, 1.0) * memory, role.device_bytes + CONTEXT
    if share and need > room:
        worst = max(role.passes, key=lambda name: role.passes[name], default="weights")
        raise PlanError(
            f"{key}: a process needs about {need / GIB:.1f} GiB ({worst}), and num_gpus={share:g} of a {kind} is "
            f"{room / GIB:.1f}; lower the batches or crops of that, reserve more, or take larger GPUs"
        )
