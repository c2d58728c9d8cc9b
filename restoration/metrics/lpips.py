"""LPIPS 0.1 on AlexNet (Zhang et al. 2018, arXiv 1801.03924), with the published weights, which users download."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import alexnet

from restoration.checkpoints import CheckpointError, load_strict, read_state
from restoration.metrics.protocols import LPIPS_SIDE

BACKBONE, HEADS = "alexnet-owt-7be5be79.pth", "alex.pth"
"""File names as torchvision and the PyPI package `lpips` (weights/v0.1) publish them."""
LAYERS = (1, 4, 7, 9, 11)  # AlexNet's activations
CHANNELS = (64, 192, 384, 256, 256)
LEAST_SIDE = LPIPS_SIDE


class Lpips(nn.Module):
    """Weighted squared distance of unit-normalised activations, averaged over places and summed over layers."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = alexnet(weights=None).features[: LAYERS[-1] + 1]
        self.heads = nn.ParameterList(nn.Parameter(torch.empty(1, c, 1, 1)) for c in CHANNELS)
        # ImageNet's, for pictures in [-1, 1]
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    @classmethod
    def from_published(cls, folder: Path) -> Lpips:
        """Of the files `BACKBONE` and `HEADS` in `folder`.

        Raises:
            CheckpointError: a file is absent or is another network's.
        """
        backbone, heads = (_read(folder / name) for name in (BACKBONE, HEADS))
        names = {f"lin{i}.model.1.weight": f"heads.{i}" for i in range(len(CHANNELS))}
        if heads.keys() != names.keys():
            raise CheckpointError(f"{folder / HEADS}: not the linear heads of LPIPS on AlexNet, {sorted(names)}")
        found = {k: v for k, v in backbone.items() if k.startswith("features.")}  # the classifier has no part in it
        metric = cls()
        load_strict(metric, found | {names[k]: v for k, v in heads.items()}, folder)
        return metric

    @torch.no_grad()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Float32 [B], 0 for equal pictures; a, b float32 [B,3,H,W] in [0, 1], H and W at least `LEAST_SIDE`."""
        x = ((torch.cat([a, b]) * 2 - 1) - self.mean) / self.deviation
        total = torch.zeros(len(a), device=x.device)
        heads = iter(self.heads)
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in LAYERS:
                unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
                first, second = unit.chunk(2)
                total = total + ((first - second).square() * next(heads)).sum(1).flatten(1).mean(1)
        return total


def published_digest(folder: Path) -> str:
    """Of the bytes of both files. Raises CheckpointError: a file is absent."""
    digest = hashlib.sha256()
    for name in (BACKBONE, HEADS):
        with _there(folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _there(file: Path) -> Path:
    if not file.is_file():
        raise CheckpointError(f"{file} is absent: LPIPS needs torchvision's {BACKBONE} and the package lpips' {HEADS}")
    return file


def _read(file: Path) -> dict[str, Tensor]:
    return read_state(_there(file))
