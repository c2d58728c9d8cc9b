"""A wish for another number of actors reaches the run that is meant, once, and nobody waits for an answer for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cluster.jobs import ClusterError
from cluster.run import wishes
from cluster.run.wishes import Desk, ask, crews
from reward_service.ownership import Owner


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, bytes]:
    """The cluster's key-value store; jobs named "dead" are."""
    content: dict[bytes, bytes] = {}

    class Kv:
        @staticmethod
        def _internal_kv_get(key: bytes, namespace: bytes) -> bytes | None:
            return content.get(key)

        @staticmethod
        def _internal_kv_put(key: bytes, value: bytes, overwrite: bool, namespace: bytes) -> None:
            content[key] = value

        @staticmethod
        def _internal_kv_del(key: bytes, namespace: bytes) -> None:
            content.pop(key, None)

        @staticmethod
        def _internal_kv_list(prefix: bytes, namespace: bytes) -> list[bytes]:
            return [key for key in content if key.startswith(prefix)]

    monkeypatch.setattr(wishes, "internal_kv", Kv)
    monkeypatch.setattr(wishes, "this_job", lambda: Owner("01", "me@here, process 1"))
    monkeypatch.setattr(wishes, "is_alive", lambda owner: owner.job != "dead")
    return content


@contextmanager
def driver(run_id: str, answers: bool = True) -> Iterator[list[int]]:
    """A run's driver, which answers in its own time; the numbers that it was asked for."""
    asked, end = list[int](), threading.Event()

    def work(desk: Desk) -> None:
        while not end.wait(0.01):
            desk.show(2, 2, 0)
            if answers and (wish := desk.wish()) is not None:
                asked.append(wish.count)
                desk.answer(wish, f"{wish.count} in place of 2")

    with Desk(run_id, every_s=0.01) as desk:
        thread = threading.Thread(target=work, args=(desk,))
        thread.start()
        try:
            until(lambda: desk._shown is not None)
            yield asked
        finally:
            end.set()
            thread.join()


def until(true: object) -> None:
    ends = time.monotonic() + 10
    while not true():  # type: ignore[operator]
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_wish_is_answered_by_the_run_that_is_meant_and_done_once(store: dict[bytes, bytes]) -> None:
    with driver("one") as one, driver("two") as two:
        assert {run: (crew.wanted, crew.there) for run, crew in crews().items()} == {"one": (2, 2), "two": (2, 2)}
        assert ask("two", 5, look_s=0.01) == "5 in place of 2"
        assert ask("two", 5, look_s=0.01) == "5 in place of 2"
        until(lambda: not any(b"wish" in key for key in store))
        assert (one, two) == ([], [5, 5])
    assert store == {}


def test_a_driver_that_does_not_answer_is_not_waited_for_and_the_wish_is_taken_back(store: dict[bytes, bytes]) -> None:
    with driver("one", answers=False):
        with pytest.raises(ClusterError, match="me@here, process 1.*gave no answer within 0.05 s.*taken back"):
            ask("one", 5, timeout_s=0.05, look_s=0.01)
        assert not any(b"wish" in key for key in store)


def test_a_wish_that_was_taken_back_while_the_driver_was_busy_is_not_carried_out_later(
    store: dict[bytes, bytes],
) -> None:
    """Its thread looks all the time, though its loop stands while its learner starts again."""
    refused: list[str] = []

    def somebody() -> None:
        with pytest.raises(ClusterError) as error:
            ask("one", 8, timeout_s=20, look_s=0.01)
        refused.append(str(error.value))

    with Desk("one", every_s=0.01) as desk:
        desk.show(2, 2, 0)
        until(lambda: desk._shown is not None)
        (waiting := threading.Thread(target=somebody)).start()
        until(lambda: desk._wish is not None)
        crew = store.pop(b"run-actors:one")  # so that nobody waits any longer
        waiting.join(20)
        assert "nothing was changed" in refused[0]
        until(lambda: desk._wish is None)
        assert desk.wish() is None
        store |= {b"run-actors:one": crew, b"run-actors-wish:one": b'{"id": "next", "count": 4}'}
        until(lambda: desk._wish is not None)
        wish = desk.wish()
        assert wish is not None and wish.count == 4
        time.sleep(0.05)  # some looks at the same wish
        assert desk.wish() is None


def test_while_the_cluster_does_not_answer_no_wish_is_known_to_stand(
    store: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise RuntimeError("no head")

    with Desk("one", every_s=0.01) as desk:
        desk.show(2, 2, 0)
        store[b"run-actors-wish:one"] = b'{"id": "some", "count": 4}'
        until(lambda: desk._wish is not None)
        monkeypatch.setattr(wishes.internal_kv, "_internal_kv_get", away)
        until(lambda: desk._wish is None)
        assert desk.wish() is None


def test_a_wish_that_somebody_left_is_not_the_next_drivers(store: dict[bytes, bytes]) -> None:
    store[b"run-actors-wish:one"] = b'{"id": "old", "count": 9}'
    with driver("one") as asked:
        assert ask("one", 3, look_s=0.01) == "3 in place of 2" and asked == [3]


def test_of_two_that_ask_at_once_the_first_is_told_that_it_was_not_heard(store: dict[bytes, bytes]) -> None:
    key = b"run-actors-wish:one"

    def other() -> None:
        until(lambda: key in store)
        store[key] = b'{"id": "other", "count": 9}'

    with driver("one", answers=False):
        (second := threading.Thread(target=other)).start()
        with pytest.raises(ClusterError, match="somebody else asked run one for 9 actors"):
            ask("one", 5, timeout_s=10, look_s=0.01)
        second.join()
        assert b"other" in store[key]


def test_a_run_whose_driver_died_is_not_there(store: dict[bytes, bytes]) -> None:
    crew = b'{"job": "dead", "who": "me", "wanted": 2, "there": 2, "leaving": 0, "answered": "", "told": ""}'
    store[b"run-actors:one"] = crew
    assert crews() == {}
    with pytest.raises(ClusterError, match="run one has ended, or its driver was lost"):
        ask("one", 3, look_s=0.01)


def test_a_cluster_that_does_not_answer_is_told(store: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wishes, "CALL_S", 0.05)
    monkeypatch.setattr(wishes.internal_kv, "_internal_kv_list", lambda *_, **__: time.sleep(5))
    with pytest.raises(ClusterError, match="the cluster doesn't answer: asking the cluster took longer than"):
        crews()
