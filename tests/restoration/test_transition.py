"""Properties of a step, for steps and latents of any kind; parity with other implementations is in test_golden."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from restoration.transition import (
    Schedule,
    Step,
    ddim_schedule,
    enhanced_action,
    flow_schedule,
    gaussian_kl,
    gaussian_log_prob,
    one_step_schedule,
    predict_x0,
    scaled_linear_alphas,
    transition,
    transition_mean,
)

SHAPE = (3, 2, 4, 5)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    kind = draw(st.sampled_from(["epsilon", "v_prediction", "sample", "flow", "one step"]))
    if kind == "flow":
        sigmas = sorted(draw(st.sets(st.integers(1, 99), min_size=1, max_size=6)), reverse=True)
        return flow_schedule([1.0, *(s / 100 for s in sigmas), 0.0], draw(st.floats(0.1, 1.2)))
    if kind == "one step":
        return one_step_schedule(draw(st.integers(0, 999)), draw(st.floats(-1, 1)), draw(st.floats(-1, 1)), 0.2)
    zero_snr = kind == "v_prediction" and draw(st.booleans())
    spacing = draw(st.sampled_from(["leading", "trailing", "linspace"]))
    alphas = scaled_linear_alphas(zero_terminal_snr=zero_snr)
    return ddim_schedule(alphas, draw(st.integers(2, 12)), draw(st.floats(0.05, 1.0)), kind, spacing)  # type: ignore[arg-type]


def draw_tensors(seed: int, count: int) -> list[torch.Tensor]:
    return list(torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed)))


def a_decision(schedule: Schedule, seed: int) -> Step:
    return schedule.decisions[seed % len(schedule.decisions)]


@given(schedules(), seeds)
def test_log_probs_are_the_mean_density_of_torch_distributions(schedule: Schedule, seed: int) -> None:
    step = a_decision(schedule, seed)
    output, x_t, noise = draw_tensors(seed, 3)
    sampled = transition(step, output, x_t, noise=noise)
    density = Normal(sampled.mean.double(), step.std).log_prob(sampled.action.double()).flatten(1).mean(1)
    assert torch.allclose(sampled.log_prob.double(), density, atol=2e-5, rtol=1e-5)


@given(schedules(), seeds, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_a_stored_action_replays_with_ratio_1(schedule: Schedule, seed: int, dtype: torch.dtype) -> None:
    step = a_decision(schedule, seed)
    output, x_t, noise = draw_tensors(seed, 3)
    x_t = x_t.to(dtype).float()
    sampled = transition(step, output, x_t, noise=noise, storage_dtype=dtype)
    stored = sampled.action.to(dtype)
    replayed = transition(step, output, x_t, action=stored)
    assert (replayed.log_prob - sampled.log_prob).exp().sub(1).abs().max() <= 1e-6


@given(seeds, st.floats(1e-3, 2.0))
def test_the_kl_is_that_of_torch_distributions(seed: int, std: float) -> None:
    mean, other = draw_tensors(seed, 2)
    expected = kl_divergence(Normal(mean.double(), std), Normal(other.double(), std)).flatten(1).mean(1)
    assert torch.allclose(gaussian_kl(mean, other, std).double(), expected, rtol=1e-5)
    assert float(gaussian_kl(mean, mean, std).max()) == 0


@given(seeds, st.floats(0.05, 2.0))
def test_the_gradient_of_the_ratio_at_1_is_that_of_the_log_density(seed: int, std: float) -> None:
    mean, action = draw_tensors(seed, 2)
    mean.requires_grad_()
    log_prob = gaussian_log_prob(action, mean, std)
    ratio = torch.autograd.grad((log_prob - log_prob.detach()).exp().sum(), mean, retain_graph=True)[0]
    reinforce = torch.autograd.grad(Normal(mean, std).log_prob(action).flatten(1).mean(1).sum(), mean)[0]
    assert torch.allclose(ratio, reinforce, rtol=1e-4, atol=1e-6)


@given(schedules(), seeds)
def test_the_enhanced_action_is_the_sample_drawn_around_the_better_mean(schedule: Schedule, seed: int) -> None:
    step = a_decision(schedule, seed)
    output, x_t, noise, better = draw_tensors(seed, 4)
    taken = transition(step, output, x_t, noise=noise)
    expected = transition_mean(step, x_t, better) + step.std * noise
    found = enhanced_action(step, x_t, taken.x0, better, taken.action)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-3 * float(expected.abs().max()))


@given(st.floats(0.05, 1.0), st.integers(1, 998), seeds)
def test_ddim_equals_the_formula_of_the_paper(eta: float, timestep: int, seed: int) -> None:
    """σ = η √((1-ᾱ_p)/(1-ᾱ_t)) √(1-ᾱ_t/ᾱ_p), μ = √ᾱ_p x̂0 + √(1-ᾱ_p-σ²) ε̂."""
    alphas = scaled_linear_alphas()
    steps = ddim_schedule(alphas, 1000, eta, "epsilon", "leading").steps
    step = steps[999 - timestep]
    a, p = float(alphas[timestep]), float(alphas[timestep - 1])
    sigma = eta * math.sqrt((1 - p) / (1 - a)) * math.sqrt(1 - a / p)
    eps, x_t = (t.double() for t in draw_tensors(seed, 2))
    x0 = (x_t - math.sqrt(1 - a) * eps) / math.sqrt(a)
    mean = math.sqrt(p) * x0 + math.sqrt(1 - p - sigma**2) * eps
    assert step.timestep == timestep and step.std == pytest.approx(sigma, rel=1e-9)
    found = transition_mean(step, x_t, predict_x0(step, eps, x_t))
    assert torch.allclose(found.double(), mean, rtol=1e-4, atol=1e-4)


def test_a_step_without_noise_is_executed_and_never_replayed() -> None:
    step = ddim_schedule(scaled_linear_alphas(), 4, 1.0, "epsilon").steps[-1]
    output, x_t, noise = draw_tensors(0, 3)
    taken = transition(step, output, x_t, noise=noise)
    assert not step.is_decision and taken.log_prob.isnan().all() and torch.equal(taken.action, taken.mean)
    with pytest.raises(ValueError, match="std 0"):
        transition(step, output, x_t, action=taken.action)


def test_equal_schedules_have_equal_fingerprints_and_others_do_not() -> None:
    def fingerprint(eta: float = 1.0, steps: int = 4) -> str:
        return ddim_schedule(scaled_linear_alphas(), steps, eta, "epsilon").fingerprint

    assert fingerprint() == fingerprint()
    assert len({fingerprint(), fingerprint(eta=0.9), fingerprint(steps=5)}) == 3


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ddim_schedule(scaled_linear_alphas(), 4, 0.0, "epsilon"), "eta=0"),
        (lambda: ddim_schedule(scaled_linear_alphas(zero_terminal_snr=True), 4, 1.0, "epsilon"), "zero terminal SNR"),
        (lambda: flow_schedule([0.5, 0.7, 0.0], 0.7), "must fall"),
        (lambda: flow_schedule([1.0, 0.5, 0.0], 0.0), "noise_level=0"),
        (lambda: one_step_schedule(999, 0.0, 1.0, 0.0), "std=0"),
    ],
)
def test_a_policy_without_noise_or_sense_is_refused(make, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=said):
        make()
