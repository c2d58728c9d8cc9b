"""Restored in tiles, a picture is the one restored whole, in memory that grows with the tile."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from restoration.backbones.snr import SNRAware, SNRConfig
from restoration.base_models import load, sampler_of
from restoration.base_models.interface import BaseModel, SamplerSettings
from restoration.degradations import degrade, seeded_rng
from restoration.images import read_image
from restoration.restore import restore, sample, seeded_generator
from restoration.tiling import Grid, Tiling, positions, window
from restoration.transition import ddim_schedule, scaled_linear_alphas
from tests.restoration.live_bytes import LiveBytes
from tests.restoration.local_model import LocalModel
from tests.restoration.tiny_model import TinyModel

SAMPLER = SamplerSettings(steps=4)
WHOLE_CONTEXT = Tiling(64, 32)  # a quarter of 32 pixels is what LocalModel looks around itself: 2 cells


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


@st.composite
def lines(draw: Any, longest: int = 90, largest: int = 24) -> tuple[int, int, int]:
    tile = draw(st.integers(1, largest))
    return draw(st.integers(1, longest)), tile, draw(st.integers(0, tile - 1))


@given(lines())
def test_tiles_cover_a_line_lie_within_it_and_share_at_least_the_overlap(line: tuple[int, int, int]) -> None:
    length, tile, overlap = line
    begins, side = positions(*line), min(tile, length)
    assert begins[0] == 0 and begins[-1] + side == length
    assert all(0 < b - a <= tile - overlap for a, b in zip(begins, begins[1:], strict=False))


@given(lines(24, 12), lines(24, 12), st.sampled_from([1, 4]))
@settings(deadline=None, max_examples=20)
def test_blending_what_all_tiles_agree_on_changes_nothing(
    down: tuple[int, int, int], across: tuple[int, int, int], scale: int
) -> None:
    x = torch.rand(2, 1, down[0], across[0], generator=torch.Generator().manual_seed(0)) + 1
    grid = Grid(down[0], across[0], *across[1:])

    def enlarged(tile: Tensor, _: int) -> Tensor:
        return tile.repeat_interleave(scale, -1).repeat_interleave(scale, -2)

    assert torch.allclose(grid.map(enlarged, x), enlarged(x, 0), rtol=1e-5, atol=0)


def test_a_window_fades_in_the_middle_half_of_the_overlap_and_neighbours_add_up_to_1() -> None:
    left, right = window(20, 8, True, False), window(20, 8, False, True)
    assert torch.allclose(left[12:] + right[:8], torch.ones(8))
    assert torch.equal(left[:14], torch.ones(14)) and torch.equal(left[18:], torch.zeros(2))
    assert (left.diff() <= 0).all()


@pytest.mark.parametrize("one_step", [False, True])
@pytest.mark.parametrize("size", [(200, 136), (64, 333), (65, 97)])
def test_a_model_that_looks_no_further_than_a_quarter_of_the_overlap_gives_the_same_picture_everywhere(
    size: tuple[int, int], one_step: bool
) -> None:
    model, lq = LocalModel(one_step), picture(*size)
    whole = restore(model, lq, SAMPLER, seeded_generator("x", 0))
    assert len(model.seen) == 1
    tiled = restore(model, lq, SAMPLER, seeded_generator("x", 0), tiling=WHOLE_CONTEXT)
    assert len(model.seen) > 2 and all(max(shape[-2:]) <= 64 for shape in model.seen[1:])
    assert whole.std() > 0.02 and torch.allclose(tiled, whole, rtol=0, atol=2e-6)


def test_with_less_overlap_only_the_seams_differ() -> None:
    model, lq = LocalModel(one_step=True), picture(64, 120)
    whole, tiled = (
        restore(model, lq, SAMPLER, seeded_generator("x", 0), tiling=tiling) for tiling in (None, Tiling(64, 8))
    )
    error = (whole - tiled).abs().amax((0, 1))
    assert error[56:64].max() > 1e-4  # the two tiles share columns 56 to 63
    assert torch.cat([error[:44], error[76:]]).max() < 2e-6


@pytest.mark.parametrize("tiling", [Tiling(512, 64), Tiling(96, 64), Tiling(90, 0)])
def test_a_tile_as_large_as_the_picture_or_larger_gives_the_same_bits(tiling: Tiling) -> None:
    lq = picture(33, 95)
    whole, tiled = (
        restore(LocalModel(), lq, SAMPLER, seeded_generator("x", 0), tiling=tiling) for tiling in (None, tiling)
    )
    assert torch.equal(whole, tiled)


def test_equal_seeds_give_equal_bits_and_other_seeds_other_pictures() -> None:
    first, again, other = (
        restore(LocalModel(), picture(130, 70), SAMPLER, seeded_generator("x", s), tiling=WHOLE_CONTEXT)
        for s in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=1e-3)


def test_an_image_of_a_batch_does_not_depend_on_its_company_in_tiles_either() -> None:
    lq = torch.stack([picture(96, 96, seed) for seed in range(2)])
    generators = [seeded_generator(str(i), 0) for i in range(2)]
    together = sample(LocalModel(), lq, SAMPLER, generators, WHOLE_CONTEXT)
    alone = sample(LocalModel(), lq[1:], SAMPLER, [seeded_generator("1", 0)], WHOLE_CONTEXT)
    assert torch.allclose(together[1:], alone, atol=1e-6)


@pytest.mark.parametrize("how", ["adain", "wavelet"])
def test_colours_are_those_of_the_whole_picture(how: Any) -> None:
    sampler, lq = SamplerSettings(steps=4, colour_fix=how), picture(200, 136)
    whole, tiled = (
        restore(LocalModel(), lq, sampler, seeded_generator("x", 0), tiling=tiling) for tiling in (None, WHOLE_CONTEXT)
    )
    assert torch.allclose(tiled, whole, rtol=0, atol=1e-5)


def test_tiles_the_model_can_not_have_are_refused_or_rounded_up() -> None:
    with pytest.raises(ValueError, match="0 <= overlap < tile"):
        Tiling(64, 64)
    with pytest.raises(ValueError, match="multiples of 8 that is 16 and 16; choose larger tiles"):
        restore(TinyModel(), picture(40, 40), SAMPLER, seeded_generator("x", 0), tiling=Tiling(12, 9))
    model = TinyModel()
    restore(model, picture(40, 40), SAMPLER, seeded_generator("x", 0), tiling=Tiling(12, 3))
    tiles, pieces = model.seen.count((1, 3, 16, 16)), model.seen.count((4, 3, 8, 8))
    assert tiles == 16 and pieces == len(model.seen) - tiles > 0


def measured(model: BaseModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """(method, most bytes it holds at a time, its largest tensor) of each call of a network from here on."""
    calls: list[tuple[str, int, int]] = []

    def counting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with LiveBytes() as bytes_:
                given = method(*args)
            calls.append((name, bytes_.peak, bytes_.largest))
            return given

        return call

    for name in ("condition", "denoise", "decode"):
        monkeypatch.setattr(model, name, counting(name, getattr(model, name)))
    return calls


@pytest.fixture(scope="module")
def released(request: pytest.FixtureRequest, model_folder: Callable[[str], Path]) -> BaseModel:
    """Not to be changed."""
    return load(model_folder(request.param))


@pytest.mark.parametrize(
    ("released", "tile"),
    [("controlnet", 32), pytest.param("faithdiff", 64, marks=pytest.mark.slow)],  # in smaller ones its text outweighs
    indirect=["released"],
)
def test_the_memory_of_cleaner_vae_and_denoiser_grows_with_the_tile_and_not_with_the_picture(
    released: BaseModel, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = measured(released, monkeypatch)

    def most(side: int, tiling: Tiling | None) -> dict[str, tuple[int, int]]:
        calls.clear()
        restore(released, picture(side, side), SamplerSettings(steps=1), seeded_generator("x", 0), tiling=tiling)
        return {
            n: tuple(max(v[i] for v in calls if v[0] == n) for i in (1, 2)) for n in dict.fromkeys(c[0] for c in calls)
        }

    tiling = Tiling(tile, 0)
    small, large, whole = most(2 * tile, tiling), most(4 * tile, tiling), most(4 * tile, None)
    assert small.keys() == {"condition", "denoise", "decode"} and small == large
    # not by as much as the pixels: each of a sample's pieces brings its own copy of the text
    assert all(whole[name][0] > 6 * large[name][0] for name in whole)
    larger = most(4 * tile, Tiling(2 * tile, 0))
    assert all(larger[name][0] > 1.8 * large[name][0] for name in large)


@pytest.mark.parametrize(
    "released", ["diffbir", "controlnet_sdxl", "pasd", "seesr", "faithdiff", "stablesr", "pisa", "sd3"], indirect=True
)
@pytest.mark.parametrize("size", [(75, 49), pytest.param((25, 66), marks=pytest.mark.slow)])
def test_released_models_restore_odd_sizes_in_tiles(released: BaseModel, size: tuple[int, int]) -> None:
    one_step, lq = released.sampler.steps == 1, picture(*size)
    sampler = released.sampler if one_step else SamplerSettings(steps=2, guidance_scale=2.0)
    tiled, again = (restore(released, lq, sampler, seeded_generator("x", 0), tiling=Tiling(64, 32)) for _ in range(2))
    assert tiled.shape == lq.shape and torch.equal(tiled, again)
    assert torch.isfinite(tiled).all() and tiled.std() > 0.005
    larger = restore(released, lq, sampler, seeded_generator("x", 0), tiling=Tiling(1024, 64))
    assert torch.equal(larger, restore(released, lq, sampler, seeded_generator("x", 0)))


DEMO = Path("models/demo")
QUICK = SamplerSettings(steps=2)  # of a chain whose every step sees tiles
SMALL_TILES = Tiling(96, 32)


def ramp(height: int, width: int, down: float, across: float) -> Tensor:
    """Grey, from 60 to 200 of 255 levels."""
    y, x = torch.linspace(0, down, height)[:, None], torch.linspace(0, across, width)
    return ((60 + 140 * (y + x)).round() / 255).expand(3, height, width).contiguous()


def largest_step(image: Tensor) -> float:
    """Between the mean levels, of 255, of neighbouring strips of 32 pixels, along either side."""
    lines = (image.mean(0).mean(along) * 255 for along in (0, 1))
    strips = (line[: len(line) // 32 * 32].unflatten(0, (-1, 32)).mean(1) for line in lines)
    return max(float(strip.diff().abs().max()) for strip in strips)


def decibels(image: Tensor, reference: Tensor) -> float:
    return -10 * math.log10(float((image - reference).square().mean()))


@pytest.mark.parametrize(("direction", "how"), [((0, 1), "none"), ((0, 1), "wavelet"), ((1, 0), "adain")])
def test_a_ramp_in_tiles_has_at_most_twice_the_steps_of_the_ramp_restored_whole(
    demo: BaseModel, direction: tuple[float, float], how: Any
) -> None:
    lq, sampler = ramp(136, 200, *direction), replace(QUICK, colour_fix=how)
    whole, tiled = (
        restore(demo, lq, sampler, seeded_generator("x", 0), tiling=tiling) for tiling in (None, SMALL_TILES)
    )
    assert largest_step(tiled) <= 2 * largest_step(whole)
    assert decibels(tiled, whole) > 25


def test_a_photograph_in_tiles_is_at_most_0_3_db_below_the_photograph_restored_whole(demo: BaseModel) -> None:
    gt = read_image(Path("data/photos/heldout/china.jpg"))[:, 133:293, 192:448]
    lq = torch.from_numpy(degrade(gt.permute(1, 2, 0).numpy(), "rain", 0.7, seeded_rng("china", 0))).permute(2, 0, 1)
    sampler = sampler_of(DEMO, demo)
    whole, tiled = (
        restore(demo, lq, sampler, seeded_generator("x", 0), tiling=tiling) for tiling in (None, SMALL_TILES)
    )
    assert decibels(tiled, gt) >= decibels(whole, gt) - 0.3


@pytest.fixture(scope="module")
def demo() -> BaseModel:
    return load(DEMO)


def identity_like(released: Any) -> Any:
    """Its chain ends in the condition's latent, and the residual branches of cleaner and autoencoder weigh little.

    With weights drawn at random alone these networks are chaotic: then nothing but the same picture gives the same.
    """
    released.schedule = lambda sampler: ddim_schedule(scaled_linear_alphas(), 1, 1.0, "sample")
    released.denoise = lambda x_t, timestep, condition, guidance_scale: condition.latent
    networks = [released.vae, released.cleaner, *filter(None, [getattr(released, "fused", None)])]
    with torch.no_grad():
        for network in networks:
            for name, weight in network.named_parameters():
                if re.search(r"conv2\.|to_out\.0\.|project_out\.|w_2\.|\.fc\.", name):
                    weight *= 0.1
    return released


@pytest.mark.parametrize("released", ["stablesr", "tsdsr", "sd3"], indirect=True)
@pytest.mark.parametrize("snr", [False, True])
def test_cleaner_and_autoencoder_of_other_families_meet_the_bar_of_ramps(released: BaseModel, snr: bool) -> None:
    model: Any = deepcopy(released)
    if snr:
        torch.manual_seed(0)
        model.cleaner = SNRAware(SNRConfig(channels=8, layers=1, heads=2, key_width=8, hidden=16)).eval()
    model, lq = identity_like(model), ramp(96, 192, 0, 1)
    whole, tiled = (
        restore(model, lq, QUICK, seeded_generator("x", 0), tiling=tiling) for tiling in (None, SMALL_TILES)
    )
    assert largest_step(tiled) <= 2 * largest_step(whole)
    with mock.patch.object(Grid, "samples", lambda *_: []):
        apart = restore(model, lq, QUICK, seeded_generator("x", 0), tiling=SMALL_TILES)
    assert decibels(tiled, whole) > decibels(apart, whole) + 7
