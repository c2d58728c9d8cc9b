from __future__ import annotations

import numpy as np
import pytest

from restoration.metrics.appearance import APPEARANCE, brightness, laplacian, saturation

GREY = np.full((1, 8, 8, 3), 102, np.uint8)


def test_an_even_grey_image_has_brightness_and_nothing_else() -> None:
    assert brightness(GREY) == pytest.approx(0.4) and saturation(GREY) == 0 and laplacian(GREY) == 0


def test_colour_is_saturation_and_a_point_is_sharpness() -> None:
    red = GREY.copy()
    red[..., 0] = 204
    assert saturation(red) == pytest.approx(0.4) and laplacian(red) == pytest.approx(0, abs=1e-6)
    point = GREY.copy()
    point[0, 4, 4] = 153  # 0.2 above: the Laplacian is -0.8 there and 0.2 at its four neighbours
    assert laplacian(point) == pytest.approx((0.8 + 4 * 0.2) / 36)


@pytest.mark.parametrize("name", APPEARANCE)
def test_each_image_has_its_own_figure(name: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    found = APPEARANCE[name](images)
    assert found.dtype == np.float32
    assert found == pytest.approx([APPEARANCE[name](image[None])[0] for image in images])
