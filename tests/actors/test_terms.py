"""Several scores become one reward."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actors.terms import RewardTerms, Term, recorded_version

NAN = torch.nan
IQA, PSNR = Term("iqa"), Term("psnr", 0.3, "psnr", served=False)


def scores(seed: int = 0, rows: int = 6, scale: float = 1.0) -> torch.Tensor:
    values = torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed)) * scale
    values[:, 0] = NAN
    return values


def test_one_term_of_weight_1_is_the_reward_to_the_bit() -> None:
    values = scores()
    combined = RewardTerms((IQA, Term("watched", 0.0))).combined({"iqa": values}, 3)
    assert torch.equal(combined.nan_to_num(9), values.nan_to_num(9)) and combined.dtype == torch.float32


def test_the_sum_weights_each_term_and_leaves_unscored_steps_unscored() -> None:
    a, b = scores(0), scores(1)
    combined = RewardTerms((IQA, PSNR)).combined({"iqa": a, "psnr": b}, 3)
    assert combined[:, 0].isnan().all()
    assert np.allclose(combined[:, 1], a[:, 1].double() + 0.3 * b[:, 1].double(), atol=1e-7)


def test_gdpo_normalises_each_term_in_its_own_group_so_that_its_scale_does_not_count() -> None:
    a, b, terms = scores(0), scores(1), RewardTerms((IQA, PSNR), "gdpo")
    combined = terms.combined({"iqa": a, "psnr": b}, 3)
    stretched = terms.combined({"iqa": a, "psnr": 50 * b + 7}, 3)
    assert torch.allclose(combined[:, 1], stretched[:, 1], atol=1e-4)
    for image in (slice(0, 3), slice(3, 6)):
        expected = sum(w * (v - v.mean()) / v.std(correction=0) for w, v in ((1, a[image, 1]), (0.3, b[image, 1])))
        assert torch.allclose(combined[image, 1], expected, atol=1e-4)  # type: ignore[arg-type]


def test_a_term_that_is_equal_for_a_whole_group_says_nothing_under_gdpo() -> None:
    equal = torch.full((6, 2), 3.3)
    combined = RewardTerms((IQA, PSNR), "gdpo").combined({"iqa": scores(0), "psnr": equal}, 3)
    alone = RewardTerms((IQA,), "gdpo").combined({"iqa": scores(0)}, 3)
    assert torch.allclose(combined[:, 1], alone[:, 1], atol=1e-6)


def test_the_version_is_the_scorers_own_and_of_several_changes_with_versions_weights_and_combination() -> None:
    assert RewardTerms((IQA,)).version({"iqa": "iqa-7"}) == "iqa-7"
    base = RewardTerms((IQA, PSNR)).version({"iqa": "iqa-7", "psnr": "p"})
    others = {
        RewardTerms((IQA, PSNR)).version({"iqa": "iqa-8", "psnr": "p"}),
        RewardTerms((IQA, Term("psnr", 0.4, "psnr", served=False))).version({"iqa": "iqa-7", "psnr": "p"}),
        RewardTerms((IQA, PSNR), "gdpo").version({"iqa": "iqa-7", "psnr": "p"}),
        RewardTerms((Term("iqa", 2.0),)).version({"iqa": "iqa-7"}),
    }
    assert len(others | {base}) == 5 and base.startswith("sum(1 iqa, 0.3 psnr)-")
    assert recorded_version(RewardTerms((IQA, PSNR)), {"iqa": "iqa-7"}) == RewardTerms((IQA, PSNR)).version(
        {"iqa": "iqa-7", "psnr": "psnr-1-lowlight_rgb"}
    )


def test_no_term_that_is_trained_on_and_an_unknown_combination_are_refused() -> None:
    with pytest.raises(ValueError, match="weight above 0"):
        RewardTerms((Term("iqa", 0.0),))
    with pytest.raises(ValueError, match="combine='mean': choose sum or gdpo"):
        RewardTerms((IQA,), "mean")
