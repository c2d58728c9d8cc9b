"""Figures of sets, places in a column, which pictures are shown: without the command line."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from cluster.compare.columns import Column, places
from cluster.compare.measured import Comparison, Measured, Method, Whole, measure_all
from cluster.compare.opening import Originals, named, open_methods
from cluster.compare.pictures import Crop, shown_crops, strips, where_methods_differ
from restoration.datasets.results import pair_results
from restoration.figures import Row
from restoration.metrics.fid import Fid
from restoration.metrics.perceptual import Lite0Metrics
from restoration.metrics.published import Published
from tests.cluster.compare.folders import BAD, GOOD, GREYS, grey, greys, textured, write
from tests.restoration.test_published import Means


def methods(root: Path, *names: str, gt: Path) -> list[Method]:
    return open_methods(named([str(root / name) for name in names]), Originals(gt))


def without_weights(kinds: tuple[str, ...] = ("clean",)) -> Published:
    """FID whose network takes the mean levels of a picture's quarters."""
    published = Published(None, None)
    published.fid = [Fid(Path("/nowhere"), kind, Means()) for kind in kinds]
    return published


def test_fid_is_told_with_its_number_of_pictures_and_with_what_too_few_of_them_mean(tmp_path: Path) -> None:
    gt = greys(tmp_path / "gt")
    greys(tmp_path / "good", GOOD), greys(tmp_path / "bad", BAD)
    found = measure_all(methods(tmp_path, "good", "bad", gt=gt), ["lowlight_rgb"], {}, without_weights)
    # All features of both sides have one variance, so that the distance is that of the means: 4 quarters of 3 colours.
    for measured, off in zip(found.measured, (GOOD, BAD), strict=True):
        assert measured.whole["fid"].value == pytest.approx(12 * (2 * off / 255) ** 2, rel=5e-3)
        assert measured.whole["fid"].count == 6
    assert found.notes() == ["FID of n=6, below its 2048 features: compare at equal n only"] and not found.problems()
    assert [c.key for c in found.columns] == ["psnr", "ssim", "fid"]


def test_of_one_picture_there_is_no_fid_and_the_reason_is_told(tmp_path: Path) -> None:
    gt = greys(tmp_path / "gt", only=["00690"])
    greys(tmp_path / "good", GOOD, ["00690"]), greys(tmp_path / "bad", BAD, ["00690"])
    found = measure_all(methods(tmp_path, "good", "bad", gt=gt), ["lowlight_rgb"], {}, without_weights)
    assert math.isnan(found.value(found.measured[0], Column("fid")))
    assert found.problems() == [f"{n}: no fid: a covariance takes at least two pictures" for n in ("good", "bad")]


def test_fids_of_other_numbers_of_pictures_are_told_not_to_compare(tmp_path: Path) -> None:
    gt = greys(tmp_path / "gt")
    greys(tmp_path / "good", GOOD)
    (greys(tmp_path / "bad", BAD) / "00690.png").write_bytes(b"no picture")
    found = measure_all(methods(tmp_path, "good", "bad", gt=gt), ["lowlight_rgb"], {}, without_weights)
    assert "fid is of other numbers of pictures (good 6, bad 5) and does not compare" in found.problems()


def test_originals_are_scored_once_and_again_only_where_a_method_had_no_picture(tmp_path: Path) -> None:
    gt = greys(tmp_path / "gt")
    (greys(tmp_path / "first", GOOD) / "00690.png").write_bytes(b"no picture")
    greys(tmp_path / "second", BAD)
    seen: list[int] = []

    def score(images: np.ndarray) -> np.ndarray:
        seen.append(int(images[0, 0, 0, 0]))
        return images.mean((1, 2, 3)).astype(np.float32)

    found = measure_all(
        methods(tmp_path, "first", "second", gt=gt), ["lowlight_rgb"], {"level": score}, lambda: Published(None, None)
    )
    originals = [level for level in seen if level in GREYS.values() and level not in {g + GOOD for g in GREYS.values()}]
    assert sorted(originals) == sorted(GREYS.values())
    assert found.measured[1].column("gt_level") == {i: float(level) for i, level in GREYS.items()}
    _, truth = found.scores("level")
    assert truth == [float(level) for level in list(GREYS.values())[1:]]


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("psnr", [20.0, 22.0, 21.0], ["", "best", "second"]),
        ("psnr", [20.001, 20.004, 19.0], ["best", "best", "second"]),  # equal as far as the table shows
        ("lpips_vgg", [0.3, 0.1, 0.2], ["", "best", "second"]),
        ("fid_patch256", [math.nan, 60.0, 50.0], ["", "second", "best"]),
        ("psnr@derain_y", [math.nan, 20.0, math.nan], ["", "", ""]),
        ("piqe", [1.0, 1.0], ["", ""]),
    ],
)
def test_places_go_to_the_best_and_the_second_as_far_as_the_digits_shown(
    key: str, values: list[float], expected: list[str]
) -> None:
    assert places(values, Column(key)) == expected


def test_columns_are_called_and_rounded_as_in_papers() -> None:
    told = {key: (Column(key).label, Column(key).lower, Column(key).text(0.123456)) for key in (
        "psnr", "ssim@derain_y", "lpips", "lpips_vgg", "dists", "fid", "fid_patch256", "deqa", "aligned"
    )}  # fmt: skip
    assert told == {
        "psnr": ("PSNR", False, "0.12"),
        "ssim@derain_y": ("SSIM (derain_y)", False, "0.123"),
        "lpips": ("LPIPS", True, "0.1235"),
        "lpips_vgg": ("LPIPS_vgg", True, "0.1235"),
        "dists": ("DISTS", True, "0.1235"),
        "fid": ("FID", True, "0.12"),
        "fid_patch256": ("FID_patch256", True, "0.12"),
        "deqa": ("deqa", False, "0.123"),
        "aligned": ("aligned", False, "0.123"),
    }
    assert Column("fid").text(math.nan) == "-"


def test_a_folder_is_called_by_what_tells_it_from_the_others() -> None:
    given = ["runs/a/test", "runs/b/test", "others/restormer", "mine=x/y"]
    assert [n.name for n in named(given)] == ["a/test", "b/test", "restormer", "mine"]
    assert [n.name for n in named(["runs/a/test", "runs/b/test"])] == ["a", "b"]
    with pytest.raises(ValueError, match="two folders are called 'test'"):
        named(["runs/a/test", "runs/a/test"])


def test_the_pictures_and_places_shown_are_those_where_methods_differ_most(tmp_path: Path) -> None:
    truth = {f"{i}": textured(i, (64, 80)) for i in range(4)}
    first = {i: x.copy() for i, x in truth.items()}
    second = {i: x.copy() for i, x in truth.items()}
    first["0"][:] = second["0"][:] = 0  # both far off, and equal
    second["2"][40:56, 8:24] ^= 127
    first["3"][4:20, 60:76] ^= 15
    gt = write(tmp_path / "gt", truth)
    write(tmp_path / "first", first), write(tmp_path / "second", second)
    found = measure_all(
        methods(tmp_path, "first", "second", gt=gt), ["lowlight_rgb"], {}, lambda: Published(None, None)
    )
    crops = shown_crops(found, 2, [])
    assert [crop.image_id for crop in crops] == ["2", "3"]
    drawn = strips(found, [*crops, Crop.parse("1:10,20,30,40")])
    assert [strip.box for strip in drawn] == [(40, 8, 16, 16), (4, 60, 16, 16), (20, 10, 40, 30)]
    assert drawn[0].labels == ("first", "second", "ground truth") and drawn[0].captions[0] == "100.00 dB"
    assert [crop.image_id for crop in shown_crops(found, 2, [Crop("1")])] == ["1", "2"]
    assert where_methods_differ([truth["1"]] * 3, truth["1"]) == (24, 32, 16, 16)  # the middle, where none does


def test_a_picture_that_a_method_lacks_is_not_shown(tmp_path: Path) -> None:
    gt = greys(tmp_path / "gt", only=["00690", "00691"])
    (greys(tmp_path / "a", GOOD, ["00690", "00691"]) / "00690.png").write_bytes(b"no picture")
    greys(tmp_path / "b", BAD, ["00690", "00691"])
    found = measure_all(methods(tmp_path, "a", "b", gt=gt), ["lowlight_rgb"], {}, lambda: Published(None, None))
    assert [crop.image_id for crop in shown_crops(found, 4, [Crop("00690")])] == ["00691"]


def test_three_methods_are_held_against_each_other_in_all_pairs(tmp_path: Path) -> None:
    gt = greys(tmp_path / "gt")
    for name, off in (("a", 2), ("b", 4), ("c", 8)):
        greys(tmp_path / name, off)
    found = measure_all(methods(tmp_path, "a", "b", "c", gt=gt), ["lowlight_rgb"], {}, lambda: Published(None, None))
    pairs = {(d.first, d.second): d.paired for d in found.differences() if d.key == "psnr"}
    assert list(pairs) == [("a", "b"), ("a", "c"), ("b", "c")]
    means = [paired.difference.mean for paired in pairs.values() if paired is not None]
    assert means == pytest.approx([20 * np.log10(ratio) for ratio in (2, 4, 2)])


def test_means_are_over_the_pictures_that_every_method_has(tmp_path: Path) -> None:
    gt = greys(tmp_path / "gt", only=["00690", "00691"])
    greys(tmp_path / "a", only=["00690", "00691"])
    (a,) = methods(tmp_path, "a", gt=gt)
    rows = [
        (Row("1", {"psnr": 10.0}), Row("2", {"psnr": 30.0})),
        (Row("1", {"psnr": math.nan}), Row("2", {"psnr": 20.0})),
    ]
    whole = {"fid": Whole(1.0, 2)}
    found = Comparison(
        ("lowlight_rgb",), tuple(Measured(Method(n, a.data), r, whole) for n, r in zip("ab", rows, strict=True))
    )
    assert [found.value(m, Column("psnr")) for m in found.measured] == [30.0, 20.0]
    assert found.count(Column("psnr")) == 1 and found.differences()[0].paired is None


def test_pictures_of_other_names_in_two_folders_of_results_are_refused(tmp_path: Path) -> None:
    gt = greys(tmp_path / "gt", only=["00690", "00691"])
    # Two results of each original, under names that differ between the methods.
    for name, marks in (("a", "12"), ("b", "13")):
        write(tmp_path / name, {f"{i}_{mark}": grey(9) for i in ("00690", "00691") for mark in marks})
    with pytest.raises(
        ValueError, match=r"results of other pictures: only .*a has 00690_2, 00691_2; only .*b has 00690_3"
    ):
        methods(tmp_path, "a", "b", gt=gt)


def test_offline_stand_ins_stand_under_their_own_names_with_less_being_better(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = {f"{i}": textured(i, (64, 64)) for i in range(8)}
    gt = write(tmp_path / "gt", truth)
    for name, sigma in (("near", 5), ("far", 40)):
        noisy = {i: np.clip(x + rng.normal(0, sigma, x.shape), 0, 255).astype(np.uint8) for i, x in truth.items()}
        write(tmp_path / name, noisy)
    opened = methods(tmp_path, "near", "far", gt=gt)
    found = measure_all(opened, ["lowlight_rgb"], {}, lambda: Published(None, None), offline=Lite0Metrics)
    assert [c.key for c in found.columns] == ["psnr", "ssim", "lite0_distance", "lite0_frechet"]
    for column in found.columns[2:]:
        near, far = (found.value(m, column) for m in found.measured)
        assert 0 < near < far and column.lower and column.label == column.key
    assert {d.key for d in found.differences()} == {"psnr", "ssim", "lite0_distance"}
    one = {"0": truth["0"]}
    single = pair_results(write(tmp_path / "one", one), write(tmp_path / "its", one))
    few = measure_all(
        [Method("near", single)], ["lowlight_rgb"], {}, lambda: Published(None, None), offline=Lite0Metrics
    )
    assert few.problems() == ["near: no lite0_frechet: 16 vectors of 112 channels; add more or larger images"]
