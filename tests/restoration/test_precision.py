"""Networks in half the bytes restore nearly the same picture, and what overflows stays float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from restoration.backbones.snr import SNRAware, SNRConfig
from restoration.base_models import load
from restoration.precision import (
    AUTO,
    NATIVE_BF16,
    has_bf16_instructions,
    multiplies_bf16,
    resolve,
    set_precision,
    slow_here,
    told_variables,
)
from restoration.restore import restore, seeded_generator
from restoration.tiling import Tiling
from tests.restoration.released_models import short
from tests.restoration.tiny_model import TinyModel

LQ = torch.rand(3, 70, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("dtype", "near"), [(torch.bfloat16, 0.02), (torch.float16, 0.002)])
@pytest.mark.parametrize("name", ["controlnet", "faithdiff", "pisa", "tsdsr", "sd3", "flux"])
def test_a_cast_model_restores_nearly_the_same_picture(
    model_folder: Callable[[str], Path], name: str, dtype: torch.dtype, near: float
) -> None:
    model = load(model_folder(name))
    exact = restore(model, LQ, short(model), seeded_generator("x", 0), tiling=Tiling(64, 32))
    set_precision(model, dtype)
    cast = restore(model, LQ, short(model), seeded_generator("x", 0), tiling=Tiling(64, 32))
    assert {p.dtype for p in model.policy.parameters()} == {dtype} and cast.dtype == torch.float32
    assert 0 < (cast - exact).abs().mean() < near


def test_float16_leaves_the_cleaner_and_a_vae_that_overflows_in_float32(
    model_folder: Callable[[str], Path],
) -> None:
    model = load(model_folder("controlnet"))
    for force, expected in ((True, torch.float32), (False, torch.float16)):
        model.vae.register_to_config(force_upcast=force)  # type: ignore[attr-defined]
        set_precision(model, torch.float16)
        assert {p.dtype for p in model.vae.parameters()} == {expected}  # type: ignore[attr-defined]
        assert {p.dtype for p in model.cleaner.parameters()} == {torch.float32}  # type: ignore[attr-defined]
    set_precision(model, torch.bfloat16)
    assert {p.dtype for p in model.cleaner.parameters()} == {torch.bfloat16}  # type: ignore[attr-defined]


def test_the_snr_aware_cleaner_keeps_its_map_and_its_sum_exact_in_bfloat16() -> None:
    torch.manual_seed(0)
    config = SNRConfig(channels=8, light_blocks=1, layers=1, heads=2, key_width=8, hidden=16)
    cleaner, lq = SNRAware(config).eval(), LQ[None, :, :64]
    with torch.no_grad():
        exact = cleaner(lq)
        near = cleaner.to(torch.bfloat16)(lq)
        nn.init.zeros_(cleaner.conv_last.weight)
        nn.init.zeros_(cleaner.conv_last.bias)  # type: ignore[arg-type]
        assert torch.equal(cleaner(lq), lq)
    assert near.dtype == torch.float32 and (near - exact).abs().mean() < 0.005


def test_other_types_are_refused() -> None:
    with pytest.raises(ValueError, match="choose float32, bfloat16, float16"):
        set_precision(TinyModel(), torch.float64)


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def with_instructions(bf16: bool = False, amx: bool = False, fp16: bool = False) -> None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_amx_fp16_supported", lambda: fp16)

    return with_instructions


def test_auto_is_bfloat16_on_a_processor_that_has_instructions_for_it_and_float32_on_others(
    processor: Callable[..., None],
) -> None:
    for bf16, amx in ((True, False), (False, True)):
        processor(bf16=bf16, amx=amx)
        assert multiplies_bf16("cpu") and resolve(AUTO, "cpu") == torch.bfloat16
    processor()
    assert not multiplies_bf16("cpu") and resolve(AUTO, "cpu") == torch.float32
    assert resolve("bfloat16", "cpu") == torch.bfloat16  # what is named is taken


def test_auto_on_a_gpu_is_bfloat16_from_capability_8_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, wanted in (((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert resolve(AUTO, "cuda") == wanted
        assert (slow_here(torch.bfloat16, "cuda") is None) == (wanted == torch.bfloat16)


def test_a_type_that_is_named_for_its_speed_and_is_slower_on_this_device_is_told_with_the_ratio(
    processor: Callable[..., None],
) -> None:
    processor()
    assert "bfloat16 takes about ten times as long" in (slow_here(torch.bfloat16, "cpu") or "")
    assert "float16 takes a hundred times as long" in (slow_here(torch.float16, "cpu") or "")
    assert slow_here(torch.float32, "cpu") is None
    processor(amx=True, fp16=True)
    assert slow_here(torch.bfloat16, "cpu") is None and slow_here(torch.float16, "cpu") is None


def test_a_variable_makes_auto_what_it_is_on_another_processor_and_changes_nothing_else(
    processor: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for native in (True, False):
        processor(bf16=native)
        for told, meant in (("0", torch.float32), ("1", torch.bfloat16)):
            monkeypatch.setenv(NATIVE_BF16, told)
            assert resolve(AUTO, "cpu") == meant and resolve("bfloat16", "cpu") == torch.bfloat16
            assert (slow_here(torch.bfloat16, "cpu") is None) == (told == "1")
            assert has_bf16_instructions() == native and told_variables() == {NATIVE_BF16: told}
        monkeypatch.setenv(NATIVE_BF16, " ")
        assert multiplies_bf16("cpu") == native and told_variables() == {}
    monkeypatch.setenv(NATIVE_BF16, "yes")
    with pytest.raises(ValueError, match="RESTORL_NATIVE_BF16=yes is neither 0 nor 1; leave it out"):
        resolve(AUTO, "cpu")
