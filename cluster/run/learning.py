"""The learner as the driver sees it: a step at a time; the next batch and the last checkpoint beside it.

gather v+1   ----------======
step v          ========          step v+1 ...
checkpoint v            =====     (acknowledged when it is durable)
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cluster.config.recipe import RunConfig
from cluster.metrics import RunMetrics
from cluster.run.background import has_failed, raise_failed, watched
from cluster.run.checkpoint_weights import weights_of
from cluster.run.failures import Fatal, Patience, classify
from cluster.run.store_mark import note_epoch
from learner import checkpoint
from learner.batch import BatchError, Refused
from learner.group import GroupSettings, LearnerDied, LearnerFailed, LearnerGroup, LearnerUnplaced
from learner.source import Batch, BatchSource, BatchTimeout, Stopped
from restoration.base_models import load
from restoration.datasets.paired import PairedFolder
from restoration.spans import SpanLog
from restoration.weights import WeightsMessage
from trajectories.errors import StaleEpoch
from trajectories.stream import TrajectoryStream

CONSUMED_FILE, RECORD_FILE = "consumed.json", "record.json"
CLOSE_S = 20.0  # what the end of a run waits for a checkpoint that is being written
DEATHS = 5  # of the learner, in a row without a step

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepResult:
    """One learner step: its metrics, what was refused on the way to its batch, and why."""

    version: int
    metrics: dict[str, float | None]
    dropped: dict[str, int] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)


class Learning:
    """Ranks, batches and checkpoints of a run.

    Args:
        make_stream: opens a connection to the run's stream; ranks do it, too.
        reward_version: gives what rewards must be of to be trained on, once that is known; may raise why it isn't.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        run_id: str,
        train: PairedFolder,
        make_stream: Callable[[], TrajectoryStream],
        reward_version: Callable[[], str],
        metrics: RunMetrics,
    ) -> None:
        self.config, self.folder, self.run_id, self.metrics = config, folder, run_id, metrics
        self.train, self.make_stream, self.reward_version = train, make_stream, reward_version
        self.root = folder / "checkpoints"
        self.reading, self.settling = make_stream(), make_stream()
        self.epoch = 0
        self.durable = -1  # the iteration of the last checkpoint that is on disk
        self.protected: set[int] = set()  # iterations whose checkpoints an evaluation still needs
        self.patience = Patience("the learner", DEATHS, pause_s=1.0)
        self.pool = ThreadPoolExecutor(4, thread_name_prefix="learning")
        self.group: LearnerGroup | None = None
        self._closing = threading.Event()
        self._starting: Future[None] | None = None
        self._stop = threading.Event()  # nobody waits for the batch that is being gathered
        self._given_up = threading.Event()  # nor for the step
        self._stepping: Future[StepResult | None] | None = None
        self._gathering: Future[Batch] | None = None
        self._writing: Future[None] | None = None
        self._publishing: Future[None] | None = None  # of weights that were lost, if it failed
        self.spans = SpanLog()  # of what the ranks are asked together
        self._collective = threading.Lock()  # held while the ranks are in a step and what follows it

    # start and end

    def begin(self, resume: bool) -> Future[None]:
        """`start` in the background, tried again if a process dies meanwhile. The result raises

        Fatal: it can't be; also where there is no room for the ranks within start_timeout_s.
        CheckpointError, StoreError: what the user can put right.
        """
        self._starting = self.pool.submit(self._begin, resume)
        return self._starting

    def _begin(self, resume: bool) -> None:
        try:
            self.start(resume)
        except LearnerUnplaced as error:  # nothing that the run holds would make room
            raise Fatal("the learner", classify(error)) from error
        except (LearnerDied, LearnerFailed) as error:
            if self._closing.is_set():
                raise
            self._pause(error)
            self.recover(resume)

    def _pause(self, error: Exception) -> None:
        """Before another try; a run that ends meanwhile has none.

        Raises:
            Fatal: there were too many.
        """
        if self._closing.wait(self.patience.failed(classify(error))):
            raise error

    def start(self, resume: bool) -> None:
        """Start the ranks, from the last checkpoint if there is one.

        Raises:
            StaleEpoch: another process has resumed the run.
            StoreLost: the store does not know of the epoch before.
            LearnerUnplaced, LearnerDied, LearnerFailed, CheckpointError, StoreError.
        """
        config, ranks = self.config, self.config.ranks
        if self.epoch:
            self.settling.require_epoch(self.epoch)
        self.epoch = checkpoint.take_over(self.root, self.settling.begin_epoch)
        mark = note_epoch(config.store, self.folder, self.run_id, self.epoch)
        self._stop, self._given_up = threading.Event(), threading.Event()
        settings = GroupSettings(
            ranks=ranks.count,
            cpus_per_rank=ranks.num_cpus,
            gpus_per_rank=ranks.num_gpus,
            resources=ranks.resources,
            start_timeout_s=config.start_timeout_s,
            step_timeout_s=config.stall_timeout_s,
        )
        self.group = LearnerGroup(
            config.learner_settings(),
            settings,
            partial(load, config.model, config.data.embeddings),
            partial(getattr, self.train, "load"),
            epoch=self.epoch,
            run_id=self.run_id,
        )
        if self._closing.is_set():
            raise LearnerDied(-1, "the run is ending")
        self.group.launch()
        self.group.read_from(self.make_stream)
        version = self.reward_version()
        self.source = BatchSource(
            self.reading, self.settling, config.source, self.group.fingerprint, version, self.epoch
        )
        latest = checkpoint.latest(self.root) if resume else None
        if latest is not None:
            self.group.load(latest)
            extra = checkpoint.read(latest, [CONSUMED_FILE])
            used = json.loads(extra[CONSUMED_FILE])
            if mark.batches:  # a store has lost the run, and these perhaps with it
                there = self.settling.known(used)
                used = {entry_id: step for entry_id, step in used.items() if entry_id in there}
            self.source.settle(used)
        self.durable = self.version if latest is not None else -1
        self.publish()

    def recover(self, resume: bool = True) -> None:
        """Start the ranks again, in a new epoch, from the last checkpoint; tried a bounded number of times.

        Each try waits for room for start_timeout_s: a lost node may come back, or an autoscaler bring one.

        Raises:
            Fatal: it can't be.
        """
        while True:
            self._quiesce()
            try:
                self.start(resume)
                return
            except StaleEpoch as error:
                raise Fatal("the learner", classify(error)) from error
            except Exception as error:
                if self._closing.is_set():
                    raise
                self._pause(error)

    def begin_again(self, pause_s: float) -> Future[None]:
        """`recover` in the background, after a pause; `close` ends it and waits for that."""

        def work() -> None:
            if not self._closing.wait(pause_s):
                self.recover()

        self._starting = self.pool.submit(work)
        return self._starting

    def close(self) -> None:
        """End the ranks; a checkpoint that is being written gets a moment to finish, and if it fails that is told."""
        self._closing.set()
        writing, before = self._writing, self.durable
        if writing is not None and not writing.done():  # else its failure is why the run ends
            try:
                writing.result(timeout=CLOSE_S)
            except Exception as error:
                if self.durable > before:
                    logger.warning("the last checkpoint is on disk, and a resume settles what it rests on")
                elif isinstance(error, FutureTimeout):
                    logger.warning("the last checkpoint was not written within %g s; the one before is whole", CLOSE_S)
                else:
                    logger.warning("the last checkpoint is not on disk: %s", classify(error))
        self.reading.close()  # what still waits for a store that is away waits no longer
        self.settling.close()
        self._quiesce(self._starting)
        self.pool.shutdown(wait=True, cancel_futures=True)

    def _quiesce(self, starting: Future[None] | None = None) -> None:
        """No rank, no gathering and no writing is left; what they had is found again in the store or on disk.

        Args:
            starting: a start in the background that is waited for, too; not by itself.
        """
        self._given_up.set()
        self._stop.set()
        if self.group is not None:
            self.group.close()
        self._await(starting, self._stepping)
        self._await(self._gathering, self._writing)  # last, as a step begins them
        self._stepping = self._gathering = self._writing = self._publishing = None

    def _await(self, *futures: Future[Any] | None) -> None:
        """They have ended, however."""
        for future in futures:
            if future is not None:
                with suppress(Exception):
                    future.result(timeout=self.config.stall_timeout_s)

    # steps

    @property
    def version(self) -> int:
        return 0 if self.group is None else self.group.weights_version

    def start_next(self, wait: bool) -> Future[StepResult | None] | None:
        """The next step in the background: gather a batch, learn from it, publish, take a snapshot.

        Once all steps are done, what is left is to wait for the last checkpoint, which gives no result. What fails
        beside the step, a checkpoint or the batch after it, ends the result within seconds; the step itself then goes
        on until `recover` or `close`.

        Args:
            wait: start no step now, unless to tell such a failure.
        """
        if self.version < self.config.iterations:
            if wait and not any(map(has_failed, self._beside())):
                return None
            self._stepping = self.pool.submit(self._step)
            return self.pool.submit(watched, self._stepping, self._beside)
        return self.pool.submit(self._finish_writing) if self._writing is not None else None

    def _beside(self) -> tuple[Future[Any] | None, ...]:
        """What goes on beside a step."""
        return self._writing, self._gathering, self._publishing

    def _step(self) -> StepResult:
        assert self.group is not None
        raise_failed(self._beside())
        config, version = self.config, self.version
        began = time.monotonic()
        metrics: dict[str, float | None]
        batch = self._batch(version)
        while True:
            waited = time.monotonic() - began
            self.spans.add("wait", began, began + waited)
            if version + 1 < config.iterations:
                self._gathering = self.pool.submit(self._gather, version + 1)
            try:
                with self._collective:
                    with self.metrics.phase("step"), self.spans.span("step", f"iteration {version + 1}"):
                        metrics = self.group.step(batch.groups)
                    result = self._after(batch, metrics, version + 1, waited)
                break
            except BatchError as error:
                batch = self._refuse_named(batch, error, version)
        self.metrics.observe_phase("learner_wait", waited)
        return result

    def _after(self, batch: Batch, metrics: dict[str, float | None], version: int, waited_s: float) -> StepResult:
        """What follows a step: its weights for the actors, and its checkpoint, if one is due."""
        config = self.config
        with self.metrics.phase("publish"), self.spans.span("weights", f"version {version}"):
            self.publish()
        self.source.use(batch, version)  # makes room for rollouts, which take the weights just published
        metrics |= {
            "staleness_mean": float(np.mean(batch.staleness)),
            "staleness_max": float(np.max(batch.staleness)),
            "learner_wait_s": waited_s,
        }
        result = StepResult(version, metrics, *self.source.take_counts())
        due = config.evaluation.due(version, config.iterations)
        if version % config.checkpoint_every == 0 or version == config.iterations or due:
            self._checkpoint(result, due)
        return result

    def publish(self) -> None:
        """The learner's weights for the actors."""
        assert self.group is not None
        self.weights = self.group.publish()

    def publish_again(self) -> None:
        """The weights were lost from the object store (a node died): once more.

        While a step is under way that isn't needed, since new ones follow. Where the ranks are gone, too, the result of
        `start_next` is that.
        """
        if self._collective.acquire(blocking=False):
            try:
                self.publish()
            except (LearnerDied, LearnerFailed) as error:
                self._publishing = Future()
                self._publishing.set_exception(error)
            finally:
                self._collective.release()

    # batches

    def _batch(self, version: int) -> Batch:
        """The batch for `version`, which may have been gathered already.

        Raises:
            BatchTimeout: it isn't whole within source.timeout_s.
        """
        gathering = self._gathering or self.pool.submit(self._gather, version)
        self._gathering = None
        try:
            return gathering.result(timeout=self.config.source.timeout_s)
        except FutureTimeout:
            self._stop.set()
            raise BatchTimeout(self.source.lack()) from None

    def _gather(self, version: int) -> Batch:
        """A batch that every rank has its share of; groups that can't be trained on are quarantined and replaced."""
        assert self.group is not None
        while True:
            batch = self.source.collect(version, self._stop)
            refused = self.group.prepare(batch.groups)
            if not refused:
                return batch
            self.source.refuse(batch, refused)

    def _refuse_named(self, batch: Batch, error: BatchError, version: int) -> Batch:
        """Groups that only a step finds unfit; a batch that is unfit for no group's fault ends the run."""
        blamed = getattr(error, "groups", ())
        if not blamed:
            raise error
        following, self._gathering = self._gathering, None
        if following is not None:  # first, as the source has one reader at a time
            self._stop.set()
            with suppress(Stopped):
                self.source.refuse(following.result(timeout=self.config.stall_timeout_s), ())
            if not self._given_up.is_set():
                self._stop = threading.Event()
        # What is left of this batch comes before what was gathered for the next.
        self.source.refuse(batch, [Refused(group_id, "batch", str(error)) for group_id in blamed])
        return self._batch(version)

    # checkpoints

    def _checkpoint(self, result: StepResult, protect: bool) -> None:
        """Take a snapshot and write it beside what follows; waits for the one before.

        Raises:
            CheckpointError: the one before could not be written.
        """
        assert self.group is not None
        self._finish_writing()
        if protect:
            self.protected.add(result.version)
        used = self.source.not_yet_durable()
        extra = {CONSUMED_FILE: used, RECORD_FILE: result.metrics}
        encoded = {name: json.dumps(content).encode() for name, content in extra.items()}
        with self.spans.span("snapshot", f"of iteration {result.version}"):
            self.group.snapshot()
        self._writing = self.pool.submit(self._write, self.group, self.source, result.version, encoded, used)

    def _write(
        self, group: LearnerGroup, source: BatchSource, version: int, extra: dict[str, bytes], used: dict[str, int]
    ) -> None:
        with self.spans.span("checkpoint", f"of iteration {version}"):
            group.write(self.root, version, self.config.keep_checkpoints, extra, sorted(self.protected))
        self.durable = version
        source.settle(used)  # only now is what the step rests on dispensable

    def _finish_writing(self) -> None:
        """Wait for the checkpoint that is being written.

        Raises:
            CheckpointError, LearnerDied, StoreError: why it could not be.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result(timeout=self.config.stall_timeout_s)

    def recorded_metrics(self) -> dict[str, Any]:
        """The metrics of the step that the last checkpoint holds; empty if there is none."""
        latest = checkpoint.latest(self.root)
        if latest is None or not (latest / RECORD_FILE).is_file():
            return {}
        found: dict[str, Any] = json.loads(checkpoint.read(latest, [RECORD_FILE])[RECORD_FILE])
        return found

    def on_disk(self) -> list[int]:
        """Iterations that have a checkpoint."""
        return [checkpoint.step_of(folder) for folder in checkpoint.checkpoints(self.root)]

    def weights_of(self, iteration: int) -> dict[str, WeightsMessage]:
        """As `checkpoint_weights.weights_of`, of this run."""
        return weights_of(self.root, iteration, self.epoch, self.run_id)
