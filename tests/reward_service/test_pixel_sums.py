from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from reward_service.scorers import natural_scenes, pixel_sums
from reward_service.scorers.natural_scenes import BLUR, GREY, HALVING, SHIFTS

SIZES = [(16, 16), (37, 50), (64, 33)]


def pictures(size: tuple[int, int]) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES)
def test_the_way_of_a_cpu_and_that_of_any_device_give_the_same(size: tuple[int, int]) -> None:
    images = pictures(size)
    level = pixel_sums.levels(images, GREY, torch.float64)
    assert torch.equal(level, pixel_sums.levels_anywhere(images, GREY, torch.float64))
    assert torch.equal(level.float(), pixel_sums.levels(images, GREY, torch.float32))
    for dtype, near in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        x = level.to(dtype)
        assert pixel_sums.blurred(x, BLUR).dtype == pixel_sums.halved(x, HALVING).dtype == dtype
        assert torch.allclose(pixel_sums.blurred(x, BLUR), pixel_sums.blurred_anywhere(x, BLUR), rtol=near)
        assert torch.allclose(
            pixel_sums.halved(x, HALVING), pixel_sums.halved_anywhere(x, HALVING), rtol=near, atol=near
        )
        assert torch.allclose(pixel_sums.weighted_sums(x[0], x[1]), x[0] @ x[1].T, rtol=near)


@pytest.mark.parametrize("name", ["levels_anywhere", "blurred_anywhere", "halved_anywhere"])
def test_on_any_device_a_picture_gets_the_same_numbers_in_any_company(name: str) -> None:
    images = pictures((64, 33))
    given = {"levels_anywhere": (GREY, torch.float64), "blurred_anywhere": (BLUR,), "halved_anywhere": (HALVING,)}[name]
    x = images if name.startswith("levels") else images[..., 0].double()
    work = getattr(pixel_sums, name)
    assert torch.equal(work(x, *given)[1:2], work(x[1:2].clone(), *given))


@pytest.mark.parametrize("size", [(3, 5), (37, 50), (64, 1030)])
def test_sums_of_pairs_are_those_of_a_picture_and_of_itself_shifted(size: tuple[int, int]) -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, *size)))
    x[0, 0, 0] = 0
    found = natural_scenes.sums(x)
    for number, picture in enumerate(x.numpy()):
        around = np.pad(picture, 1, "wrap")[:-1]
        planes = [picture, *(picture * around[1 - d : 1 - d + size[0], 1 - r : 1 - r + size[1]] for d, r in SHIFTS)]
        wanted = [[np.abs(p).sum(), (p**2).sum(), (p * np.abs(p)).sum(), (p < 0).sum(), (p > 0).sum()] for p in planes]
        got = [column[:, number].numpy() for column in found[1:]]
        np.testing.assert_allclose(np.array(got).T, wanted, rtol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 7, 64, 100])
def test_a_folded_sum_is_the_sum(length: int) -> None:
    x = torch.rand(3, length, 2, dtype=torch.float64)
    assert torch.allclose(pixel_sums.folded(x, 1), x.sum(1))


def test_the_grey_of_every_colour_is_far_enough_from_a_tie_for_any_rounding() -> None:
    levels = np.arange(256)
    blue_green = levels[:, None] * GREY[1] + levels * GREY[2]
    nearest = min(np.abs((blue_green + red * GREY[0]) % 1 - 0.5).min() for red in levels)
    assert nearest > 4e-6


def test_parts_for_several_threads_come_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    images, before = pictures((16, 16)).numpy(), torch.get_num_threads()
    images = np.concatenate([images] * 5)
    monkeypatch.setattr(natural_scenes, "PIXELS_AT_ONCE", 512)
    try:
        torch.set_num_threads(3)
        with torch.inference_mode():
            parts = natural_scenes.in_parts(lambda part: part.clone(), images, torch.device("cpu"))
    finally:
        torch.set_num_threads(before)
    assert [len(part) for part in parts] == [2] * 7 + [1]
    assert np.array_equal(torch.cat(parts).numpy(), images)


ALONE = """
import os, time, numpy as np, torch
from reward_service.scorers import make_scorer
torch.set_num_threads(2)
images = np.random.default_rng(0).integers(0, 256, (32, 64, 64, 3), dtype=np.uint8)
for name in ("brisque", "piqe"):
    scorer = make_scorer(name)
    before = len(os.listdir("/proc/self/task"))
    scorer.score(np.repeat(np.repeat(images, 2, 1), 2, 2))
    ends = time.monotonic() + 3
    while (left := len(os.listdir("/proc/self/task")) - before) and time.monotonic() < ends:
        time.sleep(0.01)  # the parts' own are just ending
    print(name, left)
"""


def test_no_threads_are_left_that_go_on_turning_on_the_cores_that_score() -> None:
    """Those of OpenMP wait for their next task by turning, and take half of a core from the parts' own threads."""
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["brisque 0", "piqe 0"], done.stdout
