"""CLIP-IQA (Wang, Chan, Loy, "Exploring CLIP for Assessing the Look and Feel of Images", 2023): how much nearer a
picture is to "Good photo." than to "Bad photo." in OpenAI's CLIP with a ResNet-50.

The weights (MIT) are the user's: OpenAI's RN50.pt, or its tensors as .safetensors.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from restoration.base_models.networks.text import END_TOKEN, START_TOKEN
from restoration.checkpoints import CheckpointError
from reward_service.scorers.clip_resnet import STRIDE, read_clip
from reward_service.scorers.digests import digest_of
from reward_service.scorers.interface import MEMORY_SIDE, check_block

# Ids of CLIP's tokens in "Good photo." and "Bad photo.", and in the other pairs; the first of each is the better.
PHOTO = (1125, 269)
ATTRIBUTES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "quality": ((886, *PHOTO), (2103, *PHOTO)),  # Good, Bad
    "brightness": ((4852, *PHOTO), (3144, *PHOTO)),  # Bright, Dark
    "sharpness": ((8157, *PHOTO), (21977, *PHOTO)),  # Sharp, Blurry
    "noise": ((3772, *PHOTO), (33495, *PHOTO)),  # Clean, Noisy
    "colour": ((11444, *PHOTO), (19433, *PHOTO)),  # Colorful, Dull
    "contrast": ((1400, 18501, *PHOTO), (1042, 18501, *PHOTO)),  # High contrast, Low contrast
}


class ClipIqa:
    """Scores 0 to 1; the mean over `attributes` of the better prompt's probability against the worse one's.

    Args:
        model: file of OpenAI's CLIP RN50.
        attributes: pairs of prompts, by name: quality (the published score), brightness, sharpness, noise, colour,
            contrast.
        device: where to run.
        batch: pictures at once. By default 1 on a CPU, where no company can then change a score, and 32 elsewhere,
            where it may (`batch_tolerance`).

    Raises:
        ValueError: the file is missing or is no such CLIP, or an unknown attribute or batch.
    """

    name = "clip_iqa"
    range = (0.0, 1.0)
    least_side = STRIDE

    def __init__(
        self,
        model: str = "",
        attributes: Sequence[str] = ("quality",),
        device: str = "cpu",
        batch: int | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.batch = batch if batch is not None else 1 if self.device.type == "cpu" else 32
        names = [attributes] if isinstance(attributes, str) else list(attributes)
        if unknown := [name for name in names if name not in ATTRIBUTES]:
            raise ValueError(
                f"scorer clip_iqa: reward.params.attributes={names}: no {unknown[0]!r}; choose of "
                f"{', '.join(ATTRIBUTES)}"
            )
        if not names:
            raise ValueError("scorer clip_iqa: reward.params.attributes=[]: name one at least, such as quality")
        if self.batch < 1:
            raise ValueError(f"scorer clip_iqa: reward.params.batch={batch}: 1 at least")
        if not model:
            raise ValueError(
                "scorer clip_iqa needs its weights: set reward.params.model to OpenAI's CLIP RN50.pt, or to its "
                "tensors as .safetensors"
            )
        try:
            clip = read_clip(Path(model))
        except CheckpointError as error:
            raise ValueError(f"scorer clip_iqa: {error}") from error
        tokens = _tokens(names, clip.text.config.context_length)
        self.texts = (clip.embed(tokens) * clip.scale).to(self.device)  # [2 * pairs, D]
        self.network = clip.visual.to(self.device)
        self.version = f"clip_iqa-1-{digest_of({**clip.state, 'tokens': tokens})}"

    @property
    def preferred_batch(self) -> int:
        return self.batch

    def memory_bytes(self, batch: int | None = None) -> int:
        """An estimate of what the device must hold for `batch` pictures of 512 x 512, by measured bytes a pixel."""
        weights = sum(v.numel() * v.itemsize for v in self.network.state_dict().values())
        return weights + min(batch or self.batch, self.batch) * MEMORY_SIDE**2 * 260

    @property
    def batch_tolerance(self) -> float:
        """A pass of one has no company; others add up in another order, elsewhere with TF32.

        Cosines are multiplied by 100: one that is off by 3e-4 moves a score by 0.0075.
        """
        return 0.0 if self.batch == 1 else 1e-5 if self.device.type == "cpu" else 0.02

    @torch.inference_mode()
    def score(self, images: Any) -> np.ndarray:
        """uint8 [N, H, W, 3] RGB, sides of at least 32 -> float32 [N].

        Raises:
            ValueError: another dtype or shape, or smaller sides.
        """
        images = check_block(images, STRIDE)
        found = []
        for start in builtins.range(0, len(images), self.batch):
            block = torch.tensor(images[start : start + self.batch], device=self.device)
            found.append(self._probability(block.permute(0, 3, 1, 2).float().div_(255)))
        return torch.cat(found).cpu().numpy()

    def _probability(self, images: Tensor) -> Tensor:
        logits = F.normalize(self.network(images), dim=-1) @ self.texts.T
        return logits.unflatten(-1, (-1, 2)).softmax(-1)[..., 0].mean(-1)


def _tokens(names: Sequence[str], length: int) -> Tensor:
    """Ids of the prompts of all pairs, int64 [2 * pairs, length]."""
    tokens = torch.zeros(2 * len(names), length, dtype=torch.int64)
    for row, ids in zip(tokens, (ids for name in names for ids in ATTRIBUTES[name]), strict=True):
        row[: len(ids) + 2] = torch.tensor([START_TOKEN, *ids, END_TOKEN])
    return tokens
