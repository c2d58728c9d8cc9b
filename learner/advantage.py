"""Advantages (Eq. 4): rewards normalised by the union of the image's own track and the current batch.

Sums are exact before they are rounded (`math.fsum`, `learner.exact`), so they don't depend on the order of their
terms, and tracks grow in the order of trajectory ids: the same trajectories give the same bits however they arrived.
The cost is linear in the batch and its images' tracks: what all images share is summed once.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from learner.exact import Moments, mean_variance
from learner.track_columns import Tracks, pack, unpack

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


class AdvantageError(ValueError):
    """Rewards that can't be normalised; `trajectory_ids` are all that are to blame, if the rows are."""

    def __init__(self, message: str, trajectory_ids: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.trajectory_ids = tuple(trajectory_ids)


def trained_steps(steps: Sequence[int], scored: Sequence[bool], unscored: Literal["skip", "next"]) -> list[int]:
    """Which of a row's `steps` get an advantage, in their order; its rewards' values make no difference.

    `scored` says of each step whether it has a reward; `unscored` is the setting of that name.
    """
    if unscored == "skip":
        return [step for step, has in zip(steps, scored, strict=True) if has]
    last = max((place for place, has in enumerate(scored) if has), default=-1)
    return list(steps[: last + 1])


@dataclass
class _Undo:
    """What a transaction needs to take everything back: copies of the images that were touched, as they were."""

    reward_version: str | None
    tracks: Tracks
    images: dict[str, dict[int, array[float]] | None] = field(default_factory=dict)


class RewardTracks:
    """Past rewards of every image, and the normalisation that uses them. Pure Python, float64."""

    def __init__(self, settings: AdvantageSettings) -> None:
        self.settings = settings
        self.reward_version: str | None = None
        self._tracks: Tracks = {}
        self._undo: _Undo | None = None

    def __len__(self) -> int:
        """Images that have a track."""
        return len(self._tracks)

    def advantages(self, rows: Sequence[RewardRow], reward_version: str) -> list[dict[int, float]]:
        """Per row, the advantage of each step to train on; adds the rewards to the tracks.

        All rows must be scored by `reward_version`; if it differs from the last call's, the tracks start anew.

        Raises:
            AdvantageError: a reward or ground-truth score that is not finite, a step scored that the row doesn't have,
                a trajectory twice, or clamp_to_gt without a ground-truth score; the tracks are as before.
        """
        used = self._checked(rows)
        if reward_version != self.reward_version:
            self._tracks = {}
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

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Take back everything that was done to the tracks if the block raises; costs O(what it touched).

        Raises:
            RuntimeError: a transaction within a transaction.
        """
        if self._undo is not None:
            raise RuntimeError("advantage: a transaction of these tracks is already open")
        undo = self._undo = _Undo(self.reward_version, self._tracks)
        try:
            yield
        except BaseException:
            self.reward_version, self._tracks = undo.reward_version, undo.tracks
            for image, steps in undo.images.items():
                if steps is None:
                    del self._tracks[image]
                else:
                    self._tracks[image] = steps
            raise
        finally:
            self._undo = None

    def track(self, image_id: str, step: int) -> list[float]:
        """Rewards kept for an image's step, oldest first."""
        return list(self._tracks.get(image_id, {}).get(self._key(step), ()))

    def columns(self) -> dict[str, Tensor]:
        """All tracks and the reward version as a few flat tensors, for a safetensors file (see `track_columns`)."""
        return pack(self._tracks, self.reward_version)

    def load_columns(self, columns: Mapping[str, Tensor]) -> None:
        """Continue from `columns()`; of tracks longer than `track_length` the newest rewards stay.

        Raises:
            ValueError: naming the column that is missing or not what it should be; nothing has changed then.
        """
        tracks, version = unpack(columns)
        self._replace(tracks, version)

    def state_dict(self) -> dict[str, Any]:
        """All tracks as JSON can hold them, exactly; `columns` is the compact form."""
        tracks = {i: {str(s): list(t) for s, t in steps.items()} for i, steps in sorted(self._tracks.items())}
        return {"reward_version": self.reward_version, "tracks": tracks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`, which checkpoints held before there were columns."""
        tracks: Tracks = {
            image: {int(step): array("d", map(float, values)) for step, values in steps.items()}
            for image, steps in state["tracks"].items()
        }
        self._replace(tracks, state["reward_version"])

    def _replace(self, tracks: Tracks, version: str | None) -> None:
        for steps in tracks.values():
            for track in steps.values():
                del track[: -self.settings.track_length]
        self._tracks, self.reward_version = tracks, version

    def _key(self, step: int) -> int:
        return step if self.settings.per_step else ALL_STEPS

    def _checked(self, rows: Sequence[RewardRow]) -> list[dict[int, float]]:
        """The rewards to use of each row, in its steps' order."""
        used, problems = [], {}
        seen: set[str] = set()
        for row in rows:
            if row.trajectory_id in seen:
                problems[row.trajectory_id] = (
                    f"the same trajectory twice in one batch ({row.trajectory_id}); each is consumed exactly once"
                )
            seen.add(row.trajectory_id)
            try:
                used.append(self._clamped(row))
            except ValueError as error:
                problems[row.trajectory_id] = str(error)
        if problems:
            first = next(iter(problems.values()))
            raise AdvantageError(f"advantage: {first}", tuple(problems))
        return used

    def _clamped(self, row: RewardRow) -> dict[int, float]:
        if unknown := row.rewards.keys() - set(row.steps):
            raise ValueError(f"{row.trajectory_id} has rewards for steps {sorted(unknown)} it never took")
        rewards = {step: float(row.rewards[step]) for step in row.steps if step in row.rewards}
        gt = row.gt_reward
        for step, reward in rewards.items():
            if not math.isfinite(reward):
                raise ValueError(f"reward {reward} of {row.trajectory_id} step {step}: drop the group")
        if self.settings.clamp_to_gt:
            if gt is None or not math.isfinite(gt):
                raise ValueError(f"clamp_to_gt, but {row.trajectory_id} has ground-truth score {gt}")
            rewards = {step: min(reward, gt) for step, reward in rewards.items()}
        return rewards

    def _batch(self, rows: Sequence[RewardRow], used: Sequence[dict[int, float]]) -> _Batch:
        batch: dict[tuple[str, int], list[float]] = {}
        for row, rewards in zip(rows, used, strict=True):
            for step, reward in rewards.items():
                for image in ("", row.image_id):
                    batch.setdefault((image, self._key(step)), []).append(reward)
        return _Batch(batch)

    def _statistics(self, image: str, key: int, batch: _Batch) -> tuple[float, float]:
        s = self.settings
        scope = (image if s.batch_scope == "same_image" else "", key)
        track = self._tracks.get(image, {}).get(key, ())
        if s.stats == "batch" or (s.stats == "track" and len(track) < s.min_count):
            mean, variance = batch.statistics(scope)
        elif s.stats == "track":
            mean, variance = mean_variance(track)
        else:
            mean, variance = batch.moments(scope).mean_variance_with(track)
        return mean, variance if s.deviation_of == "pool" else batch.statistics(("", key))[1]

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
            self._remember(row.image_id)
            steps = self._tracks.setdefault(row.image_id, {})
            for step, reward in rewards.items():
                track = steps.setdefault(self._key(step), array("d"))
                track.append(reward)
                del track[: -self.settings.track_length]

    def _remember(self, image: str) -> None:
        undo = self._undo
        if undo is None or image in undo.images or self._tracks is not undo.tracks:
            return
        steps = self._tracks.get(image)
        undo.images[image] = None if steps is None else {key: track[:] for key, track in steps.items()}


class _Batch:
    """Rewards of a batch by (image, step key), those of all images under "": each pool is summed at most once."""

    def __init__(self, rewards: Mapping[tuple[str, int], list[float]]) -> None:
        self._rewards = rewards
        self._statistics: dict[tuple[str, int], tuple[float, float]] = {}
        self._moments: dict[tuple[str, int], Moments] = {}

    def statistics(self, scope: tuple[str, int]) -> tuple[float, float]:
        """Mean and variance."""
        if scope not in self._statistics:
            self._statistics[scope] = mean_variance(self._rewards[scope])
        return self._statistics[scope]

    def moments(self, scope: tuple[str, int]) -> Moments:
        if scope not in self._moments:
            self._moments[scope] = Moments(self._rewards[scope])
        return self._moments[scope]
