from __future__ import annotations

import gc
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from trajectories.server import EmbeddedServer
from trajectories.settings import StoreSettings
from trajectories.stream import TrajectoryStream

OpenStream = Callable[..., TrajectoryStream]


def pytest_collection_finish() -> None:
    """What was imported stays: a collector that looks at all of it again and again takes a tenth of the time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else bindings that count their objects at the end call them leaked


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """One embedded server for all tests that don't harm it; each test has its own run id."""
    with EmbeddedServer(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture
def run_id() -> str:
    return f"run-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def open_stream(server: EmbeddedServer, run_id: str) -> Iterator[OpenStream]:
    """Open streams of this test's run; `address` and settings can be given."""
    opened: list[TrajectoryStream] = []

    def open_one(address: Any = None, **settings: Any) -> TrajectoryStream:
        stream = TrajectoryStream(address or server.address, run_id, StoreSettings(**settings))
        opened.append(stream)
        return stream

    yield open_one
    for stream in opened:
        stream.close()
