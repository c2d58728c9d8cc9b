"""The Ray Serve application around a scorer, reached by handles only (no HTTP proxy): start, change, look, end."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import ray
from ray import serve
from ray.exceptions import ActorAlreadyExistsError, RayActorError, RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from reward_service import ownership
from reward_service.application import application
from reward_service.bounded import bounded
from reward_service.errors import RewardUnavailable
from reward_service.placement import shortage, wanted_by
from reward_service.replica import DEPLOYMENT
from reward_service.settings import RewardApp, RewardSettings

CALL_S = 30.0  # for a question to Serve or to the cluster
POLL_S = 0.2
START_ATTEMPTS = 4  # of Ray Serve
PLACE_GRACE_S = 5.0  # nodes of a cluster that is just starting may still come
FAILURES = (RewardUnavailable, RayError, RayServeException, RuntimeError, TimeoutError)
_STARTING = threading.Lock()  # serve.start isn't thread-safe
_ERROR_LINE = re.compile(r"^\s*[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit): ?")


def deploy(
    settings: RewardSettings, name: str, stands_alone: bool = False, given_up: threading.Event | None = None
) -> RewardApp:
    """Start the service, or change a running one of this job; returns once its replicas have built their scorers.

    Needs a connected Ray. Running replicas stay if only settings changed that they don't see (`code_version`).
    A start that fails, or is interrupted, is taken back. So is a change: the service goes on with the settings it had,
    after the time that replaced replicas take to start again; requests wait for them meanwhile.

    Args:
        stands_alone: the service belongs to no job and stays until it is stopped (`standing`).
        given_up: once it is set, what was begun is taken back; for calls in other threads than the main one.

    Raises:
        RewardUnavailable: the name belongs to another job that runs, or the replicas don't start within
            `start_timeout_s`; the message holds the reason, and what became of a running service.
    """
    given_up = given_up or threading.Event()
    begun, stood, former = False, False, None
    try:
        before = bounded(lambda: ownership.owner_of(name), CALL_S, "asking whose the service is")
        stood = before is not None and before.stands_alone  # and stays if it can't be changed
        begun = True
        bounded(lambda: ownership.claim(name, stands_alone), CALL_S, "asking whose the service is")
        if before is not None and (stood or before.job == ownership.this_job().job):
            former = _running(name)
        if former is not None and not grows() and (lacking := shortage(settings, nodes())):
            raise RewardUnavailable(f"reward service {name!r} has no place: {lacking}")  # before a replica has gone
        return _put(settings, name, given_up)
    except FAILURES as error:
        reason = (
            str(error) if isinstance(error, RewardUnavailable) else f"reward service {name!r} did not start: {error}"
        )
        if former is None and begun:
            _take_back(name, stands_alone, stood)
        elif former is not None:
            reason += "; " + _put_back(former, name, stands_alone, wait=not given_up.is_set())
        raise RewardUnavailable(reason) from error
    except BaseException:
        if former is None and begun:
            _take_back(name, stands_alone, stood)
        elif former is not None:
            _put_back(former, name, stands_alone, wait=False)
        raise


def _start_serve() -> None:
    """Where Serve runs already, for somebody else's applications too, it stays as it is."""
    with _STARTING:
        for left in range(START_ATTEMPTS - 1, -1, -1):
            try:
                serve.start(proxy_location="Disabled")
                return
            except (ActorAlreadyExistsError, RayActorError):  # another driver starts it, too
                if not left:
                    raise
            time.sleep(POLL_S * 5)


def _put(settings: RewardSettings, name: str, given_up: threading.Event | None = None) -> RewardApp:
    """Give the application to Serve and wait until all replicas run, or nobody wants it any more."""
    given_up = given_up or threading.Event()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ends = time.monotonic() + settings.start_timeout_s

    left = threading.Event()

    def begin() -> None:
        _start_serve()
        if not (given_up.is_set() or left.is_set()):
            _hand_over(settings, name)

    try:
        bounded(begin, settings.start_timeout_s, "starting Ray Serve")
    except BaseException:
        left.set()  # it goes on in its thread, and what is put back must be the last that Serve is given
        raise
    _wait_until_running(settings, name, ends, given_up)
    found = describe(name, max(ends - time.monotonic(), CALL_S))
    return RewardApp(name, found["scorer"], found["version"], settings.deadline_s, settings.retries, settings.max_batch)


def _hand_over(settings: RewardSettings, name: str) -> None:
    target = serve.RunTarget(application(settings), name=name, route_prefix=None)
    serve.run_many([target], wait_for_applications_running=False)


def _wait_until_running(settings: RewardSettings, name: str, ends: float, given_up: threading.Event) -> None:
    """Raises RewardUnavailable as soon as it is clear that they never will, or at `ends`."""
    began, seen = time.monotonic(), dict[str, Any]()
    while True:
        if given_up.is_set():
            raise RewardUnavailable(f"reward service {name!r} is not wanted any more")
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
        if waited > PLACE_GRACE_S and not grows():
            lacking = shortage(settings, nodes())
            if lacking:
                raise RewardUnavailable(f"reward service {name!r} has no place: {lacking}")
        if time.monotonic() > ends:
            raise RewardUnavailable(_too_late(settings, name, seen))
        given_up.wait(POLL_S)


def _too_late(settings: RewardSettings, name: str, seen: Mapping[str, Any]) -> str:
    replicas = ", ".join(f"{count} {state.lower()}" for state, count in seen.get("replicas", {}).items())
    free = ", ".join(f"{v:g} {k}" for k, v in _free().items() if k in wanted_by(settings))
    return (
        f"reward service {name!r} did not start within reward.start_timeout_s={settings.start_timeout_s:g} s: "
        f"replicas: {replicas or 'none'}; each wants {wanted_by(settings) or 'nothing'}, free in the cluster: "
        f"{free or 'none of it'}. {seen.get('message', '')}".strip()
    )


def scale(app: RewardApp | str, replicas: int | None = None, least: int | None = None, most: int | None = None) -> None:
    """Change the number of replicas of a running service, whosever it is; the ones that stay go on answering.

    Args:
        replicas: so many, from now on; or
        least, most: as many as Ray Serve finds right between them.

    Raises:
        RewardUnavailable: no service of that name, or the new replicas don't start: the old ones go on, and those
            that could not start are given up.
        ValueError: fewer than one replica, or neither a number nor two bounds.
    """
    if (replicas is None) == (least is None and most is None):
        raise ValueError(f"replicas={replicas}, least={least}, most={most}: give a number, or two bounds")
    name = app if isinstance(app, str) else app.name
    before = RewardSettings(**describe(name)["settings"])
    running = sum(status(name)["replicas"].values())
    wanted = replace(before, replicas=replicas or before.replicas, min_replicas=least, max_replicas=most)
    try:
        _put(wanted, name)
    except FAILURES as error:
        # Else the new ones would stay wanted, and take the place as soon as there is some.
        old = before if before.autoscales else replace(before, replicas=max(running, 1))
        reason = (
            str(error) if isinstance(error, RewardUnavailable) else f"reward service {name!r} was not scaled: {error}"
        )
        try:
            bounded(lambda: _hand_over(old, name), CALL_S, "scaling back")
        except FAILURES as back:
            reason += f"; nor scaled back: {back}. Its replicas go on, others may start later: scale it again"
        raise RewardUnavailable(reason) from error


def describe(app: RewardApp | str, timeout_s: float = 60.0) -> dict[str, Any]:
    """Settings, process id, device, scorer, its version and range, and figures, of one replica.

    Raises:
        RewardUnavailable: no service of that name, or it doesn't answer.
    """
    name = app if isinstance(app, str) else app.name
    ends = time.monotonic() + timeout_s
    try:
        result: dict[str, Any] = _handle(name, timeout_s).describe.remote().result(timeout_s=_left(ends))
        return result
    except (RayServeException, RayError, TimeoutError) as error:
        raise RewardUnavailable(f"no reward service {name!r} answers: {error}") from error


def describe_all(app: RewardApp | str, timeout_s: float = 60.0) -> list[dict[str, Any]]:
    """As `describe`, of every replica that answers.

    Raises:
        RewardUnavailable: none does.
    """
    name = app if isinstance(app, str) else app.name
    ends = time.monotonic() + timeout_s
    try:
        asked = _handle(name, timeout_s).broadcast("describe")
        found = asked.results(timeout_s=_left(ends), return_exceptions=True)
    except (RayServeException, RayError, TimeoutError) as error:
        raise RewardUnavailable(f"no reward service {name!r} answers: {error}") from error
    answers = [each for each in found if isinstance(each, dict)]
    if not answers:
        raise RewardUnavailable(f"no replica of reward service {name!r} answers: {found}")
    return answers


def _handle(name: str, timeout_s: float) -> DeploymentHandle[Any]:
    return bounded(lambda: serve.get_app_handle(name), timeout_s, "finding the service")


def _left(ends: float) -> float:
    return max(ends - time.monotonic(), 0.1)


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
    try:
        mine = bounded(lambda: ownership.is_mine(name), timeout_s, "asking whose the service is")
    except (RayError, TimeoutError) as error:
        raise RewardUnavailable(f"reward service {name!r} did not stop: {error}") from error
    if mine:
        end(name, timeout_s)


def end(name: str, timeout_s: float = 60.0) -> None:
    """Delete the application, whosever it is, and forget its owner.

    Raises:
        RewardUnavailable: it doesn't stop in time.
    """

    def delete() -> None:
        try:
            serve.delete(name)
        finally:
            ownership.forget(name)  # what is left then ends itself, as nobody's

    try:
        bounded(delete, timeout_s, "stopping the service")
    except (RayServeException, RayError, TimeoutError) as error:
        raise RewardUnavailable(f"reward service {name!r} did not stop: {error}") from error


def _running(name: str) -> RewardSettings | None:
    """What the service of that name runs with; None if none answers, so that there is nothing to go back to."""
    try:
        return RewardSettings(**describe(name, CALL_S)["settings"])
    except RewardUnavailable:
        return None


def _put_back(former: RewardSettings, name: str, stands_alone: bool, wait: bool) -> str:
    """After a change that failed: let the service go on as before; returns what became of it.

    Args:
        wait: until it is known that it does, which takes as long as its replicas take to start.
    """
    try:
        if wait:
            _put(former, name)
        else:
            bounded(lambda: _hand_over(former, name), CALL_S, "changing the service back")
    except FAILURES as error:
        why = f"the settings it had before can't be put back: {error}"
        if stands_alone:
            return f"{why}; it is as the change left it: start it again"
        _take_back(name, stands_alone=False, stood=False)
        return f"{why}; so it was ended: start it again"
    return "it goes on with the settings it had before"


def _take_back(name: str, stands_alone: bool, stood: bool) -> None:
    """After a start that failed or was interrupted; the first error is the one to tell."""
    with contextlib.suppress(RewardUnavailable, RayError, TimeoutError):
        if not stands_alone:
            shutdown(name, timeout_s=20.0)
        elif not stood and (owner := bounded(lambda: ownership.owner_of(name), 20.0, "asking")) and owner.stands_alone:
            end(name, timeout_s=20.0)


def grows() -> bool:
    """Whether an autoscaler could add nodes."""
    return _cluster(lambda: ray._private.state.state.get_cluster_config()) is not None


def nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in _cluster(ray.nodes) if node["Alive"]]


def _free() -> dict[str, float]:
    return dict(_cluster(ray.available_resources))


def _cluster(question: Callable[[], Any]) -> Any:
    return bounded(question, CALL_S, "asking about the cluster")


def _cause(message: str) -> str:
    """Of a constructor's stack trace the line with the error; else the whole message."""
    found = [line.strip() for line in message.splitlines() if _ERROR_LINE.match(line)]
    return found[-1] if found else message.strip() or "no reason given; see serve/ among Ray's logs"
