"""`data.set` of a recipe: a public set by name in the place of folders."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from cluster.config.configure import ConfigError, load_config
from cluster.config.recipe import DataSettings, RunConfig
from cluster.report.chains import heldout_pictures
from cluster.run.checks.pictures import damaged
from cluster.run.preflight import names
from restoration.datasets.make import make_set
from restoration.pretrain.sft_data import SftData, held_out, training_pairs
from tests.restoration.small_sets import photos

OURS = Path(__file__).parents[3] / "configs" / "ours.yaml"


def config_of(*overrides: str) -> RunConfig:
    return load_config(RunConfig, OURS, ["model=models/demo", *overrides])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    make_set("rain100h", photos(folder / "photos"), folder / "set", side=32, train=3, test=2)
    return folder / "set"


def test_a_recipe_opens_a_public_set_by_its_name(root: Path) -> None:
    data = config_of("data.set=rain100h", f"data.root={root}").data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the published counts
        train, heldout = data.open(data.train), data.open(data.heldout)
    assert (len(train), len(heldout)) == (3, 2)
    assert heldout.lq == root / "test" / "Rain100H" / "input" and train.lq == root / "train" / "Rain13K" / "input"
    assert DataSettings(root, "train", "test/Rain100H").open("test/Rain100H").image_ids == heldout.image_ids


def test_of_held_out_pairs_all_sizes_are_known_as_every_part_of_an_evaluation_asks_for_them(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("restoration.datasets.paired.HEADERS", 1)
    data = config_of("data.set=rain100h", f"data.root={root}").data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the published counts
        assert len(data.open(data.train).known_sizes) == 1
        assert len(data.open(data.heldout).known_sizes) == 2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.set=rain100"], "no public set named 'rain100'; did you mean rain100"),
        (["data.set=jnb"], "without originals"),
        (["data.set=rain100h", "data.heldout=val"], "rain100h has no such split; choose one of train, test"),
        (["data.set=rain100h", "data.match=digits"], "a set knows its pairs"),
    ],
)
def test_a_wrong_set_is_a_mistake_of_the_recipe(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match="data") as told:
        config_of(*overrides)
    assert said in str(told.value)


def test_another_protocol_than_the_sets_own_is_told_before_a_start() -> None:
    def found(*overrides: str) -> list[str]:
        return [str(f) for f in names(config_of(*overrides)) if "published by" in str(f)]

    (told,) = found("data.set=rain100h")
    assert "Rain100H are published by derain_y; set evaluation.protocol=derain_y" in told
    assert found("data.set=rain100h", "evaluation.protocol=derain_y+border=4") == found() == []


def test_supervised_learning_takes_a_set_by_its_name_too(root: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lq, gt, ids = training_pairs(SftData(root, set="rain100h"), 32, seed=0).batch(2, [0])
        assert lq.shape == gt.shape == (2, 3, 32, 32) and len(ids) == 2
        assert len(held_out(SftData(root, set="rain100h"), 9, 0).pairs) == 2
    with pytest.raises(ValueError, match="data.set=rain100h: give data.root"):
        SftData(photos=Path("x"), set="rain100h")
    with pytest.raises(ValueError, match="data.heldout=val"):
        SftData(root, set="rain100h", heldout="val")


def test_scenes_of_arrays_are_held_out_of_supervised_learning_and_of_a_run(tmp_path: Path) -> None:
    make_set("sid", photos(tmp_path / "photos"), tmp_path / "set", side=32, train=2, test=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert held_out(SftData(tmp_path / "set", set="sid"), 1, 0).pairs
        config = config_of("data.set=sid", f"data.root={tmp_path / 'set'}")
        heldout = config.data.open(config.data.heldout)
        assert not list(damaged(config, heldout))
        shown = heldout_pictures(config, 1)
    assert shown[0].name in heldout.image_ids
    array = heldout.pair(shown[0].name).gt_path
    array.write_bytes(array.read_bytes()[:200])
    assert [problem for problem in damaged(config, heldout) if str(array) in str(problem)]
