from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from peft import PeftModel
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.config.configure import ConfigError
from cluster.models import load_policy, load_run_config
from learner import checkpoint
from learner.learner import STATE_FILES
from restoration.adapters import AdaptSettings, make_trainable, merge, trainable_state
from restoration.base_models import BaseModel, load
from restoration.base_models.interface import SamplerSettings
from restoration.ldm_layout import layout_of
from restoration.restore import sample
from tests.restoration.test_diffbir import small


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny model with LoRA, whose checkpoint 3 holds other weights than checkpoint 2."""
    return write_run(tmp_path_factory.mktemp("run"), rank=2)


def write_run(folder: Path, **adapt: Any) -> Path:
    small().save(folder / "base")
    config = {"model": str(folder / "base"), "adapt": adapt, "sampler": {"steps": 2, "eta": 0.5}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    model = load(folder / "base")
    make_trainable(model, AdaptSettings(**adapt))
    for step in (2, 3):
        state = {name: torch.full_like(value, 0.05 * step) for name, value in trainable_state(model).items()}
        checkpoint.write(folder / "checkpoints", step, {STATE_FILES[0]: safetensors.torch.save(state)})
    return folder


def test_a_run_restores_with_the_weights_of_the_wanted_checkpoint(run: Path) -> None:
    results = {}
    for wanted in ("latest", "3", "2", "base"):
        model, sampler = load_policy(run, wanted)
        assert sampler == SamplerSettings(steps=2, eta=0.5)
        assert not any(p.requires_grad for p in model.policy.parameters())
        results[wanted] = picture_of(model, sampler)
    untuned = picture_of(load_policy(run / "base")[0], SamplerSettings(steps=2, eta=0.5))
    assert torch.equal(results["latest"], results["3"]) and torch.equal(results["base"], untuned)
    assert not torch.equal(results["3"], results["2"]) and not torch.equal(results["2"], results["base"])


def test_a_model_folder_is_sampled_as_its_recipe_says(run: Path, tmp_path: Path) -> None:
    assert load_policy(run / "base")[1] == SamplerSettings(steps=50, spacing="linspace")  # its authors', unguided
    load(run / "base").save(tmp_path)
    (tmp_path / "recipe.json").write_text('{"sampler": {"steps": 4, "eta": 0.5}}')
    assert load_policy(tmp_path)[1] == SamplerSettings(steps=4, eta=0.5)


def exported(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def picture_of(model: BaseModel, sampler: SamplerSettings) -> Tensor:
    lq = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return sample(model, lq, sampler, torch.Generator().manual_seed(1))


def test_an_exported_model_restores_as_its_run(run: Path, tmp_path: Path) -> None:
    for wanted in ("latest", "2", "base"):
        assert "restorl_model.json" in exported(run, tmp_path / wanted, "--checkpoint", wanted)
        expected = picture_of(*load_policy(run, wanted))
        assert torch.allclose(picture_of(*load_policy(tmp_path / wanted)), expected, atol=1e-5)
    exported(tmp_path / "latest", tmp_path / "half", "--dtype", "bfloat16")
    assert load_policy(tmp_path / "half")[1] == SamplerSettings(steps=2, eta=0.5)
    weights = [
        safetensors.torch.load_file(tmp_path / f / "controlnet" / "diffusion_pytorch_model.safetensors")
        for f in ("latest", "half")
    ]
    assert all(torch.equal(v.bfloat16(), weights[1][k]) for k, v in weights[0].items())


def test_an_export_as_released_holds_what_was_trained(run: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": sd_state(run) | {"other": torch.ones(2)}}, tmp_path / "sd.ckpt")
    printed = exported(run, tmp_path / "out", "--as", "released", "--over", tmp_path / "sd.ckpt")
    assert [Path(line).name for line in printed.split()] == ["controlnet.pth", "sd.ckpt"]
    model = load_policy(run)[0]
    merge(model)
    expected, ours = model.policy.state_dict(), "down_blocks.0.resnets.0.conv1.weight"
    over = torch.load(tmp_path / "out" / "sd.ckpt", weights_only=True)["state_dict"]
    alone = torch.load(tmp_path / "out" / "controlnet.pth", weights_only=True)
    theirs = "input_blocks.1.0.in_layers.2.weight"
    assert torch.equal(over[f"model.diffusion_model.{theirs}"], expected[f"unet.{ours}"]) and len(over["other"]) == 2
    assert torch.equal(alone[theirs], expected[f"controlnet.{ours}"])


def test_an_export_as_released_also_holds_what_only_sft_trained(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", targets=r"unet\..*to_q")
    torch.save({"state_dict": sd_state(run)}, tmp_path / "sd.ckpt")
    exported(run, tmp_path / "out", "--as", "released", "--over", tmp_path / "sd.ckpt")
    assert (tmp_path / "out" / "controlnet.pth").is_file()


def sd_state(run: Path) -> dict[str, Tensor]:
    """The UNet of a run's base, as in Stable Diffusion's file."""
    unet: Any = load(run / "base").policy.get_submodule("unet")
    return {f"model.diffusion_model.{k}": v for k, v in layout_of(unet).restored(unet.state_dict()).items()}


def test_an_exported_lora_is_one_that_peft_loads(run: Path, tmp_path: Path) -> None:
    exported(run, tmp_path / "lora", "--as", "lora")
    model, sampler = load_policy(run, "base")
    PeftModel.from_pretrained(model.policy, str(tmp_path / "lora"))
    assert torch.allclose(picture_of(model, sampler), picture_of(*load_policy(run)), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--as", "onnx"], "--as onnx: choose model, released, lora"),
        (["--dtype", "int8"], "--dtype int8: choose float32"),
        (["--dtype", "float16", "--as", "lora"], "only with --as model"),
        (["--over", "x.ckpt"], "--over x.ckpt: only with --as released"),
        (["--over", "x.ckpt", "--as", "released"], "x.ckpt is missing"),
        (["--as", "released"], "give that file with --over"),
        (["--as", "lora", "--checkpoint", "base"], "has no LoRA; only a trained run has one"),
        (["--checkpoint", "7"], "no checkpoint '7'"),
    ],
)
def test_an_export_that_can_not_be_says_why_and_writes_nothing(
    run: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    result = CliRunner().invoke(app, ["export", str(run), str(tmp_path / "out"), *options])
    assert result.exit_code == 2 and message in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_an_export_overwrites_nothing(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(run), str(tmp_path)])
    assert result.exit_code == 2 and "exists already" in result.output


def test_what_is_not_there_is_told_with_what_is(run: Path, tmp_path: Path) -> None:
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint '7', there are 2, 3; choose one"):
        load_policy(run, "7")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": str(run / "base")}))
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint 'latest', none is written yet"):
        load_policy(tmp_path)
    with pytest.raises(ConfigError, match="is neither a run"):
        load_policy(tmp_path / "nowhere")
    for wanted in ("average", "7"):
        with pytest.raises(ConfigError, match=f"checkpoint {wanted}: .* is a model, not a run"):
            load_policy(run / "base", wanted)
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
