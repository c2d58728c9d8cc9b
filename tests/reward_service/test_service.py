"""The Serve application and its client on one local Ray."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from tests.reward_service.fakes import BATCH_SIZE, NAN, RAISE, SLOW, block

ray = pytest.importorskip("ray")

from cluster.jobs import ClusterSettings, connect  # noqa: E402
from reward_service import service  # noqa: E402
from reward_service.client import RewardClient  # noqa: E402
from reward_service.errors import (  # noqa: E402
    InvalidBlock,
    InvalidReward,
    RewardError,
    RewardTimeout,
    RewardUnavailable,
    ScorerFailed,
)
from reward_service.settings import RewardApp, RewardSettings  # noqa: E402

SETTINGS = RewardSettings(
    scorer="tests.reward_service.fakes:Ordered",
    params={"slow_s": 3.0, "pause_s": 0.02},
    max_wait_s=0.2,
    num_cpus=0.1,
    deadline_s=120,
)


@pytest.fixture(scope="module")
def app() -> Iterator[RewardApp]:
    with connect(ClusterSettings(num_cpus=2, dashboard=False, auth="disabled", object_store_mb=200)):
        yield service.deploy(SETTINGS, "reward-a")


def test_a_caller_gets_float32_scores_and_the_version_of_the_scorer(app: RewardApp) -> None:
    result = RewardClient(app).submit(block([7, 9])).result()
    assert result.scores.dtype == np.float32
    assert result.scores.tolist() == [7, 9]
    assert result.reward_version == "ordered-1"


def test_blocks_of_callers_in_other_processes_are_merged(app: RewardApp) -> None:
    @ray.remote(num_cpus=0.1)
    class Caller:
        def __init__(self) -> None:
            self.client = RewardClient(app)

        def score(self) -> list[float]:
            tickets = [self.client.submit(block([0, 0], BATCH_SIZE)) for _ in range(4)]
            return [float(t.result().scores[0]) for t in tickets]

    callers = [Caller.remote() for _ in range(2)]  # type: ignore[attr-defined]
    ray.get([c.score.remote() for c in callers])
    sizes = [size for row in ray.get([c.score.remote() for c in callers]) for size in row]
    assert max(sizes) > 8  # more than the four blocks of two that one caller sends


def test_failures_arrive_typed_and_only_where_they_belong(app: RewardApp) -> None:
    client = RewardClient(app)
    good = client.submit(block([5]))
    nan, raised = client.submit(block([1, 2], NAN)), client.submit(block([1], RAISE))
    with pytest.raises(InvalidReward) as invalid:
        nan.result()
    assert invalid.value.indexes == (0,)
    with pytest.raises(ScorerFailed, match="ordered to raise"):
        raised.result()
    with pytest.raises(InvalidBlock, match="float32"):
        client.submit(np.zeros((1, 8, 8, 3), np.float32))
    assert good.result().scores.tolist() == [5]


def test_a_scorer_slower_than_the_deadline_is_a_timeout_and_the_next_request_is_served(app: RewardApp) -> None:
    began = time.monotonic()
    with pytest.raises(RewardTimeout, match="deadline_s=0.5"):
        RewardClient(app, deadline_s=0.5).submit(block([1], SLOW)).result()
    assert time.monotonic() - began < 2.5
    assert RewardClient(app).submit(block([4])).result().scores.tolist() == [4]


def test_without_a_service_of_that_name_the_client_says_so(app: RewardApp) -> None:
    with pytest.raises(RewardUnavailable, match="'nobody'.*2 attempts"):
        RewardClient(replace(app, name="nobody"), retries=1).submit(block([1])).result()
    assert service.status("nobody")["status"] == "NOT_STARTED"
    with pytest.raises(RewardUnavailable, match="nobody"):
        service.scale("nobody", 2)


class Flow:
    """A caller that never pauses, in a thread."""

    def __init__(self, app: RewardApp) -> None:
        self.app, self.done, self.errors = app, 0, list[RewardError]()
        self.client = RewardClient(app)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self.stop.is_set():
            tickets = [self.client.submit(block([i])) for i in range(4)]
            for i, ticket in enumerate(tickets):
                try:
                    assert ticket.result().scores.tolist() == [i]
                    self.done += 1
                except RewardError as error:
                    self.errors.append(error)

    def __enter__(self) -> Flow:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


def pids(app: RewardApp, want: int) -> set[int]:
    """Process ids of the replicas that answer, once there are `want`."""
    found: set[int] = set()
    until = time.monotonic() + 60
    while len(found) < want and time.monotonic() < until:
        found.add(service.describe(app)["pid"])
    return found


def test_replicas_change_while_requests_flow_and_the_old_one_stays(app: RewardApp) -> None:
    (old,) = pids(app, 1)
    with Flow(app) as flow:
        service.scale(app, 2)
        now = pids(app, 2)
    assert old in now and len(now) == 2
    assert not flow.errors and flow.done > 0
    assert service.status(app)["replicas"] == {"RUNNING": 2}


def test_requests_of_a_killed_replica_are_repeated_and_succeed(app: RewardApp) -> None:
    with Flow(app) as flow:
        client = RewardClient(app)
        both = pids(app, 2)
        slow = [client.submit(block([i + 1], SLOW)) for i in range(4)]  # merged, they may keep one replica busy only
        time.sleep(1)
        # A new request goes to the idler replica: the other one certainly holds slow blocks.
        os.kill((both - {service.describe(app)["pid"]}).pop(), signal.SIGKILL)
        assert [t.result().scores.tolist() for t in slow] == [[1], [2], [3], [4]]
    assert not flow.errors and flow.done > 0
    assert client.repeated + flow.client.repeated > 0
