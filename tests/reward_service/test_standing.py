"""What is asked of a cluster about its services has a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

pytest.importorskip("ray")

from reward_service import ownership, standing  # noqa: E402
from reward_service.errors import RewardUnavailable  # noqa: E402
from reward_service.replica import DEPLOYMENT  # noqa: E402


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster whose Serve answers, and whose store of owners doesn't."""
    there, ends = SimpleNamespace(deployments={DEPLOYMENT: None}), threading.Event()
    monkeypatch.setattr(standing.serve, "status", lambda: SimpleNamespace(applications={"iqa": there, "other": there}))
    monkeypatch.setattr(ownership, "owner_of", lambda name: ends.wait())
    monkeypatch.setattr(standing, "CALL_S", 0.5)
    yield
    ends.set()


ASKED = [lambda: standing.names(), lambda: standing.overview("iqa"), lambda: standing.stop("iqa")]


@pytest.mark.parametrize("ask", ASKED)
def test_an_owner_that_can_not_be_asked_for_is_told_in_time(silent: None, ask: Callable[[], object]) -> None:
    began = time.monotonic()
    with pytest.raises(RewardUnavailable, match="service 'iqa': the cluster doesn't answer: asking whose .* took"):
        ask()
    assert time.monotonic() - began < 2
