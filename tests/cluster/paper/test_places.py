from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cluster.paper.places import Models, Roots
from restoration.datasets.matching import DataError
from tests.cluster.paper.places import name_model


def test_a_set_is_found_in_a_folder_with_its_name_and_among_others_in_one_archive(sets: Path, tmp_path: Path) -> None:
    assert Roots.of([str(sets)]).root_of("rain100h", ["test"]) == sets / "rain100h"
    assert Roots.of([str(sets)]).root_of("rain13k", ["train", "test"]) == sets / "rain13k"
    archive = tmp_path / "downloads" / "Deraining" / "test"
    for name in ("rain100h", "rain100l"):
        shutil.copytree(sets / name / "test", archive, dirs_exist_ok=True)
    roots = Roots.of([str(tmp_path / "downloads")])
    assert roots.root_of("rain100h", ["test"]) == roots.root_of("rain100l", ["test"]) == archive.parent
    with pytest.raises(FileNotFoundError, match="Test100 .test. was not found: looked in .*give --data test100=FOLDER"):
        roots.root_of("test100", ["test"])


def test_folders_called_input_and_target_are_no_set_unless_it_is_named(sets: Path) -> None:
    inside = sets / "rain100h" / "test" / "Rain100H"
    assert (inside / "input").is_dir()
    assert Roots.of([str(inside)]).root_of("rain100h", ["test"]) == inside  # its own name tells
    with pytest.raises(FileNotFoundError):
        Roots.of([str(inside)]).root_of("rain100l", ["test"])
    assert Roots.of([f"rain100l={inside}"]).root_of("rain100l", ["test"]) == inside


def test_a_partial_set_is_told_with_what_it_lacks(sets: Path, tmp_path: Path) -> None:
    shutil.copytree(sets / "lol_v2_real", tmp_path / "lol_v2_real")
    shutil.rmtree(tmp_path / "lol_v2_real" / "LOLv2" / "Real_captured" / "Test" / "Normal")
    with pytest.raises(DataError, match="LOL-v2-real is not whole: .*holds Test/Low, not Test/Normal"):
        Roots.of([str(tmp_path)]).root_of("lol_v2_real", ["test"])
    shutil.rmtree(tmp_path / "lol_v2_real" / "LOLv2" / "Real_captured" / "Test")
    with pytest.raises(DataError, match="holds nothing of its test"):
        Roots.of([str(tmp_path)]).root_of("lol_v2_real", ["train", "test"])


def test_a_model_tuned_to_the_set_goes_before_one_for_all(names: Path, tmp_path: Path) -> None:
    models = Models.of([str(names)])
    assert models.folder_of("diffbir", "sid") == (names / "diffbir", False)
    tuned = name_model(names / "diffbir_sid", "diffbir")
    assert models.folder_of("diffbir", "sid") == (tuned, True)
    other = name_model(tmp_path / "other", "diffbir")
    assert Models.of([str(names), f"diffbir:sid={other}"]).folder_of("diffbir", "sid") == (other, True)
    assert Models.of([f"diffbir={other}"]).folder_of("diffbir", "smid") == (other, False)


def test_a_model_that_is_missing_or_of_another_kind_is_told(names: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no model folder of TSD-SR for sid \(looked for .*restorl convert tsdsr"
    ):
        Models.of([str(names)]).folder_of("tsdsr", "sid")
    with pytest.raises(DataError, match="is a model of kind pasd, not diffbir"):
        Models.of([f"diffbir={names / 'pasd'}"]).folder_of("diffbir", "sid")


@pytest.mark.parametrize(
    ("of", "word", "said"),
    [
        (Roots, "rain100=x", "'rain100' is not a set of docs/data.md"),
        (Roots, "/nowhere", "--data: /nowhere is no folder"),
        (Roots, "rain100h=/nowhere", "--data: /nowhere is no folder"),
        (Models, "sd3=x", "'sd3' is not one of diffbir, stablesr"),
        (Models, "diffbir:sidd=x", "'diffbir:sidd' is not one of diffbir"),
    ],
)
def test_a_word_that_names_nothing_is_refused(of: type[Roots] | type[Models], word: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        of.of([word])
