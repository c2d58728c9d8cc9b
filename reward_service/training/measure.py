"""Statistics and label of the versions of one crop, from one pass of the network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reward_service.scorers.lite0_levels import Lite0Statistics
from reward_service.training.labels import feature_loss, quality, structure_loss, tone_loss


def images_to_tensor(images: list[np.ndarray]) -> Tensor:
    """float32 [H, W, 3] each -> [B, 3, H, W], channels last."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


@torch.inference_mode()
def measure(network: Lite0Statistics, images: list[np.ndarray], chunk: int = 8) -> tuple[Tensor, Tensor]:
    """Statistics [V, F] and quality [V] of float32 [H, W, 3] images in [0, 1]; the first is the reference."""
    reference = images_to_tensor(images[:1])
    wanted = network.maps(reference)
    features, qualities = [], []
    for start in range(0, len(images), chunk):
        x = images_to_tensor(images[start : start + chunk])
        maps, y = network.maps(x), reference.expand_as(x)
        distance = feature_loss(maps, [m.expand_as(n) for m, n in zip(wanted, maps, strict=True)])
        features.append(network.pool(maps, x))
        qualities.append(quality(distance, structure_loss(x, y), tone_loss(x, y)))
    return torch.cat(features), torch.cat(qualities)
