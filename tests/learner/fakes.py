"""A small base model and hand-made groups of rollouts, for tests that need the protocol but no real network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from restoration.base_models.interface import Condition, SamplerSettings
from restoration.transition import (
    Schedule,
    ddim_schedule,
    enhanced_action,
    predict_x0,
    scaled_linear_alphas,
    transition,
)
from trajectories.schema import RecordMeta, Summary, Trajectories

SIZE = 16
SAMPLER = SamplerSettings(steps=4, eta=1.0)


class FakePolicy(nn.Module):
    """A frozen stem and a trained body with a convolution, a linear layer and a normalisation."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(6, width, 3, padding=1)
        self.body = nn.ModuleDict(
            {
                "mid": nn.Conv2d(width, width, 3, padding=1),
                "norm": nn.GroupNorm(2, width),
                "mix": nn.Linear(width, width),
                "out": nn.Conv2d(width, 3, 3, padding=1),
            }
        )
        self.time = nn.Linear(2, width)

    def forward(self, x: Tensor, timestep: Tensor, latent: Tensor) -> Tensor:
        t = timestep.float()[:, None] / 1000
        h = self.stem(torch.cat([x, latent], 1)) + self.time(torch.cat([t, t.sqrt()], 1))[:, :, None, None]
        h = functional.silu(self.body["norm"](self.body["mid"](functional.silu(h))))
        h = h + self.body["mix"](h.movedim(1, -1)).movedim(-1, 1)
        out: Tensor = self.body["out"](h)
        return out.float()


class FakeModel:
    """Latents are images averaged over 4x4 pixels; the same seed gives the same weights."""

    name = "fake"
    size_multiple = 4
    cleaner = None
    sampler = SamplerSettings()
    per_image = None
    train_timesteps = 1000

    def __init__(self, seed: int = 0, width: int = 8) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._policy = FakePolicy(width)

    @property
    def policy(self) -> nn.Module:
        return self._policy

    @property
    def trainable_names(self) -> tuple[str, ...]:
        return ("body.",)

    @property
    def lora_targets(self) -> str:
        return r"body\.(mid|mix|out)"

    def schedule(self, sampler: SamplerSettings) -> Schedule:
        return ddim_schedule(scaled_linear_alphas(), sampler.steps, sampler.eta, "epsilon", "trailing")

    @torch.no_grad()
    def condition(self, lq: Tensor, image_ids: Sequence[str] = ()) -> Condition:
        return Condition(clean=lq, latent=self.encode(lq))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return functional.avg_pool2d(images, 4) * 2 - 1

    @torch.no_grad()
    def decode(self, latents: Tensor, condition: Condition | None = None) -> Tensor:
        return functional.interpolate(latents / 2 + 0.5, scale_factor=4.0).clamp(0, 1)

    def start(self, condition: Condition, noise: Tensor) -> Tensor:
        return noise

    def denoise(self, x_t: Tensor, timestep: float | Tensor, condition: Condition, guidance_scale: float) -> Tensor:
        times = torch.as_tensor(timestep, device=x_t.device).expand(x_t.shape[0])
        out: Tensor = self._policy(x_t, times, condition.latent)
        return out

    def sft_loss(self, gt_latent: Tensor, condition: Condition, timestep: Tensor, noise: Tensor) -> Tensor:
        alpha = torch.from_numpy(scaled_linear_alphas()).to(gt_latent.device)[timestep].float().view(-1, 1, 1, 1)
        x_t = alpha.sqrt() * gt_latent + (1 - alpha).sqrt() * noise
        return (self.denoise(x_t, timestep, condition, 1.0) - noise).square().flatten(1).mean(1)

    def to(self, device: torch.device | str) -> FakeModel:
        self._policy.to(device)
        return self

    def save(self, folder: Path) -> None:
        torch.save(self._policy.state_dict(), folder / "policy.pt")


def fake_pairs(image_id: str) -> tuple[Tensor, Tensor]:
    """A reproducible image for any name, and a degraded copy; [3, 24, 20]."""
    generator = torch.Generator().manual_seed(sum(image_id.encode()))
    gt = functional.interpolate(torch.rand(1, 3, 6, 5, generator=generator), size=(24, 20), mode="bilinear")[0]
    return (gt + 0.2 * torch.randn(gt.shape, generator=generator)).clamp(0, 1), gt


@torch.no_grad()
def roll_out_group(
    model: FakeModel,
    image_id: str,
    seed: int,
    rollouts: int = 2,
    reward_version: str = "r1",
    unscored: tuple[int, ...] = (),
    sampler: SamplerSettings = SAMPLER,
) -> Trajectories:
    """`rollouts` chains of one crop with the model's current weights; every decision step is kept."""
    generator = torch.Generator().manual_seed(seed)
    schedule = model.schedule(sampler)
    crop = (4, 0, SIZE, SIZE)
    lq, gt = (image[:, 4 : 4 + SIZE, :SIZE][None] for image in fake_pairs(image_id))
    condition = model.condition(lq).repeat_interleave(rollouts)
    x = torch.randn(rollouts, 3, SIZE // 4, SIZE // 4, generator=generator)
    states, targets, log_probs = [], [], []
    for step in schedule.decisions:
        output = model.denoise(x, step.timestep, condition, sampler.guidance_scale)
        sampled = transition(step, output, x, noise=torch.randn(x.shape, generator=generator))
        following = schedule.steps[step.index + 1]
        better = predict_x0(
            following, model.denoise(sampled.action, following.timestep, condition, 1.0), sampled.action
        )
        target = enhanced_action(step, x, sampled.x0, better, sampled.action)
        states.append(x)
        targets.append(target)
        log_probs.append(transition(step, output, x, action=target).log_prob)
        x = sampled.action
    last = schedule.steps[-1]
    final = model.decode(predict_x0(last, model.denoise(x, last.timestep, condition, 1.0), x), condition)
    error = (final - gt).flatten(1)
    steps = len(schedule.decisions)
    rewards = torch.randn(rollouts, steps, generator=generator) + torch.arange(steps)
    scored = torch.ones(rollouts, steps, dtype=torch.bool)
    for step_index in unscored:
        scored[:, step_index] = False
        rewards[:, step_index] = float("nan")
    group_id = f"{image_id}-{seed}"
    meta = RecordMeta(
        run_id="test",
        epoch=0,
        weights_version=0,
        reward_version=reward_version,
        scheduler_fingerprint=schedule.fingerprint,
        dtype="float32",
        actor="actor-0",
        group_id=group_id,
        image_id=image_id,
        crop=crop,
        flip=False,
        seed=seed,
    )
    return Trajectories(
        meta=meta,
        trajectory_ids=[f"{group_id}/{k}" for k in range(rollouts)],
        latent=tuple(x.shape[1:]),
        states=torch.stack(states, 1),
        targets=torch.stack(targets, 1),
        step_index=torch.tensor([s.index for s in schedule.decisions], dtype=torch.int32),
        log_probs=torch.stack(log_probs, 1),
        rewards=rewards.float(),
        scored=scored,
        final_reward=torch.nan_to_num(rewards[:, -1]).float(),
        gt_reward=5.0,
        error_l1=error.abs().sum(1),
        error_l2=error.square().sum(1).sqrt(),
        shift=torch.zeros(rollouts, steps),
    )


def summary_of(record: Trajectories) -> Summary:
    """What the learner's driver hands round of a record."""
    return Summary(**{field.name: getattr(record, field.name) for field in fields(Summary)})
