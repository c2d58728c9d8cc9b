"""Roll out denoising chains: a pure function of model, batch and random generator.

A chain of T steps costs T evaluations of the denoiser: the evaluation that makes step t+1 is also the
better clean estimate of step t (method.md 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actors.terms import RewardTerms
from restoration.base_models.interface import BaseModel, Condition, SamplerSettings
from restoration.colour import match_colour
from restoration.images import images_within
from restoration.precision import AUTO, autocast, resolve
from restoration.transfer import PixelCopies, to_device
from restoration.transition import (
    Schedule,
    Step,
    Transition,
    enhanced_action,
    gaussian_log_prob,
    transition,
)
from trajectories.record import STORAGE_DTYPES, RecordMeta, Trajectories


@dataclass(frozen=True)
class RolloutSettings:
    """What is rolled out and which of its clean estimates are scored.

    Attributes:
        images_per_batch: images (groups) an actor denoises together.
        rollouts_per_image: K, chains of one image, the size of a group.
        crop: side of the random square crop taken of each pair, in pixels; 0 takes the whole image.
        action_target: `enhanced` trains towards the better estimate, `sampled` towards x_{t-1}. A noisy last step (of a
            one-step model) has no better estimate and trains towards its sample.
        reward_at: score the clean estimate of `every_step`, or only x_0 (`final`) for all steps.
        reward_stride: score every k-th decision and the last.
        storage_dtype: of latents in the record.
        denoise_dtype: of the denoiser's matrix products (autocast), as the learner's replay takes them; "auto" as
            `restoration.precision.resolve`, for all three.
        decode_dtype: of the decoder for images that are only scored; bfloat16 errs by half a level of 255.
        condition_dtype: of cleaner and encoder. The learner makes its conditions anew: take what it takes.
        decode_batch: images decoded at a time; small batches stay in a CPU's cache.
        decode_pixels: what images decoded at a time, or cleaned and encoded for the condition, may have together; one
            image always goes. The default is 8 of 512 x 512. In float32 Stable Diffusion's decoder takes about 3 KB
            a pixel, its encoder as much, and Restormer 6 KB.
        compile: hand the policy's networks to torch.compile (`restoration.acceleration`), which needs a compiler.
    """

    images_per_batch: int = 4
    rollouts_per_image: int = 8
    crop: int = 128
    action_target: str = "enhanced"
    reward_at: str = "every_step"
    reward_stride: int = 1
    storage_dtype: str = "float32"
    denoise_dtype: str = "float32"
    decode_dtype: str = "float32"
    condition_dtype: str = "float32"
    decode_batch: int = 8
    decode_pixels: int = 8 * 512 * 512
    compile: bool = False

    def __post_init__(self) -> None:
        if self.action_target not in ("enhanced", "sampled"):
            raise ValueError(f"action_target={self.action_target!r}: choose enhanced or sampled")
        if self.reward_at not in ("every_step", "final"):
            raise ValueError(f"reward_at={self.reward_at!r}: choose every_step or final")
        if self.storage_dtype not in STORAGE_DTYPES:
            raise ValueError(f"storage_dtype={self.storage_dtype!r}: choose one of {', '.join(STORAGE_DTYPES)}")
        for name in ("denoise_dtype", "decode_dtype", "condition_dtype"):
            if getattr(self, name) not in ("float32", "bfloat16", AUTO):
                raise ValueError(f"{name}={getattr(self, name)!r}: choose float32, bfloat16 or {AUTO}")
        for name in ("images_per_batch", "rollouts_per_image", "reward_stride", "decode_batch", "decode_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1")

    def scored(self, decisions: int) -> list[int]:
        """Decisions (counted from the noisiest) whose clean estimate is scored; the last always is."""
        if self.reward_at == "final":
            return [decisions - 1]
        return sorted(set(range(0, decisions, self.reward_stride)) | {decisions - 1})


@dataclass(frozen=True)
class PairBatch:
    """LQ/GT crops, float32 [N, 3, H, W] in [0, 1], and where they came from; `places` are theirs in the work item."""

    image_ids: Sequence[str]
    crops: Sequence[tuple[int, int, int, int]]
    flips: Sequence[bool]
    lq: Tensor
    gt: Tensor
    places: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rollout:
    """Chains of N images x K rollouts (rows image-major, R = N K) over S decisions, still without rewards.

    Attributes:
        states, targets: [R, S, C, h, w] in the storage dtype.
        log_probs: float32 [R, S] of `targets` under the behaviour policy.
        shift: float32 [R, S], mean |targets - sampled x_{t-1}| / std.
        blocks: scored decision -> uint8 images [R, H, W, 3].
        error_l1, error_l2: float32 [R], norms of final output minus GT.
    """

    batch: PairBatch
    settings: RolloutSettings
    schedule: Schedule
    states: Tensor
    targets: Tensor
    log_probs: Tensor
    shift: Tensor
    blocks: dict[int, np.ndarray]
    error_l1: Tensor
    error_l2: Tensor


@torch.no_grad()
def rollout(
    model: BaseModel,
    batch: PairBatch,
    sampler: SamplerSettings,
    settings: RolloutSettings,
    generator: torch.Generator,
) -> Rollout:
    """Sample K chains for each image. Random numbers come from `generator` (CPU) alone.

    On CUDA the host waits for the device at the end only, so that it is always ahead of it.

    Raises:
        ValueError: the sampler's chain has no decision, or a decoded image is not finite.
    """
    dtype = STORAGE_DTYPES[settings.storage_dtype]
    schedule = model.schedule(sampler).for_training()
    condition = _conditions(model, batch, settings).repeat_interleave(settings.rollouts_per_image)

    def normal() -> Tensor:
        return to_device(torch.randn(condition.latent.shape, generator=generator), condition.latent.device)

    x = model.start(condition, normal()).to(dtype).float()
    states: list[Tensor] = []
    targets: list[Tensor] = []
    log_probs: list[Tensor] = []
    shifts: list[Tensor] = []
    estimates: list[Tensor] = []  # better clean estimate of each decision
    previous: tuple[Step, Tensor, Transition] | None = None  # a decision that waits for its better estimate

    def settle(decision: tuple[Step, Tensor, Transition], better: Tensor, last: bool = False) -> None:
        step, x_t, taken = decision
        target = taken.action
        if settings.action_target == "enhanced" and not last:
            target = enhanced_action(step, x_t, taken.x0, better, taken.action).to(dtype).float()
        states.append(x_t.to(dtype))
        targets.append(target.to(dtype))
        log_probs.append(gaussian_log_prob(target, taken.mean, step.std))
        shifts.append((target - taken.action).abs().flatten(1).mean(1) / step.std)
        estimates.append(better)

    for step in schedule.steps:
        with autocast(x.device, resolve(settings.denoise_dtype, x.device)):
            output = model.denoise(x, step.timestep, condition, sampler.guidance_scale)
        taken = transition(step, output, x, noise=normal(), storage_dtype=dtype)
        if previous is not None:
            settle(previous, taken.x0)
        previous = (step, x, taken) if step.is_decision else None
        x = taken.action
    if previous is not None:  # a noisy last step has no later evaluation: its sample is target and estimate
        settle(previous, x, last=True)

    wanted = settings.scored(len(estimates))
    pixels = PixelCopies()
    for index in wanted:
        latents = x if index == len(estimates) - 1 else estimates[index]
        images = match_colour(_decode(model, latents, condition, settings), condition.clean, sampler.colour_fix)
        pixels.add(images)
    error = images.unflatten(0, (-1, settings.rollouts_per_image)) - batch.gt[:, None]
    error = error.flatten(2).flatten(0, 1)
    return Rollout(
        batch=batch,
        settings=settings,
        schedule=schedule,
        states=torch.stack(states, 1).cpu(),
        targets=torch.stack(targets, 1).cpu(),
        log_probs=torch.stack(log_probs, 1).cpu(),
        shift=torch.stack(shifts, 1).cpu(),
        blocks=dict(zip(wanted, pixels.finish(), strict=True)),
        error_l1=error.abs().sum(1).cpu(),
        error_l2=error.norm(dim=1).cpu(),
    )


def _conditions(model: BaseModel, batch: PairBatch, settings: RolloutSettings) -> Condition:
    size, device = _together(batch.lq, settings), batch.lq.device
    with autocast(device, resolve(settings.condition_dtype, device)):
        starts = range(0, len(batch.lq), size)
        made = [model.condition(batch.lq[i : i + size], batch.image_ids[i : i + size]) for i in starts]
    return made[0] if len(made) == 1 else Condition.cat(made)


def _decode(model: BaseModel, latents: Tensor, condition: Condition, settings: RolloutSettings) -> Tensor:
    size = min(settings.decode_batch, _together(condition.clean, settings))
    parts = zip(latents.split(size), condition.split(size), strict=True)
    with autocast(latents.device, resolve(settings.decode_dtype, latents.device)):
        return torch.cat([model.decode(*part).float() for part in parts])


def _together(images: Tensor, settings: RolloutSettings) -> int:
    return images_within(settings.decode_pixels, *images.shape[-2:])


def complete(
    rolled: Rollout,
    scores: Mapping[str, Mapping[int, np.ndarray]],
    gt_scores: np.ndarray | None,
    metas: Sequence[RecordMeta],
    terms: RewardTerms,
) -> list[Trajectories]:
    """Attach scores and cut the rollout into one record per image.

    Args:
        scores: of each trained term of `terms` by name: decision -> float32 [R].
        gt_scores: float32 [N], the first trained term's of the ground truth; or None.
        metas: one entry per image.
    """
    rows, decisions = rolled.log_probs.shape
    by_name: dict[str, Tensor] = {}
    for term in terms.trained:
        by_name[term.name] = torch.full((rows, decisions), torch.nan)
        for index, values in scores[term.name].items():
            by_name[term.name][:, index] = torch.from_numpy(np.array(values, dtype=np.float32))
        if rolled.settings.reward_at == "final":
            by_name[term.name][:] = by_name[term.name][:, -1:]
    k = rolled.settings.rollouts_per_image
    rewards = terms.combined(by_name, k)
    scored = ~rewards.isnan()
    final = by_name[terms.trained[0].name][:, -1]
    step_index = torch.tensor([s.index for s in rolled.schedule.decisions], dtype=torch.int32)
    channels, height, width = rolled.states.shape[2:]
    records = []
    for n, meta in enumerate(metas):
        cut = slice(n * k, (n + 1) * k)
        records.append(
            Trajectories(
                meta=meta,
                trajectory_ids=[f"{meta.group_id}/{i}" for i in range(k)],
                latent=(channels, height, width),
                states=rolled.states[cut],
                targets=rolled.targets[cut],
                step_index=step_index,
                log_probs=rolled.log_probs[cut],
                rewards=rewards[cut],
                terms={} if terms.plain else {name: values[cut] for name, values in by_name.items()},
                scored=scored[cut],
                final_reward=final[cut],
                gt_reward=None if gt_scores is None else float(gt_scores[n]),
                error_l1=rolled.error_l1[cut],
                error_l2=rolled.error_l2[cut],
                shift=rolled.shift[cut],
            )
        )
    return records
