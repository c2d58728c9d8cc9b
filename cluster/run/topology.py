"""The processes of a run and how they are wired: Ray, store, reward service, actors, learner ranks."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.actor import ActorSpec, remote_actor
from actors.work import WorkItem, WorkReport
from cluster.config.recipe import RunConfig
from cluster.jobs import connect
from cluster.metrics import RunMetrics
from cluster.run.judges import judges
from learner import checkpoint
from learner.group import GroupSettings, LearnerDied, LearnerGroup
from restoration.base_models import load
from restoration.datasets.paired import PairedFolder, discover
from restoration.evaluate import Row
from restoration.weights import WeightsMessage
from reward_service.client import RewardClient
from reward_service.service import deploy, shutdown
from reward_service.settings import reward_app_name
from trajectories.errors import StoreError
from trajectories.server import EmbeddedServer
from trajectories.settings import StoreAddress
from trajectories.stream import TrajectoryStream

POLL_S = 0.05
WATCH_S = 0.5


class Stalled(TimeoutError):
    """Nothing has happened for too long."""


@dataclass(frozen=True)
class StepResult:
    """One learner step: its metrics, and what was refused on the way to its batch."""

    version: int
    metrics: dict[str, float | None]
    dropped: dict[str, int] = field(default_factory=dict)


class StoreWatch:
    """Starts the embedded server again, from its append-only file, whenever it has died."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> StoreWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(WATCH_S):
            if not self.server.alive():
                with contextlib.suppress(StoreError):  # tried again at the next look
                    self.server.restart()


class Topology:
    """Starts everything on entry, ends everything on exit, in this order: Ray, store, reward service, actors, learner.

    Raises (on entry):
        ClusterError, StoreError, RewardError, LearnerUnplaced, CheckpointError: what could not be started, and why.

    Raises (constructor):
        DataError, ConfigError: pairs that can't be read, an unknown scorer of evaluations.
    """

    def __init__(self, config: RunConfig, folder: Path, run_id: str, resume: bool) -> None:
        self.config, self.folder, self.run_id, self.resume = config, folder, run_id, resume
        self.train: PairedFolder = discover(config.data.root, config.data.train, match=config.data.match)
        self.heldout: PairedFolder = discover(config.data.root, config.data.heldout, match=config.data.match)
        judges(config.evaluation.scorers)  # a wrong name is told before anything starts
        self.rolling: dict[ray.ObjectRef, tuple[Any, WorkItem]] = {}
        self.exits = ExitStack()

    def __enter__(self) -> Topology:
        try:
            self._start()
        except BaseException:
            self.exits.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.exits.close()

    def _start(self) -> None:
        config = self.config
        self.connection = self.exits.enter_context(connect(config.cluster, self.folder))
        if config.store.is_embedded:
            server = self.exits.enter_context(EmbeddedServer(self.folder / "store", config.store))
            self.exits.enter_context(StoreWatch(server))
            address = server.address
        else:
            address = config.store.external_address()
        self.address = address
        self.stream = self.exits.enter_context(self._open_stream())
        self.epoch = self.stream.begin_epoch()
        self.rewards = deploy(config.reward, reward_app_name(self.run_id))
        self.exits.callback(shutdown, self.rewards)
        self.metrics = RunMetrics("driver", self.run_id)
        spec = ActorSpec(
            run_id=self.run_id,
            seed=config.seed,
            model=config.model,
            embeddings=config.data.embeddings,
            data=self.train,
            sampler=config.sampler,
            rollout=config.rollout,
            adapt=config.adapt,
            score_gt=config.advantage.clamp_to_gt,
            device=config.actors.device,
            threads=config.actors.threads,
            publish_timeout_s=config.store.publish_timeout_s,
            stream=partial(_stream, address, self.run_id, config.store),
            rewards=partial(RewardClient, self.rewards),
            metrics=partial(RunMetrics, "actor", self.run_id),
            judges=partial(judges, config.evaluation.scorers),
        )
        make = remote_actor(config.actors.options)
        self.actors = [make.remote(spec) for _ in range(config.actors.count)]
        self.exits.callback(self._kill_actors)
        self.pool = self.exits.enter_context(ThreadPoolExecutor(1))
        self.learner = self._start_learner(resume=self.resume)
        self.exits.callback(lambda: self.learner.close())
        self._publish()
        ray.get([actor.ready.remote() for actor in self.actors], timeout=config.stall_timeout_s)

    def _open_stream(self) -> TrajectoryStream:
        return _stream(self.address, self.run_id, self.config.store)

    def _start_learner(self, resume: bool) -> LearnerGroup:
        config, ranks = self.config, self.config.ranks
        group = GroupSettings(
            ranks=ranks.count,
            cpus_per_rank=ranks.num_cpus,
            gpus_per_rank=ranks.num_gpus,
            resources=ranks.resources,
            step_timeout_s=config.stall_timeout_s,
        )
        learner = LearnerGroup(
            config.learner_settings(),
            group,
            partial(load, config.model, config.data.embeddings),
            partial(_pairs, self.train),
            epoch=self.epoch,
            run_id=self.run_id,
        )
        learner.read_from(partial(_stream, self.address, self.run_id, config.store), config.source)
        latest = checkpoint.latest(self.folder / "checkpoints") if resume else None
        if latest is not None:
            learner.load(latest)
        return learner

    # rollouts

    def free_actors(self, slots: int) -> list[Any]:
        """Actors with room for another item, the least busy first, one entry a free slot."""
        busy = {actor: 0 for actor in self.actors}
        for actor, _ in self.rolling.values():
            busy[actor] += 1
        return [actor for level in range(slots) for actor in self.actors if busy[actor] <= level]

    def roll(self, actor: Any, item: WorkItem) -> None:
        self.rolling[actor.roll.remote(item, self.weights)] = (actor, item)

    def finish_roll(self, ref: ray.ObjectRef) -> tuple[WorkItem, WorkReport | None]:
        """The item and its report; None when the actor died (Ray restarts it, the item must be given out again)."""
        _, item = self.rolling.pop(ref)
        try:
            return item, ray.get(ref)
        except ray.exceptions.RayActorError:
            return item, None

    # learning

    def start_step(self) -> Future[StepResult]:
        """Gather a batch, learn from it, checkpoint, acknowledge and publish, in the background."""
        return self.pool.submit(self._step)

    def _step(self) -> StepResult:
        gathered = self.learner.collect()
        self.metrics.observe_phase("learner_wait", gathered.waited_s)
        with self.metrics.phase("step"):
            metrics = self.learner.step()
        version = self.learner.weights_version
        if version % self.config.checkpoint_every == 0 or version == self.config.iterations:
            self.learner.save(self.folder / "checkpoints", keep=self.config.keep_checkpoints)
            self.learner.settle()  # only now is what the step rests on dispensable
        with self.metrics.phase("publish"):
            self._publish()
        metrics["staleness_mean"] = float(np.mean(gathered.staleness))
        metrics["staleness_max"] = float(np.max(gathered.staleness))
        metrics["learner_wait_s"] = gathered.waited_s
        return StepResult(self.learner.weights_version, metrics, gathered.dropped)

    def finish_step(self, step: Future[StepResult]) -> StepResult | None:
        """The result; None when a rank died: the learner is then back at its last checkpoint, in a new epoch."""
        try:
            return step.result()
        except LearnerDied:
            self.learner.close()
            self.epoch = self.stream.begin_epoch()
            self.learner = self._start_learner(resume=True)
            self._publish()
            return None

    def _publish(self) -> None:
        """The learner's weights for the actors, and their average where it will be evaluated."""
        self.weights, version = self.learner.publish(), self.learner.weights_version
        due = self.config.optimiser.ema and self.config.evaluation.due(version, self.config.iterations)
        self.averaged = self.learner.publish(averaged=True) if due else None

    @property
    def version(self) -> int:
        return self.learner.weights_version

    # waiting and health

    def wait(self, learning: Future[StepResult]) -> tuple[list[ray.ObjectRef], bool]:
        """The rollouts that have finished, and whether `learning` has; at least one thing.

        Raises:
            Stalled: nothing has for `stall_timeout_s`.
        """
        deadline = time.monotonic() + self.config.stall_timeout_s
        while time.monotonic() < deadline:
            refs = list(self.rolling)
            ready = ray.wait(refs, num_returns=len(refs), timeout=POLL_S)[0] if refs else []
            if ready or learning.done():
                return ready, learning.done()
            if not refs:
                time.sleep(POLL_S)
        raise Stalled(
            f"nothing has happened for stall_timeout_s={self.config.stall_timeout_s:g} s: "
            f"{len(self.rolling)} rollout batches are out; look at the actors in the Ray dashboard"
        )

    def waiting_groups(self) -> int:
        return self.stream.depth().entries

    # evaluation

    def evaluate(
        self, weights: WeightsMessage | None, known: Sequence[Row] = (), keep: Sequence[str] = ()
    ) -> tuple[list[Row], dict[str, np.ndarray]]:
        """Held-out rows under `weights`, or of the base model (None), and the outputs (uint8) of the ids to keep."""
        settings = self.config.evaluation
        call = self.actors[0].evaluate.remote
        ref = call(self.heldout, weights, settings.protocol, settings.seed, settings.batch, known, keep)
        result: tuple[list[Row], dict[str, np.ndarray]] = ray.get(ref, timeout=self.config.stall_timeout_s)
        return result

    def _kill_actors(self) -> None:
        for actor in self.actors:
            ray.kill(actor)


def _stream(address: StoreAddress, run_id: str, settings: Any) -> TrajectoryStream:
    return TrajectoryStream(address, run_id, settings)


def _pairs(data: PairedFolder) -> Any:
    return data.load
