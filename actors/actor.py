"""The Ray actor around `rollout`: weights in, trajectories out, scoring overlapped with the next batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray
import torch

from actors.rollout import PairBatch, Rollout, RolloutSettings, complete, reconstruction_scores, rollout
from actors.work import WorkItem, WorkReport
from restoration.adapters import AdaptSettings, load_trainable, make_trainable
from restoration.base_models import load
from restoration.base_models.interface import BaseModel, SamplerSettings
from restoration.datasets.paired import PairedFolder, crop_pair, random_crop
from restoration.degradations import seeded_rng
from restoration.evaluate import Row, ScoreFunction, evaluate_pairs
from restoration.images import to_uint8
from restoration.metrics.appearance import APPEARANCE
from restoration.weights import WeightsMessage, from_bytes, require_epoch
from reward_service.client import RewardClient
from reward_service.errors import RewardError
from trajectories.errors import StaleEpoch
from trajectories.schema import RecordMeta
from trajectories.stream import TrajectoryStream


class ActorMetrics(Protocol):
    """Where an actor counts; see `cluster.metrics.RunMetrics`."""

    def observe_phase(self, name: str, seconds: float) -> None: ...

    def published(self, rollouts: int) -> None: ...

    def reward_failed(self, kind: str) -> None: ...


@dataclass(frozen=True)
class ActorSpec:
    """Everything an actor needs to build itself on any node; paths are on storage that all nodes share."""

    run_id: str
    seed: int
    model: Path
    embeddings: Path | None
    data: PairedFolder
    sampler: SamplerSettings
    rollout: RolloutSettings
    adapt: AdaptSettings
    score_gt: bool
    device: str
    threads: int
    publish_timeout_s: float
    stream: Callable[[], TrajectoryStream]
    rewards: Callable[[], RewardClient]
    metrics: Callable[[], ActorMetrics]
    judges: Callable[[], dict[str, ScoreFunction]]  # of evaluations, beside the reward


class RolloutActor:
    """Rolls out work items. Run with `max_concurrency=2`: while one item waits for its scores, the next denoises."""

    def __init__(self, spec: ActorSpec) -> None:
        torch.set_num_threads(spec.threads)
        self.spec = spec
        self.model = load(spec.model, spec.embeddings).to(spec.device)
        make_trainable(self.model, spec.adapt)
        self.version, self.epoch = -1, -1
        self.denoising = threading.Lock()
        self.stream, self.rewards = spec.stream(), spec.rewards()
        self.metrics, self.judges = spec.metrics(), spec.judges()
        self.name = ray.get_runtime_context().get_actor_id() or "actor"

    def ready(self) -> bool:
        return True

    def roll(self, item: WorkItem, weights: WeightsMessage) -> WorkReport:
        """Roll out, score and publish one item.

        A group whose scores can't be had is dropped and counted, never scored 0.
        """
        seconds: dict[str, float] = {}
        with self.denoising:
            began = time.monotonic()
            self._take(weights)
            version, epoch = self.version, self.epoch
            rolled = self._denoise(item)
            seconds["rollout"] = time.monotonic() - began
        began = time.monotonic()
        dropped: dict[str, int] = {}
        published, detail = 0, ""
        try:
            scores, gt_scores, reward_version = self._score(rolled)
            seconds["reward_wait"] = time.monotonic() - began
            began = time.monotonic()
            metas = self._metas(item, rolled, version, epoch, reward_version)
            for record in complete(rolled, scores, gt_scores, metas):
                self.stream.publish(record, timeout_s=self.spec.publish_timeout_s)
                published += 1
            seconds["publish"] = time.monotonic() - began
        except RewardError as error:
            dropped[f"reward:{error.kind}"], detail = len(item.image_ids), str(error)
            self.metrics.reward_failed(error.kind)
        except StaleEpoch as error:  # the learner was replaced while this was rolled out
            dropped["epoch"], detail = len(item.image_ids) - published, str(error)
        for phase, value in seconds.items():
            self.metrics.observe_phase(phase, value)
        self.metrics.published(published * self.spec.rollout.rollouts_per_image)
        return WorkReport(item.index, version, published, dropped, detail, seconds)

    def evaluate(
        self,
        data: PairedFolder,
        weights: WeightsMessage | None,
        protocol: str,
        seed: int,
        batch: int,
        known: Sequence[Row] = (),
        keep: Sequence[str] = (),
    ) -> tuple[list[Row], dict[str, np.ndarray]]:
        """Rows of every pair under `weights` or of the base model (None), and outputs (uint8) of the ids to keep."""
        kept: dict[str, np.ndarray] = {}

        def on_image(image_id: str, lq: np.ndarray, restored: np.ndarray, gt: np.ndarray) -> None:
            if image_id in keep:
                kept[image_id] = restored.copy()

        def score(images: np.ndarray) -> np.ndarray:
            return self.rewards.submit(images).result().scores

        with self.denoising:
            model: BaseModel = self.model
            if weights is None or weights.averaged:  # in a model of their own: the policy keeps its weights
                model = load(self.spec.model, self.spec.embeddings).to(self.spec.device)
                if weights is not None:
                    make_trainable(model, self.spec.adapt)
                    load_trainable(model, self._fetch(weights))
            else:
                self._take(weights)
            rows = evaluate_pairs(
                model,
                data,
                self.spec.sampler,
                {"reward": score, **self.judges, **APPEARANCE},
                protocol,
                seed,
                batch,
                device=self.spec.device,
                known=known,
                on_image=on_image,
            )
        return rows, kept

    def _take(self, weights: WeightsMessage) -> None:
        if (weights.epoch, weights.version) == (self.epoch, self.version):
            return
        load_trainable(self.model, self._fetch(weights))
        self.version, self.epoch = weights.version, weights.epoch

    def _fetch(self, weights: WeightsMessage) -> dict[str, torch.Tensor]:
        require_epoch(weights, self.epoch)
        return from_bytes(memoryview(ray.get(weights.ref)), self.epoch)[0]

    def _denoise(self, item: WorkItem) -> Rollout:
        generator = torch.Generator().manual_seed(seed_of(self.spec.seed, item.index))
        batch = draw_batch(self.spec.data, item, self.spec.rollout.crop, self.spec.seed, self.model.size_multiple)
        on_device = PairBatch(
            batch.image_ids, batch.crops, batch.flips, batch.lq.to(self.spec.device), batch.gt.to(self.spec.device)
        )
        return rollout(self.model, on_device, self.spec.sampler, self.spec.rollout, generator)

    def _score(self, rolled: Rollout) -> tuple[dict[int, np.ndarray], np.ndarray | None, str]:
        if self.spec.rollout.reward == "reconstruction":
            scores, gt_scores = reconstruction_scores(rolled)
            return scores, gt_scores, "reconstruction-1"
        tickets = {index: self.rewards.submit(block) for index, block in rolled.blocks.items()}
        gt_ticket = self.rewards.submit(to_uint8(rolled.batch.gt)) if self.spec.score_gt else None
        results = {index: ticket.result() for index, ticket in tickets.items()}
        gt_result = gt_ticket.result() if gt_ticket is not None else None
        versions = {r.reward_version for r in (*results.values(), *((gt_result,) if gt_result else ()))}
        if len(versions) > 1:
            raise RewardError(f"one rollout was scored by several reward versions {sorted(versions)}")
        return {i: r.scores for i, r in results.items()}, gt_result.scores if gt_result else None, versions.pop()

    def _metas(self, item: WorkItem, rolled: Rollout, version: int, epoch: int, reward: str) -> list[RecordMeta]:
        return [
            RecordMeta(
                run_id=self.spec.run_id,
                epoch=epoch,
                weights_version=version,
                reward_version=reward,
                scheduler_fingerprint=rolled.schedule.fingerprint,
                dtype=self.spec.rollout.storage_dtype,
                actor=self.name,
                group_id=f"{item.index:08d}-{n:03d}",
                image_id=image_id,
                crop=rolled.batch.crops[n],
                flip=rolled.batch.flips[n],
                seed=seed_of(self.spec.seed, item.index),
            )
            for n, image_id in enumerate(item.image_ids)
        ]


def seed_of(seed: int, index: int) -> int:
    """Seed of the random numbers of work item `index`."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1)[0])


def draw_batch(data: PairedFolder, item: WorkItem, side: int, seed: int, multiple: int) -> PairBatch:
    """Load the item's pairs and cut a random crop of `side` (0: the whole image) out of each, flipped at random.

    Raises:
        ValueError: a crop that the model's size multiple doesn't divide; whole images of unequal size.
    """
    crops: list[tuple[int, int, int, int]] = []
    flips: list[bool] = []
    lqs, gts = [], []
    for place, image_id in enumerate(item.image_ids):
        lq, gt = data.load(image_id)
        rng = seeded_rng(f"{item.index}/{place}/{image_id}", seed)
        height, width = lq.shape[-2:]
        if side:
            crop = random_crop((height, width), side, rng)
        else:
            crop = (0, 0, height // multiple * multiple, width // multiple * multiple)
        flip = bool(rng.random() < 0.5)
        lq, gt = crop_pair(lq, gt, crop, flip)
        crops.append(crop)
        flips.append(flip)
        lqs.append(lq)
        gts.append(gt)
    if len({lq.shape for lq in lqs}) > 1:
        raise ValueError(
            f"images of unequal size {sorted({tuple(x.shape[1:]) for x in lqs})} in one batch: "
            "set rollout.crop, or rollout.images_per_batch=1"
        )
    return PairBatch(item.image_ids, crops, flips, torch.stack(lqs), torch.stack(gts))


def remote_actor(options: dict[str, Any]) -> Any:
    """The actor class with Ray options; restarted without bound, since the driver gives lost items out again."""
    return ray.remote(RolloutActor).options(max_restarts=-1, max_concurrency=2, **options)
