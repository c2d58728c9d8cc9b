"""The two towers of OpenAI's CLIP with a ResNet, as CLIP-IQA uses them: no positional embedding where the last map is
pooled, so that pictures of any size go in.

Module names are those of the released files, whose tensors load as they are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration.base_models.networks import text
from restoration.checkpoints import CheckpointError, children, empty, load_strict, read_state

STRIDE = 32  # pixels a side to one of the last map
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
EXPANSION = 4
HEAD = 64
VISUAL = "visual."
NOT_USED = ("input_resolution", "context_length", "vocab_size", "attn_mask", "visual.attnpool.positional_embedding")
"""Of released files: numbers that shapes tell too, the mask that every text has, and what CLIP-IQA leaves out."""
COUNTS = "num_batches_tracked"


@dataclass(frozen=True)
class ResNetConfig:
    """`layers` are the blocks of the four stages; the last stage has 32 times `width` channels."""

    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    out: int = 1024

    def __post_init__(self) -> None:
        if self.width % 2:
            raise ValueError(f"width={self.width}: attention heads of {HEAD} channels need an even number")


class Bottleneck(nn.Module):
    """Strides are averages before the last convolution, so that no pixel is skipped."""

    def __init__(self, channels_in: int, planes: int, stride: int) -> None:
        super().__init__()
        out = planes * EXPANSION
        self.conv1, self.bn1 = nn.Conv2d(channels_in, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, out, 1, bias=False), nn.BatchNorm2d(out)
        self.shrink = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or channels_in != out:
            self.downsample = nn.Sequential(
                OrderedDict(
                    [
                        ("-1", nn.AvgPool2d(stride)),
                        ("0", nn.Conv2d(channels_in, out, 1, bias=False)),
                        ("1", nn.BatchNorm2d(out)),
                    ]
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(self.shrink(y))) + self.downsample(x))


class AttentionPool(nn.Module):
    """[N, C, H, W] -> [N, out]: the mean pixel's attention to itself and to all pixels, whatever their places."""

    def __init__(self, channels: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(channels, channels) for _ in range(3))
        self.c_proj = nn.Linear(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        mean = x.mean(1, keepdim=True)
        x = torch.cat([mean, x], 1)
        q, k, v = (
            project(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, y in ((self.q_proj, mean), (self.k_proj, x), (self.v_proj, x))
        )
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))


class ResNet(nn.Module):
    """float32 [N, 3, H, W] in [0, 1], sides of at least 32 -> [N, out]."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        half, width = config.width // 2, config.width
        self.conv1, self.bn1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        channels = width
        for stage, blocks in enumerate(config.layers):
            planes, members = width << stage, []
            for block in range(blocks):
                members.append(Bottleneck(channels, planes, 2 if stage and not block else 1))
                channels = planes * EXPANSION
            setattr(self, f"layer{stage + 1}", nn.Sequential(*members))
        self.attnpool = AttentionPool(channels, channels // HEAD, config.out)

    def forward(self, images: Tensor) -> Tensor:
        x = (images - images.new_tensor(MEAN)[:, None, None]) / images.new_tensor(DEVIATION)[:, None, None]
        for number in (1, 2, 3):
            x = F.relu(getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x)))
        x = F.avg_pool2d(x, 2)
        for stage in (1, 2, 3, 4):
            x = getattr(self, f"layer{stage}")(x)
        return self.attnpool(x)


class QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


@dataclass(frozen=True)
class Clip:
    """The towers of a file, and what joins them.

    Attributes:
        projection: [text width, out].
        scale: of cosines into logits.
        state: tensors of the file that are used, by their names there.
    """

    visual: ResNet
    text: text.TextEncoder
    projection: Tensor
    scale: float
    state: Mapping[str, Tensor]

    @torch.inference_mode()
    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids int64 [P, context_length], the highest at each text's end -> unit vectors [P, out]."""
        states = self.text(tokens)
        ends = states[torch.arange(len(tokens)), tokens.argmax(1)]
        return F.normalize(ends @ self.projection, dim=-1)


def read_clip(file: Path) -> Clip:
    """OpenAI's RN50.pt (a TorchScript program, of which only tensors are read), or its tensors in another file.

    Raises:
        CheckpointError: absent, unreadable, another kind of CLIP, or tensors missing or too many.
    """
    state = {
        key: value.float()
        for key, value in read_state(file, programs=True).items()
        if not key.endswith((*NOT_USED, COUNTS))
    }
    if "visual.proj" in state or "visual.class_embedding" in state:
        raise CheckpointError(f"{file} is a CLIP with a vision transformer; CLIP-IQA is defined on RN50: give RN50.pt")
    for key in ("visual.layer1.0.conv1.weight", "visual.attnpool.c_proj.weight", "text_projection", "logit_scale"):
        if key not in state:
            raise CheckpointError(f"{file} is no CLIP with a ResNet: {key} is missing; give OpenAI's RN50.pt")
    shapes = {key.removeprefix(VISUAL): tuple(v.shape) for key, v in state.items() if key.startswith(VISUAL)}
    one, two, three, four = (children(shapes, f"layer{stage}") for stage in (1, 2, 3, 4))
    config = ResNetConfig(
        (one, two, three, four), shapes["layer1.0.conv1.weight"][0], shapes["attnpool.c_proj.weight"][0]
    )
    visual = empty(lambda: ResNet(config))
    # of training only, and not in all files
    counts = {key: torch.tensor(0) for key in visual.state_dict() if key.endswith(COUNTS)}
    seen = counts | {key.removeprefix(VISUAL): value for key, value in state.items() if key.startswith(VISUAL)}
    load_strict(visual, seen, file, lambda key: VISUAL + key)
    encoder = text.from_released(state, file, skip_last=0)
    for block in encoder.transformer.resblocks:
        block.mlp.gelu = QuickGelu()  # type: ignore[union-attr, operator]
    projection = state["text_projection"]
    if projection.shape != (encoder.config.width, config.out):
        raise CheckpointError(
            f"{file}: text_projection {tuple(projection.shape)} instead of {(encoder.config.width, config.out)}"
        )
    scale = float(state["logit_scale"].exp())
    return Clip(visual.eval().requires_grad_(False), encoder.requires_grad_(False), projection, scale, state)
