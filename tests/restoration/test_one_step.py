"""The one-step base models PiSA-SR and TSD-SR."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from restoration.adapters import AdaptSettings, make_trainable, merge
from restoration.base_models import CheckpointError, SamplerSettings, convert, load
from restoration.base_models.networks.low_rank import parameters_of, updates_of
from restoration.base_models.networks.pisa_networks import read_pisa
from restoration.base_models.one_step import OneStep
from restoration.base_models.pisa import PisaSettings, PiSASR
from restoration.base_models.tsdsr import TSDSR
from restoration.restore import sample
from tests.restoration import released_folders as files

ONE = SamplerSettings(steps=1)
STOCK: dict[str, Any] = {"unet": UNet2DConditionModel, "transformer": SD3Transformer2DModel, "vae": AutoencoderKL}


@pytest.fixture(scope="module", params=["pisa", "tsdsr"])
def folder(request: pytest.FixtureRequest, place_of: Callable[[str], Path]) -> Path:
    return place_of(request.param)


@pytest.fixture(scope="module")
def place_of(made: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of released files, and in model/ what `save` makes of them; not to be changed."""

    @cache
    def of(name: str) -> Path:
        place = tmp_path_factory.mktemp(name)
        for path in (*(made(name) / "released").iterdir(), made(name) / "model"):
            (place / path.name).symlink_to(path)
        return place

    return of


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return load(folder / "model")


@pytest.fixture
def model(loaded: Any) -> Any:
    return deepcopy(loaded)


@pytest.fixture
def tsdsr_folder(place_of: Callable[[str], Path]) -> Path:
    return place_of("tsdsr")


@pytest.fixture
def pisa_folder(place_of: Callable[[str], Path]) -> Path:
    return place_of("pisa")


def picture(count: int = 1, width: int = 64) -> Tensor:
    return torch.rand(count, 3, 64, width, generator=torch.Generator().manual_seed(0))


def restored(model: Any) -> Tensor:
    return sample(model, picture(), ONE, torch.Generator().manual_seed(0))


def from_files(model: OneStep, base: Path, checkpoint: Path, folder: Path) -> Any:
    """From the released layout, with the cleaner and the embeddings of a saved model."""
    cleaner, embeddings = folder / "cleaner" / "model.safetensors", folder / "text.safetensors"
    return type(model).from_released(base, checkpoint, cleaner, embeddings=embeddings)  # type: ignore[attr-defined]


def written_updates(model: Any, folder: Path, place: Path) -> Path:
    """The checkpoint that `from_released` reads."""
    if isinstance(model, TSDSR):
        return folder / "updates"
    model.export_updates(place)
    return place / "pisa_sr.pkl"


def test_settings_know_nothing_of_noise_schedules(model: OneStep) -> None:
    names = {f.name for f in fields(model.settings)}
    assert not names & {"prediction", "beta_start", "beta_end", "train_timesteps", "zero_terminal_snr"}
    assert {"name", "trainable", "lora_layers", "timestep"} <= names


@torch.no_grad()
def test_restoring_decodes_z_minus_the_output_and_has_no_noise(model: OneStep) -> None:
    condition = model.condition(picture())
    output = model.denoise(condition.latent, model.settings.timestep, condition, 1.0)
    expected = model.decode(condition.latent - output)
    assert output.abs().mean() > 0.1
    for seed in (0, 1):
        found = sample(model, picture(), ONE, torch.Generator().manual_seed(seed))
        assert torch.allclose(found, expected, atol=1e-6)


def test_the_step_is_a_gaussian_of_the_samplers_deviation_around_the_restored_latent(model: OneStep) -> None:
    (step,) = model.schedule(SamplerSettings(steps=1, sigma=0.2)).steps
    assert step.is_decision and step.std == 0.2 and step.timestep == model.settings.timestep
    assert (step.x0_from_x, step.x0_from_out, step.mean_from_x, step.mean_from_x0) == (1, -1, 0, 1)


def test_several_steps_are_refused(model: OneStep) -> None:
    with pytest.raises(ValueError, match=r"sampler\.steps=6: \w+ takes one step; set sampler\.steps to 1"):
        model.schedule(SamplerSettings())
    assert model.sampler.steps == 1


def test_guidance_is_refused(model: OneStep) -> None:
    with pytest.raises(ValueError, match="use guidance_scale 1"):
        sample(model, picture(), SamplerSettings(steps=1, guidance_scale=2.0), torch.Generator())


@torch.no_grad()
def test_the_sft_loss_is_the_distance_of_the_restored_latent_whatever_timestep_and_noise(model: OneStep) -> None:
    condition = model.condition(picture(2))
    gt = model.encode(1 - picture(2))
    noise = torch.randn(gt.shape, generator=torch.Generator().manual_seed(2))
    drawn = torch.randint(model.train_timesteps, (2,))
    found = condition.latent - model.denoise(condition.latent, model.settings.timestep, condition, 1.0)
    loss = model.sft_loss(gt, condition, drawn, noise)
    assert torch.allclose(loss, torch.stack([(a - b).square().mean() for a, b in zip(found, gt, strict=True)]))
    assert torch.equal(loss, model.sft_loss(gt, condition, drawn + 7, noise * 2))
    assert model.sft_loss(found, condition, drawn, noise).max() < 1e-8 < loss.min()


def test_sft_trains_the_updates_of_the_policy(model: OneStep) -> None:
    updates = set(parameters_of(model.policy, updates_of(model.policy)))
    make_trainable(model, AdaptSettings("full"))
    assert {n for n, p in model.policy.named_parameters() if p.requires_grad} == updates and len(updates) > 20
    assert not any(p.requires_grad for p in model.vae.parameters())


def test_lora_attaches_to_stock_layers_and_to_no_update(model: Any) -> None:
    names = [n for n, _ in model.policy.named_modules()]
    targets = [n for n in names if re.fullmatch(model.lora_targets, n)]
    assert any(n.endswith(".to_q") for n in targets) and not any(".updates." in n for n in targets)
    model.settings = replace(model.settings, lora_layers=".*")
    everything = {n for n in names if re.fullmatch(model.lora_targets, n)}
    assert everything == {n for n in names if n.startswith(f"{model.NETWORK}.") and ".updates." not in n}


@torch.no_grad()
def test_a_saved_folder_holds_stock_networks_and_updates_in_the_released_layout(folder: Path, model: Any) -> None:
    for name, (network, _) in model.updated().items():
        stock = STOCK[name].from_pretrained(folder / "model" / name)
        base = load_file(folder / "base" / name / "diffusion_pytorch_model.safetensors")
        assert {k: v.tolist() for k, v in stock.state_dict().items()} == {k: v.tolist() for k, v in base.items()}
        assert type(network).__name__ != type(stock).__name__ or name == "vae"
        assert stock.config["_class_name"] == STOCK[name].__name__
        saved = load_file(folder / "model" / "updates" / f"{name}.safetensors")
        assert equal(saved, released_updates(folder, name))


def released_updates(folder: Path, name: str) -> dict[str, Tensor]:
    if name == "unet":
        return read_pisa(folder / "pisa_sr.pkl")
    return load_file(folder / "tsdsr" / f"{name}.safetensors")


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_the_result_of_rl_loads_through_the_released_loaders(model: Any, tmp_path: Path, mode: str) -> None:
    before = restored(model)
    trained = make_trainable(model, AdaptSettings(mode, rank=2))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in trained:
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    after = restored(model)
    merge(model)
    model.save(tmp_path / "out")
    again = from_files(model, tmp_path / "out", written_updates(model, tmp_path / "out", tmp_path), tmp_path / "out")
    assert (after - before).abs().max() > 1e-2
    assert torch.allclose(restored(again), after, atol=1e-4)
    assert torch.equal(restored(load(tmp_path / "out")), restored(again))


def test_half_precision_on_disk_is_float32_again_when_loaded(model: Any, tmp_path: Path) -> None:
    model.save(tmp_path, torch.bfloat16)
    again: Any = load(tmp_path)
    assert {v.dtype for v in load_file(next((tmp_path / "updates").iterdir())).values()} == {torch.bfloat16}
    assert all(v.dtype == torch.float32 for v in [*again.policy.state_dict().values(), *again.vae.parameters()])


def test_a_folder_without_its_updates_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "model", tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "updates")
    with pytest.raises(CheckpointError, match=r"updates.*missing"):
        load(tmp_path / "model")


def test_embeddings_of_other_widths_or_names_are_refused(model: Any, tmp_path: Path) -> None:
    model.save(tmp_path / "out")
    stored = {k: v.clone() for k, v in load_file(tmp_path / "out" / "text.safetensors").items()}
    wider = {k: torch.cat([v, v], -1) for k, v in stored.items()}
    for wrong in (wider, {**stored, "negative_text": stored["text"].clone()}, {"text": torch.zeros(())}):
        save_file(wrong, tmp_path / "out" / "text.safetensors")
        with pytest.raises(CheckpointError, match="expected {'text': 24"):
            load(tmp_path / "out")


def test_released_files_convert_into_a_model_folder(folder: Path, model: OneStep, tmp_path: Path) -> None:
    checkpoint = "pisa_sr.pkl" if isinstance(model, PiSASR) else "tsdsr"
    given = {"base": folder / "base", "checkpoint": folder / checkpoint, "cleaner": folder / "cleaner.pth"}
    convert(model.KIND, {**{k: str(v) for k, v in given.items()}, "settings": {"name": "mine"}}, tmp_path / "m")
    assert load(tmp_path / "m").name == "mine"
    assert torch.equal(restored(load(tmp_path / "m")), restored(model))


@torch.no_grad()
def test_pisas_weights_mix_two_passes_and_1_1_is_one(pisa_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = load(pisa_folder / "model")
    condition = model.condition(picture())
    z, t = condition.latent, torch.ones(1)
    runs: list[tuple[str, ...]] = []
    run = model.policy._run
    monkeypatch.setattr(model.policy, "_run", lambda *given: runs.append(given[-1]) or run(*given))
    both = model.denoise(z, 1, condition, 1.0)
    assert len(runs) == 1 and torch.equal(both, model.policy(z, t, condition.text))
    pix = model.policy(z, t, condition.text, "pix")
    model.settings = PisaSettings(lambda_pix=0.5, lambda_sem=2.0)
    runs.clear()
    mixed = model.denoise(z, 1, condition, 1.0)
    assert len(runs) == 2 and torch.allclose(mixed, 0.5 * pix + 2 * (both - pix), atol=1e-5)
    assert not torch.allclose(mixed, both, atol=1e-2)


def test_pisa_stores_the_embedding_of_its_prompt_or_that_of_a_file(pisa_folder: Path, tmp_path: Path) -> None:
    given = pisa_folder / "base", pisa_folder / "pisa_sr.pkl", pisa_folder / "cleaner.pth"
    empty, clean = (PiSASR.from_released(*given, prompt=p).embeddings["text"] for p in ("", "clean"))
    assert empty.shape == clean.shape and not torch.allclose(empty, clean, atol=1e-3)
    file = files.write_embeddings(tmp_path / "e.safetensors", text=(1, 5, 24))
    assert torch.equal(PiSASR.from_released(*given, embeddings=file).embeddings["text"], load_file(file)["text"])
    with pytest.raises(ValueError, match="not both"):
        PiSASR.from_released(*given, prompt="clean", embeddings=file)


def test_pisas_own_file_comes_back_as_it_was(pisa_folder: Path, tmp_path: Path) -> None:
    model: Any = load(pisa_folder / "model")
    model.export_updates(tmp_path)
    ours, own = (torch.load(folder / "pisa_sr.pkl", weights_only=True) for folder in (tmp_path, pisa_folder))
    assert equal(ours.pop("state_dict_unet"), own.pop("state_dict_unet"))
    assert ours.keys() == own.keys()
    assert all(sorted(v) == sorted(own[k]) if isinstance(v, list) else v == own[k] for k, v in ours.items())


@torch.no_grad()
def test_tsds_condition_comes_from_the_updated_encoder_and_gt_latents_from_the_decoders_own(
    tsdsr_folder: Path,
) -> None:
    model: Any = load(tsdsr_folder / "model")
    stock = AutoencoderKL.from_pretrained(tsdsr_folder / "base" / "vae")
    images = picture(2)
    plain = stock.encode(images * 2 - 1).latent_dist.mode() * 1.5305
    assert torch.allclose(model.encode(images), plain, rtol=1e-4, atol=1e-5)
    assert torch.allclose(model.decode(plain), (stock.decode(plain / 1.5305).sample / 2 + 0.5).clamp(0, 1), atol=1e-5)
    condition = model.condition(images)
    seen = model.vae.encode(condition.clean * 2 - 1).latent_dist.mode() * 1.5305  # outside `active` all updates act
    assert torch.allclose(condition.latent, seen, atol=1e-6)
    assert not torch.allclose(condition.latent, model.encode(condition.clean), atol=1e-1)


def test_tsd_refuses_images_beyond_the_positions_that_its_transformer_knows(tsdsr_folder: Path) -> None:
    model: Any = load(tsdsr_folder / "model")
    assert model.side_limit == 8 * 2 * 12 and model.size_multiple == 16
    assert sample(model, picture(width=192), ONE, torch.Generator()).shape == (1, 3, 64, 192)
    with pytest.raises(ValueError, match="208x64 pixels; its transformer knows positions up to 192 a side"):
        sample(model, picture(width=208), ONE, torch.Generator())


def test_tsds_embeddings_come_from_its_folder_or_a_file(tsdsr_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tsdsr_folder / "tsdsr", tmp_path / "tsdsr")
    given = tsdsr_folder / "base", tmp_path / "tsdsr", tsdsr_folder / "cleaner.pth"
    file = files.write_embeddings(tmp_path / "e.safetensors", text=(1, 5, 24), pooled=(1, 16))
    assert torch.equal(TSDSR.from_released(*given, embeddings=file).embeddings["pooled"], load_file(file)["pooled"])
    torch.save({"a": torch.zeros(1)}, tmp_path / "tsdsr" / "pool_embeds.pt")
    with pytest.raises(CheckpointError, match=r"pool_embeds\.pt holds dict, expected one tensor"):
        TSDSR.from_released(*given)
    torch.save(torch.zeros(1, 1, 16), tmp_path / "tsdsr" / "pool_embeds.pt")
    with pytest.raises(CheckpointError, match=r"pooled has shape \(1, 1, 16\), expected \[1, width\]"):
        TSDSR.from_released(*given)
    (tmp_path / "tsdsr" / "pool_embeds.pt").unlink()
    with pytest.raises(CheckpointError, match=r"pool_embeds\.pt is missing: put it there, or give embeddings"):
        TSDSR.from_released(*given)
