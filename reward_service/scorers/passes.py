"""Passes of at most so many rows through a network, and what happens when memory runs out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from restoration.trouble import free_memory, is_memory


class InBatches(Protocol):
    """A scorer whose `batch` rows a pass are halved when memory runs out."""

    device: torch.device
    batch: int

    @property
    def name(self) -> str: ...


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


def spread_over_places(scores: Callable[[Sequence[int]], Tensor], batch: int) -> float:
    """The most that a score differs with its place in a pass and with what is beside it; 0: by no bit.

    Products of matrices, and functions at the end of a row that fills no whole vector, may depend on the place.

    Args:
        scores: of the items of these numbers, in this order; one number may come several times.
        batch: how many items there are.
    """
    places = list(range(batch))
    plain, first = scores(places), scores([0] * batch)
    spread = _difference(first, plain[:1].expand(batch))
    for shift in sorted({1, batch // 2, batch - 1} - {0}):
        moved = scores(places[shift:] + places[:shift]).roll(shift)
        spread = max(spread, _difference(moved, plain))
    return spread


def _difference(these: Tensor, those: Tensor) -> float:
    apart = (these - those).abs()[~(these.isnan() & those.isnan())]
    return float(apart.nan_to_num(torch.inf, torch.inf).max()) if len(apart) else 0.0
