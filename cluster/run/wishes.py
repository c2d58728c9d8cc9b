"""How many actors somebody wants of a running run, and what its driver says to it.

Both stand in the cluster's own key-value store, so that any process that has joined the cluster reaches any run there,
with what Ray asks of it (address, token) and nothing else. The driver looks once a second, in a thread.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TypeVar

from ray.exceptions import RayError
from ray.experimental import internal_kv

from cluster.jobs import ClusterError
from reward_service.bounded import bounded
from reward_service.ownership import Owner, is_alive, this_job

T = TypeVar("T")

EVERY_S = 1.0
END_S = 5.0  # for the last look, which Ray may not answer any more
CALL_S = 15.0  # for a question to the cluster
ANSWER_S = 45.0  # for the driver, which may be waiting for its learner or its store
_SPACE = b"restorl"
_CREW, _WISH = "run-actors:", "run-actors-wish:"


@dataclass(frozen=True)
class Wish:
    """So many actors are wanted; `id` tells one wish from another."""

    id: str
    count: int


@dataclass(frozen=True)
class Crew:
    """What a driver tells of its actors.

    Attributes:
        job, who: the driver's Ray job, and where it runs.
        wanted, there, leaving: actors, see `actor_pool.Standing`.
        answered, told: the id of the wish that was carried out last, and what came of it.
    """

    job: str
    who: str
    wanted: int
    there: int
    leaving: int
    answered: str = ""
    told: str = ""


class Desk:
    """The driver's side; enter it while the run goes on."""

    def __init__(self, run_id: str, every_s: float = EVERY_S) -> None:
        self.run_id, self.every_s = run_id, every_s
        self._owner: Owner | None = None
        self._crew: Crew | None = None
        self._lock = threading.Lock()
        self._wish: Wish | None = None  # that stands there now, and wasn't given out yet
        self._given = ""  # the id of the last one that was
        self._shown: Crew | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wishes", daemon=True)

    def __enter__(self) -> Desk:
        self._owner = this_job()
        _del(_WISH + self.run_id)  # of an earlier driver
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(END_S)

    def wish(self) -> Wish | None:
        """One that has come, wasn't taken back by the last look, and is to be answered; each is given out once."""
        with self._lock:
            found, self._wish = self._wish, None
            self._given = self._given if found is None else found.id
            return found

    def show(self, wanted: int, there: int, leaving: int) -> None:
        """How the actors stand."""
        assert self._owner is not None
        before = self._crew
        answer = ("", "") if before is None else (before.answered, before.told)
        self._crew = Crew(self._owner.job, self._owner.who, wanted, there, leaving, *answer)

    def answer(self, wish: Wish, told: str) -> None:
        """`wish` was carried out; `show` has been called since the run began."""
        assert self._crew is not None
        self._crew = Crew(**(asdict(self._crew) | {"answered": wish.id, "told": told}))

    def _run(self) -> None:
        while not self._stop.wait(self.every_s):
            try:
                self._look()
            except Exception:  # the cluster doesn't answer: the next look may; calls of actors tell what is wrong
                self._stands(None)
        for key in (_CREW, _WISH):
            try:
                _del(key + self.run_id)
            except Exception:  # it ends with its cluster; who asks sees that the job is dead
                return

    def _look(self) -> None:
        crew = self._crew
        if crew is None:
            return
        if crew != self._shown:
            _put(_CREW + self.run_id, json.dumps(asdict(crew)))
            self._shown = crew
        self._stands(_wish_of(self.run_id))

    def _stands(self, wish: Wish | None) -> None:
        """What a look has found, None also where it can't be known: whoever gave up waiting has taken the wish back."""
        with self._lock:
            self._wish = None if wish is None or wish.id == self._given else wish


def crews() -> dict[str, Crew]:
    """The runs of the cluster whose drivers live, by id, with their actors.

    Raises:
        ClusterError: the cluster doesn't answer.
    """

    def found() -> dict[str, Crew]:
        keys = [key.decode() for key in internal_kv._internal_kv_list(_CREW.encode(), namespace=_SPACE)]
        ids = [key.removeprefix(_CREW) for key in keys]
        return {run_id: crew for run_id in ids if (crew := _crew_of(run_id)) is not None}

    return _asked(found)


def ask(run_id: str, count: int, timeout_s: float = ANSWER_S, look_s: float = 0.3) -> str:
    """Have that run take `count` actors; what its driver says.

    Raises:
        ClusterError: no driver of such a run lives there, it doesn't answer, or somebody else asked meanwhile.
        KeyboardInterrupt: the wish is taken back, unless the driver has it already.
    """
    wish = Wish(uuid.uuid4().hex, count)
    _asked(lambda: _put(_WISH + run_id, json.dumps(asdict(wish))))
    ends, who = time.monotonic() + timeout_s, ""
    try:
        while time.monotonic() < ends:
            crew = _asked(lambda: _crew_of(run_id))
            if crew is None:
                raise ClusterError(f"run {run_id} has ended, or its driver was lost; nothing was changed")
            if crew.answered == wish.id:
                return crew.told
            who = crew.who
            other = _asked(lambda: _wish_of(run_id))
            if other is not None and other.id != wish.id:
                raise ClusterError(f"somebody else asked run {run_id} for {other.count} actors meanwhile; ask again")
            time.sleep(look_s)
        raise ClusterError(
            f"the driver of run {run_id} ({who}) gave no answer within {timeout_s:g} s: it may wait for its store "
            "or its learner. The wish is taken back, unless it took it just now: its output says so"
        )
    finally:
        _take_back(run_id, wish)


def _take_back(run_id: str, wish: Wish) -> None:
    """Nobody waits for an answer any more."""

    def back() -> None:
        if _wish_of(run_id) == wish:
            _del(_WISH + run_id)

    _asked(back)


def _crew_of(run_id: str) -> Crew | None:
    found = internal_kv._internal_kv_get((_CREW + run_id).encode(), namespace=_SPACE)
    crew = None if found is None else Crew(**json.loads(found))
    return crew if crew is not None and is_alive(Owner(crew.job, crew.who)) else None


def _wish_of(run_id: str) -> Wish | None:
    found = internal_kv._internal_kv_get((_WISH + run_id).encode(), namespace=_SPACE)
    wish = None if found is None else json.loads(found)
    return None if wish is None else Wish(str(wish["id"]), int(wish["count"]))


def _put(key: str, value: str) -> None:
    internal_kv._internal_kv_put(key.encode(), value.encode(), overwrite=True, namespace=_SPACE)


def _del(key: str) -> None:
    internal_kv._internal_kv_del(key.encode(), namespace=_SPACE)


def _asked(question: Callable[[], T]) -> T:
    try:
        return bounded(question, CALL_S, "asking the cluster")
    except (RayError, TimeoutError, RuntimeError) as error:
        raise ClusterError(f"the cluster doesn't answer: {error}") from error
