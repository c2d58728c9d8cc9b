"""The whole state of a learner at one instant, in host memory, which any thread may write out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from learner import checkpoint
from learner.tensor_file import tensor_writer

STATE_FILES = ("weights.safetensors", "optimiser.safetensors", "learner.json", "tracks.safetensors")
AVERAGE_FILE = "average.safetensors"  # with optimiser.ema


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What a checkpoint holds of the learner. Later steps write to none of its tensors.

    Attributes:
        iteration, weights_version, averaged_updates: counters.
        weights, optimiser: as `Engine` gives them, float32; `weights` are the tensors that were published, not a copy.
        average: with `optimiser.ema`, else empty.
        tracks: `RewardTracks.columns()`.
        torch_rng: state of torch's global generator on rank 0, uint8.
    """

    iteration: int
    weights_version: int
    weights: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    averaged_updates: int
    tracks: Mapping[str, Tensor]
    torch_rng: Tensor

    def files(self) -> dict[str, checkpoint.Content]:
        """Contents by file name (`STATE_FILES`, `AVERAGE_FILE`), independent of ranks and ZeRO stage; cheap.

        Tensors are serialised when their writer is called, one at a time.
        """
        progress = {
            "iteration": self.iteration,
            "weights_version": self.weights_version,
            "averaged_updates": self.averaged_updates,
            "torch_rng": self.torch_rng.tolist(),
        }
        contents: tuple[checkpoint.Content, ...] = (
            tensor_writer(self.weights),
            tensor_writer(self.optimiser),
            json.dumps(progress).encode(),
            tensor_writer(self.tracks),
        )
        files = dict(zip(STATE_FILES, contents, strict=True))
        if self.average:
            files[AVERAGE_FILE] = tensor_writer(self.average)
        return files
