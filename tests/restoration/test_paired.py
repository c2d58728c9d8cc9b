"""Folders that don't form pairs are refused before any work starts; those that do are read as they lie."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from restoration.datasets import paired
from restoration.datasets.paired import DataError, PairedFolder, crop_pair, discover, random_crop
from restoration.images import ImageError


def put(path, size=(12, 10), level=100, mode="RGB"):
    """Write an image of (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level if mode == "L" else (level,) * len(mode)).save(path)


@pytest.fixture
def folders(tmp_path):
    for name in ("a2", "a10", "sub/b"):
        put(tmp_path / "input" / f"{name}.png", level=50)
        put(tmp_path / "target" / f"{name}.jpg", level=200)
    return tmp_path / "input", tmp_path / "target"


def test_equal_stems_pair_across_suffixes_and_depth_in_natural_order(folders):
    data = PairedFolder(*folders)
    assert data.image_ids == ["a2", "a10", "sub/b"] and len(data) == 3
    lq, gt = data.load("sub/b")
    assert lq.shape == gt.shape == (3, 10, 12) and lq.dtype == torch.float32
    assert lq.mean().item() == pytest.approx(50 / 255, abs=0.01)
    assert gt.mean().item() == pytest.approx(200 / 255, abs=0.01)
    assert data.pairs[0].size == (10, 12)
    with pytest.raises(KeyError, match="no image 'zz'"):
        data.load("zz")


def test_an_empty_or_missing_folder_is_refused_by_name(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no image"):
        PairedFolder(tmp_path / "empty", folders[1])
    with pytest.raises(DataError, match="empty holds no image"):
        PairedFolder(folders[0], tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="gone"):
        PairedFolder(folders[0], tmp_path / "gone")


@pytest.mark.parametrize("match", ["stem", "digits", "sorted"])
def test_a_count_mismatch_is_refused_with_both_counts(folders, match):
    (folders[0] / "sub" / "b.png").rename(folders[0] / "b7.png")
    (folders[1] / "sub" / "b.jpg").unlink()
    with pytest.raises(DataError, match="count mismatch.*3 images.*2"):
        PairedFolder(*folders, match=match)


def test_unmatched_stems_are_listed(folders):
    (folders[1] / "a2.jpg").rename(folders[1] / "other.jpg")
    with pytest.raises(DataError, match="without GT: a2; without LQ: other"):
        PairedFolder(*folders)


def test_only_the_first_unmatched_stems_are_listed(tmp_path):
    for i in range(9):
        put(tmp_path / "input" / f"x{i}.png")
        put(tmp_path / "target" / f"y{i}.png")
    with pytest.raises(DataError, match="x4 and 4 more.*y4 and 4 more"):
        PairedFolder(tmp_path / "input", tmp_path / "target")


def test_a_size_mismatch_names_both_sizes(folders):
    put(folders[1] / "a10.jpg", size=(13, 10))
    with pytest.raises(DataError, match=r"1 pairs.*a10 \(LQ 12x10, GT 13x10\)"):
        PairedFolder(*folders)


def test_an_unreadable_header_or_a_missing_end_is_found_at_construction_and_a_damaged_body_at_load(folders):
    path = folders[0] / "a2.png"
    noise = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    with pytest.raises(ImageError, match=r"a2\.png: the file is cut off"):
        PairedFolder(*folders)
    path.write_bytes(whole[:200] + bytes(9) + whole[209:])
    data = PairedFolder(*folders)
    with pytest.raises(ImageError, match=r"a2\.png"):
        data.load("a2")
    path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"a2\.png.*0 bytes"):
        PairedFolder(*folders)


def test_two_files_of_one_stem_are_refused(folders):
    put(folders[0] / "a2.bmp")
    with pytest.raises(DataError, match="same stem"):
        PairedFolder(*folders)


def test_grey_and_alpha_files_pair_with_colour(folders):
    put(folders[0] / "a2.png", mode="L")
    put(folders[0] / "a10.png", mode="RGBA", level=255)
    data = PairedFolder(*folders)
    assert all(data.load(i)[0].shape == (3, 10, 12) for i in ("a2", "a10"))


def test_digits_pair_files_of_other_prefixes(tmp_path):
    for i in (690, 7):
        put(tmp_path / "Low" / f"low{i:05d}.png", level=i % 256)
        put(tmp_path / "Normal" / f"normal{i:05d}.png")
    data = PairedFolder(tmp_path / "Low", tmp_path / "Normal", match="digits")
    assert [(p.lq_path.name, p.gt_path.name) for p in data.pairs] == [
        ("low00007.png", "normal00007.png"),
        ("low00690.png", "normal00690.png"),
    ]
    put(tmp_path / "Low" / "dark.png")
    with pytest.raises(DataError, match=r"dark\.png has no number"):
        PairedFolder(tmp_path / "Low", tmp_path / "Normal", match="digits")


def test_sorted_pairs_by_natural_order(tmp_path):
    for source, target in ((9, 8), (10, 12)):
        put(tmp_path / "source" / f"P{source}.png")
        put(tmp_path / "target" / f"P{target}.png")
    data = PairedFolder(tmp_path / "source", tmp_path / "target", match="sorted")
    assert [(p.image_id, p.gt_path.stem) for p in data.pairs] == [("P9", "P8"), ("P10", "P12")]


def test_another_count_than_published_warns(folders):
    with pytest.warns(UserWarning, match="3 pairs, the published set 100"):
        PairedFolder(*folders, expected_count=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PairedFolder(*folders, expected_count=3)


def test_discover_finds_the_layouts_of_public_sets(tmp_path):
    put(tmp_path / "rain" / "test" / "input" / "1.png")
    put(tmp_path / "rain" / "test" / "target" / "1.png")
    put(tmp_path / "lol" / "Test" / "Low" / "low3.png")
    put(tmp_path / "lol" / "Test" / "Normal" / "normal3.png")
    put(tmp_path / "named" / "test" / "Rain100L" / "input" / "1.png")
    put(tmp_path / "named" / "test" / "Rain100L" / "target" / "1.png")
    assert discover(tmp_path / "rain", "test").image_ids == ["1"]
    assert discover(tmp_path / "lol", "test").image_ids == ["low3"]
    assert discover(tmp_path / "named", "test").lq.parent.name == "Rain100L"


def test_discover_says_what_is_missing_or_ambiguous(tmp_path):
    put(tmp_path / "test" / "A" / "input" / "1.png")
    with pytest.raises(FileNotFoundError, match="no folder 'train'; it holds test"):
        discover(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="input,target.*Low,Normal"):
        discover(tmp_path, "test")
    put(tmp_path / "test" / "A" / "target" / "1.png")
    for side in ("input", "target"):
        put(tmp_path / "test" / "B" / side / "1.png")
    with pytest.raises(DataError, match="several sets"):
        discover(tmp_path, "test")


def test_discover_reports_a_missing_file_among_numbered_stems_instead_of_guessing(tmp_path):
    for name in ("rain_1", "rain_2"):
        put(tmp_path / "test" / "input" / f"{name}.png")
    put(tmp_path / "test" / "target" / "rain_1.png")
    with pytest.raises(DataError, match=r"without GT: rain_2 \(matched by stem\)"):
        discover(tmp_path, "test")


def test_crops_are_equal_in_both_images_and_flip_mirrors():
    image = torch.arange(3 * 6 * 8, dtype=torch.float32).view(3, 6, 8)
    lq, gt = crop_pair(image, image + 1, (1, 2, 4, 5), flip=False)
    assert torch.equal(lq, image[:, 1:5, 2:7]) and torch.equal(gt, lq + 1)
    flipped, _ = crop_pair(image, image, (1, 2, 4, 5), flip=True)
    assert torch.equal(flipped, lq.flip(-1))
    for crop in ((3, 0, 4, 4), (0, -1, 4, 4), (0, 0, 0, 4)):
        with pytest.raises(ValueError, match="leaves the image of 8x6"):
            crop_pair(image, image, crop, flip=False)


def test_random_crops_are_seeded_and_reach_every_place():
    def draw(seed):
        rng = np.random.default_rng(seed)
        return [random_crop((5, 7), 4, rng) for _ in range(200)]

    assert draw(1) == draw(1) != draw(2)
    assert {c[:2] for c in draw(1)} == {(y, x) for y in range(2) for x in range(4)}
    with pytest.raises(ValueError, match="crop of 6 px.*7x5"):
        random_crop((5, 7), 6, np.random.default_rng(0))


def test_images_smaller_than_the_crop_are_found_before_work_starts(folders):
    PairedFolder(*folders).require_side(10)
    with pytest.raises(DataError, match=r"3 of 3 images.*crop of 11 px: a2 \(12x10\)"):
        PairedFolder(*folders).require_side(11)


def test_the_cache_saves_decoding_up_to_its_bytes(folders, monkeypatch):
    reads = []
    read = paired.read_pixels
    monkeypatch.setattr(paired, "read_pixels", lambda path: reads.append(path) or read(path))
    data = PairedFolder(*folders, cache_bytes=2 * 12 * 10 * 3)
    first, again = data.load("a2"), data.load("a2")
    assert len(reads) == 2 and torch.equal(first[0], again[0])
    data.load("a10")
    data.load("a2")
    assert len(reads) == 6 and data._cache.held <= data._cache.limit
    again[0].zero_()
    assert torch.equal(data.load("a2")[0], first[0])


def test_a_set_travels_to_another_process(folders):
    data = PairedFolder(*folders)
    data.load("a2")
    moved = copy.deepcopy(data)
    assert moved.pairs == data.pairs and moved._cache.held == 0
    assert torch.equal(moved.load("a2")[0], data.load("a2")[0])
