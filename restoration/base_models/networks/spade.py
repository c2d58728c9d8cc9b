"""A stock UNet whose residual blocks are modulated by feature maps, one for each level (StableSR, arXiv 2305.07015).

The features enter as the UNet's argument `timestep_cond` and travel with the time embedding, the one argument that
reaches every residual block, so that gradient checkpointing recomputes with what the forward saw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn


class Steered(NamedTuple):
    """What every residual block is given.

    Attributes:
        time: [B, T], the embedding of the timestep.
        features: one [B, F, h, w] for each level of the UNet, the finest first, of that level's size.
    """

    time: Tensor
    features: Sequence[Tensor]


class Spade(nn.Module):
    """SPADE (arXiv 1903.07291, Eq. 1) with a group norm: norm(x) (1 + gamma(features)) + beta(features)."""

    def __init__(self, channels: int, features: int, hidden: int, groups: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps)
        self.shared = nn.Conv2d(features, hidden, 3, padding=1)
        self.gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.beta = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """x [B, channels, h, w]; features [B, F, h, w]."""
        seen = F.relu(self.shared(features))
        return self.norm(x) * (1 + self.gamma(seen)) + self.beta(seen)


class SpadeResnet(ResnetBlock2D):
    """In the place of `stock`: its own parts, and SPADE between the last convolution and the skip."""

    def __init__(self, stock: ResnetBlock2D, level: int, features: int, hidden: int) -> None:
        norm = stock.norm2
        super().__init__(
            in_channels=stock.in_channels,
            out_channels=stock.out_channels,
            temb_channels=stock.time_emb_proj.in_features,
            dropout=stock.dropout.p,
            groups=norm.num_groups,
            eps=norm.eps,
        )
        self.level = level
        self.spade = Spade(stock.out_channels, features, hidden, norm.num_groups, norm.eps)

    def forward(self, input_tensor: Tensor, temb: Steered) -> Tensor:
        hidden = self.conv1(self.nonlinearity(self.norm1(input_tensor)))
        hidden = hidden + self.time_emb_proj(self.nonlinearity(temb.time))[:, :, None, None]
        hidden = self.conv2(self.dropout(self.nonlinearity(self.norm2(hidden))))
        skip = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return skip + self.spade(hidden, temb.features[self.level])


class SteeredTime(TimestepEmbedding):
    """In the place of the UNet's time embedding: adds the features that the UNet was given as `timestep_cond`."""

    def forward(self, sample: Tensor, condition: Sequence[Tensor] | None = None) -> Steered:
        if condition is None:
            raise ValueError("this UNet needs feature maps: pass one for each level as timestep_cond")
        return Steered(super().forward(sample), condition)


def spade_unet(config: Mapping[str, Any], features: int, hidden: int) -> UNet2DConditionModel:
    """The UNet of `config` with SPADE in every residual block; parts keep their stock names, SPADE's is `spade`.

    Args:
        config: arguments of `UNet2DConditionModel`.
        features: channels of each feature map.
        hidden: channels inside each SPADE.

    Raises:
        ValueError: the time embedding is to scale as well as to shift.
    """
    if config.get("resnet_time_scale_shift", "default") != "default":
        raise ValueError("spade_unet: resnet_time_scale_shift must be 'default'")
    unet = UNet2DConditionModel(**config)
    time = unet.time_embedding
    unet.time_embedding = SteeredTime(time.linear_1.in_features, time.linear_1.out_features)
    for level, block in _blocks_of_levels(unet):
        block.resnets = nn.ModuleList(SpadeResnet(r, level, features, hidden) for r in block.resnets)
    return unet


def _blocks_of_levels(unet: UNet2DConditionModel) -> Iterator[tuple[int, Any]]:
    last = len(unet.down_blocks) - 1
    yield from enumerate(unet.down_blocks)
    yield last, unet.mid_block
    yield from ((last - i, block) for i, block in enumerate(unet.up_blocks))
