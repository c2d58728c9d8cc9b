"""Replaying decisions and L_diff under the current weights: the module that DeepSpeed wraps.

Its `forward` takes a micro-batch and returns the sum of its weighted terms, so that the losses of any split of a
batch, over micro-batches and ranks, add up to the loss of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from learner.batch import GlobalBatch, PairLoader, PolicyItem, SftItem, cut
from learner.objective import ObjectiveSettings, approximate_kl, surrogate
from restoration.adapters import reference
from restoration.base_models.interface import BaseModel, Condition
from restoration.transition import Schedule, gaussian_kl, transition


@dataclass(frozen=True)
class PolicyMicro:
    """M decisions. states, targets: float32 [M, C, h, w]; the rest float32 [M]; `steps` index the schedule."""

    states: Tensor
    targets: Tensor
    old_log_prob: Tensor
    advantage: Tensor
    surrogate_weight: Tensor
    kl_weight: Tensor
    steps: tuple[int, ...]
    condition: Condition
    counted: bool = True  # False for a filler of weight 0, which statistics leave out


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

    def forward(self, micro: PolicyMicro | SftMicro) -> tuple[Tensor, dict[str, Tensor]]:
        """The micro-batch's share of the loss (scalar, float32) and its detached parts."""
        terms = self._policy_terms(micro) if isinstance(micro, PolicyMicro) else self._sft_terms(micro)
        return terms.loss, terms.parts

    def log_prob_and_mean(self, micro: PolicyMicro) -> tuple[Tensor, Tensor]:
        """Log-probs [M] of the targets and transition means [M, C, h, w] under the weights in effect."""
        steps = [self.schedule.steps[s] for s in micro.steps]
        timestep = torch.tensor([s.timestep for s in steps], device=micro.states.device)
        with self._precision(micro.states.device):
            output = self._model[0].denoise(micro.states, timestep, micro.condition, self.guidance_scale)
        log_prob, mean = micro.states.new_empty(len(steps)), torch.empty_like(micro.states)
        for index in sorted(set(micro.steps)):
            rows = torch.tensor([i for i, s in enumerate(micro.steps) if s == index], device=micro.states.device)
            replayed = transition(
                self.schedule.steps[index], output[rows], micro.states[rows], action=micro.targets[rows]
            )
            log_prob = log_prob.index_copy(0, rows, replayed.log_prob)
            mean = mean.index_copy(0, rows, replayed.mean)
        return log_prob, mean

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
        loss = rl.sum()
        if self.objective.needs_reference:
            with torch.no_grad(), reference(self._model[0]):
                reference_mean = self.log_prob_and_mean(micro)[1]
            std = torch.tensor([self.schedule.steps[s].std for s in micro.steps], device=mean.device)
            # gaussian_kl takes one deviation; divide by each row's own instead
            kl = gaussian_kl(mean, reference_mean, 1.0) / std.square()
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


class Loader:
    """Builds micro-batches on the rank's device; conditions and GT latents of a group are computed once an iteration.

    They are computed image by image, so their values don't depend on how the batch was split.
    """

    def __init__(self, model: BaseModel, pairs: PairLoader, device: torch.device) -> None:
        self.model, self.pairs, self.device = model, pairs, device
        self._conditions: dict[str, Condition] = {}
        self._latents: dict[str, Tensor] = {}

    def clear(self) -> None:
        """Forget the groups of the last iteration."""
        self._conditions.clear()
        self._latents.clear()

    def policy(self, batch: GlobalBatch, items: Sequence[PolicyItem], filler: bool = False) -> PolicyMicro:
        def stack(name: str) -> Tensor:
            values = [getattr(batch.groups[i.group], name)[i.row, i.position] for i in items]
            return torch.stack(values).to(self.device, torch.float32)

        def numbers(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=self.device)

        scale = 0.0 if filler else 1.0
        return PolicyMicro(
            states=stack("states"),
            targets=stack("targets"),
            old_log_prob=stack("log_probs"),
            advantage=numbers([i.advantage for i in items]),
            surrogate_weight=numbers([scale * i.surrogate_weight for i in items]),
            kl_weight=numbers([scale * i.kl_weight for i in items]),
            steps=tuple(int(batch.groups[i.group].step_index[i.position]) for i in items),
            condition=self._stacked(batch, [i.group for i in items]),
            counted=not filler,
        )

    def sft(
        self, batch: GlobalBatch, items: Sequence[SftItem], seed: tuple[int, ...], filler: bool = False
    ) -> SftMicro:
        """`seed` and each item's index decide its timestep and noise, whatever the split."""
        latents = torch.cat([self._latent(batch, i.group) for i in items])
        drawn = [sft_draw((*seed, i.index), self.model.train_timesteps, latents.shape[1:]) for i in items]
        return SftMicro(
            gt_latent=latents,
            noise=torch.stack([n for _, n in drawn]).to(self.device),
            timestep=torch.tensor([t for t, _ in drawn], device=self.device),
            weight=torch.tensor([0.0 if filler else i.weight for i in items], dtype=torch.float32, device=self.device),
            condition=self._stacked(batch, [i.group for i in items]),
            counted=not filler,
        )

    def _pair(self, batch: GlobalBatch, group: int) -> tuple[Tensor, Tensor]:
        meta = batch.groups[group].meta
        lq, gt = (cut(image, meta.crop, meta.flip)[None].to(self.device) for image in self.pairs(meta.image_id))
        return lq, gt

    @torch.no_grad()
    def _stacked(self, batch: GlobalBatch, groups: list[int]) -> Condition:
        for group in groups:
            meta = batch.groups[group].meta
            if meta.group_id not in self._conditions:
                self._conditions[meta.group_id] = self.model.condition(self._pair(batch, group)[0], [meta.image_id])
        parts = [self._conditions[batch.groups[g].meta.group_id] for g in groups]
        if len(set(groups)) == 1:
            return parts[0].repeat_interleave(len(groups))
        return Condition.cat(parts)

    @torch.no_grad()
    def _latent(self, batch: GlobalBatch, group: int) -> Tensor:
        key = batch.groups[group].meta.group_id
        if key not in self._latents:
            self._latents[key] = self.model.encode(self._pair(batch, group)[1]).float()
        return self._latents[key]


def sft_draw(seed: tuple[int, ...], timesteps: int, shape: torch.Size) -> tuple[int, Tensor]:
    """Timestep and noise of one sample, drawn on the CPU so that every device gets the same."""
    mixed = 0
    for part in seed:
        mixed = (mixed * 1_000_003 + part + 1) % (2**63)
    generator = torch.Generator().manual_seed(mixed)
    t = int(torch.randint(timesteps, (1,), generator=generator))
    return t, torch.randn(shape, generator=generator)
