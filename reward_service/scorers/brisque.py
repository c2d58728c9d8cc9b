"""BRISQUE with the model trained on LIVE (Mittal, Moorthy, Bovik, "No-Reference Image Quality Assessment in the
Spatial Domain", 2012): statistics of locally normalised pixels at two scales, into a support vector regression.

Features and regression are those of the authors' MATLAB release. Their C++ program has other features, another half
size and a regression trained on these; the Python packages that follow it give other scores.

Of 38 clean crops of 128 px of the shipped photographs 26 score higher sharpened, 22 with more colour, 15 in noisy low
light and 12 with noise of 10 levels: an ablation and a witness, no reward to rely on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from restoration.checkpoints import CheckpointError, check_shapes, read_state
from reward_service.scorers.digests import digest_of
from reward_service.scorers.interface import MEMORY_SIDE, check_block
from reward_service.scorers.natural_scenes import (
    Sums,
    fit,
    grey,
    half_size,
    in_parts,
    joined,
    normalised,
    sums,
    symmetric_shape,
)
from reward_service.scorers.pixel_sums import exponential, total, weighted_sums
from reward_service.scorers.room import room

MODEL = Path(__file__).resolve().parents[2] / "models" / "brisque" / "brisque_live.safetensors"
FEATURES = 36
SIDE = 32  # the least
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Regression:
    """A support vector regression with a radial kernel, float64.

    Attributes:
        support: [V, 36], of scaled features.
        coefficients: [V].
        least, most: [36], of the features in training; they become -1 and 1, and what lies beyond is not cut off.
        gamma: of the kernel.
        rho: what is taken off.
    """

    support: Tensor
    coefficients: Tensor
    least: Tensor
    most: Tensor
    gamma: Tensor
    rho: Tensor

    @staticmethod
    def read(file: Path, device: torch.device) -> Regression:
        """Raises CheckpointError."""
        state = read_state(file)
        vectors = len(state["coefficients"]) if "coefficients" in state else 0
        wanted = {
            "support": (vectors, FEATURES),
            "coefficients": (vectors,),
            "least": (FEATURES,),
            "most": (FEATURES,),
            "gamma": (1,),
            "rho": (1,),
        }
        check_shapes(wanted, {key: tuple(value.shape) for key, value in state.items()}, f"{file} is no BRISQUE model")
        return Regression(**{key: value.to(device, torch.float64, copy=True) for key, value in state.items()})

    def version(self) -> str:
        return digest_of(vars(self))

    def __call__(self, features: Tensor) -> Tensor:
        """[N, 36] -> [N]."""
        scaled = 2 * (features - self.least) / (self.most - self.least) - 1
        products = weighted_sums(scaled, self.support)
        distance = total(self.support.square()) + total(scaled.square())[:, None] - 2 * products
        return total(exponential(distance.mul(-self.gamma)) * self.coefficients) - self.rho


class Brisque:
    """Scores 100 - BRISQUE, so that higher is better; not bounded.

    Args:
        model: file of the regression; the committed one by default.
        device: where to run.

    Raises:
        ValueError: the file is missing or is no such model.
    """

    name = "brisque"
    least_side = SIDE
    preferred_batch = 32
    memory_bytes = 32 * MEMORY_SIDE**2 * 40  # measured, where all pictures are taken at once
    range = (float("-inf"), float("inf"))

    def __init__(self, model: str | None = None, device: str = "cpu") -> None:
        self.device = torch.device(device)
        try:
            self.regression = Regression.read(Path(model) if model else MODEL, self.device)
        except CheckpointError as error:
            raise ValueError(f"scorer brisque: {error}; the committed one is {MODEL.name} in models/brisque") from error
        self.version = f"brisque-2-{self.regression.version()}"

    @torch.inference_mode()
    def score(self, images: Any) -> np.ndarray:
        """uint8 [N, H, W, 3] RGB, sides of at least 32 -> float32 [N].

        Raises:
            ValueError: another dtype or shape, or smaller sides.
        """
        found = self.regression(features(check_block(images, SIDE), self.device))
        return (100 - found).cpu().numpy().astype(np.float32)


def features(images: np.ndarray, device: torch.device = CPU) -> Tensor:
    """uint8 [N, H, W, 3] -> float64 [N, 36]: 18 statistics at full and 18 at half size."""
    full, half = zip(*in_parts(_sums, images, device), strict=True)
    return torch.cat([_statistics(joined(full)), _statistics(joined(half))], 1)


def _sums(images: Tensor) -> tuple[Sums, Sums]:
    with room() as kept:
        level = grey(images, torch.float32, kept)
        with kept.lent():
            full = sums(normalised(level, "zeros", room=kept), kept)
        return full, sums(normalised(half_size(level, kept), "zeros", room=kept), kept)


def _statistics(found: Sums) -> Tensor:
    """Shape and variance of the normalised pixels; shape, mean and both variances of four products of neighbours."""
    fitted = fit(found)
    products = torch.stack([fitted.shape, fitted.mean, fitted.left.square(), fitted.right.square()])[:, 1:]
    own = [symmetric_shape(found.number, found.absolute[0], found.square[0]), found.square[0] / found.number]
    return torch.cat([torch.stack(own, 1), products.permute(2, 1, 0).flatten(1)], 1)
