"""What is done about the number of actors, and what the user is told of it."""

from __future__ import annotations

from cluster.run.actor_pool import Resized, Standing
from cluster.run.crew import PATIENCE_S, CrewWatch
from cluster.run.wishes import Wish


class Pool:
    def __init__(self, wanted: int, there: int) -> None:
        self.now, self.result = Standing(wanted, there, 0), Resized(2, 2)

    def standing(self) -> Standing:
        return self.now

    def resize(self, count: int) -> Resized:
        if count < 1:
            raise ValueError("0 rollout actors: at least 1")
        self.now = Standing(count, self.now.there, 0)
        return self.result


class Desk:
    def __init__(self) -> None:
        self.wishes, self.shown, self.answers = list[Wish](), list[tuple[int, int, int]](), dict[str, str]()

    def wish(self) -> Wish | None:
        return self.wishes.pop(0) if self.wishes else None

    def show(self, *standing: int) -> None:
        self.shown.append(standing)  # type: ignore[arg-type]

    def answer(self, wish: Wish, told: str) -> None:
        self.answers[wish.id] = told


class Watched:
    def __init__(self, wanted: int, there: int) -> None:
        self.pool, self.desk, self.notes, self.time = Pool(wanted, there), Desk(), list[str](), 0.0
        each = {"CPU": 1.0, "actor": 1.0}
        self.watch = CrewWatch(self.pool, self.desk, 4, each, self.notes.append, clock=lambda: self.time)

    def after(self, seconds: float) -> list[str]:
        """What is told by the next look, so much later."""
        self.notes.clear()
        self.time += seconds
        self.watch.tend()
        return list(self.notes)


def test_a_wish_is_carried_out_and_answered_with_what_came_of_it() -> None:
    of = Watched(2, 2)
    of.pool.result = Resized(2, 6, started=3, kept=1)
    of.desk.wishes += [Wish("a", 6)]
    told = of.after(0)
    assert told == [
        "actors: 6 in place of 2: 3 start, 1 stay that were about to leave; no more than 4 have work at once"
    ]
    assert of.desk.answers == {"a": told[0].removeprefix("actors: ")} and of.desk.shown[-1] == (6, 2, 0)
    of.pool.result = Resized(6, 2, ended=1, leaving=3)
    of.desk.wishes += [Wish("b", 2), Wish("c", 0)]
    assert of.after(0)[0] == "actors: 2 in place of 6: 1 have ended, 3 end after the work they have"
    assert of.desk.answers["c"] == "0 rollout actors: at least 1"
    of.pool.result = Resized(2, 2)
    of.desk.wishes += [Wish("d", 2)]
    assert of.after(0) == ["actors: 2, as before"]


def test_actors_that_lack_for_longer_are_told_once_and_so_is_that_all_are_there() -> None:
    of = Watched(4, 4)
    assert of.after(100) == []
    of.pool.now = Standing(4, 2, 0)
    assert of.after(1) == of.after(PATIENCE_S - 1) == []
    (note,) = of.after(2)
    assert note.startswith("2 of 4 actors are there; the others start, or wait for a place, with 1 CPU, 1 actor each")
    assert of.after(500) == []
    of.pool.now = Standing(4, 4, 0)
    assert of.after(1) == ["all 4 actors are there"] and of.after(50) == []


def test_a_process_that_is_back_within_moments_is_not_worth_a_word() -> None:
    of = Watched(4, 3)
    assert of.after(1) == []
    of.pool.now = Standing(4, 4, 0)
    assert of.after(2) == of.after(PATIENCE_S + 1) == []


def test_why_an_actor_cannot_be_built_is_told_once() -> None:
    of = Watched(4, 4)
    of.pool.now = Standing(4, 3, 0, "OSError: no such model")
    assert of.after(1) == ["an actor can't be built, and is tried again: OSError: no such model"]
    assert of.after(1) == []
