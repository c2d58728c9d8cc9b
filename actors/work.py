"""What the driver asks of an actor and what the actor answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from restoration.spans import Spans


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
    """Outcome of one item: groups in the stream, groups that can't be had, seconds spent by phase, and when that was.

    What could be had at another try (a late reward, a full stream) is no report: the call raises.
    """

    index: int
    weights_version: int
    published: int
    quarantined: tuple[Quarantined, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    spans: Spans | None = None


class WorkSequence:
    """Endless shuffled passes over the training images, addressable by batch index.

    The permutation of a pass is drawn once and kept, so an item costs what its images cost, and one draw a pass (less
    than a second for 10 million images). A keyed permutation that needs no memory would give another order; 40 MB at
    10 million images are little beside the ids themselves. A batch may lie across the border of two passes, hence two
    are kept; going back further draws again.

    Raises:
        ValueError: no images, or batches of none.
    """

    def __init__(self, image_ids: Sequence[str], images_per_batch: int, seed: int) -> None:
        if not image_ids:
            raise ValueError("work: there are no training images; check data.train")
        if images_per_batch < 1:
            raise ValueError(f"rollout.images_per_batch={images_per_batch}: at least 1")
        # A tuple of texts, unlike a list, is not walked through by every full garbage collection.
        self.image_ids = tuple(sorted(image_ids))
        self.images_per_batch, self.seed = images_per_batch, seed
        self._passes: dict[int, np.ndarray] = {}  # the last used comes last

    def item(self, index: int) -> WorkItem:
        """The batch at `index` >= 0."""
        count, size = len(self.image_ids), self.images_per_batch
        chosen = [self._image(*divmod(place, count)) for place in range(index * size, (index + 1) * size)]
        return WorkItem(index, tuple(chosen))

    def _image(self, number: int, place: int) -> str:
        order = self._passes.pop(number, None)
        if order is None:
            order = self._permutation(number)
            for oldest in list(self._passes)[:-1]:
                del self._passes[oldest]
        self._passes[number] = order
        return self.image_ids[order[place]]

    def _permutation(self, number: int) -> np.ndarray:
        count = len(self.image_ids)
        order = np.random.default_rng((self.seed, number)).permutation(count)
        return order.astype(np.uint32) if count < 2**32 else order
