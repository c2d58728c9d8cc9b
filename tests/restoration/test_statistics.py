"""Parts of a picture are given the statistics of the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from restoration.backbones.restormer import ChannelAttention
from restoration.backbones.snr import PatchTransformer, SNRConfig, snr_map
from restoration.base_models.networks.sdxl import time_ids
from restoration.statistics import Statistics, given, sampling, shared
from restoration.tiling import Grid, Pieces

SIDE = 64
# Half a tile's side each. Their outer 4 pixels are 28 of 64 parts; such a margin of the picture is 15 of 64.
EDGE, INNER = 15 / 28, 49 / 36
QUARTERS = Pieces(32, 32, [(0, 0), (0, 32), (32, 0), (32, 32)], (SIDE, SIDE), (SIDE, SIDE))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sampled(network: nn.Module, picture: Tensor, pieces: Pieces = QUARTERS, attention: bool = False) -> Statistics:
    statistics = Statistics(attention)
    with torch.no_grad(), sampling(statistics, pieces):
        network(pieces.cut(picture))
    return statistics


def test_a_group_norm_in_a_tile_takes_mean_and_variance_of_its_picture_s_pieces_with_edges_as_in_the_picture() -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(2, 6)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    pictures = noise(3, 6, SIDE, SIDE) * torch.tensor([1.0, 2.0, 3.0])[:, None, None, None] + 5
    statistics, tile = sampled(norm, pictures), pictures[..., :20, 8:40]
    with torch.no_grad(), given(statistics):
        found = norm(tile)
    for i, picture in enumerate(pictures):
        pieces = QUARTERS.cut(picture[None]).transpose(0, 1).unflatten(0, (2, 3))
        weights = torch.full((SIDE // 2, SIDE // 2), EDGE)
        weights[4:-4, 4:-4] = INNER
        mean = (pieces * weights).mean((1, 2, 3, 4))
        variance = ((pieces - mean[:, None, None, None, None]).square() * weights).mean((1, 2, 3, 4))
        wanted = (tile[i] - mean.repeat_interleave(3)[:, None, None]) / (variance + norm.eps).sqrt().repeat_interleave(
            3
        )[:, None, None] * norm.weight[:, None, None] + norm.bias[:, None, None]
        assert torch.allclose(found[i], wanted, atol=1e-5)
    assert not torch.allclose(found, norm(tile), atol=0.05)


def test_each_layer_of_a_sample_sees_what_the_shared_statistics_before_have_made() -> None:
    """A ramp keeps its slope through two norms in tiles, as in the whole; by itself each tile would begin anew."""
    network = nn.Sequential(nn.GroupNorm(1, 3), nn.GroupNorm(1, 3))
    ramp = torch.linspace(0, 1, SIDE).expand(1, 3, SIDE, SIDE)
    statistics = sampled(network, ramp)
    parts = []
    for tile in (ramp[..., :32], ramp[..., 32:]):
        with torch.no_grad(), given(statistics):
            parts.append(network(tile))
    tiled = torch.cat(parts, -1)[0, 0, 0]
    assert torch.allclose(tiled.diff(), tiled.diff()[0].expand(SIDE - 1), atol=1e-4)
    assert 0.9 < (tiled[-1] - tiled[0]) / (network(ramp)[0, 0, 0, -1] - network(ramp)[0, 0, 0, 0]) < 1.1


def test_further_samples_add_to_those_before() -> None:
    norm, picture = nn.GroupNorm(1, 2), noise(1, 2, SIDE, SIDE)
    halves = [Pieces(32, 32, QUARTERS.corners[i : i + 2], (SIDE, SIDE), (SIDE, SIDE)) for i in (0, 2)]
    statistics = Statistics()
    for half in halves:
        with torch.no_grad(), sampling(statistics, half):
            norm(half.cut(picture))
    for one, both in zip(statistics.pooled, sampled(norm, picture).pooled, strict=True):
        assert torch.allclose(one, both, atol=1e-6)


def test_channels_are_compared_over_the_whole_picture() -> None:
    torch.manual_seed(0)
    attention = ChannelAttention(8, 2, bias=False)
    picture = noise(2, 8, SIDE, SIDE)
    picture[..., 32:] = picture[:, :1, :, 32:]  # there all channels are alike
    tile = picture[..., :32]
    statistics = sampled(attention, picture)
    with torch.no_grad(), given(statistics):
        found = attention(tile)
    with torch.no_grad():
        whole, alone = attention(picture)[..., 1:30], attention(tile)[..., 1:30]
    assert (found[..., 1:30] - whole).abs().mean() < 0.2 * (alone - whole).abs().mean()


def test_a_signal_is_measured_by_the_strongest_of_the_picture() -> None:
    picture = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    picture[..., 40:50, 40:50] = 1.0  # the strongest: without noise
    statistics = Statistics()
    with sampling(statistics, QUARTERS):
        snr_map(QUARTERS.cut(picture))
    tile = picture[..., :32, :32]
    with given(statistics):
        found = snr_map(tile)
    assert torch.allclose(found[..., 2:-2, 2:-2], snr_map(picture)[..., 2:30, 2:30], rtol=1e-4)
    assert found.max() < 0.2 * snr_map(tile).max()


class Attention(nn.Module):
    """Places [B, C, h, w] that all look alike, so that each becomes the mean of all it looks at."""

    def forward(self, x: Tensor) -> Tensor:
        places = x.flatten(2).transpose(1, 2)[:, None]
        zero = torch.zeros_like(places)
        attended = F.scaled_dot_product_attention(zero, zero, places, attn_mask=None, dropout_p=0.0, is_causal=False)
        return attended[:, 0].transpose(1, 2).unflatten(2, x.shape[-2:])


def test_places_of_a_tile_attend_to_the_sample_in_the_place_of_the_rest_of_the_picture() -> None:
    ramp = torch.linspace(0, 1, SIDE).expand(1, 1, SIDE, SIDE)
    statistics = sampled(Attention(), ramp, attention=True)
    with given(statistics):
        tile = Attention()(ramp[..., :16])
    of_tile, share = float(ramp[..., :16].mean()), 16 / SIDE
    assert torch.allclose(tile, torch.tensor(share * of_tile + (1 - share) * 0.5), atol=1e-5)
    without = sampled(Attention(), ramp)
    assert not without.pooled
    with given(without):
        assert torch.allclose(Attention()(ramp[..., :16]), torch.tensor(of_tile), atol=1e-5)


def test_patches_without_a_signal_attend_to_those_of_the_whole_picture_that_have_one() -> None:
    torch.manual_seed(0)
    network = PatchTransformer(16, SNRConfig(channels=1, layers=2, heads=2, key_width=8, hidden=16))
    tokens, seen = noise(4, 6, 16), torch.zeros(4, 6, dtype=torch.bool)
    seen[3] = True
    pieces = Pieces(8, 8, QUARTERS.corners, (16, 16), (16, 16))
    statistics = Statistics()
    with torch.no_grad():
        whole = network(tokens.flatten(0, 1)[None], seen.flatten()[None])[0].unflatten(0, (4, 6))
        with sampling(statistics, pieces):
            assert torch.allclose(network(tokens, seen), whole, atol=1e-5)  # pieces see each other
        with given(statistics):
            dark = network(tokens[:1], seen[:1])[0]
        alone = network(tokens[:1], seen[:1])[0]
    assert torch.allclose(dark, whole[0], atol=1e-5) and not torch.allclose(alone, whole[0], atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_are_float32_whatever_the_network_computes_in(dtype: torch.dtype) -> None:
    norm, picture = nn.GroupNorm(2, 4), noise(1, 4, SIDE, SIDE) + 30
    exact = sampled(norm, picture)
    half = sampled(norm.to(dtype), picture.to(dtype))
    assert half.pooled[0].dtype == torch.float32 and torch.allclose(half.pooled[0], exact.pooled[0], rtol=0.02)
    with torch.no_grad(), given(half):
        assert norm(picture.to(dtype)).dtype == dtype


def test_products_in_fewer_bits_leave_statistics_and_norms_as_they_are() -> None:
    norm, picture = nn.GroupNorm(2, 4), noise(1, 4, SIDE, SIDE) + 30
    exact = sampled(norm, picture)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        products = sampled(norm, picture)
        assert torch.equal(products.pooled[0], exact.pooled[0])
        with given(products):
            assert norm(picture.bfloat16()).dtype == torch.bfloat16


def test_a_network_that_asks_for_other_statistics_than_its_sample_is_refused() -> None:
    one, two = nn.GroupNorm(1, 2), nn.Sequential(nn.GroupNorm(1, 2), nn.GroupNorm(1, 2))
    picture = noise(1, 2, SIDE, SIDE)
    with pytest.raises(RuntimeError, match="a tile asks for more than the 1 statistics"), given(sampled(one, picture)):
        two(picture)
    with pytest.raises(RuntimeError, match="of 2 statistics of a picture only 1"), given(sampled(two, picture)):
        one(picture)
    assert not shared()


def test_a_network_that_is_told_the_size_is_told_the_tiles_for_a_piece() -> None:
    pieces = Pieces(4, 4, [(0, 0)], (8, 12), (40, 40))  # in latent cells, say
    with sampling(Statistics(), pieces):
        assert time_ids(torch.zeros(1, 3, 32, 32)).tolist() == [[64, 96, 0, 0, 64, 96]]
    assert time_ids(torch.zeros(1, 3, 32, 32)).tolist() == [[32, 32, 0, 0, 32, 32]]


@pytest.mark.parametrize(
    ("size", "tile", "multiple", "samples", "each"),
    [((400, 640), 192, 8, 1, 4), ((4096, 4096), 512, 64, 4, 4), ((128, 256), 64, 64, 1, 1), ((64, 640), 192, 8, 1, 2)],
)
def test_samples_lie_within_the_picture_spread_over_it_and_are_no_larger_than_a_tile(
    size: tuple[int, int], tile: int, multiple: int, samples: int, each: int
) -> None:
    grid = Grid(*size, tile, 0)
    found = grid.samples(multiple)
    assert len(found) == samples and max(len(pieces.corners) for pieces in found) == each
    for pieces in found:
        assert len(pieces.corners) * pieces.height * pieces.width <= min(tile, size[0]) * min(tile, size[1])
        for top, left in pieces.corners:
            assert top % multiple == left % multiple == 0
            assert 0 <= top <= size[0] - pieces.height and 0 <= left <= size[1] - pieces.width
    middles = torch.tensor(
        [(t + p.height / 2, left + p.width / 2) for p in found for t, left in p.corners], dtype=torch.float64
    )
    assert torch.allclose(middles.mean(0), torch.tensor(size, dtype=torch.float64) / 2, atol=multiple)


def test_a_picture_of_one_tile_is_sampled_by_nothing() -> None:
    assert Grid(64, 96, 96, 8).samples(8) == []
