"""StableSR's structure encoder (arXiv 2305.07015, Sec. 3.1): LQ latent and timestep -> feature maps of four scales."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, get_down_block
from torch import Tensor, nn

_EPS = 1e-5


def groups_of(channels: int, groups: int) -> int:
    """`groups`, or where they don't divide the channels, one a channel."""
    return groups if channels % groups == 0 else channels


class StructureEncoder(ModelMixin, ConfigMixin):
    """The encoder half of a UNet without text, and one residual block after each level's end.

    Args:
        in_channels: of the latent.
        base_channels: of the first convolution; the time embedding is four times as wide.
        block_out_channels: width of each level.
        attention: which levels attend; the middle block always does.
        layers_per_block: residual blocks of a level.
        out_channels: of each feature map.
        heads: of every attention.
        norm_num_groups: of every norm; where that doesn't divide the channels, each channel is a group of its own, as
            in the reference.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: int,
        base_channels: int,
        block_out_channels: Sequence[int],
        attention: Sequence[bool],
        layers_per_block: int,
        out_channels: int,
        heads: int,
        norm_num_groups: int = 32,
    ) -> None:
        super().__init__()
        time = 4 * base_channels
        widths = [base_channels, *block_out_channels]
        last = len(block_out_channels) - 1
        self.time_proj = Timesteps(base_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(base_channels, time)
        self.conv_in = nn.Conv2d(in_channels, base_channels, 3, padding=1)
        self.down_blocks = nn.ModuleList(
            get_down_block(
                "AttnDownBlock2D" if attends else "DownBlock2D",
                num_layers=layers_per_block,
                in_channels=widths[level],
                out_channels=widths[level + 1],
                temb_channels=time,
                add_downsample=level < last,
                resnet_eps=_EPS,
                resnet_act_fn="silu",
                resnet_groups=1,
                attention_head_dim=widths[level + 1] // heads,
                downsample_padding=1,
            )
            for level, attends in enumerate(attention)
        )
        self.mid_block = UNetMidBlock2D(
            widths[-1],
            time,
            resnet_eps=_EPS,
            resnet_groups=1,
            attention_head_dim=widths[-1] // heads,
        )
        self.outs = nn.ModuleList(
            ResnetBlock2D(in_channels=width, out_channels=out_channels, temb_channels=time, groups=1, eps=_EPS)
            for width in block_out_channels
        )
        # The stock blocks take one number of groups for all their norms, whose channels differ.
        for norm in self.modules():
            if isinstance(norm, nn.GroupNorm):
                norm.num_groups = groups_of(norm.num_channels, norm_num_groups)

    def forward(self, latent: Tensor, timestep: Tensor) -> list[Tensor]:
        """latent [B, in_channels, h, w]; timestep [B] -> [B, out_channels, ...] for each level, the finest first."""
        time = self.time_embedding(self.time_proj(timestep).to(latent.dtype))
        hidden, ends = self.conv_in(latent), []
        for block in self.down_blocks:
            hidden, outputs = block(hidden, time)
            ends.append(outputs[self.config.layers_per_block - 1])  # before it is halved
        ends[-1] = self.mid_block(hidden, time)
        return [out(end, time) for out, end in zip(self.outs, ends, strict=True)]
