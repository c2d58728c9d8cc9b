"""The method in one process and plain torch: to read beside arXiv 2511.01645 and to check the system against.

`Reference.rollout` is what the actors do and `Reference.step` what the learner does, written a second time and as
simply as it goes: no store, no ranks, no sharding, no micro-batches. The equations are those of the paper; what is
marked [ours] is a decision of this project. Tests hold the distributed learner to the loss, the gradient norm and
the weights of this file (within 1e-5), and a synchronous run of the whole system to its rollouts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal

from learner.replay import sft_draw
from learner.settings import LearnerSettings
from restoration.adapters import make_trainable, reference, trained_parameters
from restoration.base_models.interface import BaseModel, Condition
from restoration.colour import match_colour
from restoration.images import to_uint8
from restoration.transition import Step

PairScore = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Method:
    """The switches of method.md: the learner's, and the rollout's under shorter names.

    Of `learner` those settings are without effect that say how a rank computes (micro-batches, precision, sharding).
    `enhanced`, `final_only`, `stride` and `rollouts` (K) are the rollout's `action_target`, `reward_at`,
    `reward_stride` and `rollouts_per_image`; `weights` of the reward's terms by name and `gdpo` are the reward's
    `terms` and `combine`; `decode_batch` bounds the memory of the decoder.
    """

    learner: LearnerSettings = field(default_factory=LearnerSettings)
    rollouts: int = 8
    enhanced: bool = True
    weights: Mapping[str, float] = field(default_factory=lambda: {"reward": 1.0})
    gdpo: bool = False
    final_only: bool = False
    stride: int = 1
    decode_batch: int = 8


@dataclass
class Group:
    """K rollouts of one image over S trained steps.

    Attributes:
        lq, gt: float32 [1, 3, H, W] in [0, 1].
        steps: the trained steps, noisiest first.
        states: x_t; targets: the action to learn; float32 [K, S, C, h, w].
        log_probs: float32 [K, S], of the targets under the policy that acted.
        rewards: float32 [K, S]; NaN where a step was not scored.
        scores: float32 [K], of the final output by the first term alone; terms: by each.
        gt_reward: of the ground truth by the first term, None if it was not scored.
        errors: float32 [K, 2], L1 and L2 norm of the final output minus GT.
    """

    name: str
    image_id: str
    lq: Tensor
    gt: Tensor
    steps: Sequence[Step]
    states: Tensor
    targets: Tensor
    log_probs: Tensor
    rewards: Tensor
    scores: Tensor
    gt_reward: float | None
    errors: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)


class Reference:
    """A policy, its optimiser and the reward tracks of the images."""

    def __init__(self, model: BaseModel, method: Method) -> None:
        self.model, self.method, self.learner, self.iteration = model, method, method.learner, 0
        parameters = make_trainable(model, self.learner.adapt)
        model.policy.eval()  # dropout would replay another policy than the one that acted
        o = self.learner.optimiser
        self.optimiser = torch.optim.AdamW(parameters, o.lr, o.betas, o.eps, o.weight_decay)
        self.tracks: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.average: dict[str, Tensor] = {}  # of the trained weights, with `ema`

    # --- acting (method.md 2 to 4)

    @torch.no_grad()
    def rollout(
        self,
        names: Sequence[str],
        image_ids: Sequence[str],
        lq: Tensor,
        gt: Tensor,
        score: Mapping[str, PairScore],
        generator: torch.Generator,
        decoding: AbstractContextManager[object] | None = None,
    ) -> list[Group]:
        """K chains of each image of `lq` [N, 3, H, W].

        Args:
            score: of each term, by name: pictures and their ground truth, uint8 [M, H, W, 3] -> float32 [M].

        Raises:
            FloatingPointError: a score that is not finite.
        """
        m, model, k = self.method, self.model, self.method.rollouts
        condition = model.condition(lq, image_ids).repeat_interleave(k)
        steps = model.schedule(self.learner.sampler).steps

        def normal() -> Tensor:
            return torch.randn(condition.latent.shape, generator=generator).to(lq.device)

        x = model.start(condition, normal())
        states, actions, means, estimates = [], [], [], []
        for step in steps:
            mean, x0 = self.mean_and_x0(step, x, condition)
            states.append(x)
            means.append(mean)
            estimates.append(x0)
            x = (mean + step.std * normal()) if step.std > 0 else mean + 0 * normal()
            actions.append(x)
        decisions = [i for i, step in enumerate(steps) if step.std > 0]
        # The estimate that belongs to the action of step i is that of step i+1: the same evaluation serves both.
        # A noisy last step (of a one-step model) has none: its own sample is target and estimate.
        better = [*estimates[1:], x]
        targets = []
        for i in decisions:
            # [ours] x^enh = μ(x_t, x0') + (x_{t-1} - μ(x_t, x0))
            shift = steps[i].mean_from_x0 * (better[i] - estimates[i])
            targets.append(actions[i] + shift if m.enhanced and i + 1 < len(steps) else actions[i])
        log_probs = [log_prob(a, means[i], steps[i].std) for a, i in zip(targets, decisions, strict=True)]

        def finished(latents: Tensor) -> Tensor:
            with decoding or nullcontext():
                parts = zip(latents.split(m.decode_batch), condition.split(m.decode_batch), strict=True)
                images = torch.cat([model.decode(*part).float() for part in parts])
            return match_colour(images, condition.clean, self.learner.sampler.colour_fix)

        final = finished(x)
        rewards = torch.full((len(x), len(decisions)), torch.nan)
        total = np.zeros(rewards.shape)
        last, first = len(decisions) - 1, next(iter(m.weights))
        wanted = {last} if m.final_only else {*range(0, last + 1, m.stride), last}
        for position in sorted(wanted):
            # [ours] r_t scores the clean estimate of the action of step t; the last, x_0 itself
            images = final if position == last else finished(better[decisions[position]])
            pixels, truths = to_uint8(images), to_uint8(gt).repeat(k, axis=0)
            scores = {name: np.array(score[name](pixels, truths), dtype=np.float32) for name in m.weights}
            # [ours] the paper's has one term
            for name, weight in m.weights.items():
                term = scores[name].astype(np.float64).reshape(-1, k)
                if m.gdpo:  # each term by the K of its image first
                    term = (term - term.mean(1, keepdims=True)) / (term.std(1, keepdims=True) + 1e-6)
                total[:, position] += weight * term.reshape(-1)
            rewards[:, position] = torch.from_numpy(total[:, position].astype(np.float32))
        if not rewards[:, sorted(wanted)].isfinite().all():
            raise FloatingPointError("a reward is not finite: look at the scorer and at the images it was given")
        if m.final_only:
            rewards[:] = rewards[:, -1:]
        gt_rewards: list[float | None] = [None] * len(gt)
        if self.learner.advantage.clamp_to_gt:
            gt_rewards = np.asarray(score[first](to_uint8(gt), to_uint8(gt))).tolist()
        error = (final - gt.repeat_interleave(k, 0)).flatten(1)
        errors = torch.stack([error.abs().sum(1), error.norm(dim=1)], 1)
        trained = [steps[i] for i in decisions]
        x_t, target = torch.stack([states[i] for i in decisions], 1), torch.stack(targets, 1)
        logp = torch.stack(log_probs, 1)
        groups = []
        for n, (name, image_id) in enumerate(zip(names, image_ids, strict=True)):
            pair, r = (lq[n : n + 1], gt[n : n + 1]), slice(n * k, (n + 1) * k)
            rows = (x_t[r], target[r], logp[r], rewards[r], torch.from_numpy(scores[first])[r])
            terms = {term: torch.from_numpy(values)[r] for term, values in scores.items()}
            groups.append(Group(name, image_id, *pair, trained, *rows, gt_rewards[n], errors[r], terms))
        return groups

    def mean_and_x0(self, step: Step, x: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Mean of π_θ(x_{t-1} | x_t, c) and the clean estimate x̂0 that it follows from."""
        output = self.model.denoise(x, step.timestep, condition, self.learner.sampler.guidance_scale)
        x0 = step.x0_from_x * x + step.x0_from_out * output
        return step.mean_from_x * x + step.mean_from_x0 * x0, x0

    # --- learning (method.md 5 to 7)

    def step(self, groups: Sequence[Group]) -> dict[str, float]:
        """One iteration; `loss`, `loss_rl`, `loss_sft`, `loss_kl` (means over the updates) and the last `grad_norm`.

        Raises:
            RuntimeError: a gradient that is not finite.
        """
        m, o = self.learner, self.learner.optimiser
        groups = sorted(groups, key=lambda g: g.name)
        advantages = self.advantages(groups)
        count = min(m.updates_per_batch, len(groups))
        bounds = [round(i * len(groups) / count) for i in range(count + 1)]
        parts = [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)] * m.inner_epochs
        sums: dict[str, float] = defaultdict(float)
        for update, part in enumerate(parts):
            self.optimiser.zero_grad()
            for name, value in self.backward(groups[part], advantages[part], update).items():
                sums[name] += value / len(parts)
            for settings in self.optimiser.param_groups:
                settings["lr"] = o.lr * min(1.0, (self.iteration + 1) / o.warmup if o.warmup else 1.0)
            parameters = [p for p in trained_parameters(self.model).values() if p.grad is not None]
            norm = torch.nn.utils.clip_grad_norm_(parameters, o.grad_clip or torch.inf, error_if_nonfinite=True)
            self.optimiser.step()
        self.iteration += 1
        if o.ema:
            keep = min(o.ema, (1 + self.iteration) / (10 + self.iteration))
            for name, parameter in trained_parameters(self.model).items():
                now = parameter.detach().float().cpu().clone()
                self.average[name] = keep * self.average.get(name, now) + (1 - keep) * now
        loss = {"loss": sums["loss_rl"] + sums["loss_sft"] + sums["loss_kl"], "grad_norm": float(norm)}
        return dict(sums) | loss

    def advantages(self, groups: Sequence[Group]) -> list[Tensor]:
        """Eq. 4: Â = (r - μ)/√(σ² + eps) over the union of the image's track and the batch; [K, S], NaN: untrained."""
        s = self.learner.advantage
        used = [g.rewards.double() for g in groups]
        if s.clamp_to_gt:
            used = [r.clamp(max=g.gt_reward) for r, g in zip(used, groups, strict=True)]

        def key(position: int) -> int:
            return position if s.per_step else -1

        current: dict[tuple[str, int], list[float]] = defaultdict(list)
        for g, rewards in zip(groups, used, strict=True):
            for position, column in enumerate(rewards.T):
                for scope in (g.image_id, ""):  # "": all images
                    current[scope, key(position)] += column[~column.isnan()].tolist()
        # a track grows by the names of the trajectories, of which "g/10" comes before "g/2"
        order = [sorted(range(len(r)), key=str) for r in used]
        grown = {name: list(values) for name, values in self.tracks.items()}
        for g, rewards, rows in zip(groups, used, order, strict=True):
            for row in rows:
                for position, reward in enumerate(rewards[row].tolist()):
                    if reward == reward:
                        track = grown.setdefault((g.image_id, key(position)), [])
                        grown[g.image_id, key(position)] = [*track, reward][-s.track_length :]

        result = []
        for g, rewards in zip(groups, used, strict=True):
            advantage = torch.full_like(rewards, torch.nan)
            for position in reversed(range(rewards.shape[1])):
                column = rewards[:, position]
                batch = current[g.image_id if s.batch_scope == "same_image" else "", key(position)]
                track = (grown if s.stats == "track" else self.tracks).get((g.image_id, key(position)), [])
                pool = {
                    "batch": batch,
                    "track": track if len(track) >= s.min_count else batch,
                    "track+batch": [*track, *batch],
                }[s.stats]
                if pool:
                    spread = pool if s.deviation_of == "pool" else current["", key(position)]
                    mean, variance = float(np.mean(pool)), float(np.var(spread))
                    scale = (variance + s.eps) ** 0.5 if s.eps_at == "variance" else variance**0.5 + s.eps
                    advantage[:, position] = ((column - mean) / scale).clamp(-s.clamp, s.clamp)
                if s.unscored == "next" and position + 1 < rewards.shape[1]:
                    unscored = column.isnan()
                    advantage[unscored, position] = advantage[unscored, position + 1]
            result.append(advantage)
        self.tracks = defaultdict(list, grown)
        return result

    def backward(self, groups: Sequence[Group], advantages: Sequence[Tensor], update: int) -> dict[str, float]:
        """Eq. 10: gradients of mean (1-w) L_diff - mean w J + β L_KL; returns the three terms."""
        o = self.learner.objective
        errors = torch.cat([g.errors[:, 0 if o.difficulty_norm == "l1" else 1] for g in groups]).double()
        w = (errors / errors.max()).nan_to_num().float()  # Eq. 9; all errors 0: all weights 0
        rl = (w if o.use_weights else torch.ones_like(w)) * o.rl_coef
        easy = w if o.recipe == "diff_sft" else 1 - w
        sft = (easy if o.use_weights else torch.ones_like(w)) * o.sft_coef
        total = {"loss_rl": 0.0, "loss_sft": 0.0, "loss_kl": 0.0}
        first = 0
        for g, advantage in zip(groups, advantages, strict=True):
            rows = range(first, first := first + len(g.states))
            condition = self.model.condition(g.lq, [g.image_id]).repeat_interleave(len(rows))
            trained = ~advantage.isnan()
            if o.needs_policy:
                for position, step in enumerate(g.steps):
                    k = trained[:, position].nonzero().flatten()
                    if len(k):
                        # a trajectory's J is the mean over its trained steps
                        share = 1 / (trained[k].sum(1) * len(w))
                        J, kl = self.decision(g, position, step, condition[k], k, advantage[k, position].float())
                        terms = {"loss_rl": -(rl[rows][k] * share * J).sum(), "loss_kl": o.kl_beta * (share * kl).sum()}
                        sum(terms.values()).backward()  # type: ignore[union-attr]
                        for name, value in terms.items():
                            total[name] += float(value.detach())
            if o.needs_sft:
                latent = self.model.encode(g.gt).float().repeat_interleave(len(rows), 0)
                seed = (self.learner.seed, self.iteration, update)
                drawn = [sft_draw((*seed, i), self.model.train_timesteps, latent.shape[1:]) for i in rows]
                noise = torch.stack([n for _, n in drawn])
                l_diff = self.model.sft_loss(latent, condition, torch.tensor([t for t, _ in drawn]), noise)
                term = (sft[rows] * l_diff).sum() / len(w)
                term.backward()
                total["loss_sft"] += float(term.detach())
        return total

    def decision(
        self, g: Group, position: int, step: Step, condition: Condition, k: Tensor, advantage: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Eq. 3's J = min(w Â, g(ε, Â)) of rows `k` at one step, and their KL to the SFT policy; [M] each."""
        x, clip = g.states[k, position], self.learner.objective.clip
        mean, _ = self.mean_and_x0(step, x, condition)
        ratio = (log_prob(g.targets[k, position], mean, step.std) - g.log_probs[k, position]).exp()
        bound = torch.where(advantage >= 0, 1 + clip, 1 - clip) * advantage
        kl = torch.zeros(len(k))
        if self.learner.objective.needs_reference:
            with torch.no_grad(), reference(self.model):
                before, _ = self.mean_and_x0(step, x, condition)
            kl = (mean - before).square().flatten(1).mean(1) / (2 * step.std**2)
        return torch.minimum(ratio * advantage, bound), kl


def log_prob(action: Tensor, mean: Tensor, std: float) -> Tensor:
    """Log-density of N(mean, std² I), averaged over dimensions; [K]."""
    return Normal(mean, std).log_prob(action).flatten(1).mean(1)
