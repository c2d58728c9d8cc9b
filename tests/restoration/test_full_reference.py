"""Full-reference terms of a reward."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from restoration.activations import LiveBytes
from restoration.checkpoints import CheckpointError
from restoration.metrics import full_reference as module
from restoration.metrics.full_reference import FULL_REFERENCE, LPIPS_BATCH, device_bytes, full_reference, version_of
from restoration.metrics.lpips import BACKBONE, HEADS, Lpips
from restoration.metrics.protocols import PSNR_CEILING, measure


def pictures(count: int = 2, side: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return np.clip(truth + rng.integers(-30, 30, truth.shape), 0, 255).astype(np.uint8), truth


@pytest.mark.parametrize("protocol", ["lowlight_rgb", "derain_y"])
def test_psnr_and_ssim_are_those_of_the_named_protocol(protocol: str) -> None:
    images, truths = pictures()
    for name in ("psnr", "ssim"):
        found = full_reference(name, protocol=protocol).score(images, truths)
        expected = [measure(protocol, a, b)[name] for a, b in zip(images, truths, strict=True)]
        assert found.dtype == np.float32 and np.allclose(found, expected, rtol=1e-6)


def test_reconstruction_is_minus_the_distance_in_units_of_1() -> None:
    images, truths = pictures()
    expected = [-np.linalg.norm((a.astype(float) - b) / 255) for a, b in zip(images, truths, strict=True)]
    assert np.allclose(full_reference("reconstruction").score(images, truths), expected, rtol=1e-5)


def test_an_exact_copy_has_a_finite_score() -> None:
    _, truths = pictures()
    found = {name: full_reference(name).score(truths, truths).tolist() for name in ("psnr", "ssim", "reconstruction")}
    assert found == {"psnr": [PSNR_CEILING] * 2, "ssim": [1.0] * 2, "reconstruction": [0.0] * 2}


def published(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    network = Lpips()
    for parameter in network.parameters():
        torch.nn.init.uniform_(parameter, 0, 0.05)
    folder.mkdir(exist_ok=True)
    state = network.state_dict()
    torch.save({k: v for k, v in state.items() if k.startswith("features")}, folder / BACKBONE)
    heads = {f"lin{i}.model.1.weight": state[f"heads.{i}"] for i in range(5)}
    torch.save(heads, folder / HEADS)


def test_lpips_of_the_users_weights_is_negated_alike_in_any_company_and_its_version_is_their_digest(
    tmp_path: Path,
) -> None:
    published(tmp_path, 0)
    images, truths = pictures(10)
    metric = full_reference("lpips", weights=str(tmp_path))
    scores = metric.score(images, truths)
    assert (scores < 0).all() and metric.score(truths, truths).tolist() == [0] * 10
    alone = np.concatenate([metric.score(images[i : i + 1], truths[i : i + 1]) for i in range(10)])
    assert np.allclose(scores, alone, rtol=1e-5)
    assert metric.version == version_of("lpips", weights=str(tmp_path))
    published(tmp_path, 1)
    assert metric.version != version_of("lpips", weights=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "params", "error", "said"),
    [
        ("vif", {}, ValueError, "no full-reference scorer named 'vif'; choose one of psnr"),
        ("psnr", {"border": 4}, ValueError, "psnr has no parameter 'border'; it takes protocol"),
        ("reconstruction", {"protocol": "derain_y"}, ValueError, "it takes none"),
        ("ssim", {"protocol": "mine"}, ValueError, "protocol 'mine' is unknown"),
        ("lpips", {}, ValueError, "needs params.weights"),
        ("lpips", {"weights": "nowhere"}, CheckpointError, "is absent: LPIPS needs"),
    ],
)
def test_what_can_not_be_made_is_refused_by_name_before_it_is(
    name: str, params: dict[str, object], error: type[Exception], said: str
) -> None:
    for make in (full_reference, version_of):
        with pytest.raises(error, match=said):
            make(name, **params)


def test_each_says_the_least_side_that_it_takes() -> None:
    assert {name: side for name, (_, side) in FULL_REFERENCE.items()} == {
        "psnr": 1, "ssim": 11, "reconstruction": 1, "lpips": 31,
    }  # fmt: skip


@pytest.mark.parametrize(("count", "side"), [(2, 40), (3, 67), (LPIPS_BATCH + 1, 40)])
def test_what_lpips_holds_is_known_from_shapes_alone(tmp_path: Path, count: int, side: int) -> None:
    published(tmp_path, 0)
    metric = full_reference("lpips", weights=str(tmp_path))
    network, work = device_bytes("lpips", count, side, side)
    files = sum(v.nbytes for name in (BACKBONE, HEADS) for v in torch.load(tmp_path / name, weights_only=True).values())
    assert network == files + 6 * 4  # and what pictures are normalised by
    images, truths = pictures(count, side)
    with LiveBytes() as measured:
        metric.score(images, truths)
    # pictures and scores lie in main memory besides
    assert work <= measured.peak <= work + images.nbytes + truths.nbytes + 4 * count
    first = 64 * ((side + 4 - 11) // 4 + 1) ** 2 * 4 * 2 * min(count, LPIPS_BATCH)
    assert 2 * first < work < 10 * first


def test_others_hold_nothing_on_a_device() -> None:
    assert {device_bytes(name, 64, 512, 512) for name in FULL_REFERENCE if name != "lpips"} == {(0, 0)}


@pytest.mark.parametrize("name", ["psnr", "ssim"])
def test_pairs_are_compared_a_few_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, truths = pictures(7)
    whole = full_reference(name).score(images, truths)
    monkeypatch.setattr(module, "AT_ONCE", 3)
    with LiveBytes() as few:
        np.testing.assert_array_equal(full_reference(name).score(images, truths), whole)
    monkeypatch.setattr(module, "AT_ONCE", 7)
    with LiveBytes() as all_of_them:
        full_reference(name).score(images, truths)
    assert few.peak < 0.6 * all_of_them.peak
