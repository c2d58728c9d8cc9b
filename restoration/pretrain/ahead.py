"""Batches of a training, made ahead by processes beside it where there are cores for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import cv2
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Batch = tuple[Tensor, ...]
LONGEST_S = 600.0  # that a worker may take for a batch


class _Made(Dataset[Batch]):
    def __init__(self, make: Callable[[int], Batch]) -> None:
        self.make = make

    def __getitem__(self, iteration: int) -> Batch:
        return self.make(iteration)


class Ahead:
    """The batch of an iteration, which must be a function of its number alone, so that any number can be the first.

    Args:
        make: the batch of an iteration; runs in the workers, if there are any.
        workers: processes that make batches ahead; 0 makes each when it is asked for.
    """

    def __init__(self, make: Callable[[int], Batch], workers: int) -> None:
        self.make, self.workers = make, workers
        self._next = -1
        self._made: Iterator[Any] = iter(())

    def __call__(self, iteration: int) -> Batch:
        """Asked for in order, or workers start again from `iteration`. Raises what `make` raises."""
        if not self.workers:
            return self.make(iteration)
        if iteration != self._next:
            loader = DataLoader(
                _Made(self.make),
                batch_size=None,
                sampler=count(iteration),  # type: ignore[arg-type]
                num_workers=self.workers,
                prefetch_factor=4,
                timeout=LONGEST_S,
                worker_init_fn=_alone,
            )
            self._made, self._next = iter(loader), iteration
        self._next += 1
        return tuple(next(self._made))


def _alone(worker: int) -> None:
    cv2.setNumThreads(0)  # the threads of the process that this one is a copy of are not in it
