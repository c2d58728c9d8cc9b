"""Calls of actors: one that dies, hangs, loses its node or can't be built costs its calls, never the run's time."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions

from cluster.jobs import ClusterError
from cluster.run import actor_pool
from cluster.run.actor_pool import CHECK_S, GONE_S, ActorPool, Resized, Standing
from cluster.run.failures import Failure
from cluster.run.node_watch import Nodes

UNBUILT = "an error raised in its creation task\n  File actor.py\nValueError: no weights there"


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

    def get(self, ref: int, timeout: float) -> Any:
        if ref not in self.results:
            raise ray.exceptions.GetTimeoutError
        if isinstance(self.results[ref], Exception):
            raise self.results[ref]
        return self.results[ref]

    def kill(self, actor: Any, no_restart: bool = True) -> None:
        self.killed.append((actor, no_restart))

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    made = FakeRay()
    monkeypatch.setattr(actor_pool, "ray", made)
    return made


def pool_of(fake: FakeRay, count: int, slots: int = 1, call_timeout_s: float = 60.0, **more: Any) -> ActorPool:
    """Whose actors are all there, actor N on node N."""
    pool = ActorPool(fake.actor, count, slots, call_timeout_s, **more)
    come(fake, pool, *range(count))
    return pool


def come(fake: FakeRay, pool: ActorPool, *actors: int) -> None:
    """They say that they are there."""
    pool.finished(0.0)
    for actor in actors:
        fake.results[pool.members[actor].check] = str(actor)  # type: ignore[index]
    pool.finished(0.0)


def give(pool: ActorPool, actor: int, task: Any) -> int:
    """The call."""
    pool.call(actor, "roll", task)
    return next(ref for ref, call in pool.calls.items() if call.task == task)  # type: ignore[return-value]


def rested(pool: ActorPool) -> ActorPool:
    for member in pool.members.values():
        member.resting = 0.0
    return pool


def test_a_learner_that_fails_while_actors_are_built_ends_the_wait_for_them(fake: FakeRay) -> None:
    learner = Future[None]()
    threading.Timer(0.1, learner.set_exception, (OSError("no such model"),)).start()
    began = time.monotonic()
    with pytest.raises(OSError, match="no such model"):
        ActorPool(fake.actor, count=1, slots=1, call_timeout_s=60).wait_ready(20.0, (learner,))
    assert time.monotonic() - began < 10


def test_slots_are_given_to_the_least_busy_first(fake: FakeRay) -> None:
    pool = pool_of(fake, count=3, slots=2)
    assert pool.free() == [0, 1, 2, 0, 1, 2]
    give(pool, 1, "x")
    assert pool.free() == [0, 2, 0, 1, 2]


def test_a_dead_actors_task_comes_back_as_a_failure_and_it_gets_none_until_it_is_there_again(fake: FakeRay) -> None:
    pool = pool_of(fake, count=2)
    fake.results[give(pool, 0, "x")] = ray.exceptions.RayActorError()
    (ref,) = pool.finished(0.0)
    task, failure = pool.take(ref)
    assert task == "x" and isinstance(failure, Failure) and failure.reason == "process"
    assert pool.free() == [1] and pool.calls == {} and pool.members[0].resting > time.monotonic()
    pool.finished(0.0)
    assert pool.members[0].check is None  # it rests
    rested(pool).finished(0.0)
    assert pool.free() == [1] and pool.standing() == Standing(2, 1, 0)
    come(fake, pool, 0)
    assert pool.free() == [0, 1] and pool.standing() == Standing(2, 2, 0)


def test_an_actor_that_does_not_answer_is_ended_and_its_task_comes_back(fake: FakeRay) -> None:
    pool = pool_of(fake, count=1, call_timeout_s=0.01)
    give(pool, 0, "x")
    time.sleep(0.02)
    (ref,) = pool.finished(0.0)
    assert fake.killed == [(pool.members[0].handle, False)]
    task, failure = pool.take(ref)
    assert task == "x" and failure.reason == "timeout"  # type: ignore[union-attr]
    assert rested(pool).free() == []


def test_an_actor_that_ray_gave_up_is_made_anew(fake: FakeRay) -> None:
    """Ray restarts a process that died, but not one whose constructor raised on its way back."""
    pool = pool_of(fake, count=1)
    before = pool.members[0].handle
    fake.results[give(pool, 0, "x")] = ray.exceptions.RayActorError(error_msg=UNBUILT)
    pool.take(pool.finished(0.0)[0])
    rested(pool).finished(0.0)
    assert pool.members[0].handle is not before and fake.killed == [(before, True)]


def test_one_that_cannot_be_built_is_tried_again_beside_the_others_and_ends_the_run_only_when_none_is_there(
    fake: FakeRay,
) -> None:
    pool = pool_of(fake, count=2)
    fake.results[give(pool, 0, "x")] = ray.exceptions.RayActorError()
    pool.take(pool.finished(0.0)[0])

    def fail(tries: int) -> None:
        for _ in range(tries):
            rested(pool).finished(0.0)
            fake.results[pool.members[0].check] = ray.exceptions.RayActorError(error_msg=UNBUILT)  # type: ignore[index]
            pool.finished(0.0)

    fail(actor_pool.BUILDS + 5)
    assert pool.standing() == Standing(2, 1, 0, "ValueError: no weights there") and pool.free() == [1]
    fake.results[give(pool, 1, "y")] = ray.exceptions.RayActorError()
    pool.take(pool.finished(0.0)[0])
    with pytest.raises(ClusterError, match="no rollout actor can be built: ValueError: no weights there; put that"):
        fail(1)


def test_actors_that_never_start_are_counted_and_named(fake: FakeRay) -> None:
    pool = ActorPool(fake.actor, count=3, slots=1, call_timeout_s=60)
    fake.results |= {1: True}
    with pytest.raises(ClusterError, match=r"2 of 3 rollout actors did not start within start_timeout_s=0.1 s"):
        pool.wait_ready(0.1)


def test_an_actor_whose_constructor_raises_is_told_in_one_line(fake: FakeRay) -> None:
    pool = ActorPool(fake.actor, count=1, slots=1, call_timeout_s=60)
    fake.results[1] = ray.exceptions.RayActorError(error_msg=UNBUILT)
    with pytest.raises(ClusterError, match="a rollout actor can't be built: ValueError: no weights there"):
        pool.wait_ready(5)


def test_one_that_waits_for_a_place_gets_no_call_however_long(fake: FakeRay) -> None:
    pool = ActorPool(fake.actor, count=3, slots=1, call_timeout_s=0.0)
    fake.results |= {2: "here"}
    pool.finished(0.0)
    pool.finished(0.0)
    for member in pool.members.values():
        member.away = None if member.away is None else -1e6
        member.asked = -1e6
    assert pool.finished(0.0) == [] and pool.free() == [1] and not fake.killed
    assert pool.standing() == Standing(3, 1, 0)
    fake.results |= {1: "there"}
    pool.finished(0.0)
    assert pool.free() == [0, 1]


def test_what_actors_of_a_lost_node_had_comes_back_at_once_and_they_wait_for_another_node(fake: FakeRay) -> None:
    seen: list[Nodes] = [Nodes(time.monotonic() + 60, frozenset({"0", "1"}))]
    pool = pool_of(fake, count=2, slots=2, nodes=lambda: seen[-1])
    for task in ("a", "b"):
        give(pool, 0, task)
    give(pool, 1, "c")
    assert pool.finished(0.0) == []
    seen.append(Nodes(time.monotonic() + 60, frozenset({"1"})))
    came: list[Any] = [pool.take(ref) for ref in pool.finished(0.0)]
    assert [(task, failure.reason) for task, failure in came] == [("a", "node"), ("b", "node")]
    assert pool.free() == [1] and pool.members[0].failures == 0
    seen.append(Nodes(time.monotonic() - 60, frozenset()))  # asked before it came back: it says nothing
    come(fake, pool, 0)
    assert pool.finished(0.0) == [] and pool.free() == [0, 0, 1]


def test_the_death_of_a_process_with_its_node_is_that_of_the_node(fake: FakeRay) -> None:
    """So that an item which meets it five times isn't taken for one that kills actors."""
    seen: list[Nodes] = [Nodes(time.monotonic() + 60, frozenset({"0"}))]
    pool = pool_of(fake, count=1, nodes=lambda: seen[-1])
    ref = give(pool, 0, "x")
    fake.results[ref] = ray.exceptions.RayActorError()
    assert pool.finished(0.0) == [ref]
    seen.append(Nodes(time.monotonic() + 60, frozenset()))
    assert pool.take(ref)[1].reason == "node"  # type: ignore[union-attr]


def test_a_call_that_went_to_an_actor_as_it_died_waits_for_its_way_back_no_longer_than_moments(fake: FakeRay) -> None:
    """Ray keeps it until the actor has a place again, which may be never."""
    pool = pool_of(fake, count=1, slots=2)
    fake.results[give(pool, 0, "died with it")] = ray.exceptions.RayActorError()
    behind = give(pool, 0, "kept")
    pool.take(pool.finished(0.0)[0])
    assert pool.finished(0.0) == []
    pool.members[0].away -= GONE_S + 1  # type: ignore[operator]
    assert pool.finished(0.0) == [behind]
    task, failure = pool.take(behind)
    assert task == "kept" and failure.reason == "process" and pool.calls == {}  # type: ignore[union-attr]


def test_an_actor_without_work_is_asked_whether_it_is_there_and_gets_none_before_it_answers(fake: FakeRay) -> None:
    pool = pool_of(fake, count=2)
    assert pool.finished(0.0) == [] and pool.free() == [0, 1]
    pool.members[0].seen -= CHECK_S + 1
    pool.finished(0.0)
    assert pool.free() == [1] and pool.standing().there == 2  # asked just now
    pool.members[0].asked -= GONE_S + 1
    pool.finished(0.0)
    assert pool.standing().there == 1
    come(fake, pool, 0)
    assert pool.free() == [0, 1] and pool.standing().there == 2


def test_actors_that_are_added_get_work_once_they_are_there(fake: FakeRay) -> None:
    pool = pool_of(fake, count=1)
    give(pool, 0, "x")
    assert pool.resize(3) == Resized(1, 3, started=2)
    pool.finished(0.0)
    assert pool.free() == [] and pool.standing() == Standing(3, 1, 0)
    come(fake, pool, 2)
    assert pool.free() == [2]


def test_those_that_wait_for_a_place_give_the_wait_up_until_the_next_look(fake: FakeRay) -> None:
    pool = pool_of(fake, count=1)
    pool.resize(2)
    pool.finished(0.0)
    here, waits = (member.handle for member in pool.members.values())
    pool.step_back()
    assert fake.killed == [(waits, True)] and pool.free() == [0]
    pool.finished(0.0)
    assert pool.members[0].handle is here and pool.members[1].handle is not waits
    come(fake, pool, 1)
    assert pool.free() == [0, 1]


def test_an_actor_that_is_back_and_works_keeps_its_call_however_long_nobody_looked(fake: FakeRay) -> None:
    """The driver's loop stands for minutes while its learner starts again."""
    pool = pool_of(fake, count=1, slots=2)
    fake.results[give(pool, 0, "died with it")] = ray.exceptions.RayActorError()
    behind = give(pool, 0, "kept")
    pool.take(pool.finished(0.0)[0])
    rested(pool).finished(0.0)
    fake.results[pool.members[0].check] = "0"  # type: ignore[index]
    pool.members[0].away -= GONE_S + 1  # type: ignore[operator]
    assert pool.finished(0.0) == [] and behind in pool.calls and pool.standing().there == 1


def test_all_are_ended_though_one_of_them_goes_meanwhile(fake: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the thread of a `take` that a run which ends waits for no more."""
    pool, ended = pool_of(fake, count=3), list[Any]()

    def kill(actor: Any) -> None:
        ended.append(actor)
        pool.members.pop(1, None)

    handles = [member.handle for member in pool.members.values()]
    monkeypatch.setattr(fake, "kill", kill)
    pool.kill()
    assert ended == handles


def test_surplus_actors_end_after_the_call_they_have_and_its_result_counts(fake: FakeRay) -> None:
    pool = pool_of(fake, count=4)
    handles = {key: member.handle for key, member in pool.members.items()}
    for actor in (0, 1, 3):
        give(pool, actor, f"of {actor}")
    assert pool.resize(1) == Resized(4, 1, ended=1, leaving=2)  # 2 has nothing, and of the others 0 stays
    assert fake.killed == [(handles[2], True)] and pool.standing() == Standing(1, 1, 2) and pool.free() == []
    for ref in pool.calls:
        fake.results[ref] = f"result {ref}"  # type: ignore[index]
    came = dict(pool.take(ref) for ref in pool.finished(0.0))
    assert came.keys() == {"of 0", "of 1", "of 3"} and all(str(r).startswith("result") for r in came.values())
    assert [h is handles[n] for n, (h, _) in zip((2, 1, 3), fake.killed, strict=True)] == [True] * 3
    assert [*pool.members] == [0] and pool.free() == [0]


def test_those_that_are_away_are_ended_first_and_the_last_one_stays(fake: FakeRay) -> None:
    pool = pool_of(fake, count=1)
    pool.resize(3)
    assert pool.resize(1) == Resized(3, 1, ended=2) and [*pool.members] == [0]
    with pytest.raises(ValueError, match="0 rollout actors: at least 1"):
        pool.resize(0)


def test_an_actor_that_is_about_to_leave_stays_when_more_are_wanted_again(fake: FakeRay) -> None:
    pool = pool_of(fake, count=2)
    for actor in (0, 1):
        give(pool, actor, actor)
    pool.resize(1)
    assert pool.resize(3) == Resized(1, 3, started=1, kept=1) and not fake.killed
    assert pool.standing() == Standing(3, 2, 0)


def test_a_leaving_actor_that_dies_is_not_waited_for_and_its_work_comes_back(fake: FakeRay) -> None:
    pool = pool_of(fake, count=2)
    ref = give(pool, 1, "x")
    give(pool, 0, "y")
    pool.resize(1)
    fake.results[ref] = ray.exceptions.RayActorError()
    (ended,) = pool.finished(0.0)
    assert pool.take(ended)[1].reason == "process" and [*pool.members] == [0]  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_and_goes_each_task_ends_once_and_none_is_lost(fake: FakeRay, seed: int) -> None:
    """A run of 60 tasks against a thousand turns of chance: deaths, lost nodes, silence, other numbers of actors."""
    draw, alive = random.Random(seed), {"0", "1", "2"}
    now = Nodes(0.0, frozenset(alive))
    pool = pool_of(fake, count=3, slots=2, nodes=lambda: now)
    waiting, done, turns = list(range(60)), list[int](), 0
    while len(done) < 60:
        turns += 1
        assert turns < 5000, "it does not come to an end"
        wild = turns < 1000
        for actor in rested(pool).free():
            if waiting:
                give(pool, actor, waiting.pop(0))
        for member in pool.members.values():
            if member.check is not None and member.check not in fake.results and draw.random() < (0.3 if wild else 1):
                alive.add(node := str(draw.randrange(1000)))
                died = wild and draw.random() < 0.2
                fake.results[member.check] = ray.exceptions.RayActorError() if died else node  # type: ignore[index]
            member.asked -= 1.0
            member.away = None if member.away is None else member.away - 1.0
        for ref in pool.calls:
            if draw.random() < 0.2:
                died = wild and draw.random() < 0.4
                fake.results.setdefault(ref, ray.exceptions.RayActorError() if died else "done")  # type: ignore
        if wild and alive and draw.random() < 0.1:
            alive.discard(draw.choice(sorted(alive)))
        if wild and draw.random() < 0.1:
            pool.resize(draw.randrange(1, 6))
        now = Nodes(time.monotonic() + 60, frozenset(alive))
        for ref in pool.finished(0.0):
            task, result = pool.take(ref)
            assert task not in done and task not in waiting
            (waiting if isinstance(result, Failure) else done).append(task)
        out = [call.task for call in pool.calls.values()]
        assert sorted([*waiting, *out, *done]) == list(range(60))
        assert all(call.actor in pool.members for call in pool.calls.values())
        assert pool.wanted == sum(not m.leaving for m in pool.members.values())
    assert not pool.calls and all(not m.leaving for m in pool.members.values())
