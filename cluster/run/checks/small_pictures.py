"""Pictures of a run against the smallest ones that its metrics and scorers take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cluster.config.recipe import RunConfig
from cluster.config.tree import Problem
from restoration.datasets.matching import some
from restoration.metrics.full_reference import FULL_REFERENCE
from restoration.metrics.protocols import SSIM_WINDOW
from reward_service.scorers import LEAST_SIDE


def small_pictures(
    config: RunConfig, heldout: Sequence[tuple[int, int]], names: Sequence[str]
) -> Iterator[Problem | str]:
    """Held-out pictures that will lack a figure, and crops that the reward refuses.

    Args:
        heldout: (height, width) of each.
        names: their ids, in the same order.
    """
    crop, terms, of_reward = config.rollout.crop, config.reward.resolved, list[tuple[str, str, int]]()
    for term in terms.terms:
        key = f"{config.reward.key(term.name)}.scorer"
        # of a class by its path only its replicas can tell
        least = LEAST_SIDE.get(term.scorer, 1) if term.served else FULL_REFERENCE[term.scorer][1]
        if 0 < crop < least and term.weight:
            what = f"{crop} pixels, and {term.scorer} takes pictures of at least {least} pixels a side"
            yield Problem("rollout.crop", what, f"set at least {least}, or choose another {key}")
        if term.served:
            of_reward.append((key, term.scorer, least))
    for key, figure, side in (
        ("evaluation.protocol", "SSIM", SSIM_WINDOW),
        *of_reward,
        *(("evaluation.scorers", name, LEAST_SIDE.get(name, 1)) for name in config.evaluation.scorers),
    ):
        small = [f"{name} {w}x{h}" for name, (h, w) in zip(names, heldout, strict=True) if min(h, w) < side]
        if small:
            lost = "evaluations leave them out" if key.startswith("reward") else "its means leave them out"
            yield (
                f"{key}: {figure} takes pictures of at least {side} pixels a side, and {len(small)} of {len(heldout)} "
                f"held-out ones are smaller ({some(small, 3)}): {lost}; replace them, or choose another"
            )
