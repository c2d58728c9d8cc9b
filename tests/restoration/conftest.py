"""Fixtures of the restoration tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.restoration.released_models import MODELS


@pytest.fixture(scope="session")
def photo_folder() -> Path:
    """The photographs that ship with the repository."""
    return Path(__file__).resolve().parents[2] / "data" / "photos"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The saved folder of one of `MODELS` by its name, made once; not to be changed."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            (folder / "released").mkdir()
            MODELS[name](folder / "released").save(folder / "model")
            made[name] = folder / "model"
        return made[name]

    return of
