"""What SDXL's networks look at besides the text: its pooled embedding and the picture's size."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from restoration.base_models.interface import NEGATIVE
from restoration.statistics import told_size

POOLED = "pooled"  # name in Condition.others


def pooled_names(embeddings: Iterable[str]) -> tuple[str, ...]:
    """The pooled embeddings that must stand among `embeddings`: one of each prompt."""
    return (POOLED, NEGATIVE + POOLED) if NEGATIVE + "text" in embeddings else (POOLED,)


def time_ids(image: Tensor) -> Tensor:
    """Height and width of the original, top and left of the crop, height and width aimed at, in pixels.

    Args:
        image: [B, 3, H, W], whole and aimed at as large as it is.

    Returns:
        float32 [B, 6]; sizes in pixels don't survive half precision.
    """
    height, width = told_size(*image.shape[-2:])
    # filled on the device: a copy from the host would wait for all that runs there
    sizes = torch.zeros(6, device=image.device, dtype=torch.float32)
    for place, side in ((0, height), (1, width), (4, height), (5, width)):
        sizes[place] = side
    return sizes.expand(len(image), -1)
