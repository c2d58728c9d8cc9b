"""`restorl annotate`: from a run to a folder to rate, and from ratings to labels and a page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.cli.errors import USER_MISTAKE
from restoration.evaluate import write_csv
from restoration.figures import Row
from restoration.images import read_image, read_pixels, to_uint8
from reward_service.annotation import manifest as manifests
from reward_service.annotation.gathering import gather
from reward_service.annotation.log import VoteLog
from reward_service.annotation.manifest import INPUT, OUTPUT, TRUTH, Manifest
from reward_service.annotation.table import write_table
from reward_service.annotation.votes import Vote
from tests.cluster.test_models import write_run
from tests.reward_service.annotation.people import GOOD, GUESSER, answers, make_export, write_export

SCORER = "tests.cluster.cli.test_cli:Brightness"
SMALL = ("--images", 2, "--outputs", 8, "--device", "cpu")
TINY = ("--images", 1, "--outputs", 2, "--rollouts", 1, "--checkpoint", "base", "--device", "cpu")


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["annotate", *map(str, words)])


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny model with checkpoints 2 and 3."""
    folder = write_run(tmp_path_factory.mktemp("run"), rank=2)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for place, name in enumerate("abcd"):
            clean = rng.integers(0, 256, (32, 32, 3))
            noisy = np.clip(clean + rng.normal(0, 20 * (place + 1), clean.shape), 0, 255)
            for side, pixels in (("input", noisy), ("target", clean)):
                where = folder / "data" / split / side
                where.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(where / f"{name}.png")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config |= {"data": {"root": str(folder / "data")}, "reward": {"scorer": SCORER}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text('{"run_id": "demo-12345678", "seconds": 1.0}')
    return folder


@pytest.fixture(scope="module")
def exported(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of an export, and what was printed."""
    out = tmp_path_factory.mktemp("exports") / "round1"
    result = run("export", tuned, "--out", out, *SMALL)
    assert result.exit_code == 0, result.output
    return out, result.stdout


def test_an_export_holds_outputs_of_base_and_latest_with_input_and_truth_and_every_hash_is_right(
    tuned: Path, exported: tuple[Path, str]
) -> None:
    out, printed = exported
    manifest = manifests.read(out)
    manifests.verify(out, manifest)
    outputs = [p for p in manifest.pictures.values() if p.role == OUTPUT]
    assert len(outputs) == 8 and {p.checkpoint for p in outputs} == {"base", "3"}
    assert (
        {p.step for p in outputs} == {1, 2}
        and {p.steps for p in outputs} == {2}
        and {p.seed for p in outputs} == {0, 1}
    )
    assert manifest.about["run_id"] == "demo-12345678" and manifest.about["scorer"] == SCORER
    for task in manifest.tasks:
        for picture in task.pictures:
            for role, side in ((INPUT, "input"), (TRUTH, "target")):
                beside = manifest.beside(picture, role)
                assert beside is not None
                there = read_image(tuned / "data" / "train" / side / f"{manifest.pictures[picture].source}.png")
                np.testing.assert_array_equal(
                    read_pixels(out / manifest.pictures[beside].file), to_uint8(there[None])[0]
                )
    assert sorted(f"images/{p.name}" for p in (out / "images").iterdir()) == sorted(
        p.file for p in manifest.pictures.values()
    )
    assert f"{len(manifest.tasks)} questions on {len(manifest.pictures)} pictures" in printed


def test_the_score_and_the_noise_of_an_output_are_those_of_the_runs_own_restoring(
    tuned: Path, exported: tuple[Path, str], tmp_path: Path
) -> None:
    out, _ = exported
    manifest = manifests.read(out)
    last = next(p for p in manifest.pictures.values() if p.role == OUTPUT and p.step == p.steps and p.seed == 0)
    source = tuned / "data" / "train" / "input" / f"{last.source}.png"
    words = [
        "restore",
        "--model",
        tuned,
        "--checkpoint",
        last.checkpoint,
        "--device",
        "cpu",
        source,
        tmp_path / "x.png",
    ]
    assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0
    pixels = read_pixels(out / last.file)
    np.testing.assert_array_equal(pixels, read_pixels(tmp_path / "x.png"))
    assert last.score == pytest.approx(pixels.mean(), abs=1e-3)


def test_names_of_files_tell_an_annotator_nothing(exported: tuple[Path, str]) -> None:
    for picture in manifests.read(exported[0]).pictures.values():
        assert set(Path(picture.file).stem) <= set("0123456789abcdef") and len(Path(picture.file).stem) == 16


def test_the_same_command_exports_the_same_also_where_one_was_interrupted(tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "again" / "images").mkdir(parents=True)  # without its manifest
    names = set()
    for folder in ("one", "again"):
        result = run("export", tuned, "--out", tmp_path / folder, *TINY)
        assert result.exit_code == 0, result.output
        names.add(manifests.read(tmp_path / folder).export)
    assert len(names) == 1


def test_held_out_pictures_are_taken_by_the_figures_of_the_last_evaluation(tuned: Path, tmp_path: Path) -> None:
    held = tmp_path / "run"
    shutil.copytree(tuned, held)
    psnr = {"a": 30.0, "b": 12.0, "c": 25.0, "d": 10.0, "gone": 1.0}
    rows = [Row(name, {"psnr": value, "input_psnr": value}) for name, value in psnr.items()]
    write_csv(held / "evaluation" / "rl.csv", rows)
    words = ("--split", "heldout", "--images", 2, "--outputs", 4, "--traps", 0, "--checkpoint", "2", "--device", "cpu")
    result = run("export", held, "--out", tmp_path / "out", *words)
    assert result.exit_code == 0, result.output
    found = {p.source: p.difficulty for p in manifests.read(tmp_path / "out").pictures.values()}
    assert found == {"d": 1.0, "b": pytest.approx(10 ** (-2 / 20))}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("RUN", "--out", "FULL"), "holds an export already, with ratings in it; give a new folder"),
        (("RUN", "--out", "RUN"), "holds something else; give a new folder"),
        (("RUN", "--out", "NEW", "--checkpoint", "7"), "no checkpoint '7', there are 2, 3; name those, latest or base"),
        (("RUN", "--out", "NEW", "--kind", "stars"), "--kind stars: choose both, rate, pair"),
        (("RUN", "--out", "NEW", "--split", "test"), "split=test: choose train or heldout"),
        (("RUN", "--out", "NEW", "--repeats", "0.9"), "repeats=0.9: a share from 0 to 0.5"),
        (("RUN", "--out", "NEW", "--scorer", "none"), "no scorer named 'none'"),
        (("NEW", "--out", "NEW"), "is no run"),
    ],
)
def test_an_export_that_can_not_be_is_one_line(tuned: Path, tmp_path: Path, words: Any, said: str) -> None:
    (tmp_path / "full" / "ratings").mkdir(parents=True)
    (tmp_path / "full" / manifests.FILE).write_text("{}")
    at = {"RUN": tuned, "FULL": tmp_path / "full", "NEW": tmp_path / "new"}
    result = run("export", *(at.get(word, word) for word in words), "--device", "cpu")
    assert result.exit_code == USER_MISTAKE and said in result.stderr, result.output
    assert len(result.stderr.strip().splitlines()) == 1 and not (tmp_path / "new" / manifests.FILE).exists()


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """An export with the ratings of four people and of one who guesses, each in a file of his own."""
    folder = tmp_path_factory.mktemp("rated")
    manifest = write_export(folder, make_export())
    for person in (*GOOD, GUESSER):
        with VoteLog(folder, manifest.export, person.name) as log:
            for vote in answers(manifest, [person], seed=len(person.name)):
                log.append(vote)
    return folder, manifest


def test_ratings_become_labels_and_a_page_and_who_is_left_out_is_named(
    rated: tuple[Path, Manifest], tmp_path: Path, written: list[str]
) -> None:
    folder, _ = rated
    result = run("clean", folder, "--out", tmp_path / "labels")
    assert result.exit_code == 0, result.output
    assert "left out: guess " in result.stdout and "pictures by 4 annotators: alpha 0." in result.stdout
    assert {p.name for p in (tmp_path / "labels").iterdir()} == {
        "labels.csv",
        "pairs.csv",
        "labels.json",
        "report.html",
    }
    page = (tmp_path / "labels" / "report.html").read_text()
    for part in ("Left out", "guess ", "Annotators", "Krippendorff", "Where people differ most", "Pairs that divide"):
        assert part in page
    assert page.count("data:image/png;base64,") == 4 and "http" not in page.replace("http-equiv", "")
    assert {"input", "rated", "ground truth", "better"} <= set(written)


def test_ratings_may_come_from_files_of_others(rated: tuple[Path, Manifest], tmp_path: Path) -> None:
    folder, manifest = rated
    for kind in ("rate", "pair"):
        assert run("convert", folder, tmp_path / f"{kind}.json", "--kind", kind).exit_code == 0
    assert run("convert", folder, tmp_path / "all.csv").exit_code == 0
    own = {(v.annotator, v.task, v.answer) for v in gather(folder, manifest).votes}
    assert len(own) == 5 * len(manifest.tasks)
    for files in (("rate.json", "pair.json"), ("all.csv",)):
        found = gather(tmp_path, manifest, [tmp_path / file for file in files]).votes
        assert {(v.annotator, v.task, v.answer) for v in found} == own
    (tmp_path / "some.csv").write_text("".join((tmp_path / "all.csv").read_text().splitlines(keepends=True)[:9]))
    assert len(gather(folder, manifest, [tmp_path / "some.csv"]).votes) == len(own)  # each vote counts once


def test_rules_and_ways_can_be_chosen_and_are_on_record(tmp_path: Path) -> None:
    manifest = write_export(tmp_path / "export", make_export(2, 3, 2))
    table = write_table(tmp_path / "v.csv", manifest, answers(manifest, (*GOOD[:2], GUESSER)))
    words = ("--least-agreement", -1, "--most-traps-failed", 1, "--model", "thurstone", "--way", "mass")
    result = run("clean", tmp_path / "export", table, "--out", tmp_path / "labels", *words)
    assert result.exit_code == 0 and "left out" not in result.stdout, result.output
    about = json.loads((tmp_path / "labels" / "labels.json").read_text())
    assert about["how"]["model"] == "thurstone" and about["how"]["way"] == "mass"
    assert about["how"]["rules"]["most_traps_failed"] == 1 and not about["annotators"]["guess"]["left_out"]


def test_what_can_not_be_cleaned_is_told_and_writes_nothing(rated: tuple[Path, Manifest], tmp_path: Path) -> None:
    folder, manifest = rated
    empty = tmp_path / "empty"
    shutil.copytree(folder, empty, ignore=shutil.ignore_patterns("ratings"))
    (tmp_path / "other.csv").write_text("export,annotator,task,answer\nffff,anna,rs0o0,3\n")
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    (changed / "images" / "s0o0.png").write_bytes(b"")
    with VoteLog(empty, manifest.export, "anna") as log:
        log.append(Vote("anna", "rs0o0", 3))
    for words, said in (
        ((empty,), "votes are of anna: whether one annotator alone is right"),
        ((folder, tmp_path / "other.csv"), "other.csv:2: of another export, ffff"),
        ((changed,), "s0o0.png isn't the picture that people rated"),
        ((tmp_path,), "is no export"),
        ((folder, "--model", "elo"), "--model elo: choose bradley-terry or thurstone"),
        ((folder, "--way", "guess"), "--way guess: choose density or mass"),
        ((folder, "--least-agreement", 2), "least_agreement=2.0: must be a number from -1 to 1"),
    ):
        result = run("clean", *words, "--out", tmp_path / "labels")
        assert result.exit_code == USER_MISTAKE and said in result.stderr, result.output
        assert not (tmp_path / "labels").exists()


def test_a_file_for_others_has_a_known_ending(rated: tuple[Path, Manifest], tmp_path: Path) -> None:
    result = run("convert", rated[0], tmp_path / "x.xls")
    assert result.exit_code == USER_MISTAKE and "choose a name that ends in .csv, or in .json" in result.stderr
    result = run("convert", rated[0], tmp_path / "x.json", "--kind", "both")
    assert result.exit_code == USER_MISTAKE and "--kind both: choose rate or pair" in result.stderr
