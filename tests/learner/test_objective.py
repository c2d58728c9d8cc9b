import math

import pytest
import torch
from torch.distributions import Normal

from learner.difficulty import difficulty_weights
from learner.objective import ObjectiveSettings, approximate_kl, effective_sample_size, ratio_alarm, surrogate


def test_difficulty_is_the_error_relative_to_the_worst() -> None:
    weights = difficulty_weights(torch.tensor([1.0, 4.0, 2.0]))
    assert weights.dtype == torch.float64 and weights.tolist() == [0.25, 1.0, 0.5]


def test_difficulty_of_perfect_outputs_is_zero_not_nan() -> None:
    assert difficulty_weights(torch.zeros(3)).tolist() == [0, 0, 0]


def test_difficulty_of_one_sample_is_one() -> None:
    assert difficulty_weights(torch.tensor([0.3])).tolist() == [1.0]


@pytest.mark.parametrize("errors", [[1.0, math.nan], [math.inf, 1.0], [-1.0, 1.0], []])
def test_what_is_no_norm_is_refused(errors: list[float]) -> None:
    with pytest.raises(ValueError, match="difficulty"):
        difficulty_weights(torch.tensor(errors))


def test_the_surrogate_equals_equation_3_in_all_four_corners() -> None:
    log_ratio = torch.tensor([0.5, -0.5, 0.5, -0.5])
    advantage = torch.tensor([2.0, 2.0, -2.0, -2.0])
    found = surrogate(log_ratio, torch.zeros(4), advantage, clip=0.1)
    up, down = math.exp(0.5), math.exp(-0.5)
    expected = [min(up * 2, 1.1 * 2), down * 2, up * -2, min(down * -2, 0.9 * -2)]
    assert found.value.tolist() == pytest.approx(expected)
    assert found.clipped.tolist() == [True, False, False, True]


def test_a_clipped_decision_has_no_gradient() -> None:
    log_prob = torch.tensor([0.5, -0.5, 0.5, -0.5], requires_grad=True)
    surrogate(log_prob, torch.zeros(4), torch.tensor([2.0, 2.0, -2.0, -2.0]), 0.1).value.sum().backward()
    assert log_prob.grad is not None
    assert [g != 0 for g in log_prob.grad.tolist()] == [False, True, True, False]


def test_the_gradient_at_ratio_1_is_that_of_reinforce() -> None:
    mean = torch.tensor([[0.3, -0.2], [0.1, 0.4]], requires_grad=True)
    action, advantage = torch.tensor([[0.5, 0.1], [-0.3, 0.2]]), torch.tensor([1.5, -0.7])
    log_prob = Normal(mean, 0.5).log_prob(action).mean(1)
    reinforce = torch.autograd.grad((advantage * log_prob).sum(), mean, retain_graph=True)[0]
    clipped = surrogate(log_prob, log_prob.detach(), advantage, 1e-4).value.sum()
    torch.testing.assert_close(torch.autograd.grad(clipped, mean)[0], reinforce)


def test_the_effective_sample_size_is_full_for_equal_ratios_and_one_for_a_single_one() -> None:
    assert effective_sample_size(8.0, 16.0, 4) == 1.0
    assert effective_sample_size(4.0, 16.0, 4) == 0.25
    assert effective_sample_size(0.0, 0.0, 0) == 1.0


def test_the_approximate_kl_is_never_negative_and_right_on_average() -> None:
    torch.manual_seed(0)
    old, new = Normal(0.0, 1.0), Normal(0.3, 1.0)
    x = old.sample((200_000,))
    found = approximate_kl(new.log_prob(x), old.log_prob(x))
    assert bool((found >= -1e-7).all())
    assert float(found.mean()) == pytest.approx(0.045, rel=0.02)


def test_recipes_choose_the_terms_and_their_weights() -> None:
    w = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    ours, sft = ObjectiveSettings(), ObjectiveSettings(recipe="diff_sft")
    assert ours.sft_weights(w).tolist() == [1, 0.75, 0] and ours.rl_weights(w).tolist() == w.tolist()
    assert sft.sft_weights(w).tolist() == w.tolist() and sft.needs_sft and not sft.needs_policy
    plain = ObjectiveSettings(use_weights=False, rl_coef=2.0, sft_coef=0.5)
    assert plain.rl_weights(w).tolist() == [2, 2, 2] and plain.sft_weights(w).tolist() == [0.5, 0.5, 0.5]
    base = ObjectiveSettings(recipe="base")
    assert not (base.needs_sft or base.needs_policy or base.needs_reference)
    assert not ObjectiveSettings(recipe="diff_sft", kl_beta=1.0).needs_reference


@pytest.mark.parametrize(
    "field", [{"recipe": "x"}, {"clip": 0.0}, {"kl_beta": -1.0}, {"difficulty_norm": "l3"}, {"rl_coef": math.nan}]
)
def test_a_wrong_setting_is_named(field: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"objective.{next(iter(field))}"):
        ObjectiveSettings(**field)  # type: ignore[arg-type]


def test_ratios_that_leave_the_clip_before_any_update_are_an_alarm_that_says_what_to_do() -> None:
    said = ratio_alarm(2.5e-4, 1e-4)
    assert said is not None and "0.00025 > objective.clip=0.0001" in said
    assert "match dtypes and batch shapes" in said and "learner.old_log_probs=recompute" in said
    assert ratio_alarm(1e-4, 1e-4) is None and ratio_alarm(None, 1e-4) is None
