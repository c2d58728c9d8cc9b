"""What becomes of a running service when it can't be changed, with stand-ins for Ray Serve and the cluster."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("ray")

from reward_service import service  # noqa: E402
from reward_service.errors import RewardUnavailable  # noqa: E402
from reward_service.ownership import Owner  # noqa: E402
from reward_service.settings import RewardSettings  # noqa: E402

MINE = Owner("job", "me")
BEFORE, WANTED = RewardSettings(scorer="piqe"), RewardSettings(scorer="niqe")


class Serve:
    """Runs the service with `BEFORE`; `errors` are raised when it is given settings with these scorers."""

    def __init__(self) -> None:
        self.owner: Owner | None = MINE
        self.errors: dict[str, BaseException] = {"niqe": RuntimeError("no weights")}
        self.awaited, self.given, self.ended = list[str](), list[str](), list[str]()

    def put(self, settings: RewardSettings, name: str, given_up: Any = None) -> Any:
        self.awaited.append(settings.scorer)
        self.hand_over(settings, name)
        return "app"

    def hand_over(self, settings: RewardSettings, name: str) -> None:
        self.given.append(settings.scorer)
        if (error := self.errors.get(settings.scorer)) is not None:
            raise error


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    made = Serve()
    monkeypatch.setattr(service.ownership, "owner_of", lambda name: made.owner)
    monkeypatch.setattr(service.ownership, "this_job", lambda: MINE)
    monkeypatch.setattr(service.ownership, "is_mine", lambda name: True)
    monkeypatch.setattr(service.ownership, "claim", lambda name, stands_alone: None)
    monkeypatch.setattr(service, "describe", lambda name, timeout_s=0.0: {"settings": vars(BEFORE)})
    monkeypatch.setattr(service, "status", lambda name: {"replicas": {"RUNNING": 1}})
    monkeypatch.setattr(service, "grows", lambda: True)
    monkeypatch.setattr(service, "_put", made.put)
    monkeypatch.setattr(service, "_hand_over", made.hand_over)
    monkeypatch.setattr(service, "end", lambda name, timeout_s: made.ended.append(name))
    return made


def test_a_failed_change_goes_back_and_waits_until_the_service_runs_as_before(serve: Serve) -> None:
    with pytest.raises(RewardUnavailable, match="no weights; it goes on with the settings it had before"):
        service.deploy(WANTED, "reward-run")
    assert serve.awaited == ["niqe", "piqe"] and not serve.ended


def test_a_service_that_cannot_go_back_is_ended_and_the_error_says_so(serve: Serve) -> None:
    serve.errors["piqe"] = RewardUnavailable("its node is gone")
    with pytest.raises(RewardUnavailable, match="no weights; the settings .* its node is gone; so it was ended"):
        service.deploy(WANTED, "reward-run")
    assert serve.ended == ["reward-run"]


def test_one_that_stands_alone_stays_even_then(serve: Serve) -> None:
    serve.owner, serve.errors["piqe"] = Owner("", "somebody"), RewardUnavailable("its node is gone")
    with pytest.raises(RewardUnavailable, match="its node is gone; it is as the change left it"):
        service.deploy(WANTED, "iqa", stands_alone=True)
    assert not serve.ended


@pytest.mark.parametrize("error", [TimeoutError("no answer"), KeyboardInterrupt()])
def test_a_service_of_others_stays_though_nobody_said_at_first_whose_it_is(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    answers: list[Any] = [error, Owner("", "somebody"), Owner("", "somebody")]

    def asked(name: str) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(service.ownership, "owner_of", asked)
    with pytest.raises((RewardUnavailable, KeyboardInterrupt)):
        service.deploy(WANTED, "iqa", stands_alone=True)
    assert not serve.ended and not serve.given


def test_an_interrupted_change_goes_back_too_and_nobody_waits_for_it(serve: Serve) -> None:
    serve.errors["niqe"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        service.deploy(WANTED, "reward-run")
    assert serve.given == ["niqe", "piqe"] and serve.awaited == ["niqe"] and not serve.ended


def test_a_start_that_fails_where_another_job_has_died_goes_back_to_nothing(serve: Serve) -> None:
    serve.owner = Owner("a job that is dead", "it")
    with pytest.raises(RewardUnavailable, match="no weights$"):
        service.deploy(WANTED, "reward-run")
    assert serve.awaited == ["niqe"] and serve.ended == ["reward-run"]


def test_a_service_that_can_be_scaled_neither_up_nor_back_says_both(serve: Serve) -> None:
    serve.errors["piqe"] = RuntimeError("no controller")
    with pytest.raises(RewardUnavailable, match="was not scaled: no controller; nor scaled back: no controller"):
        service.scale("reward-run", 2)
