"""Calls of actors: an actor that dies, hangs or can't be built again costs one call, never the run."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions

from cluster.jobs import ClusterError
from cluster.run import actor_pool
from cluster.run.actor_pool import ActorPool
from cluster.run.failures import Failure


class FakeRay:
    """Calls end when the test says so."""

    def __init__(self) -> None:
        self.exceptions, self.results, self.killed = ray.exceptions, dict[int, Any](), list[Any]()
        self.calls = 0

    def actor(self) -> Any:
        def remote(*arguments: Any) -> int:
            self.calls += 1
            return self.calls

        return SimpleNamespace(roll=SimpleNamespace(remote=remote), ready=SimpleNamespace(remote=remote))

    def wait(self, refs: list[int], num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        return [r for r in refs if r in self.results], [r for r in refs if r not in self.results]

    def get(self, refs: Any, timeout: float) -> Any:
        if isinstance(refs, list):
            return [self.get(r, timeout) for r in refs]
        if refs not in self.results:
            raise ray.exceptions.GetTimeoutError
        if isinstance(self.results[refs], Exception):
            raise self.results[refs]
        return self.results[refs]

    def kill(self, actor: Any, no_restart: bool = True) -> None:
        self.killed.append((actor, no_restart))

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    made = FakeRay()
    monkeypatch.setattr(actor_pool, "ray", made)
    return made


def test_a_learner_that_fails_while_actors_are_built_ends_the_wait_for_them(fake: FakeRay) -> None:
    learner = Future[None]()
    threading.Timer(0.1, learner.set_exception, (OSError("no such model"),)).start()
    began = time.monotonic()
    with pytest.raises(OSError, match="no such model"):
        ActorPool(fake.actor, count=1, slots=1, call_timeout_s=60).wait_ready(20.0, (learner,))
    assert time.monotonic() - began < 10


def test_slots_are_given_to_the_least_busy_first(fake: FakeRay) -> None:
    pool = ActorPool(fake.actor, count=3, slots=2, call_timeout_s=60)
    assert pool.free() == [0, 1, 2, 0, 1, 2]
    pool.call(1, "roll", "x")
    assert pool.free() == [0, 2, 0, 1, 2]


def test_a_dead_actors_task_comes_back_as_a_failure_and_the_actor_rests_for_a_moment(fake: FakeRay) -> None:
    pool = ActorPool(fake.actor, count=2, slots=1, call_timeout_s=60)
    pool.call(0, "roll", "x")
    fake.results[1] = ray.exceptions.RayActorError()
    (ref,) = pool.finished(0.0)
    task, failure = pool.take(ref)
    assert task == "x" and isinstance(failure, Failure) and failure.reason == "process"
    assert pool.free() == [1] and pool.calls == {}
    pool.resting[0] = time.monotonic()
    assert pool.free() == [0, 1]


def test_an_actor_that_does_not_answer_is_ended_and_its_task_comes_back(fake: FakeRay) -> None:
    pool = ActorPool(fake.actor, count=1, slots=1, call_timeout_s=0.01)
    pool.call(0, "roll", "x")
    time.sleep(0.02)
    (ref,) = pool.finished(0.0)
    assert fake.killed == [(pool.actors[0], False)]
    task, failure = pool.take(ref)
    assert task == "x" and failure.reason == "timeout"


def test_an_actor_that_ray_gave_up_is_made_anew(fake: FakeRay) -> None:
    """Ray restarts a process that died, but not one whose constructor raised on its way back."""
    pool = ActorPool(fake.actor, count=1, slots=1, call_timeout_s=60)
    before = pool.actors[0]
    pool.call(0, "roll", "x")
    fake.results[1] = ray.exceptions.RayActorError(
        error_msg="The actor died because of an error raised in its creation task"
    )
    pool.take(pool.finished(0.0)[0])
    assert pool.actors[0] is not before


def test_actors_that_never_start_are_counted_and_named(fake: FakeRay) -> None:
    pool = ActorPool(fake.actor, count=3, slots=1, call_timeout_s=60)
    fake.results |= {1: True}
    with pytest.raises(ClusterError, match=r"2 of 3 rollout actors did not start within start_timeout_s=0.1 s"):
        pool.wait_ready(0.1)


def test_an_actor_whose_constructor_raises_is_told_in_one_line(fake: FakeRay) -> None:
    pool = ActorPool(fake.actor, count=1, slots=1, call_timeout_s=60)
    why = "an error raised in its creation task\n  File actor.py\nValueError: no weights there"
    fake.results[1] = ray.exceptions.RayActorError(error_msg=why)
    with pytest.raises(ClusterError, match="a rollout actor can't be built: ValueError: no weights there"):
        pool.wait_ready(5)
