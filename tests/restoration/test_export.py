"""A tuned model, exported in its released layout and laid over the released files, is read as the tuned model."""

from __future__ import annotations

import argparse
import inspect
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from restoration.adapters import AdaptSettings, make_trainable, merge, trained_parameters
from restoration.base_models import KINDS, BaseModel, CheckpointError, class_of
from restoration.base_models.networks.parts import save_over
from restoration.checkpoints import read_raw
from tests.restoration.released_folders import write_diffbir_files
from tests.restoration.released_models import EACH, MODELS

Arguments = dict[str, Any]


@dataclass
class Released:
    """A model of files in `folder`, and the arguments, by name, of its `from_released`. Neither is to be changed."""

    name: str
    folder: Path
    model: BaseModel
    given: Arguments

    def copied(self, to: Path) -> Arguments:
        """The arguments for a copy of the files."""
        shutil.copytree(self.folder, to)
        return {k: to / v.relative_to(self.folder) if isinstance(v, Path) else v for k, v in self.given.items()}


@pytest.fixture(scope="module", params=EACH)
def released(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Released:
    calls: list[Arguments] = []
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        spy_on_releases(patch, calls)
        model = MODELS[request.param](folder)
    return Released(request.param, folder, model, calls[-1])


def spy_on_releases(monkeypatch: pytest.MonkeyPatch, calls: list[Arguments]) -> None:
    """`calls` grows by the arguments of each call of a `from_released`."""
    for cls in {cls for kind in KINDS for cls in class_of(kind).__mro__}:
        if "from_released" not in vars(cls):
            continue
        original = vars(cls)["from_released"].__func__

        def spy(cls: Any, *args: Any, _original: Any = original, **kwargs: Any) -> Any:
            calls.append(dict(inspect.signature(_original).bind(cls, *args, **kwargs).arguments))
            return _original(cls, *args, **kwargs)

        monkeypatch.setattr(cls, "from_released", classmethod(spy))


def over_folders(given: Arguments, exported: Path) -> Arguments:
    """Networks' folders take the place of the checkpoint's, or of the base's."""
    for folder in exported.iterdir():
        place = "checkpoint" if (given["checkpoint"] / folder.name).exists() else "base"
        target = given[place] / folder.name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target) if folder.is_dir() else shutil.copy(folder, given["checkpoint"])
    return given | ({"unet": None} if "unet" in given else {})


def as_file(name: str) -> Callable[[Arguments, Path], Arguments]:
    """The file is the checkpoint; a network's folder beside it takes the place of the base's."""

    def lay(given: Arguments, exported: Path) -> Arguments:
        if (exported / "unet").is_dir():
            shutil.copytree(exported / "unet", given["base"] / "unet", dirs_exist_ok=True)
        return given | {"checkpoint": exported / name}

    return lay


LAID: dict[str, Callable[[Arguments, Path], Arguments]] = {
    "diffbir": as_file("controlnet.pth"),
    "controlnet": as_file("controlnet"),
    "controlnet_sdxl": as_file("controlnet"),
    "sd3": as_file("controlnet"),
    "flux": as_file("controlnet"),
    "faithdiff": as_file("FaithDiff.bin"),
    "pisa": as_file("pisa_sr.pkl"),
    "stablesr": lambda given, exported: given | {"base": exported / "stablesr.ckpt"},
}


def tuned(model: BaseModel, settings: AdaptSettings) -> list[str]:
    """Change all that `settings` trains; gives its names."""
    make_trainable(model, settings)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    names = list(trained_parameters(model))
    merge(model)
    return names


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_the_export_of_a_tuned_model_is_read_as_a_release_and_is_it(
    released: Released, mode: Any, tmp_path: Path
) -> None:
    name = released.name
    before, model = released.model.policy.state_dict(), deepcopy(released.model)
    files = released.copied(tmp_path / "released")
    names = tuned(model, AdaptSettings(mode=mode, rank=2))
    over = tmp_path / "released" / "stablesr.ckpt" if name == "stablesr" else None
    model.export(tmp_path / "exported", names, over)  # type: ignore[attr-defined]
    given = LAID.get(name, over_folders)(files, tmp_path / "exported")
    again = given.pop("cls").from_released(**given)
    expected = model.policy.state_dict()
    found = again.policy.state_dict()
    assert found.keys() == expected.keys() and any(not torch.equal(v, before[k]) for k, v in expected.items())
    assert [k for k, v in expected.items() if not torch.equal(found[k], v)] == []


def test_a_unet_trained_along_goes_into_stable_diffusions_own_file(tmp_path: Path) -> None:
    base, checkpoint, cleaner = write_diffbir_files(tmp_path)
    cls = class_of("diffbir")
    settings = cls.SETTINGS(trainable=(r"unet\.", r"controlnet\."))
    model = cls.from_released(base, checkpoint, cleaner, head_channels=16, settings=settings)
    names = tuned(model, AdaptSettings(mode="full"))
    with pytest.raises(ValueError, match="UNet was trained, too"):
        model.export(tmp_path / "exported", names)
    with pytest.raises(CheckpointError, match="is it another's"):
        model.export(tmp_path / "exported", names, checkpoint)
    with pytest.raises(ValueError, match="would be overwritten"):
        model.export(base.parent, names, base)
    model.export(tmp_path / "exported", names, base)
    exported = tmp_path / "exported"
    again = cls.from_released(exported / base.name, exported / "controlnet.pth", cleaner, head_channels=16)
    for key, value in model.policy.state_dict().items():
        assert torch.equal(again.policy.state_dict()[key], value), key
    old, new = read_raw(base), read_raw(exported / base.name)
    assert new["global_step"] == old["global_step"] and new["state_dict"].keys() == old["state_dict"].keys()
    kept = [k for k in old["state_dict"] if not k.startswith("model.diffusion_model.")]
    assert kept and all(torch.equal(old["state_dict"][k], new["state_dict"][k]) for k in kept)


@pytest.mark.filterwarnings("ignore:.*objects of other programs")
@pytest.mark.parametrize("name", ["sd.ckpt", "sd.safetensors"])
def test_what_is_written_over_a_lightning_file_is_readable_by_torch_and_its_average_is_the_tuned_model(
    name: str, tmp_path: Path
) -> None:
    state = {"model.a.weight": torch.zeros(2), "first.b": torch.zeros(1)}
    average = {"model_ema.aweight": torch.ones(2, dtype=torch.float16), "model_ema.decay": torch.tensor(0.9)}
    content = {"state_dict": state | average, "epoch": 3, "hyper_parameters": argparse.Namespace(lr=1), "list": [tuned]}
    torch.save(content, tmp_path / name)
    save_over(tmp_path / name, {"model.a.weight": torch.full((2,), 7.0)}, tmp_path / "out")
    (tmp_path / "out" / name).rename(tmp_path / "again.ckpt")  # torch asks safetensors for files of that suffix
    found = torch.load(tmp_path / "again.ckpt", weights_only=True)
    assert found.keys() == {"state_dict", "epoch"} and found["epoch"] == 3
    held = found["state_dict"]
    assert held.keys() == content["state_dict"].keys() and held["first.b"].tolist() == [0]
    assert held["model.a.weight"].tolist() == [7, 7]
    assert held["model_ema.aweight"].tolist() == [7, 7] and held["model_ema.aweight"].dtype == torch.float16


def test_a_file_to_write_over_is_refused_where_none_is_needed_and_asked_for_where_it_is(tmp_path: Path) -> None:
    model: Any = MODELS["pasd"](tmp_path / "pasd")
    with pytest.raises(ValueError, match=r"pasd: nothing of x\.ckpt is needed"):
        model.export(tmp_path / "out", ["controlnet.x"], Path("x.ckpt"))
    with pytest.raises(ValueError, match="autoencoder and text tower"):
        MODELS["stablesr"](tmp_path / "stablesr").export(tmp_path / "out", [])  # type: ignore[attr-defined]
    make_trainable(model, AdaptSettings(rank=2))
    with pytest.raises(ValueError, match="LoRA"):
        model.export(tmp_path / "out", ["controlnet.x"])
    assert not (tmp_path / "out").exists()
