"""What the driver asks of an actor and what the actor answers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class WorkItem:
    """One rollout batch: images by id, everything random derived from `index` and the run's seed.

    `index` is its place in the endless, shuffled sequence of batches, so a lost item can be rolled out
    again and gives the same group ids.
    """

    index: int
    image_ids: tuple[str, ...]

    @property
    def group_ids(self) -> tuple[str, ...]:
        """The ids that its groups are published under, one an image."""
        return tuple(f"{self.index:08d}-{place:03d}" for place in range(len(self.image_ids)))


@dataclass(frozen=True)
class Quarantined:
    """Something that can't be used, with the word that counts it and the error's text."""

    what: str
    reason: str
    detail: str


@dataclass(frozen=True)
class WorkReport:
    """Outcome of one item: groups in the stream, groups that can't be had, seconds spent by phase.

    What could be had at another try (a late reward, a full stream) is no report: the call raises.
    """

    index: int
    weights_version: int
    published: int
    quarantined: tuple[Quarantined, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


class WorkSequence:
    """Endless shuffled passes over the training images, addressable by batch index."""

    def __init__(self, image_ids: list[str], images_per_batch: int, seed: int) -> None:
        self.image_ids, self.images_per_batch, self.seed = sorted(image_ids), images_per_batch, seed

    def item(self, index: int) -> WorkItem:
        count = len(self.image_ids)
        places = range(index * self.images_per_batch, (index + 1) * self.images_per_batch)
        chosen = [self.image_ids[self._permutation(place // count)[place % count]] for place in places]
        return WorkItem(index, tuple(chosen))

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.image_ids))
