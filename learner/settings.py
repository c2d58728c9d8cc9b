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
        zero_stage: 0 replicates, 1 shards optimiser state, 2 gradients too, 3 parameters too. Each saves memory (of n
            bytes of parameters, AdamW's state takes 2n, gradients n) and adds communication; 3 gathers every layer
            again in each forward and backward.
        offload: "cpu" keeps AdamW's state (and under ZeRO the float32 copy of the trained weights) in host memory and
            steps there: saves that room on the GPU, costs two copies over the bus and a slower step. Needs ZeRO.
        bucket_mb: largest buffer, of float32, for what ZeRO sends at once. Larger ones are faster over a network; two
            to four of them are allocated. Never larger than all that is trained, so a LoRA's are small by themselves.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup: int = 0
    grad_clip: float = 1.0
    ema: float = 0.0
    zero_stage: int = 0
    offload: Literal["none", "cpu"] = "none"
    bucket_mb: float = 200.0

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"optimiser.zero_stage={self.zero_stage}: choose 0, 1, 2 or 3")
        if self.offload not in ("none", "cpu"):
            raise ValueError(f"optimiser.offload={self.offload!r}: choose none or cpu")
        if self.offload == "cpu" and not self.zero_stage:
            raise ValueError("optimiser.offload=cpu with optimiser.zero_stage=0: only ZeRO offloads; choose 1, 2 or 3")
        if not self.bucket_mb > 0:
            raise ValueError(f"optimiser.bucket_mb={self.bucket_mb}: above 0")
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
    """How a batch is computed on. Each says what it costs.

    Attributes:
        micro_batch: decisions, or samples of L_diff, of one forward; gradients accumulate over as many as needed.
            Activations grow with it, which is most of a rank's memory at full size; small ones leave a GPU idle.
        condition_batch: pictures whose conditions and ground-truth latents are computed together, once an iteration
            each; costs the activations of cleaner and VAE encoder for so many, without gradients.
        dtype: of the forward's matrix products (autocast); parameters, ratios and losses stay float32. bfloat16 is
            several times as fast on a GPU, errs by 1e-3 in log-probs at worst and must be the rollout's too. "auto"
            as `restoration.precision.resolve`.
        updates_per_batch: optimiser steps a batch is divided into, by groups; each costs a reduction over the ranks.
        inner_epochs: passes over a batch, each costs as much as the first; with more than one update the later ones
            are off-policy (ratio is not 1).
        old_log_probs: "rollout" divides by the log-probs that the actors recorded. "recompute" takes them anew, before
            the first update, with the learner's weights, types and batch shapes: one more forward of every decision,
            about a third of an iteration more. For groups of the current version that is the same policy without the
            rounding by which actors and learner differ. For older groups the surrogate is then clipped around the
            current weights (a proximal policy) and no longer corrected for the policy that acted: keep max_staleness
            small.
        norms_every: iterations between measurements of the RL and SFT gradient norms, taken of the gradients that are
            accumulated anyway: costs one more copy of them for that update and one reduction over the ranks; 0 for
            never. Only without ZeRO, which keeps no full gradients (the norms are then never measured).
        gradient_checkpointing: recompute activations in the backward, where the networks can: a third more time for
            a fraction of the activations' memory.
        tf32: on CUDA, let float32 products round their inputs to 10 bits of mantissa: up to eight times as fast. What
            is computed in bfloat16 does not change.
        compile: backend of torch.compile for the policy, "none" for no compiling. "inductor" costs minutes
            at the first iteration, and again for each new shape of a micro-batch, and needs a C compiler on the node.
        timeout_s: longest wait for another rank before it counts as lost.
    """

    micro_batch: int = 8
    condition_batch: int = 8
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    updates_per_batch: int = 1
    inner_epochs: int = 1
    old_log_probs: Literal["rollout", "recompute"] = "rollout"
    norms_every: int = 10
    gradient_checkpointing: bool = False
    tf32: bool = True
    compile: Literal["none", "inductor", "eager"] = "none"
    timeout_s: float = 1800.0

    def __post_init__(self) -> None:
        choices = {
            "dtype": ("auto", "float32", "bfloat16"),
            "old_log_probs": ("rollout", "recompute"),
            "compile": ("none", "inductor", "eager"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"learner.{name}={getattr(self, name)!r}: choose {' or '.join(allowed)}")
        at_least = {"micro_batch": 1, "condition_batch": 1, "updates_per_batch": 1, "inner_epochs": 1, "norms_every": 0}
        for name, least in at_least.items():
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
        if self.compile != "none" and self.optimiser.zero_stage == 3:
            raise ValueError(
                f"learner.compile={self.compile} with optimiser.zero_stage=3: ZeRO-3 swaps parameters in and out of "
                "the networks, which a compiled one can't follow; use compile none or zero_stage 2"
            )
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
