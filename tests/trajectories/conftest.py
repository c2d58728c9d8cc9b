from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from trajectories.server import EmbeddedServer
from trajectories.settings import StoreSettings


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server that the test may kill."""
    with EmbeddedServer(tmp_path / "own store", StoreSettings(op_timeout_s=5)) as running:
        yield running
