"""The Ray Serve application around a scorer, reached by handles only (no HTTP proxy)."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter as Tally
from dataclasses import asdict, replace
from typing import Any, cast

import numpy as np
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.util import metrics

from reward_service.batching import Batcher, BatchReport, Reply
from reward_service.errors import RewardUnavailable
from reward_service.scorers import make_scorer
from reward_service.settings import RewardApp, RewardSettings

DEPLOYMENT = "reward"
BATCH_BUCKETS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]
SECOND_BUCKETS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0]


class _Metrics:
    def __init__(self, scorer: str) -> None:
        tags = {"scorer": scorer}
        self.images = metrics.Counter("restorl_reward_images", "Images scored", ("scorer",))
        self.batch = metrics.Histogram("restorl_reward_batch_images", "Images a batch", BATCH_BUCKETS, ("scorer",))
        self.seconds = metrics.Histogram("restorl_reward_seconds", "Scorer time a batch", SECOND_BUCKETS, ("scorer",))
        self.failures = metrics.Counter("restorl_reward_failures", "Blocks without rewards", ("scorer", "kind"))
        for metric in (self.images, self.batch, self.seconds, self.failures):
            metric.set_default_tags(tags)

    def observe(self, report: BatchReport) -> None:
        if report.images:
            self.images.inc(report.images)
            self.batch.observe(report.images)
            self.seconds.observe(report.seconds)
        for kind, count in Tally(report.errors).items():
            self.failures.inc(count, {"kind": kind})


@serve.deployment(name=DEPLOYMENT)
class RewardReplica:
    """One process with one scorer; it takes requests once the scorer is built."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = RewardSettings(**settings)
        _limit_threads(self.settings.threads)
        scorer = make_scorer(self.settings.scorer, **self.settings.params)
        _limit_threads(self.settings.threads)  # a scorer may have brought torch in only now
        observe = _Metrics(scorer.name).observe
        self.batcher = Batcher(scorer, self.settings.max_batch, self.settings.max_wait_s, observe)

    async def score(self, images: np.ndarray, budget_s: float) -> Reply:
        """Block uint8 [N, H, W, 3] -> {"scores", "version"} or an error as data, within `budget_s` or too late."""
        return await self.batcher.score(images, budget_s)

    async def describe(self) -> dict[str, Any]:
        """Settings, process id and scorer of this replica."""
        scorer = self.batcher.scorer
        return {"settings": asdict(self.settings), "pid": os.getpid(), "version": scorer.version, "range": scorer.range}


def _limit_threads(count: int) -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)


def _application(settings: RewardSettings) -> serve.Application:
    # The decorator made a Deployment of the class, which its type hint hides.
    deployment = cast(serve.Deployment, RewardReplica).options(
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.queue,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=5,
        ray_actor_options={
            "num_cpus": settings.num_cpus,
            "num_gpus": settings.num_gpus,
            "resources": settings.resources,
        },
    )
    # Serve replaces running replicas when an application is deployed under another version, and draws a random
    # one when none is set; there is no public way left to set it.
    if hasattr(deployment, "_version"):
        deployment._version = settings.code_version
    return deployment.bind(asdict(settings))


def deploy(settings: RewardSettings, name: str = RewardApp.name) -> RewardApp:
    """Start the service, or change a running one of that name; returns once its replicas have built their scorers.

    Needs a connected Ray. Running replicas stay if only `replicas`, `deadline_s` or `retries` changed.

    Raises:
        RewardUnavailable: the replicas don't start; the message holds the reason.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location="Disabled")
    try:
        serve.run(_application(settings), name=name, route_prefix=None)
    except (RuntimeError, RayError, RayServeException) as error:
        raise RewardUnavailable(f"reward service {name!r} did not start: {_reason(name) or error}") from error
    return RewardApp(name, settings.deadline_s, settings.retries)


def scale(app: RewardApp | str, replicas: int) -> None:
    """Change the number of replicas of a running service; the ones that stay go on answering.

    Raises:
        RewardUnavailable: no service of that name.
        ValueError: fewer than one replica.
    """
    name = app if isinstance(app, str) else app.name
    deploy(replace(RewardSettings(**describe(name)["settings"]), replicas=replicas), name)


def describe(app: RewardApp | str, timeout_s: float = 60.0) -> dict[str, Any]:
    """Settings, process id, scorer version and range, of one replica.

    Raises:
        RewardUnavailable: no service of that name, or it doesn't answer.
    """
    name = app if isinstance(app, str) else app.name
    try:
        handle: DeploymentHandle[Any] = serve.get_app_handle(name)
        result: dict[str, Any] = handle.describe.remote().result(timeout_s=timeout_s)
        return result
    except (RayServeException, RayError, TimeoutError) as error:
        raise RewardUnavailable(f"no reward service {name!r} answers: {error}") from error


def status(app: RewardApp | str = RewardApp.name) -> dict[str, Any]:
    """{"app": str, "status": str, "replicas": {state: count}, "message": str}; status NOT_STARTED if there is none."""
    name = app if isinstance(app, str) else app.name
    found = serve.status().applications.get(name)
    if found is None:
        return {"app": name, "status": "NOT_STARTED", "replicas": {}, "message": ""}
    deployment = found.deployments.get(DEPLOYMENT)
    states = {str(getattr(k, "value", k)): v for k, v in deployment.replica_states.items()} if deployment else {}
    message = (deployment.message if deployment else "") or found.message
    return {"app": name, "status": str(found.status.value), "replicas": states, "message": message}


def shutdown(app: RewardApp | str = RewardApp.name) -> None:
    """Stop the service; nothing happens if there is none."""
    serve.delete(app if isinstance(app, str) else app.name)


def _reason(name: str) -> str:
    try:
        return str(status(name)["message"]).strip()
    except (RayError, RayServeException):
        return ""
