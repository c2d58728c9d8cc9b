"""Small random records for the tests of this room."""

from __future__ import annotations

from typing import Any

import torch

from trajectories.schema import STORAGE_DTYPES, RecordMeta, Summary, Trajectories


def make_record(
    group_id: str = "g0",
    *,
    run_id: str = "run",
    epoch: int = 0,
    dtype: str = "float32",
    shape: tuple[int, int, int, int, int] = (2, 3, 2, 4, 4),
    seed: int = 0,
    **fields: Any,
) -> Trajectories:
    """K, S, C, h, w = shape; about half of the steps are scored. `fields` replace fields of the record."""
    generator = torch.Generator().manual_seed(seed)
    rows, steps = shape[:2]

    def latent() -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(STORAGE_DTYPES[dtype])

    scored = torch.rand(rows, steps, generator=generator) > 0.5
    scored[:, -1] = True
    rewards = torch.where(scored, torch.rand(rows, steps, generator=generator), torch.nan)
    meta = RecordMeta(
        run_id=run_id,
        epoch=epoch,
        weights_version=7,
        reward_version="sharp-1",
        scheduler_fingerprint="ddim-5",
        dtype=dtype,
        actor="actor-0",
        group_id=group_id,
        image_id="coffee",
        crop=(8, 16, 32, 32),
        flip=True,
        seed=seed,
    )
    content: dict[str, Any] = dict(
        meta=meta,
        trajectory_ids=[f"{group_id}/{k}" for k in range(rows)],
        latent=shape[2:],
        states=latent(),
        targets=latent(),
        step_index=torch.arange(steps, dtype=torch.int32),
        log_probs=torch.randn(rows, steps, generator=generator),
        rewards=rewards,
        scored=scored,
        final_reward=rewards[:, -1].clone(),
        gt_reward=0.75,
        error_l1=torch.rand(rows, generator=generator),
        error_l2=torch.rand(rows, generator=generator),
        shift=torch.rand(rows, steps, generator=generator),
    )
    return Trajectories(**{**content, **fields})


SMALL = ("step_index", "rewards", "scored", "final_reward", "error_l1", "error_l2", "shift")
LARGE = ("states", "targets", "log_probs")


def assert_same(a: Summary, b: Summary) -> None:
    """The same kind of record, and every field exactly equal."""
    assert type(a) is type(b)
    assert (a.meta, a.trajectory_ids, a.latent, a.gt_reward) == (b.meta, b.trajectory_ids, b.latent, b.gt_reward)
    assert list(a.terms) == list(b.terms)
    for name, values in a.terms.items():
        assert repr(values.tolist()) == repr(b.terms[name].tolist()), name
    for name in SMALL + (LARGE if isinstance(a, Trajectories) else ()):
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == right.dtype and left.shape == right.shape, name
        assert repr(left.tolist()) == repr(right.tolist()), name  # repr, so that NaN equals NaN
