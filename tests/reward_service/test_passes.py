"""Passes through a network: what is found when a score depends on its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from reward_service.scorers.passes import spread_over_places


def of_items(order: Sequence[int]) -> Tensor:
    return torch.tensor([0.1, 0.2, 0.3, 0.4])[list(order)]


def nan_of_one(order: Sequence[int]) -> Tensor:
    return torch.where(torch.tensor(order) == 1, torch.nan, of_items(order))


@pytest.mark.parametrize("scores", [of_items, nan_of_one])
def test_scores_of_the_items_alone_have_no_spread(scores: Callable[[Sequence[int]], Tensor]) -> None:
    assert spread_over_places(scores, 4) == 0 and spread_over_places(scores, 1) == 0


def last_of_some(order: Sequence[int]) -> Tensor:
    """Only some pictures show it, and only in the last row, as where a vector isn't filled."""
    return of_items(order) + torch.tensor([1e-3 * (i == 3 and item == 2) for i, item in enumerate(order)])


def beside_another(order: Sequence[int]) -> Tensor:
    return of_items(order) + 1e-3 * (len(set(order)) > 1)


def nan_in_a_place(order: Sequence[int]) -> Tensor:
    found = of_items(order)
    found[2] = torch.nan if order[2] else found[2]
    return found


@pytest.mark.parametrize(
    ("scores", "spread"), [(last_of_some, 1e-3), (beside_another, 1e-3), (nan_in_a_place, float("inf"))]
)
def test_a_place_or_a_mate_that_changes_a_score_is_found(
    scores: Callable[[Sequence[int]], Tensor], spread: float
) -> None:
    found = spread_over_places(scores, 4)
    assert found == spread or found == pytest.approx(spread, rel=1e-3)
