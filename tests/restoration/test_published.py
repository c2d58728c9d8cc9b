"""LPIPS and FID; weights by the recipe of the golden data, as no published ones are to be had here.

The figures expected of them are those of the packages lpips 0.1.4 and pytorch-fid 0.3.0 with the same weights.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import alexnet

from restoration.checkpoints import CheckpointError, empty
from restoration.evaluate import Row
from restoration.metrics.fid import WEIGHTS, Fid, inception
from restoration.metrics.lpips import BACKBONE, CHANNELS, HEADS, Lpips
from restoration.metrics.perceptual import frechet_distance
from restoration.metrics.published import Published
from tests.golden.case import recipe_tensor

LPIPS = 0.05357974
FEATURES = [8050.6827, 10214.8623]  # mean and deviation


def pictures(count: int, side: int) -> list[np.ndarray]:
    # neighbours far apart, and no two pictures equal
    levels = (np.arange(count * side * side * 3) * 7919 % 251).astype(np.uint8)
    return list(levels.reshape(count, side, side, 3))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three published files, with other numbers."""
    folder = tmp_path_factory.mktemp("published")
    write(folder)
    return folder


def write(folder: Path) -> None:
    trunk = empty(lambda: alexnet(weights=None)).state_dict()
    # the classifier, most of the file, has no part in LPIPS: one number stands for all of it
    torch.save(
        {k: recipe_tensor(k, list(v.shape)) if "features" in k else torch.ones(1) for k, v in trunk.items()},
        folder / BACKBONE,
    )
    heads = {f"lin{i}.model.1.weight": recipe_tensor(f"lin{i}", [1, c, 1, 1]).abs() for i, c in enumerate(CHANNELS)}
    torch.save(heads, folder / HEADS)
    state = dict(empty(inception).state_dict())
    for key, value in state.items():
        if value.is_floating_point():
            drawn = recipe_tensor(key, list(value.shape))
            state[key] = drawn.abs() + 0.5 if key.endswith(("running_var", "bn.weight")) else drawn
        else:
            state[key] = torch.zeros(value.shape, dtype=value.dtype)
    torch.save(state, folder / WEIGHTS)


def test_lpips_is_that_of_the_package(weights: Path) -> None:
    metric = Lpips.from_published(weights)
    a, b = (torch.from_numpy(p)[None].movedim(-1, 1).float() / 255 for p in pictures(2, 64))
    assert float(metric(a, a)) == 0
    assert float(metric(a, b)) == pytest.approx(LPIPS, rel=1e-4)
    assert metric(torch.cat([a, b]), torch.cat([b, b])).tolist() == pytest.approx([LPIPS, 0], rel=1e-4, abs=1e-7)


def test_features_of_fid_are_those_of_the_package_and_the_distance_of_equal_sets_is_0(weights: Path) -> None:
    fid = Fid(weights)
    x = torch.linspace(-1, 1, 3 * 299 * 299).reshape(1, 3, 299, 299)
    with torch.no_grad():
        found = fid.network(x)[0]
    assert found.shape == (2048,)
    assert [float(found.mean()), float(found.std())] == pytest.approx(FEATURES, rel=1e-4)
    same, other = pictures(2, 32), pictures(4, 32)[2:]
    for image in same:
        fid.add(image, image)
    assert fid.value() == pytest.approx(0, abs=1e-6)
    for image, truth in zip(same, other, strict=True):
        fid.add(image, truth)
    assert fid.value() > 1e-6


def test_both_forms_of_the_frechet_distance_agree() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(6, 6)), rng.normal(size=(6, 6)) * 1.5 + 0.3
    few = frechet_distance(a, b)  # not more vectors than dimensions
    many = frechet_distance(*(np.concatenate([x, x]) for x in (a, b)))  # the same Gaussians but for n - 1
    spread = [np.trace(np.cov(x, rowvar=False)) for x in (a, b)]
    shift = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    assert few - shift == pytest.approx((many - shift) * (11 / 12) / (5 / 6), rel=1e-6)
    assert shift < few < shift + sum(spread)


def test_they_stand_beside_the_other_figures(weights: Path) -> None:
    published = Published(weights, weights)
    first, second = pictures(2, 64)
    published.see("a", first, first, second)
    assert published.of_all() == ", no fid: a covariance takes at least two pictures"
    published.see("b", first, second, second)
    rows = published.beside([Row("b", {"psnr": 1.0}), Row("a", {"psnr": 2.0})])
    assert [r.values["psnr"] for r in rows] == [1, 2]
    assert [r.values["lpips"] for r in rows] == pytest.approx([0, LPIPS], rel=1e-4)
    assert published.of_all().startswith(", fid ")
    tiny = np.zeros((30, 40, 3), np.uint8)
    published.see("tiny", tiny, tiny, tiny)
    tiny_row, unseen = published.beside([Row("tiny", {"psnr": 1.0}), Row("unseen", {}, {"picture": "cut off"})])
    assert math.isnan(tiny_row.values["lpips"]) and "at least 31 px a side, got 40x30" in tiny_row.missing["lpips"]
    assert math.isnan(unseen.values["lpips"]) and unseen.missing == {"picture": "cut off"}
    published.see("least", *[np.zeros((31, 31, 3), np.uint8)] * 3)
    assert published.beside([Row("least", {})])[0].values["lpips"] == 0
    none = Published(None, None)
    none.see("a", first, first, second)
    assert none.beside(rows) == rows and none.of_all() == ""


def test_absent_and_foreign_weights_are_told(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{BACKBONE} is absent"):
        Lpips.from_published(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS} is absent"):
        Fid(tmp_path)
    for name in (BACKBONE, HEADS, WEIGHTS):
        (tmp_path / name).symlink_to(weights / BACKBONE)
    with pytest.raises(CheckpointError, match="not the linear heads"):
        Lpips.from_published(tmp_path)
    with pytest.raises(CheckpointError, match=WEIGHTS):
        Fid(tmp_path)
