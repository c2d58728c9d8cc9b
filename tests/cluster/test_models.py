from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from cluster.cli import app
from cluster.configure import ConfigError
from cluster.models import load_policy, load_run_config
from learner import checkpoint
from learner.learner import STATE_FILES
from restoration.adapters import AdaptSettings, make_trainable, trainable_state
from restoration.base_models import load
from restoration.base_models.interface import SamplerSettings
from restoration.restore import sample
from tests.restoration.test_diffbir import small


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny model with LoRA, whose checkpoint 3 holds other weights than checkpoint 2."""
    folder = tmp_path_factory.mktemp("run")
    small().save(folder / "base")
    config = {"model": str(folder / "base"), "adapt": {"rank": 2}, "sampler": {"steps": 2, "eta": 0.5}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    model = load(folder / "base")
    make_trainable(model, AdaptSettings(rank=2))
    for step in (2, 3):
        state = {name: torch.full_like(value, 0.05 * step) for name, value in trainable_state(model).items()}
        checkpoint.write(folder / "checkpoints", step, {STATE_FILES[0]: safetensors.torch.save(state)})
    return folder


def test_a_run_restores_with_the_weights_of_the_wanted_checkpoint(run: Path) -> None:
    lq = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    results = {}
    for wanted in ("latest", "3", "2", "base"):
        model, sampler = load_policy(run, wanted)
        assert sampler == SamplerSettings(steps=2, eta=0.5)
        assert not any(p.requires_grad for p in model.policy.parameters())
        results[wanted] = sample(model, lq, sampler, torch.Generator().manual_seed(1))
    plain, _ = load_policy(run / "base")
    untuned = sample(plain, lq, SamplerSettings(steps=2, eta=0.5), torch.Generator().manual_seed(1))
    assert torch.equal(results["latest"], results["3"]) and torch.equal(results["base"], untuned)
    assert not torch.equal(results["3"], results["2"]) and not torch.equal(results["2"], results["base"])


def test_a_model_folder_is_sampled_as_its_recipe_says(run: Path, tmp_path: Path) -> None:
    assert load_policy(run / "base")[1] == SamplerSettings()
    load(run / "base").save(tmp_path)
    (tmp_path / "recipe.json").write_text('{"sampler": {"steps": 4, "eta": 0.5}}')
    assert load_policy(tmp_path)[1] == SamplerSettings(steps=4, eta=0.5)


def test_what_is_not_there_is_told_with_what_is(run: Path, tmp_path: Path) -> None:
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint '7', there are 2, 3; choose one"):
        load_policy(run, "7")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": str(run / "base")}))
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint 'latest', none is written yet"):
        load_policy(tmp_path)
    with pytest.raises(ConfigError, match="is neither a run"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is no run"):
        load_run_config(tmp_path / "nowhere")


def test_the_restore_command_takes_a_run(run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (21, 19), (90, 120, 30)).save(tmp_path / "a.png")
    command = ["restore", "--model", str(run), str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--device", "cpu"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and "1 restored, 0 skipped, 0 failed" in result.stdout, result
    with Image.open(tmp_path / "b.png") as image:
        assert image.size == (21, 19)
    assert "0 restored, 1 skipped" in CliRunner().invoke(app, command).stdout
