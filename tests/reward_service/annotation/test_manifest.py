"""What is to be rated, on disk and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reward_service.annotation import manifest as manifests
from reward_service.annotation.manifest import INPUT, TRUTH
from reward_service.annotation.votes import Vote
from tests.reward_service.annotation.people import make_export, write_export


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_export(tmp_path, make_export(2, 2, 2), side=8)
    return tmp_path


def test_a_manifest_comes_back_as_it_was_written_and_its_files_are_those_that_were_rated(folder: Path) -> None:
    found = manifests.read(folder)
    manifests.verify(folder, found)
    assert found.tasks == make_export(2, 2, 2).tasks and found.about["run"] == "demo"
    assert found.beside("s0o1", INPUT) == "input0" and found.beside("s0o1", TRUTH) == "truth0"


def test_another_picture_under_the_same_name_is_found(folder: Path) -> None:
    found = manifests.read(folder)
    (folder / "images" / "s0o0.png").write_bytes((folder / "images" / "s0o1.png").read_bytes())
    with pytest.raises(ValueError, match="s0o0.png isn't the picture that people rated"):
        manifests.verify(folder, found)
    (folder / "images" / "s0o0.png").unlink()
    with pytest.raises(FileNotFoundError, match="s0o0.png is gone"):
        manifests.verify(folder, found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("format"), "its format is None"),
        (lambda c: c["tasks"].pop(), "have the digest"),
        (lambda c: c["pictures"]["s0o0"].update(score=9.0), "have the digest"),
        (lambda c: c["pictures"].pop("s0o0"), "shows 's0o0', which is no picture of it"),
        (lambda c: c["tasks"][0].update(kind="guess"), "is 'guess' of 1 pictures"),
        (lambda c: c["tasks"][0].update(pictures=["s0o0", "s0o1"]), "is 'rate' of 2 pictures"),
        (lambda c: c["tasks"][1].update(name=c["tasks"][0]["name"]), "two tasks have one name"),
        (lambda c: c["tasks"][0].update(colour="red"), "a task has no 'colour'"),
        (lambda c: c["pictures"]["s0o0"].pop("file"), "file"),
        (lambda c: c["pictures"]["s0o0"].update(file="../secret.png"), "lies outside the export"),
        (lambda c: c.pop("tasks"), "it has no 'tasks'"),
    ],
)
def test_a_manifest_that_was_changed_or_damaged_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    path = folder / manifests.FILE
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="can't be taken: .*put it back from a copy") as caught:
        manifests.read(folder)
    assert said in str(caught.value)


def test_what_is_no_export_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no export: .* make one by `restorl annotate export`"):
        manifests.read(tmp_path)
    (tmp_path / manifests.FILE).write_text("[1]")
    with pytest.raises(ValueError, match="its format is None"):
        manifests.read(tmp_path)
    (tmp_path / manifests.FILE).write_text("{")
    with pytest.raises(ValueError, match="manifest.json can't be taken"):
        manifests.read(tmp_path)


def test_an_answer_must_fit_its_task(folder: Path) -> None:
    found = manifests.read(folder)
    pair = next(task.name for task in found.tasks if task.kind == "pair")
    assert found.check(Vote("anna", pair, "tie")).answer == "tie"
    with pytest.raises(ValueError, match="there is no task 't999' in export"):
        found.check(Vote("anna", "t999", 3))
    with pytest.raises(ValueError, match="asks for left, right, tie, and not for 3"):
        found.check(Vote("anna", pair, 3))
    with pytest.raises(ValueError, match="rs0o0 asks for a level, 1 to 5, and not for 'left'"):
        found.check(Vote("anna", "rs0o0", "left"))


def test_two_exports_have_two_names() -> None:
    one, other = make_export(2, 2, 2), make_export(2, 3, 2)
    assert one.export == make_export(2, 2, 2).export != other.export
    one.check_export(one.export)
    with pytest.raises(ValueError, match=f"of another export, {other.export}: this folder is {one.export}"):
        one.check_export(other.export)
