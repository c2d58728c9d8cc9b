"""Evaluation gives one row an image, independent of batching; what can't be had is missing with its reason."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from restoration.base_models.interface import SamplerSettings
from restoration.datasets.paired import PairedFolder
from restoration.evaluate import (
    Row,
    blocks,
    counts,
    evaluate_folders,
    evaluate_pairs,
    evenly,
    mean_values,
    read_csv,
    write_csv,
)
from restoration.metrics import measure
from restoration.tiling import Tiling
from tests.restoration.tiny_model import TinyModel

SAMPLER = SamplerSettings(steps=3)
COLUMNS = ["psnr", "ssim", "light", "input_psnr", "input_ssim", "input_light", "gt_light"]


def light(images):
    assert images.dtype == np.uint8 and images.ndim == 4
    return images.mean((1, 2, 3)).astype(np.float32)


@pytest.fixture
def pairs(tmp_path):
    rng = np.random.default_rng(0)
    for i, size in enumerate([(24, 32), (16, 16), (24, 32), (24, 32), (19, 21)]):
        gt = np.full((*size, 3), 60 + 40 * i, np.uint8)
        lq = np.clip(gt + rng.normal(0, 20, gt.shape), 0, 255).astype(np.uint8)
        for side, pixels in (("input", lq), ("target", gt)):
            (tmp_path / side).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / side / f"{i}.png")
    return PairedFolder(tmp_path / "input", tmp_path / "target")


def test_rows_hold_result_input_and_gt_in_the_order_of_the_pairs(pairs):
    images = {}
    rows = evaluate_pairs(
        TinyModel(), pairs, SAMPLER, {"light": light}, on_image=lambda name, *three: images.update({name: three})
    )
    assert [r.image_id for r in rows] == ["0", "1", "2", "3", "4"]
    for row in rows:
        lq, restored, gt = images[row.image_id]
        assert list(row.values) == COLUMNS
        assert {k: row.values[k] for k in ("psnr", "ssim")} == pytest.approx(measure("lowlight_rgb", restored, gt))
        assert row.values["input_psnr"] == pytest.approx(measure("lowlight_rgb", lq, gt)["psnr"])
        assert row.values["psnr"] > row.values["input_psnr"] + 3  # means of 4 x 4 remove noise
        assert row.values["gt_light"] == pytest.approx(gt.mean())
        assert restored.shape == gt.shape


def test_batching_and_order_do_not_change_the_figures(pairs):
    model = TinyModel(noise=0.05)
    whole, single = (evaluate_pairs(model, pairs, SAMPLER, {"light": light}, batch=b) for b in (8, 1))
    for a, b in zip(whole, single, strict=True):
        assert a.values == pytest.approx(b.values, rel=1e-3)
    other = evaluate_pairs(model, pairs, SAMPLER, {"light": light}, seed=1)
    assert all(a.values["psnr"] != b.values["psnr"] for a, b in zip(whole, other, strict=True))


def test_without_a_model_the_input_is_the_result(pairs):
    for row in evaluate_pairs(None, pairs, SAMPLER, {"light": light}, "derain_y"):
        assert all(row.values[k] == row.values[f"input_{k}"] for k in ("psnr", "ssim", "light"))


def test_figures_that_no_model_changes_are_taken_over(pairs):
    scored = []

    def counting(images):
        scored.append(len(images))
        return light(images)

    base = evaluate_pairs(TinyModel(), pairs, SAMPLER, {"light": counting})
    assert sum(scored) == 15
    tuned = evaluate_pairs(TinyModel(gain=0.9), pairs, SAMPLER, {"light": counting}, known=base)
    assert sum(scored) == 20
    for a, b in zip(base, tuned, strict=True):
        assert a.values["psnr"] != b.values["psnr"]
        assert all(a.values[k] == b.values[k] for k in COLUMNS[3:])


def test_a_score_that_is_not_finite_is_missing_with_its_reason_and_costs_no_other_figure(pairs):
    def bad(images):
        return np.array([np.nan if image.mean() > 200 else np.inf if image.mean() < 70 else 1.0 for image in images])

    rows = evaluate_pairs(TinyModel(), pairs, SAMPLER, {"bad": bad, "light": light})
    for row in rows:
        wanted = {"0": "inf", "4": "nan"}.get(row.image_id)
        assert math.isnan(row.values["bad"]) is (wanted is not None)
        names = ("bad", "input_bad", "gt_bad") if wanted else ()
        assert row.missing == {name: f"a value that is not finite ({wanted})" for name in names}
        assert all(math.isfinite(row.values[name]) for name in COLUMNS)
    assert mean_values(rows)["bad"] == 1 and counts(rows)["bad"] == 3 and counts(rows)["light"] == 5


def test_a_scorer_of_another_number_of_values_is_refused_by_name(pairs):
    with pytest.raises(TypeError, match="scorer bad gave values of shape"):
        evaluate_pairs(TinyModel(), pairs, SAMPLER, {"bad": lambda images: np.zeros(1 + len(images))})


def picky(images):
    if min(images.shape[1:3]) < 17:
        raise ValueError("sides of 17 at least")
    return light(images)


@pytest.fixture
def small(pairs):
    """The pairs, and one of 8 x 8 pixels."""
    for folder in (pairs.lq, pairs.gt):
        Image.new("RGB", (8, 8), (90,) * 3).save(folder / "small.png")
    return PairedFolder(pairs.lq, pairs.gt)


def test_a_picture_too_small_for_a_figure_lacks_that_figure_only_and_the_means_leave_it_out(small, tmp_path):
    rows = evaluate_pairs(TinyModel(), small, SAMPLER, {"picky": picky})
    *whole, last = rows
    assert last.image_id == "small" and math.isfinite(last.values["psnr"])
    assert last.missing["ssim"] == "SSIM needs images of at least 11 px a side, got 8x8 (width x height)"
    assert last.missing["picky"] == last.missing["gt_picky"] == "sides of 17 at least"
    assert {r.image_id for r in rows if "picky" in r.missing} == {"1", "small"}
    assert mean_values(rows)["ssim"] == pytest.approx(np.mean([r.values["ssim"] for r in whole]))
    assert counts(rows) == {k: 5 if "ssim" in k else 4 if "picky" in k else 6 for k in rows[0].values}
    write_csv(tmp_path / "a.csv", rows)
    read = read_csv(tmp_path / "a.csv")
    assert [r.missing for r in read] == [r.missing for r in rows]
    for a, b in zip(read, rows, strict=True):
        assert a.values == pytest.approx(b.values, nan_ok=True, abs=0)
    head, *_, line = (tmp_path / "a.csv").read_text().splitlines()
    assert head.endswith(",missing") and ",," in line and "nan" not in line and "SSIM needs" in line


def test_missing_figures_that_no_model_changes_are_taken_over_with_their_reasons(small):
    base = evaluate_pairs(TinyModel(), small, SAMPLER, {"picky": picky})
    tuned = evaluate_pairs(TinyModel(gain=0.9), small, SAMPLER, {"picky": light}, known=base)
    assert tuned[-1].missing == {k: v for k, v in base[-1].missing.items() if k != "picky"}
    assert "ssim" in tuned[-1].missing and math.isfinite(tuned[-1].values["picky"])


def test_of_a_picture_that_failed_nothing_is_taken_over(pairs):
    base = evaluate_pairs(Failing(), pairs, SAMPLER, {"light": light}, tolerant=True)
    assert base[2].missing.keys() == {"picture"} and math.isnan(base[2].values["gt_light"])
    tuned = evaluate_pairs(TinyModel(), pairs, SAMPLER, {"light": light}, known=base)
    assert not tuned[2].missing and all(math.isfinite(v) for v in tuned[2].values.values())


def test_a_scorer_that_fails_on_one_picture_of_a_block_costs_only_that_one(pairs):
    def moody(images):
        if any(image.mean() > 150 for image in images):
            raise ValueError("too bright")
        return light(images)

    rows = evaluate_pairs(None, pairs, SAMPLER, {"moody": moody}, batch=8)
    assert [r.image_id for r in rows if "moody" in r.missing] == ["3", "4"]


class Failing(TinyModel):
    """Fails on any block that has a picture called "2"."""

    def condition(self, lq, image_ids=()):
        if "2" in image_ids:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return super().condition(lq, image_ids)


def test_tolerant_evaluation_gives_pictures_that_fail_a_row_of_their_reason_and_goes_on(pairs):
    (pairs.lq / "1.png").write_bytes((pairs.lq / "1.png").read_bytes()[:60])
    made, seen = [], []
    rows = evaluate_pairs(
        Failing(), pairs, SAMPLER, {"light": light}, tolerant=True,
        on_row=made.append, on_image=lambda name, *_: seen.append(name),
    )  # fmt: skip
    assert [r.image_id for r in rows] == ["0", "1", "2", "3", "4"] and len(made) == 5
    assert sorted(seen) == ["0", "3", "4"]
    bad = {r.image_id: r for r in rows if r.missing}
    assert "1.png" in bad["1"].missing["picture"] and set(bad) == {"1", "2"}
    assert bad["2"].missing["picture"].startswith("2: not enough memory for it; restore it by `restorl restore --tile")
    assert all(math.isnan(v) for v in bad["1"].values.values()) and list(bad["1"].values) == COLUMNS
    assert all(math.isfinite(v) for r in rows if not r.missing for v in r.values.values())
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        evaluate_pairs(Failing(), pairs, SAMPLER, {}, only=["2"])


def test_of_finished_results_one_that_can_not_be_read_or_has_another_size_costs_its_own_figures_only(pairs):
    (pairs.lq / "1.png").write_bytes(b"")
    Image.new("RGB", (9, 9)).save(pairs.gt / "2.png")
    made = []
    rows = evaluate_folders(pairs.lq, pairs.gt, {"light": light}, on_row=made.append)
    reasons = {r.image_id: r.missing for r in rows if r.missing}
    assert set(reasons) == {"1", "2"} and len(rows) == 5
    assert "1.png" in reasons["1"]["picture"] and "0 bytes" in reasons["1"]["picture"]
    assert "differ in size" in reasons["2"]["picture"]
    columns = ["psnr", "ssim", "light", "gt_light"]
    assert all(list(r.values) == columns for r in [*rows, *made]) and len(made) == 5


def test_finished_results_are_measured_against_originals(pairs):
    rows = evaluate_folders(pairs.lq, pairs.gt, {"light": light})
    assert [list(r.values) for r in rows] == [["psnr", "ssim", "light", "gt_light"]] * 5
    reference = evaluate_pairs(None, pairs, SAMPLER, {})
    assert [r.values["psnr"] for r in rows] == pytest.approx([r.values["psnr"] for r in reference])


def test_csv_files_hold_the_rows_exactly(tmp_path, pairs):
    rows = evaluate_pairs(None, pairs, SAMPLER, {"light": light})
    write_csv(tmp_path / "evaluation" / "base.csv", rows)
    assert read_csv(tmp_path / "evaluation" / "base.csv") == rows
    assert (tmp_path / "evaluation" / "base.csv").read_text().splitlines()[0] == ",".join(["image_id", *COLUMNS])
    assert [p.name for p in (tmp_path / "evaluation").iterdir()] == ["base.csv"]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv is no evaluation"):
        read_csv(tmp_path / "other.csv")
    with pytest.raises(ValueError, match="equal columns"):
        write_csv(tmp_path / "x.csv", [Row("a", {"psnr": 1.0}), Row("b", {"ssim": 1.0})])


def test_means_are_taken_over_images():
    assert mean_values([Row("a", {"psnr": 20.0}), Row("b", {"psnr": 30.0})]) == {"psnr": 25.0}
    none = mean_values([Row("a", {"psnr": math.nan})])
    assert math.isnan(none["psnr"])
    with pytest.raises(ValueError, match="no rows"):
        mean_values([])


class Counting(TinyModel):
    """Notes how many images of which size go through it together."""

    def __init__(self) -> None:
        super().__init__(noise=0.05)
        self.together: list[tuple[int, int, int]] = []

    def condition(self, lq, image_ids=()):
        self.together.append((len(lq), *lq.shape[-2:]))
        return super().condition(lq, image_ids)


def test_images_go_together_within_a_bound_of_pixels_and_one_always_goes(pairs):
    for pixels, most in ((10**9, 3), (2 * 24 * 32, 2), (1, 1)):
        model = Counting()
        evaluate_pairs(model, pairs, SAMPLER, {"light": light}, pixels=pixels)
        assert max(count for count, *_ in model.together) == most
        assert all(count == 1 or count * height * width <= pixels for count, height, width in model.together)


def test_parts_made_of_whole_blocks_have_the_rows_of_the_whole_to_the_last_bit(pairs):
    model = TinyModel(noise=0.05)
    whole = evaluate_pairs(model, pairs, SAMPLER, {"light": light}, batch=2)
    planned = blocks(pairs, batch=2, multiple=model.size_multiple)
    assert sorted(i for block in planned for i in block) == ["0", "1", "2", "3", "4"]
    parts = [planned[::2], planned[1::2]]
    rows = [
        row
        for part in parts
        for row in evaluate_pairs(
            model, pairs, SAMPLER, {"light": light}, batch=2, only=[i for block in part for i in block]
        )
    ]
    assert sorted(rows, key=lambda row: row.image_id) == whole


def test_any_parts_have_the_rows_of_the_whole_but_for_rounding(pairs):
    from tests.restoration.local_model import LocalModel

    model = LocalModel()
    whole = evaluate_pairs(model, pairs, SAMPLER, {"light": light})
    rows = [
        row
        for part in (["4", "2"], ["0", "3"], ["1"])
        for row in evaluate_pairs(model, pairs, SAMPLER, {"light": light}, only=part)
    ]
    for row, expected in zip(sorted(rows, key=lambda row: row.image_id), whole, strict=True):
        assert row.values == pytest.approx(expected.values, rel=1e-6)
    with pytest.raises(ValueError, match="nothing is not among the images"):
        evaluate_pairs(model, pairs, SAMPLER, {}, only=["nothing"])


def test_a_limit_takes_images_evenly_and_the_same_for_all_parts(pairs):
    model = TinyModel(noise=0.05)
    rows = evaluate_pairs(model, pairs, SAMPLER, {"light": light}, limit=2)
    assert [row.image_id for row in rows] == ["0", "2"]
    assert rows[1:] == evaluate_pairs(model, pairs, SAMPLER, {"light": light}, limit=2, only=["2"])
    assert list(evenly(range(10), 4)) == [0, 2, 5, 7] and list(evenly(range(3), 9)) == [0, 1, 2]
    with pytest.raises(ValueError, match="at least 1"):
        evenly(range(3), 0)


def test_networks_may_compute_in_16_bits_and_in_tiles_with_nearly_equal_figures(pairs):
    from tests.restoration.local_model import LocalModel

    model = LocalModel()
    exact = evaluate_pairs(model, pairs, SAMPLER, {"light": light})
    half = evaluate_pairs(model, pairs, SAMPLER, {"light": light}, dtype=torch.bfloat16)
    tiled = evaluate_pairs(model, pairs, SAMPLER, {"light": light}, tiling=Tiling(16, 8))
    assert half != exact and tiled != exact
    for a, b, c in zip(exact, half, tiled, strict=True):
        assert b.values["psnr"] == pytest.approx(a.values["psnr"], abs=0.1)
        assert c.values["psnr"] == pytest.approx(a.values["psnr"], abs=1.0)
