"""Results of any names beside their originals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from restoration.datasets.matching import DataError
from restoration.datasets.results import pair_results, require_equal_sizes, require_same_pictures


def folder(path: Path, *names: str, size: tuple[int, int] = (12, 16)) -> Path:
    path.mkdir(exist_ok=True)
    for name in names:
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path / name)
    return path


@pytest.mark.parametrize(
    ("results", "originals", "match"),
    [
        (("1.png", "2.png"), ("1.jpg", "2.jpg"), "stem"),
        (("low01.png", "low02.png"), ("normal1.png", "normal2.png"), "digits"),
        (("a_out.png", "b_out.png"), ("a.png", "b.png"), "group"),
    ],
)
def test_the_first_rule_that_pairs_all_is_taken_and_ids_are_the_originals_names(
    tmp_path: Path, results: tuple[str, ...], originals: tuple[str, ...], match: str
) -> None:
    found = pair_results(folder(tmp_path / "r", *results), folder(tmp_path / "gt", *originals))
    assert found.match == match and found.image_ids == [Path(name).stem for name in originals]
    assert [pair.lq_path.name for pair in found.pairs] == list(results)


def test_of_several_results_of_an_original_each_has_its_own_id(tmp_path: Path) -> None:
    found = pair_results(
        folder(tmp_path / "r", "1_1.png", "1_2.png", "2_1.png"), folder(tmp_path / "gt", "1.png", "2.png")
    )
    assert found.match == "group" and found.image_ids == ["1_1", "1_2", "2_1"]


def test_a_missing_result_is_named_by_the_rule_that_leaves_the_fewest_alone(tmp_path: Path) -> None:
    results = folder(tmp_path / "r", *(f"low{i}.png" for i in range(4)))
    originals = folder(tmp_path / "gt", *(f"normal{i}.png" for i in range(5)))
    with pytest.raises(
        DataError, match=r"1 of 5 originals have no result \(normal4\); tried equal names, equal numbers"
    ):
        pair_results(results, originals)
    with pytest.raises(DataError, match="have the same stem; keep one"):
        pair_results(folder(results, "low0.jpg"), originals)
    with pytest.raises(DataError, match="empty holds no image; it must hold the results"):
        pair_results(folder(tmp_path / "empty"), originals)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pair_results(tmp_path / "nowhere", originals)


def test_sizes_are_held_against_the_originals_and_damaged_files_left_to_whoever_decodes_them(tmp_path: Path) -> None:
    originals = folder(tmp_path / "gt", "1.png", "2.png", "3.png")
    results = folder(folder(tmp_path / "r", "1.png"), "2.png", size=(6, 16))
    (results / "3.png").write_bytes(b"no picture")
    found = pair_results(results, originals)
    with pytest.raises(
        DataError, match=r"1 of 3 results have another size than their originals: 2 \(16x6, its original"
    ):
        require_equal_sizes(found)
    folder(results, "2.png")
    require_equal_sizes(pair_results(results, originals))


def test_folders_of_other_pictures_are_refused(tmp_path: Path) -> None:
    originals = folder(tmp_path / "gt", "1.png")
    first, second = (pair_results(folder(tmp_path / n, f"1_{n}.png", "1_x.png"), originals) for n in "ab")
    require_same_pictures([first, first])
    with pytest.raises(DataError, match=r"only .*a has 1_a; only .*b has 1_b; give equal ones"):
        require_same_pictures([first, second])
