"""The Ray group: the same numbers as a rank without Ray, and typed errors when a process is gone."""

from __future__ import annotations

import functools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from learner.batch import BatchError, PairLoader
from restoration.weights import from_bytes
from tests.learner.fakes import FakeModel, fake_pairs
from tests.learner.rank_process import BASE, batches
from trajectories.schema import encode

# Half a minute, Ray's own patience with its raylet, is short on a busy machine.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
import ray  # noqa: E402

from cluster.run.failures import Kind, classify  # noqa: E402
from learner.group import GroupSettings, LearnerDied, LearnerFailed, LearnerGroup, LearnerUnplaced  # noqa: E402
from learner.process import THREADS, RankProcess, remote_rank  # noqa: E402


def give_pairs() -> PairLoader:
    return fake_pairs


class Coveted(LearnerGroup):
    """Somebody else wants the port where its ranks meet as soon as they have been told of it."""

    def _call(self, method: str, *arguments: Any, **options: Any) -> list[Any]:
        answers = super()._call(method, *arguments, **options)
        if method == "address":
            with pytest.raises(OSError, match="in use"):
                socket.create_server(answers[0])
        return answers


class Busy(RankProcess):
    @ray.method(concurrency_group="io")
    def hold(self, seconds: float) -> None:
        time.sleep(seconds)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    mine = not ray.is_initialized()
    if mine:
        root = str(Path(__file__).parents[2])
        ray.init("local", num_cpus=4, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": root}})
    yield
    if mine:
        ray.shutdown()


@pytest.fixture(scope="module")
def make_group(cluster: None) -> Callable[[int], LearnerGroup]:
    return lambda ranks: Coveted(
        replace(BASE, timeout_s=60.0),
        GroupSettings(ranks=ranks),
        functools.partial(FakeModel, 0),
        give_pairs,
        epoch=2,
        run_id="run",
    )


@pytest.mark.timeout(800)
def test_a_group_meets_where_nobody_else_can_learns_publishes_refuses_resumes_and_reports_a_killed_rank(
    make_group: Callable[[int], LearnerGroup], tmp_path: Path
) -> None:
    first, second, _ = batches("zero0")
    with make_group(2) as group:
        metrics = group.step_records([encode(g) for g in first])
        assert metrics["weights_version"] == 1 and metrics["ratio_max"] == pytest.approx(1, abs=1e-6)

        message = group.publish()
        state, info = from_bytes(memoryview(ray.get(message.ref)))
        assert (message.version, message.epoch, info.version, info.epoch, info.run_id) == (1, 2, 1, 2, "run")

        with pytest.raises(BatchError, match="twice"):
            group.step_records([encode(first[0])] * 2)

        group.snapshot()
        expected = group.step_records([encode(g) for g in second])  # the snapshot is of the instant it was taken
        folder = group.write(tmp_path, 1, extra={"more.json": b"{}"})
        assert (folder / "more.json").read_bytes() == b"{}"
        group.load(folder)
        assert group.weights_version == 1
        again = group.step_records([encode(g) for g in second])
        assert {k: v for k, v in again.items() if not k.endswith("_s")} == {
            k: v for k, v in expected.items() if not k.endswith("_s")
        }
        later, _ = from_bytes(memoryview(ray.get(group.publish().ref)))
        assert any(not torch.equal(state[name], value) for name, value in later.items())

        os.kill(group.pids()[1], signal.SIGKILL)
        for _ in range(2):  # what ended the group is told again, not only that it is closed
            with pytest.raises(LearnerDied, match="rank 1"):
                group.step_records([encode(g) for g in second])

    with make_group(1) as alone:
        alone.load(folder)
        metrics = alone.step_records([encode(g) for g in second])
        assert metrics["loss"] == pytest.approx(expected["loss"], abs=1e-5)


def test_what_a_rank_raises_is_told_with_its_cause_and_is_no_death(make_group: Callable[[int], LearnerGroup]) -> None:
    """A NaN loss counted as a death and was started again for ever, its reason thrown away."""
    first, _, _ = batches("zero0")
    broken = [replace(g, log_probs=torch.full_like(g.log_probs, -200.0)) for g in first]  # ratios overflow
    with make_group(1) as group:
        with pytest.raises(LearnerFailed, match="FloatingPointError") as raised:
            group.step_records([encode(g) for g in broken])
        assert isinstance(raised.value.cause, FloatingPointError)
        with pytest.raises(LearnerFailed, match="FloatingPointError"):
            group.publish()


def test_a_cluster_without_room_is_reported(cluster: None) -> None:
    with pytest.raises(LearnerUnplaced, match="no_such_thing"):
        LearnerGroup(
            BASE, GroupSettings(resources={"no_such_thing": 1.0}, start_timeout_s=1.0), FakeModel, give_pairs
        ).launch()


def test_a_start_that_is_under_way_ends_when_the_group_is_closed(cluster: None) -> None:
    group = LearnerGroup(
        BASE, GroupSettings(resources={"no_such_thing": 1.0}, start_timeout_s=60.0), FakeModel, give_pairs
    )
    threading.Timer(1.0, group.close).start()
    began = time.monotonic()
    with pytest.raises(LearnerDied, match="closed"):
        group.launch()
    assert time.monotonic() - began < 20


def test_a_rank_whose_disk_takes_long_still_answers_whether_it_lives(cluster: None) -> None:
    rank = remote_rank(Busy).options(num_cpus=0.1).remote(FakeModel, give_pairs)
    try:
        ray.get(rank.ping.remote(), timeout=120)
        for _ in range(THREADS["io"]):
            rank.hold.remote(60.0)
        assert ray.get(rank.ping.remote(), timeout=10)
    finally:
        ray.kill(rank)


@pytest.mark.parametrize(
    "said",
    [
        "[Errno 98] Address already in use",
        "The server socket has failed to listen on any local network address. code: -98, name: EADDRINUSE",
        "Call to bind failed: Address already in use",
    ],
)
def test_a_port_that_somebody_else_took_is_a_death_and_another_try_has_another(said: str) -> None:
    group = LearnerGroup(BASE, GroupSettings(), FakeModel, give_pairs)
    taken = ray.exceptions.RayTaskError("start", f"RuntimeError: {said}", RuntimeError(said)).as_instanceof_cause()
    found = group._judge("start", {"call": 0}, "call", taken, ["a rank"])
    assert isinstance(found, LearnerDied) and classify(found).kind is Kind.TRANSIENT
    other = ray.exceptions.RayTaskError("start", "OSError: no such file", OSError("no such file"))
    assert isinstance(
        group._judge("start", {"call": 0}, "call", other.as_instanceof_cause(), ["a rank"]), LearnerFailed
    )


def test_what_a_process_said_in_many_lines_is_told_in_two() -> None:
    told = classify(LearnerDied(0, "step: the first line\n\n  some frames\nthe last line")).detail
    assert told.startswith("learner rank 0 died: step: the first line ... the last line; the group is closed")
