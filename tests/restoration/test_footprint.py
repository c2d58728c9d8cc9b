"""Counted memory is that of the models that are really loaded, and of the published shapes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from restoration import activations
from restoration.adapters import AdaptSettings, make_trainable
from restoration.base_models import describe, load
from restoration.base_models.latent import LatentModel
from restoration.footprint import Counts, Setup, actor_bytes, counts_of, rank_bytes
from restoration.stock import STOCK, stock
from tests.restoration.released_models import EACH

Folders = Callable[[str], Path]
KEYS = Path(__file__).parents[1] / "golden"


def released(name: str) -> int:
    shapes = json.loads((KEYS / f"{name}.full_keys.json").read_text())["state"]
    return sum(math.prod(shape) for key, shape in shapes.items() if key not in ("logvar", "pos_embed.pos_embed"))


@pytest.mark.parametrize("name", EACH)
def test_a_folders_counts_are_those_of_the_loaded_and_adapted_model(name: str, model_folder: Folders) -> None:
    counts = counts_of(describe(model_folder(name)).skeleton)
    full, lora = load(model_folder(name)), describe(model_folder(name)).skeleton
    assert isinstance(full, LatentModel) and counts == counts_of(full)
    assert counts.policy == sum(p.numel() for p in full.policy.parameters())
    assert counts.vae == sum(p.numel() for p in full.vae.parameters()) and counts.embeddings > 0
    assert counts.trainable == sum(p.numel() for p in make_trainable(full, AdaptSettings("full")))
    with torch.device("meta"):
        assert counts.lora(3) == sum(p.numel() for p in make_trainable(lora, AdaptSettings("lora", rank=3)))


def test_stablesrs_second_autoencoder_counts_as_another_network(model_folder: Folders) -> None:
    others = {name: counts_of(describe(model_folder(name)).skeleton).others for name in ("stablesr", "diffbir")}
    assert others["stablesr"] > 0 == others["diffbir"]


def test_stock_shapes_have_the_published_numbers_of_parameters() -> None:
    published = {  # policy, trained ControlNet
        "sd21": (released("diffbir_unet") + released("diffbir_controlnet"), released("diffbir_controlnet")),
        "sdxl": (2_567_463_684 + 1_251_014_160, 1_251_014_160),
        "sd3": (released("sd3_transformer") + 538_805_760, 538_805_760),
        "flux": (11_901_408_320 + 3_301_925_888, 3_301_925_888),
    }
    assert published.keys() == STOCK.keys()
    for name, (policy, trained) in published.items():
        counts = counts_of(stock(name))
        assert (counts.policy, counts.trainable) == (policy, trained), name
        assert round(counts.vae / 1e6, 1) in (83.7, 83.8) and round(counts.cleaner / 1e6, 1) == 26.1
    with pytest.raises(ValueError, match="choose sd21, sdxl, sd3, flux"):
        stock("sd9")


COUNTS = Counts(policy=1000, trainable=200, lora_a_rank=10, vae=60, cleaner=30, others=10, embeddings=7)


def test_bytes_of_full_training_are_those_that_adamw_holds(model_folder: Folders) -> None:
    model = load(model_folder("controlnet"))
    parameters = make_trainable(model, AdaptSettings("full"))
    optimiser = torch.optim.AdamW(parameters, foreach=False)
    for p in parameters:
        p.grad = torch.zeros_like(p)
    optimiser.step()
    device, host = rank_bytes(counts_of(model), Setup("full", reference=True))  # type: ignore[arg-type]
    moments = sum(v.nbytes for s in optimiser.state.values() for k, v in s.items() if k != "step")
    own = sum(p.nbytes for p in parameters)
    assert device["AdamW moments"] == moments and device["gradients"] == own == device["trained weights"]
    assert device["reference"] == own and device["masters"] == device["casts"] == 0
    networks = (model.policy, model.vae, model.cleaner)  # type: ignore[attr-defined]
    assert device["frozen weights"] + own == sum(p.nbytes for n in networks for p in n.parameters())
    assert host["published weights"] == own and host["checkpoint"] == own + moments and host["average"] == 0


def test_each_stage_of_zero_shards_what_it_says_and_offload_moves_the_optimiser() -> None:
    def of(stage: int, **others: object) -> tuple[dict[str, int], dict[str, int]]:
        return rank_bytes(COUNTS, Setup("full", zero_stage=stage, ranks=4, **others))  # type: ignore[arg-type]

    plain, one, two, three = (of(stage)[0] for stage in range(4))
    assert [d["AdamW moments"] for d in (plain, one, two, three)] == [1600, 400, 400, 400]
    assert [d["masters"] for d in (plain, one, two, three)] == [0, 200, 200, 200]
    assert [d["gradients"] for d in (plain, one, two, three)] == [800, 800, 200, 200]
    assert [d["trained weights"] for d in (plain, one, two, three)] == [800, 800, 800, 200]
    assert [d["frozen weights"] for d in (plain, one, two, three)] == [3600, 3600, 3600, 900]
    device, host = of(2, offload=True)
    assert "AdamW moments" not in device and (host["AdamW moments"], host["masters"]) == (400, 200)


def test_frozen_weights_of_16_bits_take_half_and_need_no_cast() -> None:
    for mode, frozen, trained in (("lora", 1100, 20), ("full", 900, 200)):
        wide, narrow = (
            actor_bytes(COUNTS, Setup(mode, rank=2, frozen_bytes=size, compute_bytes=2))  # type: ignore[arg-type]
            for size in (4, 2)
        )
        assert (wide["frozen weights"], narrow["frozen weights"]) == (4 * frozen, 2 * frozen)
        assert wide["trained weights"] == narrow["trained weights"] == 4 * trained
        assert actor_bytes(COUNTS, Setup(mode, rank=2))["casts"] == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_an_actor_keeps_casts_of_trained_weights_alone_and_a_rank_those_of_its_graph(mode: str) -> None:
    trained = 2 * 200 if mode == "full" else 0
    for size, frozen in ((4, 2 * 1000 - trained), (2, 0)):
        setup = Setup(mode, rank=2, frozen_bytes=size, compute_bytes=2)  # type: ignore[arg-type]
        assert actor_bytes(COUNTS, setup)["casts"] == trained
        assert rank_bytes(COUNTS, setup)[0]["casts"] == trained + frozen


@pytest.mark.parametrize(("trained", "graph", "kept"), [(False, False, 1), (False, True, 4), (True, False, 4)])
def test_autocast_keeps_the_casts_that_are_counted(trained: bool, graph: bool, kept: int) -> None:
    layers = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(4))).requires_grad_(trained)
    x = torch.randn(1, 256, requires_grad=graph)
    live = activations.LiveBytes([x, *layers.parameters()])
    with torch.set_grad_enabled(graph), torch.autocast("cpu", torch.bfloat16), live:
        layers(x)
    assert live.peak == pytest.approx(kept * 256 * 256 * 2, rel=0.05)


@pytest.mark.parametrize("name", ["controlnet", "sd3"])
def test_passes_without_values_hold_what_passes_with_values_hold(name: str, model_folder: Folders) -> None:
    model, skeleton = load(model_folder(name)), describe(model_folder(name)).skeleton
    side = model.size_multiple * 4
    counted = activations.acting(skeleton, 2, 2, side, side)
    with torch.no_grad():
        lq = torch.rand(2, 3, side, side)
        with activations.counted(model, lq) as live:
            condition = model.condition(lq)
        assert counted["condition"] == pytest.approx(live.peak, rel=0.1)
        condition = condition.repeat_interleave(2)
        x_t = torch.randn(condition.latent.shape)
        given = [x_t, condition.clean, condition.latent, condition.text, *condition.others.values()]
        with activations.counted(model, *given) as live:
            model.denoise(x_t, 500.0, condition, 1.0)
        assert counted["denoise"] == pytest.approx(live.peak, rel=0.2)
        with activations.counted(model, *given) as live:
            model.decode(x_t[:1], condition[:1])
        assert counted["decode"] == pytest.approx(live.peak, rel=0.1)
    assert all(p.is_meta and p.dtype == torch.float32 for p in skeleton.policy.parameters())


@pytest.mark.parametrize("name", ["stablesr", "tsdsr", "flux"])
def test_16_bits_guidance_and_checkpointing_change_what_they_should(name: str, model_folder: Folders) -> None:
    facts = describe(model_folder(name))
    side = facts.size_multiple * 2
    full = activations.acting(facts.skeleton, 1, 2, side, side)
    half = activations.acting(facts.skeleton, 1, 2, side, side, guidance_scale=1.0, dtypes=(torch.bfloat16,) * 3)
    assert all(half[key] < 0.8 * full[key] for key in ("denoise", "decode"))
    if facts.guidance:
        guided = activations.acting(facts.skeleton, 1, 2, side, side, guidance_scale=2.0)
        assert guided["denoise"] > 1.6 * full["denoise"]
    lora = AdaptSettings("lora")
    one, two, again = (
        activations.training(facts.skeleton, lora, rows, side, side, checkpointing=checkpointing)
        for rows, checkpointing in ((1, False), (2, False), (2, True))
    )
    assert 1.5 < two / one < 2.2 and again < two
