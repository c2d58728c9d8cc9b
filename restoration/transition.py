"""One denoising step: the same function samples it and replays it.

Every sampler used here has a Gaussian transition whose mean is linear in the noisy latent and in the
predicted clean latent, and a clean latent that is linear in the noisy latent and the network's output:

    x̂0 = x0_from_x * x_t + x0_from_out * output,    μ = mean_from_x * x_t + mean_from_x0 * x̂0

so a step is five numbers. The builders below give them for DDIM (η=1 is DDPM), the flow SDE of Flow-GRPO
and the one-step policy; method.md 2, 3 and 9 hold the formulas.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample"]
Spacing = Literal["leading", "trailing", "linspace"]


@dataclass(frozen=True)
class Step:
    """Coefficients of one step; `timestep` is what the network is given."""

    index: int
    timestep: float
    x0_from_x: float
    x0_from_out: float
    mean_from_x: float
    mean_from_x0: float
    std: float

    @property
    def is_decision(self) -> bool:
        """A step without noise is executed but never trained on."""
        return self.std > 0


@dataclass(frozen=True)
class Schedule:
    """The steps of a chain, noisiest first."""

    steps: tuple[Step, ...]

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def decisions(self) -> tuple[Step, ...]:
        return tuple(s for s in self.steps if s.is_decision)

    def for_training(self) -> Schedule:
        """The chain itself.

        Raises:
            ValueError: no step of it is a decision, so that there is nothing to train.
        """
        if not self.decisions:
            raise ValueError(
                f"sampler.steps={len(self)}: the last step of this chain takes no noise, and no other step is left to "
                "be trained; choose at least 2 steps"
            )
        return self

    @property
    def fingerprint(self) -> str:
        """Equal for two schedules exactly when all their coefficients are (to 12 digits)."""
        rows = [[float(f"{v:.12g}") for v in asdict(s).values()] for s in self.steps]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Transition:
    """action, mean, x0: float32 like x_t; std: float; log_prob: float32 [B], NaN where the step is no decision."""

    action: Tensor
    mean: Tensor
    std: float
    log_prob: Tensor
    x0: Tensor


def gaussian_log_prob(action: Tensor, mean: Tensor, std: float) -> Tensor:
    """Log-density of N(mean, std² I) at `action`, averaged over all but the first dimension; float32 [B]."""
    squared = (action.float() - mean.float()).square().flatten(1).mean(1)
    return -squared / (2 * std**2) - math.log(std) - 0.5 * math.log(2 * math.pi)


def gaussian_kl(mean: Tensor, reference_mean: Tensor, std: float) -> Tensor:
    """KL(N(mean, std²) || N(reference_mean, std²)) averaged over dimensions; float32 [B]. method.md 7."""
    return (mean.float() - reference_mean.float()).square().flatten(1).mean(1) / (2 * std**2)


def predict_x0(step: Step, output: Tensor, x_t: Tensor) -> Tensor:
    """The clean latent that the network's output stands for; float32 like x_t."""
    return step.x0_from_x * x_t.float() + step.x0_from_out * output.float()


def transition_mean(step: Step, x_t: Tensor, x0: Tensor) -> Tensor:
    """μ(x_t, x̂0); float32 like x_t."""
    return step.mean_from_x * x_t.float() + step.mean_from_x0 * x0.float()


def transition(
    step: Step,
    output: Tensor,
    x_t: Tensor,
    *,
    noise: Tensor | None = None,
    action: Tensor | None = None,
    storage_dtype: torch.dtype = torch.float32,
) -> Transition:
    """Sample a step (give `noise`, standard normal) or replay one (give `action`).

    A sampled action is rounded to `storage_dtype` before its log-probability is taken, so that a replay of
    the stored value under the same weights has ratio 1.

    Raises:
        ValueError: both or neither of noise and action; replay of a step that is no decision.
    """
    if (noise is None) == (action is None):
        raise ValueError("transition: give exactly one of noise (to sample) and action (to replay)")
    x0 = predict_x0(step, output, x_t)
    mean = transition_mean(step, x_t, x0)
    if action is None:
        assert noise is not None
        action = (mean + step.std * noise.float()).detach().to(storage_dtype).float()
        if not step.is_decision:
            return Transition(action, mean, 0.0, mean.new_full((mean.shape[0],), math.nan), x0)
    elif not step.is_decision:
        raise ValueError(f"transition: step {step.index} (timestep {step.timestep:g}) has std 0 and can't be replayed")
    action = action.detach().float()
    return Transition(action, mean, step.std, gaussian_log_prob(action, mean, step.std), x0)


def enhanced_action(step: Step, x_t: Tensor, x0: Tensor, x0_better: Tensor, action: Tensor) -> Tensor:
    """The action moved by what a better clean estimate moves the mean (method.md 3), same noise draw.

    x̂^enh = μ(x_t, x̂0') + (x_{t-1} - μ(x_t, x̂0)); for the linear mean this is mean_from_x0 (x̂0' - x̂0).
    """
    return action.float() + step.mean_from_x0 * (x0_better.float() - x0.float())


def scaled_linear_alphas(
    beta_start: float = 0.00085, beta_end: float = 0.012, count: int = 1000, zero_terminal_snr: bool = False
) -> np.ndarray:
    """ᾱ of the Stable-Diffusion schedule, float64 [count]; optionally rescaled to zero terminal SNR (2305.08891)."""
    alphas = np.cumprod(1 - np.linspace(math.sqrt(beta_start), math.sqrt(beta_end), count) ** 2)
    if zero_terminal_snr:
        root = np.sqrt(alphas)
        alphas = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return alphas


def spaced_timesteps(train_steps: int, steps: int, spacing: Spacing, steps_offset: int = 0) -> list[int]:
    """Timesteps visited, noisiest first, as diffusers spaces them."""
    if not 1 <= steps <= train_steps:
        raise ValueError(f"steps={steps} must lie between 1 and the {train_steps} training steps")
    if spacing == "linspace":
        visited = np.linspace(0, train_steps - 1, steps).round()[::-1] if steps > 1 else np.array([train_steps - 1])
    elif spacing == "leading":
        visited = (np.arange(steps) * (train_steps // steps))[::-1] + steps_offset
    else:
        visited = np.arange(train_steps, 0, -train_steps / steps).round()[:steps] - 1
    if not 0 <= visited[-1] <= visited[0] < train_steps:
        raise ValueError(
            f"steps={steps} with sampler.steps_offset={steps_offset}: the chain visits timesteps {int(visited[-1])} to "
            f"{int(visited[0])}, and there are 0 to {train_steps - 1}; choose a smaller offset"
        )
    return [int(t) for t in visited]


def ddim_step(index: int, timestep: float, alpha: float, alpha_prev: float, eta: float, prediction: Prediction) -> Step:
    """DDIM with η (η=1 is the DDPM posterior): σ = η √((1-ᾱ_p)/(1-ᾱ_t)) √(1-ᾱ_t/ᾱ_p).

    `alpha_prev` = 1 makes the last, noiseless step to x̂0.
    """
    variance = eta**2 * (1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)
    towards_noise = math.sqrt(max(1 - alpha_prev - variance, 0.0))  # √(1-ᾱ_p-σ²), factor of ε̂
    x0_from_x, x0_from_out = {
        "epsilon": lambda: (1 / math.sqrt(alpha), -math.sqrt(1 - alpha) / math.sqrt(alpha)),
        "v_prediction": lambda: (math.sqrt(alpha), -math.sqrt(1 - alpha)),
        "sample": lambda: (0.0, 1.0),
    }[prediction]()
    noise_per_x = towards_noise / math.sqrt(1 - alpha)  # ε̂ = (x_t - √ᾱ_t x̂0) / √(1-ᾱ_t)
    return Step(
        index=index,
        timestep=timestep,
        x0_from_x=x0_from_x,
        x0_from_out=x0_from_out,
        mean_from_x=noise_per_x,
        mean_from_x0=math.sqrt(alpha_prev) - noise_per_x * math.sqrt(alpha),
        std=math.sqrt(variance),
    )


def ddim_schedule(
    alphas: np.ndarray,
    steps: int,
    eta: float,
    prediction: Prediction,
    spacing: Spacing = "trailing",
    steps_offset: int = 0,
) -> Schedule:
    """A chain over `alphas` (ᾱ, [train steps]) that ends noiselessly in x̂0.

    Raises:
        ValueError: eta outside (0, 1]; a first timestep of zero SNR with epsilon prediction.
    """
    if not 0 < eta <= 1:
        raise ValueError(f"eta={eta}: a policy needs noise in its steps; choose 0 < eta <= 1")
    visited = spaced_timesteps(len(alphas), steps, spacing, steps_offset)
    if prediction == "epsilon" and alphas[visited[0]] <= 0:
        raise ValueError("epsilon prediction is undefined at zero terminal SNR; use v_prediction")
    previous = [float(alphas[t]) for t in visited[1:]] + [1.0]
    return Schedule(
        tuple(
            ddim_step(i, t, float(alphas[t]), alpha_prev, eta, prediction)
            for i, (t, alpha_prev) in enumerate(zip(visited, previous, strict=True))
        )
    )


def flow_step(
    index: int, sigma: float, sigma_next: float, noise_level: float, sigma_guard: float, train_steps: int = 1000
) -> Step:
    """SDE step of Flow-GRPO for a network that predicts v = noise - x0.

    s = a √(σ/(1-σ)) (at σ=1 `sigma_guard`, the next sigma, stands in the denominator), dt = σ'-σ,
    μ = x (1 + s²/(2σ) dt) + v (1 + s²(1-σ)/(2σ)) dt, std = s √(-dt); with v = (x - x̂0)/σ.
    """
    dt = sigma_next - sigma
    s2 = noise_level**2 * sigma / (1 - (sigma_guard if sigma >= 1 else sigma))
    of_v = (1 + s2 * (1 - sigma) / (2 * sigma)) * dt
    return Step(
        index=index,
        timestep=sigma * train_steps,
        x0_from_x=1.0,
        x0_from_out=-sigma,
        mean_from_x=1 + s2 / (2 * sigma) * dt + of_v / sigma,
        mean_from_x0=-of_v / sigma,
        std=math.sqrt(s2 * -dt),
    )


def flow_schedule(sigmas: list[float], noise_level: float) -> Schedule:
    """A chain over decreasing `sigmas`, ending in 0; its last step takes the ODE, without noise.

    Raises:
        ValueError: sigmas that don't fall from at most 1 to 0; noise_level not above 0.
    """
    falls = all(a > b for a, b in zip(sigmas, sigmas[1:], strict=False))
    if len(sigmas) < 2 or not falls or sigmas[0] > 1 or sigmas[-1] != 0:
        raise ValueError(f"sigmas must fall from at most 1 to 0, got {sigmas}")
    if noise_level <= 0:
        raise ValueError(f"noise_level={noise_level}: a policy needs noise in its steps")
    pairs = list(zip(sigmas, sigmas[1:], strict=False))
    return Schedule(
        tuple(
            flow_step(i, s, n, noise_level if n > 0 else 0.0, sigma_guard=sigmas[1]) for i, (s, n) in enumerate(pairs)
        )
    )


def one_step_schedule(timestep: float, x0_from_x: float, x0_from_out: float, std: float) -> Schedule:
    """The policy N(x̂(c), std² I) of a one-step restorer (method.md 9)."""
    if std <= 0:
        raise ValueError(f"std={std}: a policy needs noise in its steps")
    return Schedule((Step(0, timestep, x0_from_x, x0_from_out, mean_from_x=0.0, mean_from_x0=1.0, std=std),))
