from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from restoration.base_models.networks.attended import Contexts, build_attended, skips_of
from tests.restoration import attended_files
from tests.restoration import released_folders as files

GOLDEN = Path(__file__).parents[1] / "golden"


def tiny(name: str, attention: str) -> UNet2DConditionModel:
    described = json.loads((GOLDEN / f"{name}.json").read_text())
    shapes = {k: tuple(v) for k, v in described["state"]["unet"].items()}
    network = build_attended(UNet2DConditionModel, described["config"]["unet"], shapes, attention).to_empty(
        device="cpu"
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    return network


def gradients(network: UNet2DConditionModel, context: Tensor, disturbed: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, words = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 5, 24, generator=generator)
    out = network(x, torch.tensor([3]), Contexts(words, context), return_dict=False)[0]
    if disturbed:
        with torch.no_grad():
            network(x, torch.tensor([3]), Contexts(words, context + 1), return_dict=False)
    network.zero_grad()
    out.square().mean().backward()
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_recomputes_with_the_context_of_its_forward() -> None:
    network, context = tiny("seesr", "image_attentions").train(), torch.randn(1, 7, 512)
    plain = gradients(network, context, disturbed=False)
    network.enable_gradient_checkpointing()
    again = gradients(network, context, disturbed=True)
    assert plain.keys() == again.keys() and any(".second." in name for name in plain)
    for name, value in plain.items():
        assert torch.allclose(value, again[name], rtol=1e-4, atol=1e-7), name


@torch.no_grad()
def test_each_up_block_looks_at_the_residual_of_its_skip() -> None:
    network = tiny("pasd", "pixel_attentions").eval()
    seen: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if name.endswith(".second"):
            module.register_forward_hook(
                lambda _, __, kwargs, ___, name=name: seen.update({name: kwargs["encoder_hidden_states"]}),
                with_kwargs=True,
            )
    sides, widths = [8, 8, 8, 4, 4, 4, 2, 2, 2, 1, 1, 1], [32] * 4 + [64] * 8
    residuals = [torch.full((1, w, s, s), float(i)) for i, (s, w) in enumerate(zip(sides, widths, strict=True))]
    words, x = torch.randn(1, 5, 24), torch.randn(1, 4, 8, 8)
    network(
        x,
        torch.tensor([3]),
        Contexts(words, skips_of(residuals)),
        down_block_additional_residuals=residuals,
        mid_block_additional_residual=torch.zeros(1, 64, 1, 1),
    )
    assert [float(tokens[0, 0, 0]) for tokens in seen.values()] == pytest.approx(list(range(11, -1, -1)))
    assert [tokens.shape[1] for tokens in seen.values()] == [s * s for s in reversed(sides)]


@pytest.mark.parametrize("name", ["pasd", "xpsr", "seesr", "pisa"])
def test_the_small_networks_of_other_tests_have_every_kind_of_layer_that_the_golden_ones_have(name: str) -> None:
    golden = files.golden(name)
    if name == "pisa":
        _, unet, content = attended_files.pisa(golden)
        small: dict[str, dict[str, Tensor]] = {"unet": unet, "lora": content["state_dict_unet"]}
        assert all(content[listed] for listed in golden.meta["module_lists"])
    else:
        small = {part: state for part, (_, state) in attended_files.attended(golden).items()}
    assert small.keys() == golden.keys.keys()
    for part, state in small.items():
        ours, theirs = ({attended_files.kind_of(key) for key in keys} for keys in (state, golden.keys[part]))
        assert ours == theirs, ours ^ theirs
