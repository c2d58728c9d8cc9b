"""Services that stand alone on a cluster: nobody's run, used by several, there until they are stopped."""

from __future__ import annotations

import time
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from reward_service import ownership
from reward_service.bounded import bounded
from reward_service.errors import RewardUnavailable, WrongScorer
from reward_service.figures import merged
from reward_service.replica import DEPLOYMENT
from reward_service.service import CALL_S, deploy, describe, describe_all, end, status
from reward_service.settings import RewardApp, RewardSettings, check_name


def stand(settings: RewardSettings, name: str) -> RewardApp:
    """Start a service that outlives this process, or change a running one: its replicas are then replaced one by one.

    Raises:
        ValueError: no name for it.
        RewardUnavailable: the name belongs to a run, or the replicas don't start; a change that failed is taken back.
    """
    check_name(name)
    return deploy(settings, name, stands_alone=True)


def attach(
    name: str,
    deadline_s: float = RewardSettings.deadline_s,
    retries: int = RewardSettings.retries,
    scorer: str | None = None,
) -> RewardApp:
    """The running service of that name, to be asked by a `RewardClient`; its scorer and version are those of now.

    Args:
        deadline_s, retries: of the requests made by it.
        scorer: that it must serve, by the name in its settings.

    Raises:
        RewardUnavailable: no service of that name, or it doesn't answer.
        WrongScorer: it serves another.
    """
    found = describe(name, CALL_S)
    settings = RewardSettings(**found["settings"])
    if scorer is not None and settings.scorer != scorer:
        raise WrongScorer(
            f"reward service {name!r} serves {settings.scorer}, not {scorer}: name the service of {scorer}, or set "
            f"the scorer to {settings.scorer}"
        )
    return RewardApp(name, found["scorer"], found["version"], deadline_s, retries, settings.max_batch)


def stop(name: str, timeout_s: float = 60.0) -> None:
    """End a service that stands alone, whoever started it.

    Raises:
        RewardUnavailable: there is none of that name, it is a run's, or it doesn't stop in time.
    """
    owner = _owner_of(name, CALL_S)
    if owner is None:
        there = ", ".join(names()) or "none"
        raise RewardUnavailable(f"no reward service {name!r} to stop; there are: {there}")
    if not owner.stands_alone:
        raise RewardUnavailable(
            f"reward service {name!r} is that of a run ({owner.who}) and ends with it; stop the run"
        )
    end(name, timeout_s)


def names() -> list[str]:
    """All reward services of the cluster, those of runs included.

    Raises:
        RewardUnavailable: Serve doesn't answer.
    """
    try:
        found = bounded(serve.status, CALL_S, "the status of Ray Serve").applications
    except (RayServeException, RayError, TimeoutError) as error:
        raise RewardUnavailable(f"Ray Serve doesn't answer: {error}") from error
    ends = time.monotonic() + CALL_S
    ours = (name for name, app in found.items() if DEPLOYMENT in app.deployments)
    return sorted(name for name in ours if _owner_of(name, ends - time.monotonic()))


def overview(name: str) -> dict[str, Any]:
    """What a service is and does: `status`, its owner, and if it answers scorer, version, settings, images under way,
    limits by memory and the figures of all replicas (`figures.merged`).

    Raises:
        RewardUnavailable: Serve doesn't answer.
    """
    owner = _owner_of(name, CALL_S)
    found = {**status(name), "owner": None if owner is None else owner.who}
    found["stands_alone"] = owner is not None and owner.stands_alone
    try:
        replicas = describe_all(name, CALL_S)
    except RewardUnavailable as error:
        return {**found, "message": found["message"] or str(error)}
    versions = sorted({f"{r['scorer']} {r['version']}" for r in replicas})
    return {
        **found,
        "scorer": ", ".join(versions),
        "settings": replicas[0]["settings"],
        "ongoing": sum(r["ongoing"] for r in replicas),
        "limits": {size: limit for r in replicas for size, limit in r["limits"].items()},
        **merged(r["figures"] for r in replicas),
    }


def _owner_of(name: str, timeout_s: float) -> ownership.Owner | None:
    """Raises RewardUnavailable: the cluster doesn't answer."""
    try:
        return bounded(lambda: ownership.owner_of(name), timeout_s, "asking whose the service is")
    except (RayError, TimeoutError) as error:
        raise RewardUnavailable(f"reward service {name!r}: the cluster doesn't answer: {error}") from error
