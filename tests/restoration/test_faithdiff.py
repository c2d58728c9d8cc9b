from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from restoration.adapters import AdaptSettings, make_trainable
from restoration.base_models.faithdiff import FaithDiff, FaithDiffSettings
from restoration.base_models.interface import Condition
from restoration.base_models.networks.faithdiff_networks import FaithDiffChoices, faithdiff_from_released
from restoration.checkpoints import CheckpointError, read_state
from tests.restoration import faithdiff_files as networks
from tests.restoration import released_folders as files
from tests.restoration.released_models import faithdiff

BOTH = FaithDiffSettings(trainable=(r"unet\.", r"denoise_encoder\."))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released file with the model folder that was made of it."""
    place = tmp_path_factory.mktemp("faithdiff")
    faithdiff(place).save(place / "model")
    return place


def loaded(folder: Path, settings: FaithDiffSettings | None = None) -> FaithDiff:
    model = FaithDiff.load(folder / "model")
    embeddings = model.embeddings
    return FaithDiff(model.vae, model._policy, model.cleaner, embeddings, settings or model.settings)


def picture() -> Tensor:
    return torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))


def noise_like(condition: Condition) -> Tensor:
    return torch.randn(condition.latent.shape, generator=torch.Generator().manual_seed(1))


def test_the_saved_unet_is_a_released_file(folder: Path) -> None:
    file = folder / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    released, saved = read_state(folder / "FaithDiff.bin"), read_state(file)
    assert saved.keys() == released.keys()
    assert all(torch.equal(saved[k], v) for k, v in released.items())
    choices = networks.choices_of(networks.SMALL)
    again = faithdiff_from_released(saved, file, choices).state_dict()
    assert all(torch.equal(again[k], v) for k, v in loaded(folder).policy.state_dict().items())
    assert FaithDiffChoices(**json.loads((file.parent / "config.json").read_text())) == choices
    model = FaithDiff.from_released(folder / "base", file, folder / "cleaner.pth", choices=choices)
    assert all(torch.equal(again[k], v) for k, v in model.policy.state_dict().items())


def test_the_encoder_runs_once_an_image_unless_it_is_trained(folder: Path) -> None:
    calls: list[int] = []

    def counted(settings: FaithDiffSettings | None) -> tuple[Condition, list[Tensor]]:
        model = loaded(folder, settings)
        model.policy.get_submodule("denoise_encoder").register_forward_hook(lambda *_: calls.append(1))
        condition = model.condition(picture())
        x = noise_like(condition)
        return condition, [model.denoise(x, t, condition, g) for t, g in ((999, 5.0), (500, 1.0))]

    cached, outputs = counted(None)
    assert len(calls) == 1 and cached.others["features"].shape == (2, 16, 8, 16)
    assert not cached.others["features"].requires_grad
    fresh, again = counted(BOTH)
    assert len(calls) == 3 and "features" not in fresh.others
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(outputs, again, strict=True))


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("encoder", [False, True])
def test_the_encoder_gets_gradients_if_the_settings_name_it(folder: Path, mode: str, encoder: bool) -> None:
    model = loaded(folder, BOTH if encoder else None)
    make_trainable(model, AdaptSettings(mode=mode, rank=2))  # type: ignore[arg-type]
    condition = model.condition(picture())
    model.denoise(noise_like(condition), 500, condition, 5.0).square().mean().backward()
    got = {n for n, p in model.policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(n.startswith("unet.") for n in got)
    assert any(n.startswith("denoise_encoder.") for n in got) is encoder


def test_a_lora_reaches_the_first_convolution_and_the_injection_and_is_neutral_at_first(folder: Path) -> None:
    model = loaded(folder)
    condition = model.condition(picture())
    x = noise_like(condition)
    with torch.no_grad():
        before = model.denoise(x, 500, condition, 1.0)
        make_trainable(model, AdaptSettings(rank=2))
        assert torch.equal(model.denoise(x, 500, condition, 1.0), before)
    adapted = {n.split(".lora_A")[0] for n, _ in model.policy.named_parameters() if ".lora_A." in n}
    injected = {n.removeprefix("unet.conv_in.") for n in adapted if n.startswith("unet.conv_in.")}
    assert injected == {"conv", "condition.conv_in", "condition.conv_out", "projection"}


@torch.no_grad()
def test_both_branches_see_the_features_of_the_cleaned_image(folder: Path) -> None:
    model = loaded(folder)

    class Half(nn.Module):
        size_multiple = 1

        def forward(self, lq: Tensor) -> Tensor:
            return lq / 2

    model.cleaner = Half()  # type: ignore[assignment]
    condition = model.condition(picture())
    features = model._policy.encode(picture() - 1)
    assert torch.allclose(condition.others["features"], features, atol=1e-6)
    assert torch.equal(condition.unconditional.others["features"], condition.others["features"])
    x, t = noise_like(condition), torch.full((2,), 300)
    sizes = torch.tensor([[64.0, 128, 0, 0, 64, 128]]).expand(2, -1)
    branches = []
    for prefix in ("", "negative_"):
        text, pooled = (model.embeddings[prefix + n].expand(2, *[-1] * d) for n, d in (("text", 2), ("pooled", 1)))
        branches.append(model._policy(x, t, text, pooled, sizes, features))
    wanted, unwanted = branches
    guided = model.denoise(x, 300, condition, 5.0)
    assert torch.allclose(guided, unwanted + 5 * (wanted - unwanted), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_sft_loss_is_the_mean_absolute_error_of_the_noise(folder: Path) -> None:
    model = loaded(folder)
    condition = model.condition(picture())
    noise, t = noise_like(condition), torch.tensor([20, 900])
    latent = condition.latent / 2
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha = (1 - betas).cumprod(0)[t].float().view(-1, 1, 1, 1)
    output = model.denoise(alpha.sqrt() * latent + (1 - alpha).sqrt() * noise, t, condition, 1.0)
    wanted = (output - noise).abs().mean((1, 2, 3))
    assert torch.allclose(model.sft_loss(latent, condition, t, noise), wanted, rtol=1e-4)


@torch.no_grad()
def test_the_chain_starts_from_the_cleaned_image_s_latent_noised_to_the_last_timestep(folder: Path) -> None:
    model = loaded(folder)
    condition = model.condition(picture())
    noise = noise_like(condition)
    alpha = float(model.alphas[999])
    assert torch.allclose(model.start(condition, noise), alpha**0.5 * condition.latent + (1 - alpha) ** 0.5 * noise)
    plain = loaded(folder, FaithDiffSettings(start_timesteps=()))
    assert torch.equal(plain.start(condition, noise), noise)
    with pytest.raises(ValueError, match="each from 0 to 99"):
        FaithDiffSettings(train_timesteps=100)


def test_networks_that_do_not_fit_each_other_are_refused(folder: Path) -> None:
    model = loaded(folder)
    others = model.cleaner, model.embeddings
    with pytest.raises(ValueError, match="8 latent channels, UNet with 4"):
        FaithDiff(files.small_vae(latents=8), model._policy, *others)
    with pytest.raises(ValueError, match="by 8, the VAE by 4"):
        FaithDiff(files.small_vae(levels=3), model._policy, *others)


def test_an_unknown_choice_and_widths_that_groups_do_not_divide_are_refused(folder: Path, tmp_path: Path) -> None:
    model = loaded(folder)
    model.save(tmp_path / "model")
    config = tmp_path / "model" / "unet" / "config.json"
    described = json.loads(config.read_text())
    config.write_text(json.dumps(described | {"depth": 3}))
    with pytest.raises(CheckpointError, match="config.json: invalid setting: .*depth"):
        FaithDiff.load(tmp_path / "model")
    config.write_text(json.dumps(described | {"unet_groups": 7}))
    with pytest.raises(CheckpointError, match="divisible"):
        FaithDiff.load(tmp_path / "model")
    choices = replace(networks.choices_of(networks.SMALL), condition_groups=3)
    with pytest.raises(CheckpointError, match="divisible"):
        FaithDiff.from_released(folder / "base", folder / "FaithDiff.bin", folder / "cleaner.pth", choices=choices)
