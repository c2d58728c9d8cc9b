"""DISTS; weights by the recipe of the golden data, as no published ones of VGG are to be had here.

The figures expected are those of the package DISTS_pytorch 0.1 with the same weights.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import vgg16

from restoration.checkpoints import CheckpointError, empty
from restoration.evaluate import Row
from restoration.metrics.dists import BACKBONE, CHANNELS, COMPARED, WEIGHTS, Dists
from restoration.metrics.published import Published
from tests.golden.case import recipe_tensor
from tests.restoration.test_published import pictures

EXPECTED = {64: 0.02710335, 37: 0.02156396}  # side of the pictures -> figure


def names() -> dict[str, list[int]]:
    """Of VGG's features -> their shapes."""
    features = empty(lambda: vgg16(weights=None).features).state_dict()
    return {f"features.{key}": list(value.shape) for key, value in features.items()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dists")
    state = {key: recipe_tensor(key, shape) for key, shape in names().items()}
    torch.save(state | {"classifier.0.weight": torch.ones(1)}, folder / BACKBONE)
    torch.save({k: recipe_tensor(k, [1, sum(CHANNELS), 1, 1]).abs() for k in ("alpha", "beta")}, folder / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def metric(weights: Path) -> Dists:
    return Dists.from_published(weights)


@pytest.mark.parametrize("side", EXPECTED)
def test_dists_is_that_of_the_package(metric: Dists, side: int) -> None:
    a, b = (torch.from_numpy(p)[None].movedim(-1, 1).float() / 255 for p in pictures(2, side))
    assert float(metric(a, a)) == pytest.approx(0, abs=1e-6)
    assert float(metric(a, b)) == pytest.approx(EXPECTED[side], rel=1e-4)
    both = metric(torch.cat([a, b]), torch.cat([b, b])).tolist()
    assert both == pytest.approx([EXPECTED[side], 0], rel=1e-4, abs=1e-6)


def test_it_stands_beside_the_other_figures(weights: Path) -> None:
    published = Published(None, None, dists=weights)
    first, second = pictures(2, 37)
    published.see("a", first, first, second)
    (row,) = published.beside([Row("a", {"psnr": 1.0})])
    assert row.values == {"psnr": 1.0, "dists": pytest.approx(EXPECTED[37], rel=1e-4)} and not row.missing


def test_absent_and_foreign_weights_are_told(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{BACKBONE} is absent: DISTS needs torchvision's"):
        Dists.from_published(tmp_path)
    (tmp_path / BACKBONE).symlink_to(weights / BACKBONE)
    with pytest.raises(CheckpointError, match=r"weights\.pt is absent"):
        Dists.from_published(tmp_path)
    (tmp_path / WEIGHTS).symlink_to(weights / BACKBONE)
    with pytest.raises(CheckpointError, match="not the weights of DISTS, which are alpha and beta"):
        Dists.from_published(tmp_path)


def test_all_layers_of_the_published_backbone_up_to_the_last_compared_one_are_taken(metric: Dists) -> None:
    kept = {key for key in metric.state_dict() if key.startswith("features.")}
    assert kept == {key for key in names() if int(key.split(".")[1]) <= COMPARED[-1]} == {*names()}
