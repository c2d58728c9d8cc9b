"""Flow models with a ControlNet: equal to diffusers' own pipelines, scheduler and folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetPipeline,
    StableDiffusion3ControlNetPipeline,
)
from safetensors.torch import save_file
from torch import Tensor

from restoration.adapters import AdaptSettings, make_trainable
from restoration.base_models import load
from restoration.base_models.flow_control import FlowControl, flow_sigmas
from restoration.base_models.flow_flux import FluxControl, FluxControlSettings, pack, places, unpack
from restoration.base_models.flow_sd3 import SD3Control, SD3ControlSettings
from restoration.base_models.interface import SamplerSettings
from restoration.checkpoints import CheckpointError, read_state
from restoration.transition import flow_schedule, flow_step, transition
from tests.restoration import released_folders as files
from tests.restoration.released_models import flow_text, write_flux, write_sd3

Change = dict[str, Any]


def sd3_model(folder: Path, controlnet: Change | None = None, **settings: Any) -> SD3Control:
    embeddings = flow_text(folder / "e.safetensors")
    cleaner = files.write_cleaner(folder / "c.pth")
    chosen = SD3ControlSettings(**settings)
    return SD3Control.from_released(
        *write_sd3(folder, controlnet=controlnet), cleaner, embeddings=embeddings, settings=chosen
    )


def flux_model(folder: Path, both: Change | None = None, controlnet: Change | None = None, **given: Any) -> FluxControl:
    embeddings = flow_text(folder / "e.safetensors", negative=False)
    cleaner = files.write_cleaner(folder / "c.pth")
    parts = write_flux(folder, both, {**(both or {}), **(controlnet or {})})
    return FluxControl.from_released(*parts, cleaner, embeddings=embeddings, settings=FluxControlSettings(**given))


def lq() -> Tensor:
    return torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def chain(model: FlowControl, noise: Tensor, sampler: SamplerSettings) -> Tensor:
    """The end of a chain that hardly has noise."""
    condition, x = model.condition(lq()), noise
    for step in model.schedule(sampler).steps:
        output = model.denoise(x, step.timestep, condition, sampler.guidance_scale)
        x = transition(step, output, x, noise=torch.zeros_like(x)).action
    return x


def repeated(model: FlowControl, name: str) -> Tensor:
    value = model.embeddings[name]
    return value.expand(2, *value.shape[1:])


def assert_the_controlnet_is_heard(model: FlowControl, found: Tensor, noise: Tensor, sampler: SamplerSettings) -> None:
    model.settings = replace(model.settings, control_scale=0.0)
    without = chain(model, noise, sampler)
    assert (found - without).abs().mean() > 1e-2 * without.abs().mean()


SD35_LARGE = {
    "joint_attention_dim": None,
    "use_pos_embed": False,
    "pos_embed_type": None,
    "force_zeros_for_pooled_projection": False,
}


@pytest.mark.parametrize(
    "controlnet",
    [
        {},
        {"force_zeros_for_pooled_projection": False},
        SD35_LARGE,
        {"num_attention_heads": 1, "attention_head_dim": 16},
    ],
    ids=["zeros", "shifted", "of SD 3.5 Large", "other heads"],
)
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_chain_without_noise_ends_where_diffusers_pipeline_of_sd3_does(
    tmp_path: Path, controlnet: Change, guidance: float
) -> None:
    model = sd3_model(tmp_path, controlnet, control_scale=0.7)
    sampler = SamplerSettings(steps=4, spacing="linspace", noise_level=1e-6, guidance_scale=guidance)
    noise = torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(1))
    found = chain(model, noise, sampler)
    nets: Any = model.policy
    pipeline = StableDiffusion3ControlNetPipeline(
        transformer=nets.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=model.vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
        controlnet=nets.controlnet,
    )
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        control_image=model.condition(lq()).clean * 2 - 1,  # pipelines take tensors as they are
        controlnet_conditioning_scale=0.7,
        guidance_scale=guidance,
        num_inference_steps=4,
        prompt_embeds=repeated(model, "text"),
        pooled_prompt_embeds=repeated(model, "pooled"),
        negative_prompt_embeds=repeated(model, "negative_text"),
        negative_pooled_prompt_embeds=repeated(model, "negative_pooled"),
        latents=noise,
        output_type="latent",
    ).images
    assert torch.allclose(found, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))
    assert_the_controlnet_is_heard(model, found, noise, sampler)


@pytest.mark.parametrize(
    ("both", "controlnet", "settings"),
    [
        ({}, {}, {}),
        ({"guidance_embeds": True}, {}, {"guidance_embed": 2.0}),
        ({"guidance_embeds": True}, {"guidance_embeds": False, "num_mode": 4}, {"control_mode": 3}),
        ({"num_attention_heads": 3}, {"num_single_layers": 0}, {}),
    ],
    ids=["schnell", "dev", "union", "no single blocks"],
)
def test_a_chain_without_noise_ends_where_diffusers_pipeline_of_flux_does(
    tmp_path: Path, both: Change, controlnet: Change, settings: Change
) -> None:
    model = flux_model(tmp_path, both, controlnet, shift=1.9, control_scale=0.7, **settings)
    noise = torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(1))
    sampler = SamplerSettings(steps=4, spacing="trailing", noise_level=1e-6)
    found = chain(model, noise, sampler)
    nets: Any = model.policy
    pipeline = FluxControlNetPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.9),
        vae=model.vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=nets.transformer,
        controlnet=nets.controlnet,
    )
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        control_image=model.condition(lq()).clean * 2 - 1,  # pipelines take tensors as they are
        height=64,
        width=128,
        control_mode=settings.get("control_mode"),
        controlnet_conditioning_scale=0.7,
        guidance_scale=settings.get("guidance_embed", 3.5),
        num_inference_steps=4,
        prompt_embeds=repeated(model, "text"),
        pooled_prompt_embeds=repeated(model, "pooled"),
        latents=pack(noise),
        output_type="latent",
    ).images
    expected = unpack(expected, 8, 16)
    assert torch.allclose(found, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))
    assert_the_controlnet_is_heard(model, found, noise, sampler)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 3.16])
@pytest.mark.parametrize("steps", [1, 2, 7, 28])
def test_the_sigmas_are_those_of_diffusers_scheduler(steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    assert torch.allclose(torch.tensor(flow_sigmas(steps, shift, "linspace")), scheduler.sigmas, rtol=1e-5, atol=1e-7)
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    assert torch.allclose(torch.tensor(flow_sigmas(steps, shift, "trailing")), scheduler.sigmas, rtol=1e-5, atol=1e-7)
    told = [s.timestep for s in flow_schedule(flow_sigmas(steps, shift, "trailing"), 0.7).steps]
    assert torch.allclose(torch.tensor(told), scheduler.timesteps, rtol=1e-5, atol=1e-4)


def test_a_dynamic_shift_of_mu_is_the_shift_e_to_the_mu() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=1.15)
    assert torch.allclose(torch.tensor(flow_sigmas(4, 2.718281828**1.15, "trailing")), scheduler.sigmas, rtol=1e-5)


def test_as_the_noise_vanishes_a_step_becomes_that_of_diffusers_scheduler_and_the_last_is_it_at_any_noise() -> None:
    v, x = torch.randn(2, 2, 4, 8, 16, generator=torch.Generator().manual_seed(2))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(6)
    sigmas = flow_sigmas(6, 3.0, "linspace")
    for i, t in enumerate(scheduler.timesteps):
        expected = scheduler.step(v, t, x, return_dict=False)[0]
        step = flow_step(i, sigmas[i], sigmas[i + 1], 1e-7, sigma_guard=sigmas[1])
        mean = transition(step, v, x, noise=torch.zeros_like(x)).mean
        assert torch.allclose(mean, expected, rtol=0, atol=1e-5)
    last = flow_schedule(sigmas, 0.7).steps[-1]
    assert torch.allclose(transition(last, v, x, noise=torch.ones_like(x)).action, expected, rtol=0, atol=1e-5)


def test_tokens_are_squares_of_2_x_2_cells_in_the_order_of_diffusers_pipeline() -> None:
    latents = torch.randn(3, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    tokens = pack(latents)
    assert torch.equal(tokens, FluxControlNetPipeline._pack_latents(latents, 3, 4, 6, 10))
    assert torch.equal(unpack(tokens, 6, 10), latents)
    wanted = FluxControlNetPipeline._prepare_latent_image_ids(3, 3, 5, "cpu", torch.float32)
    assert torch.equal(places(6, 10, torch.device("cpu")), wanted)


def test_latents_are_encoded_and_decoded_with_the_vaes_shift_and_scale(tmp_path: Path) -> None:
    model, images = sd3_model(tmp_path), lq()
    shift, scale = model.vae.config.shift_factor, model.vae.config.scaling_factor
    with torch.no_grad():
        latents = (model.vae.encode(images * 2 - 1).latent_dist.mode() - shift) * scale
        decoded = (model.vae.decode(latents / scale + shift).sample / 2 + 0.5).clamp(0, 1)
    assert shift != 0 and torch.allclose(model.encode(images), latents, atol=1e-5)
    assert torch.allclose(model.decode(latents), decoded, atol=1e-5)


def test_the_sft_loss_is_the_error_of_v_at_the_shifted_sigma_that_the_network_is_told(tmp_path: Path) -> None:
    model = sd3_model(tmp_path)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)  # its table begins with the noisiest
    gt, noise = torch.randn(2, 3, 4, 8, 16, generator=torch.Generator().manual_seed(3))
    timestep = torch.tensor([0, 400, 999])
    condition = model.condition(torch.cat([lq(), lq()[:1]]))
    told = scheduler.timesteps[999 - timestep]
    x_t = scheduler.scale_noise(gt, told, noise)
    with torch.no_grad():
        expected = (model.denoise(x_t, told, condition, 1.0) - (noise - gt)).square().flatten(1).mean(1)
        assert torch.allclose(model.sft_loss(gt, condition, timestep, noise), expected, rtol=1e-4)
        model.denoise = lambda *_, **__: noise - gt  # type: ignore[method-assign]
        assert model.sft_loss(gt, condition, timestep, noise).abs().max() < 1e-10


@pytest.mark.parametrize("make", [sd3_model, flux_model])
def test_diffusers_reads_a_saved_models_networks(tmp_path: Path, make: Any) -> None:
    model = make(tmp_path)
    model.save(tmp_path / "model")
    networks = {
        "transformer": (model.TRANSFORMER, model.policy.transformer),
        "controlnet": (model.CONTROLNET, model.policy.controlnet),
        "vae": (AutoencoderKL, model.vae),
    }
    for name, (kind, own) in networks.items():
        read, info = kind.from_pretrained(tmp_path / "model" / name, output_loading_info=True)
        assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert {k: v for k, v in read.config.items() if k[0] != "_"} == {
            k: list(v) if isinstance(v, tuple) else v for k, v in own.config.items() if k[0] != "_"
        }
        state = own.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in read.state_dict().items())


def test_the_authors_guidance_is_the_default_where_negative_embeddings_are_stored(tmp_path: Path) -> None:
    model = sd3_model(tmp_path)
    assert model.sampler.guidance_scale == SD3Control.SAMPLER.guidance_scale > 1
    model.embeddings = {k: v for k, v in model.embeddings.items() if not k.startswith("negative_")}
    assert model.sampler.guidance_scale == 1


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (sd3_model, ("attn.to_q", "attn.to_add_out", "attn.add_k_proj", "ff.net.2", "ff_context.net.0.proj")),
        (flux_model, ("attn.to_out.0", "attn.add_q_proj", "proj_mlp", "proj_out", "controlnet.controlnet_x_embedder")),
    ],
)
def test_lora_sits_in_the_controlnets_transformer_blocks_alone(
    tmp_path: Path, make: Any, layers: tuple[str, ...]
) -> None:
    model = make(tmp_path)
    make_trainable(model, AdaptSettings(mode="lora", rank=2))
    names = [n.partition(".lora_A")[0] for n, p in model.policy.named_parameters() if p.requires_grad and "lora_A" in n]
    assert all(name.startswith("controlnet.") for name in names)
    assert all(any(name.endswith(layer) for name in names) for layer in layers)


def drop(folder: Path, *names: str) -> Path:
    file = flow_text(folder / "e.safetensors")
    save_file({k: v for k, v in read_state(file).items() if k not in names}, file)
    return file


@pytest.mark.parametrize(
    ("missing", "named"),
    [(("pooled",), "pooled"), (("negative_pooled",), "negative_pooled"), (("negative_text",), "negative_text")],
)
def test_text_that_is_incomplete_is_refused(tmp_path: Path, missing: tuple[str, ...], named: str) -> None:
    base, control = write_sd3(tmp_path)
    with pytest.raises(CheckpointError, match=f"no embedding {named}"):
        SD3Control.from_released(
            base, control, files.write_cleaner(tmp_path / "c.pth"), embeddings=drop(tmp_path, *missing)
        )


@pytest.mark.parametrize(
    ("make", "controlnet", "settings", "match"),
    [
        (sd3_model, {"extra_conditioning_channels": 1}, {}, "inpainting"),
        (sd3_model, {"in_channels": 8}, {}, "latent channels"),
        (sd3_model, {"num_attention_heads": 4, "caption_projection_dim": 32}, {}, "width"),
        (sd3_model, {"joint_attention_dim": 24}, {}, "joint_attention_dim"),
        (flux_model, {"num_mode": 3}, {}, "control_mode=None: from 0 to 2"),
        (flux_model, {"num_mode": 3}, {"control_mode": 3}, "control_mode=3: from 0 to 2"),
        (flux_model, {}, {"control_mode": 0}, "has no modes"),
        (flux_model, {"conditioning_embedding_channels": 16}, {}, "sees pixels"),
        (flux_model, {"axes_dims_rope": (8, 4, 4)}, {}, "axes_dims_rope"),
    ],
)
def test_a_controlnet_that_does_not_fit_is_refused_with_the_reason(
    tmp_path: Path, make: Any, controlnet: Change, settings: Change, match: str
) -> None:
    with pytest.raises(CheckpointError, match=match):
        make(tmp_path, controlnet=controlnet, **settings)


def test_settings_and_spacings_without_meaning_are_refused(tmp_path: Path) -> None:
    model = sd3_model(tmp_path)
    with pytest.raises(ValueError, match="spacing='leading'"):
        model.schedule(SamplerSettings(spacing="leading"))
    for shift in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="shift"):
            SD3ControlSettings(shift=shift)
    with pytest.raises(ValueError, match="steps=1001"):
        model.schedule(SamplerSettings(steps=1001))


def test_settings_survive_saving(tmp_path: Path) -> None:
    flux_model(tmp_path, controlnet={"num_mode": 2}, control_mode=1, shift=2.5, guidance_embed=4.0).save(tmp_path / "m")
    again = load(tmp_path / "m")
    assert isinstance(again, FluxControl)
    chosen = again.settings
    assert (chosen.control_mode, chosen.shift, chosen.guidance_embed) == (1, 2.5, 4.0)
