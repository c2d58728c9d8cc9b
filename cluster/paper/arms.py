"""What is done to a base model before it is measured: the rows of the paper's tables, by switches of a recipe. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BASE, OURS, ITERATED = "base", "ours", "iterated"


@dataclass(frozen=True)
class Arm:
    """
    Attributes:
        words: `key=value` that turn the base model's recipe, which is that of `ours`, into this one.
        trains: false for the base model as it is.
        after: an arm that must be trained before, whose result this one starts from.
    """

    name: str
    words: tuple[str, ...] = ()
    trains: bool = True
    after: str | None = None


ARMS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm(BASE, trains=False),
        Arm("diff_sft", ("objective.recipe=diff_sft",)),
        Arm(OURS),
        Arm("rec_reward", ("reward.terms=[{weight: 0}, {scorer: reconstruction}]",)),
        Arm("no_weights", ("objective.use_weights=false",)),
        Arm("sampled_action", ("rollout.action_target=sampled",)),
        Arm("reward_final", ("rollout.reward_at=final",)),
        Arm("norm_track", ("advantage.stats=track",)),
        Arm("qalign_reward", ("reward.scorer=qalign", "reward.params={weights: weights/one-align, batch: 32}")),
        Arm("clip_iqa_reward", ("reward.scorer=clip_iqa", "reward.params={model: weights/RN50.pt}")),
        # Another round from where the first ended, by a reward that learned from ratings of the first one's results.
        Arm(ITERATED, after=OURS),
    )
}


def arm_of(name: str) -> Arm:
    """Raises ValueError: no such arm."""
    if name not in ARMS:
        raise ValueError(f"no arm {name!r}; choose one of {', '.join(ARMS)}")
    return ARMS[name]
