"""A job from its file to its cells: a real training of a model of kilobytes, real sets, real figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cluster.cli.paper_job as paper_job
import cluster.paper.measuring as measuring
from cluster.cli.errors import UserMistake
from cluster.paper.cells import Folders, Job, Measuring
from cluster.paper.plan import Plan, make_plan
from cluster.paper.results import IMAGES_FILE, PICTURES, Result, every_result, read_result
from restoration.evaluate import evaluate_folders, mean_values, read_csv
from restoration.images import read_image
from tests.cluster.paper.places import wanted


def write_job(job: Job, out: Path) -> Path:
    file = Folders(out).job(job.label) / paper_job.JOB_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"out": str(out), "job": job.plain()}))
    return file


@pytest.fixture(scope="module")
def done(sets: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """Table 3's DiffBIR, base and ours, all ten cells."""
    out = tmp_path_factory.mktemp("out")
    keep = Measuring(device="cpu", pictures=True, scorers=("piqe",))
    asked = wanted("3", out, [sets], [f"diffbir={model}"], models=frozenset({"diffbir"}), measuring=keep)
    plan = make_plan(replace(asked, words=(*asked.words, "optimiser.lr=0.05")))
    for job in plan.jobs:
        paper_job.do_job(write_job(job, out))
    return out, plan


def result(out: Path, label: str) -> Result:
    found = read_result(out / "cells" / label)
    assert found is not None
    return found


def test_a_job_leaves_figures_of_every_picture_as_evaluate_writes_them(done: tuple[Path, Plan]) -> None:
    out, plan = done
    assert len(list(every_result(out / "cells"))) == 10
    folder = out / "cells" / "diffbir.rain13k.ours.s0.rain100h"
    found, rows = result(out, folder.name), read_csv(folder / IMAGES_FILE)
    assert found.n == len(rows) == 2 and found.published == 100 and found.protocol == "derain_y"
    assert found.means == pytest.approx(mean_values(rows)) and {"psnr", "ssim", "piqe"} <= found.means.keys()
    assert all(math.isfinite(row.values["psnr"]) for row in rows)
    assert found.versions["restorl"] and found.key.arm == "ours"
    assert (out / "runs" / "diffbir.rain13k.ours.s0" / "run.json").is_file()


def test_the_kept_pictures_are_those_that_were_measured(done: tuple[Path, Plan], sets: Path) -> None:
    out, _ = done
    folder = out / "cells" / "diffbir.rain13k.ours.s0.rain100h"
    originals = sets / "rain100h" / "test" / "Rain100H" / "target"
    again = evaluate_folders(folder / PICTURES, originals, {}, "derain_y")
    rows = {row.image_id: row.values for row in read_csv(folder / IMAGES_FILE)}
    assert {row.image_id: row.values["psnr"] for row in again} == {i: v["psnr"] for i, v in rows.items()}


def test_training_moves_the_model_and_the_base_is_measured_by_the_same_chain(done: tuple[Path, Plan]) -> None:
    out, _ = done
    base, ours = (out / "cells" / f"diffbir.rain13k.{arm}.s0.rain100l" / PICTURES for arm in ("base", "ours"))
    for name in (path.name for path in base.iterdir()):
        a, b = (np.asarray(read_image(folder / name), dtype=float) for folder in (base, ours))
        assert 0 < np.abs(a - b).mean() < 60  # by a learning step, not by another sampler
    steps = [result(out, f"diffbir.rain13k.{arm}.s0.rain100l").settings["sampler.steps"] for arm in ("base", "ours")]
    assert steps == [2, 2]


def test_a_job_that_is_done_again_repeats_nothing(done: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    out, plan = done

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was finished before")

    monkeypatch.setattr(measuring, "measure", never)
    monkeypatch.setattr("cluster.run.single.train_single", never)
    for job in plan.jobs:
        paper_job.do_job(write_job(job, out))


def test_a_job_that_was_cut_short_goes_on_behind_its_last_finished_cell(
    sets: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = wanted("3", tmp_path, [sets], [f"diffbir={model}"], models=frozenset({"diffbir"}), arms=frozenset({"base"}))
    (job,) = make_plan(asked).jobs
    job = replace(job, cells=job.cells[:3])
    measured: list[str] = []

    def cut(after: int, real: Callable[..., Result]) -> Callable[..., Result]:
        def measure(cell: Any, *more: Any) -> Result:
            if len(measured) == after:
                raise KeyboardInterrupt
            measured.append(cell.set)
            return real(cell, *more)

        return measure

    real = measuring.measure
    monkeypatch.setattr(measuring, "measure", cut(2, real))
    with pytest.raises(KeyboardInterrupt):
        paper_job.do_job(write_job(job, tmp_path))
    monkeypatch.setattr(measuring, "measure", cut(9, real))
    (again,) = make_plan(asked).jobs
    assert [cell.set for cell in again.cells] == ["rain100l", "test2800", "test1200"]
    paper_job.do_job(write_job(job, tmp_path))
    assert measured == ["test100", "rain100h", "rain100l"]


def test_a_cell_half_written_is_not_finished(done: tuple[Path, Plan], tmp_path: Path) -> None:
    out, _ = done
    folder = tmp_path / "cells" / "a"
    folder.mkdir(parents=True)
    source = out / "cells" / "diffbir.rain13k.base.s0.rain100h"
    (folder / IMAGES_FILE).write_bytes((source / IMAGES_FILE).read_bytes())
    assert read_result(folder) is None and list(every_result(tmp_path / "cells")) == []


def test_a_run_of_other_settings_is_refused(done: tuple[Path, Plan]) -> None:
    out, plan = done
    ours = plan.jobs[1]
    with pytest.raises(UserMistake, match="was trained with optimiser.lr=0.05, not 0.5; remove it"):
        paper_job.do_job(write_job(replace(ours, words=(*ours.words, "optimiser.lr=0.5")), out))


def test_a_file_that_is_no_job_is_refused(tmp_path: Path) -> None:
    for content in ("", "[]", '{"out": "x", "job": {}}'):
        (tmp_path / "job.json").write_text(content)
        with pytest.raises(UserMistake, match="is no job of a table"):
            paper_job.do_job(tmp_path / "job.json")


def test_a_set_of_which_nothing_can_be_measured_is_an_error_and_no_cell(
    sets: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = wanted("3", tmp_path, [sets], [f"diffbir={model}"], models=frozenset({"diffbir"}), arms=frozenset({"base"}))
    (job,) = make_plan(asked).jobs
    monkeypatch.setattr("restoration.evaluate.sample", lambda *_, **__: 1 / 0)
    with pytest.raises(ValueError, match="none of 2 pictures could be measured; the first: .*division"):
        paper_job.do_job(write_job(replace(job, cells=job.cells[:1]), tmp_path))
    assert list(every_result(tmp_path / "cells")) == []


def test_a_training_of_the_whole_system_is_that_of_resume_if_there(
    sets: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = wanted("3", tmp_path, [sets], [f"diffbir={model}"], models=frozenset({"diffbir"}), arms=frozenset({"ours"}))
    (job,) = make_plan(asked).jobs
    begun: list[Any] = []
    monkeypatch.setattr("cluster.cli.resuming.train_when_free", lambda config, run: begun.append((config.name, run)))
    monkeypatch.setattr(paper_job, "_measured", lambda *_: [])
    paper_job.do_job(write_job(replace(job, single=False), tmp_path))
    assert begun == [(job.label, job.run)]
