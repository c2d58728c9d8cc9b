"""A learner rank as the Ray actor that it runs in."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray

from learner import checkpoint
from learner.batch import PairLoader, Refused
from learner.learner import LearnerRank, Snapshot
from learner.rendezvous import listen
from learner.settings import LearnerSettings
from restoration.base_models.interface import BaseModel
from restoration.spans import SpanLog, Spans
from trajectories.schema import Summary
from trajectories.stream import TrajectoryStream

# Threads beside the one in which collectives run one after the other: intake and writing go on beside a step; and
# however long a disk takes for them, a rank that is asked whether it lives answers.
THREADS = {"io": 2, "ping": 1}


class RankProcess:
    """One rank in its own process. The model is made there: only its maker crosses the border."""

    def __init__(self, make_model: Callable[[], BaseModel], make_pairs: Callable[[], PairLoader]) -> None:
        self._make_model, self._make_pairs = make_model, make_pairs
        self._rank: LearnerRank | None = None
        self._stream: TrajectoryStream | None = None
        self._snapshots: dict[int, Snapshot] = {}
        self._listener: socket.socket | None = None
        self._spans = SpanLog()

    def address(self) -> tuple[str, int]:
        """This node's IP and a port there, which is kept until `start`: loading a model may take minutes until then."""
        address = ray.util.get_node_ip_address()
        self._listener = listen(address)
        return address, self._listener.getsockname()[1]

    @ray.method(concurrency_group="ping")
    def ping(self) -> bool:
        return True

    @ray.method(concurrency_group="ping")
    def spans(self) -> Spans:
        """What this rank was busy with since it was asked last."""
        return self._spans.take()

    def start(self, settings: LearnerSettings, rank: int, world: int, address: str, port: int, device: str) -> str:
        """Returns the fingerprint of the schedule that is replayed."""
        model, pairs = self._make_model(), self._make_pairs()
        self._rank = LearnerRank(settings, model, pairs, rank, world, address, port, device, self._listener)
        return self._rank.schedule.fingerprint

    def open_stream(self, make_stream: Callable[[], TrajectoryStream]) -> None:
        self._stream = make_stream()

    @ray.method(concurrency_group="io")
    def prepare(self, summaries: list[Summary]) -> list[Refused]:
        assert self._stream is not None, "open_stream() comes first"
        with self._spans.span("fetch"):
            return self._started().prepare(summaries, self._stream.fetch)

    def step(self, summaries: list[Summary]) -> dict[str, float | None]:
        """Learn from what was prepared."""
        with self._spans.span("step"):
            return self._started().step(summaries)

    def step_records(self, records: list[ray.ObjectRef]) -> dict[str, float | None]:
        return self._started().step([memoryview(r) for r in ray.get(records)])

    def weights(self, epoch: int, run_id: str, averaged: bool) -> np.ndarray | None:
        """On rank 0 the published bytes as uint8, which readers on a node share instead of copying."""
        with self._spans.span("weights"):
            data = self._started().trainable_bytes(epoch, run_id, averaged)
        return None if data is None else np.frombuffer(data, np.uint8)

    def snapshot(self) -> None:
        rank = self._started()
        with self._spans.span("snapshot"):
            taken = rank.snapshot()
        if taken is not None:
            self._snapshots[rank.iteration] = taken

    @ray.method(concurrency_group="io")
    def write(
        self, root: Path, iteration: int, keep: int, extra: dict[str, bytes], protect: tuple[int, ...], epoch: int
    ) -> Path:
        files = {**self._snapshots.pop(iteration).files(), **extra}
        with self._spans.span("checkpoint", f"of iteration {iteration}"):
            return checkpoint.write(root, iteration, files, keep, protect, epoch)

    def load(self, folder: Path) -> tuple[int, int]:
        rank = self._started()
        rank.load(folder)
        return rank.iteration, rank.weights_version

    def _started(self) -> LearnerRank:
        assert self._rank is not None, "start() comes first"
        return self._rank


def remote_rank(kind: type[RankProcess] = RankProcess) -> Any:
    """The class of the Ray actor."""
    made: Any = ray.remote(concurrency_groups=THREADS)(kind)  # type: ignore[call-overload]
    return made


def load_model(folder: str) -> BaseModel:
    from restoration.base_models import load

    return load(Path(folder))
