"""The learner's ranks as Ray actors, driven as one."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from learner import checkpoint
from learner.batch import BatchError, PairLoader
from learner.learner import LearnerRank
from learner.settings import LearnerSettings
from learner.source import BatchSource, BatchTimeout, SourceSettings
from restoration.base_models.interface import BaseModel
from restoration.weights import WeightsMessage
from trajectories.schema import Trajectories, encode_buffer
from trajectories.stream import TrajectoryStream

CONSUMED_FILE = "consumed.json"


class LearnerDied(RuntimeError):
    """A rank's process ended or failed; the group is closed. Start a new one and load the last checkpoint."""

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(f"learner rank {rank} died: {reason}; the group is closed, resume from the last checkpoint")
        self.rank = rank


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


@dataclass(frozen=True)
class Gathered:
    """What is known of a collected batch: versions each group lies behind, groups refused by reason, seconds waited."""

    staleness: list[int]
    dropped: dict[str, int]
    waited_s: float


class _RankProcess:
    """One rank in its own process. The model is made there: only its maker crosses the border."""

    def __init__(self, make_model: Callable[[], BaseModel], make_pairs: Callable[[], PairLoader]) -> None:
        self._make_model, self._make_pairs = make_model, make_pairs
        self._rank: LearnerRank | None = None
        self._source: BatchSource | None = None
        self._batch: list[Trajectories] | None = None

    def address(self) -> tuple[str, int]:
        """This node's IP and a port that is free there now."""
        with socket.socket() as listener:
            listener.bind(("", 0))
            return ray.util.get_node_ip_address(), listener.getsockname()[1]

    def start(self, settings: LearnerSettings, rank: int, world: int, address: str, port: int, device: str) -> None:
        model, pairs = self._make_model(), self._make_pairs()
        self._rank = LearnerRank(settings, model, pairs, rank, world, address, port, device)

    def open_source(self, make_stream: Callable[[], TrajectoryStream], settings: SourceSettings, consumer: str) -> None:
        rank = self._started()
        self._source = BatchSource(make_stream(), consumer, settings, rank.schedule.fingerprint)

    def collect(self, share: bool) -> tuple[Gathered, list[ray.ObjectRef] | None]:
        """On the rank that reads: gather a batch and keep it; `share` also puts it where the other ranks find it."""
        batch = self._opened().collect(self._started().weights_version)
        self._batch = batch.groups
        references = [ray.put(np.frombuffer(encode_buffer(g), np.uint8)) for g in batch.groups] if share else None
        return Gathered(batch.staleness, batch.dropped, batch.waited_s), references

    def step(self, records: list[ray.ObjectRef] | None) -> dict[str, float | None]:
        """Learn from `records`, or from the batch gathered here."""
        if self._source is not None and self._batch is not None:
            groups, self._batch = self._batch, None
            return self._started().step(groups)
        assert records is not None, "a rank that gathers nothing needs records"
        return self._started().step([memoryview(r) for r in ray.get(records)])

    def settle(self) -> None:
        self._opened().settle()

    def weights(self, epoch: int, run_id: str, averaged: bool) -> np.ndarray | None:
        """On rank 0 the published bytes as uint8, which readers on a node share instead of copying."""
        data = self._started().trainable_bytes(epoch, run_id, averaged)
        return None if data is None else np.frombuffer(data, np.uint8)

    def save(self, root: Path, keep: int) -> Path | None:
        extra = {CONSUMED_FILE: json.dumps(self._source.used).encode()} if self._source is not None else {}
        return self._started().save(root, keep, extra)

    def load(self, folder: Path) -> tuple[int, int]:
        rank = self._started()
        files = rank.load(folder)
        if self._source is not None and CONSUMED_FILE in files:
            self._source.settle(json.loads(files[CONSUMED_FILE]))
        return rank.iteration, rank.weights_version

    def _opened(self) -> BatchSource:
        assert self._source is not None, "open_source() comes first"
        return self._source

    def _started(self) -> LearnerRank:
        assert self._rank is not None, "start() comes first"
        return self._rank


class LearnerGroup:
    """All ranks; every method acts on all of them and returns when they are done. Not for several threads.

    A dead rank would leave the others waiting in a collective, so any failure but `BatchError` ends them all.
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
        """`model` is a model folder that every node can read, or what makes the model in the rank's process.

        Raises:
            LearnerUnplaced: no room in the cluster within start_timeout_s.
            LearnerDied: a rank failed to start.
        """
        self.settings, self.group, self.epoch, self.run_id = settings, group, epoch, run_id
        self.iteration = self.weights_version = 0
        self._source = SourceSettings()
        self._shared: list[ray.ObjectRef] | None = None  # the collected batch, for ranks that don't read
        self._actors: list[Any] = []
        bundle = {"CPU": group.cpus_per_rank, "GPU": group.gpus_per_rank, **group.resources}
        bundle = {name: amount for name, amount in bundle.items() if amount}
        self._placement = placement_group([dict(bundle) for _ in range(group.ranks)], strategy=group.strategy)
        if not self._placement.wait(group.start_timeout_s):
            self.close()
            raise LearnerUnplaced(
                f"the cluster has no room for {group.ranks} learner ranks of {bundle} within "
                f"{group.start_timeout_s:g} s; it has {ray.cluster_resources()}, free {ray.available_resources()}"
            )
        maker = model if callable(model) else functools.partial(_load_model, str(model))
        process = ray.remote(_RankProcess)
        for rank in range(group.ranks):
            options = process.options(
                num_cpus=group.cpus_per_rank,
                num_gpus=group.gpus_per_rank,
                resources=dict(group.resources),
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._placement, placement_group_bundle_index=rank
                ),
                runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
            )
            self._actors.append(options.remote(maker, make_pairs))
        address, port = self._call("address", timeout_s=group.start_timeout_s)[0]
        device = "cuda:0" if group.gpus_per_rank else "cpu"
        arguments = [(settings, rank, group.ranks, address, port, device) for rank in range(group.ranks)]
        self._call("start", each=arguments, timeout_s=group.start_timeout_s)

    def step(self, records: Sequence[Any] | None = None) -> dict[str, float | None]:
        """Learn from a batch of encoded groups (bytes, or references to them), or from the one `collect`ed.

        Raises:
            BatchError: the batch can't be trained on; the group goes on.
            LearnerDied: a rank died or failed.
        """
        references = self._shared
        if records is not None:
            references = [r if isinstance(r, ray.ObjectRef) else ray.put(np.frombuffer(r, np.uint8)) for r in records]
        metrics: dict[str, float | None] = self._call("step", references, timeout_s=self.group.step_timeout_s)[0]
        self.iteration, self.weights_version = int(metrics["iteration"] or 0), int(metrics["weights_version"] or 0)
        return metrics

    def publish(self, averaged: bool = False) -> WeightsMessage:
        """The current weights in the object store, once, for every actor to read; owned by the caller's process.

        Args:
            averaged: their average over iterations instead (`optimiser.ema`).
        """
        limit = self.group.step_timeout_s
        references = self._call("weights", self.epoch, self.run_id, averaged, timeout_s=limit, keep=True)
        return WeightsMessage(self.weights_version, self.epoch, references[0], averaged)

    def save(self, root: Path, keep: int = 3) -> Path:
        """Rank 0 writes a checkpoint below `root`, with what was consumed since the last one; returns its folder.

        Raises:
            learner.checkpoint.CheckpointError: it can't be written; the previous one stays and the group goes on.
        """
        path: Path = self._call("save", root, keep, timeout_s=self.group.step_timeout_s)[0]
        return path

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint, and acknowledge the trajectories that it rests on.

        Raises:
            learner.checkpoint.CheckpointError: it is damaged or of another model.
        """
        self.iteration, self.weights_version = self._call("load", folder, timeout_s=self.group.start_timeout_s)[0]

    def read_from(self, make_stream: Callable[[], TrajectoryStream], settings: SourceSettings) -> None:
        """Let rank 0 gather its batches from a stream, as consumer "learner"; call it before `load`."""
        self._source = settings
        self._call("open_source", make_stream, settings, "learner", timeout_s=self.group.start_timeout_s, ranks=1)

    def collect(self) -> Gathered:
        """Wait for a whole batch, which the next `step()` learns from.

        Raises:
            learner.source.BatchTimeout: none came in time; the group goes on.
            LearnerDied: rank 0 died.
        """
        limit = self._source.timeout_s + self.group.step_timeout_s
        gathered, self._shared = self._call("collect", self.group.ranks > 1, timeout_s=limit, ranks=1)[0]
        return gathered

    def settle(self) -> None:
        """Acknowledge what was consumed; call it once a checkpoint holds the steps."""
        self._call("settle", timeout_s=self.group.step_timeout_s, ranks=1)

    def pids(self) -> list[int]:
        """Process ids of the ranks, in order."""

        def pid(_: Any) -> int:
            import os

            return os.getpid()

        return list(ray.get([actor.__ray_call__.remote(pid) for actor in self._actors]))

    def close(self) -> None:
        """End all ranks; may be called again."""
        for actor in self._actors:
            with contextlib.suppress(Exception):
                ray.kill(actor)
        self._actors = []
        if self._placement is not None:
            with contextlib.suppress(Exception):
                remove_placement_group(self._placement)
            self._placement = None

    def __enter__(self) -> LearnerGroup:
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

        The first failure, whichever rank's it is, is raised.
        Returns each rank's answer, or the references of the answers if they are to be kept in the store.
        """
        if not self._actors:
            raise LearnerDied(-1, "the group was closed")
        actors = self._actors[:ranks]
        calls = each or [arguments] * len(actors)
        references = [getattr(a, method).remote(*c) for a, c in zip(actors, calls, strict=True)]
        rank_of = {reference: rank for rank, reference in enumerate(references)}
        pending, deadline = list(references), time.monotonic() + timeout_s
        refusal: Exception | None = None
        answers: dict[Any, Any] = {}
        while pending:
            ready, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                self.close()
                raise LearnerDied(rank_of[pending[0]], f"no answer to {method} within {timeout_s:g} s")
            try:
                answers[ready[0]] = ray.get(ready[0])
            # Every rank refuses a bad batch, before any collective; and a checkpoint that doesn't fit likewise.
            except (BatchError, BatchTimeout, checkpoint.CheckpointError) as error:
                refusal = error
            except ray.exceptions.RayError as error:
                self.close()
                raise LearnerDied(rank_of[ready[0]], f"{method}: {_first_lines(error)}") from error
        if refusal is not None:
            raise refusal
        return references if keep else [answers[reference] for reference in references]


def _load_model(folder: str) -> BaseModel:
    from restoration.base_models import load

    return load(Path(folder))


def _first_lines(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[0] if len(lines) < 2 else f"{lines[0]} ... {lines[-1]}"
