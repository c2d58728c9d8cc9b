"""Advantages (Eq. 4): rewards normalised by the union of the image's own track and the current batch.

Sums are taken with `math.fsum`, whose result doesn't depend on the order of its terms, and tracks grow in the order
of trajectory ids: the same trajectories give the same bits however they arrived.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

ALL_STEPS = -1  # the track's key when steps are not told apart


@dataclass(frozen=True)
class AdvantageSettings:
    """How a reward becomes an advantage (method.md 5).

    Attributes:
        stats: "track+batch": mean and variance of the union of the image's track (before this batch) and the batch;
            "track": of the image's track, this batch's own rewards included, or of the batch while the track holds
            fewer than `min_count`; "batch": of the batch.
        per_step: statistics for each denoising step apart; early steps score lower for every image.
        batch_scope: "batch" means all images, or only the rollouts of the same image.
        deviation_of: the deviation is of the same rewards as the mean ("pool"), or of all rewards of the batch,
            whatever their image ("batch": what Flow-GRPO calls global std; an image whose rewards hardly differ is then
            not blown up).
        min_count: see `stats`.
        track_length: rewards kept per image and step, newest first to stay.
        clamp: advantages are cut to ±clamp.
        eps, eps_at: (r - μ)/√(σ² + eps) with "variance", (r - μ)/(σ + eps) with "deviation".
        clamp_to_gt: r <- min(r, score of the ground truth) before anything else.
        unscored: a step without a reward is left out ("skip") or takes the next scored step's advantage ("next").
    """

    stats: Literal["track+batch", "track", "batch"] = "track+batch"
    per_step: bool = True
    batch_scope: Literal["all", "same_image"] = "all"
    deviation_of: Literal["pool", "batch"] = "pool"
    min_count: int = 16
    track_length: int = 64
    clamp: float = 5.0
    eps: float = 1e-8
    eps_at: Literal["variance", "deviation"] = "variance"
    clamp_to_gt: bool = False
    unscored: Literal["skip", "next"] = "skip"

    def __post_init__(self) -> None:
        allowed = {
            "stats": ("track+batch", "track", "batch"),
            "batch_scope": ("all", "same_image"),
            "deviation_of": ("pool", "batch"),
            "eps_at": ("variance", "deviation"),
            "unscored": ("skip", "next"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"advantage.{name}={getattr(self, name)!r}: choose {' or '.join(values)}")
        for name in ("min_count", "track_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"advantage.{name}={getattr(self, name)}: at least 1")
        for name in ("clamp", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"advantage.{name}={getattr(self, name)}: above 0")


@dataclass(frozen=True)
class RewardRow:
    """The rewards of one trajectory. `rewards` maps a step index to its score; unscored steps are absent.

    `steps` are all trained step indices, noisiest first. `gt_reward` is the score of its ground truth, if known.
    """

    trajectory_id: str
    image_id: str
    steps: tuple[int, ...]
    rewards: Mapping[int, float]
    gt_reward: float | None = None


class RewardTracks:
    """Past rewards of every image, and the normalisation that uses them. Pure Python, float64."""

    def __init__(self, settings: AdvantageSettings) -> None:
        self.settings = settings
        self.reward_version: str | None = None
        self._tracks: dict[str, dict[int, deque[float]]] = {}

    def __len__(self) -> int:
        """Images that have a track."""
        return len(self._tracks)

    def advantages(self, rows: Sequence[RewardRow], reward_version: str) -> list[dict[int, float]]:
        """Per row, the advantage of each step to train on; adds the rewards to the tracks.

        All rows must be scored by `reward_version`; if it differs from the last call's, the tracks start anew.

        Raises:
            ValueError: a reward or ground-truth score that is not finite, a step scored that the row doesn't have,
                a trajectory twice, or clamp_to_gt without a ground-truth score.
        """
        used = [self._clamped(row) for row in rows]
        seen = {row.trajectory_id for row in rows}
        if len(seen) != len(rows):
            raise ValueError("advantage: the same trajectory twice in one batch; each is consumed exactly once")
        if reward_version != self.reward_version:
            self._tracks.clear()
            self.reward_version = reward_version
        batch = self._batch(rows, used)
        if self.settings.stats == "track":
            self._extend(rows, used)
        result = []
        cache: dict[tuple[str, int], tuple[float, float]] = {}
        for row, rewards in zip(rows, used, strict=True):
            values: dict[int, float] = {}
            for step, reward in rewards.items():
                key = (row.image_id, self._key(step))
                if key not in cache:
                    cache[key] = self._statistics(*key, batch)
                values[step] = self._normalise(reward, *cache[key])
            result.append(self._spread(row, values))
        if self.settings.stats != "track":
            self._extend(rows, used)
        return result

    def track(self, image_id: str, step: int) -> list[float]:
        """Rewards kept for an image's step, oldest first."""
        return list(self._tracks.get(image_id, {}).get(self._key(step), ()))

    def state_dict(self) -> dict[str, Any]:
        """JSON-safe; floats survive JSON exactly."""
        tracks = {i: {str(s): list(t) for s, t in steps.items()} for i, steps in sorted(self._tracks.items())}
        return {"reward_version": self.reward_version, "tracks": tracks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reward_version = state["reward_version"]
        length = self.settings.track_length
        self._tracks = {
            image: {int(step): deque(map(float, values), maxlen=length) for step, values in steps.items()}
            for image, steps in state["tracks"].items()
        }

    def _key(self, step: int) -> int:
        return step if self.settings.per_step else ALL_STEPS

    def _clamped(self, row: RewardRow) -> dict[int, float]:
        if unknown := row.rewards.keys() - set(row.steps):
            raise ValueError(f"advantage: {row.trajectory_id} has rewards for steps {sorted(unknown)} it never took")
        rewards = {step: float(row.rewards[step]) for step in row.steps if step in row.rewards}
        gt = row.gt_reward
        for step, reward in rewards.items():
            if not math.isfinite(reward):
                raise ValueError(f"advantage: reward {reward} of {row.trajectory_id} step {step}: drop the group")
        if self.settings.clamp_to_gt:
            if gt is None or not math.isfinite(gt):
                raise ValueError(f"advantage: clamp_to_gt, but {row.trajectory_id} has ground-truth score {gt}")
            rewards = {step: min(reward, gt) for step, reward in rewards.items()}
        return rewards

    def _batch(self, rows: Sequence[RewardRow], used: Sequence[dict[int, float]]) -> dict[tuple[str, int], list[float]]:
        """Rewards by image and step; those of all images under ""."""
        batch: dict[tuple[str, int], list[float]] = {}
        for row, rewards in zip(rows, used, strict=True):
            for step, reward in rewards.items():
                for image in ("", row.image_id):
                    batch.setdefault((image, self._key(step)), []).append(reward)
        return batch

    def _statistics(self, image: str, key: int, batch: Mapping[tuple[str, int], list[float]]) -> tuple[float, float]:
        current = batch[(image if self.settings.batch_scope == "same_image" else "", key)]
        track = self._tracks.get(image, {}).get(key, deque())
        if self.settings.stats == "batch":
            pool = current
        elif self.settings.stats == "track":
            pool = [*track] if len(track) >= self.settings.min_count else current
        else:
            pool = [*track, *current]
        mean, variance = _mean_variance(pool)
        return mean, variance if self.settings.deviation_of == "pool" else _mean_variance(batch["", key])[1]

    def _normalise(self, reward: float, mean: float, variance: float) -> float:
        s = self.settings
        scale = math.sqrt(variance + s.eps) if s.eps_at == "variance" else math.sqrt(variance) + s.eps
        return max(-s.clamp, min(s.clamp, (reward - mean) / scale))

    def _spread(self, row: RewardRow, values: dict[int, float]) -> dict[int, float]:
        """Advantages in the row's step order; with unscored="next" a gap takes that of the scored step after it."""
        if self.settings.unscored == "skip":
            return values
        spread: dict[int, float] = {}
        following: float | None = None
        for step in reversed(row.steps):
            following = values.get(step, following)
            if following is not None:
                spread[step] = following
        return {step: spread[step] for step in row.steps if step in spread}

    def _extend(self, rows: Sequence[RewardRow], used: Sequence[dict[int, float]]) -> None:
        for row, rewards in sorted(zip(rows, used, strict=True), key=lambda pair: pair[0].trajectory_id):
            steps = self._tracks.setdefault(row.image_id, {})
            for step, reward in rewards.items():
                steps.setdefault(self._key(step), deque(maxlen=self.settings.track_length)).append(reward)


def _mean_variance(values: Iterable[float]) -> tuple[float, float]:
    """Mean and population variance, independent of the order of `values`."""
    values = list(values)
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((v - mean) ** 2 for v in values) / len(values)
