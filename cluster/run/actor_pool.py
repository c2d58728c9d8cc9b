"""The rollout actors as the driver sees them: who is there, what is out, what came of it; no call waits for ever."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import ray

from cluster.jobs import ClusterError
from cluster.run.background import LOOK_S, raise_failed
from cluster.run.failures import RESUME, SLOW, Failure, Kind, classify
from cluster.run.node_watch import Nodes

CHECK_S = 5.0  # an actor without work says so often that it is there
GONE_S = 10.0  # a call of an actor that isn't there, and a check that isn't answered, are given up after so long
BUILDS = 20  # that fail in a row, while no actor is there, end the run
ANSWER_S = 60.0  # for a result that is there already


@dataclass(frozen=True)
class Call:
    """A task (a `WorkItem` or an `EvaluationPart`) that an actor has since `began`."""

    actor: int
    task: Any
    began: float


@dataclass
class Member:
    """An actor of the pool.

    Attributes:
        check: asks whether it is there. One that Ray has no place for answers once it has one, however late.
        asked: when `check` was.
        away: since when it isn't known to be there; None: it is. An actor that is away gets no call.
        seen: when it gave a sign of life last.
        node: id of the node from where it did.
        resting: it gets no call, and isn't checked, before that.
        failures: in a row.
        unbuilt: its process is over for good, as its constructor raised or it stepped back: it is to be made anew.
        leaving: it gets no call any more, and is ended after those it has.
    """

    handle: Any
    away: float | None
    check: ray.ObjectRef | None = None
    asked: float = 0.0
    seen: float = 0.0
    node: str = ""
    resting: float = 0.0
    failures: int = 0
    unbuilt: bool = False
    leaving: bool = False


@dataclass(frozen=True)
class Standing:
    """Actors that are `wanted`, those of them that are `there`, others that are `leaving`; why one can't be built."""

    wanted: int
    there: int
    leaving: int
    trouble: str = ""


@dataclass(frozen=True)
class Resized:
    """What another number of actors brought: `started`, `kept` that were leaving, `ended`, `leaving` after a call."""

    before: int
    wanted: int
    started: int = 0
    kept: int = 0
    ended: int = 0
    leaving: int = 0


class ActorPool:
    """Actors of one kind, each with a number of slots; their number may change at any time.

    A dead actor comes back by Ray (max_restarts), where and when it finds room, or by us where Ray gives it up (its
    constructor raised); an actor that answers no call for `call_timeout_s` is ended and comes back, too. Meanwhile
    nothing waits for it: what it had ends as a failure, and it gets no call until it has said that it is there.

    Args:
        make: makes an actor; called again to replace one that Ray has given up. Its `ready` gives its node's id.
        slots: calls that an actor may have at once.
        nodes: the nodes that were alive at the last look, if known.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        count: int,
        slots: int,
        call_timeout_s: float,
        nodes: Callable[[], Nodes | None] = lambda: None,
    ) -> None:
        self.make, self.slots, self.call_timeout_s, self.nodes = make, slots, call_timeout_s, nodes
        self.members: dict[int, Member] = {}
        self.calls: dict[ray.ObjectRef, Call] = {}
        self.joined = time.monotonic()  # when an actor came (back) last
        self._given_up: dict[ray.ObjectRef, Failure] = {}  # calls that nothing is expected of
        self._made = 0
        self._unbuilt = 0  # in a row
        self._trouble = ""
        for _ in range(count):
            self._add()

    def wait_ready(self, timeout_s: float, beside: Iterable[Future[Any]] = ()) -> None:
        """Wait until all of them have built themselves.

        Args:
            beside: what starts beside them.

        Raises:
            ClusterError: not all within `timeout_s`, or one can't be built.
            Whatever something beside them has failed with.
        """
        deadline, count = time.monotonic() + timeout_s, len(self.members)
        while (lacking := count - self.standing().there) > 0 and (left := deadline - time.monotonic()) > 0:
            raise_failed(beside)
            self.finished(min(left, LOOK_S))
            if self._trouble:
                raise ClusterError(f"a rollout actor can't be built: {self._trouble}")
        if lacking > 0:
            raise ClusterError(
                f"{lacking} of {count} rollout actors did not start within start_timeout_s={timeout_s:g} s: "
                f"free are {_shown(ray.available_resources())}; lower actors.count (or actors.min) or what each "
                "reserves, or raise start_timeout_s if the model takes so long to load"
            )

    @property
    def wanted(self) -> int:
        return sum(not member.leaving for member in self.members.values())

    def standing(self) -> Standing:
        staying = [member for member in self.members.values() if not member.leaving]
        there = sum(member.away is None for member in staying)
        trouble = self._trouble if there < len(staying) else ""
        return Standing(len(staying), there, len(self.members) - len(staying), trouble)

    def free(self) -> list[int]:
        """Actors with free slots, the least busy first, one entry a free slot."""
        busy, now = self._busy(), time.monotonic()
        able = [key for key, member in self.members.items() if _able(member, now)]
        return [key for level in range(self.slots) for key in able if busy[key] <= level]

    def tasks(self, kind: type) -> list[tuple[int, Any]]:
        """(actor, task) of every call of this kind that is out."""
        return [(call.actor, call.task) for call in self.calls.values() if isinstance(call.task, kind)]

    def call(self, actor: int, method: str, task: Any, *arguments: Any) -> None:
        ref = getattr(self.members[actor].handle, method).remote(*arguments)
        self.calls[ref] = Call(actor, task, time.monotonic())

    def finished(self, timeout_s: float) -> list[ray.ObjectRef]:
        """Calls that have ended, well or badly, within `timeout_s`; those that took too long end badly.

        Raises:
            ClusterError: no actor is there, and none can be built.
        """
        # First who has said that it is there: of one that is back nothing is given up, however long nobody looked.
        if checks := self._checks():
            for ref in ray.wait(list(checks), num_returns=len(checks), timeout=0)[0]:
                self._checked(checks[ref])
        self._tend()
        if self._given_up:
            return list(self._given_up)
        checks = self._checks()
        refs = [*self.calls, *checks]
        if not refs:
            time.sleep(timeout_s)
            return []
        ready: Sequence[ray.ObjectRef] = ray.wait(refs, num_returns=1, timeout=timeout_s)[0]
        if ready:
            ready = ray.wait(refs, num_returns=len(refs), timeout=0)[0]
        ended = set(ready)
        for ref in ended & checks.keys():
            self._checked(checks[ref])
        limit = time.monotonic() - self.call_timeout_s
        late = [ref for ref, call in self.calls.items() if call.began < limit and ref not in ended]
        for actor in {self.calls[ref].actor for ref in late}:
            with contextlib.suppress(Exception):  # it may be gone already
                ray.kill(self.members[actor].handle, no_restart=False)
        return [*(ref for ref in ready if ref in self.calls), *late]

    def take(self, ref: ray.ObjectRef) -> tuple[Any, Any | Failure]:
        """The task and its result, or what went wrong; after a failure of its own an actor rests for a moment."""
        call = self.calls.pop(ref)
        member = self.members[call.actor]
        try:
            if (failure := self._given_up.pop(ref, None)) is not None:
                return call.task, failure
            overdue = time.monotonic() - call.began
            try:
                result = ray.get(ref, timeout=0 if overdue > self.call_timeout_s else ANSWER_S)
            except ray.exceptions.GetTimeoutError:
                failure = Failure(Kind.TRANSIENT, "timeout", f"an actor gave no answer for {overdue:.0f} s", SLOW)
                self._lose(member)
            except Exception as error:
                failure = classify(error)
                if isinstance(error, ray.exceptions.RayActorError):
                    member.unbuilt |= _is_given_up(error)
                    if self._is_dead(member):
                        failure = _node_lost(member)
                    self._lose(member)
            else:
                member.failures, member.seen = 0, time.monotonic()
                return call.task, result
            _rest(member)
            return call.task, failure
        finally:
            self._end_if_done(call.actor)

    def resize(self, count: int) -> Resized:
        """Have `count` actors: new ones start beside the others, and surplus ones end, each after the calls it has.

        Raises:
            ValueError: less than one.
        """
        if count < 1:
            raise ValueError(f"{count} rollout actors: at least 1; stop the run by Ctrl-C or SIGTERM")
        busy, before = self._busy(), self.wanted
        leaving = [member for member in self.members.values() if member.leaving]
        kept = leaving[: max(count - before, 0)]
        for member in kept:
            member.leaving = False
        started = max(count - before - len(kept), 0)
        for _ in range(started):
            self._add()
        # Those that are away first, then those with the least to do.
        staying = [(m.away is None, busy[key], -key) for key, m in self.members.items() if not m.leaving]
        surplus = [-key for *_, key in sorted(staying)[: max(before - count, 0)]]
        for key in surplus:
            self.members[key].leaving = True
            self._end_if_done(key)
        after = sum(key in self.members for key in surplus)
        return Resized(before, count, started, len(kept), len(surplus) - after, after)

    def step_back(self) -> None:
        """Those that aren't there give up their place, or their wait for one, until the next look (`finished`)."""
        for member in self.members.values():
            if member.away is not None:
                with contextlib.suppress(Exception):
                    ray.kill(member.handle)
                member.check, member.unbuilt = None, True

    def kill(self) -> None:
        for member in list(self.members.values()):  # a `take` that nobody waits for any more may end one meanwhile
            with contextlib.suppress(Exception):
                ray.kill(member.handle)

    def _add(self) -> None:
        self.members[self._made] = Member(self.make(), away=time.monotonic())
        self._made += 1

    def _checks(self) -> dict[ray.ObjectRef, Member]:
        return {member.check: member for member in self.members.values() if member.check is not None}

    def _busy(self) -> Counter[int]:
        return Counter(call.actor for call in self.calls.values())

    def _tend(self) -> None:
        """Ask who is there, and give up what is expected of those that aren't."""
        busy, now = self._busy(), time.monotonic()
        for key, member in self.members.items():
            if member.away is None and self._is_dead(member):
                self._lose(member)
                self._give_up(key, _node_lost(member))
            if member.check is not None and member.away is None and now - member.asked > GONE_S:
                member.away = member.asked
            if member.away is not None and now - member.away > GONE_S and busy[key]:
                self._give_up(key, Failure(Kind.TRANSIENT, "process", "an actor is gone, and waits for its way back"))
            idle = member.away is None and not busy[key] and now - member.seen > CHECK_S
            if member.check is None and member.resting <= now and (idle or member.away is not None):
                if member.unbuilt:
                    with contextlib.suppress(Exception):
                        ray.kill(member.handle)
                    member.handle, member.unbuilt = self.make(), False
                member.check, member.asked = member.handle.ready.remote(), now

    def _checked(self, member: Member) -> None:
        """A check has an answer."""
        ref, member.check = member.check, None
        assert ref is not None
        try:
            node = ray.get(ref, timeout=ANSWER_S)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            self._lose(member)
            _rest(member)
            if _is_given_up(error):
                self._not_built(member, error)
        else:
            now = time.monotonic()
            if member.away is not None:
                self.joined = now
            member.away, member.seen, member.node = None, now, str(node)
            self._unbuilt, self._trouble = 0, ""

    def _not_built(self, member: Member, error: Exception) -> None:
        member.unbuilt = True
        self._unbuilt += 1
        self._trouble = str(error).strip().splitlines()[-1]
        if self._unbuilt > max(BUILDS, 2 * len(self.members)) and not self.standing().there:
            raise ClusterError(f"no rollout actor can be built: {self._trouble}; put that right, then {RESUME}")

    def _is_dead(self, member: Member) -> bool:
        """Whether the node is gone where it was seen last."""
        nodes = self.nodes()
        return nodes is not None and bool(member.node) and nodes.asked > member.seen and member.node not in nodes.alive

    def _lose(self, member: Member) -> None:
        """It isn't there, and is asked anew."""
        member.check = None
        if member.away is None:
            member.away = time.monotonic()

    def _give_up(self, actor: int, failure: Failure) -> None:
        self._given_up |= {ref: failure for ref, call in self.calls.items() if call.actor == actor}

    def _end_if_done(self, actor: int) -> None:
        member = self.members[actor]
        if member.leaving and not self._busy()[actor]:
            with contextlib.suppress(Exception):
                ray.kill(member.handle)
            del self.members[actor]


def _able(member: Member, now: float) -> bool:
    """Whether it may get a call. One that is being checked may not: should it be gone, nobody would know."""
    return member.away is None and member.check is None and not member.leaving and member.resting <= now


def _rest(member: Member) -> None:
    member.failures += 1
    member.resting = time.monotonic() + min(30.0, 0.25 * 2.0 ** min(member.failures, 8))


def _node_lost(member: Member) -> Failure:
    return Failure(Kind.TRANSIENT, "node", f"node {member.node} of an actor was lost")


def _is_given_up(error: Exception) -> bool:
    """Ray restarts a process that died, but not one whose constructor raised."""
    return "creation task" in str(error)


def _shown(resources: dict[str, float]) -> str:
    kept = {k: v for k, v in resources.items() if not k.startswith(("node:", "memory", "object_store"))}
    return ", ".join(f"{k} {v:g}" for k, v in sorted(kept.items())) or "none"
