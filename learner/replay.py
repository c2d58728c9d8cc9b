"""Replaying decisions and L_diff under the current weights: the module that DeepSpeed wraps.

Its `forward` takes a micro-batch and returns the sum of its weighted terms, so that the losses of any split of a
batch, over micro-batches and ranks, add up to the loss of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor, nn

from learner.objective import ObjectiveSettings, approximate_kl, surrogate
from restoration.adapters import reference
from restoration.base_models.interface import BaseModel, Condition
from restoration.transition import Schedule, gaussian_kl, transition


@dataclass(frozen=True)
class PolicyMicro:
    """M decisions. states, targets: float32 [M, C, h, w]; the other tensors float32 [M]; `steps` index the schedule.

    Attributes:
        timestep, std: of `steps`; made from them, which waits for the device, where they are not given.
        fresh: 1 where the weights that acted are those that replay now, else 0.
    """

    states: Tensor
    targets: Tensor
    old_log_prob: Tensor
    advantage: Tensor
    surrogate_weight: Tensor
    kl_weight: Tensor
    steps: tuple[int, ...]
    condition: Condition
    counted: bool = True  # False for a filler of weight 0, which statistics leave out
    timestep: Tensor | None = None
    std: Tensor | None = None
    fresh: Tensor | None = None


@dataclass(frozen=True)
class SftMicro:
    """M samples of L_diff. gt_latent, noise: float32 [M, C, h, w]; timestep: int64 [M]; weight: float32 [M]."""

    gt_latent: Tensor
    noise: Tensor
    timestep: Tensor
    weight: Tensor
    condition: Condition
    counted: bool = True


@dataclass(frozen=True)
class Terms:
    """`loss` with its graph; `parts` detached per-item values, float32 [M], for statistics."""

    loss: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class Replay(nn.Module):
    """Replays micro-batches with `model`; only its policy is a submodule, so only that is sharded or trained."""

    def __init__(
        self,
        model: BaseModel,
        schedule: Schedule,
        objective: ObjectiveSettings,
        guidance_scale: float,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.policy = model.policy
        self._model = (model,)  # in a tuple: were the model a Module, its VAE and cleaner would be registered too
        self.schedule = schedule
        self.objective = objective
        self.guidance_scale = guidance_scale
        self.autocast = autocast

    def forward(self, micro: PolicyMicro | SftMicro, only_log_prob: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """The micro-batch's share of the loss (scalar, float32) and its detached parts.

        Args:
            only_log_prob: of decisions, nothing but the part "log_prob" [M].
        """
        if only_log_prob:
            assert isinstance(micro, PolicyMicro), "samples of L_diff have no log-prob"
            log_prob = self.log_prob_and_mean(micro)[0]
            return log_prob.new_zeros(()), {"log_prob": log_prob.detach()}
        terms = self._policy_terms(micro) if isinstance(micro, PolicyMicro) else self._sft_terms(micro)
        return terms.loss, terms.parts

    def log_prob_and_mean(self, micro: PolicyMicro) -> tuple[Tensor, Tensor]:
        """Log-probs [M] of the targets and transition means [M, C, h, w] under the weights in effect."""
        timestep = self._of_steps(micro, "timestep")
        with self._precision(micro.states.device):
            output = self._model[0].denoise(micro.states, timestep, micro.condition, self.guidance_scale)
        replayed = [
            transition(self.schedule.steps[index], output[part], micro.states[part], action=micro.targets[part])
            for index, part in _runs(micro.steps)
        ]
        return torch.cat([r.log_prob for r in replayed]), torch.cat([r.mean for r in replayed])

    def _of_steps(self, micro: PolicyMicro, name: Literal["timestep", "std"]) -> Tensor:
        given: Tensor | None = getattr(micro, name)
        if given is not None:
            return given
        return torch.tensor([getattr(self.schedule.steps[s], name) for s in micro.steps], device=micro.states.device)

    def _policy_terms(self, micro: PolicyMicro) -> Terms:
        log_prob, mean = self.log_prob_and_mean(micro)
        eq3 = surrogate(log_prob, micro.old_log_prob, micro.advantage, self.objective.clip)
        rl = -micro.surrogate_weight * eq3.value
        parts = {
            "rl": rl.detach(),
            "ratio": eq3.ratio,
            "clipped": eq3.clipped.float(),
            "approx_kl": approximate_kl(log_prob, micro.old_log_prob),
        }
        if micro.fresh is not None:
            parts["deviation"] = (eq3.ratio - 1).abs() * micro.fresh
        loss = rl.sum()
        if self.objective.needs_reference:
            with torch.no_grad(), reference(self._model[0]):
                reference_mean = self.log_prob_and_mean(micro)[1]
            # gaussian_kl takes one deviation; divide by each row's own instead
            kl = gaussian_kl(mean, reference_mean, 1.0) / self._of_steps(micro, "std").square()
            loss = loss + (micro.kl_weight * kl).sum()
            parts |= {"kl": kl.detach(), "kl_loss": (micro.kl_weight * kl).detach()}
        return Terms(loss, parts)

    def _sft_terms(self, micro: SftMicro) -> Terms:
        with self._precision(micro.gt_latent.device):
            each = self._model[0].sft_loss(micro.gt_latent, micro.condition, micro.timestep, micro.noise)
        weighted = micro.weight * each.float()
        return Terms(weighted.sum(), {"sft": weighted.detach(), "l_diff": each.detach().float()})

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        return nullcontext() if self.autocast is None else torch.autocast(device.type, self.autocast)


def _runs(steps: tuple[int, ...]) -> Iterator[tuple[int, slice]]:
    """Neighbouring rows of one step: its index and their slice. Slices, because index tensors are copied to devices."""
    start = 0
    for index, rows in groupby(steps):
        stop = start + sum(1 for _ in rows)
        yield index, slice(start, stop)
        start = stop


def sft_draw(seed: tuple[int, ...], timesteps: int, shape: torch.Size) -> tuple[int, Tensor]:
    """Timestep and noise of one sample, drawn on the CPU so that every device gets the same."""
    mixed = 0
    for part in seed:
        mixed = (mixed * 1_000_003 + part + 1) % (2**63)
    generator = torch.Generator().manual_seed(mixed)
    t = int(torch.randint(timesteps, (1,), generator=generator))
    return t, torch.randn(shape, generator=generator)
