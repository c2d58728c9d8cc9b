"""What a picture is too small for is told before a run starts."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.config.recipe import RunConfig
from cluster.config.tree import Problem
from cluster.run.checks.small_pictures import small_pictures
from restoration.metrics import protocol
from restoration.metrics.protocols import SSIM_WINDOW
from reward_service.scorers import LEAST_SIDE, SCORERS, make_scorer


def found(sizes: list[tuple[int, int]], **config: object) -> list[Problem | str]:
    names = [f"p{n}" for n in range(len(sizes))]
    return list(small_pictures(RunConfig(model="m", **config), sizes, names))  # type: ignore[arg-type]


def test_held_out_pictures_that_will_lack_a_figure_are_named_with_the_key_that_asks_for_it() -> None:
    config = {"reward": {"scorer": "lite0_levels"}, "evaluation": {"scorers": ["piqe"]}}
    assert found([(64, 64), (100, 64)], **config) == []
    ssim, reward, judge = found([(128, 128), (8, 9), (128, 15)], **config)
    assert str(ssim).startswith("evaluation.protocol: SSIM takes pictures of at least 11 pixels a side, and 1 of 3")
    assert "(p1 9x8): its means leave them out" in str(ssim)
    assert "reward.scorer: lite0_levels" in str(reward) and "2 of 3" in str(reward)
    assert "evaluations leave them out" in str(reward)
    assert "evaluation.scorers: piqe" in str(judge) and "(p1 9x8, p2 15x128)" in str(judge)


def test_a_crop_that_the_reward_refuses_is_a_problem() -> None:
    (problem,) = found([(64, 64)], reward={"scorer": "lite0_levels"}, rollout={"crop": 32})
    assert isinstance(problem, Problem) and problem.key == "rollout.crop" and "at least 64" in str(problem)
    assert found([(64, 64)], reward={"scorer": "mine:Scorer"}, rollout={"crop": 32}) == []


USERS_WEIGHTS = {"clip_iqa", "deqa", "level_tokens", "qalign"}
"""Scorers that can't be made of what is shipped; their own tests hold them to their least side."""


@pytest.mark.parametrize("name", sorted(SCORERS.keys() - USERS_WEIGHTS))
def test_the_least_side_of_a_scorer_is_what_it_takes(name: str) -> None:
    scorer, side = make_scorer(name), LEAST_SIDE[name]
    pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    assert np.isfinite(scorer.score(pixels)).all()
    with pytest.raises(ValueError, match="too small"):
        scorer.score(pixels[:, 1:])


def test_the_least_side_of_ssim_is_its_window() -> None:
    picture = np.zeros((SSIM_WINDOW, SSIM_WINDOW, 3), np.uint8)
    assert protocol().ssim(picture, picture) == 1
    with pytest.raises(ValueError, match="at least 11 px"):
        protocol().ssim(picture[1:], picture[1:])
