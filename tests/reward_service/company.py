"""A scorer's promises: what lies beside a picture, before or behind it, is nothing to its score; it writes nothing."""

from __future__ import annotations

import warnings

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


def reads_only(scorer: Scorer, block: np.ndarray) -> None:
    """Pictures in shared memory, which may not be written, have the scores of others, and nothing is said of it."""
    before = scorer.score(block.copy())
    shared = block.copy()
    shared.setflags(write=False)
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # torch says once a process what it has to say of such arrays
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(scorer.score(shared), before)
    finally:
        torch.set_warn_always(always)
