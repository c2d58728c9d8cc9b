"""`restorl data make`, `check` and `evaluate --set`: from nothing to a figure beside its protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import cluster.cli.app as cli
from tests.restoration.small_sets import photos


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("cli") / "photos")


def test_a_set_is_made_checked_and_measured_by_three_commands(pictures: Path, tmp_path: Path) -> None:
    root, sheet, csv = tmp_path / "set", tmp_path / "sheet.png", tmp_path / "a.csv"
    small = ("--photos", pictures, "--side", 32, "--train", 3, "--test", 2)
    made = run("data", "make", "rain100l", root, *small)
    assert made.exit_code == 0 and made.stdout == f"{root}: train 3, test 2\n", made
    checked = run("data", "check", "rain100l", root, "--sheet", sheet)
    assert checked.exit_code == 0 and "test: 2 pairs, published 100" in checked.stdout, checked
    assert np.asarray(Image.open(sheet)).std() > 10
    measured = run("evaluate", root, "--set", "rain100l", "--csv", csv)
    assert measured.exit_code == 0, measured
    title, head, means = measured.stdout.splitlines()
    assert title.startswith("2 images, protocol derain_y (Y of MATLAB, 8 bits; SSIM with a Gaussian window of 11")
    assert head.split() == ["psnr", "ssim"] and 5 < float(means.split()[1]) < 60
    assert "warning: " in measured.stderr and "published set has 100" in measured.stderr
    assert len(csv.read_text().splitlines()) == 3
    other = run("evaluate", root, "--set", "rain100l", "--protocol", "lowlight_rgb+gt_mean")
    assert "protocol lowlight_rgb+gt_mean (RGB, 8 bits" in other.stdout and "GT-mean on" in other.stdout


def test_sets_of_scenes_have_their_means_over_scenes_too(pictures: Path, tmp_path: Path) -> None:
    run("data", "make", "smid_first30", tmp_path / "set", "--photos", pictures, "--side", 32, "--train", 2, "--test", 2)
    measured = run("evaluate", tmp_path / "set", "--set", "smid_first30")
    assert measured.exit_code == 0, measured
    whole, scenes = (line.split() for line in measured.stdout.splitlines()[2:4])
    assert whole[0] == "mean" and scenes[:2] == ["of", "scenes"] and whole[1] != scenes[2]  # 30 frames and 2


def test_a_problem_of_a_set_is_status_1_and_is_told(pictures: Path, tmp_path: Path) -> None:
    run("data", "make", "lol_v1", tmp_path / "set", "--photos", pictures, "--side", 32, "--train", 2, "--test", 2)
    high = tmp_path / "set" / "LOLv1"
    test, train = (next(iter(sorted((high / part / "high").iterdir()))) for part in ("eval15", "our485"))
    train.write_bytes(test.read_bytes())
    checked = run("data", "check", "lol_v1", tmp_path / "set")
    assert (
        checked.exit_code == 1 and "problem: 1 pictures of test are among those that are trained on" in checked.stdout
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data", "make", "lol_v3", "out"], "no public set named 'lol_v3'; did you mean lol_v"),
        (["data", "check", "rain100h", "/nowhere"], "/nowhere is no folder"),
        (["data", "check", "rain100h", "/tmp", "--sheet", "a.jpg"], "a contact sheet is a PNG"),
        (["evaluate", "a"], "give the folders LQ and GT, or the root of a set with --set NAME"),
        (["evaluate", "a", "b", "--set", "rain100h"], "give the folders LQ and GT, or the root"),
        (["evaluate", "a", "--set", "rain100"], "no public set named 'rain100'"),
        (["evaluate", "/tmp", "--set", "rain100h", "--split", "val"], "has no split 'val'"),
        (["evaluate", "a", "b", "--fid", "/nowhere", "--fid-kind", "swav"], "choose clean, legacy or patchN"),
        (["evaluate", "a", "b", "--split", "val"], "--split val: without --set NAME it does nothing"),
        (["evaluate", "a", "--set", "rain100h", "--match", "stem"], "--match stem with --set rain100h: a set knows"),
        (["evaluate", "a", "b", "--lpips-net", "vgg"], "--lpips-net vgg: without --lpips FOLDER it does nothing"),
        (["evaluate", "a", "b", "--fid-kind", "clean", "--fid-kind", "legacy"], "--fid-kind clean legacy: without"),
        (["evaluate", "a", "b", "--checkpoint", "base"], "--checkpoint base: without --model RUN_OR_FOLDER"),
        (["evaluate", "a", "b", "--seed", "0"], "--seed 0: without --model RUN_OR_FOLDER it does nothing"),
        (["evaluate", "a", "b", "--batch", "2"], "--batch 2: without --model"),
        (["evaluate", "a", "b", "--device", "cpu"], "--device cpu: without --model"),
        (["evaluate", "a", "b", "--embeddings", "e"], "--embeddings e: without --model"),
        (["data", "check", "rain100h", "/tmp", "--also", "/nowhere"], "/nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result
    (line,) = result.stderr.strip().splitlines()
    assert said in line and "Traceback" not in result.output
