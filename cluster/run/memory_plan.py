"""Memory of each role, by what it is kept for: weights from their shapes, activations counted on the meta device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from cluster.config.recipe import RunConfig
from cluster.run.flow import Flow, Size, evaluated_together
from restoration.activations import acting, training
from restoration.base_models import ModelFacts
from restoration.footprint import Counts, Setup, actor_bytes, counts_of, rank_bytes
from restoration.images import images_within
from restoration.metrics.full_reference import device_bytes
from restoration.precision import AUTO, DTYPES

CONTEXT = 1 << 30  # of CUDA and its libraries, about
AHEAD = 2  # batches that a rank holds: the one it steps on, and the next, which is fetched meanwhile


@dataclass(frozen=True)
class RoleMemory:
    """Bytes of one process of a role, by what they are.

    Attributes:
        kept: on its device, all the time.
        passes: on its device, one of them at a time.
        host: besides, in main memory.
    """

    role: str
    kept: Mapping[str, int]
    passes: Mapping[str, int] = field(default_factory=dict)
    host: Mapping[str, int] = field(default_factory=dict)

    @property
    def device_bytes(self) -> int:
        """At the worst moment."""
        return sum(self.kept.values()) + max(self.passes.values(), default=0)


def memory_plan(config: RunConfig, facts: ModelFacts, moved: Flow, heldout: Sequence[Size]) -> list[RoleMemory]:
    """Of an actor and of a learner rank.

    Args:
        heldout: sizes of the pictures that are evaluated.
    """
    counts = counts_of(facts.skeleton, config.adapt.targets)
    return [_actor(config, facts, counts, moved, heldout), _rank(config, facts, counts, moved)]


def setup_of(config: RunConfig, compute: torch.dtype) -> Setup:
    """How weights are kept where the policy's products are taken in `compute`."""
    return Setup(
        mode=config.adapt.mode,
        rank=config.adapt.rank,
        frozen_bytes=frozen_type(config, compute).itemsize,
        compute_bytes=compute.itemsize,
        zero_stage=config.optimiser.zero_stage,
        ranks=config.ranks.count,
        offload=config.optimiser.offload == "cpu",
        reference=config.objective.needs_reference,
        average=config.optimiser.ema > 0,
    )


def frozen_type(config: RunConfig, compute: torch.dtype) -> torch.dtype:
    """Of weights that aren't trained, where the policy's products are taken in `compute`; `auto` as a GPU takes it."""
    return torch.float32 if compute == torch.float32 else _type(config.adapt.frozen_dtype)


def _type(name: str) -> torch.dtype:
    """A setting's, `auto` as a GPU takes it."""
    return torch.bfloat16 if name == AUTO else DTYPES[name]


def _actor(config: RunConfig, facts: ModelFacts, counts: Counts, moved: Flow, heldout: Sequence[Size]) -> RoleMemory:
    rollout, guidance = config.rollout, config.sampler.guidance_scale
    compute = _type(rollout.denoise_dtype)
    setup, frozen = setup_of(config, compute), frozen_type(config, compute)
    types = (_type(rollout.condition_dtype), compute, _type(rollout.decode_dtype))
    together = images_within(rollout.decode_pixels, *moved.picture)
    rolled = acting(
        facts.skeleton,
        rollout.images_per_batch,
        rollout.rollouts_per_image,
        *moved.picture,
        guidance_scale=guidance,
        decoded=min(rollout.decode_batch, together),
        dtypes=types,
    )
    rows = rollout.images_per_batch * rollout.rollouts_per_image
    numbers = rows * moved.latent[0] * moved.latent[1] * moved.latent[2]
    chain = numbers * 4 * 3 * (moved.decisions + 1)  # states, targets and clean estimates, float32
    pictures = rows * 3 * moved.picture[0] * moved.picture[1] * 4
    passes = {
        "condition": rolled["condition"] * min(together, rollout.images_per_batch) // rollout.images_per_batch,
        "denoise": rolled["denoise"] + rolled["held"] + chain,
        "decode": rolled["decode"] + rolled["held"] + chain + 2 * pictures,
    }
    height, width, batch = evaluated_together(config, facts.size_multiple, heldout)
    judging = _type(config.evaluation.dtype) if frozen == torch.float32 else frozen
    judged = acting(
        facts.skeleton, batch, 1, height, width, guidance_scale=guidance, decoded=batch, dtypes=(judging,) * 3
    )
    passes["evaluation"] = max(judged[k] for k in ("condition", "denoise", "decode")) + judged["held"]
    host = {"records of a batch": rollout.images_per_batch * moved.group_bytes, "while loading": _loaded(counts, setup)}
    kept = actor_bytes(counts, setup) | _compared(config, moved)
    return RoleMemory("actor", kept, passes, host)


def _compared(config: RunConfig, moved: Flow) -> dict[str, int]:
    """Of terms that compare with the ground truth: their networks, and their work.

    One rollout is compared while the next is denoised, so that the work comes on top of any pass.
    """
    rollout, found = config.rollout, dict[str, int]()
    pictures = rollout.images_per_batch * rollout.rollouts_per_image
    for term in config.reward.resolved.trained:
        if not term.served:
            network, work = device_bytes(term.scorer, pictures, *moved.picture)
            found |= {f"{term.name}: network": network, f"{term.name}: work, beside a pass": work}
    return found


def _rank(config: RunConfig, facts: ModelFacts, counts: Counts, moved: Flow) -> RoleMemory:
    setup = setup_of(config, _type(config.learner.dtype))
    kept, host = rank_bytes(counts, setup)
    learner, guidance = config.learner, config.sampler.guidance_scale
    passes = {}
    if config.objective.needs_policy or config.objective.needs_sft:
        passes["forward and backward"] = training(
            facts.skeleton,
            config.adapt,
            learner.micro_batch,
            *moved.picture,
            guidance_scale=guidance if config.objective.needs_policy else 1.0,
            checkpointing=learner.gradient_checkpointing,
            dtype=_type(learner.dtype),
        )
    share = -(-config.source.groups_per_step // config.ranks.count)
    groups = AHEAD * share * moved.group_bytes
    return RoleMemory("rank", kept, passes, host | {"groups": groups, "while loading": _loaded(counts, setup)})


def _loaded(counts: Counts, setup: Setup) -> int:
    """Weights pass through main memory on their way to a device."""
    return setup.frozen(counts) * setup.frozen_bytes + setup.trained(counts) * 4
