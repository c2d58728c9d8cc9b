"""What a learner is told: the optimiser, how a batch is computed on, and the method's switches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from learner.advantage import AdvantageSettings
from learner.objective import ObjectiveSettings
from restoration.adapters import AdaptSettings
from restoration.base_models.interface import SamplerSettings


@dataclass(frozen=True)
class OptimiserSettings:
    """AdamW and how DeepSpeed shards it.

    Attributes:
        warmup: iterations over which the learning rate grows linearly to `lr`.
        grad_clip: largest global gradient norm, 0 for no clipping.
        ema: decay, an iteration, of an average of the trained weights that is evaluated beside them; 0 keeps none.
        zero_stage: 0 replicates, 1 shards optimiser state, 2 gradients too, 3 parameters too.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup: int = 0
    grad_clip: float = 1.0
    ema: float = 0.0
    zero_stage: int = 0

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"optimiser.zero_stage={self.zero_stage}: choose 0, 1, 2 or 3")
        if not self.lr > 0:
            raise ValueError(f"optimiser.lr={self.lr}: above 0")
        if not self.eps > 0:
            raise ValueError(f"optimiser.eps={self.eps}: above 0")
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"optimiser.betas={self.betas}: two numbers in [0, 1)")
        if not 0 <= self.ema < 1:
            raise ValueError(f"optimiser.ema={self.ema}: from 0 (none) to below 1")
        for name in ("weight_decay", "warmup", "grad_clip"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"optimiser.{name}={getattr(self, name)}: 0 or above")


@dataclass(frozen=True)
class StepSettings:
    """How a batch is computed on.

    Attributes:
        micro_batch: decisions, or samples of L_diff, of one forward; gradients accumulate over as many as needed.
        dtype: of the forward's matrix products (autocast); parameters, ratios and losses stay float32.
        updates_per_batch: optimiser steps a batch is divided into, by groups.
        inner_epochs: passes over a batch; with more than one update the later ones are off-policy (ratio is not 1).
        norms_every: iterations between measurements of the RL and SFT gradient norms, each an additional pass over the
            batch; 0 for never. Not available under ZeRO-3.
        gradient_checkpointing: recompute activations in the backward, where the networks can.
        timeout_s: longest wait for another rank before it counts as lost.
    """

    micro_batch: int = 8
    dtype: Literal["float32", "bfloat16"] = "float32"
    updates_per_batch: int = 1
    inner_epochs: int = 1
    norms_every: int = 10
    gradient_checkpointing: bool = False
    timeout_s: float = 1800.0

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"learner.dtype={self.dtype!r}: choose float32 or bfloat16")
        for name, least in (("micro_batch", 1), ("updates_per_batch", 1), ("inner_epochs", 1), ("norms_every", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"learner.{name}={getattr(self, name)}: at least {least}")
        if not self.timeout_s > 0:
            raise ValueError(f"learner.timeout_s={self.timeout_s}: above 0")


@dataclass(frozen=True)
class LearnerSettings(StepSettings):
    """Everything a rank needs besides the model and the pairs.

    Attributes:
        seed: of the timesteps and noise of L_diff.
        threads: CPU threads of the rank, 0 to leave torch's choice.
    """

    adapt: AdaptSettings = field(default_factory=AdaptSettings)
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    advantage: AdvantageSettings = field(default_factory=AdvantageSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threads < 0:
            raise ValueError(f"learner.threads={self.threads}: at least 0")
        check_reference(self.adapt, self.optimiser, self.objective)


def check_reference(adapt: AdaptSettings, optimiser: OptimiserSettings, objective: ObjectiveSettings) -> None:
    """Refuse a KL term where no reference policy can be had.

    Raises:
        ValueError: full training under ZeRO-3 with kl_beta above 0.
    """
    if adapt.mode == "full" and optimiser.zero_stage == 3 and objective.needs_reference:
        raise ValueError(
            "objective.kl_beta above 0 with adapt.mode=full and optimiser.zero_stage=3: no reference policy there; "
            "use LoRA, zero_stage 2 or kl_beta 0"
        )
