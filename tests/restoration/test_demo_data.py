"""Demo sets are seeded, read by the real loader, and written only when something changed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from restoration.datasets.paired import DataError, discover
from restoration.degradations import KINDS
from restoration.demo_data import make_demo


@pytest.fixture
def photos(tmp_path):
    """Two small photographs a split, left half textured, right half flat."""
    rng = np.random.default_rng(0)
    for split in ("train", "heldout"):
        for name in ("a", "b"):
            pixels = np.full((70, 140, 3), 128, np.uint8)
            pixels[:, :70] = rng.integers(0, 256, (70, 70, 3))
            (tmp_path / "photos" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "photos" / split / f"{split}-{name}.png")
    return tmp_path / "photos"


def small(photos, out, **changes):
    return make_demo(photos, out, **({"crop": 32, "train_count": 6, "test_count": 4} | changes))


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_task_is_written_in_a_public_layout_that_the_loader_reads(photos, tmp_path):
    folders = small(photos, tmp_path / "out")
    assert list(folders) == list(KINDS)
    assert (folders["rain"] / "train" / "input").is_dir() and (folders["low_light"] / "Test" / "Normal").is_dir()
    for folder in folders.values():
        train, test = discover(folder, "train"), discover(folder, "test")
        assert (len(train), len(test)) == (6, 4)
        assert all(i.startswith("train-") for i in train.image_ids)
        assert all(i.startswith("heldout-") for i in test.image_ids)
        lq, gt = test.load(test.image_ids[0])
        assert gt.shape == (3, 32, 32) and (lq - gt).abs().mean() > 0.01


def test_a_tile_is_the_named_part_of_its_photograph_and_textured(photos, tmp_path):
    folder = small(photos, tmp_path / "out", tasks=["rain"])["rain"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {tile["photo"] for tile in manifest["tiles"]} == {"train-a", "train-b", "heldout-a", "heldout-b"}
    for tile in manifest["tiles"]:
        source = "heldout" if tile["split"] == "test" else "train"
        whole = np.asarray(Image.open(photos / source / f"{tile['photo']}.png"))
        y, x, side = tile["y"], tile["x"], tile["side"]
        cut = np.asarray(Image.open(folder / tile["split"] / "target" / f"{tile['name']}.png"))
        assert np.array_equal(cut, whole[y : y + side, x : x + side])
        assert x < 70 and 0.3 <= tile["severity"] <= 1


def test_equal_seeds_give_equal_sets_and_other_seeds_others(photos, tmp_path):
    one, two, other = (
        small(photos, tmp_path / n, seed=s, tasks=["low_light"]) for n, s in (("1", 3), ("2", 3), ("3", 4))
    )
    assert contents(one["low_light"]) == contents(two["low_light"])
    assert contents(one["low_light"]) != contents(other["low_light"])


def test_nothing_is_written_when_up_to_date_and_a_change_or_a_lost_file_renews(photos, tmp_path):
    folder = small(photos, tmp_path / "out", tasks=["rain"])["rain"]
    first = folder.stat().st_ino, contents(folder)
    small(photos, tmp_path / "out", tasks=["rain"])
    assert (folder.stat().st_ino, contents(folder)) == first
    next((folder / "test" / "input").iterdir()).unlink()
    small(photos, tmp_path / "out", tasks=["rain"])
    assert contents(folder) == first[1]
    small(photos, tmp_path / "out", tasks=["rain"], severity=(0.9, 1.0))
    assert contents(folder) != first[1]
    Image.new("RGB", (64, 64)).save(photos / "train" / "new.png")
    renewed = contents(folder)
    small(photos, tmp_path / "out", tasks=["rain"], severity=(0.9, 1.0))
    assert contents(folder) != renewed
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["rain"]


def test_a_folder_of_somebody_else_is_not_replaced(photos, tmp_path):
    (tmp_path / "out" / "rain").mkdir(parents=True)
    (tmp_path / "out" / "rain" / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not made by this command"):
        small(photos, tmp_path / "out", tasks=["rain"])
    assert (tmp_path / "out" / "rain" / "mine.txt").read_text() == "keep"


def test_wrong_arguments_and_missing_photographs_are_named(photos, tmp_path):
    with pytest.raises(ValueError, match="'snow'.*rain, motion_blur"):
        small(photos, tmp_path / "out", tasks=["snow"])
    with pytest.raises(ValueError, match="severity"):
        small(photos, tmp_path / "out", severity=(0.5, 0.2))
    with pytest.raises(ValueError, match="crop=8"):
        small(photos, tmp_path / "out", crop=8)
    with pytest.raises(DataError, match="no tile of 71 px"):
        small(photos, tmp_path / "out", crop=71)
    with pytest.raises(FileNotFoundError, match="gone"):
        small(tmp_path / "gone", tmp_path / "out")


def test_the_shipped_photographs_give_enough_heldout_tiles_of_every_photograph(photo_folder, tmp_path):
    folder = make_demo(photo_folder, tmp_path, tasks=["defocus"], train_count=13)["defocus"]
    test = discover(folder, "test")
    assert len(test) == 48 and len(discover(folder, "train")) == 13
    sources = {i.rsplit("_", 1)[0] for i in test.image_ids}
    assert sources == {p.stem for p in (photo_folder / "heldout").glob("*.jpg")}
    unseen = {i.rsplit("_", 1)[0] for i in discover(folder, "unseen").image_ids}
    assert unseen == {p.stem for p in (photo_folder / "unseen").glob("*.jpg")} and not unseen & sources


def test_a_third_split_is_cut_where_there_are_unseen_photographs(photos, tmp_path):
    without = small(photos, tmp_path / "out", tasks=["low_light"])["low_light"]
    before = contents(without)
    assert not (without / "Unseen").exists()
    (photos / "unseen").mkdir()
    Image.open(photos / "heldout" / "heldout-a.png").save(photos / "unseen" / "new.png")
    folder = small(photos, tmp_path / "out", tasks=["low_light"])["low_light"]
    assert all(i.startswith("new_") for i in discover(folder, "unseen").image_ids)
    after = contents(folder)
    assert {k: v for k, v in before.items() if k != "manifest.json"}.items() <= after.items()
