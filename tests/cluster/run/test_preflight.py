from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.config.configure import ConfigError
from cluster.run.checks.findings import Checked
from cluster.run.machine import Machine
from cluster.run.preflight import before_start
from restoration.datasets.paired import PairedFolder, discover
from restoration.metrics.full_reference import FULL_REFERENCE
from reward_service.scorers import SCORERS
from tests.cluster.run.checks.cases import Facts, alone, config_of, the_problem, with_model


@pytest.fixture
def pairs(tmp_path: Path) -> PairedFolder:
    for kind in ("input", "target"):
        (tmp_path / "train" / kind).mkdir(parents=True)
        Image.new("RGB", (60, 40)).save(tmp_path / "train" / kind / "a.png")
    return discover(tmp_path, "train")


def test_the_default_recipe_on_pictures_that_fit_has_no_problem_and_no_warning() -> None:
    assert with_model() == Checked((), ())
    assert alone() == Checked((), ())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluation.protocol=matlab", "lowlight_rgb"),
        ("reward.scorer=nima", f"no scorer named 'nima'; choose {', '.join(sorted({*SCORERS, *FULL_REFERENCE}))}"),
    ],
)
def test_a_name_that_nothing_has_is_refused_with_those_that_there_are(override: str, said: str) -> None:
    key, told = the_problem(alone(override))
    assert key == override.split("=")[0] and said in told


def test_all_problems_are_told_at_once() -> None:
    found = with_model("sampler.steps=1", "sampler.guidance_scale=2", "rollout.crop=500", facts=Facts(guidance=False))
    assert [p.key for p in found.problems] == ["sampler.steps", "sampler.guidance_scale", "rollout.crop"]


def test_before_start_reads_the_model_folder_and_the_pictures_and_raises_all_it_finds(pairs: PairedFolder) -> None:
    small = ("model=models/demo", "reward.scorer=piqe")
    config = config_of(*small, "rollout.crop=36", "sampler.steps=1", "sampler.guidance_scale=2")
    with pytest.raises(ConfigError) as caught:
        before_start(config, pairs, pairs, Machine())
    assert [p.key for p in caught.value.problems] == ["sampler.steps", "sampler.guidance_scale", "rollout.crop"]
    assert "choose 32 or 40" in str(caught.value)
    good = config_of(*small, "rollout.crop=40", "actors.count=3")
    warning, untried = before_start(good, pairs, pairs, Machine())
    assert warning.startswith("actors.count=3")
    assert untried.startswith("reward: nobody has tried") and untried.endswith("restorl reward check CONFIG")


def test_a_folder_that_is_no_model_is_told_beside_the_other_problems(pairs: PairedFolder) -> None:
    with pytest.raises(ConfigError) as caught:
        before_start(config_of("model=/nowhere", "reward.scorer=nima"), pairs, pairs, Machine())
    assert [p.key for p in caught.value.problems] == ["reward.scorer", "model"]
    assert "/nowhere is not a folder; give the folder that holds restorl_model.json" in str(caught.value)


def test_weights_that_a_scorer_lacks_stop_a_run_before_its_replicas_look_for_them(pairs: PairedFolder) -> None:
    with pytest.raises(ConfigError, match=r"reward\.params\.weights: weights/x is not there") as caught:
        before_start(
            config_of("model=models/demo", "rollout.crop=40", "reward.scorer=deqa", "reward.params.weights=weights/x"),
            pairs,
            pairs,
            Machine(),
        )
    assert len(caught.value.problems) == 1


def test_a_held_out_picture_that_is_damaged_in_its_middle_is_told_before_the_start(tmp_path: Path) -> None:
    for kind in ("input", "target"):
        (tmp_path / "train" / kind).mkdir(parents=True)
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / "train" / kind / "a.png")
    broken = tmp_path / "train" / "target" / "a.png"
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 255
    broken.write_bytes(content)
    heldout = discover(tmp_path, "train")  # headers and ends are right
    with pytest.raises(ConfigError) as caught:
        before_start(config_of("model=models/demo", "rollout.crop=64"), heldout, heldout, Machine())
    (problem,) = caught.value.problems
    assert problem.key == "data.heldout" and str(broken) in str(problem)


def test_held_out_pictures_that_will_lack_a_figure_are_told_before_the_start(tmp_path: Path) -> None:
    for split, side in (("train", 64), ("test", 8)):
        for kind in ("input", "target"):
            (tmp_path / split / kind).mkdir(parents=True)
            Image.new("RGB", (side, side)).save(tmp_path / split / kind / "a.png")
    train, heldout = discover(tmp_path, "train"), discover(tmp_path, "test")
    told = before_start(config_of("model=models/demo", "rollout.crop=64"), train, heldout, Machine())
    assert any("SSIM takes pictures of at least 11 pixels" in warning and "a 8x8" in warning for warning in told)


def test_of_a_set_whose_headers_are_read_in_part_the_right_pictures_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("restoration.datasets.paired.HEADERS", 1)
    for split, names, side in (("train", "abc", 64), ("test", "d", 8)):
        for kind in ("input", "target"):
            (tmp_path / split / kind).mkdir(parents=True)
            for name in names:
                Image.new("RGB", (side, side)).save(tmp_path / split / kind / f"{name}.png")
    train, heldout = discover(tmp_path, "train"), discover(tmp_path, "test")
    assert len(train.known_sizes) == 1
    told = before_start(config_of("model=models/demo", "rollout.crop=64"), train, heldout, Machine())
    assert any("d 8x8" in warning for warning in told)
