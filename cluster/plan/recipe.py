"""What the cost model takes from a recipe: the shape of an iteration, what roles reserve, what costs depend on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.config.recipe import RunConfig
from cluster.plan.estimate import Chain
from cluster.plan.model import REWARD, Counts, Loop
from cluster.plan.search import Shares
from cluster.run.flow import Flow, Size
from restoration.evaluate import evenly
from reward_service.settings import RewardSettings


def loop_of(config: RunConfig, decisions: int) -> Loop:
    """The shape of an iteration. `decisions`: of a chain."""
    rows = config.source.groups_per_step * config.rollout.rollouts_per_image
    return Loop(
        groups=config.source.groups_per_step,
        images=config.rollout.images_per_batch,
        staleness=config.source.max_staleness,
        policy_rows=rows * decisions if config.objective.needs_policy else 0,
        sft_rows=rows if config.objective.needs_sft else 0,
        micro_batch=config.learner.micro_batch,
        updates=config.learner.updates_per_batch,
        epochs=config.learner.inner_epochs,
    )


def services_of(config: RunConfig) -> dict[str, RewardSettings]:
    """What a rollout's pictures are scored by, of terms with a weight; the only one is called `REWARD`."""
    trained = {term.name for term in config.reward.resolved.trained}
    services = {name: of for name, of in config.reward.services.items() if name in trained}
    return services if config.reward.terms else dict(zip([REWARD], services.values(), strict=False))


def counts_of(config: RunConfig) -> Counts:
    """As the recipe has them; of a service that stands alone one replica, as its number is unknown."""
    replicas = {name: 1 if of.app is not None else of.at_first for name, of in services_of(config).items()}
    return Counts(config.actors.count, config.ranks.count, replicas)


def shares_of(config: RunConfig) -> Shares:
    """GPUs that a process of each role reserves; a service that stands alone takes none of a run's."""
    replicas = {name: 0.0 if of.app is not None else of.num_gpus for name, of in services_of(config).items()}
    return Shares(config.actors.num_gpus, config.ranks.num_gpus, replicas)


def beside(config: RunConfig) -> dict[str, float]:
    """GPUs of the services of terms without a weight, which only evaluations ask and a run starts all the same."""
    trained = services_of(config)
    services = config.reward.services if config.reward.terms else {}
    found = {n: of.at_first * of.num_gpus for n, of in services.items() if of.app is None and n not in trained}
    return {name: gpus for name, gpus in found.items() if gpus}


def chain_of(config: RunConfig, moved: Flow, steps: int, heldout: Sequence[Size]) -> Chain:
    """How much a recipe computes, whose number types were resolved (`checks.roles.as_here`).

    Args:
        steps: evaluations of a chain.
        heldout: sizes of the pictures that are evaluated.
    """
    rollout, learner, objective = config.rollout, config.learner, config.objective
    chosen = evenly(list(heldout), config.evaluation.limit)
    area = sum(h * w for h, w in chosen) / len(chosen) / (moved.picture[0] * moved.picture[1])
    types = {
        "condition": rollout.condition_dtype,
        "denoise": rollout.denoise_dtype,
        "decode": rollout.decode_dtype,
        "replay": learner.dtype,
        "evaluation": "bfloat16" if config.adapt.frozen_dtype == "bfloat16" else config.evaluation.dtype,
    }
    return Chain(
        images=rollout.images_per_batch,
        rollouts=rollout.rollouts_per_image,
        steps=steps,
        decoded=len(rollout.scored(moved.decisions)),
        decode_batch=min(rollout.decode_batch, rollout.images_per_batch * rollout.rollouts_per_image),
        micro_batch=learner.micro_batch,
        forwards=int(objective.needs_reference) + int(learner.old_log_probs == "recompute"),
        group_bytes=moved.group_bytes,
        evaluated=len(chosen) * (2 if config.optimiser.ema else 1),
        every=config.evaluation.every,
        area=area,
        checkpoint_every=config.checkpoint_every,
        bf16={name: dtype == "bfloat16" for name, dtype in types.items()},
    )


def evaluation_share(chain: Chain) -> float:
    """Rollouts of an item that an iteration's part of the evaluations is worth, by rows and area."""
    return chain.evaluated * chain.area / (chain.every * chain.rows) if chain.every else 0.0


def other_costs(config: RunConfig, run: RunConfig) -> list[str]:
    """Settings that what a part costs depends on, where `run`, which was measured, has others: "key: its for ours"."""
    mine, theirs = _of_costs(config), _of_costs(run)
    return [f"{key}: {theirs.get(key)} there, {mine.get(key)} here" for key in mine if mine[key] != theirs.get(key)]


def _of_costs(config: RunConfig) -> dict[str, Any]:
    """By the setting's key."""
    rooms: dict[str, tuple[str, ...]] = {
        "sampler": tuple(vars(config.sampler)),
        "rollout": tuple(vars(config.rollout)),
        "adapt": tuple(vars(config.adapt)),
        "learner": ("micro_batch", "dtype", "gradient_checkpointing", "old_log_probs", "tf32", "compile"),
        "optimiser": ("zero_stage", "offload"),
        "actors": ("num_gpus", "threads"),
        "ranks": ("num_gpus", "threads"),
    }
    found: dict[str, Any] = {"model": str(config.model)}
    for room, names in rooms.items():
        found |= {f"{room}.{name}": getattr(getattr(config, room), name) for name in names}
    for name in ("needs_policy", "needs_sft", "needs_reference"):
        found[f"objective ({name})"] = getattr(config.objective, name)
    for name, of in services_of(config).items():
        found[f"scorer of {name}"] = (of.scorer, of.params, of.max_batch, of.num_gpus, of.threads)
    return found
