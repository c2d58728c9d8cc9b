"""The Ray actor around `rollout`: weights in, trajectories out, scoring overlapped with the next batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray
import torch

from actors.rollout import PairBatch, Rollout, RolloutSettings, complete, rollout
from actors.scoring import Scores, score_rollout
from actors.terms import RewardTerms
from actors.work import Quarantined, WorkItem, WorkReport
from restoration.acceleration import accelerate
from restoration.adapters import (
    AdaptSettings,
    frozen_type,
    load_trainable,
    make_trainable,
    reference,
    trained_parameters,
)
from restoration.base_models import load
from restoration.base_models.interface import SamplerSettings
from restoration.datasets.paired import PairedFolder, crop_pair, random_crop
from restoration.degradations import seeded_rng
from restoration.evaluate import Row, ScoreFunction, evaluate_pairs
from restoration.images import ImageError
from restoration.metrics.appearance import APPEARANCE
from restoration.metrics.full_reference import full_reference
from restoration.precision import enable_tf32, resolve, set_frozen_dtype, trainable
from restoration.spans import SpanLog, Spans
from restoration.tiling import Tiling
from restoration.weights import WeightsMessage, from_bytes, require_epoch
from reward_service.client import RewardClient
from reward_service.errors import InvalidBlock, InvalidReward, RewardError, ScorerFailed
from reward_service.settings import RewardApp
from trajectories.schema import RecordMeta
from trajectories.stream import TrajectoryStream


class ActorMetrics(Protocol):
    """Where an actor counts; see `cluster.metrics.RunMetrics`."""

    def observe_phase(self, name: str, seconds: float) -> None: ...

    def published(self, rollouts: int) -> None: ...

    def reward_failed(self, kind: str) -> None: ...


@dataclass(frozen=True)
class EvaluationSpec:
    """The held-out pairs and how they are measured; see `restoration.evaluate.evaluate_pairs`."""

    data: PairedFolder
    protocol: str
    seed: int
    batch: int
    pixels: int
    limit: int | None
    dtype: str
    tiling: Tiling | None


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
    evaluation: EvaluationSpec
    adapt: AdaptSettings
    score_gt: bool
    device: str
    threads: int
    publish_timeout_s: float
    fetch_timeout_s: float  # of weights from the object store
    stream: Callable[[], TrajectoryStream]
    metrics: Callable[[], ActorMetrics]
    judges: Callable[[], dict[str, ScoreFunction]]  # of evaluations, beside the reward
    terms: RewardTerms


class RolloutActor:
    """Rolls out work items. Run with `max_concurrency=2`: while one item waits for its scores, the next denoises."""

    def __init__(self, spec: ActorSpec) -> None:
        torch.set_num_threads(spec.threads)
        self.spec = spec
        self.model = load(spec.model, spec.embeddings)
        make_trainable(self.model, spec.adapt, keep_reference=False)
        compute = resolve(spec.rollout.denoise_dtype, spec.device)
        frozen = frozen_type(spec.adapt, spec.device, compute)
        self.evaluation_dtype = resolve(spec.evaluation.dtype, spec.device)
        if frozen != torch.float32:
            set_frozen_dtype(self.model, frozen, keep=trained_parameters(self.model))
            self.evaluation_dtype = frozen  # products of bf16 weights need autocast
        self.model.to(spec.device)
        if torch.device(spec.device).type == "cuda":
            enable_tf32()
        accelerate(self.model, spec.device, spec.rollout.compile)
        self.version, self.epoch = -1, -1
        self.denoising = threading.Lock()
        self.stream = spec.stream()
        self.clients: dict[str, RewardClient] = {}
        self.references = {
            term.name: full_reference(term.scorer, spec.device, **term.params)
            for term in spec.terms.trained
            if not term.served
        }
        self.metrics, self.judges = spec.metrics(), spec.judges()
        self.name = ray.get_runtime_context().get_actor_id() or "actor"

    def ready(self) -> str:
        """Id of the node that it is on."""
        return str(ray.get_runtime_context().get_node_id())

    def roll(self, item: WorkItem, weights: WeightsMessage, rewards: Mapping[str, RewardApp]) -> WorkReport:
        """Roll out, score and publish one item. `rewards`: the service of each term that has one, by name.

        A picture that can't be used and a group whose scores aren't finite are quarantined, never scored 0.

        Raises:
            RewardTimeout, RewardUnavailable, StoreUnreachable, BackPressureTimeout, StaleEpoch: another try may do;
                groups that are published already stay, and are not published again by it.
            Exception: whatever ends the run.
        """
        seconds: dict[str, float] = {}
        spans, arrived, what = SpanLog(), time.monotonic(), f"item {item.index}"
        self._connect(rewards)
        with self.denoising:
            began = time.monotonic()
            self._take(weights)
            version, epoch = self.version, self.epoch
            batch, refused = draw_batch(
                self.spec.data, item, self.spec.rollout.crop, self.spec.seed, self.model.size_multiple
            )
            rolled = None if batch is None else self._denoise(item, batch)
            seconds["rollout"] = time.monotonic() - began
            spans.add("rollout", began, began + seconds["rollout"], what)
        if rolled is None:
            return WorkReport(item.index, version, 0, tuple(refused), seconds, spans.take(arrived))
        published = 0
        try:
            began = time.monotonic()
            scores, gt_scores, reward_version = self._score(rolled)
            seconds["reward_wait"] = time.monotonic() - began
            spans.add("reward", began, began + seconds["reward_wait"], what)
            began = time.monotonic()
            metas = self._metas(item, rolled, version, epoch, reward_version)
            for record in complete(rolled, scores, gt_scores, metas, self.spec.terms):
                self.stream.publish(record, timeout_s=self.spec.publish_timeout_s)
                published += 1
            seconds["publish"] = time.monotonic() - began
            spans.add("publish", began, began + seconds["publish"], what)
        except (InvalidReward, InvalidBlock, ScorerFailed) as error:
            refused += [
                Quarantined(item.group_ids[n], f"reward:{error.kind}", f"{item.image_ids[n]}: {error}")
                for n in rolled.batch.places
            ]
            self.metrics.reward_failed(error.kind)
        except RewardError as error:
            self.metrics.reward_failed(error.kind)
            raise
        for phase, value in seconds.items():
            self.metrics.observe_phase(phase, value)
        self.metrics.published(published * self.spec.rollout.rollouts_per_image)
        return WorkReport(item.index, version, published, tuple(refused), seconds, spans.take(arrived))

    def evaluate(
        self,
        image_ids: Sequence[str],
        weights: WeightsMessage | None,
        known: Sequence[Row],
        keep: Sequence[str],
        rewards: Mapping[str, RewardApp],
    ) -> tuple[list[Row], dict[str, np.ndarray], Spans]:
        """Rows of held-out pairs under `weights` or of the base model (None), outputs (uint8) of the ids to keep, and
        when that was.

        Raises:
            ImageError: a picture that can't be read.
            RewardError: its scores can't be had.
        """
        kept: dict[str, np.ndarray] = {}
        spans, arrived = SpanLog(), time.monotonic()
        self._connect(rewards)

        def on_image(image_id: str, lq: np.ndarray, restored: np.ndarray, gt: np.ndarray) -> None:
            if image_id in keep:
                kept[image_id] = restored.copy()

        def asking(client: RewardClient) -> ScoreFunction:
            return lambda images: client.submit(images).result().scores

        main = self.spec.terms.main
        scorers = {"reward" if name == main else name: asking(client) for name, client in self.clients.items()}
        of = self.spec.evaluation
        pictures = f"{len(image_ids)} pictures"
        with self.denoising, spans.span("evaluation", pictures), self._weights(weights):
            rows = evaluate_pairs(
                self.model,
                of.data,
                self.spec.sampler,
                {**self.judges, **scorers, **APPEARANCE},
                of.protocol,
                of.seed,
                of.batch,
                device=self.spec.device,
                known=known,
                on_image=on_image,
                only=image_ids,
                pixels=of.pixels,
                limit=of.limit,
                dtype=self.evaluation_dtype,
                tiling=of.tiling,
            )
        return rows, kept, spans.take(arrived)

    def _connect(self, rewards: Mapping[str, RewardApp]) -> None:
        """Given with every call: an actor is built, and built again by Ray, beside the services."""
        for name, app in rewards.items():
            known = self.clients.get(name)
            if known is None or known.app != app:
                self.clients[name] = RewardClient(app)

    @contextmanager
    def _weights(self, weights: WeightsMessage | None) -> Iterator[None]:
        """Inside, the model is the base model (None) or has these weights; the next item takes its own again."""
        if weights is None and self.spec.adapt.mode == "lora":
            with reference(self.model):
                yield
            return
        self.version = -1  # whatever happens in here, the policy's weights have to be taken again
        # Those of an evaluation are of a checkpoint: an epoch that began meanwhile doesn't make them wrong.
        load_trainable(self.model, self._base_state() if weights is None else self._fetch(weights, minimum_epoch=0))
        yield

    def _base_state(self) -> dict[str, torch.Tensor]:
        """Of full training: what it started from, read again and not kept."""
        base = load(self.spec.model, self.spec.embeddings)
        return {name: p.detach() for name, p in trainable(base).items()}

    def _take(self, weights: WeightsMessage) -> None:
        if (weights.epoch, weights.version) == (self.epoch, self.version):
            return
        load_trainable(self.model, self._fetch(weights, self.epoch))
        self.version, self.epoch = weights.version, weights.epoch

    def _fetch(self, weights: WeightsMessage, minimum_epoch: int) -> dict[str, torch.Tensor]:
        require_epoch(weights, minimum_epoch)
        data = memoryview(ray.get(weights.ref, timeout=self.spec.fetch_timeout_s))
        return from_bytes(data, minimum_epoch)[0]

    def _denoise(self, item: WorkItem, batch: PairBatch) -> Rollout:
        generator = torch.Generator().manual_seed(seed_of(self.spec.seed, item.index))
        on_device = replace(batch, lq=batch.lq.to(self.spec.device), gt=batch.gt.to(self.spec.device))
        return rollout(self.model, on_device, self.spec.sampler, self.spec.rollout, generator)

    def _score(self, rolled: Rollout) -> tuple[Scores, np.ndarray | None, str]:
        return score_rollout(rolled, self.spec.terms, self.clients, self.references, self.spec.score_gt)

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
                group_id=item.group_ids[place],
                image_id=item.image_ids[place],
                crop=rolled.batch.crops[n],
                flip=rolled.batch.flips[n],
                seed=seed_of(self.spec.seed, item.index),
            )
            for n, place in enumerate(rolled.batch.places)
        ]


def seed_of(seed: int, index: int) -> int:
    """Seed of the random numbers of work item `index`."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1)[0])


def draw_batch(
    data: PairedFolder, item: WorkItem, side: int, seed: int, multiple: int
) -> tuple[PairBatch | None, list[Quarantined]]:
    """Load the item's pairs and cut a random crop of `side` (0: the whole image) out of each, flipped at random.

    A picture that can't be read or is smaller than the crop is refused and left out; no batch if that leaves none.

    Raises:
        ValueError: whole images of unequal size.
    """
    crops: list[tuple[int, int, int, int]] = []
    flips: list[bool] = []
    places: list[int] = []
    lqs, gts = [], []
    refused: list[Quarantined] = []
    for place, image_id in enumerate(item.image_ids):
        rng = seeded_rng(f"{item.index}/{place}/{image_id}", seed)
        try:
            lq, gt = data.load(image_id)
            height, width = lq.shape[-2:]
            whole = (0, 0, height // multiple * multiple, width // multiple * multiple)
            crop = random_crop((height, width), side, rng) if side else whole
            flip = bool(rng.random() < 0.5)
            lq, gt = crop_pair(lq, gt, crop, flip)
        except (ImageError, OSError, ValueError) as error:
            refused.append(Quarantined(item.group_ids[place], "picture", f"{image_id}: {error}"))
            continue
        crops.append(crop)
        flips.append(flip)
        places.append(place)
        lqs.append(lq)
        gts.append(gt)
    if len({lq.shape for lq in lqs}) > 1:
        raise ValueError(
            f"images of unequal size {sorted({tuple(x.shape[1:]) for x in lqs})} in one batch: "
            "set rollout.crop, or rollout.images_per_batch=1"
        )
    if not lqs:
        return None, refused
    ids = [item.image_ids[place] for place in places]
    return PairBatch(ids, crops, flips, torch.stack(lqs), torch.stack(gts), tuple(places)), refused


def remote_actor(options: dict[str, Any]) -> Any:
    """The actor class with Ray options; restarted without bound, since the driver gives lost items out again."""
    return ray.remote(RolloutActor).options(max_restarts=-1, max_concurrency=2, **options)
