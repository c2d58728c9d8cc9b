"""Golden files of samplers, run through restoration.transition."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from restoration.base_models.latent import guided
from restoration.base_models.networks.spacing import linspace_schedule
from restoration.transition import (
    Prediction,
    Step,
    ddim_step,
    flow_step,
    scaled_linear_alphas,
    transition,
)
from tests.golden.case import Golden, Outputs
from tests.golden.networks import PREDICTIONS

OTHER_OUTPUT = 1.02  # the golden data replays a foreign action under the model output times this
CONDITIONS = {"cond": 0.3, "uncond": -0.2}  # of the toy network in diffbir_sampler's notes


def _values(step: Step, inputs: list[Tensor], other: Tensor) -> Outputs:
    """Everything a golden case holds of one step; a step without noise has no log-probability.

    Args:
        inputs: noisy latent, model output, noise.
    """
    x_t, output, noise = inputs
    drawn = transition(step, output, x_t, noise=noise)
    log_prob = log_prob_other = drawn.log_prob
    if step.is_decision:
        log_prob = transition(step, output, x_t, action=drawn.action).log_prob
        log_prob_other = transition(step, OTHER_OUTPUT * output, x_t, action=other).log_prob
    return {
        "prev": drawn.action,
        "mean": drawn.mean,
        "std": torch.full((x_t.shape[0],), drawn.std),
        "logp": log_prob,
        "other": other,  # an input, which the file keeps among its outputs
        "logp_other": log_prob_other,
    }


def _float32_alphas(config: dict[str, Any], zero_snr: bool) -> Any:
    """The table of diffusers, float32 numpy scalars.

    The reference takes 1 - alpha/alpha_prev in float32, which near the last step keeps only four digits: its
    log-probabilities differ from ours in float64 by up to 2e-3. Given float32 numbers, our step rounds as it does.
    """
    scheduler = DDIMScheduler(
        num_train_timesteps=config["num_train_timesteps"],
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
        beta_schedule=config["beta_schedule"],
        rescale_betas_zero_snr=zero_snr,
    )
    return scheduler.alphas_cumprod.numpy()


def ddim_logprob(golden: Golden) -> Outputs:
    config = golden.config
    total = config["num_train_timesteps"]
    tables = {zero_snr: _float32_alphas(config, zero_snr) for zero_snr in (False, True)}

    def step(t: int, previous: int, eta: float, prediction: Prediction, zero_snr: bool) -> Step:
        table = tables[zero_snr]
        return ddim_step(0, t, table[t], table[previous], eta, prediction)

    ours: Outputs = {}
    for name, zero_snr in (("alphas_cumprod", False), ("alphas_cumprod.zsnr", True)):
        alphas = scaled_linear_alphas(config["beta_start"], config["beta_end"], total, zero_snr)
        ours[name] = torch.from_numpy(alphas)
    for tag, case in config["cases"].items():
        k = case["k"]
        one = step(case["timestep"], case["prev_timestep_used"], case["eta"], case["prediction_type"], case["zero_snr"])
        inputs = [golden.inputs[f"{name}.k{k}"] for name in ("sample", "model_output", "noise")]
        values = _values(one, inputs, other=golden.outputs[f"{tag}.other"])
        ours |= {f"{tag}.{name}": value for name, value in values.items()}
    if "mixed.t" in golden.inputs:
        stride = total // config["num_inference_steps"]
        rows = []
        for row, t in enumerate(golden.inputs["mixed.t"].tolist()):
            one = step(t, min(max(t - stride, 0), total - 1), 1.0, "epsilon", False)
            inputs = [golden.inputs[f"mixed.{name}"][row : row + 1] for name in ("sample", "model_output", "noise")]
            rows.append(_values(one, inputs, other=inputs[0]))
        ours |= {f"mixed.{name}": torch.cat([r[name] for r in rows]) for name in rows[0]}
    return ours


def flow_sde_logprob(golden: Golden) -> Outputs:
    config = golden.config
    scheduler = FlowMatchEulerDiscreteScheduler(config["num_train_timesteps"], shift=config["shift"])
    scheduler.set_timesteps(config["num_inference_steps"])
    ours = {"sigmas": scheduler.sigmas, "timesteps": scheduler.timesteps}
    for tag, case in config["cases"].items():
        k = case["k"]
        guard = float(scheduler.sigmas[1])
        one = flow_step(k, case["sigma"], case["sigma_next"], case["noise_level"], guard, config["num_train_timesteps"])
        inputs = [golden.inputs[f"{name}.k{k}"] for name in ("sample", "model_output", "noise")]
        values = _values(one, inputs, other=golden.outputs[f"{tag}.other"])
        values["std_dev_t"] = values["std"] / (case["sigma"] - case["sigma_next"]) ** 0.5
        ours |= {f"{tag}.{name}": value for name, value in values.items()}
    return ours


def diffbir_sampler(golden: Golden) -> Outputs:
    config = golden.config
    ours: Outputs = {}
    for name, variant in config["variants"].items():
        alphas = scaled_linear_alphas(
            config["linear_start"], config["linear_end"], config["timesteps"], variant["zero_snr"]
        )
        prediction = PREDICTIONS[variant["parameterization"]]
        steps = linspace_schedule(alphas, config["steps"], 1.0, prediction).steps
        all_alphas = torch.from_numpy(alphas)
        ours[f"{name}.train_betas"] = 1 - all_alphas / torch.cat([torch.ones(1), all_alphas[:-1]])
        ours[f"{name}.timesteps"] = torch.tensor([s.timestep for s in steps])
        ours[f"{name}.posterior_variance"] = torch.tensor([s.std**2 for s in steps])
        for scale in config["cfg_scales"]:
            states, outputs = _toy_chain(steps, golden.inputs["x_T"], golden.inputs["noises"], scale)
            ours[f"{name}.cfg{scale:g}.x_prev"], ours[f"{name}.cfg{scale:g}.model_output"] = states, outputs
    return ours


def _toy_chain(steps: tuple[Step, ...], x: Tensor, noises: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """States after each step and the guided outputs of the golden file's toy network."""
    states, outputs = [], []
    for step, noise in zip(steps, noises, strict=True):
        branch = {k: torch.tanh(0.7 * x + 0.1 + c * step.timestep / 1000) for k, c in CONDITIONS.items()}
        outputs.append(guided(branch["uncond"], branch["cond"], scale))
        x = transition(step, outputs[-1], x, noise=noise).action
        states.append(x)
    return torch.stack(states), torch.stack(outputs)
