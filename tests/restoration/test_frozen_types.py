"""Frozen weights of 16 bits: loaded straight into them, run in every model, trained parts exact in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from restoration.adapters import AdaptSettings, make_trainable, trained_parameters
from restoration.base_models import describe, load
from restoration.base_models.latent import LatentModel
from restoration.precision import autocast, enable_tf32, networks_of, resolve, set_frozen_dtype, trainable
from tests.restoration.live_bytes import LiveBytes
from tests.restoration.released_models import EACH

Folders = Callable[[str], Path]
BF16 = torch.bfloat16


def tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    return dict(network.state_dict())


@pytest.mark.parametrize("mode", ["lora", pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", EACH)
def test_a_model_with_frozen_weights_of_16_bits_takes_float32_inputs_and_trains(
    name: str, mode: str, model_folder: Folders
) -> None:
    exact = load(model_folder(name))
    model = load(model_folder(name), frozen_dtype=BF16, mode=mode)  # type: ignore[arg-type]
    assert isinstance(model, LatentModel) and isinstance(exact, LatentModel)
    kept = trainable(model).keys() if mode == "full" else set()
    for (key, wide), narrow in zip(exact.policy.state_dict().items(), model.policy.state_dict().values(), strict=True):
        expected = wide if key in kept or not wide.is_floating_point() else wide.to(BF16)
        assert torch.equal(narrow, expected) and narrow.dtype == expected.dtype, key
    assert {p.dtype for n in (model.vae, model.cleaner) for p in n.parameters()} == {BF16}
    parameters = make_trainable(model, AdaptSettings(mode, rank=2), keep_reference=False)  # type: ignore[arg-type]
    set_frozen_dtype(model, BF16, keep=trained_parameters(model).keys())
    assert {p.dtype for p in parameters} == {torch.float32}

    side = 2 * model.size_multiple
    lq = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    condition, reference = model.condition(lq), exact.condition(lq)
    x_t = torch.randn(condition.latent.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = exact.denoise(x_t, 500.0, reference, 1.0)
        with autocast("cpu", BF16):  # how much this network, of random weights, makes of rounding
            rounded = exact.denoise(x_t, 500.0, reference, 1.0)
    with autocast("cpu", BF16):
        output = model.denoise(x_t, 500.0, condition, 1.0)
        output.square().mean().backward()  # type: ignore[no-untyped-call]
    decoded, exactly = model.decode(condition.latent, condition), exact.decode(reference.latent, reference)
    off = {}
    for what, near, far in (
        ("clean", condition.clean, reference.clean),
        ("output", output, wanted),
        ("decoded", decoded, exactly),
    ):
        assert near.dtype == torch.float32 and near.isfinite().all()
        off[what] = float((near - far).abs().mean() / far.std())
    allowed = 0.1 + 2 * float((rounded - wanted).abs().mean() / wanted.std())
    assert off.pop("output") < allowed and max(off.values()) < 0.1, off
    grads = [p.grad for p in parameters if p.grad is not None]
    assert grads and all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)
    assert sum(float(g.abs().sum()) for g in grads) > 0


@pytest.mark.parametrize("name", ["diffbir", "controlnet", "sd3", "flux"])
def test_networks_of_two_types_pass_each_other_what_they_take_without_autocast(
    name: str, model_folder: Folders
) -> None:
    exact, model = load(model_folder(name)), load(model_folder(name), frozen_dtype=BF16)
    side = 2 * model.size_multiple
    lq = torch.rand(1, 3, side, side)
    with torch.no_grad():
        outputs = [m.denoise(m.condition(lq).latent, 500.0, m.condition(lq), 1.0) for m in (exact, model)]
    assert (outputs[0] - outputs[1]).abs().mean() < 0.1 * outputs[0].std()


def test_loading_in_16_bits_never_holds_the_weights_in_32(model_folder: Folders) -> None:
    folder = model_folder("faithdiff")
    skeleton = describe(folder).skeleton
    numbers = sum(p.numel() for network in networks_of(skeleton) for p in network.parameters())
    copied = {}
    for dtype in (torch.float32, BF16):
        with LiveBytes() as live:
            model = load(folder, frozen_dtype=dtype, mode="lora")
        copied[dtype] = live.peak
        assert sum(p.nbytes for n in networks_of(model) for p in n.parameters()) == numbers * dtype.itemsize
    # both also count the mapped files, whose pages are no memory of the process
    assert copied[torch.float32] - copied[BF16] == pytest.approx(2 * numbers, rel=0.2)


def test_a_loaded_model_may_be_cast_but_for_what_is_trained(model_folder: Folders) -> None:
    model = load(model_folder("diffbir"))
    make_trainable(model, AdaptSettings("lora", rank=2))
    set_frozen_dtype(model, BF16, keep=trained_parameters(model).keys())
    for name, parameter in model.policy.named_parameters():
        assert parameter.dtype == (torch.float32 if ".lora_" in name else BF16)
    full = load(model_folder("diffbir"))
    set_frozen_dtype(full, BF16)
    for name, parameter in full.policy.named_parameters():
        assert parameter.dtype == (torch.float32 if name.startswith("controlnet.") else BF16)
    with pytest.raises(ValueError, match="the policy has no parameter nothing"):
        set_frozen_dtype(full, BF16, keep=["nothing"])
    with pytest.raises(ValueError, match="choose lora or full"):
        load(model_folder("diffbir"), mode="some")  # type: ignore[arg-type]


def test_the_autoencoder_keeps_its_layout_and_nothing_wants_a_gradient_that_should_not(model_folder: Folders) -> None:
    model = load(model_folder("stablesr"), frozen_dtype=BF16)
    for network in (model.vae, model.fused):  # type: ignore[attr-defined]
        convolutions = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
        assert all(w.is_contiguous(memory_format=torch.channels_last) for w in convolutions)
        assert not any(p.requires_grad for p in network.parameters())
    assert all(p.requires_grad for p in model.policy.parameters())


@pytest.mark.parametrize(
    ("device", "capability", "found"),
    [("cuda", (9, 0), BF16), ("cuda", (8, 0), BF16), ("cuda", (7, 5), torch.float32), ("mps", None, torch.float32)],
)
def test_auto_is_what_the_device_multiplies_in_hardware(
    monkeypatch: pytest.MonkeyPatch, device: str, capability: tuple[int, int], found: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert resolve("auto", device) == found and resolve("float32", device) == torch.float32


@pytest.mark.parametrize(("avx", "amx"), [(True, False), (False, True), (False, False)])
def test_auto_on_a_cpu_asks_for_its_instructions(monkeypatch: pytest.MonkeyPatch, avx: bool, amx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert resolve("auto", "cpu") == (BF16 if avx or amx else torch.float32)
    with pytest.raises(ValueError, match="choose auto, float32"):
        resolve("half", "cpu")


def test_tf32_is_allowed_for_products_and_convolutions() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = False
        enable_tf32()
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
