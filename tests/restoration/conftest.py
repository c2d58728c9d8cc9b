"""Fixtures of the restoration tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.restoration.released_models import MODELS, restored


@pytest.fixture(scope="session")
def photo_folder() -> Path:
    """The photographs that ship with the repository."""
    return Path(__file__).resolve().parents[2] / "data" / "photos"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of one of `MODELS` by its name, made once for all test processes; not to be changed.

    In it are released/, what `from_released` read; model/, what it saved; and picture.pt, what it restored.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made"
    shared.mkdir(exist_ok=True)

    def of(name: str) -> Path:
        if not (shared / name).is_dir():
            folder = tmp_path_factory.mktemp(name)
            (folder / "released").mkdir()
            model = MODELS[name](folder / "released")
            model.save(folder / "model")
            torch.save(restored(model), folder / "picture.pt")
            with suppress(OSError):  # another process was as quick
                folder.rename(shared / name)
        return shared / name

    return of


@pytest.fixture(scope="session")
def model_folder(made: Callable[[str], Path]) -> Callable[[str], Path]:
    """The saved folder of one of `MODELS` by its name; not to be changed."""
    return lambda name: made(name) / "model"
