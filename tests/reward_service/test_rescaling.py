"""Another number of replicas, interrupted, and what the user is told of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

pytest.importorskip("ray")

from cluster.run.interrupts import Stopped  # noqa: E402
from reward_service import rescaling, service  # noqa: E402
from reward_service.errors import RewardUnavailable  # noqa: E402
from reward_service.rescaling import rescale  # noqa: E402
from reward_service.settings import RewardSettings  # noqa: E402

THREE = RewardSettings(scorer="piqe", replicas=3)


class Serve:
    """What is wanted of a service; `late` is what an interrupted call brings to it after the first one that follows."""

    def __init__(self, wanted: RewardSettings, late: RewardSettings | None = None) -> None:
        self.wanted, self.late, self.targets = wanted, late, list[Any]()

    def run_many(self, targets: list[Any], wait_for_applications_running: bool) -> None:
        assert not wait_for_applications_running
        self.targets += targets
        said = targets[0].target._bound_deployment._deployment_config.user_config
        self.wanted, self.late = self.late or RewardSettings(**said), None

    def describe(self, name: str, timeout_s: float) -> dict[str, Any]:
        return {"settings": asdict(self.wanted)}


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Serve]:
    def put(serve: Serve, error: BaseException) -> Serve:
        def scale(name: str, replicas: int | None, least: int | None, most: int | None) -> None:
            raise error

        monkeypatch.setattr(service, "describe", serve.describe)
        monkeypatch.setattr(service, "grows", lambda: False)
        monkeypatch.setattr(service, "nodes", lambda: [{"CPU": 9.0}])
        monkeypatch.setattr(service, "scale", scale)
        monkeypatch.setattr(rescaling.serve, "run_many", serve.run_many)
        monkeypatch.setattr(rescaling, "LOOK_S", 0.01)
        return serve

    return put


def test_an_interrupt_takes_the_change_back_and_says_what_is_wanted(put: Callable[..., Serve]) -> None:
    serve = put(Serve(THREE), Stopped())
    with pytest.raises(KeyboardInterrupt, match="stopped; reward service 'iqa' is wanted as before, with 3 replicas"):
        rescale("iqa", 5)
    (target,) = serve.targets
    assert (target.name, serve.wanted) == ("iqa", THREE)


def test_a_change_that_reaches_serve_after_the_interrupt_is_taken_back_too(put: Callable[..., Serve]) -> None:
    bounds = RewardSettings(scorer="piqe", min_replicas=1, max_replicas=2)
    serve = put(Serve(bounds, late=THREE), Stopped())
    with pytest.raises(KeyboardInterrupt, match="as before, with 1 to 2 replicas"):
        rescale("iqa", 3)
    assert len(serve.targets) == 2 and serve.wanted == bounds


def test_what_can_not_be_taken_back_is_said(put: Callable[..., Serve], monkeypatch: pytest.MonkeyPatch) -> None:
    put(Serve(THREE), Stopped())
    for error in (RewardUnavailable("gone"), Stopped(), RuntimeError("no cluster")):

        def fails(*_: Any, error: BaseException = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(rescaling.serve, "run_many", fails)
        with pytest.raises(KeyboardInterrupt, match="had 3 replicas and may now be wanted with 1 to 4 replicas: look"):
            rescale("iqa", least=1, most=4)


def test_a_failure_is_the_services_own_to_take_back(put: Callable[..., Serve]) -> None:
    serve = put(Serve(THREE), RewardUnavailable("no place"))
    with pytest.raises(RewardUnavailable, match="no place"):
        rescale("iqa", 5)
    assert not serve.targets


def test_more_than_there_is_place_for_are_refused_before_any_is_started(put: Callable[..., Serve]) -> None:
    serve = put(Serve(THREE), AssertionError("nothing is asked of Serve"))
    with pytest.raises(RewardUnavailable, match="'iqa' has no place: each of its 10 replicas wants 1 CPU.* room for 9"):
        rescale("iqa", 10)
    assert not serve.targets and serve.wanted == THREE
