"""The clipped surrogate (Eq. 3) and the total loss (Eq. 10), per item, so that any split of a batch adds up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class ObjectiveSettings:
    """L = sft_coef mean (1-w) L_diff - rl_coef mean w J + kl_beta L_KL.

    Attributes:
        recipe: "ours" (Eq. 10); "diff_sft" (mean w L_diff, no RL); "base" (no training at all).
        use_weights: False is the ablation "w/o w_i": every weight is 1.
        clip: ε of Eq. 3; log-probs are means over dimensions, so it is far below PPO's 0.2.
        difficulty_norm: which norm of the final error Eq. 9 takes.
    """

    recipe: Literal["ours", "diff_sft", "base"] = "ours"
    use_weights: bool = True
    clip: float = 1e-4
    kl_beta: float = 0.0
    rl_coef: float = 1.0
    sft_coef: float = 1.0
    difficulty_norm: Literal["l1", "l2"] = "l2"

    def __post_init__(self) -> None:
        if self.recipe not in ("ours", "diff_sft", "base"):
            raise ValueError(f"objective.recipe={self.recipe!r}: choose ours, diff_sft or base")
        if self.difficulty_norm not in ("l1", "l2"):
            raise ValueError(f"objective.difficulty_norm={self.difficulty_norm!r}: choose l1 or l2")
        if not 0 < self.clip < 1:
            raise ValueError(f"objective.clip={self.clip}: between 0 and 1")
        for name in ("kl_beta", "rl_coef", "sft_coef"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"objective.{name}={getattr(self, name)}: 0 or above")

    @property
    def needs_policy(self) -> bool:
        """Whether log-probs are replayed at all."""
        return self.recipe == "ours" and (self.rl_coef > 0 or self.kl_beta > 0)

    @property
    def needs_sft(self) -> bool:
        return self.recipe != "base" and self.sft_coef > 0

    @property
    def needs_reference(self) -> bool:
        return self.recipe == "ours" and self.kl_beta > 0

    def sft_weights(self, difficulty: Tensor) -> Tensor:
        """Factor of each sample's L_diff."""
        if not self.use_weights:
            return torch.ones_like(difficulty) * self.sft_coef
        return (difficulty if self.recipe == "diff_sft" else 1 - difficulty) * self.sft_coef

    def rl_weights(self, difficulty: Tensor) -> Tensor:
        """Factor of each sample's J."""
        return (difficulty if self.use_weights else torch.ones_like(difficulty)) * self.rl_coef


@dataclass(frozen=True)
class Surrogate:
    """Per item, float32 [M]: Eq. 3's value (to be maximised), the ratio, and where the clip was chosen (bool)."""

    value: Tensor
    ratio: Tensor
    clipped: Tensor


def surrogate(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip: float) -> Surrogate:
    """min(w Â, g(ε, Â)), w = exp(logp - logp_old), g = (1+ε)Â for Â >= 0 and (1-ε)Â below; all [M], in float32."""
    ratio = torch.exp(log_prob.float() - old_log_prob.float())
    advantage = advantage.float()
    unclipped = ratio * advantage
    bound = torch.where(advantage >= 0, (1 + clip) * advantage, (1 - clip) * advantage)
    return Surrogate(torch.minimum(unclipped, bound), ratio.detach(), (unclipped > bound).detach())


def effective_sample_size(ratio_sum: float, ratio_square_sum: float, count: float) -> float:
    """(Σw)² / (n Σw²) in (0, 1]; 1 when all ratios are equal."""
    return ratio_sum**2 / (count * ratio_square_sum) if count and ratio_square_sum else 1.0


def approximate_kl(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """Per item k3 estimate of KL(old || now) per dimension: w - 1 - log w, never negative; float32 [M]."""
    log_ratio = (log_prob.detach() - old_log_prob).float()
    return torch.expm1(log_ratio) - log_ratio


def ratio_alarm(ratio_first: float | None, clip: float) -> str | None:
    """What to say when groups of the current version leave the clip before any update; None if they don't.

    Args:
        ratio_first: largest |ratio - 1| of their decisions, None without such groups.
    """
    if ratio_first is None or ratio_first <= clip:
        return None
    return (
        f"log-probs of rollout and replay differ by more than the clip ({ratio_first:.2g} > objective.clip={clip:g}): "
        "match dtypes and batch shapes (rollout.denoise_dtype with learner.dtype, images_per_batch x "
        "rollouts_per_image with learner.micro_batch), or set learner.old_log_probs=recompute"
    )
