from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from restoration.base_models.networks.faithdiff_networks import (
    FaithDiffUNet,
    empty_faithdiff,
    faithdiff_from_released,
    faithdiff_to_released,
    released_to_faithdiff,
)
from restoration.checkpoints import CheckpointError, read_state
from tests.restoration.faithdiff_files import (
    DEEP,
    POOLED,
    SMALL,
    WORDS,
    choices_of,
    random_state,
    released_shapes,
)

FULL_KEYS = Path(__file__).parents[1] / "golden" / "faithdiff_unet.full_keys.json"


def network_of(config: dict[str, Any], **others: bool) -> FaithDiffUNet:
    choices = replace(choices_of(config), **others)
    return faithdiff_from_released(random_state(released_shapes(config)), "file", choices)


def inputs_of(batch: int, height: int = 4, width: int = 6, channels: int = 4) -> tuple[Tensor, ...]:
    """x_t, timestep, text, text_embeds, time_ids and an image twice the latent's size."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, channels, height, width, generator=generator),
        torch.randint(0, 1000, (batch,), generator=generator),
        torch.randn(batch, 5, WORDS, generator=generator),
        torch.randn(batch, POOLED, generator=generator),
        torch.randint(0, 2000, (batch, 6), generator=generator),
        torch.rand(batch, 3, 2 * height, 2 * width, generator=generator) * 2 - 1,
    )


@pytest.mark.parametrize("config", [SMALL, DEEP], ids=["small", "deep"])
@torch.no_grad()
def test_the_structure_is_read_off_the_keys(config: dict[str, Any]) -> None:
    channels = config.get("in_channels", 4)
    *inputs, image = inputs_of(batch=3, channels=channels)
    state = random_state(released_shapes(config))
    network = faithdiff_from_released(state, "file", choices_of(config))
    features = network.encode(image)
    assert features.shape == (3, 16, 4, 6)
    output = network(*inputs, features)
    assert output.shape == (3, config.get("out_channels", channels), 4, 6) and output.isfinite().all()
    # without features, the same weights in the stock network of the known configuration
    stock = UNet2DConditionModel(
        cross_attention_dim=WORDS,
        addition_embed_type="text_time",
        projection_class_embeddings_input_dim=POOLED + 6 * config["addition_time_embed_dim"],
        **config,
    ).eval()
    stock.load_state_dict({k: state[k] for k in stock.state_dict()})
    x_t, timestep, text, text_embeds, time_ids = inputs
    added = {"text_embeds": text_embeds, "time_ids": time_ids}
    wanted = stock(x_t, timestep, text, added_cond_kwargs=added, return_dict=False)[0]
    without = network(*inputs, None)
    assert torch.equal(without, wanted)
    assert (output - without).abs().max() > 0.01


@torch.no_grad()
def test_samples_of_a_batch_see_each_other_only_if_coupled() -> None:
    *inputs, image = inputs_of(batch=3)
    network = network_of(SMALL)
    features = network.encode(image)
    single = torch.cat([network(*(v[i : i + 1] for v in (*inputs, features))) for i in range(3)])
    assert torch.allclose(network(*inputs, features), single, atol=1e-5)
    coupled = network_of(SMALL, coupled=True)
    one = [v[:1] for v in (*inputs, features)]
    assert torch.allclose(coupled(*one), single[:1], atol=1e-5)
    assert (coupled(*inputs, features) - single).abs().max() > 0.01


@torch.no_grad()
def test_coupled_tokens_attend_to_those_of_the_same_place_in_all_samples() -> None:
    layer = network_of(SMALL, coupled=True).injection.layers[0]
    width, heads = 52, 2
    x = torch.randn(3, 4, width, generator=torch.Generator().manual_seed(2))
    q, k, v = (
        p.unflatten(-1, (heads, -1))
        for p in (layer.ln_1(x) @ layer.attn.in_proj_weight.T + layer.attn.in_proj_bias).chunk(3, -1)
    )
    scores = torch.einsum("anhc,bnhc->nhab", q, k) / (width / heads) ** 0.5
    y = x + layer.attn.out_proj(torch.einsum("nhab,bnhc->anhc", scores.softmax(-1), v).flatten(2))
    hidden = layer.mlp["c_fc"](layer.ln_2(y))
    wanted = y + layer.mlp["c_proj"](hidden / (1 + torch.exp(-1.702 * hidden)))
    assert torch.allclose(layer(x, coupled=True), wanted, atol=1e-5)
    assert not torch.allclose(layer(x, coupled=False), wanted, atol=1e-2)


@torch.no_grad()
def test_the_two_branches_of_guidance_are_the_same_coupled_or_not() -> None:
    x_t, timestep, text, text_embeds, time_ids, image = inputs_of(batch=2)
    x_t, image = (v[:1].expand(2, -1, -1, -1) for v in (x_t, image))
    outputs = []
    for coupled in (False, True):
        network = network_of(SMALL, coupled=coupled)
        outputs.append(network(x_t, timestep, text, text_embeds, time_ids, network.encode(image)))
    assert torch.allclose(*outputs, atol=1e-5)
    assert not torch.allclose(outputs[0][0], outputs[0][1], atol=1e-2)


@pytest.mark.parametrize("coupled", [False, True])
def test_gradient_checkpointing_gives_the_gradients_of_a_plain_backward(coupled: bool) -> None:
    network = network_of(SMALL, coupled=coupled).train()
    *inputs, image = inputs_of(batch=2)

    def gradients(disturbed: bool) -> dict[str, Tensor]:
        network.zero_grad()
        output = network(*inputs, network.encode(image))
        if disturbed:  # another call between forward and backward, as a second micro-batch makes
            with torch.no_grad():
                network(*inputs, network.encode(-image))
        output.square().mean().backward()
        return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}

    plain = gradients(disturbed=False)
    network.unet.enable_gradient_checkpointing()
    again = gradients(disturbed=True)
    assert any(m.gradient_checkpointing for m in network.modules() if hasattr(m, "gradient_checkpointing"))
    assert plain.keys() == again.keys() == {n for n, _ in network.named_parameters()}
    for name, value in plain.items():
        assert torch.allclose(value, again[name], rtol=1e-4, atol=1e-6), name
    for part in ("denoise_encoder.conv_in", "unet.conv_in.condition.conv_out", "unet.conv_in.projection"):
        assert plain[f"{part}.weight"].abs().max() > 0


@torch.no_grad()
def test_half_precision_networks_take_and_give_float32() -> None:
    *inputs, image = inputs_of(batch=1)
    network = network_of(SMALL)
    exact = network(*inputs, network.encode(image))
    network.to(torch.bfloat16)
    features = network.encode(image)
    output = network(*inputs, features)
    assert features.dtype == output.dtype == torch.float32
    assert (output - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_a_flat_torch_file_is_read_under_its_released_names(tmp_path: Path) -> None:
    state = random_state(released_shapes(SMALL))
    torch.save(state, tmp_path / "FaithDiff.bin")
    network = faithdiff_from_released(read_state(tmp_path / "FaithDiff.bin"), "FaithDiff.bin", choices_of(SMALL))
    again = {faithdiff_to_released(k): v for k, v in network.state_dict().items()}
    assert again.keys() == state.keys()
    assert all(torch.equal(again[k], v) for k, v in state.items())
    assert all(faithdiff_to_released(released_to_faithdiff(k)) == k for k in state)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("conv_in.weight", "key 'conv_in.weight' is missing"),
        ("spatial_ch_projs.bias", "1 missing: spatial_ch_projs.bias"),
        ("information_transformer_layes.1.attn.in_proj_bias", "1 missing: information_transformer_layes.1.attn"),
        ("denoise_encoder.mid_block.resnets.0.norm1.weight", "1 missing: denoise_encoder.mid_block"),
    ],
)
def test_a_missing_key_is_named_as_the_file_names_it(key: str, said: str) -> None:
    state = random_state(released_shapes(SMALL))
    del state[key]
    with pytest.raises(CheckpointError, match=said):
        faithdiff_from_released(state, "FaithDiff.bin", choices_of(SMALL))


def test_a_surplus_key_and_a_projection_of_another_width_are_refused() -> None:
    shapes = released_shapes(SMALL)
    surplus = random_state(shapes | {"agg_net.weight": (2, 2)})
    with pytest.raises(CheckpointError, match=r"1 unexpected: agg_net\.weight"):
        faithdiff_from_released(surplus, "FaithDiff.bin", choices_of(SMALL))
    wide = random_state(shapes | {"spatial_ch_projs.weight": (32, 64)})
    with pytest.raises(CheckpointError, match=r"spatial_ch_projs\.weight \(32, 64\) instead of \(32, 52\)"):
        faithdiff_from_released(wide, "FaithDiff.bin", choices_of(SMALL))


def test_heads_are_64_channels_wide_unless_given() -> None:
    choices = choices_of(SMALL)
    network = empty_faithdiff(released_shapes(SMALL), "file", replace(choices, heads=None))
    assert network.unet.mid_block.attentions[0].transformer_blocks[0].attn1.heads == 1
    assert (
        empty_faithdiff(released_shapes(SMALL), "file", choices)
        .unet.mid_block.attentions[0]
        .config["num_attention_heads"]
        == 4
    )
    with pytest.raises(CheckpointError, match=r"don't divide widths \[16, 32, 48\]"):
        empty_faithdiff(released_shapes(DEEP), "file", replace(choices_of(DEEP), heads=None))


def test_an_image_that_the_encoder_cannot_halve_is_refused() -> None:
    network = network_of(SMALL)
    with pytest.raises(ValueError, match="multiples of 2"):
        network.encode(torch.zeros(1, 3, 8, 7))


def test_the_released_layout_is_that_of_sdxl() -> None:
    shapes = {k: tuple(v) for k, v in json.loads(FULL_KEYS.read_text())["state"].items()}
    network = empty_faithdiff(shapes, "FaithDiff.bin")
    config = network.unet.config
    assert config.block_out_channels == (320, 640, 1280) and config.transformer_layers_per_block == (1, 2, 10)
    assert config.attention_head_dim == (5, 10, 20) and config.projection_class_embeddings_input_dim == 2816
    assert network.size_multiple == 8 and len(network.injection.layers) == 2


def test_an_unet_without_the_injection_is_refused() -> None:
    shapes = {k: v for k, v in released_shapes(SMALL).items() if not k.startswith(("condition", "denoise", "spatial"))}
    with pytest.raises(CheckpointError, match=r"no whole FaithDiff: key 'condition_embedding\.conv_in\.weight'"):
        empty_faithdiff(shapes, "unet.safetensors", choices_of(SMALL))
