"""The DiffBIR adapter: the interface, guidance, losses, saving, and the import of released files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from restoration.backbones.restormer import Restormer, RestormerConfig
from restoration.backbones.snr import SNRAware, SNRConfig
from restoration.base_models import BaseModel, CheckpointError, SamplerSettings, convert, describe, load
from restoration.base_models.diffbir import DiffBIR, DiffBIRSettings, Policy, build_small
from restoration.base_models.networks.text import KNOWN, LOW_QUALITY
from reward_service.scorers.clip_iqa import ATTRIBUTES
from tests.restoration.released_folders import write_diffbir_files

SHARED = (("contrast", 1), ("sharpness", 1), ("noise", 1), ("sharpness", 0))  # Low, Blurry, Noisy, Sharp


def small_vae(levels: int = 2, latents: int = 4) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        latent_channels=latents,
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=4,
        scaling_factor=0.7,
    )


def small_cleaner() -> Restormer:
    return Restormer(RestormerConfig(dim=4, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1, heads=(1, 1, 2, 4)))


def randomised(module: nn.Module, seed: int = 0) -> None:
    """The ControlNet starts with zero convolutions, which would hide any mistake behind them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)


def small(settings: DiffBIRSettings | None = None, negative: bool = False) -> DiffBIR:
    model = build_small(
        small_vae(), small_cleaner(), channels=(16, 32), head_channels=8, text_width=8, settings=settings
    )
    randomised(model.policy)
    if negative:
        model.embeddings["negative_text"] = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(3))
    return model


@pytest.fixture(scope="module")
def model() -> DiffBIR:
    return small(negative=True)


@pytest.fixture(scope="module")
def lq() -> Tensor:
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def noise_like(latent: Tensor, seed: int = 5) -> Tensor:
    return torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))


def test_diffbir_satisfies_the_protocol_of_base_models(model: DiffBIR) -> None:
    assert isinstance(model, BaseModel)


def test_the_condition_is_the_cleaned_image_and_its_scaled_mode(model: DiffBIR, lq: Tensor) -> None:
    condition = model.condition(lq)
    with torch.no_grad():
        clean = model.cleaner(lq).clamp(0, 1)
        mode = model.vae.encode(clean * 2 - 1).latent_dist.mode()
    assert torch.equal(condition.clean, clean)
    assert torch.allclose(condition.latent, mode * 0.7)
    assert condition.text is not None and condition.text.shape == (2, 4, 8)
    assert not condition.latent.requires_grad


def test_decoding_clamps_to_the_image_range_and_encoding_keeps_the_size_ratio(model: DiffBIR, lq: Tensor) -> None:
    latent = model.encode(lq)
    assert latent.shape == (2, 4, 8, 12) and model.vae_factor == 2
    image = model.decode(latent * 50)
    assert image.shape == lq.shape and image.min() >= 0 and image.max() <= 1


@pytest.mark.parametrize(
    ("levels", "channels", "multiple"), [(2, (16, 16), 8), (3, (16, 16, 16), 16), (4, (16, 16), 16)]
)
def test_sizes_are_a_multiple_of_what_vae_unet_and_cleaner_need(
    levels: int, channels: tuple[int, ...], multiple: int
) -> None:
    model = build_small(small_vae(levels), small_cleaner(), channels=channels, head_channels=8)
    assert model.size_multiple == multiple
    side = torch.rand(1, 3, multiple, 2 * multiple)
    condition = model.condition(side)
    assert model.denoise(condition.latent, 5, condition, 1.0).shape == condition.latent.shape


def test_the_condition_steers_the_output_through_the_controlnet(model: DiffBIR, lq: Tensor) -> None:
    a, b = model.condition(lq), model.condition(1 - lq)
    x = noise_like(a.latent)
    with torch.no_grad():
        one, other = model.denoise(x, 300, a, 1.0), model.denoise(x, 300, b, 1.0)
    assert (one - other).abs().max() > 1e-3


def test_a_number_and_one_timestep_a_sample_are_the_same(model: DiffBIR, lq: Tensor) -> None:
    condition = model.condition(lq)
    x = noise_like(condition.latent)
    with torch.no_grad():
        number = model.denoise(x, 300.0, condition, 1.0)
        assert torch.equal(number, model.denoise(x, torch.tensor([300, 300]), condition, 1.0))
        mixed = model.denoise(x, torch.tensor([300, 800]), condition, 1.0)
    assert torch.allclose(mixed[0], number[0], atol=1e-5) and not torch.allclose(mixed[1], number[1], atol=1e-3)


def test_guidance_extrapolates_from_the_negative_to_the_positive_text(model: DiffBIR, lq: Tensor) -> None:
    condition = model.condition(lq)
    assert condition.text is not None and condition.negative_text is not None
    x, latent = noise_like(condition.latent), condition.latent
    t = torch.tensor([300, 300])
    with torch.no_grad():
        u = model.policy(x, t, latent, condition.negative_text)
        c = model.policy(x, t, latent, condition.text)
        assert (u - c).abs().max() > 1e-4
        assert torch.allclose(model.denoise(x, 300, condition, 4.0), u + 4 * (c - u), atol=1e-4)


def test_guidance_without_a_negative_text_says_what_to_do(lq: Tensor) -> None:
    model = small()
    condition = model.condition(lq)
    with pytest.raises(ValueError, match="use guidance_scale 1"):
        model.denoise(condition.latent, 5, condition, 2.0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_sft_loss_is_zero_for_a_network_that_knows_the_target(
    prediction: str, lq: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DiffBIRSettings(prediction=prediction, zero_terminal_snr=prediction != "epsilon")  # type: ignore[arg-type]
    model = small(settings)
    condition = model.condition(lq)
    gt, noise, t = condition.latent * 0.5, noise_like(condition.latent), torch.tensor([10, 900])
    x_t, target = model.add_noise(gt, t, noise)
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        rescale_betas_zero_snr=prediction != "epsilon",
    )
    assert torch.allclose(x_t, scheduler.add_noise(gt, noise, t), atol=1e-5)
    expected = {"epsilon": noise, "sample": gt}.get(prediction)
    assert torch.allclose(target, scheduler.get_velocity(gt, noise, t) if expected is None else expected, atol=1e-5)
    monkeypatch.setattr(model, "denoise", lambda *_, **__: target + torch.tensor([0.0, 2.0]).view(2, 1, 1, 1))
    assert model.sft_loss(gt, condition, t, noise).tolist() == pytest.approx([0, 4], abs=1e-6)


def test_gradients_with_checkpointing_equal_those_without(lq: Tensor) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = small()
        model.policy.train()
        if checkpointing:
            model.policy.unet.enable_gradient_checkpointing()  # type: ignore[operator, union-attr]
            model.policy.controlnet.enable_gradient_checkpointing()  # type: ignore[operator, union-attr]
        condition = model.condition(lq)
        noise = noise_like(condition.latent)
        model.sft_loss(condition.latent, condition, torch.tensor([10, 900]), noise).mean().backward()
        gradients.append({n: p.grad for n, p in model.policy.named_parameters()})
    assert all(g is not None for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-6), name


def test_only_the_policy_can_be_trained(model: DiffBIR) -> None:
    assert not any(p.requires_grad for p in [*model.vae.parameters(), *model.cleaner.parameters()])
    names = [n for n, _ in model.policy.named_parameters()]
    assert all(any(re.match(p, n) for n in names) for p in model.trainable_names)


def test_lora_targets_are_attention_and_convolutions_of_the_trainable_part_only() -> None:
    model = small(DiffBIRSettings(trainable=("controlnet.",)))
    found = [n for n, _ in model.policy.named_modules() if re.fullmatch(model.lora_targets, n)]
    assert found and all(n.startswith("controlnet.") for n in found)
    assert {n.rsplit(".", 1)[-1] for n in found} == {"to_q", "to_k", "to_v", "0", "conv1", "conv2", "conv_in"}
    modules = dict(model.policy.named_modules())
    assert all(isinstance(modules[n], (nn.Linear, nn.Conv2d)) for n in found)


@pytest.mark.parametrize("steps", [2, 5, 10, 50])
def test_linspace_with_eta_1_visits_the_timesteps_of_the_ddpm_scheduler(model: DiffBIR, steps: int) -> None:
    scheduler = DDPMScheduler(timestep_spacing="linspace")
    scheduler.set_timesteps(steps)
    schedule = model.schedule(SamplerSettings(steps=steps, spacing="linspace"))
    assert [s.timestep for s in schedule.steps] == scheduler.timesteps.tolist()
    assert [s.is_decision for s in schedule.steps] == [True] * (steps - 1) + [False]


def test_a_saved_model_loads_to_the_same_outputs(model: DiffBIR, lq: Tensor, tmp_path: Path) -> None:
    model.save(tmp_path)
    again = load(tmp_path)
    assert isinstance(again, DiffBIR) and again.settings == model.settings
    condition = model.condition(lq)
    x = noise_like(condition.latent)
    with torch.no_grad():
        ours, theirs = (m.denoise(x, 300, m.condition(lq), 3.0) for m in (model, again))
    assert torch.equal(ours, theirs)
    assert torch.equal(model.decode(x), again.decode(x))


def test_the_cleaner_can_be_the_one_for_low_light(lq: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(2)
    cleaner = SNRAware(SNRConfig(channels=8, light_blocks=1, layers=1, heads=1, hidden=8))
    files = write_diffbir_files(tmp_path)
    torch.save({f"module.{k}": v for k, v in cleaner.state_dict().items()}, files[2])
    DiffBIR.from_released(*files, head_channels=16).save(tmp_path / "model")
    imported = load(tmp_path / "model")
    for dark in (lq, F.pad(lq, (0, 8, 0, 0), mode="reflect")):  # 24 and 32 wide: the first is no multiple of 16
        clean = imported.condition(dark * 0.1).clean
        assert torch.equal(clean, cleaner.eval()(dark * 0.1).clamp(0, 1))


def test_a_model_stored_in_half_precision_is_half_as_large_and_loads_as_float32(model: DiffBIR, tmp_path: Path) -> None:
    model.save(tmp_path / "full")
    model.save(tmp_path / "half", torch.float16)
    unet = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "half" / unet).stat().st_size < 0.6 * (tmp_path / "full" / unet).stat().st_size
    again = load(tmp_path / "half")
    assert {p.dtype for p in again.policy.parameters()} == {torch.float32}
    weights = dict(model.policy.named_parameters())
    for name, value in again.policy.named_parameters():
        assert torch.equal(value, weights[name].half().float()), name


def test_the_saved_networks_are_diffusers_folders_that_diffusers_reads(model: DiffBIR, tmp_path: Path) -> None:
    model.save(tmp_path)
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet", local_files_only=True)
    vae = AutoencoderKL.from_pretrained(tmp_path / "vae", local_files_only=True)
    controlnet = ControlNetModel.from_pretrained(tmp_path / "controlnet", local_files_only=True)
    stock = Policy(unet, controlnet).eval()
    x = torch.randn(1, 4, 8, 8)
    arguments = (x, torch.tensor([5]), x, model.embeddings["text"])
    with torch.no_grad():
        assert torch.allclose(stock(*arguments), model.policy(*arguments), atol=1e-5)
    assert vae.config.scaling_factor == 0.7


def test_a_folder_that_is_no_model_says_what_is_wrong(model: DiffBIR, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        load(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="restorl_model.json"):
        load(tmp_path)
    model.save(tmp_path)
    settings = tmp_path / "restorl_model.json"
    good = settings.read_text()
    settings.write_text(json.dumps({"kind": "other"}))
    with pytest.raises(CheckpointError, match="'other' is unknown; known: .*diffbir"):
        load(tmp_path)
    settings.write_text(good.replace("v_prediction", "velocity"))
    with pytest.raises(CheckpointError, match="prediction='velocity'"):
        load(tmp_path)
    settings.write_text(good)
    (tmp_path / "controlnet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="controlnet"):
        load(tmp_path)


def test_networks_that_do_not_fit_together_are_refused() -> None:
    model = small()
    with pytest.raises(ValueError, match="twice the latent channels"):
        DiffBIR(
            small_vae(latents=8), model.policy.unet, model.policy.controlnet, model.cleaner, model.embeddings["text"]
        )  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tokens, width"):
        DiffBIR(model.vae, model.policy.unet, model.policy.controlnet, model.cleaner, model.embeddings["text"][0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="head_channels=12"):
        build_small(small_vae(), small_cleaner(), channels=(16, 32), head_channels=12)


def test_released_files_become_a_folder_that_loads_and_runs(tmp_path: Path, lq: Tensor) -> None:
    files = dict(zip(("base", "checkpoint", "cleaner"), write_diffbir_files(tmp_path), strict=True))
    made = convert("diffbir", {**files, "negative_prompt": "", "head_channels": 16}, tmp_path / "model")
    model = load(tmp_path / "model")
    condition = model.condition(lq)
    assert condition.latent.shape == (2, 4, 8, 12) and model.trainable_names == (r"controlnet\.",)
    assert condition.text is not None and condition.text.shape == (2, 9, 24)
    with torch.no_grad():
        output, before = (m.denoise(noise_like(condition.latent), 500, condition, 4.0) for m in (model, made))
    assert output.isfinite().all() and torch.equal(output, before)


def test_a_conversion_needs_no_tokenizer_to_be_restored_as_by_its_authors(tmp_path: Path) -> None:
    files = dict(zip(("base", "checkpoint", "cleaner"), write_diffbir_files(tmp_path), strict=True))
    convert("diffbir", {**files, "head_channels": 16}, tmp_path / "model")
    facts = describe(tmp_path / "model")
    assert facts.guidance and facts.sampler == SamplerSettings(steps=50, spacing="linspace", guidance_scale=4.0)
    model = load(tmp_path / "model")
    assert isinstance(model, DiffBIR)
    assert not torch.equal(model.embeddings["text"], model.embeddings["negative_text"])
    assert small().sampler.guidance_scale == 1  # nothing to lead away from


def test_the_words_of_the_known_prompt_have_the_ids_that_clip_iqa_has_for_them() -> None:
    ids = KNOWN[LOW_QUALITY]
    low, blurry, noisy, sharp = (ATTRIBUTES[pair][side][0] for pair, side in SHARED)
    assert (ids[0], ids[5]) == (low, low) and (ids[3], ids[9], ids[12]) == (blurry, noisy, sharp)
    assert ids[2] == ids[4] == ids[8] == ids[10] == ids[13] and len(ids) == 16


def test_a_conversion_of_wrong_files_or_arguments_says_what_to_do(tmp_path: Path) -> None:
    base, control, cleaner = write_diffbir_files(tmp_path)
    right, out = {"base": base, "checkpoint": control, "cleaner": cleaner}, tmp_path / "model"
    with pytest.raises(CheckpointError, match="original .not the diffusers. layout"):
        convert("diffbir", right | {"base": control}, out)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        convert("diffbir", right | {"prompt": "sharp"}, out)
    with pytest.raises(ValueError, match="missing checkpoint; unknown chekpoint; it takes base, checkpoint, cleaner"):
        convert("diffbir", {"base": base, "chekpoint": control, "cleaner": cleaner}, out)
    with pytest.raises(ValueError, match="known are name, .*prediction"):
        convert("diffbir", right | {"settings": {"predicts": "v"}}, out)
    with pytest.raises(ValueError, match="choose diffbir, "):
        convert("difbir", right, out)
    assert not out.exists()
