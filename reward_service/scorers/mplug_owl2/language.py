"""The language model: LLaMA whose keys, values and norms have one set of weights for words, another for pictures.

A sequence is text, the tokens of one picture, text; where the picture stands is a pair of host integers, equal in all
rows, so that nothing in a pass waits for the device. Modules and parameters are named as in the released files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from reward_service.scorers.mplug_owl2.config import OwlConfig

Span = tuple[int, int]
"""Where the picture's tokens begin and end in the sequence that is computed; equal where there are none."""
NO_IMAGE: Span = (0, 0)
Kind = tuple[bool, Tensor]
"""Neighbouring tokens of one kind [B, n, width], and whether they are the picture's."""
KeysValues = tuple[Tensor, Tensor]
"""Of one layer, turned to their places: [B, heads, tokens, channels] each."""


class Rotation(NamedTuple):
    """Cosines and sines of places, [tokens, channels of a head] each."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, config: OwlConfig, start: int, stop: int, like: Tensor) -> Rotation:
        """For the places `start` to `stop`, on the device and of the type of `like`; computed in float32."""
        pairs = torch.arange(0, config.head_size, 2, device=like.device, dtype=torch.float32)
        places = torch.arange(start, stop, device=like.device, dtype=torch.float32)
        angles = torch.outer(places, config.rope_theta ** -(pairs / config.head_size)).repeat(1, 2)
        return cls(angles.cos().to(like.dtype), angles.sin().to(like.dtype))

    def last(self) -> Rotation:
        return Rotation(self.cos[-1:], self.sin[-1:])

    def turn(self, x: Tensor) -> Tensor:
        """[B, heads, tokens, channels]; a channel's partner is half a head away."""
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin


def causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """bool [queries, keys]: the last query sees all keys, the one before it all but the last, and so on."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def kinds(x: Tensor, image: Span) -> list[Kind]:
    """Tokens [B, N, width] by their kinds, each copied together.

    A slice in place would be multiplied row by row of the batch, of 65 or 12 tokens each: a GPU's tiles have 128.
    """
    start, stop = image
    parts = [(False, x[:, :start]), (True, x[:, start:stop]), (False, x[:, stop:])]
    return [(picture, part.contiguous()) for picture, part in parts if part.shape[1]]


class RMSNorm(nn.Module):
    def __init__(self, config: OwlConfig) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(config.hidden_size)), config.rms_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], eps=self.eps) * self.weight


class MultiwayLinear(nn.Module):
    """Text goes through the first layer, the picture through the second."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.multiway = nn.ModuleList([nn.Linear(inputs, outputs, bias=False) for _ in range(2)])

    def forward(self, parts: Sequence[Kind]) -> Tensor:
        """Of `kinds`."""
        done = [self.multiway[picture](part) for picture, part in parts]
        return done[0] if len(done) == 1 else torch.cat(done, 1)


class MultiwayNorm(nn.Module):
    """One normalisation, and the weight of each token's kind."""

    def __init__(self, config: OwlConfig) -> None:
        super().__init__()
        self.multiway = nn.ModuleList([RMSNorm(config) for _ in range(2)])
        self.eps = config.rms_norm_eps

    def forward(self, x: Tensor, image: Span) -> Tensor:
        text, picture = (cast(RMSNorm, norm).weight for norm in self.multiway)
        start, stop = image
        counts = ((text, start), (picture, stop - start), (text, x.shape[1] - stop))
        weights = torch.cat([weight.expand(count, -1) for weight, count in counts])
        return functional.rms_norm(x, x.shape[-1:], eps=self.eps) * weights


class Attention(nn.Module):
    def __init__(self, config: OwlConfig) -> None:
        super().__init__()
        width, size = config.hidden_size, config.head_size
        self.size, self.shared = size, config.num_key_value_heads != config.num_attention_heads
        self.q_proj = nn.Linear(width, config.num_attention_heads * size, bias=False)
        self.k_proj = MultiwayLinear(width, config.num_key_value_heads * size)
        self.v_proj = MultiwayLinear(width, config.num_key_value_heads * size)
        self.o_proj = nn.Linear(config.num_attention_heads * size, width, bias=False)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, self.size)).transpose(1, 2)

    def forward(
        self, x: Tensor, image: Span, turned: Rotation, mask: Tensor, past: KeysValues | None, last: bool
    ) -> tuple[Tensor, KeysValues]:
        parts = kinds(x, image)
        k, v = turned.turn(self._split(self.k_proj(parts))), self._split(self.v_proj(parts))
        if past is not None:
            k, v = (torch.cat([p.expand(len(x), -1, -1, -1), t], 2) for p, t in zip(past, (k, v), strict=True))
        if last:  # which sees everything
            x, turned = x[:, -1:], turned.last()
        q = turned.turn(self._split(self.q_proj(x)))
        seen = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=None if last else mask, enable_gqa=self.shared
        )
        return self.o_proj(seen.transpose(1, 2).flatten(2)), (k, v)


class Mlp(nn.Module):
    def __init__(self, config: OwlConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    def __init__(self, config: OwlConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = Mlp(config)
        self.input_layernorm = MultiwayNorm(config)
        self.post_attention_layernorm = MultiwayNorm(config)

    def forward(
        self,
        x: Tensor,
        image: Span,
        turned: Rotation,
        mask: Tensor,
        past: KeysValues | None = None,
        last: bool = False,
    ) -> tuple[Tensor, KeysValues]:
        """As `decode`; with `last` only the last token is returned, which must be text."""
        attended, kept = self.self_attn(self.input_layernorm(x, image), image, turned, mask, past, last)
        if last:
            x, image = x[:, -1:], NO_IMAGE
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x, image)), kept
