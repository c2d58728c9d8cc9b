"""Keys that were set and change nothing: someone who sets one expects it to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

from cluster.config.recipe import RunConfig
from cluster.jobs import effective_address

OF_LOCAL = ("num_cpus", "num_gpus", "resources", "object_store_mb", "dashboard_port", "metrics_port")


def idle_keys(config: RunConfig) -> Iterator[str]:
    """A sentence for each key that differs from its default without any effect."""
    objective, advantage, rollout = config.objective, config.advantage, config.rollout
    local = effective_address(config.cluster) == "local"
    external = not config.store.is_embedded
    replayed = objective.needs_policy
    cases: list[tuple[bool, str, tuple[str, ...], str]] = [
        (config.adapt.mode == "full", "adapt", ("rank", "alpha", "targets"), "adapt.mode=full trains no LoRA"),
        (not replayed, "objective", ("clip",), f"objective.recipe={objective.recipe} replays no decision"),
        (not replayed, "learner", ("old_log_probs",), f"objective.recipe={objective.recipe} replays no decision"),
        (objective.recipe != "ours", "objective", ("rl_coef", "kl_beta"), f"objective.recipe={objective.recipe}"),
        (objective.recipe == "base", "objective", ("sft_coef", "use_weights"), "objective.recipe=base trains nothing"),
        (not objective.use_weights, "objective", ("difficulty_norm",), "objective.use_weights=false"),
        (advantage.stats != "track", "advantage", ("min_count",), f"advantage.stats={advantage.stats}"),
        (advantage.stats == "batch", "advantage", ("track_length",), "advantage.stats=batch keeps no track"),
        (rollout.reward_at == "final", "rollout", ("reward_stride",), "rollout.reward_at=final scores the last alone"),
        (
            rollout.reward_at == "final" or rollout.reward_stride == 1,
            "advantage",
            ("unscored",),
            "every decision has a reward",
        ),
        (
            bool(config.reward.terms) and all("scorer" in term for term in config.reward.terms),
            "reward",
            ("scorer", "params", "app"),
            "each of reward.terms names a scorer of its own",
        ),
        (not local, "cluster", OF_LOCAL, f"cluster.address={config.cluster.address} is a cluster that runs already"),
        (local, "cluster", ("token_path",), "a local cluster makes its own token"),
        (not config.optimiser.zero_stage, "optimiser", ("bucket_mb",), "optimiser.zero_stage=0 sends nothing by ZeRO"),
        (not external, "store", ("password_env",), "the embedded store makes its own password"),
        (external, "store", ("embedded_maxmemory", "start_timeout_s"), "store.url names a server of yours"),
        (config.evaluation.every > config.iterations, "evaluation", ("every",), "iterations are fewer: ends only"),
    ]
    for holds, section, names, why in cases:
        if holds:
            yield from _set(getattr(config, section), section, names, why)
    if config.optimiser.zero_stage and config.learner.norms_every:
        yield (
            f"learner.norms_every={config.learner.norms_every}: the gradient norms of RL and SFT are not measured "
            f"under ZeRO (optimiser.zero_stage={config.optimiser.zero_stage}); set learner.norms_every=0"
        )
    if config.optimiser.zero_stage and config.ranks.count == 1:
        yield (
            f"optimiser.zero_stage={config.optimiser.zero_stage} with ranks.count=1: there is no other rank to shard "
            "over; set optimiser.zero_stage=0 or raise ranks.count"
        )


def _set(settings: Any, section: str, names: tuple[str, ...], why: str) -> Iterator[str]:
    for field in fields(settings):
        if field.name in names:
            usual = field.default_factory() if field.default_factory is not MISSING else field.default
            if (value := getattr(settings, field.name)) != usual:
                yield f"{section}.{field.name}={value}: has no effect, because {why}; leave it out"
