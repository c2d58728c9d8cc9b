"""TSD-SR of other widths, depths, ranks, sizes and batches than the golden data, against peft on the stock networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from restoration.adapters import AdaptSettings, make_trainable, merge, reference
from restoration.base_models.networks.low_rank import parameters_of
from restoration.base_models.networks.tsdsr_networks import (
    TsdPolicy,
    empty_transformer,
    lq_latents,
    policy_from_released,
    posterior,
    vae_from_released,
)
from restoration.checkpoints import CheckpointError
from tests.restoration.rl_on_top import as_model

CONFIG: dict[str, Any] = {
    "in_channels": 6,
    "out_channels": 6,
    "num_layers": 3,
    "attention_head_dim": 12,
    "num_attention_heads": 3,
    "joint_attention_dim": 20,
    "caption_projection_dim": 36,
    "pooled_projection_dim": 10,
    "pos_embed_max_size": 9,
}
VAE_CONFIG: dict[str, Any] = {
    "block_out_channels": (8, 16, 24),
    "layers_per_block": 1,
    "latent_channels": 6,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 4,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 1.3,
    "shift_factor": 0.2,
}
SUFFIXES = ["to_k", "to_q", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "proj", "linear", "proj_out"]


def stock() -> SD3Transformer2DModel:
    torch.manual_seed(0)
    return SD3Transformer2DModel(**CONFIG).eval().requires_grad_(False)


def stock_vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(**VAE_CONFIG).eval().requires_grad_(False)


def oracle(network: nn.Module, targets: list[str] | str, rank: int) -> dict[str, Tensor]:
    """Give a stock network a peft adapter with alpha = rank; the keys of TSD-SR's files with its weights."""
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), network)
    torch.manual_seed(1)
    for name, p in network.named_parameters():
        if "lora" in name:
            nn.init.normal_(p, std=0.1)
    return {f"transformer.{k.replace('.default', '')}": v for k, v in network.state_dict().items() if "lora" in k}


def released_policy() -> TsdPolicy:
    return policy_from_released(stock().state_dict(), CONFIG, oracle(stock(), SUFFIXES, 3), "base", "updates")


def inputs(batch: int = 3, time: float = 1000.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(batch, 6, 8, 12, generator=generator)
    words, pooled = torch.randn(batch, 5, 20, generator=generator), torch.randn(batch, 10, generator=generator)
    return z, torch.full((batch,), time), words, pooled


@torch.no_grad()
@pytest.mark.parametrize("time", [1000.0, 300.0])
def test_the_policy_is_the_stock_transformer_with_a_peft_adapter(time: float) -> None:
    network = stock()
    policy = policy_from_released(stock().state_dict(), CONFIG, oracle(network, SUFFIXES, 3), "base", "updates")
    z, t, words, pooled = inputs(time=time)
    expected = network(z, words, pooled, t).sample
    assert torch.allclose(policy(z, t, words, pooled), expected, rtol=1e-4, atol=1e-5)
    plain = stock()(z, words, pooled, t).sample
    assert not torch.allclose(plain, expected, atol=1e-2)
    assert torch.equal(policy(z, t, words, pooled, updated=False), plain)
    assert torch.allclose(policy(z, t, words, pooled), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_vae_encodes_as_the_stock_one_with_a_peft_adapter_and_its_decoder_is_the_stock_one() -> None:
    network = stock_vae()
    updates = oracle(network, r"encoder\..*(?:conv1|conv2|conv|conv_shortcut|conv_in|conv_out|to_q|to_out\.0)", 2)
    vae = vae_from_released(stock_vae().state_dict(), VAE_CONFIG, updates, "base", "updates")
    generator = torch.Generator().manual_seed(3)
    images, noise = torch.rand(3, 3, 16, 24, generator=generator), torch.randn(3, 6, 4, 6, generator=generator)
    expected = network.encode(images * 2 - 1).latent_dist
    z = (expected.mean + expected.std * noise) * 1.3
    assert torch.allclose(lq_latents(vae, images, noise), z, rtol=1e-4, atol=1e-5)
    plain = stock_vae().encode(images * 2 - 1).latent_dist.mean
    assert torch.equal(posterior(vae, images, updated=False).mean, plain)
    assert not torch.allclose(plain, expected.mean, atol=1e-2)
    assert torch.equal(vae.decode(z).sample, stock_vae().decode(z).sample)


def gradients(policy: TsdPolicy, updated: bool, disturbed: bool) -> dict[str, Tensor]:
    policy.zero_grad()
    out = policy(*inputs(1), updated=updated)
    if disturbed:
        policy(*inputs(1), updated=not updated)
    out.square().mean().backward()
    return {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("updated", [True, False])
def test_gradient_checkpointing_recomputes_with_the_updates_of_its_forward(updated: bool) -> None:
    policy = released_policy().train()
    plain = gradients(policy, updated, disturbed=False)
    policy.transformer.enable_gradient_checkpointing()
    again = gradients(policy, updated, disturbed=True)
    assert plain.keys() == again.keys() and any(".updates." in name for name in plain) == updated
    for name, value in plain.items():
        assert torch.allclose(value, again[name], rtol=1e-4, atol=1e-8), name


def test_the_updates_alone_can_be_trained() -> None:
    policy = released_policy()
    declared = parameters_of(policy, ["tsd"])
    make_trainable(as_model(policy, declared), AdaptSettings("full"))
    assert tuple(gradients(policy, updated=True, disturbed=False)) == declared and len(declared) > 60


@torch.no_grad()
def test_a_fresh_lora_of_rl_changes_nothing_and_its_reference_keeps_the_updates() -> None:
    policy = released_policy().requires_grad_(False)
    names = {name for name, _ in policy.named_parameters()}
    before = policy(*inputs())
    model = as_model(policy)
    trained = make_trainable(model, AdaptSettings("lora", rank=2))
    fresh = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert len(fresh) == len(trained) > 40 and not fresh & names and not any(".updates." in name for name in fresh)
    assert torch.equal(policy(*inputs()), before)
    for p in trained:
        p.add_(0.05)
    after = policy(*inputs())
    with reference(model):
        assert torch.equal(policy(*inputs()), before)
    assert not torch.allclose(after, before, atol=1e-2)
    merge(model)
    assert {name for name, _ in policy.named_parameters()} == names
    assert torch.allclose(policy(*inputs()), after, rtol=1e-3, atol=1e-4)


def test_files_that_do_not_fit_are_refused_with_their_keys() -> None:
    updates = oracle(stock(), SUFFIXES, 3)
    base = dict(stock().state_dict())
    more = updates | {"transformer.transformer_blocks.7.attn.to_q.lora_A.weight": torch.zeros(3, 36)}
    with pytest.raises(CheckpointError, match=r"1 unexpected: transformer\.transformer_blocks\.7\.attn\.to_q\.lora_A"):
        policy_from_released(base, CONFIG, more, "base", "updates")
    half = {k: v for k, v in updates.items() if k != "transformer.pos_embed.proj.lora_B.weight"}
    with pytest.raises(CheckpointError, match=r"updates does not fit .*1 missing: transformer\.pos_embed\.proj"):
        policy_from_released(base, CONFIG, half, "base", "updates")
    with pytest.raises(CheckpointError, match=r"base does not fit .*1 unexpected: more"):
        policy_from_released(base | {"more": torch.zeros(1)}, CONFIG, updates, "base", "updates")
    del base["context_embedder.weight"]
    with pytest.raises(CheckpointError, match=r"no transformer .*context_embedder\.weight"):
        policy_from_released(base, CONFIG, updates, "base", "updates")
    vae = dict(stock_vae().state_dict())
    with pytest.raises(CheckpointError, match="scaling_factor"):
        vae_from_released(vae, {}, {}, "base", "updates")
    with pytest.raises(CheckpointError, match=r"no autoencoder .*encoder\.conv_in\.weight"):
        vae_from_released({"a": torch.zeros(1)}, VAE_CONFIG, {}, "base", "updates")


@pytest.mark.parametrize("head", [None, 0, 7])
def test_a_head_that_does_not_divide_the_width_is_refused(head: int | None) -> None:
    shapes = {k: tuple(v.shape) for k, v in stock().state_dict().items()}
    with pytest.raises(CheckpointError, match="attention_head_dim"):
        empty_transformer(shapes, {"attention_head_dim": head}, "base")
