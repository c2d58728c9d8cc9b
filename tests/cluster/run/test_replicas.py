"""Where reward replicas are, asked beside the run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from cluster.run.replicas import Replicas


def actor(name: str, ip: str = "10.0.0.2") -> dict[str, Any]:
    return {"Name": name, "Address": {"IPAddress": ip}, "Pid": 7}


ALIVE = [
    actor("SERVE_REPLICA::reward-demo#Reward#abc"),
    actor("SERVE_REPLICA::reward-other#Reward#abc"),
    actor("SERVE_CONTROLLER_ACTOR"),
    actor(""),
]


OURS = {"reward-demo": "deqa"}


def until(reached: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 10
    while not (found := reached()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_replicas_of_the_run_are_found_and_no_others() -> None:
    replicas = Replicas(lambda: ALIVE)
    assert replicas.look(OURS) == []  # nothing is waited for
    (row,) = until(lambda: replicas.look(OURS))
    assert (row["role"], row["name"], row["where"]) == ("replica", "replica of deqa", "10.0.0.2 pid 7")
    assert row["heard"] == pytest.approx(time.time(), abs=5)


@pytest.mark.parametrize("strange", [{"Name": ALIVE[0]["Name"]}, {**ALIVE[0], "Address": "10.0.0.2"}, None], ids=str)
def test_an_answer_of_another_shape_than_the_pinned_ray_gives_leaves_what_was_known(strange: Any) -> None:
    asked: list[int] = []
    replicas = Replicas(lambda: (asked.append(1), [strange])[1], every_s=0.0)
    replicas._rows = before = [{"role": "replica"}]
    until(lambda: (replicas.look(OURS), len(asked) > 2)[1])
    assert replicas.look(OURS) == before


def test_a_head_that_does_not_answer_or_fails_leaves_what_was_known_and_is_asked_once_at_a_time() -> None:
    asked: list[int] = []
    answer, fails = threading.Event(), threading.Event()

    def ask() -> Any:
        asked.append(1)
        assert answer.wait(20)
        if fails.is_set():
            raise ConnectionError("no head")
        return ALIVE

    replicas = Replicas(ask, every_s=0.0)
    for _ in range(5):
        assert replicas.look(OURS) == []
    assert len(asked) == 1
    answer.set()
    before = until(lambda: replicas.look(OURS))
    fails.set()
    until(lambda: (replicas.look({}), len(asked) > 4)[1])
    kept = Replicas(ask, every_s=0.0)
    kept._rows = before
    until(lambda: (kept.look(OURS), len(asked) > 8)[1])
    assert kept.look(OURS) == before
