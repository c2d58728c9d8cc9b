"""A picture that is too large to be restored whole is told before it is tried."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from restoration import activation_memory
from restoration.activation_memory import bytes_a_pixel
from restoration.base_models import load
from restoration.base_models.interface import SamplerSettings
from restoration.restore import Job, restore_file
from restoration.tiling import Tiling
from tests.restoration.tiny_model import TinyModel

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"


@pytest.fixture(scope="module")
def model():
    return load(DEMO)


def test_a_picture_that_takes_more_than_half_of_the_memory_whole_is_told_unless_it_is_tiled(
    tmp_path, model, monkeypatch, recwarn
):
    Image.new("RGB", (96, 64)).save(tmp_path / "a.png")
    needed = 96 * 64 * bytes_a_pixel(model)
    assert needed > 0

    def told(free: int, tiling: Tiling | None) -> list[str]:
        recwarn.clear()
        activation_memory.tell_once.cache_clear()
        monkeypatch.setattr(activation_memory, "free_memory", lambda: free)
        restore_file(model, Job(tmp_path / "a.png", tmp_path / "out.png", "a"), SamplerSettings(steps=1), tiling=tiling)
        return [str(w.message) for w in recwarn if "--tile" in str(w.message)]

    assert told(2 * needed, None) == []
    assert told(2 * needed - 2, Tiling(64, 16)) == []
    (message,) = told(2 * needed - 2, None)
    assert "a.png: 96x64 pixels restored whole take about" in message


def test_nothing_is_told_of_a_model_that_nothing_is_known_of():
    assert bytes_a_pixel(TinyModel()) == 0
