"""What `restorl data check` finds in a set, and what it shows of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from restoration.datasets.check import check_set
from restoration.datasets.make import make_set
from restoration.datasets.matching import DataError
from restoration.datasets.sheet import contact_sheet
from tests.restoration.small_sets import SIDE, photos


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    make_set("lol_v2_real", photos(folder / "photos"), folder / "set", side=SIDE, train=3, test=2)
    return folder / "set"


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(sound, tmp_path / "set"))


def files(root: Path, split: str, side: str) -> list[Path]:
    return sorted((root / "LOLv2" / "Real_captured" / split / side).iterdir())


def problems(root: Path, *also: Path) -> list[str]:
    report = check_set("lol_v2_real", root, also)
    found = [text for split in report.splits for text in split.problems] + list(report.problems)
    assert report.ok == (not found)
    return found


def test_a_sound_set_is_told_with_counts_sizes_depth_protocol_and_licence(sound: Path) -> None:
    lines = "\n".join(check_set("lol_v2_real", sound).lines())
    for part in (
        "LOL-v2-real (low light)",
        "protocol lowlight_rgb: RGB, 8 bits; SSIM with a Gaussian window of 11",
        "GT-mean off",
        "licence: not known here",
        "train: 3 pairs, published 689; layout original",
        "test: 2 pairs, published 100",
        "sizes: 32x32 (6); depth: 8 bits (6)",
        "note: 2 pairs of LOL-v2-real's test, the published set has 100",
    ):
        assert part in lines, part
    assert "problem" not in lines


def test_the_same_picture_in_train_and_test_is_found_in_another_file_too(root: Path) -> None:
    Image.open(files(root, "Test", "Normal")[0]).save(files(root, "Train", "Normal")[1], compress_level=0)
    (found,) = problems(root)
    assert "1 pictures of test are among those that are trained on" in found
    assert "normal00690.png" in found and "normal00002.png" in found


def test_pictures_of_another_set_that_is_trained_on_are_held_against_the_test(root: Path, tmp_path: Path) -> None:
    (tmp_path / "lol_v1").mkdir()
    shutil.copy(files(root, "Test", "Low")[1], tmp_path / "lol_v1" / "1.png")
    assert problems(root) == []
    (found,) = problems(root, tmp_path / "lol_v1")
    assert "low00691.png = " in found and "lol_v1/1.png" in found and "prove nothing" in found


def test_a_picture_of_another_set_that_can_not_be_read_is_a_problem(root: Path, tmp_path: Path) -> None:
    """It may be one of the test."""
    (tmp_path / "lol_v1").mkdir()
    (tmp_path / "lol_v1" / "1.png").write_bytes(files(root, "Test", "Low")[1].read_bytes()[:100])
    (found,) = problems(root, tmp_path / "lol_v1")
    assert "lol_v1/1.png" in found


@pytest.mark.parametrize(("made", "said"), [(False, "nowhere"), (True, "nowhere holds no image")])
def test_a_wrong_folder_of_others_is_told_before_anything_is_decoded(
    root: Path, tmp_path: Path, made: bool, said: str
) -> None:
    if made:
        (tmp_path / "nowhere").mkdir()
    with pytest.raises((FileNotFoundError, DataError), match=said):
        check_set("lol_v2_real", root, [tmp_path / "nowhere"], progress=lambda *_: pytest.fail("something was decoded"))


def test_a_file_of_several_splits_is_decoded_once_and_told_in_each(tmp_path: Path) -> None:
    make_set(
        "dpdd_single", photos(tmp_path / "photos"), tmp_path / "set", layout="restormer", side=SIDE, train=2, test=4
    )
    done = list[tuple[str, int]]()
    report = check_set("dpdd_single", tmp_path / "set", progress=lambda what, n, _: done.append((what, n)))
    assert {split.split: split.pairs for split in report.splits}["test/indoor"] == 2
    assert all(split.sizes.total() == 2 * split.pairs for split in report.splits)
    assert len(done) == 2 * sum(split.pairs for split in report.splits if "/" not in split.split)


def test_pairs_of_other_sizes_damaged_files_and_inputs_that_are_originals_are_told(root: Path) -> None:
    low, normal = files(root, "Train", "Low"), files(root, "Train", "Normal")
    Image.new("RGB", (20, 30)).save(low[0])
    shutil.copy(normal[1], low[1])
    low[2].write_bytes(low[2].read_bytes()[:100])
    told = "\n".join(problems(root))
    assert "1 pairs of pictures of other sizes: low00001 (20x30, 32x32)" in told
    assert "1 degraded pictures are their own originals: low00002" in told
    assert "low00003.png" in told and told.count("\n") == 2


def test_a_picture_without_partner_is_a_problem_of_its_split_alone(root: Path) -> None:
    files(root, "Train", "Normal")[0].unlink()
    report = check_set("lol_v2_real", root)
    train, test = report.splits
    assert train.split == "train" and "count mismatch" in train.problems[0] and not test.problems and test.pairs == 2


def test_a_split_that_is_not_there_is_a_note(root: Path) -> None:
    shutil.rmtree(root / "LOLv2" / "Real_captured" / "Train")
    report = check_set("lol_v2_real", root)
    assert report.ok and [s.split for s in report.splits] == ["test"]
    assert "train: not there" in "\n".join(report.lines())
    shutil.rmtree(root / "LOLv2")
    with pytest.raises(FileNotFoundError, match="nothing of LOL-v2-real's train"):
        check_set("lol_v2_real", root)


def test_the_contact_sheet_shows_pairs_of_every_split_and_frames_what_is_damaged(root: Path) -> None:
    report = check_set("lol_v2_real", root)
    sheet = np.asarray(contact_sheet(report.splits, side=64))
    thumbnails = 3 + 2  # columns of train and test, two rows each
    assert sheet.shape[1] == 8 + 3 * 72
    for split, path in (("Train", files(root, "Train", "Normal")[0]), ("Test", files(root, "Test", "Normal")[1])):
        colour = np.asarray(Image.open(path).convert("RGB")).mean((0, 1))
        windows = [
            sheet[y : y + 32, 8 + x * 72 : 40 + x * 72].mean((0, 1)) for y in range(len(sheet) - 32) for x in range(3)
        ]
        assert min(np.abs(window - colour).max() for window in windows) < 1, split
    assert thumbnails == sum(len(split.shown) for split in report.splits)
    for split in ("Train", "Test"):
        for path in files(root, split, "Low"):
            path.write_bytes(b"")
    framed = np.asarray(contact_sheet(report.splits, side=64))
    assert framed.shape == sheet.shape and (framed == (178, 60, 48)).all(2).any()
    with pytest.raises(ValueError, match="no pair to show"):
        contact_sheet([])
