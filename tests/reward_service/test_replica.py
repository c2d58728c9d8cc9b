"""When Serve is told that a replica is unwell, without Ray."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from reward_service.batching import Batcher
from reward_service.errors import ScorerBroken
from reward_service.replica import RewardReplica
from reward_service.settings import RewardSettings
from tests.reward_service.fakes import Ordered, block

CLASS = RewardReplica.func_or_class  # type: ignore[attr-defined]


def replica(batcher: Batcher, **settings: float) -> SimpleNamespace:
    """What its health check looks at."""
    chosen = RewardSettings(health_check_timeout_s=0.3, probe_every_s=0.01, **settings)  # type: ignore[arg-type]
    gauge = SimpleNamespace(set=lambda value: None)
    made = SimpleNamespace(batcher=batcher, settings=chosen, probing=None, probed=0.0)
    made.metrics = SimpleNamespace(ongoing=gauge)
    return made


class Held(Ordered):
    """Scores once it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def score(self, images):  # type: ignore[no-untyped-def]
        self.go.wait(10)
        return super().score(images)


def during_a_batch(check: Callable[[SimpleNamespace, Batcher], object], **settings: float) -> None:
    async def run() -> None:
        scorer = Held()
        batcher = Batcher(scorer, 8, 0.0, probe=lambda: None)
        waiting = asyncio.create_task(batcher.score(block([1]), 30))
        await asyncio.sleep(0.05)
        try:
            await check(replica(batcher, **settings), batcher)  # type: ignore[misc]
        finally:
            scorer.go.set()
        assert (await waiting)["scores"].tolist() == [1]

    asyncio.run(run())


def test_a_batch_longer_than_any_health_check_is_no_illness() -> None:
    async def check(made: SimpleNamespace, batcher: Batcher) -> None:
        for _ in range(4):
            began = time.monotonic()
            await CLASS.check_health(made)
            assert time.monotonic() - began < made.settings.health_check_timeout_s
        assert made.probing is not None and batcher.busy_s() > 0.3

    during_a_batch(check)


def test_a_call_of_the_scorer_without_an_end_is_one() -> None:
    async def check(made: SimpleNamespace, batcher: Batcher) -> None:
        await asyncio.sleep(0.2)
        with pytest.raises(ScorerBroken, match="longer than reward.stuck_after_s"):
            await CLASS.check_health(made)

    during_a_batch(check, stuck_after_s=0.1)


def test_a_long_probe_is_made_seldom() -> None:
    probes: list[float] = []

    def probe() -> None:
        probes.append(time.monotonic())
        time.sleep(0.05)

    async def run() -> None:
        made = replica(Batcher(Ordered(), 8, 0.0, probe=probe))
        until = time.monotonic() + 0.4
        while time.monotonic() < until:
            await CLASS.check_health(made)
            await asyncio.sleep(0.005)

    asyncio.run(run())
    assert len(probes) == 1  # ten times as long lies between two
