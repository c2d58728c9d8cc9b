"""The scorer around the network: pictures in, the mean of five levels' weights out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from restoration.checkpoints import CheckpointError
from restoration.trouble import is_memory
from reward_service.scorers.interface import check_block
from reward_service.scorers.mplug_owl2.config import OwlConfig
from reward_service.scorers.mplug_owl2.loading import load_owl2
from reward_service.scorers.mplug_owl2.network import LevelReader
from reward_service.scorers.mplug_owl2.pixels import Box, prepare, windows
from reward_service.scorers.mplug_owl2.prompt import LEVELS, check_tokenizer
from reward_service.scorers.passes import in_passes, spread_over_places

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FIVE_TO_ONE = (5.0, 4.0, 3.0, 2.0, 1.0)
BATCH_SHARES = {torch.float32: 2.5e-5, torch.float16: 0.0025, torch.bfloat16: 0.02}
"""The most that a score changes with its company, as a share of the range: one rounding of the level logits."""
PREPARATION = 1
"""Raised whenever the same picture would reach the network as other numbers."""
LEAST_SIDE = 32
"""Smaller pictures would be enlarged more than 14 times: nobody trained on such."""


@dataclass(frozen=True)
class ScoreSettings:
    """How pictures are scored; all of it is part of the version.

    Args:
        level_weights: what excellent, good, fair, poor and bad are worth.
        crops: beside the whole picture, windows of the network's own size along each side of larger pictures, at most
            `crops` x `crops`; the score is the mean of the whole picture's and of the windows' mean. 0: none.
        deterministic: every pass has the same number of rows, filled up with grey, so that a score has the same bits
            in any company.
        compile: passes are compiled, on CUDA with graphs, and have the same number of rows.
    """

    level_weights: tuple[float, ...] = FIVE_TO_ONE
    crops: int = 0
    deterministic: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        weights = self.level_weights
        if len(weights) != len(LEVELS) or not all(math.isfinite(w) for w in weights):
            raise ValueError(f"level_weights={list(weights)}: one finite number for each of {', '.join(LEVELS)}")
        if any(better <= worse for better, worse in zip(weights, weights[1:], strict=False)):
            raise ValueError(f"level_weights={list(weights)}: must fall from excellent to bad")
        if isinstance(self.crops, bool) or not isinstance(self.crops, int) or not 0 <= self.crops <= 8:
            raise ValueError(f"crops={self.crops!r}: a whole number from 0 (none) to 8")


class OwlScorer:
    """Scores by an mPLUG-Owl2; `deqa` and `qalign` differ in their weights only.

    Args:
        weights: folder of the release: a whole network, or a LoRA.
        base: folder of the network that a LoRA was trained on.
        device: where to run.
        dtype: float32, bfloat16, float16, or auto, which is bfloat16 where the device multiplies it in hardware.
        batch: pictures a pass at most; halved, with a warning, when memory runs out.
        level_weights, crops, deterministic, compile: of `ScoreSettings`.

    Attributes:
        preferred_batch: pictures of one call that fill a pass; least_side, native_side: pixels a side that pictures
            must have, and that the network sees.

    Raises:
        ValueError: files that are absent or don't fit, with their names; a setting that is none; `deterministic` where
            the device doesn't keep it.
        RuntimeError: `compile` where torch can't.
        MemoryError: the weights don't fit on the device.
    """

    name: ClassVar[str]
    least_side = LEAST_SIDE

    def __init__(
        self,
        weights: str | Path | None = None,
        base: str | Path | None = None,
        device: str = "cpu",
        dtype: str = "auto",
        batch: int = 32,
        level_weights: Sequence[float] = FIVE_TO_ONE,
        crops: int = 0,
        deterministic: bool = False,
        compile: bool = False,
    ) -> None:
        if weights is None:
            raise ValueError(f"scorer {self.name} needs `weights`, the folder of its release: see docs/reward.md")
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ValueError(f"batch={batch!r}: a whole number of at least 1")
        self.settings = ScoreSettings(tuple(map(float, level_weights)), crops, deterministic, compile)
        self.batch, self.device = batch, torch.device(device)
        self.dtype = _dtype(dtype, self.device)
        try:
            for folder in (weights, base):
                if folder is not None:
                    check_tokenizer(Path(folder))
            loaded = load_owl2(Path(weights), None if base is None else Path(base), self.device, self.dtype)
        except CheckpointError as error:
            raise ValueError(f"scorer {self.name}: {error}") from error
        except (RuntimeError, MemoryError) as error:
            if not is_memory(error):
                raise
            raise MemoryError(
                f"scorer {self.name}: the weights don't fit on {device} in {self.dtype}: free memory, or give it a "
                "larger device or part of one"
            ) from error
        self.config, self.parameters = loaded.network.config, loaded.parameters
        self.native_side = self.config.vision.image_size
        self.range = (self.settings.level_weights[-1], self.settings.level_weights[0])
        self.version = self._version(loaded.digest)
        self._values = torch.tensor(self.settings.level_weights, device=self.device)
        reader = LevelReader(loaded.network)
        self._read: Any = self._compiled(reader) if compile else reader
        if deterministic:
            self._require_equal_bits()

    @property
    def preferred_batch(self) -> int:
        return self.batch

    @property
    def batch_tolerance(self) -> float:
        """Where a pass has other numbers of rows, products of matrices add up in another order."""
        if self.settings.deterministic or self.batch == 1:
            return 0.0
        low, high = self.range
        return BATCH_SHARES[self.dtype] * (high - low)

    @property
    def _filled(self) -> bool:
        """Whether passes are filled up to the batch."""
        return self.settings.deterministic or self.settings.compile

    def memory_bytes(self, batch: int | None = None) -> int:
        """An estimate of what the device must hold: the weights and, for `batch` pictures, the largest layer's work."""
        return weights_bytes(self.parameters, self.dtype) + work_bytes(self.config, self.dtype, batch or self.batch)

    @torch.inference_mode()
    def score(self, images: Any) -> np.ndarray:
        """uint8 [N, H, W, 3] RGB, sides of at least 32 -> float32 [N] in `range`; NaN where the network gives none.

        Raises:
            ValueError: another dtype or shape, or smaller pictures.
            MemoryError: not even one picture fits, or `deterministic` forbids a smaller batch.
        """
        images = check_block(images, LEAST_SIDE)
        height, width = images.shape[1:3]
        boxes: list[Box] = [(0, height, 0, width), *windows(height, width, self.native_side, self.settings.crops)]
        count = len(images)
        found = in_passes(
            self,
            count * len(boxes),
            lambda start, stop: self._scores(self._pixels(images, boxes, start, stop)),
            filled=self._filled,
            kept=self.settings.deterministic,
        )
        of_views = found.view(len(boxes), count)
        scores = of_views[0] if len(boxes) == 1 else (of_views[0] + of_views[1:].mean(0)) / 2
        return scores.cpu().numpy()

    def _pixels(self, images: np.ndarray, boxes: list[Box], start: int, stop: int) -> Tensor:
        """Normalised pixels of the views `start` to `stop`, where view n is box n // N of picture n % N."""
        parts, count = [], len(images)
        while start < stop:
            box, first = divmod(start, count)
            last = min(count, first + stop - start)
            top, bottom, left, right = boxes[box]
            # Pinned, so that the copy to a GPU doesn't wait for the pass before.
            shape, pinned = (last - first, bottom - top, right - left, 3), self.device.type == "cuda"
            block = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
            block.numpy()[:] = images[first:last, top:bottom, left:right]
            parts.append(prepare(block.to(self.device, non_blocking=True), self.native_side, self.dtype))
            start += last - first
        return torch.cat(parts)

    def _scores(self, pixels: Tensor) -> Tensor:
        """float32 [B] of normalised pixels [B, 3, S, S]."""
        rows = len(pixels)
        if self._filled:
            grey = pixels.new_zeros(self.batch - rows, *pixels.shape[1:])
            pixels = torch.cat([pixels, grey])
        # row by row: a product of matrices may add up in another order for other numbers of rows
        levels = self._read(pixels)[:rows].softmax(-1)
        return (levels * self._values).sum(-1)

    def _version(self, digest: str) -> str:
        said = {**asdict(self.settings), "dtype": str(self.dtype), "preparation": PREPARATION, "weights": digest}
        if self.settings.deterministic:
            said["batch"] = self.batch
        return f"{self.name}-{hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]}"

    def _compiled(self, reader: LevelReader) -> Any:
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"
        compiled = torch.compile(reader, fullgraph=True, dynamic=False, mode=mode)
        side = self.native_side
        try:
            with torch.inference_mode():
                compiled(torch.zeros(self.batch, 3, side, side, device=self.device, dtype=self.dtype))
        except Exception as error:
            if is_memory(error):
                raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise RuntimeError(
                f"scorer {self.name}: compile=true, but torch can't compile here ({reason}); set compile=false"
            ) from error
        return lambda pixels: compiled(pixels).clone()  # a graph's output is overwritten by its next run

    @torch.inference_mode()
    def _require_equal_bits(self) -> None:
        """Raises ValueError unless a picture has the same bits in every row and beside every other."""
        shape = (self.batch, 3, self.native_side, self.native_side)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device, self.dtype)
        spread = spread_over_places(lambda order: self._scores(noise[list(order)]), self.batch)
        if spread:
            raise ValueError(
                f"scorer {self.name}: deterministic=true, but on {self.device} a picture's score differs by "
                f"{spread:.1e} with its place in a batch of {self.batch}: set batch=1, or another size"
            )


def weights_bytes(parameters: int, dtype: torch.dtype) -> int:
    return parameters * dtype.itemsize


def work_bytes(config: OwlConfig, dtype: torch.dtype, batch: int) -> int:
    """The largest layer's intermediate results, computed: four copies of an MLP's inside, eight of its width."""
    vision, text = config.vision, config.image_tokens + 16
    seeing = vision.tokens * (4 * vision.intermediate_size + 8 * vision.hidden_size)
    reading = text * (4 * config.intermediate_size + 8 * config.hidden_size)
    pixels = 3 * vision.image_size**2
    return int(batch * (dtype.itemsize * max(seeing, reading) + 12 * pixels))


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name in TYPES:
        return TYPES[name]
    # Only here: it loads diffusers, which the network itself doesn't need.
    from restoration.precision import resolve

    return resolve(name, device)
