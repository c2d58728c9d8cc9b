"""`restorl convert` reads the files that people have: Lightning's, wrapped, with an average, under other names."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from cluster.cli.app import app
from restoration.checkpoints import read_state
from restoration.state_dicts import average_of
from tests.restoration.released_folders import write_diffbir_files

WEIGHTS = "diffusion_pytorch_model.safetensors"


def converted(out: Path, base: Path, checkpoint: Path, cleaner: Path, *more: str) -> Any:
    files = [f"base={base}", f"checkpoint={checkpoint}", f"cleaner={cleaner}", "head_channels=16"]
    return CliRunner().invoke(app, ["convert", "diffbir", str(out), *files, *more])


def parts(folder: Path) -> dict[str, Tensor]:
    files = {f.relative_to(folder).as_posix(): load_file(f) for f in folder.rglob("*.safetensors")}
    return {f"{name}/{key}": value for name, tensors in files.items() for key, value in tensors.items()}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """DiffBIR's three, as they are released."""
    (tmp_path / "released").mkdir()
    base, checkpoint, cleaner = write_diffbir_files(tmp_path / "released")
    return base, checkpoint, cleaner


def test_files_of_trainers_convert_to_the_same_model_as_the_released_ones(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    assert converted(tmp_path / "a", *files).exit_code == 0
    base, checkpoint, cleaner = (read_state(f) for f in files)
    hyper = {"hyper_parameters": argparse.Namespace(lr=1e-4), "pytorch-lightning_version": "1.4.2"}
    torch.save({"state_dict": base} | hyper, tmp_path / "SD.CKPT")
    torch.save({f"module.control_model.{k}": v for k, v in checkpoint.items()}, tmp_path / "control.safetensors")
    discriminator = {"net_d.conv.weight": torch.ones(1)}
    torch.save({"net_g": {f"net_g.{k}": v for k, v in cleaner.items()} | discriminator}, tmp_path / "cleaner")
    result = converted(tmp_path / "b", tmp_path / "SD.CKPT", tmp_path / "control.safetensors", tmp_path / "cleaner")
    assert result.exit_code == 0, result.output
    expected, found = parts(tmp_path / "a"), parts(tmp_path / "b")
    assert found.keys() == expected.keys() and all(torch.equal(v, expected[k]) for k, v in found.items())
    told = " ".join(result.output.split())
    assert "objects of other programs are left out (argparse.Namespace)" in told
    assert "others are left out (net_d.conv.weight)" in told and "UserWarning" not in told


def test_the_average_is_taken_where_it_is_asked_for_and_both_are_told(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base = read_state(files[0])
    average = {average_of(k): v + 1 for k, v in base.items() if k.startswith("model.")}
    torch.save({"state_dict": base | average | {"model_ema.decay": torch.tensor(0.9)}}, tmp_path / "sd.ckpt")
    biases = {}
    for weights in ("auto", "plain", "ema"):
        result = converted(tmp_path / weights, tmp_path / "sd.ckpt", *files[1:], "--weights", weights)
        assert result.exit_code == 0, result.output
        assert "sd.ckpt holds both" in " ".join(result.output.split())
        biases[weights] = load_file(tmp_path / weights / "unet" / WEIGHTS)["conv_out.bias"]
    own = base["model.diffusion_model.out.2.bias"]
    assert torch.equal(biases["auto"], own) and torch.equal(biases["plain"], own)
    assert torch.equal(biases["ema"], own + 1)


def test_a_choice_that_no_file_offers_is_told(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    result = converted(tmp_path / "a", *files, "--weights", "ema")
    assert result.exit_code == 0 and "no file holds weights and their average" in " ".join(result.output.split())
    result = converted(tmp_path / "b", *files, "--weights", "best")
    assert result.exit_code == 2 and "--weights best: choose auto, plain, ema" in result.output
    assert not (tmp_path / "b").exists()


def test_a_pointer_in_the_place_of_a_file_ends_with_one_line_that_names_it(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    files[1].write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1445000000\n")
    result = converted(tmp_path / "a", *files)
    told = " ".join(result.output.split())
    assert result.exit_code == 2 and f"{files[1]} is a Git LFS pointer" in told and "1,445,000,000 bytes" in told
    assert "Traceback" not in told and not (tmp_path / "a").exists()
