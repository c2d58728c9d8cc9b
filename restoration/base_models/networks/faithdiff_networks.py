"""FaithDiff's networks (arXiv 2411.18824): SDXL's UNet, whose first convolution also sees an encoder of the LQ image.

Stock diffusers networks but for the injection after the first convolution. The LQ image's features enter the UNet as
further channels of x_t, so that nothing is kept between calls and a batch is split, repeated or recomputed as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.autoencoders.vae import Encoder
from torch import Tensor, nn

from restoration.base_models.networks.attended import config_from_shapes, tokens
from restoration.checkpoints import CheckpointError, Shapes, children, empty, load_strict
from restoration.precision import dtype_of
from restoration.state_dicts import within

HEAD_CHANNELS = 64  # of SDXL's attentions

_PREFIXES = {  # of released keys and of ours; the first that matches counts
    "denoise_encoder.": "denoise_encoder.",
    "condition_embedding.": "unet.conv_in.condition.",
    "information_transformer_layes.": "unet.conv_in.layers.",
    "spatial_ch_projs.": "unet.conv_in.projection.",
    "conv_in.": "unet.conv_in.conv.",
    "": "unet.",
}


@dataclass(frozen=True)
class FaithDiffChoices:
    """What no shape of a released file tells; the defaults are the released model's.

    Attributes:
        heads: of the UNet's attentions, one number or one a level; None is one for every 64 channels.
        time_width: of the embedding of each of the `time_ids`.
        unet_groups, encoder_groups, condition_groups: of the group norms.
        injection_heads: of the injection's attentions; they matter only if `coupled`.
        coupled: the reference's attentions run over the batch, so that samples of a batch see each other. False is
            the reference one sample at a time. Rows with the same x_t and features, such as those of
            classifier-free guidance, give the same either way.
    """

    heads: int | tuple[int, ...] | None = None
    time_width: int = 256
    unet_groups: int = 32
    encoder_groups: int = 32
    condition_groups: int = 32
    injection_heads: int = 8
    coupled: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.heads, list):  # as JSON has it
            object.__setattr__(self, "heads", tuple(self.heads))


class ConditionEmbedding(nn.Module):
    """Features [B, F, h, w] of the encoder -> [B, C, h, w]."""

    def __init__(self, features: int, hidden: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(groups, features, eps=1e-6)
        self.conv_in = nn.Conv2d(features, hidden, 3, padding=1)
        self.conv_out = nn.Conv2d(hidden, width, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv_out(F.silu(self.conv_in(self.norm_in(features))))


class ResidualAttention(nn.Module):
    """Tokens [B, N, width] -> the same; the tokens at one place of all samples attend to each other, if `coupled`."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, hidden), "c_proj": nn.Linear(hidden, width)})

    def forward(self, x: Tensor, coupled: bool) -> Tensor:
        x = x + self._attended(self.ln_1(x), coupled)
        hidden = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))

    def _attended(self, x: Tensor, coupled: bool) -> Tensor:
        if coupled:
            return self.attn(x, x, x, need_weights=False)[0]
        # a token that sees only itself gets its own value, whatever query and key are
        weight, bias = (p.chunk(3)[2] for p in (self.attn.in_proj_weight, self.attn.in_proj_bias))
        return self.attn.out_proj(F.linear(x, weight, bias))


class Injection(nn.Module):
    """In the place of the UNet's first convolution: `cat(x_t, features)` [B, C + F, h, w] -> [B, width, h, w].

    x_t alone passes the convolution only.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        condition: ConditionEmbedding,
        layers: nn.ModuleList,
        projection: nn.Linear,
        coupled: bool,
    ) -> None:
        super().__init__()
        self.conv, self.condition, self.layers, self.projection = conv, condition, layers, projection
        self.coupled = coupled
        self.in_channels = conv.in_channels  # a LoRA around the convolution doesn't tell

    def forward(self, sample: Tensor) -> Tensor:
        x_t, features = sample[:, : self.in_channels], sample[:, self.in_channels :]
        x = self.conv(x_t)
        if not features.shape[1]:
            return x
        seen = tokens(torch.cat([x, self.condition(features)], 1))
        for layer in self.layers:
            seen = layer(seen, self.coupled)
        return x + self.projection(seen).transpose(1, 2).unflatten(2, x.shape[-2:])


class FaithDiffUNet(nn.Module):
    """What denoises, and the encoder of the LQ image.

    Attributes:
        choices: what it was built with besides the shapes.
        size_multiple: of the image's sides; the quotient of its size and the latent's.
    """

    def __init__(self, shapes: Shapes, choices: FaithDiffChoices) -> None:
        """`shapes` are those of a released file. Raises KeyError and ValueError where they are no FaithDiff's."""
        super().__init__()
        self.choices = choices
        self.unet = UNet2DConditionModel(**_unet_config(shapes, choices))
        self.unet.conv_in = _injection(self.unet.conv_in, shapes, choices)
        self.denoise_encoder = _encoder(shapes, choices.encoder_groups)
        self.size_multiple = 2 ** (len(self.denoise_encoder.down_blocks) - 1)

    @property
    def injection(self) -> Injection:
        assert isinstance(self.unet.conv_in, Injection)
        return self.unet.conv_in

    def encode(self, image: Tensor) -> Tensor:
        """Features, float32 [B, F, H / size_multiple, W / size_multiple], of LQ images [B, 3, H, W] in [-1, 1].

        Raises:
            ValueError: H or W is no multiple of `size_multiple`.
        """
        if image.shape[-2] % self.size_multiple or image.shape[-1] % self.size_multiple:
            raise ValueError(
                f"FaithDiff: image {tuple(image.shape)}, its sides must be multiples of {self.size_multiple}"
            )
        return self.denoise_encoder(image.to(self.denoise_encoder.conv_in.weight.dtype)).float()

    def forward(
        self,
        x_t: Tensor,
        timestep: Tensor,
        text: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
        features: Tensor | None,
    ) -> Tensor:
        """The UNet's output, float32 like x_t.

        Args:
            x_t: [B, C, h, w].
            timestep: [B].
            text: [B, tokens, width].
            text_embeds: pooled, [B, width].
            time_ids: [B, 6]: height and width of the original, top and left of the crop, height and width aimed at,
                in pixels.
            features: of `encode`, [B, F, h, w]; None denoises without the image.
        """
        dtype = dtype_of(self.unet)
        sample = x_t if features is None else torch.cat([x_t.to(dtype), features.to(dtype)], 1)
        # time_ids stay float32: sizes in pixels don't survive half precision
        added = {"text_embeds": text_embeds.to(dtype), "time_ids": time_ids.float()}
        output = self.unet(sample.to(dtype), timestep, text.to(dtype), added_cond_kwargs=added, return_dict=False)[0]
        return output.float()


def empty_faithdiff(shapes: Shapes, file: Path | str, choices: FaithDiffChoices | None = None) -> FaithDiffUNet:
    """The networks that keys and shapes of a released file belong to, without weights.

    Raises:
        CheckpointError: a key is missing, or widths and `choices` fit no such network.
    """
    try:
        return empty(lambda: FaithDiffUNet(shapes, choices or FaithDiffChoices()))
    except KeyError as error:
        raise CheckpointError(f"{file} holds no whole FaithDiff: key {error} is missing") from error
    except ValueError as error:
        raise CheckpointError(f"{file} with {choices or FaithDiffChoices()}: {error}") from error


def faithdiff_from_released(
    state: Mapping[str, Tensor], file: Path | str, choices: FaithDiffChoices | None = None
) -> FaithDiffUNet:
    """The networks of a released file's flat state dict, in eval mode. Raises CheckpointError."""
    state = within(state, ["condition_embedding.conv_in.weight"], file, "FaithDiff")
    network = empty_faithdiff({k: tuple(v.shape) for k, v in state.items()}, file, choices)
    load_strict(network, {released_to_faithdiff(k): v for k, v in state.items()}, file, shown=faithdiff_to_released)
    return network.eval()


def released_to_faithdiff(key: str) -> str:
    """A key of the released file in `FaithDiffUNet`'s naming."""
    return _renamed(key, _PREFIXES)


def faithdiff_to_released(key: str) -> str:
    """The released name of one of `FaithDiffUNet`'s keys."""
    return _renamed(key, {ours: released for released, ours in _PREFIXES.items()})


def _renamed(key: str, prefixes: Mapping[str, str]) -> str:
    old = next(prefix for prefix in prefixes if key.startswith(prefix))
    return prefixes[old] + key.removeprefix(old)


def _unet_config(shapes: Shapes, choices: FaithDiffChoices) -> dict[str, Any]:
    config = config_from_shapes(shapes)
    widths, heads = config["block_out_channels"], choices.heads
    if heads is None:
        attending = [w for w, kind in zip(widths, config["down_block_types"], strict=True) if "CrossAttn" in kind]
        if bad := [w for w in [*attending, widths[-1]] if w % HEAD_CHANNELS]:
            raise ValueError(f"heads of {HEAD_CHANNELS} channels don't divide widths {bad}; give `heads`")
        heads = tuple(max(1, w // HEAD_CHANNELS) for w in widths)
    return config | {
        "attention_head_dim": heads,
        "addition_time_embed_dim": choices.time_width,
        "norm_num_groups": choices.unet_groups,
    }


def _injection(conv: nn.Conv2d, shapes: Shapes, choices: FaithDiffChoices) -> Injection:
    hidden, features = shapes["condition_embedding.conv_in.weight"][:2]
    condition = ConditionEmbedding(
        features, hidden, shapes["condition_embedding.conv_out.weight"][0], choices.condition_groups
    )
    width = conv.out_channels + condition.conv_out.out_channels
    between = shapes["information_transformer_layes.0.mlp.c_fc.weight"][0]
    layers = nn.ModuleList(
        ResidualAttention(width, between, choices.injection_heads)
        for _ in range(children(shapes, "information_transformer_layes"))
    )
    return Injection(conv, condition, layers, nn.Linear(width, conv.out_channels), choices.coupled)


def _encoder(shapes: Shapes, groups: int) -> Encoder:
    """A stock autoencoder's encoder up to its middle block."""
    name = "denoise_encoder"
    blocks = [f"{name}.down_blocks.{i}" for i in range(children(shapes, f"{name}.down_blocks"))]
    attends = [any(k.startswith(f"{block}.attentions.") for k in shapes) for block in blocks]
    encoder = Encoder(
        in_channels=shapes[f"{name}.conv_in.weight"][1],
        down_block_types=tuple("AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends),
        block_out_channels=tuple(shapes[f"{block}.resnets.0.conv1.weight"][0] for block in blocks),
        layers_per_block=children(shapes, f"{blocks[0]}.resnets"),
        norm_num_groups=groups,
        mid_block_add_attention=f"{name}.mid_block.attentions.0.to_q.weight" in shapes,
    )
    encoder.conv_norm_out = encoder.conv_act = encoder.conv_out = nn.Identity()
    return encoder
