"""Records for benchmarks that read no values."""

from __future__ import annotations

from typing import Any

import torch

from trajectories.schema import RecordMeta, Trajectories


def make_record(
    group_id: str,
    states: torch.Tensor,
    targets: torch.Tensor,
    *,
    run_id: str = "bench",
    image_id: str = "image",
    **fields: Any,
) -> Trajectories:
    """A group of these latents, float32 [K, S, C, h, w]; all rewards and errors are 1 but for `fields`."""
    rows, steps, *latent = states.shape
    meta = RecordMeta(
        run_id=run_id,
        epoch=0,
        weights_version=1,
        reward_version="bench-1",
        scheduler_fingerprint="bench",
        dtype="float32",
        actor="actor-0",
        group_id=group_id,
        image_id=image_id,
        crop=(0, 0, 8 * latent[1], 8 * latent[2]),
        flip=False,
        seed=0,
    )
    content: dict[str, Any] = dict(
        meta=meta,
        trajectory_ids=[f"{group_id}/{k}" for k in range(rows)],
        latent=tuple(latent),
        states=states,
        targets=targets,
        step_index=torch.arange(steps, dtype=torch.int32),
        log_probs=torch.zeros(rows, steps),
        rewards=torch.ones(rows, steps),
        scored=torch.ones(rows, steps, dtype=torch.bool),
        final_reward=torch.ones(rows),
        gt_reward=1.0,
        error_l1=torch.ones(rows),
        error_l2=torch.ones(rows),
        shift=torch.zeros(rows, steps),
    )
    return Trajectories(**{**content, **fields})
