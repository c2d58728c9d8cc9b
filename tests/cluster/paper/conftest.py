from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.paper.places import name_model, write_model, write_sets


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of the sets of tables 1, 3 and 5, in their real layouts."""
    names = ("lol_v2_real", "lol_v2_synthetic", "rain13k", "rain100h", "rain100l", "test100", "test2800", "test1200")
    return write_sets(tmp_path_factory.mktemp("sets"), (*names, "dpdd_single"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "diffbir")


@pytest.fixture
def names(tmp_path: Path) -> Path:
    """A folder with models DiffBIR and PASD in name."""
    for kind in ("diffbir", "pasd"):
        name_model(tmp_path / "models" / kind, kind)
    return tmp_path / "models"
