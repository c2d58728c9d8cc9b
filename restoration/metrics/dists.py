"""DISTS (Ding et al. 2020, arXiv 2004.07728) by published weights, which users download: structure and texture.

Of the picture as it is: its authors' examples shrink larger ones to 256 pixels first, which is another figure.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import vgg16

from restoration.checkpoints import CheckpointError, load_strict, read_state

BACKBONE, WEIGHTS = "vgg16-397923af.pth", "weights.pt"  # as torchvision and the PyPI package DISTS_pytorch publish them
COMPARED = (3, 8, 15, 22, 29)  # places of the activations among VGG's features, and before them the picture itself
CHANNELS = (3, 64, 128, 256, 512, 512)
STEADY = 1e-6  # of both quotients, c1 and c2


class Dists(nn.Module):
    """One minus the weighted similarities of the means (texture) and of the covariances (structure) of activations.

    VGG's maximum poolings are L2 poolings here: the root of a Hann-weighted mean of squares.
    """

    mean: Tensor
    deviation: Tensor
    hann: Tensor

    def __init__(self) -> None:
        super().__init__()
        place = torch.get_default_device()
        with torch.device("meta"):  # of 138 million random weights none is wanted
            whole: Any = vgg16(weights=None)
        features: nn.Sequential = whole.features[: COMPARED[-1] + 1]
        self.features = features.to_empty(device=place)
        self.alpha, self.beta = (nn.Parameter(torch.empty(1, sum(CHANNELS), 1, 1)) for _ in range(2))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        row = torch.tensor([math.sin(math.pi * i / 4) ** 2 for i in (1, 2, 3)])  # of 5, whose ends are 0
        self.register_buffer("hann", torch.outer(row, row) / row.sum() ** 2, persistent=False)
        self.requires_grad_(False).eval()

    @classmethod
    def from_published(cls, folder: Path) -> Dists:
        """Of the files `BACKBONE` and `WEIGHTS` in `folder`.

        Raises:
            CheckpointError: a file is absent or is another network's.
        """
        backbone, weights = (_read(Path(folder) / name) for name in (BACKBONE, WEIGHTS))
        if weights.keys() != {"alpha", "beta"}:
            raise CheckpointError(f"{Path(folder) / WEIGHTS}: not the weights of DISTS, which are alpha and beta")
        metric = cls()
        features = {k: v for k, v in backbone.items() if k.startswith("features.")}  # the classifier has no part in it
        load_strict(metric, features | weights, folder)
        return metric

    @torch.no_grad()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Float32 [B], 0 for equal pictures; a, b float32 [B, 3, H, W] in [0, 1]."""
        total = self.alpha.sum() + self.beta.sum()
        textures, structures = (w.flatten().split(CHANNELS) for w in (self.alpha, self.beta))
        similar = torch.zeros(len(a), device=a.device)
        for x, alpha, beta in zip(self._activations(torch.cat([a, b])), textures, structures, strict=True):
            flat = x.flatten(2)
            means = flat.mean(2)
            first, second = (flat - means[..., None]).chunk(2)
            covariance = (first * second).mean(2)
            variances = first.square().mean(2) + second.square().mean(2)
            (m, n) = means.chunk(2)
            texture = (2 * m * n + STEADY) / (m.square() + n.square() + STEADY)
            structure = (2 * covariance + STEADY) / (variances + STEADY)
            similar = similar + texture @ alpha + structure @ beta
        return 1 - similar / total

    def _activations(self, pictures: Tensor) -> list[Tensor]:
        x, found = (pictures - self.mean) / self.deviation, [pictures]
        for index, layer in enumerate(self.features):
            x = self._pooled(x) if isinstance(layer, nn.MaxPool2d) else layer(x)
            if index in COMPARED:
                found.append(x)
        return found

    def _pooled(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        window = self.hann.expand(channels, 1, 3, 3)
        return (F.conv2d(x.square(), window, stride=2, padding=1, groups=channels) + 1e-12).sqrt()


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        needed = f"torchvision's {BACKBONE} and the package DISTS_pytorch's {WEIGHTS}"
        raise CheckpointError(f"{file} is absent: DISTS needs {needed}")
    return read_state(file)
