"""Settings of the optimiser: AdamW, and how DeepSpeed shards it."""

from __future__ import annotations

from dataclasses import dataclass


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
