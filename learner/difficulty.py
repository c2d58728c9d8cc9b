"""Difficulty of a sample (Eq. 9): its restoration error relative to the worst of the optimiser-step batch."""

from __future__ import annotations

import torch
from torch import Tensor


def difficulty_weights(errors: Tensor) -> Tensor:
    """w_i = ‖y_i - g_i‖ / max_j ‖y_j - g_j‖; float64 in [0, 1], all 0 if every error is 0.

    Args:
        errors: [N] norms of the final outputs' errors, of the whole batch, all ranks and micro-batches included.

    Raises:
        ValueError: an error that is negative or not finite, or no sample at all.
    """
    errors = errors.detach().to(torch.float64)
    if errors.ndim != 1 or len(errors) == 0:
        raise ValueError(f"difficulty: expected a non-empty vector of errors, got shape {tuple(errors.shape)}")
    if not torch.isfinite(errors).all() or bool((errors < 0).any()):
        bad = int((~torch.isfinite(errors) | (errors < 0)).nonzero()[0])
        raise ValueError(f"difficulty: error {float(errors[bad])} of sample {bad} is no norm; drop the sample")
    worst = errors.max()
    return errors / worst if worst > 0 else torch.zeros_like(errors)
