"""The Restormer: shapes, variants, released key names."""

from __future__ import annotations

import pytest
import torch

from restoration.backbones.restormer import SMALL, Restormer, RestormerConfig, config_from_shapes

TINY = {"dim": 4, "num_blocks": (1, 2, 1, 1), "num_refinement_blocks": 1, "heads": (1, 1, 2, 4)}


def shapes_of(config: RestormerConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        network = Restormer(config)
    return {k: tuple(v.shape) for k, v in network.state_dict().items()}


@pytest.mark.parametrize(
    "config",
    [
        RestormerConfig(),
        RestormerConfig(dim=32, bias=True, norm="BiasFree"),
        RestormerConfig(in_channels=6, dual_pixel=True),
        RestormerConfig(in_channels=1, out_channels=1, norm="BiasFree"),
        RestormerConfig(**TINY, ffn_expansion=2.0),
        SMALL,
    ],
)
def test_the_configuration_is_read_off_the_shapes_of_a_released_file(config: RestormerConfig) -> None:
    shapes = shapes_of(config)
    assert shapes_of(config_from_shapes(shapes)) == shapes


def test_at_zero_weights_the_image_passes_unchanged_and_the_dual_pixel_network_gives_nothing() -> None:
    x = torch.rand(2, 3, 16, 24)
    network = Restormer(RestormerConfig(**TINY))
    dual = Restormer(RestormerConfig(in_channels=6, dual_pixel=True, **TINY))
    with torch.no_grad():
        for parameter in [*network.parameters(), *dual.parameters()]:
            parameter.zero_()
        assert torch.equal(network(x), x)
        assert torch.equal(dual(torch.cat([x, x], 1)), torch.zeros_like(x))


def test_an_image_of_a_wrong_size_or_channel_count_is_refused_with_the_size_needed() -> None:
    network = Restormer(RestormerConfig(**TINY))
    with pytest.raises(ValueError, match="multiples of 8"):
        network(torch.rand(1, 3, 30, 32))
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        network(torch.rand(1, 4, 32, 32))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"heads": (1, 2, 4)}, "heads"),
        ({"heads": (3, 1, 1, 1)}, "heads"),
        ({"norm": "none"}, "norm"),
        ({"dim": 5}, "dim"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        RestormerConfig(**(TINY | wrong))  # type: ignore[arg-type]


def test_widths_that_fit_no_expansion_factor_are_refused() -> None:
    shapes = shapes_of(RestormerConfig(**TINY)) | {"latent.0.ffn.project_out.weight": (32, 5, 1, 1)}
    with pytest.raises(ValueError, match="expansion"):
        config_from_shapes(shapes)
