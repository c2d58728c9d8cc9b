"""Every public set, in every layout it is distributed in: made, opened, checked and measured by its own protocol."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from restoration.base_models.interface import SamplerSettings
from restoration.datasets.check import check_set
from restoration.datasets.layouts import Among, Loose, Scenes
from restoration.datasets.make import make_set
from restoration.datasets.matching import DataError
from restoration.datasets.opening import (
    as_markdown,
    locate,
    open_set,
    open_split,
    public_set,
    with_results,
    wrong_set,
)
from restoration.datasets.registry import SETS, SMID_TEST
from restoration.evaluate import evaluate_pairs, evaluate_results, has_scenes, scene_means
from restoration.figures import Row
from restoration.images import ImageError, read_pixels, write_image
from tests.restoration.small_sets import EVERY, SIDE, TEST, TRAIN, photos

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def small_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("sets") / "photos")


def made(small_photos: Path, out: Path, name: str, layout: str | None = None, **changes: int) -> dict[str, int]:
    return make_set(name, small_photos, out, layout=layout, **({"side": SIDE, "train": TRAIN, "test": TEST} | changes))


def opened(name: str, root: Path, split: str):
    """Without what is told of its count."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_set(name, root, split)


@pytest.mark.parametrize(("name", "layout"), EVERY, ids=lambda part: part)
def test_a_stand_in_of_each_set_opens_checks_and_is_measured_by_its_protocol(
    small_photos: Path, tmp_path: Path, name: str, layout: str
) -> None:
    of = SETS[name]
    counts = made(small_photos, tmp_path / "set", name, layout)
    assert counts and (of.has_originals or counts == {"test": TEST})
    report = check_set(name, tmp_path / "set")
    assert report.ok, report.lines()
    found = {split.split: split for split in report.splits}
    assert {split: found[split].pairs for split in counts} == counts
    assert all(split.layout == layout for split in report.splits) or name in ("lol_v2_real", "jnb")
    if not of.has_originals:
        with pytest.raises(DataError, match="without originals.*restorl score"):
            open_set(name, tmp_path / "set", "test")
        return
    for split, count in counts.items():
        data = opened(name, tmp_path / "set", split)
        assert len(data) == count and len({*data.image_ids}) == count
    test = opened(name, tmp_path / "set", "test")
    lq, gt = test.load(test.image_ids[0])
    source = locate(name, tmp_path / "set", "test").source
    native = isinstance(source, Scenes) and source.size_hw is not None
    assert lq.shape == gt.shape == ((3, 512, 960) if native else (3, SIDE, SIDE))
    assert (lq - gt).abs().mean() > 0.01 and not torch.equal(lq, gt)
    assert of.protocol is not None
    rows = evaluate_pairs(None, test, SamplerSettings(), {}, of.protocol, limit=1, inputs_too=False)
    assert [r.image_id for r in rows] == test.image_ids[:1] and not rows[0].missing
    assert 3 < rows[0].values["psnr"] < 60 and -0.1 < rows[0].values["ssim"] < 1


def test_the_protocols_of_the_sets_are_those_of_their_fields() -> None:
    by_protocol: dict[str | None, set[str]] = {}
    for name, of in SETS.items():
        by_protocol.setdefault(of.protocol, set()).add(name)
    assert by_protocol == {
        "lowlight_rgb": {"lol_v1", "lol_v2_real", "lol_v2_synthetic", "sid", "smid", "smid_first30"},
        "derain_y": {"rain13k", "test100", "rain100h", "rain100l", "test2800", "test1200"},
        "gopro_matlab": {"gopro", "hide"},
        "realblur_ecc": {"realblur_j", "realblur_r"},
        "dpdd_float_8": {"dpdd_single"},
        "dpdd_float_16": {"dpdd_dual"},
        None: {"jnb", "no_reference"},
    }


@pytest.mark.parametrize(
    ("name", "counts"),
    {
        "lol_v1": {"train": 485, "test": 15},
        "lol_v2_real": {"train": 689, "test": 100},
        "lol_v2_synthetic": {"train": 900, "test": 100},
        "sid": {"train": 2099, "test": 598},
        "rain13k": {"train": 13_711},
        "test100": {"test": 98},
        "rain100h": {"test": 100},
        "test2800": {"test": 2800},
        "test1200": {"test": 1200},
        "gopro": {"train": 2103, "test": 1111},
        "hide": {"test": 2025},
        "realblur_j": {"train": 3758, "test": 980},
        "dpdd_dual": {"train": 350, "val": 74, "test": 76, "test/indoor": 37, "test/outdoor": 39},
    }.items(),
)
def test_published_counts_are_known(name: str, counts: dict[str, int]) -> None:
    assert {split: SETS[name].published(split) for split in counts} == counts


def test_a_root_may_be_any_of_the_folders_around_a_set_in_any_case(small_photos: Path, tmp_path: Path) -> None:
    made(small_photos, tmp_path / "set", "rain100h")
    for root in ("", "test", "test/Rain100H"):
        assert len(opened("rain100h", tmp_path / "set" / root, "test")) == TEST
    (tmp_path / "set" / "test" / "Rain100H").rename(tmp_path / "set" / "test" / "rain100h")
    assert len(opened("rain100h", tmp_path / "set", "test")) == TEST
    with pytest.raises(FileNotFoundError, match="nothing of Rain100H's train; looked for train/{Rain13K/input,Rain13K"):
        open_set("rain100h", tmp_path / "set" / "test" / "rain100h", "train")  # its test is no training set


def test_another_count_than_published_is_told_with_both(small_photos: Path, tmp_path: Path) -> None:
    made(small_photos, tmp_path / "set", "test100")
    with pytest.warns(UserWarning, match="4 pairs of Test100's test, the published set has 98: figures are not comp"):
        open_set("test100", tmp_path / "set", "test")
    assert any("published set has 98" in line for line in check_set("test100", tmp_path / "set").lines())


def test_a_wrong_or_partial_set_names_what_is_missing(small_photos: Path, tmp_path: Path) -> None:
    made(small_photos, tmp_path / "set", "gopro", "restormer")
    with pytest.raises(FileNotFoundError, match="nothing of LOL-v1's test; looked for LOLv1/{eval15/low,eval15/high}"):
        open_set("lol_v1", tmp_path / "set", "test")
    (tmp_path / "set" / "test" / "GoPro" / "target").rename(tmp_path / "gone")
    with pytest.raises(DataError, match=r"GoPro holds input of GoPro, but not target; get the set again, whole"):
        open_set("gopro", tmp_path / "set", "test")
    report = check_set("gopro", tmp_path / "set")
    assert not report.ok and any("but not target" in line for line in report.lines())
    with pytest.raises(FileNotFoundError, match="no folder; give the one that holds GoPro"):
        open_set("gopro", tmp_path / "nowhere", "test")
    with pytest.raises(ValueError, match=r"no public set named 'Rain-100H'; did you mean rain100h\?"):
        public_set("Rain-100H")
    with pytest.raises(ValueError, match="has no split 'val'; choose one of train, test"):
        open_set("gopro", tmp_path / "set", "val")


def test_scenes_take_the_first_original_and_the_frames_of_the_protocol(small_photos: Path, tmp_path: Path) -> None:
    made(small_photos, tmp_path / "sid", "sid")
    sid = opened("sid", tmp_path / "sid", "test")
    assert sid.image_ids == [f"{s}/{s}_{i:02d}_0.04s" for s in ("10003", "10034") for i in (0, 1)]
    assert {p.gt_path.name for p in sid.pairs} == {"10003_00_10s.npy", "10034_00_10s.npy"}
    assert {p.image_id[:5] for p in opened("sid", tmp_path / "sid", "train").pairs} == {"00001", "20003"}
    assert {p.image_id[:5] for p in opened("sid", tmp_path / "sid", "test/aligned").pairs} == {"10003"}
    made(small_photos, tmp_path / "smid", "smid_first30")
    first = opened("smid_first30", tmp_path / "smid", "test")
    assert [sum(i.startswith(f"{scene}/") for i in first.image_ids) for scene in SMID_TEST[:2]] == [30, 2]
    assert {p.gt_path.name for p in first.pairs} == {"0007_long.npy", "0009_long.npy"}  # not 0007_a_half.npy
    whole = opened("smid", tmp_path / "smid", "test")
    assert len(whole) == 33 and whole.pairs[0].size == (512, 960) != first.pairs[0].size
    assert len(SMID_TEST) == 49


def test_arrays_are_bgr_and_resized_as_opencv_does(small_photos: Path, tmp_path: Path) -> None:
    import cv2

    made(small_photos, tmp_path / "sid", "sid")
    data = opened("sid", tmp_path / "sid", "test")
    pair = data.pairs[0]
    array = np.load(pair.lq_path, allow_pickle=False)
    expected = cv2.resize(array, (960, 512))[..., ::-1].astype(np.float32) / 255
    assert np.array_equal(data.load(pair.image_id)[0].movedim(0, -1).numpy(), expected)


def test_a_scene_without_an_original_is_named(small_photos: Path, tmp_path: Path) -> None:
    made(small_photos, tmp_path / "sid", "sid")
    for file in (tmp_path / "sid" / "SID" / "long_sid2" / "10034").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"1 of 2 scenes can't be used, each of them has no original in .*: 10034"):
        open_set("sid", tmp_path / "sid", "test")
    (tmp_path / "sid" / "SID" / "long_sid2" / "10034").rmdir()
    with pytest.raises(DataError, match="has no original in .*: 10034"):
        open_set("sid", tmp_path / "sid", "test")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((8, 8, 3), np.float32), r"float32 \[8, 8, 3\], where scenes are uint8"),
        (np.full((8, 8, 3), np.nan), r"float64 \[8, 8, 3\], where scenes are uint8.*round\(255 \* x\)"),
        (np.zeros((8, 8), np.uint8), r"uint8 \[8, 8\], where scenes"),
        (np.zeros((0, 8, 3), np.uint8), "array without pixels"),
        (np.array([{"a": 1}], dtype=object), "holds Python objects, which are not read"),
    ],
)
def test_an_array_of_another_kind_is_refused(small_photos: Path, tmp_path: Path, array: np.ndarray, said: str) -> None:
    made(small_photos, tmp_path / "sid", "sid")
    file = tmp_path / "sid" / "SID" / "short_sid2" / "10003" / "10003_00_0.04s.npy"
    np.save(file, array, allow_pickle=True)
    with pytest.raises(ImageError, match=rf"10003_00_0\.04s\.npy: .*{said}"):
        opened("sid", tmp_path / "sid", "test")
    report = check_set("sid", tmp_path / "sid")
    assert not report.ok and any(file.name in line for line in report.lines())


def test_an_array_that_is_cut_off_or_no_array_is_refused(small_photos: Path, tmp_path: Path) -> None:
    made(small_photos, tmp_path / "sid", "sid")
    file = tmp_path / "sid" / "SID" / "short_sid2" / "10003" / "10003_00_0.04s.npy"
    for content in (file.read_bytes()[:500], b"", b"no array"):
        file.write_bytes(content)
        with pytest.raises(ImageError, match=r"10003_00_0\.04s\.npy: can't be read as an array"):
            opened("sid", tmp_path / "sid", "test")


def test_lists_of_scenes_are_held_against_the_published_one(small_photos: Path, tmp_path: Path) -> None:
    made(small_photos, tmp_path / "set", "smid")
    listed = tmp_path / "set" / "SMID" / "test_list.txt"
    assert listed.read_text().split() == list(SMID_TEST)
    listed.write_text("\n".join(SMID_TEST[1:]))
    with pytest.warns(UserWarning, match=r"test_list\.txt lacks 1 scenes.*\(0007\)"):
        test = open_set("smid", tmp_path / "set", "test")
    assert {i[:4] for i in test.image_ids} == {"0009"}
    assert "0007" in {i[:4] for i in opened("smid", tmp_path / "set", "train").image_ids}
    listed.rename(tmp_path / "set" / "SMID" / "SMID_Long_np" / "text_list.txt")  # as Retinexformer's page says
    assert {i[:4] for i in opened("smid", tmp_path / "set", "test").image_ids} == {"0009"}
    (tmp_path / "set" / "SMID" / "SMID_Long_np" / "text_list.txt").unlink()
    assert {i[:4] for i in opened("smid", tmp_path / "set", "test").image_ids} == {"0007", "0009"}
    for text, said in (("0007\n0007\n", "names 0007 twice"), ("\n", "names no scene")):
        listed.write_text(text)
        with pytest.raises(DataError, match=said):
            opened("smid", tmp_path / "set", "test")
    assert Among(SMID_TEST, ()).list_of(tmp_path) == SMID_TEST


def test_lists_of_pairs_name_their_bad_lines_and_lost_ones(small_photos: Path, tmp_path: Path) -> None:
    made(small_photos, tmp_path / "set", "realblur_j")
    listed = tmp_path / "set" / "RealBlur" / "RealBlur_J_test_list.txt"
    lines = listed.read_text().splitlines()
    data = opened("realblur_j", tmp_path / "set", "test")
    assert data.image_ids == ["scene003/blur_1", "scene244/blur_1", "scene003/blur_2", "scene244/blur_2"]
    assert data.pairs[1].lq_path.parts[-3] == "scene244_reflect" and data.pairs[1].gt_path.name == "gt_1.png"
    listed.write_text("\n".join(lines[:-1]))
    with pytest.warns(UserWarning, match=r"lacks 1 pictures of the scenes.*scene244_reflect/blur/blur_2\.png"):
        open_set("realblur_j", tmp_path / "set", "test")
    listed.write_text("\n".join([lines[0], lines[1].split()[0]]))
    with pytest.raises(DataError, match=r"test_list\.txt:2: .* is not the two paths of an original and its degraded"):
        open_set("realblur_j", tmp_path / "set", "test")
    listed.write_text("\n".join([*lines, lines[0].replace("_1.png", "_9.png")]))
    with pytest.raises(DataError, match=r"names 2 files that are not there: .*gt_9\.png"):
        open_set("realblur_j", tmp_path / "set", "test")
    listed.unlink()
    with pytest.raises(DataError, match=r"but not RealBlur_J_test_list\.txt"):
        open_set("realblur_j", tmp_path / "set", "test")


@pytest.mark.parametrize("name", ["dpdd_single", "dpdd_dual"])
def test_dual_pixels_pair_by_order_in_their_depth_and_indoor_by_list(
    small_photos: Path, tmp_path: Path, name: str
) -> None:
    made(small_photos, tmp_path / "set", name)
    data = opened(name, tmp_path / "set", "test")
    pair = data.pairs[0]
    assert pair.lq_path.name == ("1P0A0690_L.png" if name == "dpdd_dual" else "1P0A0690.png")
    assert pair.gt_path.name == "1P0A0691.png"
    lq, gt = data.load(pair.image_id)
    raw = read_pixels(pair.gt_path)
    assert raw.dtype == np.uint16
    if name == "dpdd_dual":
        left, right, original = data.views(pair.image_id)
        assert torch.equal(lq, torch.stack([left, right]).mean(0)) and not torch.equal(left, right)
        assert np.array_equal(original.movedim(0, -1).numpy(), raw.astype(np.float32) / 65535)
    else:
        import cv2

        by_opencv = cv2.imread(str(pair.gt_path))[..., ::-1]  # 8 bits, as the evaluations of single pictures read it
        assert np.array_equal(gt.movedim(0, -1).numpy(), by_opencv.astype(np.float32) / 255)
    indoor, outdoor = (opened(name, tmp_path / "set", f"test/{part}").image_ids for part in ("indoor", "outdoor"))
    assert sorted([*indoor, *outdoor]) == sorted(data.image_ids) and indoor == data.image_ids[:2]


def test_lists_of_indoor_pictures_are_the_users_and_are_checked(small_photos: Path, tmp_path: Path) -> None:
    made(small_photos, tmp_path / "set", "dpdd_single")
    base = tmp_path / "set" / "dd_dp_dataset_canon"
    for places, said in (([0, 1], "from 0 to 1"), ([1, 5], "places from 1 to 4"), ([0.5], "float64")):
        np.save(base / "indoor_labels.npy", np.array(places))
        with pytest.raises(DataError, match=said):
            open_set("dpdd_single", tmp_path / "set", "test/indoor")
    (base / "indoor_labels.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"no list of its indoor pictures.*indoor\.txt with a name a line"):
        open_set("dpdd_single", tmp_path / "set", "test/indoor")
    (base / "indoor.txt").write_text("1P0A0692.png\n")
    assert opened("dpdd_single", tmp_path / "set", "test/indoor").image_ids == ["1P0A0692"]
    (base / "indoor.txt").write_text("1P0A0001.png\n")
    with pytest.raises(DataError, match="names pictures that are not there: 1P0A0001"):
        open_set("dpdd_single", tmp_path / "set", "test/indoor")


def test_files_of_8_bits_in_a_set_of_16_are_refused_and_in_one_that_is_read_as_8_told(
    small_photos: Path, tmp_path: Path
) -> None:
    made(small_photos, tmp_path / "dual", "dpdd_dual", "restormer")
    made(small_photos, tmp_path / "single", "dpdd_single", "restormer")
    for root, part in (("dual", "inputL"), ("single", "inputC")):
        file = next((tmp_path / root / "test" / "DPDD" / part).iterdir())
        Image.fromarray((read_pixels(file) >> 8).astype(np.uint8)).save(file)
    dual = opened("dpdd_dual", tmp_path / "dual", "test")
    with pytest.raises(ImageError, match="8 bits a channel in a set of 16"):
        for image_id in dual.image_ids:
            dual.load(image_id)
    assert any("8 bits a channel in a set of 16" in line for line in check_set("dpdd_dual", tmp_path / "dual").lines())
    report = check_set("dpdd_single", tmp_path / "single")
    assert any("1 of 8 files have 8 bits a channel" in line for line in report.lines())
    assert any("pairs of pictures of other depth" in line for line in report.lines())


def test_left_views_without_as_many_right_ones_are_refused(small_photos: Path, tmp_path: Path) -> None:
    made(small_photos, tmp_path / "set", "dpdd_dual", "restormer")
    next((tmp_path / "set" / "test" / "DPDD" / "inputR").iterdir()).unlink()
    with pytest.raises(DataError, match="hold 4 and 3 pictures, left and right views"):
        open_set("dpdd_dual", tmp_path / "set", "test")


def test_gopro_takes_blur_of_every_sequence_and_never_blur_gamma(small_photos: Path, tmp_path: Path) -> None:
    made(small_photos, tmp_path / "set", "gopro")
    data = opened("gopro", tmp_path / "set", "test")
    assert {i.split("/")[0] for i in data.image_ids} == {"GOPR0372_07_00", "GOPR0384_11_01"}
    assert {p.lq_path.parent.name for p in data.pairs} == {"blur"}


def test_loose_pictures_are_found_below_any_folder(small_photos: Path, tmp_path: Path) -> None:
    made(small_photos, tmp_path / "jnb", "jnb")
    assert [p.name for p in Loose("image").pictures(tmp_path / "jnb" / "JNB")] == [f"{i:04d}.png" for i in range(TEST)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no image"):
        check_set_alone(tmp_path / "empty")


def check_set_alone(folder: Path) -> None:
    report = check_set("no_reference", folder)
    if not report.ok:
        raise DataError("\n".join(report.lines()))


def test_making_a_set_again_changes_nothing_and_refuses_a_folder_of_others(small_photos: Path, tmp_path: Path) -> None:
    first = made(small_photos, tmp_path / "set", "rain100l")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "set").rglob("*.png")}
    assert made(small_photos, tmp_path / "set", "rain100l") == first
    assert {p: p.stat().st_mtime_ns for p in before} == before
    pixels = {p.relative_to(tmp_path / "set"): p.read_bytes() for p in before}
    made(small_photos, tmp_path / "again", "rain100l")
    assert {p: (tmp_path / "again" / p).read_bytes() for p in pixels} == pixels
    made(small_photos, tmp_path / "set", "rain100l", seed=1)
    assert any((tmp_path / "set" / p).read_bytes() != content for p, content in pixels.items())
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["parameters"]["seed"] == 1 and manifest["pairs"] == first
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="not made by this command"):
        made(small_photos, tmp_path / "mine", "rain100l")
    with pytest.raises(ValueError, match="no layout 'lmdb'; choose one of restormer"):
        made(small_photos, tmp_path / "other", "rain100l", "lmdb")
    with pytest.raises(ValueError, match="side=8"):
        made(small_photos, tmp_path / "other", "rain100l", side=8)


def test_without_a_set_any_two_folders_are_opened(small_photos: Path, tmp_path: Path) -> None:
    made(small_photos, tmp_path / "set", "rain100l")
    for name in (None, "paired"):
        assert len(open_split(tmp_path / "set", "test/Rain100L", name=name)) == TEST
    with pytest.warns(UserWarning, match="published set has 100"):
        assert len(open_split(tmp_path / "set", "test", name="rain100l")) == TEST


def test_a_recipes_set_is_held_against_its_other_settings() -> None:
    assert wrong_set(None, "digits", "a", "b") is None and wrong_set("paired", None, "a", "b") is None
    assert wrong_set("lol_v1", None, "train", "test") is None
    for arguments, said in (
        (("lol", None, "train", "test"), "data.set=lol: no public set named 'lol'; did you mean"),
        (("jnb", None, "train", "test"), "a set without originals"),
        (("lol_v1", "digits", "train", "test"), "data.match=digits with data.set=lol_v1"),
        (
            ("lol_v1", None, "train", "eval15"),
            "data.heldout=eval15: lol_v1 has no such split; choose one of train, test",
        ),
    ):
        found = wrong_set(*arguments)  # type: ignore[arg-type]
        assert found is not None and said in found


def test_the_page_has_the_table_of_the_registry() -> None:
    assert as_markdown() in (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["realblur_j", "dpdd_single", "rain100l"])
def test_photographs_with_too_few_tiles_for_a_stand_in_are_one_line(
    small_photos: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(
        DataError, match=r"train has \d+ tiles of 32 px with texture, and \d+ are asked for; ask for fewer"
    ):
        made(small_photos, tmp_path / "set", name, train=500)
    assert not (tmp_path / "set").exists()


def test_means_over_scenes_give_every_scene_the_same_weight() -> None:
    rows = [Row("a/1", {"psnr": 10.0}), Row("a/2", {"psnr": 20.0}), Row("b/1", {"psnr": 30.0})]
    assert scene_means(rows) == {"psnr": 22.5} and has_scenes(rows)
    assert not has_scenes([Row("scene003_1", {"psnr": 1.0})])
    lacking = [*rows, Row("c/1", {"psnr": float("nan")}, {"psnr": "too small"})]
    assert scene_means(lacking) == {"psnr": 22.5}
    with pytest.raises(ValueError, match="no rows"):
        scene_means([])


def test_results_of_others_take_the_place_of_the_inputs_by_their_names(small_photos: Path, tmp_path: Path) -> None:
    made(small_photos, tmp_path / "set", "dpdd_dual")
    data = opened("dpdd_dual", tmp_path / "set", "test")
    results = {i: torch.stack(data.load(i)).mean(0) for i in data.image_ids}
    for image_id, result in results.items():
        write_image(tmp_path / "results" / f"{image_id}.png", result)  # of 8 bits
    measured = with_results(data, tmp_path / "results")
    lq, gt = measured.load("1P0A0690_L")
    assert torch.equal(gt, data.load("1P0A0690_L")[1])
    assert (lq - results["1P0A0690_L"]).abs().max() <= 0.5 / 255 + 1e-6
    rows = evaluate_results(measured, {}, "dpdd_float_16")
    inputs = evaluate_results(data, {}, "dpdd_float_16")
    assert [r.image_id for r in rows] == data.image_ids
    better = [r.values["psnr"] - i.values["psnr"] for r, i in zip(rows, inputs, strict=True)]
    assert better == pytest.approx([20 * np.log10(2)] * 4, abs=0.1)  # half the error
    shutil.copy(tmp_path / "results" / "1P0A0690_L.png", tmp_path / "results" / "1P0A0690_L.PNG")
    with pytest.raises(DataError, match=r"several results of one name \(1P0A0690_L.PNG, 1P0A0690_L.png\)"):
        with_results(data, tmp_path / "results")
    (tmp_path / "results" / "1P0A0690_L.PNG").unlink()
    (tmp_path / "results" / "1P0A0690_L.png").rename(tmp_path / "results" / "0690.png")
    with pytest.raises(
        DataError, match=r"no result of 1 of 4 pictures \(1P0A0690_L\); it holds 4 pictures, such as 0690"
    ):
        with_results(data, tmp_path / "results")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        with_results(data, tmp_path / "nowhere")
