"""Folders that don't form pairs are refused before any work starts; those that do are read as they lie."""

from __future__ import annotations

import copy
import os
import pickle
import unicodedata
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from restoration.datasets import paired, readers
from restoration.datasets.paired import DataError, PairedFolder, crop_pair, discover, random_crop
from restoration.evaluate import blocks
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


@pytest.mark.parametrize("match", ["stem", "digits", "sorted", None])
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


def test_several_versions_of_one_original_pair_by_group(tmp_path):
    for name in ("1_1", "1_2", "1_14", "2_1", "sub/901_3", "0001_0.8_0.2"):
        put(tmp_path / "rainy" / f"{name}.jpg", level=50)
    for name in ("1", "2", "sub/901", "0001"):
        put(tmp_path / "clean" / f"{name}.jpg")
    data = PairedFolder(tmp_path / "rainy", tmp_path / "clean", match="group")
    assert [(p.image_id, p.gt_path.stem) for p in data.pairs] == [
        ("0001_0.8_0.2", "0001"),
        ("1_1", "1"),
        ("1_2", "1"),
        ("1_14", "1"),
        ("2_1", "2"),
        ("sub/901_3", "901"),
    ]
    lq, gt = data.load("1_14")
    assert lq.mean() < gt.mean()
    put(tmp_path / "rainy" / "7_1.jpg")
    put(tmp_path / "clean" / "8.jpg")
    with pytest.raises(DataError, match=r"without GT: 7_1; without LQ: 8 \(matched by group\)"):
        PairedFolder(tmp_path / "rainy", tmp_path / "clean", match="group")


def test_the_longest_original_of_a_group_is_taken(tmp_path):
    for name in ("a_1_2", "a_3"):
        put(tmp_path / "lq" / f"{name}.png")
    for name in ("a", "a_1"):
        put(tmp_path / "gt" / f"{name}.png")
    data = PairedFolder(tmp_path / "lq", tmp_path / "gt", match="group")
    assert [(p.image_id, p.gt_path.stem) for p in data.pairs] == [("a_1_2", "a_1"), ("a_3", "a")]


@pytest.mark.parametrize(
    ("lq", "gt", "said"),
    [
        (("1_1", "1_2"), ("1",), r"group pairs them all: set data\.match=group in the recipe, or --match group"),
        (("low3", "low4"), ("high3", "high4"), r"digits pairs them all: set data\.match=digits"),
        (("P1", "P3"), ("P2", "P4"), r"same order set data\.match=sorted"),
        (("a", "b"), ("a",), r"give each its partner, or move it out"),
    ],
)
def test_an_error_of_stems_names_the_match_that_would_pair_all(tmp_path, lq, gt, said):
    for side, names in (("lq", lq), ("gt", gt)):
        for name in names:
            put(tmp_path / side / f"{name}.png")
    with pytest.raises(DataError, match=rf"\(matched by stem\); .*{said}"):
        PairedFolder(tmp_path / "lq", tmp_path / "gt")


@pytest.mark.parametrize("match", ["stem", "digits", "sorted", "group", None])
def test_composed_and_decomposed_names_pair_under_composed_ids(tmp_path, match):
    names = ("\u00e9t\u00e9/\uac00\u00e9 2", "\u00e9t\u00e9/z\u00e9 10")
    for name in names:
        put(tmp_path / "lq" / f"{unicodedata.normalize('NFD', name)}.png")
        put(tmp_path / "gt" / f"{unicodedata.normalize('NFC', name)}.png")
    data = PairedFolder(tmp_path / "lq", tmp_path / "gt", match=match)
    assert sorted(data.image_ids) == sorted(names)
    assert [p.gt_path.relative_to(tmp_path / "gt").with_suffix("").as_posix() for p in data.pairs] == data.image_ids


def test_two_files_of_one_name_in_two_forms_of_unicode_are_told_so(tmp_path):
    for form in ("NFC", "NFD"):
        put(tmp_path / "lq" / unicodedata.normalize(form, "caf\u00e9.png"))
    put(tmp_path / "gt" / "caf\u00e9.png")
    with pytest.raises(DataError, match="one name in two forms of Unicode"):
        PairedFolder(tmp_path / "lq", tmp_path / "gt")


def test_a_name_of_other_numerals_is_sorted_too(tmp_path):
    for side in ("lq", "gt"):
        for name in ("\u00b2", "a10", "a2"):
            put(tmp_path / side / f"{name}.png")
    assert PairedFolder(tmp_path / "lq", tmp_path / "gt").image_ids == ["a2", "a10", "\u00b2"]


def test_pairs_in_linked_folders_are_not_lost(folders, tmp_path):
    for side, folder in zip(("lq", "gt"), folders, strict=True):
        (tmp_path / side).mkdir()
        for scene in ("scene1", "scene2"):
            (tmp_path / side / scene).symlink_to(folder, target_is_directory=True)
    data = PairedFolder(tmp_path / "lq", tmp_path / "gt")
    assert len(data) == 6 and data.image_ids[:2] == ["scene1/a2", "scene1/a10"]


def test_a_set_that_is_not_checked_opens_and_its_bad_pairs_are_told_on_loading(folders):
    put(folders[1] / "a10.jpg", size=(13, 10))
    (folders[0] / "a2.png").write_bytes(b"")
    data = PairedFolder(*folders, check=False)
    assert len(data) == 3 and data.load("sub/b")[0].shape == (3, 10, 12)
    with pytest.raises(DataError, match=r"a10\.png and .*a10\.jpg differ in size: 12x10 and 13x10"):
        data.load("a10")
    with pytest.raises(ImageError, match=r"a2\.png"):
        data.load("a2")


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
    with pytest.raises(DataError, match=r"several sets \(test/A, test/B\); choose one, such as 'test/B' in place"):
        discover(tmp_path, "test")
    assert discover(tmp_path, "TEST/b").lq == tmp_path / "test" / "B" / "input"
    with pytest.raises(FileNotFoundError, match="no folder 'train'.*for the {input,target} in it give '.'"):
        discover(tmp_path / "test" / "A", "train")
    assert discover(tmp_path / "test" / "A", ".").image_ids == ["1"]


def test_the_sequences_of_gopro_make_one_set_of_which_blur_is_taken(tmp_path):
    for sequence in ("GOPR0372_07_00", "GOPR0384_11_01"):
        for kind, level in (("blur", 10), ("blur_gamma", 20), ("sharp", 30)):
            for frame in ("000047", "000048"):
                put(tmp_path / "train" / sequence / kind / f"{frame}.png", level=level)
    with pytest.warns(UserWarning, match="train holds blur_gamma beside blur, which is the one that is taken"):
        data = discover(tmp_path, "train")
    assert data.image_ids == [f"{s}/{f}" for s in ("GOPR0372_07_00", "GOPR0384_11_01") for f in ("000047", "000048")]
    lq, gt = data.load("GOPR0384_11_01/000048")
    assert lq.max() == 10 / 255 and gt.max() == 30 / 255
    (tmp_path / "train" / "GOPR0384_11_01" / "sharp" / "000048.png").unlink()
    with pytest.warns(UserWarning), pytest.raises(DataError, match=r"without GT: GOPR0384_11_01/000048"):
        discover(tmp_path, "train")


def test_a_sequence_without_originals_is_told(tmp_path):
    for place in ("1/blur", "1/sharp", "2/blur", "2/sharp", "3/blur"):
        put(tmp_path / "train" / place / "a.png")
    with pytest.raises(DataError, match="without GT: 3/a"):
        discover(tmp_path, "train")


def test_reds_and_realblur_and_rain1400_are_opened_as_they_lie(tmp_path):
    for kind in ("blur", "sharp"):
        put(tmp_path / "reds" / "train" / f"train_{kind}" / "000" / "00000001.png")
    for name in ("blur", "gt"):
        for scene in ("scene001", "scene002"):
            put(tmp_path / "real" / "train" / scene / name / f"{name}_1.png")
    for name in ("rainy_image/1_1", "rainy_image/1_2", "ground_truth/1"):
        put(tmp_path / "ddn" / "train" / f"{name}.jpg")
    assert discover(tmp_path / "reds", "train").image_ids == ["000/00000001"]
    assert discover(tmp_path / "real", "train").image_ids == ["scene001/blur_1", "scene002/blur_1"]
    ddn = discover(tmp_path / "ddn", "train")
    assert ddn.image_ids == ["1_1", "1_2"] and ddn.match == "group"


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
    read = readers.read_pixels
    monkeypatch.setattr(readers, "read_pixels", lambda path: reads.append(path) or read(path))
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


def test_a_large_set_opens_by_its_listing_and_a_bounded_number_of_headers(tmp_path, monkeypatch):
    for side, level in (("input", 50), ("target", 200)):
        put(tmp_path / "train" / side / "0000.png", level=level)
        for i in range(1, 300):
            os.link(tmp_path / "train" / side / "0000.png", tmp_path / "train" / side / f"{i:04d}.png")
    put(tmp_path / "small.png", size=(5, 5))
    (tmp_path / "small.png").replace(tmp_path / "train" / "target" / "0001.png")
    (tmp_path / "train" / "input" / "0002.png").unlink()
    (tmp_path / "train" / "input" / "0002.png").write_bytes(b"")
    calls = Counter()

    def counted(module, name):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: calls.update([name]) or real(*a, **k))

    counted(readers, "image_size")
    counted(readers, "check_whole")
    counted(os, "stat")
    counted(os, "scandir")
    monkeypatch.setattr(paired, "HEADERS", 10)
    data = discover(tmp_path, "train")
    assert len(data) == 300 and len(data.known_sizes) == 10 and set(data.known_sizes) == {(10, 12)}
    assert calls["image_size"] == calls["check_whole"] == 20 and calls["scandir"] == 2
    assert calls["stat"] < 150, calls  # of folders and opened files, not of each picture
    assert data.pair("0003").size == (10, 12) and data.pairs[3].known_size is None
    data.require_side(10)
    with pytest.raises(DataError, match="differ in size: 12x10 and 5x5"):
        data.load("0001")
    with pytest.raises(ImageError, match="0 bytes"):
        _ = data.pair("0002").size
    moved = copy.deepcopy(data)
    assert moved.pairs == data.pairs and moved.known_sizes == data.known_sizes


def test_sizes_that_are_read_once_go_with_the_set_to_every_process(folders, monkeypatch):
    monkeypatch.setattr(paired, "HEADERS", 1)
    read = Counter()
    real = readers.image_size
    monkeypatch.setattr(readers, "image_size", lambda path: read.update([path.name]) or real(path))
    data = PairedFolder(*folders)
    assert len(data.known_sizes) == 1 and read.total() == 2
    data.read_sizes()
    assert len(data.known_sizes) == 3 and read.total() == 6 and data.pair("a10").known_size == (10, 12)
    for there in (data, pickle.loads(pickle.dumps(data))):
        assert blocks(there) == [["a2", "a10", "sub/b"]]
    assert read.total() == 6
    put(folders[1] / "a10.jpg", size=(5, 5))
    with pytest.raises(DataError, match="size mismatch in 1 pairs"):
        PairedFolder(*folders).read_sizes()


def test_pairs_that_were_found_already_are_held_to_the_same_rules(folders):
    pairs = PairedFolder(*folders).pairs
    assert PairedFolder.of_pairs(*folders, "stem", pairs).image_ids == ["a2", "a10", "sub/b"]
    with pytest.raises(DataError, match="holds no pair"):
        PairedFolder.of_pairs(*folders, "stem", [])
    with pytest.raises(DataError, match=r"1 pictures are there twice \(a2\)"):
        PairedFolder.of_pairs(*folders, "stem", [*pairs, pairs[0]])
