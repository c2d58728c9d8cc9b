"""StableSR's networks."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from restoration.base_models.networks.spade import Spade
from restoration.base_models.networks.stablesr_networks import StableSRPolicy
from restoration.base_models.networks.stablesr_released import (
    LOSS_PREFIX,
    STRUCTURE_PREFIX,
    fused_vae_from_released,
    policy_from_released,
    spade_unet_from_released,
    structure_encoder_from_released,
)
from restoration.base_models.networks.structure import StructureEncoder
from restoration.checkpoints import CheckpointError
from restoration.ldm_layout import UNET_PREFIX
from tests.golden.case import recipe_tensor
from tests.restoration.ldm_keys import (
    Shapes,
    diffusion_keys,
    structure_keys,
    vae_keys,
    with_fusions,
    with_spade,
)

FOLDER = Path(__file__).parents[1] / "golden"
FILES = sorted(FOLDER.glob("stablesr*.json"))
# other than the golden files: three levels, one block each, attention at one level, other widths and head counts
UNET = diffusion_keys(channel_mult=(1, 2, 3), num_res_blocks=1, attention_resolutions=(2,), context_dim=12)
STRUCTURE = structure_keys(
    channel_mult=(1, 3, 2), num_res_blocks=1, attention_levels=(1,), out_channels=32, model_channels=64
)
VAE = vae_keys(ch_mult=(1, 3, 2), num_res_blocks=1, attention_levels=(1,))


def weights(shapes: Shapes, prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}{k}": recipe_tensor(k, list(v)) for k, v in shapes.items()}


@cache
def released() -> dict[str, Tensor]:
    return weights(with_spade(UNET, features=32), UNET_PREFIX) | weights(STRUCTURE, STRUCTURE_PREFIX)


def policy_of() -> StableSRPolicy:
    return policy_from_released(released(), "file", head_channels=32, structure_heads=2)


def inputs(count: int, height: int = 16, width: int = 12) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_t, timestep, lq_latent, text; of two counts, the first samples agree."""
    draws = [torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(i)) for i in range(count)]
    words = [torch.randn(5, 12, generator=torch.Generator().manual_seed(9 + i)) for i in range(count)]
    both = torch.stack(draws, 1)
    return both[0], torch.tensor([7, 400, 999][:count]), both[1], torch.stack(words)


def gradients(policy: StableSRPolicy, disturbed: bool) -> dict[str, Tensor]:
    x, t, latent, words = inputs(2)
    output = policy(x, t, latent, words)
    if disturbed:
        policy(x + 1, t // 2, latent - 1, words)
    policy.zero_grad()
    output.square().mean().backward()
    return {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_recomputes_with_the_features_of_its_forward() -> None:
    policy = policy_of().train()
    plain = gradients(policy, disturbed=False)
    runs = {"down": 0, "up": 0}
    for side, block in (("down", policy.unet.down_blocks[0]), ("up", policy.unet.up_blocks[-1])):
        block.resnets[0].spade.register_forward_pre_hook(lambda *_, side=side: runs.update({side: runs[side] + 1}))
    policy.unet.enable_gradient_checkpointing()
    policy.structure_encoder.enable_gradient_checkpointing()
    again = gradients(policy, disturbed=True)
    assert runs == {"down": 3, "up": 3}  # two forwards and one recomputation
    assert plain.keys() == again.keys() == dict(policy.named_parameters()).keys()
    assert any(float(v.abs().max()) > 1e-3 for n, v in plain.items() if n.startswith("structure_encoder."))
    for name, value in plain.items():
        assert torch.allclose(value, again[name], rtol=1e-4, atol=1e-7), name


@torch.no_grad()
def test_a_batch_of_other_shapes_gives_each_sample_what_it_gets_alone() -> None:
    policy = policy_of()
    x, t, latent, words = inputs(3)
    together = policy(x, t, latent, words)
    assert together.shape == x.shape and together.dtype == torch.float32
    for i in range(3):
        alone = policy(*(v[i : i + 1] for v in (x, t, latent, words)))
        assert torch.allclose(together[i], alone[0], atol=1e-4)
    assert not torch.allclose(policy(x, t, latent.flip(0), words), together, atol=1e-2)


@torch.no_grad()
def test_every_block_sees_the_features_of_its_level_even_where_levels_have_one_width() -> None:
    policy = policy_of()
    seen: dict[str, int] = {}
    features = [torch.full((1, 32, side, 1), float(i)) for i, side in enumerate((4, 2, 1))]
    for name, module in policy.unet.named_modules():
        if isinstance(module, Spade):
            module.register_forward_hook(lambda _, args, __, name=name: seen.update({name: int(args[1].max())}))
    x, t, _, words = inputs(1, 4, 1)
    policy.unet(x, t, words, timestep_cond=features)
    levels = {"down_blocks.0": 0, "down_blocks.1": 1, "down_blocks.2": 2, "mid_block": 2}
    levels |= {"up_blocks.0": 2, "up_blocks.1": 1, "up_blocks.2": 0}
    assert seen == {name: levels[name.split(".resnets")[0]] for name in seen}
    assert len(seen) == 3 + 2 + 2 * 3


def test_a_unet_with_spade_does_not_run_without_features() -> None:
    x, t, _, words = inputs(1)
    with pytest.raises(ValueError, match="timestep_cond"):
        policy_of().unet(x, t, words)


def test_what_stablesr_trains_is_the_structure_encoder_and_every_spade() -> None:
    policy = policy_of()
    trained = {n for n, _ in policy.named_parameters() if n.startswith(policy.trained)}
    assert trained == {n for n, _ in policy.named_parameters() if "spade" in n or n.startswith("structure_encoder.")}
    assert any("spade" in n for n in trained)


@torch.no_grad()
def test_a_policy_of_half_precision_still_answers_in_float32() -> None:
    policy, given = policy_of(), inputs(1)
    exact = policy(*given)
    rough = policy.to(torch.bfloat16)(*given)
    assert rough.dtype == torch.float32
    assert 0 < float((rough - exact).abs().mean()) < 0.1 * float(exact.abs().mean())


@torch.no_grad()
def test_a_structure_encoder_is_rebuilt_from_its_config() -> None:
    encoder = structure_encoder_from_released(weights(STRUCTURE), "file", heads=2)
    config = json.loads(encoder.to_json_string())
    again = StructureEncoder.from_config(config).eval()
    again.load_state_dict(encoder.state_dict())
    _, t, latent, _ = inputs(2)
    one, two = encoder(latent, t), again(latent, t)
    assert [tuple(f.shape) for f in one] == [(2, 32, 16, 12), (2, 32, 8, 6), (2, 32, 4, 3)]
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_the_loaders_name_what_does_not_fit() -> None:
    unet, structure = weights(with_spade(UNET)), weights(STRUCTURE)
    del unet["output_blocks.0.0.spade.mlp_beta.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing: output_blocks\.0\.0\.spade\.mlp_beta\.bias"):
        spade_unet_from_released(unet, "file", head_channels=32)
    with pytest.raises(CheckpointError, match="spade"):
        spade_unet_from_released(weights(UNET), "file", head_channels=32)
    with pytest.raises(CheckpointError, match="3 heads don't divide widths"):
        structure_encoder_from_released(structure, "file", heads=3)
    with pytest.raises(CheckpointError, match=r"1 unexpected: fea_tran\.3\.x"):
        structure_encoder_from_released(structure | {"fea_tran.3.x": torch.zeros(1)}, "file", heads=2)
    scaling = diffusion_keys(channel_mult=(1, 2), use_scale_shift_norm=True)
    with pytest.raises(CheckpointError, match="use_scale_shift_norm"):
        spade_unet_from_released(weights(with_spade(scaling)), "file", head_channels=32)


@torch.no_grad()
def test_a_fused_autoencoder_encodes_like_its_own_and_decodes_like_it_with_weight_0() -> None:
    fused = fused_vae_from_released(weights(with_fusions(VAE, levels=(1,), blocks=1)), "file")
    assert sum(hasattr(b, "attentions") for b in (*fused.vae.encoder.down_blocks, *fused.vae.decoder.up_blocks)) == 2
    images = torch.rand(3, 3, 24, 16) * 2 - 1
    posterior, features = fused.encode(images)
    assert torch.equal(posterior.parameters, fused.vae.encode(images).latent_dist.parameters)
    assert {level: tuple(f.shape) for level, f in features.items()} == {1: (3, 96, 12, 8)}
    z = torch.randn(3, 4, 6, 4)
    plain = fused.vae.decode(z).sample
    assert torch.equal(fused.decode(z, {}, 0), plain)
    half, whole = fused.decode(z, features, 0.5), fused.decode(z, features, 1)
    assert not torch.allclose(half, plain, atol=1e-2) and not torch.allclose(half, whole, atol=1e-2)
    assert torch.allclose(fused.decode(z[1:], {1: features[1][1:]}, 0.5), half[1:], atol=1e-4)
    with pytest.raises(KeyError):
        fused.decode(z, {}, 0.5)


def test_only_keys_of_the_loss_are_ignored_in_a_fused_autoencoder() -> None:
    state = weights(with_fusions(VAE, levels=(1,), blocks=1))
    fused_vae_from_released(state | {f"{LOSS_PREFIX}discriminator.main.0.weight": torch.zeros(1)}, "file")
    with pytest.raises(CheckpointError, match="1 unexpected: discriminator"):
        fused_vae_from_released(state | {"discriminator.main.0.weight": torch.zeros(1)}, "file")
    with pytest.raises(CheckpointError, match="fusion_layer"):
        fused_vae_from_released(weights(VAE), "file")


@pytest.mark.parametrize("width", [40, 48])
def test_where_32_does_not_divide_the_channels_each_channel_is_a_group(width: int) -> None:
    encoder = StructureEncoder(4, 32, (32, 64), (False, True), 1, out_channels=width, heads=2).eval()
    norms = {m.num_channels: m.num_groups for m in encoder.modules() if isinstance(m, nn.GroupNorm)}
    assert norms == {32: 32, 64: 32, width: width}
    with torch.no_grad():
        maps = encoder(torch.randn(1, 4, 8, 8), torch.tensor([3]))
    assert [m.shape[1:] for m in maps] == [(width, 8, 8), (width, 4, 4)]
    own = encoder.outs[0].norm2  # type: ignore[union-attr]
    x = torch.randn(2, width, 3, 5)
    mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, correction=0)
    assert torch.allclose(own(x), (x - mean) / (variance + 1e-5).sqrt(), atol=1e-5)  # type: ignore[operator]
