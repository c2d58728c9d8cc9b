from __future__ import annotations

import pytest
import torch

from restoration.backbones.cleaners import Cleaner, cleaner_from_released, cleaner_of, config_of
from restoration.backbones.gated_unet import GatedUNet, GatedUNetConfig
from restoration.backbones.restormer import Restormer, RestormerConfig
from restoration.backbones.snr import SNRAware, SNRConfig, snr_map
from restoration.checkpoints import CheckpointError

TINY_SNR = SNRConfig(channels=8, light_blocks=2, layers=1, heads=2, key_width=8, hidden=16)


def tiny(kind: str) -> Cleaner:
    torch.manual_seed(0)
    if kind == "snr":
        return SNRAware(TINY_SNR).eval()
    if kind == "gated_unet":
        network = GatedUNet(GatedUNetConfig((8, 16, 24), (1, 2, 1), refinement=2, expansion=3, dense=1)).eval()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        return network
    return Restormer(RestormerConfig(dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1)).eval()


@pytest.mark.parametrize("kind", ["restormer", "snr", "gated_unet"])
@torch.no_grad()
def test_a_cleaner_is_rebuilt_from_its_keys_and_from_its_configuration(kind: str) -> None:
    cleaner, x = tiny(kind), torch.rand(1, 3, 32, 48)
    wanted = cleaner(x)
    choices = {"key_width": 8} if kind == "snr" else {}
    again = cleaner_from_released(cleaner.state_dict(), "file", **choices)
    assert again.config == cleaner.config and torch.equal(again(x), wanted)
    empty = cleaner_of(config_of(cleaner))
    empty.load_state_dict(cleaner.state_dict(), assign=True)
    assert torch.equal(empty.eval()(x), wanted)


def test_weights_that_are_no_cleaners_are_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="file holds no cleaner"):
        cleaner_from_released({"conv.weight": torch.zeros(1)}, "file")
    state = tiny("snr").state_dict()
    with pytest.raises(CheckpointError, match=r"HRconv\.weight"):
        cleaner_from_released({k: v for k, v in state.items() if k != "HRconv.weight"}, "file", key_width=8)
    with pytest.raises(CheckpointError, match="heads of width 64"):
        cleaner_from_released(state, "file")
    with pytest.raises(ValueError, match="swinir"):
        cleaner_of({"kind": "swinir"})


@torch.no_grad()
def test_a_patch_without_signal_is_attended_to_by_none() -> None:
    network, x = tiny("snr"), torch.rand(1, 8, 8, 8)
    signal = torch.ones(1, 1, 8, 8)
    signal[..., 4:, 4:] = 0.4  # the last of four patches
    other = x.clone()
    other[..., 4:, 4:] += torch.rand(8, 4, 4)  # no constant, which the layer norm takes away
    assert isinstance(network, SNRAware)
    first, second = network.attended(x, signal), network.attended(other, signal)
    assert torch.allclose(first[..., :4, :], second[..., :4, :]) and torch.allclose(first[..., :4], second[..., :4])
    assert not torch.allclose(first[..., 4:, 4:], second[..., 4:, 4:])
    assert not torch.allclose(*(network.attended(y, torch.ones_like(signal))[..., :4] for y in (x, other)))


def test_the_map_is_low_where_there_is_noise() -> None:
    x = torch.full((1, 3, 32, 32), 0.3)
    x[..., 16:] += 0.1 * torch.randn(1, 1, 32, 16, generator=torch.Generator().manual_seed(0))
    found = snr_map(x)
    assert found.shape == (1, 1, 32, 32) and found.min() >= 0 and found.max() <= 1
    assert found[..., :12].mean() > 10 * found[..., 20:].mean()


@pytest.mark.parametrize("shape", [(1, 3, 18, 16), (1, 3, 16, 12), (1, 4, 16, 16)])
def test_a_size_that_snr_aware_can_not_take_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        tiny("snr")(torch.rand(shape))


@torch.no_grad()
def test_an_untrained_gated_unet_changes_nothing_and_a_trained_one_what_lies_near() -> None:
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(GatedUNet(GatedUNetConfig((8, 16), (1, 1))).eval()(x), x)
    network, other = tiny("gated_unet"), x.clone()
    other[..., 32:, 32:] = 0
    changed = (network(x) - network(other)).abs().amax((0, 1)) > 0
    assert changed[:32, :32].any() and not changed[0, 0]


@pytest.mark.parametrize("shape", [(1, 3, 18, 16), (1, 3, 16, 14), (1, 4, 16, 16)])
def test_a_size_that_a_gated_unet_can_not_take_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        tiny("gated_unet")(torch.rand(shape))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"blocks": (1, 2)}, "one entry each"),
        ({"expansion": 0}, "at least 1"),
        ({"refinement": -1}, "the last two at least 0"),
    ],
)
def test_a_gated_unet_of_no_such_shape_is_refused(settings: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        GatedUNetConfig(**settings)  # type: ignore[arg-type]
