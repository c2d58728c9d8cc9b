"""The number of a run's actors while it goes on: what somebody wants of it is done, and what lacks is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from cluster.run.actor_pool import Resized, Standing
from cluster.run.wishes import Wish

PATIENCE_S = 15.0  # that actors may be away without a word: a process that died is back by then


class Pool(Protocol):
    """The part of `ActorPool` that counts here."""

    def standing(self) -> Standing: ...

    def resize(self, count: int) -> Resized: ...


class Wishes(Protocol):
    """The part of `wishes.Desk` that counts here."""

    def wish(self) -> Wish | None: ...

    def show(self, wanted: int, there: int, leaving: int) -> None: ...

    def answer(self, wish: Wish, told: str) -> None: ...


class CrewWatch:
    """Carries out wishes, and tells once who lacks and once that all are there.

    Args:
        fed: actors that have work at once, at most.
        each: what Ray reserves for an actor.
        told: gets a line for the user.
    """

    def __init__(
        self,
        pool: Pool,
        desk: Wishes,
        fed: int,
        each: Mapping[str, float],
        told: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool, self.desk, self.fed, self.each, self.told, self.clock = pool, desk, fed, each, told, clock
        self._lacking, self._since, self._known = 0, clock(), 0
        self._trouble = ""

    def tend(self) -> None:
        """One look, which waits for nothing."""
        standing = self.pool.standing()
        self.desk.show(standing.wanted, standing.there, standing.leaving)
        while (wish := self.desk.wish()) is not None:
            text = self._resize(wish.count)
            self.told(f"actors: {text}")
            standing = self.pool.standing()
            self.desk.show(standing.wanted, standing.there, standing.leaving)
            self.desk.answer(wish, text)
        self._tell(standing)

    def _resize(self, count: int) -> str:
        try:
            done = self.pool.resize(count)
        except ValueError as error:
            return str(error)
        if done.before == done.wanted:
            return f"{count}, as before"
        parts = {"start": done.started, "stay that were about to leave": done.kept, "have ended": done.ended}
        parts["end after the work they have"] = done.leaving
        what = ", ".join(f"{n} {does}" for does, n in parts.items() if n)
        more = f"; no more than {self.fed} have work at once" if done.wanted > max(self.fed, done.before) else ""
        return f"{count} in place of {done.before}: {what}{more}"

    def _tell(self, standing: Standing) -> None:
        now, lacking = self.clock(), standing.wanted - standing.there
        if lacking != self._lacking:
            self._lacking, self._since = lacking, now
        if standing.trouble and standing.trouble != self._trouble:
            self.told(f"an actor can't be built, and is tried again: {standing.trouble}")
        self._trouble = standing.trouble or self._trouble
        if lacking == self._known or (lacking and now - self._since < PATIENCE_S):
            return
        self._known = lacking
        if lacking:
            each = ", ".join(f"{amount:g} {name}" for name, amount in self.each.items()) or "nothing"
            self.told(
                f"{standing.there} of {standing.wanted} actors are there; the others start, or wait for a place, with "
                f"{each} each: add nodes, or ask for fewer by `restorl actors scale`. The run goes on meanwhile"
            )
        else:
            self.told(f"all {standing.wanted} actors are there")
