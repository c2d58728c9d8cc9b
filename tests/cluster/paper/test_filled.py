from __future__ import annotations

import pytest

from cluster.paper.filled import BEST, SECOND, Figure, Filled, fill
from cluster.paper.tables import MEAN, TABLES
from tests.cluster.paper.results import made

ONE, RAIN = TABLES["1"], TABLES["3"]
REAL, SYNTHETIC = ONE.parts


def figure(filled: Filled, row: int, title: str, metric: str) -> Figure:
    (place,) = [i for i, c in enumerate(filled.columns) if c.title == title and c.metric.name == metric]
    return filled.rows[row][1][place]


def test_the_best_and_the_second_are_marked_by_what_is_better_in_the_column() -> None:
    values = [(20.0, 0.1), (22.0, 0.3), (21.0, 0.2), (19.0, 0.4)]
    rows = [made(line, REAL, psnr=p, lpips=d) for line, (p, d) in zip(ONE.lines, values, strict=False)]
    filled = fill(ONE, rows)
    assert [figure(filled, i, "LOL-real", "psnr").rank for i in range(5)] == [None, BEST, SECOND, None, None]
    assert [figure(filled, i, "LOL-real", "lpips").rank for i in range(5)] == [BEST, None, SECOND, None, None]


def test_figures_that_are_printed_alike_share_a_rank() -> None:
    rows = [made(line, REAL, psnr=p) for line, p in zip(ONE.lines, (22.001, 22.004, 21.0), strict=False)]
    assert [figure(fill(ONE, rows), i, "LOL-real", "psnr").rank for i in range(3)] == [BEST, BEST, SECOND]
    alone = fill(ONE, [made(ONE.lines[0], REAL, psnr=20.0)])
    assert figure(alone, 0, "LOL-real", "psnr").rank is None  # of one row nothing is the best


def test_a_missing_cell_is_missing_and_never_zero() -> None:
    filled = fill(ONE, [made(ONE.lines[0], REAL, psnr=20.0, ssim=None)])
    for place in (
        (0, "LOL-real", "ssim"),
        (0, "LOL-real", "fid"),
        (0, "LOL-synthetic", "psnr"),
        (5, "LOL-real", "psnr"),
    ):
        found = figure(filled, *place)
        assert found.value is None and found.rank is None and found.difference is None and found.paper is not None
    assert any(note.startswith("47 of 48 cells are missing: DiffBIR on LOL-synthetic; ") for note in filled.notes)
    assert "SSIM was not measured in 1 cells that are there" in filled.notes
    assert "LOL-synthetic: not measured" in filled.head


def test_the_mean_is_over_sets_and_not_over_pictures_and_only_of_all_of_them() -> None:
    line = RAIN.lines[0]
    sizes = (98, 100, 100, 2800, 1200)
    rows = [made(line, part, psnr=20.0 + i, n=n) for i, (part, n) in enumerate(zip(RAIN.parts, sizes, strict=True))]
    assert figure(fill(RAIN, rows), 0, MEAN, "psnr").value == pytest.approx(22.0)
    found = figure(fill(RAIN, rows), 0, MEAN, "psnr")
    assert found.paper == 27.04 and found.difference == pytest.approx(22.0 - 27.04)
    assert figure(fill(RAIN, rows[1:]), 0, MEAN, "psnr").value is None
    assert figure(fill(RAIN, rows), 0, MEAN, "ssim").value is None


def test_seeds_are_averaged_with_their_deviation_and_told() -> None:
    line = ONE.lines[2]
    filled = fill(ONE, [made(line, REAL, seed, psnr=value) for seed, value in ((2, 23.0), (0, 21.0), (1, 22.0))])
    found = figure(filled, 2, "LOL-real", "psnr")
    assert (found.value, found.deviation, found.seeds, found.n) == (22.0, 1.0, (0, 1, 2), (4, 4, 4))
    assert found.paper == 22.11 and found.difference == pytest.approx(-0.11)
    assert "seeds: 0, 1, 2" in filled.head
    two = fill(
        ONE, [made(line, REAL, 0, psnr=1.0), made(line, REAL, 1, psnr=2.0), made(ONE.lines[0], REAL, 0, psnr=3.0)]
    )
    assert "cells have different seeds; the JSON form has those of each" in two.notes


def test_the_head_tells_protocol_n_scale_and_versions() -> None:
    line = RAIN.lines[1]
    filled = fill(RAIN, [made(line, RAIN.parts[1], psnr=30.0, n=99, protocol="derain_y", told="Y of MATLAB")])
    head = "Rain100H: protocol derain_y (Y of MATLAB); n=99 of 100 published, trained on rain13k"
    assert head in filled.head and any(text.startswith("scale: tiny (2 iterations") for text in filled.head)
    assert "versions: restorl 0.1.0, torch 2.11" in filled.head
    assert any(text.startswith("paper: arXiv 2511.01645") for text in filled.head)


def test_pictures_without_a_figure_and_without_alignment_are_told() -> None:
    four = TABLES["4"]
    line, blur = four.lines[0], four.parts[2]
    filled = fill(four, [made(line, blur, psnr=30.0, aligned=0.75, missing=1)])
    assert "DiffBIR on RealBlur-R, seed 0: 1 of 4 pictures lack figures" in filled.notes
    assert "DiffBIR on RealBlur-R, seed 0: 1 of 4 results couldn't be aligned" in filled.notes


def test_cells_of_other_tables_are_left_alone() -> None:
    filled = fill(TABLES["2"], [made(ONE.lines[0], REAL, psnr=20.0)])
    assert all(found.value is None for _, figures in filled.rows for found in figures)


def test_fid_is_a_figure_of_the_set() -> None:
    filled = fill(ONE, [made(ONE.lines[0], SYNTHETIC, psnr=20.0, of_sets={"fid": 40.0})])
    assert figure(filled, 0, "LOL-synthetic", "fid").value == 40.0
    assert "FID of few pictures is biased: compare it at equal n only" in filled.head
