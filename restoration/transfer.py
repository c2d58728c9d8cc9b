"""Copies between host and device that don't make the host wait."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """`tensor` on `device`; to CUDA through pinned memory, so that the host goes on at once."""
    device = torch.device(device)
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class PixelCopies:
    """Pictures that become uint8 where they are and go to the host beside what the device does next."""

    def __init__(self) -> None:
        self._copies: list[Tensor] = []
        self._finite: list[Tensor] = []

    def add(self, images: Tensor) -> None:
        """float [..., C, H, W] in [0, 1]."""
        low, high = torch.aminmax(images.detach())
        self._finite.append(low.isfinite() & high.isfinite())
        levels = images.detach().float().clamp(0, 1).mul_(255).round_().to(torch.uint8).movedim(-3, -1).contiguous()
        if levels.device.type == "cuda":
            host = torch.empty(levels.shape, dtype=torch.uint8, pin_memory=True)
            levels = host.copy_(levels, non_blocking=True)
        self._copies.append(levels)

    def finish(self) -> list[NDArray[np.uint8]]:
        """uint8 [..., H, W, C] of each `add`, in order, as `images.to_uint8` gives them; waits once.

        Raises:
            ValueError: a value is not finite.
        """
        if self._finite and self._finite[0].device.type == "cuda":
            torch.cuda.current_stream(self._finite[0].device).synchronize()
        if self._finite and not bool(torch.stack(self._finite).all()):
            raise ValueError("the image holds values that are not finite and can't become pixels")
        return [copy.numpy() for copy in self._copies]
