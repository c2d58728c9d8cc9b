"""What the network sees is what the published processor gives it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from reward_service.scorers.mplug_owl2.pixels import PAD, pad_to_square, prepare, resize, windows

SIZES = [(64, 64), (512, 512), (300, 200), (201, 300), (37, 91), (448, 448), (449, 447), (1, 5)]


def pictures(height: int, width: int, count: int = 2) -> np.ndarray:
    """Noise, whose extremes a resizing overshoots, and a smooth one."""
    noise = np.random.default_rng(height).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    noise[0] = np.linspace(0, 255, height * width * 3).reshape(height, width, 3).astype(np.uint8)
    return noise


def by_pillow(image: np.ndarray, side: int) -> np.ndarray:
    height, width = image.shape[:2]
    longer = max(height, width)
    square = Image.new("RGB", (longer, longer), PAD)
    square.paste(Image.fromarray(image), ((longer - width) // 2, (longer - height) // 2))
    return np.asarray(square.resize((side, side), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("side", [56, 448])
def test_padding_and_resizing_have_the_bits_of_pillow(height: int, width: int, side: int) -> None:
    images = pictures(height, width)
    ours = resize(pad_to_square(torch.from_numpy(images)), side).numpy()
    np.testing.assert_array_equal(ours, np.stack([by_pillow(image, side) for image in images]))


def test_the_levels_are_normalised_as_clips() -> None:
    images = pictures(70, 90)
    mean, std = np.float32([0.48145466, 0.4578275, 0.40821073]), np.float32([0.26862954, 0.26130258, 0.27577711])
    wanted = np.stack([(by_pillow(image, 56) * np.float32(1 / 255) - mean) / std for image in images])
    ours = prepare(torch.from_numpy(images), 56, torch.float32)
    assert ours.shape == (2, 3, 56, 56)
    np.testing.assert_allclose(ours.permute(0, 2, 3, 1).numpy(), wanted, atol=1e-6)
    assert prepare(torch.from_numpy(images), 56, torch.float16).dtype == torch.float16


def test_the_padding_is_clips_mean_and_an_odd_pixel_stands_below_or_right() -> None:
    white = torch.full((1, 4, 7, 3), 255, dtype=torch.uint8)
    square = pad_to_square(white)
    assert [int((row == 255).all()) for row in square[0]] == [0, 1, 1, 1, 1, 0, 0]
    assert square[0, 0, 0].tolist() == [122, 116, 104]
    assert torch.equal(pad_to_square(white.transpose(1, 2)), square.transpose(1, 2))


def test_windows_are_of_the_networks_size_inside_the_picture_and_reach_its_edges() -> None:
    boxes = windows(1000, 1500, 448, 3)
    assert len(boxes) == 9
    assert all((bottom - top, right - left) == (448, 448) for top, bottom, left, right in boxes)
    assert min(b[0] for b in boxes) == min(b[2] for b in boxes) == 0
    assert max(b[1] for b in boxes) == 1000 and max(b[3] for b in boxes) == 1500
    assert windows(1000, 500, 448, 1) == [(276, 724, 26, 474)]
    assert windows(200, 900, 448, 2) == [(0, 200, 0, 448), (0, 200, 452, 900)]


def test_a_picture_that_the_network_sees_at_its_own_size_has_no_windows() -> None:
    assert windows(448, 448, 448, 3) == windows(100, 400, 448, 3) == windows(1000, 1000, 448, 0) == []
