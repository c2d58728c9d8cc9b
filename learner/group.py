"""The learner's ranks as Ray actors, driven as one."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from learner import checkpoint
from learner.batch import BatchError, PairLoader, Refused
from learner.process import load_model, remote_rank
from learner.settings import LearnerSettings
from restoration.base_models.interface import BaseModel
from restoration.weights import WeightsMessage
from trajectories.schema import Summary
from trajectories.stream import TrajectoryStream

GRACE_S = 5.0  # a dead rank makes the others fail too: how long to look for it before their errors are believed
PING_S = 20.0
PLACE_LOOK_S = 1.0
# What gloo and NCCL say when the other end is gone, though its process may live on, cut off.
LOST_CONNECTION = ("Connection closed by peer", "Connection reset", "Broken pipe", "Timed out waiting", "NCCL error")
# Said of a port that somebody else was quicker to take: another try has another.
TAKEN_PORT = ("EADDRINUSE", "Address already in use", "address already in use")


class LearnerDied(RuntimeError):
    """A rank's process, node or connection ended; the group is closed. Start a new one and load the last checkpoint."""

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(f"learner rank {rank} died: {reason}; the group is closed, resume from the last checkpoint")
        self.rank = rank


class LearnerStuck(LearnerDied):
    """A rank gave no answer in time: it was ended, and the group is closed."""


class LearnerFailed(RuntimeError):
    """A rank raised `cause`, so that starting it again would end the same; the group is closed."""

    def __init__(self, rank: int, method: str, cause: BaseException) -> None:
        super().__init__(f"learner rank {rank} failed in {method}: {type(cause).__name__}: {cause}")
        self.rank, self.cause = rank, cause


class LearnerUnplaced(RuntimeError):
    """The cluster has no room for the ranks."""


@dataclass(frozen=True)
class GroupSettings:
    """How many ranks there are and what each occupies.

    Attributes:
        resources: custom Ray resources of a rank, e.g. {"learner": 1}.
        strategy: of the placement group; PACK keeps ranks together, SPREAD puts them on different nodes.
        start_timeout_s: longest wait for room in the cluster, and then for the ranks to start.
        step_timeout_s: longest a step may take.
    """

    ranks: int = 1
    cpus_per_rank: float = 1.0
    gpus_per_rank: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    strategy: str = "PACK"
    start_timeout_s: float = 300.0
    step_timeout_s: float = 3600.0

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise ValueError(f"learner.ranks={self.ranks}: at least 1")
        for name in ("cpus_per_rank", "gpus_per_rank"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"learner.{name}={getattr(self, name)}: 0 or above")
        if self.strategy not in ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"):
            raise ValueError(f"learner.strategy={self.strategy!r}: choose PACK, SPREAD, STRICT_PACK or STRICT_SPREAD")
        for name in ("start_timeout_s", "step_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"learner.{name}={getattr(self, name)}: above 0")


class LearnerGroup:
    """All ranks; every method acts on all of them and returns when they are done.

    One thread at a time may step, take snapshots, publish and load; `prepare` and `write` may each run in another
    thread beside it. A dead rank would leave the others waiting in a collective, so any failure but a refusal ends
    them all; the first failure is what every later call raises.
    """

    def __init__(
        self,
        settings: LearnerSettings,
        group: GroupSettings,
        model: str | Path | Callable[[], BaseModel],
        make_pairs: Callable[[], PairLoader],
        epoch: int = 0,
        run_id: str = "",
    ) -> None:
        """`model` is a model folder that every node can read, or what makes the model in the rank's process."""
        self.settings, self.group, self.epoch, self.run_id = settings, group, epoch, run_id
        self.iteration = self.weights_version = 0
        self.fingerprint = ""
        self._make_model = model if callable(model) else functools.partial(load_model, str(model))
        self._make_pairs = make_pairs
        self._failure: Exception | None = None
        self._closed = False
        self._actors: list[Any] = []
        self._placement: Any = None

    def launch(self) -> None:
        """Start the ranks; `close`, from another thread, ends it early.

        Raises:
            LearnerUnplaced: no room in the cluster within start_timeout_s.
            LearnerDied, LearnerFailed: a rank did not start, or the group was closed.
        """
        group = self.group
        bundle = {"CPU": group.cpus_per_rank, "GPU": group.gpus_per_rank, **group.resources}
        bundle = {name: amount for name, amount in bundle.items() if amount}
        placement = self._placement = placement_group([dict(bundle)] * group.ranks, strategy=group.strategy)
        if not self._has_room(placement) and not self._closed:
            self.close()
            raise LearnerUnplaced(
                f"the cluster has no room for {group.ranks} learner ranks of {bundle} within "
                f"{group.start_timeout_s:g} s; it has {ray.cluster_resources()}, free {ray.available_resources()}"
            )
        if self._closed:
            raise LearnerDied(-1, "the group was closed")
        process = remote_rank()
        for rank in range(group.ranks):
            options = process.options(
                num_cpus=group.cpus_per_rank,
                num_gpus=group.gpus_per_rank,
                resources=dict(group.resources),
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=rank),
            )
            self._actors.append(options.remote(self._make_model, self._make_pairs))
        if self._closed:
            self.close()
        self._call("ping", timeout_s=group.start_timeout_s)
        address, port = self._call("address", timeout_s=group.start_timeout_s, ranks=1)[0]
        device = "cuda:0" if group.gpus_per_rank else "cpu"
        arguments = [(self.settings, rank, group.ranks, address, port, device) for rank in range(group.ranks)]
        self.fingerprint = self._call("start", each=arguments, timeout_s=group.start_timeout_s)[0]

    def _has_room(self, placement: Any) -> bool:
        """Whether the ranks have got their place; False after start_timeout_s, or when the group is closed."""
        deadline = time.monotonic() + self.group.start_timeout_s
        while not self._closed and (left := deadline - time.monotonic()) > 0:
            try:
                if placement.wait(min(PLACE_LOOK_S, left)):
                    return True
            except Exception:  # Ray has none for a placement group that was removed
                if not self._closed:
                    raise
        return False

    def read_from(self, make_stream: Callable[[], TrajectoryStream]) -> None:
        """Let every rank fetch the latents of its share from the stream."""
        self._call("open_stream", make_stream, timeout_s=self.group.start_timeout_s)

    def prepare(self, summaries: Sequence[Summary]) -> list[Refused]:
        """Let every rank fetch and check its share of a batch; what can't be trained on is refused, once a group.

        Raises:
            LearnerDied, LearnerFailed: a rank died or failed.
        """
        shared = ray.put(list(summaries))
        answers = self._call("prepare", shared, timeout_s=self.group.step_timeout_s)
        return list({one.group_id: one for refused in answers for one in refused}.values())

    def step(self, summaries: Sequence[Summary]) -> dict[str, float | None]:
        """Learn from a batch that `prepare` accepted.

        Raises:
            BatchError: the batch can't be trained on; the group goes on.
            LearnerDied, LearnerFailed: a rank died or failed.
        """
        return self._learn("step", ray.put(list(summaries)))

    def step_records(self, records: Sequence[bytes]) -> dict[str, float | None]:
        """Learn from encoded groups, without a stream. Raises as `step`."""
        return self._learn("step_records", [ray.put(np.frombuffer(r, np.uint8)) for r in records])

    def _learn(self, method: str, argument: Any) -> dict[str, float | None]:
        metrics: dict[str, float | None] = self._call(method, argument, timeout_s=self.group.step_timeout_s)[0]
        self.iteration, self.weights_version = int(metrics["iteration"] or 0), int(metrics["weights_version"] or 0)
        return metrics

    def publish(self, averaged: bool = False) -> WeightsMessage:
        """The trained weights, or their average, in the object store, one copy for all actors.

        Raises:
            LearnerDied, LearnerFailed: a rank died or failed.
        """
        arguments = (self.epoch, self.run_id, averaged)
        reference = self._call("weights", *arguments, timeout_s=self.group.step_timeout_s, keep=True)[0]
        return WeightsMessage(self.weights_version, self.epoch, reference, averaged)

    def snapshot(self) -> None:
        """Keep the state of this instant on rank 0, to be written by `write`."""
        self._call("snapshot", timeout_s=self.group.step_timeout_s)

    def write(
        self,
        root: Path,
        iteration: int,
        keep: int = 3,
        extra: Mapping[str, bytes] | None = None,
        protect: Collection[int] = (),
    ) -> Path:
        """Write the snapshot of `iteration` as a checkpoint below `root`, with `extra` files; returns its folder.

        Args:
            protect: steps whose checkpoints stay, whatever `keep` says.

        Raises:
            checkpoint.CheckpointError: it can't be written, or a later epoch writes there (CheckpointOvertaken);
                the previous one stays and the group goes on.
        """
        arguments = (root, iteration, keep, dict(extra or {}), tuple(protect), self.epoch)
        path: Path = self._call("write", *arguments, timeout_s=self.group.step_timeout_s, ranks=1)[0]
        return path

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            learner.checkpoint.CheckpointError: it is damaged or of another model.
        """
        self.iteration, self.weights_version = self._call("load", folder, timeout_s=self.group.start_timeout_s)[0]

    def pids(self) -> list[int]:
        """Process ids of the ranks, in order."""

        def pid(_: Any) -> int:
            import os

            return os.getpid()

        return list(ray.get([actor.__ray_call__.remote(pid) for actor in self._actors], timeout=PING_S))

    def spans(self) -> list[ray.ObjectRef]:
        """References of what each rank was busy with since it was asked last (`Spans`), in order; waits for none."""
        return [actor.spans.remote() for actor in self._actors]

    def close(self) -> None:
        """End all ranks; may be called again, and beside any other call, which then ends with `LearnerDied`."""
        self._closed = True
        actors, self._actors = self._actors, []
        for actor in actors:
            with contextlib.suppress(Exception):
                ray.kill(actor)
        placement, self._placement = self._placement, None
        if placement is not None:
            with contextlib.suppress(Exception):
                remove_placement_group(placement)

    def __enter__(self) -> LearnerGroup:
        self.launch()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(
        self,
        method: str,
        *arguments: Any,
        each: Sequence[tuple[Any, ...]] | None = None,
        timeout_s: float,
        keep: bool = False,
        ranks: int | None = None,
    ) -> list[Any]:
        """Call a method on the first `ranks` ranks (all by default) and wait for them.

        Returns each rank's answer, or the references of the answers if they are to be kept in the store.
        """
        actors = self._actors[:ranks]
        if not actors:
            raise self._failure or LearnerDied(-1, "the group was closed")
        calls = each or [arguments] * len(actors)
        references = [getattr(a, method).remote(*c) for a, c in zip(actors, calls, strict=True)]
        rank_of = {reference: rank for rank, reference in enumerate(references)}
        pending, deadline = list(references), time.monotonic() + timeout_s
        refusal: Exception | None = None
        answers: dict[Any, Any] = {}
        while pending:
            ready, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._end(LearnerStuck(rank_of[pending[0]], f"no answer to {method} within {timeout_s:g} s"))
            try:
                answers[ready[0]] = ray.get(ready[0])
            # Every rank refuses a bad batch, before any collective; and a checkpoint that doesn't fit likewise.
            except (BatchError, checkpoint.CheckpointError) as error:
                refusal = error
            except ray.exceptions.RayError as error:
                raise self._end(self._judge(method, rank_of, ready[0], error, actors)) from error
        if refusal is not None:
            raise refusal
        return references if keep else [answers[reference] for reference in references]

    def _judge(
        self, method: str, rank_of: Mapping[Any, int], reference: Any, error: Exception, actors: Sequence[Any]
    ) -> Exception:
        """Whether a process has ended (then other ranks' errors come from that) or the code failed."""
        rank = rank_of[reference]
        if not isinstance(error, ray.exceptions.RayTaskError):
            return LearnerDied(rank, f"{method}: {error}")
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline and len(actors) > 1:
            for other, actor in enumerate(actors):
                try:
                    ray.get(actor.ping.remote(), timeout=PING_S)
                except ray.exceptions.RayError as death:
                    return LearnerDied(other, f"{method}: {death}")
            time.sleep(GRACE_S / 10)
        if any(sign in str(error) for sign in LOST_CONNECTION + TAKEN_PORT):
            return LearnerDied(rank, f"{method}: {error}")
        cause = getattr(error, "cause", None)
        return LearnerFailed(rank, method, cause if isinstance(cause, BaseException) else error)

    def _end(self, failure: Exception) -> Exception:
        self._failure = self._failure or failure
        self.close()
        return self._failure
