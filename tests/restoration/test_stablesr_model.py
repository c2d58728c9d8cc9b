"""StableSR as a base model: its condition, its fused decoder, its released files both ways."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from restoration.adapters import AdaptSettings, make_trainable, merge, trained_parameters
from restoration.base_models import BaseModel, CheckpointError, Condition, SamplerSettings, load
from restoration.base_models.networks.stablesr_export import layout_of, released_state
from restoration.base_models.networks.stablesr_networks import StableSRPolicy
from restoration.base_models.networks.stablesr_released import policy_from_released, spade_unet_from_released
from restoration.base_models.networks.structure import StructureEncoder
from restoration.base_models.stablesr import StableSR, StableSRSettings
from restoration.checkpoints import read_state
from restoration.ldm_layout import UNET_PREFIX, VAE_PREFIX, part
from restoration.restore import sample
from tests.golden.case import Golden
from tests.golden.networks import heads_of
from tests.restoration.released_folders import GOLDEN
from tests.restoration.released_models import stablesr, write_stablesr

SAMPLER = SamplerSettings(steps=2)
HEADS = {"head_channels": 32, "structure_heads": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """StableSR's own file, the cleaner's and CFW's."""
    return write_stablesr(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    stablesr(folder / "released").save(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def model(saved: Path) -> StableSR:
    return with_weight(saved, 0.5)


def with_weight(saved: Path, weight: float) -> StableSR:
    model = load(saved)
    assert isinstance(model, StableSR)
    model.settings = replace(model.settings, fusion_weight=weight)
    return model


def lq(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 32, 64, generator=torch.Generator().manual_seed(0))


def noise_like(latent: Tensor) -> Tensor:
    return torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))


def test_stablesr_satisfies_the_protocol_of_base_models(model: StableSR) -> None:
    assert isinstance(model, BaseModel)
    assert model.sampler == SamplerSettings(200, 1.0, "linspace", guidance_scale=1.0, colour_fix="adain")
    steps = model.schedule(model.sampler).steps
    assert len(steps) == 200 and steps[0].timestep == 999 and steps[-1].timestep == 0


def test_the_structure_encoder_sees_the_mode_of_the_cleaned_image_s_latent(model: StableSR) -> None:
    first, again = model.condition(lq()), model.condition(lq())
    with torch.no_grad():
        mode = model.vae.encode(model.cleaner(lq()).clamp(0, 1) * 2 - 1).latent_dist.mode()
        x = noise_like(first.latent)
        expected = model.policy(x, torch.tensor([500, 500]), first.latent, first.text)
        assert torch.equal(model.denoise(x, 500, first, 1.0), expected)
    assert torch.equal(first.latent, again.latent)
    assert torch.allclose(first.latent, mode * model.vae.config.scaling_factor, atol=1e-6)


def test_the_settings_train_what_stablesr_trains(model: StableSR) -> None:
    other = load_again(model)
    make_trainable(other, AdaptSettings(mode="full"))
    expected = [name for name, _ in model.policy.named_parameters() if name.startswith(model._policy.trained)]
    assert list(trained_parameters(other)) == expected


def load_again(model: StableSR) -> StableSR:
    return StableSR(model.vae, policy_of(model.released_state()), model.cleaner, model.embeddings)


def policy_of(state: dict[str, Tensor]) -> StableSRPolicy:
    return policy_from_released(state, "file", **HEADS)


def test_lora_attaches_inside_spade_and_structure_encoder_only(model: StableSR) -> None:
    other = load_again(model)
    make_trainable(other, AdaptSettings(mode="lora", rank=2))
    names = {name.split(".lora_")[0] for name, _ in other.policy.named_parameters() if ".lora_" in name}
    spades = {name.rsplit(".", 1)[1] for name in names if ".spade." in name}
    assert spades == {"shared", "gamma", "beta"}
    assert all(name.startswith("structure_encoder.") or ".spade." in name for name in names)
    assert any(name.endswith("attentions.0.to_q") for name in names)
    with pytest.raises(ValueError, match="LoRA"):
        other.released_state()
    merge(other)
    assert other.released_state().keys() == model.released_state().keys()


def test_with_fusion_weight_0_the_picture_is_that_of_the_plain_autoencoder(saved: Path) -> None:
    model = with_weight(saved, 0.0)
    condition = model.condition(lq())
    latents = condition.latent + 0.1 * noise_like(condition.latent)
    with torch.no_grad():
        plain = model.vae.decode(latents / model.vae.config.scaling_factor).sample
    assert torch.equal(model.decode(latents, condition), (plain / 2 + 0.5).clamp(0, 1))
    assert torch.equal(model.decode(latents), model.decode(latents, condition))


def test_with_a_fusion_weight_the_picture_is_the_fused_decoder_s_of_the_cleaned_image(model: StableSR) -> None:
    condition = model.condition(lq())
    latents = noise_like(condition.latent) * 0.3
    assert model.fused is not None
    with torch.no_grad():
        _, features = model.fused.encode(condition.clean * 2 - 1)
        pixels = model.fused.decode(latents / model.vae.config.scaling_factor, features, 0.5)
    found = model.decode(latents, condition)
    assert torch.allclose(found, (pixels / 2 + 0.5).clamp(0, 1), atol=1e-5)
    assert (found - model.decode(latents)).abs().mean() > 1e-3
    assert (found - model.decode(latents, condition[torch.tensor([1, 0])])).abs().mean() > 1e-3


def test_each_row_is_decoded_with_its_own_image_however_often_images_repeat(model: StableSR) -> None:
    condition = model.condition(lq(3))[torch.tensor([0, 0, 1, 0, 2, 2])]
    latents = noise_like(condition.latent) * 0.3
    together = model.decode(latents, condition)
    encoded = []
    assert model.fused is not None
    hook = model.fused.vae.encoder.conv_in.register_forward_hook(lambda _, args, __: encoded.append(len(args[0])))
    assert torch.equal(together, model.decode(latents, condition))
    hook.remove()
    assert encoded == [4]  # of six, two repeat the one before
    for i in range(6):
        alone = model.decode(latents[i : i + 1], condition[i : i + 1])
        assert torch.allclose(together[i : i + 1], alone, atol=1e-4)


def test_half_the_fusion_weight_is_another_picture_than_all_of_it(saved: Path) -> None:
    half, whole = with_weight(saved, 0.5), with_weight(saved, 1.0)
    condition = half.condition(lq())
    latents = noise_like(condition.latent) * 0.3
    assert (half.decode(latents, condition) - whole.decode(latents, condition)).abs().mean() > 1e-4


class Watched(StableSR):
    """Keeps what it decoded."""

    seen: list[tuple[Tensor, Condition | None]]

    def decode(self, latents: Tensor, condition: Condition | None = None) -> Tensor:
        self.seen.append((latents, condition))
        return super().decode(latents, condition)


def watched(saved: Path) -> Watched:
    model = Watched.load(saved)
    model.seen = []
    return model


def test_restoring_decodes_with_the_condition_of_the_images(saved: Path) -> None:
    model = watched(saved)
    picture = sample(model, lq(), SAMPLER, torch.Generator().manual_seed(0))
    ((latents, condition),) = model.seen
    assert condition is not None and torch.equal(condition.clean, model.condition(lq()).clean)
    assert torch.equal(picture, model.decode(latents, condition))


def test_a_fusion_weight_without_the_cfw_autoencoder_is_refused(files: tuple[Path, Path, Path], saved: Path) -> None:
    base, cleaner, _ = files
    with pytest.raises(CheckpointError, match=r"fusion_weight=0\.5 needs the CFW"):
        StableSR.from_released(base, cleaner, settings=StableSRSettings(fusion_weight=0.5), **HEADS)
    for weight in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="fusion_weight"):
            StableSRSettings(fusion_weight=weight)
    model = load(saved)
    assert isinstance(model, StableSR)
    with pytest.raises(ValueError, match="CFW"):
        StableSR(model.vae, model._policy, model.cleaner, model.embeddings, None, model.settings)


def test_without_the_cfw_file_a_model_is_saved_and_loaded_without_it(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    plain = StableSR.from_released(*files[:2], **HEADS)
    assert plain.fused is None and plain.settings.fusion_weight == 0 and "negative_text" not in plain.embeddings
    plain.save(tmp_path)
    assert not (tmp_path / "fused_vae").exists()
    again = load(tmp_path)
    condition = again.condition(lq())
    assert torch.equal(again.decode(condition.latent, condition), plain.decode(condition.latent, condition))
    with pytest.raises(ValueError, match="guidance"):
        again.denoise(condition.latent, 5, condition, 3.0)


def test_a_saved_model_keeps_weights_settings_and_fusions(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    settings = StableSRSettings(name="768v", prediction="v_prediction", fusion_weight=0.3)
    model = StableSR.from_released(*files, settings=settings, **HEADS)
    model.save(tmp_path)
    again = load(tmp_path)
    assert isinstance(again, StableSR) and again.settings == settings
    assert model.fused is not None and again.fused is not None
    for one, other in ((model.policy, again.policy), (model.fused, again.fused), (model.vae, again.vae)):
        before, after = one.state_dict(), other.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert not any(p.requires_grad for p in again.fused.parameters())


def test_a_folder_that_does_not_fit_says_what_is_wrong(saved: Path, tmp_path: Path) -> None:
    load(saved).save(tmp_path)
    file = tmp_path / "unet" / "config.json"
    good = file.read_text()
    config = json.loads(good)
    file.write_text(json.dumps({k: v for k, v in config.items() if k != "spade"}))
    with pytest.raises(CheckpointError, match="spade"):
        load(tmp_path)
    file.write_text(json.dumps(config | {"spade": {"features": 32, "hidden": 8}}))
    with pytest.raises(CheckpointError, match="of another shape"):
        load(tmp_path)
    file.write_text(good)
    weights = tmp_path / "fused_vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    save_file({k: v for k, v in state.items() if k != "fusions.1.enter.conv1.bias"}, weights)
    with pytest.raises(CheckpointError, match=r"1 missing: fusions\.1\.enter\.conv1\.bias"):
        load(tmp_path)


def test_networks_that_do_not_fit_together_are_refused(model: StableSR) -> None:
    own = model._policy.structure_encoder
    for changed, message in (
        ({"out_channels": 64}, "2 feature maps of 64 channels, the UNet takes 2 of 32"),
        ({"block_out_channels": (32,), "attention": (False,)}, "1 feature maps"),
        ({"in_channels": 8}, "latent channels"),
    ):
        policy = policy_of(model.released_state())
        policy.structure_encoder = StructureEncoder.from_config({**own.config, **changed})
        with pytest.raises(ValueError, match=message):
            StableSR(model.vae, policy, model.cleaner, model.embeddings)


def test_files_of_something_else_are_refused(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, cleaner, cfw = files
    with pytest.raises(CheckpointError, match=r"no keys model\.diffusion_model"):
        StableSR.from_released(cfw, cleaner, **HEADS)
    plain = {k: v for k, v in read_state(base).items() if not k.startswith("structcond_stage_model.")}
    torch.save({"state_dict": plain}, tmp_path / "sd.ckpt")
    with pytest.raises(CheckpointError, match="no keys structcond_stage_model"):
        StableSR.from_released(tmp_path / "sd.ckpt", cleaner, **HEADS)
    torch.save({"state_dict": part(plain, VAE_PREFIX)}, tmp_path / "vae.ckpt")
    with pytest.raises(CheckpointError, match="fusion_layer"):
        StableSR.from_released(base, cleaner, tmp_path / "vae.ckpt", **HEADS)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        StableSR.from_released(base, cleaner, cfw, prompt="sharp", **HEADS)


def test_what_is_exported_is_what_was_released(files: tuple[Path, Path, Path], model: StableSR) -> None:
    released = read_state(files[0])
    exported = model.released_state()
    wanted = {k for k in released if k.startswith((UNET_PREFIX, "structcond_stage_model."))}
    assert exported.keys() == wanted
    assert all(torch.equal(exported[k], released[k]) for k in wanted)


@torch.no_grad()
def test_a_trained_policy_answers_the_same_after_a_way_through_the_released_layout(saved: Path) -> None:
    model = with_weight(saved, 0.0)
    generator = torch.Generator().manual_seed(3)
    for p in make_trainable(model, AdaptSettings(mode="full")):
        p.add_(0.1 * torch.randn(p.shape, generator=generator))
    condition = model.condition(lq())
    x, t = noise_like(condition.latent), torch.tensor([20, 700])
    again = policy_of(model.released_state())
    trained = model.policy(x, t, condition.latent, condition.text)
    assert torch.equal(trained, again(x, t, condition.latent, condition.text))
    assert not torch.allclose(trained, load(saved).policy(x, t, condition.latent, condition.text), atol=1e-2)


def test_the_golden_networks_are_exported_as_they_were_released() -> None:
    golden = Golden.read(GOLDEN / "stablesr.json")
    state = golden.state("unet") | golden.state("structcond")
    policy = policy_from_released(
        state,
        "golden",
        structure_heads=golden.config["structcond"]["num_heads"],
        **heads_of(golden.config["unet"]),
    )
    exported = released_state(policy)
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[k], state[k]) for k in state)


def test_the_full_size_networks_are_named_as_released() -> None:
    shapes = json.loads((GOLDEN / "stablesr_unet.full_keys.json").read_text())["state"]
    keys = part({k: torch.empty(v, device="meta") for k, v in shapes.items()}, UNET_PREFIX)
    unet = spade_unet_from_released(keys, "full")
    layout = layout_of(unet)
    assert {layout.released(k): tuple(v.shape) for k, v in unet.state_dict().items()} == {
        k: tuple(v.shape) for k, v in keys.items()
    }
