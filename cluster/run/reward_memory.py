"""Memory of a replica of the reward, known before its weights are there."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from cluster.run.memory_plan import RoleMemory
from restoration.checkpoints import CheckpointError, empty
from restoration.precision import AUTO
from reward_service.scorers.mplug_owl2.config import OwlConfig
from reward_service.scorers.mplug_owl2.loading import CONFIG, read_config
from reward_service.scorers.mplug_owl2.network import Owl2
from reward_service.scorers.mplug_owl2.scorer import TYPES, weights_bytes, work_bytes
from reward_service.settings import RewardSettings

OWLS = ("deqa", "qalign")
BATCH = 32  # of them, where params give none


def reward_memory(reward: RewardSettings, role: str = "reward") -> RoleMemory | None:
    """Of one replica; None where the size of the scorer isn't known.

    Args:
        role: what it is called in the plan.

    Sizes of `deqa` and `qalign` are those of the folder's config.json, or, where that isn't there, of their releases.
    """
    if reward.scorer not in OWLS:
        return None
    params: dict[str, Any] = reward.params
    config = owl_config(params)
    usual = torch.bfloat16 if reward.num_gpus else torch.float32
    dtype = TYPES.get(params.get("dtype", AUTO), usual)
    batch = int(params.get("batch") or BATCH)
    work = work_bytes(config, dtype, batch)
    kept = {"weights": weights_bytes(_parameters(config), dtype)}
    return RoleMemory(role, kept, {f"a pass of {batch} pictures": work})


@lru_cache(maxsize=4)
def _parameters(config: OwlConfig) -> int:
    return sum(p.numel() for p in empty(lambda: Owl2(config)).parameters())


def owl_config(params: dict[str, Any]) -> OwlConfig:
    """Sizes of the folder that params name; those of the releases where it isn't there."""
    file = Path(params.get("weights") or "") / CONFIG
    try:
        return read_config(file) if file.is_file() else OwlConfig()
    except CheckpointError:  # told when it is loaded
        return OwlConfig()
