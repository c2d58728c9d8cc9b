"""Actors and ranks that sleep, so that a run of any size fits on two cores; everything else of it is real.

Real: driver, Ray's calls, admission, the store and what publishes to it and reads from it, records of the size asked
for, the reward service, a rank's intake (`learner.prepared`), batch and advantages, weights through the object store,
checkpoints. Stand-ins: an actor's rollout and a rank's forward and backward, which sleep, and weights of a kilobyte.
Actors are seats in a few processes, a thread for each call: hundreds of processes of Ray would measure this machine's
memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch

import learner.group as group
from actors.actor import ActorSpec
from actors.terms import recorded_version
from actors.work import WorkItem, WorkReport
from cluster.config.recipe import RunConfig
from cluster.run import driver, topology
from learner.advantage import RewardTracks
from learner.batch import assemble
from learner.prepared import Preparation, parts_of, works_of
from learner.process import RankProcess, remote_rank
from learner.snapshot import STATE_FILES
from learner.statistics import batch_summary
from restoration.base_models import describe
from restoration.evaluate import Row
from restoration.images import write_image
from restoration.transition import Schedule
from restoration.weights import WeightsInfo, WeightsMessage, to_bytes
from reward_service.client import RewardClient
from reward_service.settings import RewardApp
from trajectories.schema import RecordMeta, Trajectories

ROOT = Path(__file__).resolve().parent.parent
FIXED_COST = "fixed_cost-1"  # version of `benchmarks.fixed_cost`


@dataclass(frozen=True)
class Sleeps:
    """What the stand-ins take, in seconds, and the shape of what they publish.

    Attributes:
        rollout_s: of an item; policy_s: of a micro-batch of decisions; step_s: of a step besides.
        latent: [C, h, w] of the records; side: of their crops, in pixels.
        picture: side of the pictures that are sent to the reward service.
    """

    rollout_s: float
    policy_s: float = 0.0
    step_s: float = 0.0
    latent: tuple[int, int, int] = (4, 4, 4)
    side: int = 32
    picture: int = 8


class ActorHost:
    """The seats of some actors; each has a lock of its own, in which it sleeps as an actor denoises."""

    def __init__(self, spec: ActorSpec, sleeps: Sleeps, schedule: Schedule, reward_version: str) -> None:
        torch.set_num_threads(1)
        self.spec, self.sleeps, self.schedule, self.reward_version = spec, sleeps, schedule, reward_version
        self.stream = spec.stream()
        self.locks: dict[int, threading.Lock] = {}
        self.clients: dict[str, RewardClient] = {}
        self.names = [term.name for term in spec.terms.trained if term.served]
        rows, decisions = spec.rollout.rollouts_per_image, len(schedule.decisions)
        self.decisions = decisions
        draw = torch.Generator().manual_seed(0)
        self.states, self.targets = (torch.randn(rows, decisions, *sleeps.latent, generator=draw) for _ in range(2))
        count = spec.rollout.images_per_batch * rows
        self.block = np.zeros((count, sleeps.picture, sleeps.picture, 3), np.uint8)

    def ready(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def roll(self, seat: int, item: WorkItem, weights: WeightsMessage, rewards: Mapping[str, RewardApp]) -> WorkReport:
        seconds: dict[str, float] = {}
        with self.locks.setdefault(seat, threading.Lock()):
            began = time.monotonic()
            assert len(ray.get(weights.ref)) > 0
            time.sleep(self.sleeps.rollout_s)
            seconds["rollout"] = time.monotonic() - began
        began = time.monotonic()
        for name in self.names:
            if name not in self.clients:
                self.clients[name] = RewardClient(rewards[name])
        blocks = self.spec.rollout.scored(self.decisions)
        tickets = [self.clients[name].submit(self.block) for name in self.names for _ in blocks]
        for ticket in tickets:
            ticket.result()
        seconds["reward_wait"] = time.monotonic() - began
        began = time.monotonic()
        for group_id, image_id in zip(item.group_ids, item.image_ids, strict=True):
            record = self._record(group_id, image_id, item.index, weights)
            self.stream.publish(record, timeout_s=self.spec.publish_timeout_s)
        seconds["publish"] = time.monotonic() - began
        return WorkReport(item.index, weights.version, len(item.image_ids), (), seconds)

    def evaluate(
        self,
        seat: int,
        image_ids: Sequence[str],
        weights: WeightsMessage | None,
        known: Sequence[Row],
        keep: Sequence[str],
        rewards: Mapping[str, RewardApp],
    ) -> tuple[list[Row], dict[str, np.ndarray]]:
        names = ("psnr", "ssim", "reward", "input_psnr", "input_ssim", "input_reward", "gt_reward")
        return [Row(i, dict.fromkeys(names, 1.0)) for i in image_ids], {}

    def _record(self, group_id: str, image_id: str, seed: int, weights: WeightsMessage) -> Trajectories:
        rows, steps = self.states.shape[:2]
        draw = torch.Generator().manual_seed(seed)
        rewards = torch.randn(rows, steps, generator=draw)
        meta = RecordMeta(
            run_id=self.spec.run_id,
            epoch=weights.epoch,
            weights_version=weights.version,
            reward_version=self.reward_version,
            scheduler_fingerprint=self.schedule.fingerprint,
            dtype="float32",
            actor="stand-in",
            group_id=group_id,
            image_id=image_id,
            crop=(0, 0, self.sleeps.side, self.sleeps.side),
            flip=False,
            seed=seed,
        )
        return Trajectories(
            meta=meta,
            trajectory_ids=[f"{group_id}/{k}" for k in range(rows)],
            latent=self.sleeps.latent,
            states=self.states,
            targets=self.targets,
            step_index=torch.tensor([step.index for step in self.schedule.decisions], dtype=torch.int32),
            log_probs=torch.full((rows, steps), -1.0),
            rewards=rewards,
            scored=torch.ones(rows, steps, dtype=torch.bool),
            final_reward=rewards[:, -1].clone(),
            gt_reward=None,
            error_l1=torch.rand(rows, generator=draw),
            error_l2=torch.rand(rows, generator=draw),
            shift=torch.zeros(rows, steps),
        )


class Placed:
    """A method of a host, called for one of its seats."""

    def __init__(self, method: Any, seat: int) -> None:
        self.method, self.seat = method, seat

    def remote(self, *arguments: Any) -> Any:
        return self.method.remote(self.seat, *arguments)


class Seat:
    """What the driver takes for an actor."""

    def __init__(self, host: Any, seat: int) -> None:
        self.ready, self.roll, self.evaluate = host.ready, Placed(host.roll, seat), Placed(host.evaluate, seat)


class Fleet:
    """In place of `actors.actor.remote_actor`: seats in `processes` processes, one after the other."""

    def __init__(self, processes: int, seats: int, *arguments: Any) -> None:
        self.processes, self.seats, self.arguments = processes, seats, arguments
        self.hosts: list[Any] = []
        self.made = 0

    def __call__(self, options: dict[str, Any]) -> Fleet:
        return self

    def remote(self, spec: ActorSpec) -> Seat:
        if len(self.hosts) < self.processes:
            calls = 2 * -(-self.seats // self.processes) + 8
            host: Any = ray.remote(ActorHost).options(max_concurrency=calls, num_cpus=0.01)
            self.hosts.append(host.remote(spec, *self.arguments))
        seat, self.made = self.made, self.made + 1
        return Seat(self.hosts[seat % self.processes], seat)


class Nothing:
    """A snapshot of weights of a kilobyte."""

    def __init__(self, weights: bytes) -> None:
        self.weights = weights

    def files(self) -> dict[str, bytes]:
        return {STATE_FILES[0]: self.weights}


class SleepingLearner:
    """What `RankProcess` asks of a `LearnerRank`: the real intake, batch and advantages, and sleep for the rest."""

    def __init__(
        self, settings: Any, sleeps: Sleeps, schedule: Schedule, multiple: int, pairs: Any, rank: int, world: int
    ) -> None:
        torch.set_num_threads(1)
        self.settings, self.sleeps, self.schedule, self.rank, self.world = settings, sleeps, schedule, rank, world
        self.preparation = Preparation(settings, schedule, multiple, pairs, rank, world, torch.device("cpu"))
        self.tracks = RewardTracks(settings.advantage)
        self.iteration = self.weights_version = 0
        self.prepared_s = 0.0

    def prepare(self, summaries: Sequence[Any], fetch: Any) -> Any:
        began = time.monotonic()
        refused = self.preparation.prepare(summaries, fetch)
        self.prepared_s = time.monotonic() - began
        return refused

    def step(self, summaries: Sequence[Any]) -> dict[str, float | None]:
        began = time.monotonic()
        self.preparation.take(s.meta.group_id for s in summaries)
        with self.tracks.transaction():
            batch = assemble(summaries, self.tracks, self.schedule.fingerprint)
            works = works_of(batch, self.settings)
        opened = time.monotonic()
        micros = sum(len(parts_of(work, self.rank, self.world, self.settings.micro_batch)) for work in works)
        time.sleep(max(0.0, self.sleeps.step_s + micros * self.sleeps.policy_s))
        self.preparation.drop(s.meta.group_id for s in summaries)
        self.iteration += 1
        self.weights_version += 1
        return batch_summary(batch) | {
            "iteration": self.iteration,
            "weights_version": self.weights_version,
            "open_s": opened - began,
            "learn_s": time.monotonic() - began,
            "prepare_s": self.prepared_s,
            "rank_mb": psutil.Process().memory_info().rss / 2**20,
        }

    def trainable_bytes(self, epoch: int, run_id: str, averaged: bool) -> bytes | None:
        return self._weights(WeightsInfo(self.weights_version, epoch, run_id)) if self.rank == 0 else None

    def snapshot(self) -> Nothing | None:
        return Nothing(self._weights(WeightsInfo(self.weights_version, 0))) if self.rank == 0 else None

    def _weights(self, info: WeightsInfo) -> bytes:
        return to_bytes({"weight": torch.zeros(256)}, info)


def sleeping_ranks(sleeps: Sleeps, schedule: Schedule, multiple: int) -> Any:
    """In place of `learner.process.remote_rank`."""

    class SleepingRank(RankProcess):  # here, so that it travels with what it closes over
        def start(self, settings: Any, rank: int, world: int, address: str, port: int, device: str) -> str:
            if self._listener is not None:
                self._listener.close()
            pairs = self._make_pairs()
            self._rank = SleepingLearner(settings, sleeps, schedule, multiple, pairs, rank, world)  # type: ignore[assignment]
            return schedule.fingerprint

    return lambda: remote_rank(SleepingRank)


def train(config: RunConfig, folder: Path, sleeps: Sleeps, processes: int = 2) -> None:
    """A run of `config` in `folder`, with actors and ranks that sleep; scorers are `benchmarks.fixed_cost` or none."""
    facts = describe(config.model)
    schedule = facts.schedule(config.sampler)
    version = recorded_version(config.reward.resolved, dict.fromkeys(config.reward.services, FIXED_COST))
    before = topology.remote_actor, group.remote_rank
    fleet = Fleet(min(processes, config.actors.count), config.actors.count, sleeps, schedule, version)
    topology.remote_actor = fleet  # type: ignore[assignment]
    group.remote_rank = sleeping_ranks(sleeps, schedule, facts.size_multiple)
    try:
        driver.train(config, folder)
    finally:
        topology.remote_actor, group.remote_rank = before  # type: ignore[assignment]


def write_pairs(folder: Path, side: int, count: int) -> None:
    """{train,test}/{input,target} of coarse patterns, `count` to train on and one held out."""
    rng = np.random.default_rng(0)
    for split, pairs in (("train", count), ("test", 1)):
        for n in range(pairs):
            gt = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((side // 8, side // 8, 1))).astype(np.uint8)
            for kind, image in (("target", gt), ("input", gt // 2)):
                (folder / split / kind).mkdir(parents=True, exist_ok=True)
                write_image(folder / split / kind / f"{n}.png", image)


def recipe(pairs: Path, **sections: Any) -> RunConfig:
    """A run of stand-ins on these pairs; `sections` as in a recipe, key by key over what is here."""
    base: dict[str, Any] = {
        "name": "stand-ins",
        "model": ROOT / "models" / "demo",
        "data": {"root": pairs},
        "sampler": {"steps": 3, "eta": 1.0, "colour_fix": "none"},
        "rollout": {"images_per_batch": 2, "rollouts_per_image": 4, "crop": 32},
        "objective": {"sft_coef": 0.0},
        "advantage": {"stats": "batch", "batch_scope": "same_image"},
        "learner": {"micro_batch": 8, "norms_every": 0},
        "actors": {"num_cpus": 0.0},
        "ranks": {"num_cpus": 0.01},
        "cluster": {"num_cpus": 2, "dashboard": False, "object_store_mb": 200},
        "evaluation": {"every": 0, "limit": 1, "strips": 0, "scorers": []},
        "stall_timeout_s": 300.0,
    }
    for name, value in sections.items():
        base[name] = base.get(name, {}) | value if isinstance(value, dict) else value
    return RunConfig.model_validate(base)
