"""What networks compute over all of a picture, for networks that see it in tiles.

A group norm takes mean and variance over all pixels that it is given, Restormer compares channels and an autoencoder's
middle block places over all of them. So a network takes a tile for a picture of its own, and two neighbours on a ramp
both come out in the same middle grey. Here such statistics are estimated once for a picture and then used in all its
tiles, which thus agree.

They are estimated on samples: pieces of the picture that go through the network as one batch, while each statistic is
pooled over them (`sampling`). So each layer's are those of features that the pooled ones before have shaped, as in the
whole picture. Pieces have the picture's own resolution: a reduced copy is sharper than its picture, and reduced
latents have lost their noise, both of which the statistics would show. In a tile (`given`) the networks then ask for
the same statistics in the same order.

Stock networks stay as they are: in both contexts their group norms and, on request, their attentions between places are
intercepted. Own networks ask by `over_picture` and `beyond`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from restoration.tiling import Pieces

Part = Callable[[Tensor], Tensor]
"""Cuts the places [..., h, w] that count out of what a network sees."""

Pool = Callable[[Tensor, Tensor], Tensor]
"""Of what parts say, [B, parts, ...], and their weights, float32 [parts], what a picture says, [B, ...]."""

MARGIN = 8  # at each edge of a piece an eighth of it lacks context


class Statistics:
    """Of one run of networks over a batch of B pictures, in the order in which they are asked for, [B, ...] each.

    Args:
        attention: stock networks' attentions between places look at the sample, too.
    """

    def __init__(self, attention: bool = False) -> None:
        self.attention = attention
        self.pooled: list[Tensor] = []
        self.coverage = 1.0  # of the picture by the last sample
        self._said: dict[int, tuple[Tensor, Tensor]] = {}  # by all parts so far, [B, parts, ...], and weights

    def add(self, index: int, said: Tensor, weights: Tensor, pool: Pool) -> Tensor:
        """Pool what further parts say, [B, parts, ...], with what others have said of the same statistic."""
        if index in self._said:
            before, their_weights = self._said[index]
            said, weights = torch.cat([before, said], 1), torch.cat([their_weights, weights])
        self._said[index] = said, weights
        return self.set(index, pool(said, weights / weights.sum()))

    def set(self, index: int, value: Tensor) -> Tensor:
        """`value`, [B, ...], is what tiles are given, in the place of what an earlier sample may have said."""
        self.pooled[index : index + 1] = [value]
        return value


class _Context(TorchFunctionMode, ABC):
    """A run of networks over parts of pictures, of which `rows` of a batch belong to one picture."""

    def __init__(self, statistics: Statistics, rows: int) -> None:
        super().__init__()
        self.statistics, self.rows, self.asked = statistics, rows, 0

    def next(self) -> int:
        self.asked += 1
        return self.asked - 1

    @abstractmethod
    def over(self, said: Callable[[Part], Tensor], pool: Pool) -> Tensor: ...

    @abstractmethod
    def beyond(self, tokens: Tensor) -> tuple[Tensor, float] | None: ...

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.group_norm:
            func = _group_norm
        elif func is F.scaled_dot_product_attention and self.statistics.attention:
            func = _attention
        return func(*args, **(kwargs or {}))


class _Sampling(_Context):
    def __init__(self, statistics: Statistics, pieces: Pieces) -> None:
        super().__init__(statistics, len(pieces.corners))
        self.pieces = pieces
        statistics.coverage = pieces.coverage

    def over(self, said: Callable[[Part], Tensor], pool: Pool) -> Tensor:
        both = [said(part).unflatten(0, (-1, self.rows)) for part in (self._inner, lambda x: x)]
        edges = self.edges()
        weights = both[0].new_tensor([1 - edges, edges], dtype=torch.float32).repeat_interleave(self.rows)
        return self.statistics.add(self.next(), torch.cat(both, 1), weights, pool)

    def beyond(self, tokens: Tensor) -> None:
        self.statistics.set(self.next(), tokens)

    def edges(self) -> float:
        """Weight of whole pieces beside their inner parts, with which edges weigh as much as in the picture."""
        piece = self.pieces.height, self.pieces.width

        def share(sides: tuple[int, int]) -> float:
            return 1 - math.prod(1 - 2 / MARGIN * side / of for side, of in zip(piece, sides, strict=True))

        return share(self.pieces.picture) / share(piece)

    def _inner(self, x: Tensor) -> Tensor:
        if x.ndim == 3:  # places one after the other
            height, width = self.pieces.height, self.pieces.width
            scale = (x.shape[-1] / (height * width)) ** 0.5
            x = x.unflatten(-1, (round(height * scale), round(width * scale)))
        down, across = (max(side // MARGIN, int(side >= 4)) for side in x.shape[-2:])
        return x[..., down : x.shape[-2] - down, across : x.shape[-1] - across]


class _Given(_Context):
    def __init__(self, statistics: Statistics) -> None:
        super().__init__(statistics, 1)

    def over(self, said: Callable[[Part], Tensor], pool: Pool) -> Tensor:
        return self._next()

    def beyond(self, tokens: Tensor) -> tuple[Tensor, float]:
        sampled = self._next()
        of_picture = sampled.shape[-2] / self.statistics.coverage
        return sampled, math.log(max(of_picture - tokens.shape[-2], 1) / sampled.shape[-2])

    def _next(self) -> Tensor:
        if self.asked == len(self.statistics.pooled):
            raise RuntimeError(f"a tile asks for more than the {self.asked} statistics that its picture's samples gave")
        return self.statistics.pooled[self.next()]


_current: ContextVar[_Context | None] = ContextVar("statistics", default=None)


def shared() -> bool:
    """Whether networks see parts of a picture and must ask for its statistics."""
    return _current.get() is not None


def _context() -> _Context:
    context = _current.get()
    assert context is not None, "only inside sampling() or given()"
    return context


def told_size(height: int, width: int) -> tuple[int, int]:
    """What a network that is told how large a picture it sees must be told: of a piece, the tile that it stands for."""
    context = _current.get()
    if not isinstance(context, _Sampling):
        return height, width
    pieces = context.pieces
    return height * pieces.tile[0] // pieces.height, width * pieces.tile[1] // pieces.width


def over_picture(said: Callable[[Part], Tensor], pool: Pool) -> Tensor:
    """A statistic of whole pictures, for each row of a batch of their parts; only where `shared`.

    Args:
        said: gives it, [rows, ...], of the parts that the network sees. It is handed a function that cuts away the
            places [..., h, w] that shall not count.
        pool: makes one of those of many parts.
    """
    return _context().over(said, pool).repeat_interleave(_context().rows, 0)


def joined(tokens: Tensor) -> Tensor:
    """[rows, ..., n, width] -> [pictures, ..., rows of each * n, width]: a sample's pieces see each other's places."""
    rows = _context().rows
    return tokens if rows == 1 else tokens.unflatten(0, (-1, rows)).movedim(1, -3).flatten(-3, -2)


def parted(tokens: Tensor) -> Tensor:
    """What `joined` made of tokens, as rows again."""
    rows = _context().rows
    return tokens if rows == 1 else tokens.unflatten(-2, (rows, -1)).movedim(-3, 1).flatten(0, 1)


def beyond(tokens: Tensor) -> tuple[Tensor, float] | None:
    """Of attention's keys and values in a tile, those that stand for the rest of the picture; None for a sample.

    Args:
        tokens: [pictures, ..., n, width], `joined`.

    Returns:
        The sample's [pictures, ..., m, width], and the logarithm of how many places each of them stands for.
    """
    return _context().beyond(tokens)


@contextmanager
def _entered(context: _Context) -> Iterator[None]:
    token = _current.set(context)
    try:
        with context:
            yield
    finally:
        _current.reset(token)
    if context.asked != len(context.statistics.pooled):
        raise RuntimeError(
            f"of {len(context.statistics.pooled)} statistics of a picture only {context.asked} were asked for"
        )


def sampling(statistics: Statistics, pieces: Pieces) -> AbstractContextManager[None]:
    """Inside, networks see the `pieces` of B pictures as one batch [B * pieces, ...], and `statistics` grows."""
    return _entered(_Sampling(statistics, pieces))


def given(statistics: Statistics | None) -> AbstractContextManager[None]:
    """Inside, networks see tiles [B, ...] of the B pictures whose `statistics` these are; None changes nothing.

    Raises:
        RuntimeError: networks ask for other statistics than they did of the samples.
    """
    return nullcontext() if statistics is None else _entered(_Given(statistics))


def mean(said: Tensor, weights: Tensor) -> Tensor:
    """In the type of what the parts say, also where products are taken in fewer bits (autocast)."""
    with torch.autocast(said.device.type, enabled=False):
        return torch.tensordot(said, weights, ([1], [0]))


def largest(said: Tensor, weights: Tensor) -> Tensor:
    return said.amax(1)


def _moments(said: Tensor, weights: Tensor) -> Tensor:
    """Means and variances of parts, [B, parts, ..., 2], as those of their union."""
    of_all = mean(said, weights)
    between = mean((said[..., 0] - of_all[:, None, ..., 0]).square(), weights)
    return torch.stack([of_all[..., 0], of_all[..., 1] + between], -1)


def _group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """`F.group_norm` with mean and variance of whole pictures; these are float32 whatever `x` is."""

    def said(part: Part) -> Tensor:
        groups = part(x).float().unflatten(1, (num_groups, -1))
        variance, mean = torch.var_mean(groups, tuple(range(2, groups.ndim)), correction=0)
        return torch.stack([mean, variance], -1)

    context = _context()
    moments = context.over(said, _moments).repeat_interleave(x.shape[1] // num_groups, 1)  # [B, channels, 2]
    weight, bias = (None if v is None else v.float() for v in (weight, bias))

    def normed(rows: Tensor, of: Tensor) -> Tensor:
        return F.batch_norm(rows, of[:, 0].contiguous(), of[:, 1].contiguous(), weight, bias, eps=eps)

    if len(moments) == 1:
        return normed(x, moments[0])
    result = torch.empty_like(x)
    for rows, out, of in zip(x.split(context.rows), result.split(context.rows), moments, strict=True):
        out.copy_(normed(rows, of))
    return result


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`F.scaled_dot_product_attention`; where it is between places, those of a tile see the sample, too."""
    if args or kwargs.get("attn_mask") is not None or key.shape != query.shape:
        return F.scaled_dot_product_attention(query, key, value, *args, **kwargs)
    query, key, value = joined(query), joined(key), joined(value)
    sampled = beyond(torch.cat([key, value], -1))
    if sampled is not None:
        others, weight = sampled
        more = others.split([key.shape[-1], value.shape[-1]], -1)
        bias = query.new_zeros(key.shape[-2] + others.shape[-2])
        bias[key.shape[-2] :] = weight
        key, value = (torch.cat(pair, -2) for pair in zip((key, value), more, strict=True))
        kwargs["attn_mask"] = bias.expand(query.shape[-2], -1)
    return parted(F.scaled_dot_product_attention(query, key, value, **kwargs))
