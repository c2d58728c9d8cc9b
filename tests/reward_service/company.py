"""A scorer's promise: what lies beside a picture, before or behind it, is nothing to its score."""

from __future__ import annotations

import numpy as np
import torch

from reward_service.scorers import Scorer


def scores_in_any_company(
    scorer: Scorer, block: np.ndarray, tolerance: float = 0.0, threads: int | None = 3
) -> np.ndarray:
    """The scores of a block, found to be the same in reverse, one by one, in two parts, and twice.

    Args:
        tolerance: the most that they may differ; 0: by no bit.
        threads: those of torch while the block is reversed; None for no others, where they may change rounding.
    """

    def require(*parts: np.ndarray, backwards: bool = False) -> None:
        scores = np.concatenate([scorer.score(part) for part in parts])
        scores = scores[::-1] if backwards else scores
        if tolerance:
            np.testing.assert_allclose(scores, together, rtol=0, atol=tolerance)
        else:
            np.testing.assert_array_equal(scores, together)

    together, usual = scorer.score(block), torch.get_num_threads()
    try:
        torch.set_num_threads(threads or usual)
        require(block[::-1].copy(), backwards=True)
    finally:
        torch.set_num_threads(usual)
    require(*(image[None] for image in block))
    require(block[:2], block[2:])
    require(block)
    return together
