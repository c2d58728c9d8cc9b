"""A replica of the reward service: one process with one scorer, in Ray Serve."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections import Counter as Tally
from dataclasses import asdict
from typing import Any

import numpy as np
from ray import serve
from ray.util import metrics

from reward_service import ownership
from reward_service.batching import Batcher, BatchReport, Reply
from reward_service.errors import ScorerBroken
from reward_service.figures import Figures
from reward_service.listening import listen_on_node_address
from reward_service.probe import Probe
from reward_service.scaling import IMAGES, REQUESTS
from reward_service.scorers import make_scorer
from reward_service.settings import RewardSettings, run_of_app

DEPLOYMENT = "reward"
OWNER_LOOK_S = 10.0
PROBE_SHARE = 10  # a probe that takes long is made as seldom as it must be to take a tenth of the scorer's time
BATCH_BUCKETS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]
FILL_BUCKETS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0]
SECOND_BUCKETS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0]

logger = logging.getLogger(__name__)


class _Metrics:
    """For Ray's dashboard and Prometheus, by run, scorer and version."""

    def __init__(self, scorer: str, version: str, run: str) -> None:
        tags = ("role", "run", "scorer", "version")
        self.images = metrics.Counter("restorl_reward_images", "Images scored", tags)
        self.batch = metrics.Histogram("restorl_reward_batch_images", "Images a batch", BATCH_BUCKETS, tags)
        self.fill = metrics.Histogram("restorl_reward_fill", "Images a batch, by what it can hold", FILL_BUCKETS, tags)
        self.queued = metrics.Histogram("restorl_reward_queue_seconds", "Wait of a block", SECOND_BUCKETS, tags)
        self.seconds = metrics.Histogram("restorl_reward_seconds", "Scorer time a batch", SECOND_BUCKETS, tags)
        self.failures = metrics.Counter("restorl_reward_failures", "Blocks without rewards", (*tags, "kind"))
        self.ongoing = metrics.Gauge("restorl_reward_ongoing_images", "Images without an answer yet", tags)
        every = (self.images, self.batch, self.fill, self.queued, self.seconds, self.failures, self.ongoing)
        for metric in every:
            metric.set_default_tags({"role": "reward", "run": run, "scorer": scorer, "version": version})

    def observe(self, report: BatchReport, ongoing: int) -> None:
        self.ongoing.set(ongoing)
        if report.images:
            self.images.inc(report.images)
            self.batch.observe(report.images)
            self.fill.observe(report.images / report.limit)
            self.seconds.observe(report.seconds)
        for seconds in report.queued_s:
            self.queued.observe(seconds)
        for kind, count in Tally(report.errors).items():
            self.failures.inc(count, {"kind": kind})


@serve.deployment(name=DEPLOYMENT)
class RewardReplica:
    """It takes requests once the scorer is built and has scored its probe pictures as is stored beside its weights.

    The probe is repeated between batches; a replica that fails it answers nothing more and is replaced. It deletes its
    application when the job that owns it has ended without doing so.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        listen_on_node_address()
        self.settings = RewardSettings(**settings)
        self.device = "cuda" if self.settings.num_gpus > 0 else "cpu"  # Ray shows a replica its own GPUs only
        _limit_threads(self.settings.threads)
        scorer = make_scorer(self.settings.scorer, self.device, **self.settings.params)
        _limit_threads(self.settings.threads)  # a scorer may have brought torch in only now
        self.probe = Probe(scorer, self.settings.scorer, self.settings.params, self.settings.picture_side)
        self.probe.check()
        self.probed = time.monotonic()
        self.probing: asyncio.Task[None] | None = None
        app = serve.get_replica_context().app_name
        self.metrics, self.figures = _Metrics(scorer.name, scorer.version, run_of_app(app)), Figures()
        self.batcher = Batcher(
            scorer, self.settings.max_batch, self.settings.max_wait_s, self._observe, lambda: _check(self.probe)
        )
        threading.Thread(target=_end_with_owner, args=(app,), name="owner", daemon=True).start()

    def _observe(self, report: BatchReport) -> None:
        self.figures.observe(report)
        self.metrics.observe(report, self.batcher.ongoing[IMAGES])

    async def score(self, images: np.ndarray, budget_s: float) -> Reply:
        """Block uint8 [N, H, W, 3] -> {"scores", "scorer", "version"} or an error as data, within `budget_s`."""
        return await self.batcher.score(images, budget_s)

    def reconfigure(self, settings: dict[str, Any]) -> None:
        """Serve's way of changing settings that a running replica only tells of."""
        self.settings = RewardSettings(**settings)

    async def check_health(self) -> None:
        """Serve replaces a replica whose check raises, or takes too long, some times in a row.

        A scorer that is busy is well, for as long as one call of it may last: its probe waits between two batches.

        Raises:
            ScorerBroken: the scorer failed at its probe, now or before, or one call of it has no end.
        """
        self.metrics.ongoing.set(self.batcher.ongoing[IMAGES])  # which falls without a batch, too
        pause = max(self.settings.probe_every_s, PROBE_SHARE * self.batcher.probe_s)
        if self.probing is None and time.monotonic() - self.probed >= pause:
            self.probing = asyncio.get_running_loop().create_task(self.batcher.check())
        if (probing := self.probing) is not None:
            # It may stand behind long batches: a check that waits for them would be too late for Serve.
            await asyncio.wait({probing}, timeout=self.settings.health_check_timeout_s / 3)
            if probing.done() and self.probing is probing:
                probing.result()
                self.probing, self.probed = None, time.monotonic()
        if (lasts := self.batcher.busy_s()) > self.settings.stuck_after_s:
            raise ScorerBroken(f"a call of the scorer lasts for {lasts:.0f} s, longer than reward.stuck_after_s")
        if self.batcher.refused is not None:
            logger.error("%s; this replica scores nothing more", self.batcher.refused)
            raise ScorerBroken(self.batcher.refused)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `scaling.wanted_replicas` counts."""
        return {name: float(self.batcher.ongoing[name]) for name in (IMAGES, REQUESTS)}

    async def describe(self) -> dict[str, Any]:
        """Settings, process id, device and scorer of this replica, and the figures of its last batches."""
        scorer = self.batcher.scorer
        return {
            "settings": asdict(self.settings),
            "pid": os.getpid(),
            "device": self.device,
            "scorer": scorer.name,
            "version": scorer.version,
            "range": scorer.range,
            "figures": self.figures.summary(),
            "ongoing": self.batcher.ongoing[IMAGES],
            "limits": {"x".join(map(str, shape[:2])): limit for shape, limit in dict(self.batcher.limits).items()},
        }


def _check(probe: Probe) -> None:
    probe.check()


def _end_with_owner(name: str) -> None:
    """Delete the application once its owner is gone at two looks in a row: the second spares one that changes hands."""
    before: tuple[bool, ownership.Owner | None] = (False, None)
    while True:
        time.sleep(OWNER_LOOK_S)
        try:
            owner = ownership.owner_of(name)
            dead = owner is None or not ownership.is_alive(owner)
            if dead and before == (True, owner):
                logger.warning("%s: its owner is gone (%s); deleting it", name, owner)
                serve.delete(name, _blocking=False)
            before = (dead, owner)
        except Exception:  # the controller or the store is away for a moment
            continue


def _limit_threads(count: int) -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)
