"""What `describe` tells of a model folder is what the loaded model does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from restoration.base_models import KINDS, CheckpointError, ModelFacts, describe, load
from restoration.base_models.interface import SamplerSettings
from restoration.base_models.latent import LatentModel
from tests.restoration.released_models import EACH, MODELS

Folders = Callable[[str], Path]


def wrecked(folder: Path, to: Path) -> Path:
    """A copy whose files keep their headers, and of whose values nothing is left."""
    shutil.copytree(folder, to)
    for file in to.rglob("*.safetensors"):
        data = bytearray(file.read_bytes())
        begin = 8 + int.from_bytes(data[:8], "little")
        data[begin:] = b"\xff" * (len(data) - begin)
        file.write_bytes(data)
    return to


@pytest.mark.parametrize("name", EACH)
def test_without_weights_everything_is_known_that_the_loaded_model_does(
    name: str, model_folder: Folders, tmp_path: Path
) -> None:
    model = load(model_folder(name))
    assert isinstance(model, LatentModel)
    facts, expected = describe(wrecked(model_folder(name), tmp_path / "wrecked")), ModelFacts.of(model)
    for field in fields(ModelFacts):
        if field.name != "skeleton":
            assert getattr(facts, field.name) == getattr(expected, field.name), field.name
    sampler = replace(model.sampler, guidance_scale=1.0)
    assert facts.schedule(sampler).fingerprint == model.schedule(sampler).fingerprint
    own, shapes = ({k: v.shape for k, v in m.policy.state_dict().items()} for m in (model, facts.skeleton))
    assert own == shapes and all(p.is_meta for p in facts.skeleton.policy.parameters())
    side = 2 * model.size_multiple
    condition = model.condition(torch.rand(1, 3, side, side), [])
    cells = side // facts.vae_factor
    assert (facts.latent_channels, cells, cells) == tuple(condition.latent.shape[1:])
    assert facts.guidance == (condition.negative_text is not None)


@pytest.mark.parametrize("name", EACH)
def test_a_model_whose_authors_guide_it_holds_what_leads_away(name: str, model_folder: Folders) -> None:
    facts = describe(model_folder(name))
    assert facts.guidance or facts.sampler.guidance_scale == 1


def test_a_folder_with_a_recipe_is_told_to_restore_by_it(model_folder: Folders, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder("diffbir"), tmp_path / "model")
    (folder / "recipe.json").write_text('{"sampler": {"steps": 4, "eta": 0.5}}')
    assert describe(folder).sampler == SamplerSettings(steps=4, eta=0.5)
    (folder / "recipe.json").write_text('{"sampler": {"step": 4}}')
    with pytest.raises(CheckpointError, match=r"recipe.json: its sampler is none of this release: .*step"):
        describe(folder)


def test_every_kind_is_among_those_described(model_folder: Folders) -> None:
    assert {describe(model_folder(name)).kind for name in MODELS} == set(KINDS)


def test_embeddings_that_come_with_each_picture_are_named(model_folder: Folders, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(model_folder("seesr"), tmp_path / "model")
    file = folder / "text.safetensors"
    save_file({k: v for k, v in load_file(file).items() if k == "text"}, file)
    facts = describe(folder)
    assert facts.missing_embeddings == ("image",) and not facts.guidance
    assert describe(model_folder("seesr")).missing_embeddings == ()


@pytest.mark.parametrize("name", ["diffbir", "stablesr", "sd3", "flux"])
def test_a_chain_without_a_decision_is_refused_for_training_and_may_restore(name: str, model_folder: Folders) -> None:
    facts = describe(model_folder(name))
    one = SamplerSettings(steps=1)
    with pytest.raises(ValueError, match=r"sampler\.steps=1: .* at least 2 steps"):
        facts.schedule(one)
    assert len(facts.skeleton.schedule(one)) == 1 and facts.schedule(SamplerSettings(steps=2)).decisions


@pytest.mark.parametrize("name", ["pisa", "tsdsr"])
def test_a_one_step_model_has_one_decision_and_refuses_more_steps(name: str, model_folder: Folders) -> None:
    facts = describe(model_folder(name))
    assert len(facts.schedule(SamplerSettings(steps=1)).decisions) == 1
    with pytest.raises(ValueError, match="set sampler.steps to 1"):
        facts.schedule(SamplerSettings(steps=2))
