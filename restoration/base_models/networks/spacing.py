"""The timesteps of DiffBIR's own sampler."""

from __future__ import annotations

import numpy as np

from restoration.transition import Prediction, Schedule, ddim_step


def linspace_timesteps(train_timesteps: int, steps: int) -> list[int]:
    """Timesteps DiffBIR's sampler visits, noisiest first.

    They are summed up in floating point as DiffBIR does: at 21, 23, 31 steps and some more a half-way value then
    rounds to the other side than in diffusers.

    Raises:
        ValueError: steps outside [1, train_timesteps].
    """
    if not 1 <= steps <= train_timesteps:
        raise ValueError(f"steps={steps} must lie between 1 and the {train_timesteps} training steps")
    if steps == 1:
        return [train_timesteps - 1]
    stride, position, visited = (train_timesteps - 1) / (steps - 1), 0.0, []
    for _ in range(steps):
        visited.append(round(position))
        position += stride
    return visited[::-1]


def linspace_schedule(alphas: np.ndarray, steps: int, eta: float, prediction: Prediction) -> Schedule:
    """DiffBIR's chain over `alphas` (cumulative, [train steps]), ending noiselessly in the clean estimate."""
    visited = linspace_timesteps(len(alphas), steps)
    at = [float(alphas[t]) for t in visited] + [1.0]
    return Schedule(tuple(ddim_step(i, t, at[i], at[i + 1], eta, prediction) for i, t in enumerate(visited)))
