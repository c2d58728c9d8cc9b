"""The Ray Serve application around a scorer, reached by handles only (no HTTP proxy)."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, cast

import numpy as np
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.util import metrics

from reward_service import ownership
from reward_service.batching import Batcher, BatchReport, Reply
from reward_service.bounded import bounded
from reward_service.errors import RewardUnavailable
from reward_service.listening import listen_on_node_address
from reward_service.placement import shortage, wanted_by
from reward_service.scorers import make_scorer
from reward_service.settings import RewardApp, RewardSettings, run_of_app

DEPLOYMENT = "reward"
CALL_S = 30.0  # for a question to Serve or to the cluster
POLL_S = 0.2
PLACE_GRACE_S = 5.0  # nodes of a cluster that is just starting may still come
OWNER_LOOK_S = 10.0
_ERROR_LINE = re.compile(r"^\s*[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit): ?")
BATCH_BUCKETS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]
SECOND_BUCKETS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0]


class _Metrics:
    def __init__(self, scorer: str, run: str) -> None:
        tags = ("run", "scorer")
        self.images = metrics.Counter("restorl_reward_images", "Images scored", tags)
        self.batch = metrics.Histogram("restorl_reward_batch_images", "Images a batch", BATCH_BUCKETS, tags)
        self.seconds = metrics.Histogram("restorl_reward_seconds", "Scorer time a batch", SECOND_BUCKETS, tags)
        self.failures = metrics.Counter("restorl_reward_failures", "Blocks without rewards", (*tags, "kind"))
        for metric in (self.images, self.batch, self.seconds, self.failures):
            metric.set_default_tags({"run": run, "scorer": scorer})

    def observe(self, report: BatchReport) -> None:
        if report.images:
            self.images.inc(report.images)
            self.batch.observe(report.images)
            self.seconds.observe(report.seconds)
        for kind, count in Tally(report.errors).items():
            self.failures.inc(count, {"kind": kind})


@serve.deployment(name=DEPLOYMENT)
class RewardReplica:
    """One process with one scorer; it takes requests once the scorer is built.

    It deletes its application when the job that owns it has ended without doing so.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        listen_on_node_address()
        self.settings = RewardSettings(**settings)
        self.device = "cuda" if self.settings.num_gpus > 0 else "cpu"  # Ray shows a replica its own GPUs only
        _limit_threads(self.settings.threads)
        scorer = make_scorer(self.settings.scorer, self.device, **self.settings.params)
        _limit_threads(self.settings.threads)  # a scorer may have brought torch in only now
        app = serve.get_replica_context().app_name
        observe = _Metrics(scorer.name, run_of_app(app)).observe
        self.batcher = Batcher(scorer, self.settings.max_batch, self.settings.max_wait_s, observe)
        threading.Thread(target=_end_with_owner, args=(app,), name="owner", daemon=True).start()

    async def score(self, images: np.ndarray, budget_s: float) -> Reply:
        """Block uint8 [N, H, W, 3] -> {"scores", "scorer", "version"} or an error as data, within `budget_s`."""
        return await self.batcher.score(images, budget_s)

    async def describe(self) -> dict[str, Any]:
        """Settings, process id, device and scorer of this replica."""
        scorer = self.batcher.scorer
        return {
            "settings": asdict(self.settings),
            "pid": os.getpid(),
            "device": self.device,
            "scorer": scorer.name,
            "version": scorer.version,
            "range": scorer.range,
        }


def _end_with_owner(name: str) -> None:
    """Delete the application once its owner is gone at two looks in a row: the second spares one that changes hands."""
    before: tuple[bool, ownership.Owner | None] = (False, None)
    while True:
        time.sleep(OWNER_LOOK_S)
        try:
            owner = ownership.owner_of(name)
            dead = owner is None or not ownership.is_alive(owner)
            if dead and before == (True, owner):
                logging.getLogger(__name__).warning("%s: its owner is gone (%s); deleting it", name, owner)
                serve.delete(name, _blocking=False)
            before = (dead, owner)
        except (RayError, RayServeException, RuntimeError):  # the controller or the store is away for a moment
            continue


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
        health_check_timeout_s=settings.health_check_timeout_s,
        graceful_shutdown_timeout_s=5,
        max_constructor_retry_count=1,  # what a constructor refuses once, it refuses again
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


def deploy(settings: RewardSettings, name: str) -> RewardApp:
    """Start the service, or change a running one of this job; returns once its replicas have built their scorers.

    Needs a connected Ray. Running replicas stay if only settings changed that they don't see (`code_version`).
    An interrupt at any time takes back what was begun.

    Raises:
        RewardUnavailable: the name belongs to another job that runs, or the replicas don't start within
            `start_timeout_s`; the message holds the reason.
    """
    try:
        bounded(lambda: ownership.claim(name), CALL_S, "asking whose the service is")
        app = _put(settings, name)
    except RewardUnavailable:
        _take_back(name)
        raise
    except (RayError, RayServeException, RuntimeError, TimeoutError) as error:
        _take_back(name)
        raise RewardUnavailable(f"reward service {name!r} did not start: {error}") from error
    except BaseException:
        _take_back(name)
        raise
    return app


def _put(settings: RewardSettings, name: str) -> RewardApp:
    """Give the application to Serve and wait until all replicas run."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ends = time.monotonic() + settings.start_timeout_s
    target = serve.RunTarget(_application(settings), name=name, route_prefix=None)

    def begin() -> None:
        # Where Serve runs already, for somebody else's applications too, it stays as it is.
        serve.start(proxy_location="Disabled")
        serve.run_many([target], wait_for_applications_running=False)

    bounded(begin, settings.start_timeout_s, "starting Ray Serve")
    _wait_until_running(settings, name, ends)
    found = describe(name, max(ends - time.monotonic(), CALL_S))
    return RewardApp(name, found["scorer"], found["version"], settings.deadline_s, settings.retries)


def _wait_until_running(settings: RewardSettings, name: str, ends: float) -> None:
    """Raises RewardUnavailable as soon as it is clear that they never will, or at `ends`."""
    began, seen = time.monotonic(), dict[str, Any]()
    while True:
        try:
            seen = status(name)
        except RewardUnavailable:  # the controller is away for a moment
            if time.monotonic() > ends:
                raise
        state = seen.get("status")
        if state == "RUNNING":
            return
        if state == "DEPLOY_FAILED":
            raise RewardUnavailable(f"reward service {name!r} did not start: {_cause(seen['message'])}")
        if state == "NOT_STARTED":
            raise RewardUnavailable(f"reward service {name!r} was deleted by another process while it started")
        waited = time.monotonic() - began
        if waited > PLACE_GRACE_S and not _grows():
            lacking = shortage(settings, _nodes())
            if lacking:
                raise RewardUnavailable(f"reward service {name!r} has no place: {lacking}")
        if time.monotonic() > ends:
            raise RewardUnavailable(_too_late(settings, name, seen))
        time.sleep(POLL_S)


def _too_late(settings: RewardSettings, name: str, seen: Mapping[str, Any]) -> str:
    replicas = ", ".join(f"{count} {state.lower()}" for state, count in seen.get("replicas", {}).items())
    free = ", ".join(f"{v:g} {k}" for k, v in _free().items() if k in wanted_by(settings))
    return (
        f"reward service {name!r} did not start within reward.start_timeout_s={settings.start_timeout_s:g} s: "
        f"replicas: {replicas or 'none'}; each wants {wanted_by(settings) or 'nothing'}, free in the cluster: "
        f"{free or 'none of it'}. {seen.get('message', '')}".strip()
    )


def scale(app: RewardApp | str, replicas: int) -> None:
    """Change the number of replicas of a running service, whosever it is; the ones that stay go on answering.

    Raises:
        RewardUnavailable: no service of that name, or the new replicas don't start: the old ones go on, and those
            that could not start are given up.
        ValueError: fewer than one replica.
    """
    name = app if isinstance(app, str) else app.name
    before = RewardSettings(**describe(name)["settings"])
    running = sum(status(name)["replicas"].values())
    try:
        _put(replace(before, replicas=replicas), name)
    except (RewardUnavailable, RayError, RayServeException, RuntimeError, TimeoutError) as error:
        # Else the new ones would stay wanted, and take the place as soon as there is some.
        back = serve.RunTarget(_application(replace(before, replicas=max(running, 1))), name=name, route_prefix=None)
        with contextlib.suppress(RewardUnavailable, RayError, RayServeException, RuntimeError, TimeoutError):
            bounded(lambda: serve.run_many([back], wait_for_applications_running=False), CALL_S, "scaling back")
        if isinstance(error, RewardUnavailable):
            raise
        raise RewardUnavailable(f"reward service {name!r} was not scaled: {error}") from error


def describe(app: RewardApp | str, timeout_s: float = 60.0) -> dict[str, Any]:
    """Settings, process id, device, scorer, its version and range, of one replica.

    Raises:
        RewardUnavailable: no service of that name, or it doesn't answer.
    """
    name = app if isinstance(app, str) else app.name
    ends = time.monotonic() + timeout_s
    try:
        handle: DeploymentHandle[Any] = bounded(lambda: serve.get_app_handle(name), timeout_s, "finding the service")
        result: dict[str, Any] = handle.describe.remote().result(timeout_s=max(ends - time.monotonic(), 0.1))
        return result
    except (RayServeException, RayError, TimeoutError) as error:
        raise RewardUnavailable(f"no reward service {name!r} answers: {error}") from error


def status(app: RewardApp | str, timeout_s: float = 30.0) -> dict[str, Any]:
    """{"app": str, "status": str, "replicas": {state: count}, "message": str}; status NOT_STARTED if there is none.

    Raises:
        RewardUnavailable: Serve doesn't answer.
    """
    name = app if isinstance(app, str) else app.name
    try:
        found = bounded(serve.status, timeout_s, "the status of Ray Serve").applications.get(name)
    except (RayServeException, RayError, TimeoutError) as error:
        raise RewardUnavailable(f"reward service {name!r}: Ray Serve doesn't answer: {error}") from error
    if found is None:
        return {"app": name, "status": "NOT_STARTED", "replicas": {}, "message": ""}
    deployment = found.deployments.get(DEPLOYMENT)
    states = {str(getattr(k, "value", k)): v for k, v in deployment.replica_states.items()} if deployment else {}
    message = (deployment.message if deployment else "") or found.message
    return {"app": name, "status": str(found.status.value), "replicas": states, "message": message}


def shutdown(app: RewardApp | str, timeout_s: float = 60.0) -> None:
    """Stop the service if it is this job's; nothing happens if there is none, or if it is another's.

    Ray Serve itself stays: other applications may run in it.

    Raises:
        RewardUnavailable: it doesn't stop in time.
    """
    name = app if isinstance(app, str) else app.name

    def end() -> None:
        if ownership.is_mine(name):
            try:
                serve.delete(name)
            finally:
                ownership.release(name)  # what is left then ends itself, as nobody's

    try:
        bounded(end, timeout_s, "stopping the service")
    except (RayServeException, RayError, TimeoutError) as error:
        raise RewardUnavailable(f"reward service {name!r} did not stop: {error}") from error


def _take_back(name: str) -> None:
    """After a start that failed or was interrupted; the first error is the one to tell."""
    with contextlib.suppress(RewardUnavailable):
        shutdown(name, timeout_s=20.0)


def _grows() -> bool:
    """Whether an autoscaler could add nodes."""
    return _cluster(lambda: ray._private.state.state.get_cluster_config()) is not None


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in _cluster(ray.nodes) if node["Alive"]]


def _free() -> dict[str, float]:
    return dict(_cluster(ray.available_resources))


def _cluster(question: Callable[[], Any]) -> Any:
    return bounded(question, CALL_S, "asking about the cluster")


def _cause(message: str) -> str:
    """Of a constructor's stack trace the line with the error; else the whole message."""
    found = [line.strip() for line in message.splitlines() if _ERROR_LINE.match(line)]
    return found[-1] if found else message.strip() or "no reason given; see serve/ among Ray's logs"
