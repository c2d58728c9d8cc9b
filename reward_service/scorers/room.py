"""Memory that stays: the pages of fresh memory cost as much as the sums that are computed in them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

MOST_BYTES = 64 << 20
"""Of what one part of the pictures takes; a room that had to be larger isn't kept."""
_ALIGNED = 64
_free: list[Room] = []


class Room:
    """What is taken of it is given back all at once. One thread has it at a time."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)
        self._used = self._most = 0

    def take(self, like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of any content, on the device of another and of its type, if no other is given."""
        dtype = dtype or like.dtype
        if like.device.type != "cpu":
            return like.new_empty(shape, dtype=dtype)
        start, size = self._used, math.prod(shape) * dtype.itemsize
        self._used = start + size + (-size) % _ALIGNED
        self._most = max(self._most, self._used)
        if self._used > len(self._memory):  # only the first time: the next one finds room
            return torch.empty(shape, dtype=dtype)
        return torch.from_numpy(self._memory[start : start + size]).view(dtype).view(shape)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """What is taken in the block is given back at its end."""
        before = self._used
        try:
            yield
        finally:
            self._used = before

    def empty(self) -> None:
        """Nobody needs what was taken any more."""
        if self._most > len(self._memory):
            self._memory = np.empty(self._most if self._most <= MOST_BYTES else 0, np.uint8)
        self._used = self._most = 0


@contextmanager
def room() -> Iterator[Room]:
    """One that nobody uses; what is taken of it must not leave the block."""
    found = _free.pop() if _free else Room()
    try:
        yield found
    finally:
        found.empty()
        _free.append(found)
