"""PiSA-SR of other widths, ranks, sizes and batches than the golden data, against peft on the stock network."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from restoration.adapters import AdaptSettings, make_trainable, merge, reference
from restoration.base_models.networks.low_rank import attach, parameters_of
from restoration.base_models.networks.pisa_networks import (
    PIX,
    RELEASE,
    SEM,
    Mode,
    PisaPolicy,
    empty_unet,
    policy_from_released,
    read_pisa,
)
from restoration.base_models.networks.released import empty_unet as empty_ldm_unet
from restoration.checkpoints import CheckpointError
from restoration.ldm_layout import UNET_PREFIX, part, unet_layout
from tests.restoration.rl_on_top import as_model

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG: dict[str, Any] = {
    "block_out_channels": (16, 24),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 20,
    "attention_head_dim": (2, 3),
    "norm_num_groups": 8,
    "use_linear_projection": True,
}
RANKS = {"pix": 2, "sem": 3}
SIDES = {"encoder": ("conv_in", "down_blocks"), "decoder": ("up_blocks", "conv_out"), "others": ("mid_block",)}
LAYERS = ("conv_in", "conv_out", "conv1", "conv2", "to_q", "to_k", "to_out.0", "proj_in", "ff.net.0.proj", "conv")


def stock() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**CONFIG).eval().requires_grad_(False)


def oracle() -> tuple[UNet2DConditionModel, dict[str, Any]]:
    """The stock network with peft adapters, and what PiSA-SR's file holds of them."""
    network = stock()
    modules = [name for name, _ in network.named_modules()]
    file: dict[str, Any] = {f"lora_rank_unet_{kind}": rank for kind, rank in RANKS.items()}
    for kind, rank in RANKS.items():
        for side, beginnings in SIDES.items():
            targets = [m for m in modules if m.startswith(beginnings) and (m in LAYERS or m.endswith(dotted(LAYERS)))]
            file[f"unet_lora_{side}_modules_{kind}"] = targets
            inject_adapter_in_model(LoraConfig(r=rank, target_modules=targets), network, f"default_{side}_{kind}")
    torch.manual_seed(1)
    for name, p in network.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(p, std=0.1)
    file["state_dict_unet"] = {k: v for k, v in network.state_dict().items() if "lora" in k}
    return network, file


def dotted(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f".{name}" for name in names)


@pytest.fixture(scope="module")
def released() -> tuple[UNet2DConditionModel, dict[str, Any]]:
    return oracle()


def load(file: dict[str, Any], folder: Path) -> PisaPolicy:
    torch.save(file, folder / "pisa_sr.pkl")
    return policy_from_released(stock().state_dict(), CONFIG, "unet", folder / "pisa_sr.pkl")


@pytest.fixture
def policy(released: tuple[UNet2DConditionModel, dict[str, Any]], tmp_path: Path) -> PisaPolicy:
    return load(released[1], tmp_path)


def inputs(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(batch, 4, 6, 10, generator=generator)
    return z, torch.ones(batch, dtype=torch.long), torch.randn(batch, 7, 20, generator=generator)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["pix_sem", "pix", "sem", "base"])
def test_each_mode_is_the_stock_network_with_those_peft_adapters(
    policy: PisaPolicy, released: tuple[UNet2DConditionModel, dict[str, Any]], mode: Mode
) -> None:
    network = released[0]
    names = {"pix_sem": PIX + SEM, "pix": PIX, "sem": SEM, "base": ()}[mode]
    for module in network.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter(list(names))
    z, t, words = inputs()
    expected = network(z, t, words).sample
    assert torch.allclose(policy(z, t, words, mode), expected, rtol=1e-4, atol=1e-5)
    assert mode == "base" or not torch.allclose(stock()(z, t, words).sample, expected, atol=1e-2)


@torch.no_grad()
def test_mixed_weighs_what_semantics_add_and_1_1_is_the_whole(policy: PisaPolicy) -> None:
    pix, both = policy(*inputs(), "pix"), policy(*inputs())
    mixed = policy(*inputs(), "mixed", (0.5, 2.0))
    assert torch.allclose(mixed, 2 * both - 1.5 * pix, atol=1e-5)
    assert torch.allclose(policy(*inputs(), "mixed", (1.0, 1.0)), both, atol=1e-6)


@torch.no_grad()
def test_a_call_leaves_no_trace_in_the_next(policy: PisaPolicy) -> None:
    alone = {mode: policy(*inputs(), mode) for mode in ("pix", "base", "sem", "pix_sem")}
    for mode in ("sem", "pix", "pix_sem", "base"):
        assert torch.equal(policy(*inputs(), mode), alone[mode]), mode
    z, t, words = inputs()
    with pytest.raises(RuntimeError):
        policy(z, t, words[..., :3], "pix")
    assert torch.equal(policy.unet(z, t, words).sample, alone["pix_sem"])


def test_weights_without_the_mixed_mode_and_unknown_modes_are_refused(policy: PisaPolicy) -> None:
    for mode, weights in (("pix", (1.0, 1.0)), ("mixed", None)):
        with pytest.raises(ValueError, match="only with it"):
            policy(*inputs(), mode, weights)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="choose pix_sem"):
        policy(*inputs(), "semantic")  # type: ignore[arg-type]


def gradients(policy: PisaPolicy, mode: Mode, disturbed: bool) -> dict[str, Tensor]:
    policy.zero_grad()
    out = policy(*inputs(1), mode, (0.7, 1.3) if mode == "mixed" else None)
    if disturbed:
        policy(*inputs(1), "base")
    out.square().mean().backward()
    return {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mode", ["pix", "sem", "mixed", "base"])
def test_gradient_checkpointing_recomputes_with_the_updates_of_its_forward(policy: PisaPolicy, mode: Mode) -> None:
    policy.train()
    plain = gradients(policy, mode, disturbed=False)
    policy.unet.enable_gradient_checkpointing()
    again = gradients(policy, mode, disturbed=True)
    assert plain.keys() == again.keys()
    seen = {name.split(".updates.")[1].split(".")[0] for name in plain if ".updates." in name}
    assert seen == {"pix": {*PIX}, "sem": {*SEM}, "mixed": {*PIX, *SEM}, "base": set()}[mode]
    for name, value in plain.items():
        assert torch.allclose(value, again[name], rtol=1e-4, atol=1e-8), name


def test_only_the_declared_updates_receive_gradients(policy: PisaPolicy) -> None:
    declared = parameters_of(policy, SEM[:2])
    make_trainable(as_model(policy, declared), AdaptSettings("full"))
    found = gradients(policy, "pix_sem", disturbed=False)
    assert tuple(found) == declared and len(declared) > 20
    assert all(bool(g.abs().max() > 0) for g in found.values())
    assert tuple(gradients(policy, "sem", disturbed=True)) == declared


@torch.no_grad()
def test_a_fresh_lora_of_rl_changes_nothing_and_its_reference_keeps_the_updates(policy: PisaPolicy) -> None:
    modes: tuple[Mode, ...] = ("pix_sem", "pix", "base")
    policy.requires_grad_(False)
    before = {mode: policy(*inputs(), mode) for mode in modes}
    names = {name for name, _ in policy.named_parameters()}
    model = as_model(policy)
    trained = make_trainable(model, AdaptSettings("lora", rank=2))
    fresh = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert len(fresh) == len(trained) > 20 and not fresh & names and not any(".updates." in name for name in fresh)
    for mode in modes:
        assert torch.equal(policy(*inputs(), mode), before[mode]), mode
    for p in trained:
        p.add_(0.05)
    after = {mode: policy(*inputs(), mode) for mode in modes}
    with reference(model):
        for mode in modes:
            assert torch.equal(policy(*inputs(), mode), before[mode]), mode
            assert not torch.allclose(after[mode], before[mode], atol=1e-2)
    merge(model)
    assert {name for name, _ in policy.named_parameters()} == names
    for mode in modes:
        assert torch.allclose(policy(*inputs(), mode), after[mode], rtol=1e-3, atol=1e-4), mode


def test_rl_through_a_mode_with_gradient_checkpointing_gives_the_same_gradient(policy: PisaPolicy) -> None:
    parameters = make_trainable(as_model(policy), AdaptSettings("lora", rank=2))
    with torch.no_grad():
        for p in parameters:
            p.add_(0.02)
    plain = gradients(policy, "pix", disturbed=False)
    policy.train()
    policy.unet.enable_gradient_checkpointing()
    again = gradients(policy, "pix", disturbed=True)
    assert len(plain) == len(parameters) and plain.keys() == again.keys()
    for name, value in plain.items():
        assert torch.allclose(value, again[name], rtol=1e-3, atol=1e-8), name


def changed(file: dict[str, Any], change: str) -> dict[str, Any]:
    file = copy.deepcopy(file)
    state = file["state_dict_unet"]
    if change == "list":
        file["unet_lora_decoder_modules_sem"].append("up_blocks.9.conv")
    elif change == "no list":
        del file["unet_lora_others_modules_pix"]
    elif change == "rank":
        file["lora_rank_unet_sem"] = 4
    elif change == "name":
        state["conv_in.lora_A.default.weight"] = torch.zeros(2, 4, 3, 3)
    elif change == "base weight":
        state["conv_in.base_layer.weight"] = torch.zeros(16, 4, 3, 3)
    elif change == "half":
        del state["conv_in.lora_B.default_encoder_pix.weight"]
    elif change == "more weights":
        file["state_dict_vae"] = {"a": torch.zeros(1)}
    elif change == "no state":
        del file["state_dict_unet"]
    elif change == "number":
        state["conv_in.lora_A.default_encoder_pix.weight"] = 3
    return file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("list", r"unet_lora_decoder_modules_sem and the weights of default_decoder_sem differ in \['up_blocks.9"),
        ("no list", "has no unet_lora_others_modules_pix"),
        ("rank", r"lora_rank_unet_sem is 4, not so the weights of default_encoder_sem at \['conv_in'"),
        ("name", "conv_in.lora_A.default.weight"),
        ("base weight", "conv_in.base_layer.weight"),
        ("half", "1 missing: conv_in.lora_B.default_encoder_pix.weight"),
        ("more weights", "state_dict_vae"),
        ("no state", "no mapping 'state_dict_unet'"),
        ("number", "more than tensors: .'conv_in.lora_A"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused_with_its_keys(
    released: tuple[UNet2DConditionModel, dict[str, Any]], tmp_path: Path, change: str, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(changed(released[1], change), tmp_path)


@pytest.mark.filterwarnings("ignore:.*objects of other programs")
def test_a_pickle_that_runs_code_is_not_read(tmp_path: Path) -> None:
    torch.save({"state_dict_unet": {}, "run": eval}, tmp_path / "pisa_sr.pkl")
    with pytest.raises(CheckpointError, match="made to run commands"):
        read_pisa(tmp_path / "pisa_sr.pkl")


def test_a_unet_of_another_layout_or_without_heads_is_refused() -> None:
    shapes = {k: tuple(v.shape) for k, v in stock().state_dict().items()}
    with pytest.raises(CheckpointError, match="attention_head_dim"):
        empty_unet(shapes, {}, "unet")
    with pytest.raises(CheckpointError, match="conv_in.weight"):
        empty_unet({k: v for k, v in shapes.items() if k != "conv_in.weight"}, CONFIG, "unet")


def test_a_network_without_its_updates_is_no_policy() -> None:
    shapes = {k: tuple(v.shape) for k, v in stock().state_dict().items()}
    with pytest.raises(ValueError, match="default_encoder_pix"):
        PisaPolicy(empty_unet(shapes, CONFIG, "unet"))


def test_the_full_size_updates_fit_stable_diffusion_2_1() -> None:
    shapes = json.loads((GOLDEN / "diffbir_unet.full_keys.json").read_text())["state"]
    updates = json.loads((GOLDEN / "pisa_lora.full_keys.json").read_text())["state"]
    network = empty_ldm_unet(unet_layout(part(shapes, UNET_PREFIX)))
    before = len(network.state_dict())
    attach(network, updates, RELEASE, "pisa_lora")
    assert len(network.state_dict()) == before + len(updates) == before + 1032
    diffusers = {k: tuple(v.shape) for k, v in network.state_dict().items() if ".updates." not in k}
    again = empty_unet(diffusers, {"attention_head_dim": (5, 10, 20, 20)}, "unet")
    assert {k: tuple(v.shape) for k, v in again.state_dict().items()} == diffusers
    assert again.config.up_block_types == network.config.up_block_types
