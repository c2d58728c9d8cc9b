"""LPIPS and FID; weights by the recipe of the golden data, as no published ones are to be had here.

The figures expected of them are those of the packages lpips 0.1.4 and pytorch-fid 0.3.0 with the same weights.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import alexnet, vgg16

from restoration.checkpoints import CheckpointError, empty
from restoration.evaluate import Row
from restoration.metrics.fid import WEIGHTS, Fid, inception, resized, resized_legacy
from restoration.metrics.lpips import BACKBONE, CHANNELS, HEADS, TRUNKS, Lpips
from restoration.metrics.perceptual import frechet_distance
from restoration.metrics.published import Published
from tests.golden.case import recipe_tensor

LPIPS = 0.05357974
LPIPS_VGG = 0.04939319
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


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for VGG."""
    folder, trunk = tmp_path_factory.mktemp("vgg"), TRUNKS["vgg"]
    state = empty(lambda: vgg16(weights=None).features).state_dict()
    torch.save(
        {f"features.{k}": recipe_tensor(f"features.{k}", list(v.shape)) for k, v in state.items()},
        folder / trunk.backbone,
    )
    heads = {
        f"lin{i}.model.1.weight": recipe_tensor(f"lin{i}", [1, c, 1, 1]).abs() for i, c in enumerate(trunk.channels)
    }
    torch.save(heads, folder / trunk.heads)
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


def test_a_distance_that_finds_no_memory_is_missing_with_its_reason_and_any_other_error_is_raised() -> None:
    def full(*_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory")

    def broken(*_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a size does not fit")

    published = Published(None, None)
    published.pairwise, published._distances = {"lpips": (full, 31)}, {"lpips": {}}
    (image,) = pictures(1, 64)
    published.see("a", image, image, image)
    (row,) = published.beside([Row("a", {"psnr": 1.0})])
    assert math.isnan(row.values["lpips"]) and "measure smaller pictures" in row.missing["lpips"]
    published.pairwise = {"lpips": (broken, 31)}
    with pytest.raises(RuntimeError, match="does not fit"):
        published.see("b", image, image, image)


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


def test_lpips_on_vgg_is_that_of_the_package(vgg: Path, weights: Path, tmp_path: Path) -> None:
    metric = Lpips.from_published(vgg, "vgg")
    a, b = (torch.from_numpy(p)[None].movedim(-1, 1).float() / 255 for p in pictures(2, 64))
    assert float(metric(a, a)) == 0
    assert float(metric(a, b)) == pytest.approx(LPIPS_VGG, rel=1e-4)
    least = torch.zeros(1, 3, 16, 16)
    assert float(metric(least, least)) == 0
    with pytest.raises(
        CheckpointError, match=r"vgg16-397923af\.pth is absent: LPIPS needs torchvision's vgg16-397923af"
    ):
        Lpips.from_published(weights, "vgg")
    both = tmp_path / "both"
    both.mkdir()
    for file in (*weights.iterdir(), *vgg.iterdir()):
        (both / file.name).symlink_to(file)
    published = Published(both, None, ["alex", "vgg"])
    first, second = pictures(2, 64)
    published.see("a", first, first, second)
    published.see("small", *[np.zeros((20, 20, 3), np.uint8)] * 3)
    row, small = published.beside([Row("a", {"psnr": 1.0}), Row("small", {})])
    assert row.values == {
        "psnr": 1.0,
        "lpips": pytest.approx(LPIPS, rel=1e-4),
        "lpips_vgg": pytest.approx(LPIPS_VGG, rel=1e-4),
    }
    assert math.isnan(small.values["lpips"]) and small.values["lpips_vgg"] == 0 and list(small.missing) == ["lpips"]
    with pytest.raises(ValueError, match="LPIPS on 'squeeze' is unknown; choose alex or vgg"):
        Published(both, None, ["squeeze"])


class Means(torch.nn.Module):
    """In the place of Inception, which takes seconds: the mean levels of the quarters of a picture."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def test_kinds_of_fid_have_their_own_names_resizing_and_counts(weights: Path) -> None:
    published = Published(None, weights, kinds=["clean", "legacy", "patch32"])
    assert len({id(fid.network) for fid in published.fid}) == 1  # read once
    for fid in published.fid:
        fid.network = Means()
    first, second, third = pictures(3, 64)
    published.see("a", first, first, second)
    published.see("b", first, second, third)
    clean, legacy, patch = published.fid
    assert (clean.name, legacy.name, patch.name) == ("fid", "fid_legacy", "fid_patch32")
    assert (clean.count, legacy.count, patch.count) == (2, 2, 8)
    assert len({fid.value() for fid in published.fid}) == 3
    told = published.of_all()
    assert ", fid_patch32 " in told and "(n=8, below the 2048 features: compare at equal n only)" in told
    published.see("small", *[np.zeros((20, 40, 3), np.uint8)] * 3)
    assert "without pictures such as small: fid_patch32: no tile of 32 px fits into 40x20" in published.of_all()
    assert patch.count == 8 and clean.count == 3
    with pytest.raises(ValueError, match="FID of the kind 'patch0' is unknown; choose clean, legacy or patchN"):
        Fid(weights, "patch0", Means())
    alone = Fid(weights, "patch32", Means())
    alone.add(first, second)
    alone.add(second, third)
    tiles = [
        [x[i : i + 32, j : j + 32] for x in side for i in (0, 32) for j in (0, 32)]
        for side in ((first, second), (second, third))
    ]
    features = [torch.stack([resized(tile) for tile in side]) * 2 - 1 for side in tiles]
    expected = frechet_distance(*(Means()(x).double().numpy() for x in features))
    assert alone.value() == pytest.approx(expected, rel=1e-6)


def test_legacy_resizing_is_bilinear_without_antialiasing(weights: Path) -> None:
    image = pictures(1, 700)[0]
    x = torch.from_numpy(image).movedim(-1, 0)[None].float() / 255
    expected = torch.nn.functional.interpolate(x, (299, 299), mode="bilinear", align_corners=False)[0]
    assert torch.equal(resized_legacy(image), expected)
    assert resized_legacy(image).std() > 1.5 * resized(image).std()  # neighbours far apart are not averaged
