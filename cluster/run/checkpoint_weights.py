"""The weights of a checkpoint, as actors take them to evaluate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import ray

from learner import checkpoint
from learner.snapshot import AVERAGE_FILE, STATE_FILES
from restoration.weights import WeightsInfo, WeightsMessage, to_bytes


def weights_of(root: Path, iteration: int, epoch: int, run_id: str) -> dict[str, WeightsMessage]:
    """The weights of an iteration ("now") and their average ("ema") if its checkpoint below `root` has one.

    This process owns them in the object store: they outlive the rank that made them.

    Raises:
        CheckpointError: no such checkpoint, or a damaged one.
    """
    import safetensors.torch

    folder = next((p for p in checkpoint.checkpoints(root) if checkpoint.step_of(p) == iteration), None)
    if folder is None:
        raise checkpoint.CheckpointError(f"{root} holds no checkpoint of iteration {iteration}")
    info = WeightsInfo(iteration, epoch, run_id)
    there = [f for f in (STATE_FILES[0], AVERAGE_FILE) if (folder / f).is_file()]
    messages = {}
    for name, content in checkpoint.read(folder, there).items():
        data = to_bytes(safetensors.torch.load(content), info)
        averaged = name == AVERAGE_FILE
        messages["ema" if averaged else "now"] = WeightsMessage(
            iteration, epoch, ray.put(np.frombuffer(data, np.uint8)), averaged
        )
    return messages
