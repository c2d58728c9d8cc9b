"""LPIPS 0.1 (Zhang et al. 2018, arXiv 1801.03924) on AlexNet or VGG, by published weights, which users download."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models import alexnet, vgg16

from restoration.checkpoints import CheckpointError, load_strict, read_state
from restoration.metrics.protocols import LPIPS_SIDE


@dataclass(frozen=True)
class Trunk:
    """A network whose activations are compared.

    Attributes:
        backbone, heads: file names as torchvision and the PyPI package `lpips` (weights/v0.1) publish them.
        layers: places of the activations among its features, and their channels.
        least_side: pixels a side, below which its poolings leave nothing.
    """

    make: Callable[[], nn.Module]
    backbone: str
    heads: str
    layers: tuple[int, ...]
    channels: tuple[int, ...]
    least_side: int


BACKBONE, HEADS = "alexnet-owt-7be5be79.pth", "alex.pth"
TRUNKS = {
    "alex": Trunk(
        partial(alexnet, weights=None), BACKBONE, HEADS, (1, 4, 7, 9, 11), (64, 192, 384, 256, 256), LPIPS_SIDE
    ),
    "vgg": Trunk(
        partial(vgg16, weights=None),
        *("vgg16-397923af.pth", "vgg.pth"),
        layers=(3, 8, 15, 22, 29),
        channels=(64, 128, 256, 512, 512),
        least_side=16,
    ),
}
CHANNELS = TRUNKS["alex"].channels
LEAST_SIDE = LPIPS_SIDE


class Lpips(nn.Module):
    """Weighted squared distance of unit-normalised activations, averaged over places and summed over layers."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, net: Literal["alex", "vgg"] = "alex") -> None:
        super().__init__()
        self.trunk = TRUNKS[net]
        place = torch.get_default_device()
        with torch.device("meta"):  # of 138 million random weights of VGG none is wanted
            whole: Any = self.trunk.make()
        features: nn.Sequential = whole.features[: self.trunk.layers[-1] + 1]
        self.features = features.to_empty(device=place)
        self.heads = nn.ParameterList(nn.Parameter(torch.empty(1, c, 1, 1)) for c in self.trunk.channels)
        # ImageNet's, for pictures in [-1, 1]
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    @classmethod
    def from_published(cls, folder: Path, net: Literal["alex", "vgg"] = "alex") -> Lpips:
        """Of the files `TRUNKS[net].backbone` and `heads` in `folder`.

        Raises:
            CheckpointError: a file is absent or is another network's.
        """
        trunk = TRUNKS[net]
        backbone, heads = (_read(folder / name, trunk) for name in (trunk.backbone, trunk.heads))
        names = {f"lin{i}.model.1.weight": f"heads.{i}" for i in range(len(trunk.channels))}
        if heads.keys() != names.keys():
            raise CheckpointError(f"{folder / trunk.heads}: not the linear heads of LPIPS on {net}, {sorted(names)}")
        found = {k: v for k, v in backbone.items() if k.startswith("features.")}  # the classifier has no part in it
        metric = cls(net)
        load_strict(metric, found | {names[k]: v for k, v in heads.items()}, folder)
        return metric

    @torch.no_grad()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Float32 [B], 0 for equal pictures; a, b float32 [B,3,H,W] in [0, 1], sides at least the `least_side`."""
        x = ((torch.cat([a, b]) * 2 - 1) - self.mean) / self.deviation
        total = torch.zeros(len(a), device=x.device)
        heads = iter(self.heads)
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.trunk.layers:
                unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
                first, second = unit.chunk(2)
                total = total + ((first - second).square() * next(heads)).sum(1).flatten(1).mean(1)
        return total


def published_digest(folder: Path) -> str:
    """Of the bytes of both files. Raises CheckpointError: a file is absent."""
    digest, trunk = hashlib.sha256(), TRUNKS["alex"]
    for name in (trunk.backbone, trunk.heads):
        with _there(folder / name, trunk).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _there(file: Path, trunk: Trunk) -> Path:
    if not file.is_file():
        needed = f"torchvision's {trunk.backbone} and the package lpips' {trunk.heads}"
        raise CheckpointError(f"{file} is absent: LPIPS needs {needed}")
    return file


def _read(file: Path, trunk: Trunk) -> dict[str, Tensor]:
    return read_state(_there(file, trunk))
