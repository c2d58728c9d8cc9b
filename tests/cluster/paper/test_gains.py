from __future__ import annotations

import json
import math

import pytest

from cluster.paper.filled import fill
from cluster.paper.forms import as_json, as_markdown
from cluster.paper.gains import Images, Place, gains, place_of
from cluster.paper.tables import TABLES
from tests.cluster.paper.results import made

TABLE = TABLES["4"]
BASE, OURS = TABLE.lines[:2]
PART = TABLE.parts[0]


def images(psnr: list[float], ssim: float = 0.5) -> Images:
    return {f"{i}": {"psnr": value, "ssim": ssim} for i, value in enumerate(psnr)}


def held(base: dict[int, Images], ours: dict[int, Images]) -> dict[Place, dict[int, Images]]:
    return {place_of(BASE, PART): base, place_of(OURS, PART): ours}


def test_a_gain_is_the_mean_difference_of_pictures_with_its_interval() -> None:
    base = [20.0 + i for i in range(12)]
    found, without = gains(
        TABLE, held({0: images(base)}, {0: images([v + 1 + i / 10 for i, v in enumerate(base)], 0.6)})
    )
    assert without == [] and [(g.line, g.part, g.metric.name) for g in found] == [
        (OURS, PART, "psnr"),
        (OURS, PART, "ssim"),
    ]
    paired = found[0].paired
    assert paired.difference.mean == pytest.approx(1.55) and paired.n == 12 and paired.p < 0.001
    assert 1.2 < paired.difference.low < 1.55 < paired.difference.high < 1.9


def test_seeds_that_both_have_are_averaged_and_others_left_out() -> None:
    base = {0: images([10.0, 11.0]), 1: images([20.0, 21.0])}
    ours = {0: images([12.0, 13.0]), 1: images([20.0, 21.0]), 2: images([90.0, 90.0])}
    found, _ = gains(TABLE, held(base, ours))
    assert found[0].paired.difference.mean == pytest.approx(1.0)


def test_a_picture_without_a_figure_is_left_out_and_other_pictures_are_told() -> None:
    found, _ = gains(TABLE, held({0: images([10.0, 11.0, math.nan])}, {0: images([11.0, 12.0, 13.0])}))
    assert found[0].paired.n == 2 and found[0].paired.left_out == 1
    found, without = gains(TABLE, held({0: images([10.0, 11.0])}, {0: images([11.0, 12.0, 13.0])}))
    assert found == [] and "DiffBIR+Ours on GoPro, PSNR: no paired test: methods of other pictures" in without[0]


def test_a_table_shows_gains_where_there_are_any() -> None:
    rows = [made(line, PART, psnr=20.0, ssim=0.5) for line in (BASE, OURS)]
    filled = fill(TABLE, rows, held({0: images([20.0, 21.0, 22.0])}, {0: images([21.0, 22.5, 24.0])}))
    page = as_markdown(filled)
    assert "## Gains over the base model" in page
    assert "| DiffBIR+Ours | +1.500 [+1.000, +2.000], p=0.25 | +0.0000 [+0.0000, +0.0000], p=1 |" in page
    (gain, _) = json.loads(as_json(filled))["gains"]
    assert gain["metric"] == "psnr" and gain["difference"] == pytest.approx(1.5) and gain["n"] == 3
    assert "## Gains" not in as_markdown(fill(TABLE, rows))
