"""A U-Net of gated depthwise convolutions, a cleaner that is cheap on a CPU.

A block is Restormer's gated feed-forward (arXiv 2111.09881) without its attention, gated by a plain product as in
NAFNet (arXiv 2204.04676). No layer takes statistics of the picture, so that a tile sees what the whole picture would
show it. All of it is pixel-wise products and 3x3 depthwise convolutions, which run fastest with the channels last.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration.checkpoints import Shapes, children


@dataclass(frozen=True)
class GatedUNetConfig:
    """
    Attributes:
        channels: of each level, the finest (the picture's own resolution) first.
        blocks: of each level, on the way down and again on the way up; the coarsest level has its blocks once.
        refinement: blocks at the finest level after all others.
        expansion: features that are gated, for each channel of a level without `dense`.
        dense: how many of the finest levels, never the coarsest, have blocks that convolve all channels with each
            other, which costs little there: few channels leave a processor waiting for memory.
    """

    channels: tuple[int, ...] = (32, 64, 128, 192)
    blocks: tuple[int, ...] = (1, 2, 4, 4)
    refinement: int = 1
    expansion: int = 2
    dense: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if len(self.channels) < 2 or len(self.blocks) != len(self.channels):
            raise ValueError(
                f"channels={self.channels}, blocks={self.blocks}: one entry each for every level, of which there "
                "are at least two"
            )
        if min(*self.channels, *self.blocks, self.expansion) < 1 or min(self.refinement, self.dense) < 0:
            raise ValueError(
                f"channels={self.channels}, blocks={self.blocks}, expansion={self.expansion}, refinement="
                f"{self.refinement}, dense={self.dense}: at least 1 each, the last two at least 0"
            )


class GatedBlock(nn.Module):
    """[B, C, H, W] -> same; nothing is added before training.

    Two images of the features, one gating the other: made by full convolutions (`dense`), or pixel by pixel with
    `expansion` times the channels and then by depthwise ones.
    """

    def __init__(self, channels: int, expansion: int, dense: bool) -> None:
        super().__init__()
        hidden = channels if dense else channels * expansion
        self.norm = nn.LayerNorm(channels)
        # Two of each, since halves of one would lie scattered in memory.
        groups = 1 if dense else hidden
        self.gate, self.value = (nn.Identity() if dense else nn.Linear(channels, hidden) for _ in range(2))
        self.gate_near, self.value_near = (nn.Conv2d(hidden, hidden, 3, padding=1, groups=groups) for _ in range(2))
        self.project_out = nn.Linear(hidden, channels)
        nn.init.zeros_(self.project_out.weight)
        nn.init.zeros_(self.project_out.bias)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x.permute(0, 2, 3, 1))
        gate, value = self.gate(normed).permute(0, 3, 1, 2), self.value(normed).permute(0, 3, 1, 2)
        gated = self.gate_near(gate) * self.value_near(value)
        return x + self.project_out(gated.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Up(nn.Module):
    """Doubles the side with a shuffle."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.spread = nn.Linear(channels, 4 * out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        spread = self.spread(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.pixel_shuffle(spread, 2)


class GatedUNet(nn.Module):
    """float32 [B, 3, H, W] -> float32 [B, 3, H, W], not clamped; H and W multiples of `size_multiple`.

    Weights may have another type; all but the sum with `x` is then computed in it. Before training it returns `x`.
    """

    def __init__(self, config: GatedUNetConfig) -> None:
        super().__init__()
        self.config, channels = config, config.channels
        self.size_multiple = 2 ** (len(channels) - 1)

        def blocks(level: int, count: int) -> nn.Sequential:
            return nn.Sequential(
                *(GatedBlock(channels[level], config.expansion, 0 <= level < config.dense) for _ in range(count))
            )

        levels = range(len(channels) - 1)
        self.stem = nn.Conv2d(3, channels[0], 3, padding=1)
        self.encoder = nn.ModuleList(blocks(i, config.blocks[i]) for i in levels)
        self.down = nn.ModuleList(nn.Conv2d(channels[i], channels[i + 1], 2, stride=2) for i in levels)
        self.bottom = blocks(-1, config.blocks[-1])
        self.up = nn.ModuleList(_Up(channels[i + 1], channels[i]) for i in levels)
        self.decoder = nn.ModuleList(blocks(i, config.blocks[i]) for i in levels)
        self.refinement = blocks(0, config.refinement)
        self.head = nn.Linear(channels[0], 3)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Raises ValueError on a shape that it can't take."""
        multiple = self.size_multiple
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % multiple or x.shape[3] % multiple:
            raise ValueError(
                f"GatedUNet: got {tuple(x.shape)}, needs [B, 3, H, W] with H and W multiples of {multiple}; pad the "
                "image first"
            )
        y = self.stem(x.to(self.head.weight.dtype).contiguous(memory_format=torch.channels_last))
        skips = []
        for blocks, down in zip(self.encoder, self.down, strict=True):
            y = blocks(y)
            skips.append(y)
            y = down(y)
        y = self.bottom(y)
        for up, blocks, skip in reversed(list(zip(self.up, self.decoder, skips, strict=True))):
            y = blocks(up(y) + skip)
        return self.head(self.refinement(y).permute(0, 2, 3, 1)).permute(0, 3, 1, 2) + x

    def config_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values; `GatedUNetConfig(**d)` reads it."""
        return asdict(self.config)


def config_from_shapes(shapes: Shapes) -> GatedUNetConfig:
    """The configuration that a state dict belongs to.

    Raises:
        KeyError: a key that every such network has is absent.
    """
    levels = [f"encoder.{i}" for i in range(children(shapes, "encoder"))] + ["bottom"]
    channels, hidden = zip(*(shapes[f"{level}.0.project_out.weight"][:2] for level in levels), strict=True)
    return GatedUNetConfig(
        channels=tuple(channels),
        blocks=tuple(children(shapes, level) for level in levels),
        refinement=children(shapes, "refinement"),
        expansion=hidden[-1] // channels[-1],
        dense=sum(f"{level}.0.gate.weight" not in shapes for level in levels),
    )
