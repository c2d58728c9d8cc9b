"""Configurations and model facts for the checks, and what the checks say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.config.configure import load_config
from cluster.config.recipe import RunConfig
from cluster.run.checks.findings import Checked
from cluster.run.checks.pictures import Pictures
from cluster.run.flow import Size
from cluster.run.machine import Machine
from cluster.run.preflight import of_config, of_model
from restoration.base_models.interface import SamplerSettings
from restoration.transition import Schedule, ddim_schedule, flow_schedule, one_step_schedule, scaled_linear_alphas

CONFIGS = Path(__file__).parents[4] / "configs"
LOL = [(400, 600)] * 485


@dataclass(frozen=True)
class Facts:
    """A base model, as far as the checks see it."""

    kind: str = "diffbir"
    size_multiple: int = 64
    side_limit: int | None = None
    vae_factor: int = 8
    latent_channels: int = 4
    guidance: bool = True
    missing_embeddings: tuple[str, ...] = ()

    def schedule(self, sampler: SamplerSettings) -> Schedule:
        if self.kind in ("tsdsr", "pisa"):
            made = one_step_schedule(0, 1, -1, sampler.sigma)
        elif self.kind in ("controlnet_sd3", "controlnet_flux"):
            made = flow_schedule([1 - i / sampler.steps for i in range(sampler.steps + 1)], sampler.noise_level)
        else:
            alphas, spacing = scaled_linear_alphas(), sampler.spacing
            made = ddim_schedule(alphas, sampler.steps, sampler.eta, "epsilon", spacing, sampler.steps_offset)  # type: ignore[arg-type]
        if not made.decisions:
            raise ValueError(f"sampler.steps={len(made)}: no step is left to be trained; choose at least 2 steps")
        return made


def config_of(*overrides: str) -> RunConfig:
    return load_config(RunConfig, CONFIGS / "ours.yaml", ["model=models/x", *overrides])


def with_model(*overrides: str, facts: Facts | None = None, train: Sequence[Size] = LOL) -> Checked:
    return Checked.of(of_model(config_of(*overrides), facts or Facts(), Pictures(train, train)))


def alone(*overrides: str, machine: Machine | None = None) -> Checked:
    return Checked.of(of_config(config_of(*overrides), machine or Machine()))


def the_problem(found: Checked) -> tuple[str, str]:
    (problem,) = found.problems
    return problem.key, str(problem)
