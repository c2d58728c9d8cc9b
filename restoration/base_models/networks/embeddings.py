"""Embeddings of single pictures, which the user has made with other networks (captions, tags, RAM's features)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from restoration.checkpoints import CheckpointError, read_state
from restoration.image_files import find_named


class PerImage:
    """FOLDER/<image id>.safetensors: tensors [1, ...] by name, which take the place of a model's stored ones.

    Raises:
        CheckpointError: no such folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise CheckpointError(
                f"{folder} is not a folder; give the one with <image id>.safetensors for each picture"
            )

    def __call__(self, image_ids: Sequence[str]) -> dict[str, Tensor]:
        """Float32 [B, ...] by name.

        Raises:
            CheckpointError: a file is absent, or names or shapes differ within the batch.
        """
        found = [read_state(find_named(self.folder, f"{image_id}.safetensors")) for image_id in image_ids]
        for image_id, tensors in zip(image_ids, found, strict=True):
            here, there = ({k: tuple(v.shape) for k, v in each.items()} for each in (tensors, found[0]))
            if here != there or any(shape[:1] != (1,) for shape in here.values()):
                raise CheckpointError(
                    f"{self.folder}: {image_id} has {here}, {image_ids[0]} has {there}: each tensor is [1, ...], "
                    "and of one shape in all pictures of a batch; pad texts to one length"
                )
        return {name: torch.cat([tensors[name].float() for tensors in found]) for name in found[0]}
