"""Passes of at most so many rows through a network, and what happens when memory runs out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from restoration.trouble import free_memory, is_memory


class InBatches(Protocol):
    """A scorer whose `batch` rows a pass are halved when memory runs out."""

    name: str
    device: torch.device
    batch: int


def in_passes(
    scorer: InBatches, total: int, scores: Callable[[int, int], Tensor], filled: bool = False, kept: bool = False
) -> Tensor:
    """The scores of `total` rows, float32 [total].

    Args:
        scores: of the rows from start to stop, at most `scorer.batch`.
        filled: every pass has `scorer.batch` rows, whatever it is asked for.
        kept: the batch must not become smaller.

    Raises:
        MemoryError: not even one row fits, or `kept` forbids a smaller batch.
    """
    parts, start = [], 0
    while start < total:
        stop = min(start + scorer.batch, total)
        try:
            parts.append(scores(start, stop))
        except (RuntimeError, MemoryError) as error:
            if not is_memory(error):
                raise
            _halve(scorer, error, scorer.batch if filled else stop - start, kept)
            continue
        start = stop
    return torch.cat(parts)


def _halve(scorer: InBatches, error: BaseException, count: int, kept: bool) -> None:
    """Go on with half of the `count` rows that were too many."""
    free_memory(error)
    told = f"scorer {scorer.name}: not enough memory on {scorer.device} for {count} pictures at once"
    if count == 1:
        raise MemoryError(f"{told}: give the scorer a device with more memory, or set dtype=bfloat16") from error
    if kept:
        raise MemoryError(
            f"{told}, and deterministic=true keeps the batch: set batch={count // 2}, for all replicas"
        ) from error
    scorer.batch = count // 2
    warnings.warn(f"{told}: {scorer.batch} from here on; set batch={scorer.batch}", stacklevel=5)
