"""Whether anybody tried the reward on this task, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cluster.config.recipe import RunConfig
from cluster.trust.stored import find, key_of


def reward_trust(config: RunConfig, heldout: Sequence[str]) -> Iterator[str]:
    """A warning where no check of this reward, data and model is stored, or where it speaks against the reward.

    Args:
        heldout: ids of the held-out pictures.
    """
    if not any(term.served for term in config.reward.resolved.trained):
        return  # the distance to the ground truth is no judge that could be fooled
    found = find(key_of(config, heldout))
    if found is None:
        yield (
            "reward: nobody has tried whether it can be trusted for this data and model; minutes beforehand may save "
            "the run: restorl reward check CONFIG"
        )
    elif found.word == "no":
        yield f"reward: {found.sentence}; see {found.file}"
