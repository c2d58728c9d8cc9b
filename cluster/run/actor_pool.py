"""The rollout actors as the driver sees them: who is free, what is out, what came of it; no call waits for ever."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import ray

from cluster.jobs import ClusterError
from cluster.run.background import LOOK_S, raise_failed
from cluster.run.failures import SLOW, Failure, Kind, classify


@dataclass(frozen=True)
class Call:
    """A task (a `WorkItem` or an `EvaluationPart`) that an actor has since `began`."""

    actor: int
    task: Any
    began: float


class ActorPool:
    """Actors of one kind, each with a number of slots.

    A dead actor comes back by Ray (max_restarts), or by us where Ray gives it up (its constructor raised after a node
    was lost); an actor that answers no call for `call_timeout_s` is ended and comes back, too.

    Args:
        make: makes an actor; called again to replace one that Ray has given up.
        slots: calls that an actor may have at once.
    """

    def __init__(self, make: Callable[[], Any], count: int, slots: int, call_timeout_s: float) -> None:
        self.make, self.slots, self.call_timeout_s = make, slots, call_timeout_s
        self.actors = [make() for _ in range(count)]
        self.calls: dict[ray.ObjectRef, Call] = {}
        self.resting = [0.0] * count  # not before, on the monotonic clock
        self.failures = [0] * count  # in a row

    def wait_ready(self, timeout_s: float, beside: Iterable[Future[Any]] = ()) -> None:
        """Wait until all have built themselves.

        Args:
            beside: what starts beside them.

        Raises:
            ClusterError: not all of them within `timeout_s`, or one can't be built.
            Whatever something beside them has failed with.
        """
        deadline = time.monotonic() + timeout_s
        asked = {actor.ready.remote(): actor for actor in self.actors}
        while asked and (left := deadline - time.monotonic()) > 0:
            raise_failed(beside)
            for ref in ray.wait(list(asked), num_returns=1, timeout=min(left, LOOK_S))[0]:
                actor = asked.pop(ref)
                try:
                    ray.get(ref, timeout=60)
                except ray.exceptions.RayActorError as error:
                    if _given_up(error):
                        cause = str(error).strip().splitlines()[-1]
                        raise ClusterError(f"a rollout actor can't be built: {cause}") from error
                    time.sleep(0.2)  # its process died while it started: Ray starts it again
                    asked[actor.ready.remote()] = actor
        if asked:
            raise ClusterError(
                f"{len(asked)} of {len(self.actors)} rollout actors did not start within start_timeout_s={timeout_s:g} "
                f"s: free are {_shown(ray.available_resources())}; lower actors.count or what each reserves, or raise "
                "start_timeout_s if the model takes so long to load"
            )

    def free(self, least_free: int = 1) -> list[int]:
        """Actors with at least `least_free` free slots, the least busy first, one entry a free slot."""
        busy = [0] * len(self.actors)
        for call in self.calls.values():
            busy[call.actor] += 1
        now = time.monotonic()
        able = [a for a in range(len(self.actors)) if self.resting[a] <= now and self.slots - busy[a] >= least_free]
        return [a for level in range(self.slots) for a in able if busy[a] <= level]

    def tasks(self, kind: type) -> list[tuple[int, Any]]:
        """(actor, task) of every call of this kind that is out."""
        return [(call.actor, call.task) for call in self.calls.values() if isinstance(call.task, kind)]

    def call(self, actor: int, method: str, task: Any, *arguments: Any) -> None:
        ref = getattr(self.actors[actor], method).remote(*arguments)
        self.calls[ref] = Call(actor, task, time.monotonic())

    def finished(self, timeout_s: float) -> list[ray.ObjectRef]:
        """Calls that have ended, well or badly, within `timeout_s`; those that took too long end badly."""
        refs = list(self.calls)
        if not refs:
            time.sleep(timeout_s)
            return []
        ready: Sequence[ray.ObjectRef] = ray.wait(refs, num_returns=1, timeout=timeout_s)[0]
        if ready:
            ready = ray.wait(refs, num_returns=len(refs), timeout=0)[0]
        limit = time.monotonic() - self.call_timeout_s
        late = [ref for ref, call in self.calls.items() if call.began < limit and ref not in ready]
        for actor in {self.calls[ref].actor for ref in late}:
            with contextlib.suppress(Exception):  # it may be gone already
                ray.kill(self.actors[actor], no_restart=False)
        return [*ready, *late]

    def take(self, ref: ray.ObjectRef) -> tuple[Any, Any | Failure]:
        """The task and its result, or what went wrong; after a failure its actor rests for a moment."""
        call = self.calls.pop(ref)
        overdue = time.monotonic() - call.began
        try:
            result = ray.get(ref, timeout=0 if overdue > self.call_timeout_s else 60)
        except ray.exceptions.GetTimeoutError:
            failure = Failure(Kind.TRANSIENT, "timeout", f"an actor gave no answer for {overdue:.0f} s", SLOW)
        except Exception as error:
            failure = classify(error)
            if isinstance(error, ray.exceptions.RayActorError):
                self._replace_if_given_up(call.actor, error)
        else:
            self.failures[call.actor] = 0
            return call.task, result
        self.failures[call.actor] += 1
        self.resting[call.actor] = time.monotonic() + min(30.0, 0.25 * 2.0 ** min(self.failures[call.actor], 8))
        return call.task, failure

    def kill(self) -> None:
        for actor in self.actors:
            with contextlib.suppress(Exception):
                ray.kill(actor)

    def _replace_if_given_up(self, actor: int, error: Exception) -> None:
        """Ray restarts a process that died, but not one whose constructor raised."""
        if _given_up(error):
            with contextlib.suppress(Exception):
                ray.kill(self.actors[actor])
            self.actors[actor] = self.make()


def _given_up(error: Exception) -> bool:
    return "creation task" in str(error)


def _shown(resources: dict[str, float]) -> str:
    kept = {k: v for k, v in resources.items() if not k.startswith(("node:", "memory", "object_store"))}
    return ", ".join(f"{k} {v:g}" for k, v in sorted(kept.items())) or "none"
