"""The processes of a run and how they are wired: Ray, store, reward service, actors, learner ranks."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from actors.actor import ActorSpec, EvaluationSpec, remote_actor
from actors.terms import recorded_version
from actors.work import WorkItem
from cluster.config.recipe import RunConfig
from cluster.jobs import connect
from cluster.metrics import RunMetrics
from cluster.run.actor_pool import ActorPool
from cluster.run.background import has_failed, raise_failed
from cluster.run.checks.resources import fits_cluster
from cluster.run.driver_stream import DriverStream
from cluster.run.evaluations import EvaluationPart
from cluster.run.flow import SLOTS_PER_ACTOR
from cluster.run.interrupts import Interrupts
from cluster.run.judges import judges
from cluster.run.learning import CONSUMED_FILE, Learning
from cluster.run.node_watch import NodeWatch
from cluster.run.preflight import before_start
from cluster.run.starting import Starting
from cluster.run.store_mark import find_again
from cluster.run.wishes import Desk
from learner import checkpoint
from restoration.datasets.paired import PairedFolder
from restoration.evaluate import Row
from restoration.precision import told_variables
from reward_service.bounded import in_thread
from reward_service.errors import RewardError
from reward_service.service import deploy, shutdown
from reward_service.settings import RewardApp, RewardSettings, reward_app_name
from reward_service.standing import attach
from trajectories.errors import StoreError
from trajectories.server import EmbeddedServer
from trajectories.settings import StoreAddress
from trajectories.stream import TrajectoryStream

POLL_S = 0.05
WATCH_S = 0.5
END_S = 60.0  # for services that are given up while they start
TICK_S = 1.0  # the loop looks after admission at least so often: the learner's refusals make room, too


class Stalled(TimeoutError):
    """Nothing has happened for too long."""


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
                with contextlib.suppress(StoreError, OSError):  # such as a full disk; tried again at the next look
                    self.server.restart()


class Topology:
    """Starts everything on entry, ends everything on exit: Ray, the store, then reward service, actors and learner.

    Raises (on entry):
        ClusterError, StoreError, RewardError, CheckpointError, Fatal: what could not be started, and why.

    Raises (constructor):
        DataError, ConfigError: pairs that can't be read, or a configuration that can't work.
    """

    def __init__(self, config: RunConfig, folder: Path, resume: bool) -> None:
        self.config, self.folder, self.resume = config, folder, resume
        self.train: PairedFolder = config.data.open(config.data.train)
        self.heldout: PairedFolder = config.data.open(config.data.heldout)
        judges(config.evaluation.scorers)  # a wrong name is told before anything starts
        self.warnings = before_start(config, self.train, self.heldout)
        self.exits = ExitStack()
        self._ends: list[Callable[[], None]] = []
        self._deployed: Future[dict[str, RewardApp]] = Future()
        self.event = time.monotonic()

    def of(self, run_id: str, interrupts: Interrupts) -> Topology:
        """Itself, to be entered, for this run, whose driver looks at `interrupts` while it waits."""
        self.run_id, self.interrupts = run_id, interrupts
        return self

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
        count, least = config.actors.count, config.actors.at_first
        actors = f"{least} of {count} actors" if least < count else f"{count} actor{'s' * (count > 1)}"
        with Starting(("Ray", "reward service", actors, "learner")) as shown:
            self.connection = self.exits.enter_context(connect(config.cluster, self.folder, told_variables()))
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            total, free = ray.cluster_resources(), ray.available_resources()
            self.warnings += fits_cluster(config, total, nodes, free, grows=config.cluster.autoscaling)
            shown.done("Ray")
            make_stream = self._open_store()
            self.metrics = RunMetrics("driver", self.run_id)
            self.exits.callback(self.metrics.close)
            # Side by side, as each takes seconds to import what it needs; they end side by side, too.
            self.exits.callback(self._end)
            make_actor = partial(remote_actor(config.actors.options).remote, self._actor_spec(make_stream))
            watch = self.exits.enter_context(NodeWatch())
            self.actors = ActorPool(make_actor, least, SLOTS_PER_ACTOR, config.stall_timeout_s, lambda: watch.latest)
            self._ends.append(self.actors.kill)
            version = partial(_reward_version, config, self._deployed)
            self.learning = Learning(config, self.folder, self.run_id, self.train, make_stream, version, self.metrics)
            self._ends.append(self.learning.close)
            learner = self.learning.begin(resume=self.resume)
            if not self.connection.local:  # else the service ends with its cluster
                self._ends.append(self._end_rewards)
            self.rewards = self._deploy_beside(learner)
            self._deployed.set_result(self.rewards)
            shown.done("reward service")
            self.actors.wait_ready(config.start_timeout_s, (learner,))
            shown.done(actors)
            learner.result()
            shown.done("learner")
            self.actors.resize(count)  # the others take what is left, and no place of what a run can't begin without
        self.desk = self.exits.enter_context(Desk(self.run_id))
        self.event = time.monotonic()  # however long it took, that was no standstill

    def _open_store(self) -> Callable[[], TrajectoryStream]:
        """The store runs, this process is connected; returns what connects others."""
        config = self.config
        settings = config.store.with_ledger_of(config.iterations * config.source.groups_per_step)
        if settings.is_embedded:
            server = self.exits.enter_context(EmbeddedServer(self.folder / "store", settings))
            self.exits.enter_context(StoreWatch(server))
            address = server.address
        else:
            address = settings.external_address()
        make_stream = partial(_stream, address, self.run_id, settings)
        stream = self.exits.enter_context(make_stream())
        self.stream = DriverStream(stream, self.interrupts)
        if self.resume:
            latest = checkpoint.latest(self.folder / "checkpoints")
            iteration = 0 if latest is None else checkpoint.step_of(latest)
            used = {} if latest is None else json.loads(checkpoint.read(latest, [CONSUMED_FILE])[CONSUMED_FILE])
            mark, told = find_again(config, self.folder, self.run_id, stream, iteration, used)
            self.stream.assumed = mark.groups(config.rollout.images_per_batch)
            self.warnings = [*self.warnings, *told]
        return make_stream

    def _end(self) -> None:
        self._deployed.cancel()  # a learner that still waits for it waits no longer
        with ThreadPoolExecutor(len(self._ends) or 1) as pool:
            for ended in [pool.submit(end) for end in self._ends]:
                ended.result()

    def _actor_spec(self, make_stream: Callable[[], TrajectoryStream]) -> ActorSpec:
        config, of = self.config, self.config.evaluation
        return ActorSpec(
            run_id=self.run_id,
            seed=config.seed,
            model=config.model,
            embeddings=config.data.embeddings,
            data=self.train,
            sampler=config.sampler,
            rollout=config.rollout,
            evaluation=EvaluationSpec(
                self.heldout, of.protocol, of.seed, of.batch, of.pixels, of.limit, of.dtype, of.tiling
            ),
            adapt=config.adapt,
            score_gt=config.advantage.clamp_to_gt,
            device=config.actors.device,
            threads=config.actors.threads,
            publish_timeout_s=config.store.publish_timeout_s,
            fetch_timeout_s=config.stall_timeout_s,
            stream=make_stream,
            metrics=partial(RunMetrics, "actor", self.run_id),
            judges=partial(judges, config.evaluation.scorers),
            terms=config.reward.resolved,
        )

    def _deploy_beside(self, learner: Future[None]) -> dict[str, RewardApp]:
        """As `_deploy`, which ends early if the learner can't start; the error is the learner's then."""
        given_up = threading.Event()
        learner.add_done_callback(lambda done: given_up.set() if has_failed(done) else None)
        try:
            return self._deploy(given_up)
        except RewardError:
            raise_failed((learner,))
            raise

    def _deploy(self, given_up: threading.Event) -> dict[str, RewardApp]:
        """The services of all terms that need one, by name, started side by side: a large scorer takes minutes to load.

        Raises:
            RewardUnavailable: one of them did not start, or `given_up` is set; the others are ended with the run.
        """
        services = self.config.reward.services
        if len(services) == 1:
            return {name: self._serve(name, settings, given_up) for name, settings in services.items()}
        calls = {name: in_thread(partial(self._serve, name, of, given_up)) for name, of in services.items()}
        try:
            for call in wait(calls.values(), return_when=FIRST_EXCEPTION).done:
                call.result()
        except BaseException:
            given_up.set()  # the others take back what they have begun, while Ray is there
            wait(calls.values(), timeout=END_S)
            raise
        return {name: call.result() for name, call in calls.items()}

    def _serve(self, term: str, settings: RewardSettings, given_up: threading.Event) -> RewardApp:
        if settings.app is not None:  # it stands alone: never changed, never ended by a run
            return attach(settings.app, settings.deadline_s, settings.retries, settings.scorer)
        side = settings.picture_side or self.config.rollout.crop or None
        return deploy(replace(settings, picture_side=side), self._app(term), given_up=given_up)

    def _app(self, term: str) -> str:
        return reward_app_name(self.run_id, term if self.config.reward.terms else "")

    def _end_rewards(self) -> None:
        for term in (name for name, of in self.config.reward.services.items() if of.app is None):
            # It must not hide why the run ends; an ownerless service ends itself.
            with contextlib.suppress(RewardError):
                shutdown(self._app(term))

    @property
    def version(self) -> int:
        return self.learning.version

    # what actors are asked

    def roll(self, actor: int, item: WorkItem) -> None:
        self.actors.call(actor, "roll", item, item, self.learning.weights, self.rewards)

    def evaluate(self, actor: int, part: EvaluationPart, known: list[Row]) -> None:
        rows = [row for row in known if row.image_id in part.image_ids]
        self.actors.call(actor, "evaluate", part, part.image_ids, part.weights, rows, part.keep, self.rewards)

    def rolling(self) -> set[str]:
        """Ids of the groups that actors are rolling out."""
        return {group_id for _, item in self.actors.tasks(WorkItem) for group_id in item.group_ids}

    def evaluating(self) -> set[int]:
        """Actors that have a part of an evaluation."""
        return {actor for actor, _ in self.actors.tasks(EvaluationPart)}

    # waiting and health

    def wait(self, learning: Future[Any] | None) -> tuple[list[ray.ObjectRef], bool]:
        """The calls of actors that have ended, and whether `learning` has; neither after `TICK_S`.

        Raises:
            Stalled: nothing has for `stall_timeout_s`.
        """
        tick = time.monotonic() + TICK_S
        while (now := time.monotonic()) < tick:
            ended = self.actors.finished(POLL_S)
            learned = learning is not None and learning.done()
            if ended or learned:
                self.event = now
                return ended, learned
        if now - max(self.event, self.stream.returned, self.actors.joined) > self.config.stall_timeout_s:
            standing = self.actors.standing()
            raise Stalled(
                f"nothing has happened for stall_timeout_s={self.config.stall_timeout_s:g} s: {standing.there} of "
                f"{standing.wanted} actors are there, {len(self.actors.calls)} calls of theirs are out; look at the "
                "actors in the Ray dashboard, or raise it if their work, or a new node, may take so long"
            )
        return [], False


def _reward_version(config: RunConfig, deployed: Future[dict[str, RewardApp]]) -> str:
    """The version of the rewards that a run trains on, once its services are up."""
    versions = {name: app.version for name, app in deployed.result().items()}
    return recorded_version(config.reward.resolved, versions)


def _stream(address: StoreAddress, run_id: str, settings: Any) -> TrajectoryStream:
    return TrajectoryStream(address, run_id, settings)
