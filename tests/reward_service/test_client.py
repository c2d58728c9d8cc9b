"""What a client does with the answers that Serve may give, without a Ray that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray")

from ray.exceptions import RayActorError  # noqa: E402
from ray.serve.exceptions import BackPressureError  # noqa: E402

from reward_service import client as module  # noqa: E402
from reward_service.client import BROKEN_AFTER, RewardClient  # noqa: E402
from reward_service.errors import (  # noqa: E402
    InvalidReward,
    RewardTimeout,
    RewardUnavailable,
    ScorerBroken,
    ScorerFailed,
    WrongScorer,
)
from reward_service.settings import RewardApp  # noqa: E402
from tests.reward_service.fakes import block  # noqa: E402

APP = RewardApp("reward-x", "ordered", "ordered-1", deadline_s=20, retries=0, max_batch=4)
Answer = Callable[[np.ndarray], Any]


def scores(images: np.ndarray) -> dict[str, Any]:
    found = images[..., 1].mean((1, 2)).astype(np.float32)
    return {"scores": found, "scorer": "ordered", "version": "ordered-1"}


def full(images: np.ndarray) -> Any:
    raise BackPressureError(num_queued_requests=8, max_queued_requests=8)


def dead(images: np.ndarray) -> Any:
    raise RayActorError()


def broken(images: np.ndarray) -> dict[str, Any]:
    return ScorerBroken("no weights").to_data()


class Service:
    """Stands for Serve's handle; gives the next of `answers` to each request, and scores when there are none left."""

    def __init__(self, *answers: Answer) -> None:
        self.answers, self.sent, self.cancelled = list(answers), list[list[float]](), 0
        self.score = self

    def remote(self, images: np.ndarray, budget_s: float) -> Response:
        self.sent.append(images[:, 0, 0, 1].tolist())
        return Response(self, self.answers.pop(0) if self.answers else scores, images)


class Response:
    def __init__(self, service: Service, answer: Answer, images: np.ndarray) -> None:
        self.service, self.answer, self.images = service, answer, images

    def result(self, timeout_s: float) -> Any:
        return self.answer(self.images)

    def cancel(self) -> None:
        self.service.cancelled += 1
        self.answer(self.images)  # as Serve's, it raises what became of the request


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("FIRST_PAUSE_S", "LONGEST_PAUSE_S", "NO_ROOM_PAUSE_S"):
        monkeypatch.setattr(module, name, 1e-3)
    yield


def client_of(service: Service, **options: Any) -> RewardClient:
    client = RewardClient(APP, **options)
    client._handle = service  # type: ignore[assignment]
    return client


def test_of_a_large_block_only_the_request_that_was_lost_is_sent_again() -> None:
    service = Service(scores, dead, scores)
    result = client_of(service, retries=1).submit(block(list(range(10)))).result()
    assert result.scores.tolist() == list(range(10))
    assert service.sent == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [4, 5, 6, 7]]


def test_a_full_queue_is_waited_for_and_is_no_failed_attempt() -> None:
    service = Service(*[full] * 20)
    client = client_of(service, retries=0)
    assert client.submit(block([5])).result().scores.tolist() == [5]
    assert client.repeated == 20


def test_a_queue_that_stays_full_ends_at_the_deadline_and_is_named() -> None:
    with pytest.raises(RewardTimeout, match="deadline_s=0.05: .*backpressure"):
        client_of(Service(*[full] * 1000), deadline_s=0.05).submit(block([5])).result()


def test_requests_that_die_more_often_than_the_retries_allow_are_given_up() -> None:
    with pytest.raises(RewardUnavailable, match="3 attempts"):
        client_of(Service(*[dead] * 3), retries=2).submit(block([5])).result()


def test_what_failed_is_told_and_the_rest_of_its_block_is_asked_for_no_more() -> None:
    service = Service(lambda _: ScorerFailed("no").to_data(), full, scores)
    with pytest.raises(ScorerFailed, match="no"):
        client_of(service).submit(block(list(range(10)))).result()
    assert service.cancelled == 2  # also the one that Serve had refused


def test_images_without_a_finite_score_are_named_by_their_place_in_the_whole_block() -> None:
    def invalid(*indexes: int) -> Answer:
        return lambda _: InvalidReward(f"nan for {len(indexes)}", indexes).to_data()

    with pytest.raises(InvalidReward, match="nan for 2; nan for 1") as error:
        client_of(Service(invalid(1, 3), scores, invalid(0))).submit(block(list(range(10)))).result()
    assert error.value.indexes == (1, 3, 8)


def test_a_part_of_a_block_that_another_version_scored_is_refused() -> None:
    def other(images: np.ndarray) -> dict[str, Any]:
        return {**scores(images), "version": "ordered-2"}

    with pytest.raises(WrongScorer, match="version ordered-1, but ordered, version ordered-2"):
        client_of(Service(scores, other)).submit(block(list(range(8)))).result()


def test_a_replica_that_is_broken_is_waited_for_until_it_is_replaced() -> None:
    client = client_of(Service(*[broken] * (BROKEN_AFTER - 1)), retries=0)
    assert client.submit(block([5])).result().scores.tolist() == [5]
    assert client.broken_in_a_row == 0


def test_a_scorer_that_stays_broken_ends_the_asking_with_its_cause_and_what_to_do() -> None:
    service = Service(*[broken] * 100)
    client = client_of(service, retries=0)
    for _ in range(2):  # at the last answer; and before anything is sent
        with pytest.raises(
            ScorerBroken, match=f"failed {BROKEN_AFTER} times in a row.*no weights; put the scorer right"
        ):
            client.submit(block([5])).result()
    assert len(service.sent) == BROKEN_AFTER
