from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.report.strips import BOX, GAP, TEXT, Strip, choose_box, draw_strips, save_strips, zoom


def images(count: int = 4, size: int = 64) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count)]


def test_the_zoom_box_is_where_the_policy_changed_the_image_most() -> None:
    _, base, _, gt = images()
    now = base.copy()
    now[40:56, 8:24] = 255 - now[40:56, 8:24]
    assert choose_box(base, now, gt) == (40, 8, 16, 16)
    assert choose_box(base, base, gt) == (24, 24, 16, 16)


def test_a_zoom_repeats_pixels_and_invents_none() -> None:
    (image,) = images(1)
    enlarged = np.asarray(zoom(image, (4, 8, 16, 16), 64))
    assert np.array_equal(enlarged, image[4:20, 8:24].repeat(4, 0).repeat(4, 1))


def test_a_strip_shows_each_image_with_its_box_and_its_zoom_below() -> None:
    strip = Strip(images(), box=(4, 8, 16, 16), captions=("20 dB", "24 dB"))
    sheet = np.asarray(draw_strips([strip], width=64))
    assert sheet.shape == (GAP + TEXT + 64 + GAP + 64 + 2 * GAP, GAP + 4 * (64 + GAP), 3)
    for i, image in enumerate(strip.images):
        left, top = GAP + i * (64 + GAP), GAP + TEXT
        shown = sheet[top : top + 64, left : left + 64]
        assert np.array_equal(shown[30:], image[30:])
        assert (shown[4, 8:24] == BOX).all() and (shown[19, 8:24] == BOX).all()
        below = sheet[top + 64 + GAP :][2:62, left + 2 : left + 62]
        assert np.array_equal(below, image[4:20, 8:24].repeat(4, 0).repeat(4, 1)[2:62, 2:62])


def test_strips_of_different_sizes_stand_below_each_other_in_a_file(tmp_path: Path) -> None:
    rows = [Strip(images(), title="one"), Strip(images(3, 300), labels=("a", "b", "c")), Strip(images(2, 8))]
    path = save_strips(tmp_path / "strips" / "iter_000001.png", rows, width=128)
    with Image.open(path) as sheet:
        assert sheet.size[0] == GAP + 4 * (128 + GAP)
        assert sheet.size[1] == sum(draw_strips([row], 128).height for row in rows)


@pytest.mark.parametrize(
    "wrong", [[], [np.zeros((8, 8, 3))], [np.zeros((8, 8), np.uint8)], [*images(1, 8), *images(1, 16)]]
)
def test_images_that_do_not_match_are_refused(wrong: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"equally large uint8 \[H, W, 3\] images, got"):
        draw_strips([Strip(wrong)])
    with pytest.raises(ValueError, match="no strips"):
        draw_strips([])
