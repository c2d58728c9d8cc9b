"""Another number of replicas for a running service; an interrupt in the middle takes it back."""

from __future__ import annotations

import time
from dataclasses import replace

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from reward_service import service
from reward_service.application import application
from reward_service.bounded import bounded
from reward_service.errors import RewardUnavailable
from reward_service.placement import shortage
from reward_service.settings import RewardSettings

BACK_S = 15.0  # for setting it back, tries included
LOOK_S = 1.0


def rescale(name: str, replicas: int | None = None, least: int | None = None, most: int | None = None) -> None:
    """`service.scale`, which an interrupt doesn't leave half done.

    Raises:
        RewardUnavailable, ValueError: as `service.scale`; where the cluster has no place for so many, nothing changes.
        KeyboardInterrupt: it was interrupted; the message says how many replicas the service is wanted to have.
    """
    before = RewardSettings(**service.describe(name, service.CALL_S)["settings"])
    wanted = replace(before, replicas=replicas or before.replicas, min_replicas=least, max_replicas=most)
    _require_place(name, wanted)
    try:
        service.scale(name, replicas, least, most)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"stopped; {_back(name, before, wanted)}") from interrupt


def _require_place(name: str, wanted: RewardSettings) -> None:
    """Before Serve starts as many processes as there is place for, and then is told to end them."""
    try:
        lacking = "" if service.grows() else shortage(wanted, service.nodes())
    except (RayError, TimeoutError) as error:
        raise RewardUnavailable(f"reward service {name!r}: the cluster doesn't answer: {error}") from error
    if lacking:
        raise RewardUnavailable(f"reward service {name!r} has no place: {lacking}")


def _back(name: str, before: RewardSettings, wanted: RewardSettings) -> str:
    """Want what was wanted before; says what is wanted now."""
    ends = time.monotonic() + BACK_S
    try:
        while (left := ends - time.monotonic()) > 0:
            bounded(lambda: _want(name, before), left, "scaling back")
            time.sleep(LOOK_S)  # the interrupted call may reach Serve only now
            found = RewardSettings(**service.describe(name, LOOK_S + max(ends - time.monotonic(), 0))["settings"])
            if amount(found) == amount(before):
                return f"reward service {name!r} is wanted as before, with {amount(before)}"
    except (RewardUnavailable, RayError, RayServeException, RuntimeError, TimeoutError, KeyboardInterrupt):
        pass  # what was interrupted is told, and what may be left of it
    return (
        f"reward service {name!r} had {amount(before)} and may now be wanted with {amount(wanted)}: look at "
        f"`restorl reward status {name}`, and scale it again"
    )


def _want(name: str, settings: RewardSettings) -> None:
    target = serve.RunTarget(application(settings), name=name, route_prefix=None)
    serve.run_many([target], wait_for_applications_running=False)


def amount(settings: RewardSettings) -> str:
    """How many replicas are wanted, in words."""
    if settings.autoscales:
        return f"{settings.min_replicas} to {settings.max_replicas} replicas"
    return f"{settings.replicas} replica{'s' * (settings.replicas > 1)}"
