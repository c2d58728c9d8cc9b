"""What holds for every base model."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from restoration.adapters import AdaptSettings, enable_checkpointing, make_trainable, trained_parameters
from restoration.base_models import CheckpointError, load
from restoration.base_models.interface import BaseModel, SamplerSettings
from restoration.restore import sample
from restoration.transition import transition
from tests.restoration import released_folders as files
from tests.restoration.released_models import MODELS, picture, restored, short


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, made: Callable[[str], Path]) -> Path:
    return made(request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> BaseModel:
    """Loaded from the folder; not to be changed."""
    return load(folder / "model")


def test_a_saved_and_reloaded_model_gives_the_same_picture(folder: Path, model: BaseModel) -> None:
    before = torch.load(folder / "picture.pt", weights_only=True)
    assert before.std() > 0.01 and torch.isfinite(before).all()
    assert torch.equal(before, restored(model))


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_the_ratio_is_1_at_the_first_replay_and_only_the_trained_part_gets_gradients(
    model: BaseModel, mode: Literal["lora", "full"]
) -> None:
    model = deepcopy(model)
    trained = make_trainable(model, AdaptSettings(mode=mode, rank=2))
    condition = model.condition(picture())
    generator = torch.Generator().manual_seed(1)
    x = model.start(condition, torch.randn(condition.latent.shape, generator=generator))
    step = model.schedule(short(model)).steps[0]
    with torch.no_grad():
        output = model.denoise(x, step.timestep, condition, 1.0)
    taken = transition(step, output, x, noise=torch.randn(x.shape, generator=generator))
    again = transition(step, model.denoise(x, step.timestep, condition, 1.0), x, action=taken.action)
    assert torch.allclose((again.log_prob - taken.log_prob).exp(), torch.ones(2), rtol=0, atol=1e-6)
    again.log_prob.sum().backward()
    got = {name for name, p in model.policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert got and got <= set(trained_parameters(model))
    if mode == "full":
        assert all(any(re.match(pattern, name) for pattern in model.trainable_names) for name in got)
    else:
        assert all(re.fullmatch(model.lora_targets, name.split(".lora_")[0]) for name in got)
    assert len(got) > len(trained) / 4


@torch.no_grad()
def test_each_sample_of_a_batch_is_denoised_by_itself(model: BaseModel) -> None:
    condition = model.condition(picture(3))
    x = torch.randn(condition.latent.shape, generator=torch.Generator().manual_seed(1))
    whole = model.denoise(x, 500, condition, 1.0)
    for i in range(3):
        alone = model.denoise(x[i : i + 1], 500, condition[i : i + 1], 1.0)
        assert torch.allclose(whole[i : i + 1], alone, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))


@torch.no_grad()
def test_guidance_leads_away_from_what_is_not_wanted(model: BaseModel) -> None:
    condition = model.condition(picture(1))
    if condition.negative_text is None:
        with pytest.raises(ValueError, match="guidance"):
            model.denoise(condition.latent, 500, condition, 3.0)
        return
    wanted = model.denoise(condition.latent, 500, condition, 1.0)
    unwanted = model.denoise(condition.latent, 500, condition.unconditional, 1.0)
    guided = model.denoise(condition.latent, 500, condition, 3.0)
    assert torch.allclose(guided, unwanted + 3 * (wanted - unwanted), rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


@torch.no_grad()
def test_the_sft_loss_is_one_number_a_sample_and_falls_with_the_output_nearer_to_the_target(model: BaseModel) -> None:
    condition = model.condition(picture())
    t, noise = torch.tensor([10, 900]), torch.randn(condition.latent.shape, generator=torch.Generator().manual_seed(2))
    loss = model.sft_loss(condition.latent, condition, t, noise)
    assert loss.shape == (2,) and loss.dtype == torch.float32 and (loss > 0).all()


def test_gradient_checkpointing_gives_the_same_gradients(model: BaseModel) -> None:
    model, found = deepcopy(model), []
    make_trainable(model, AdaptSettings(mode="full"))
    condition = model.condition(picture(1))
    for checkpointing in (False, True):
        if checkpointing:
            enable_checkpointing(model)
            model.policy.train()
        model.policy.zero_grad()
        output = model.denoise(condition.latent, 300, condition, 1.0)
        with torch.no_grad():  # another forward in between must not be what the backward recomputes
            model.denoise(condition.latent * 2, 100, condition, 1.0)
        output.square().mean().backward()
        found.append({n: p.grad for n, p in trained_parameters(model).items() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], rtol=1e-3, atol=1e-6 + 1e-4 * float(value.abs().max())), name


def test_embeddings_of_single_pictures_take_the_place_of_the_stored_ones(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = model_folder("seesr")
    stored = load(folder).condition(picture(1)).others["image"]
    for name in ("a", "b"):
        files.write_embeddings(tmp_path / "each" / f"{name}.safetensors", seed=ord(name), image=(1, 5, 512))
    model: Any = load(folder, tmp_path / "each")
    both = model.condition(picture(), ["a", "b"]).others["image"]
    assert both.shape == (2, 5, 512) and not torch.equal(both[0], both[1])
    assert torch.equal(model.condition(picture(), ["b", "a"]).others["image"], both.flip(0))
    assert torch.equal(model.condition(picture(1)).others["image"], stored)
    seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
    same = picture(1).repeat(2, 1, 1, 1)
    first, second = sample(model, same, SamplerSettings(steps=2), seeds, image_ids=["a", "b"])
    assert not torch.allclose(first, second, atol=1e-3)
    with pytest.raises(CheckpointError, match="c.safetensors is missing"):
        model.condition(picture(), ["a", "c"])
    files.write_embeddings(tmp_path / "each" / "c.safetensors", image=(1, 6, 512))
    with pytest.raises(CheckpointError, match="c has .*of one shape"):
        model.condition(picture(), ["a", "c"])
    with pytest.raises(CheckpointError, match="is not a folder"):
        load(folder, tmp_path / "none")
    model.embeddings.pop("image")
    with pytest.raises(ValueError, match="no embedding image .*data.embeddings"):
        model.condition(picture(1))
