"""A scorer's promise: what lies beside a picture, before or behind it, is nothing to its score."""

from __future__ import annotations

import numpy as np
import torch

from reward_service.scorers import Scorer


def scores_in_any_company(scorer: Scorer, block: np.ndarray) -> np.ndarray:
    """The scores of a block, found to be the same bits in reverse with other threads, one by one and in two parts."""

    def found(*parts: np.ndarray) -> np.ndarray:
        return np.concatenate([scorer.score(part) for part in parts])

    together, threads = scorer.score(block), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert np.array_equal(found(block[::-1].copy())[::-1], together, equal_nan=True)
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(found(*(image[None] for image in block)), together, equal_nan=True)
    assert np.array_equal(found(block[:2], block[2:]), together, equal_nan=True)
    return together
