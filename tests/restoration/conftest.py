"""Fixtures of the restoration tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def photo_folder() -> Path:
    """The photographs that ship with the repository."""
    return Path(__file__).resolve().parents[2] / "data" / "photos"
