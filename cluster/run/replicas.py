"""Where the reward replicas of a run are, as Ray's head has them; asked beside the run, which waits for no answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from reward_service.bounded import in_thread

EVERY_S = 15.0
_NAME = "SERVE_REPLICA::"  # of the actor that a replica is, before its application and deployment

Actors = Iterable[dict[str, Any]]


class Replicas:
    """One question at a time is out; one that fails, or isn't answered, leaves what was known, with its age."""

    def __init__(self, ask: Callable[[], Actors] | None = None, every_s: float = EVERY_S) -> None:
        self._ask, self._every_s = ask or _living_actors, every_s
        self._asked = -every_s
        self._out: Future[list[dict[str, Any]]] | None = None
        self._rows: list[dict[str, Any]] = []

    def look(self, apps: Mapping[str, str]) -> list[dict[str, Any]]:
        """For live.json: the replicas that were alive at the last answer.

        Args:
            apps: name of an application -> the term of the reward that it serves.
        """
        if self._out is not None and self._out.done():
            out, self._out = self._out, None
            if out.exception() is None:
                self._rows = out.result()
        if self._out is None and time.monotonic() - self._asked >= self._every_s:
            self._asked = time.monotonic()
            known = dict(apps)
            self._out = in_thread(lambda: list(_rows(self._ask(), known, time.time())), "replicas")
        return self._rows


def _rows(actors: Actors, apps: Mapping[str, str], heard: float) -> Iterable[dict[str, Any]]:
    for actor in actors:
        name = str(actor.get("Name"))
        app = name.removeprefix(_NAME).split("#")[0]
        if name.startswith(_NAME) and app in apps:
            where = f"{actor['Address']['IPAddress']} pid {actor['Pid']}"
            yield {
                "role": "replica",
                "name": f"replica of {apps[app]}",
                "where": where,
                "doing": "serving",
                "heard": heard,
            }


def _living_actors() -> Actors:
    """Raises whatever Ray does if it isn't there (any more); it is never started by this."""
    from ray._private.state import actors  # its public like needs the dashboard, which a run may have switched off

    found: Actors = actors(actor_state_name="ALIVE").values()
    return found
