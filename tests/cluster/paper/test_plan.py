from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.config.configure import ConfigError
from cluster.paper.cells import TUNE, Folders, Job, Measuring
from cluster.paper.plan import Plan, make_plan
from cluster.paper.results import CELL_FILE, result_of, write_result
from cluster.paper.scales import SCALES
from restoration.figures import Row
from tests.cluster.paper.places import name_model, wanted


def finish(plan: Plan, out: Path, label: str, **settings: Any) -> None:
    """As if the cell had been measured."""
    (cell,) = [cell for job in plan.jobs for cell in job.cells if cell.label == label]
    cell = replace(cell, settings={**cell.settings, **settings})
    rows = [Row("a", {"psnr": 20.0, "ssim": 0.5})]
    told: dict[str, Any] = {"scale": "tiny", "told": "RGB", "published": 100, "per_scene": False}
    result = result_of(cell, rows, of_sets={}, seconds=1.0, versions={}, **told)
    write_result(Folders(out).cell(cell), rows, result)


def test_five_deraining_sets_are_measured_with_one_training_of_each_model(
    sets: Path, names: Path, tmp_path: Path
) -> None:
    plan = make_plan(wanted("3", tmp_path, [sets], [names]))
    assert plan.missing == {} and plan.done == () and plan.cells == 20
    assert {job.label: len(job.cells) for job in plan.jobs} == {
        f"{model}.rain13k.{arm}.s0": 5 for model in ("diffbir", "pasd") for arm in ("base", "ours")
    }
    base, ours = plan.jobs[:2]
    assert base.run is None and ours.run == tmp_path / "runs" / "diffbir.rain13k.ours.s0"
    config = plan.configs[ours.label]
    assert (config.data.set, config.data.root) == ("rain13k", sets / "rain13k")
    assert config.evaluation.protocol == "derain_y" and config.model == names / "diffbir"
    assert {cell.protocol for cell in ours.cells} == {"derain_y"}
    assert [cell.root for cell in ours.cells[:2]] == [sets / "test100", sets / "rain100h"]


def test_a_cell_that_two_tables_share_is_planned_once(sets: Path, names: Path, tmp_path: Path) -> None:
    both = wanted("1", tmp_path, [sets], [names])
    both = replace(
        both, tables=(*both.tables, *wanted("6", tmp_path, [sets], [names]).tables), models=frozenset({"diffbir"})
    )
    plan = make_plan(both)
    labels = [cell.label for job in plan.jobs for cell in job.cells]
    assert len(labels) == len(set(labels)) == 22
    assert plan.missing == {}


def test_the_second_round_starts_from_the_first_and_waits_for_it(sets: Path, names: Path, tmp_path: Path) -> None:
    asked = wanted("6", tmp_path, [sets], [names], arms=frozenset({"iterated"}))
    plan = make_plan(asked)
    first, second = [job for job in plan.jobs if ".lol_v2_real." in job.label]
    assert first.label == "diffbir.lol_v2_real.ours.s0" and first.cells == ()
    assert second.needs == (first.label,) and second.exported_from == first.run
    assert plan.configs[second.label].model == second.model == tmp_path / "exported" / second.label
    assert plan.configs[second.label].reward.scorer == "tests.system.scorers:Contrast"  # the user's word is the last
    full = make_plan(replace(asked, scale=SCALES["full"], words=("reward.scorer=piqe", "reward.params={}")))
    assert set(full.missing.values()) == {
        "a second round takes a reward that learned from ratings of the first one's results; give it with --second, "
        "such as --second reward.params.weights=FOLDER"
    }
    given = replace(
        asked, scale=SCALES["full"], words=("reward.scorer=piqe", "reward.params={}"), second=("reward.num_gpus=0",)
    )
    assert make_plan(given).missing == {}


def test_a_model_that_is_not_tuned_to_a_set_is_first_where_that_is_asked_for(
    sets: Path, names: Path, tmp_path: Path
) -> None:
    asked = wanted("1", tmp_path / "out", [sets], [names], models=frozenset({"diffbir"}))
    assert len(make_plan(asked).as_they_are) == 2
    name_model(names / "diffbir_lol_v2_synthetic", "diffbir")
    plan = make_plan(replace(asked, sft=Path("configs/sft.yaml")))
    tune, *others = plan.jobs
    assert tune.form == TUNE and tune.label == "diffbir.lol_v2_real.tune" and plan.as_they_are == ()
    assert {job.needs for job in others if ".lol_v2_real." in job.label} == {(tune.label,)}
    assert {job.needs for job in others if ".lol_v2_synthetic." in job.label} == {()}
    assert all(job.model == tune.run for job in others if ".lol_v2_real." in job.label)
    name_model(tmp_path / "out" / "tuned" / "diffbir_lol_v2_real", "diffbir")
    assert TUNE not in {job.form for job in make_plan(replace(asked, sft=Path("configs/sft.yaml"))).jobs}


def test_what_is_missing_is_named_and_costs_only_the_cells_that_need_it(
    names: Path, sets: Path, tmp_path: Path
) -> None:
    plan = make_plan(wanted("1", tmp_path, [f"lol_v2_real={sets / 'lol_v2_real'}"], [names]))
    assert plan.cells == 6 and len(plan.missing) == 42  # of 48: two models on one set are there
    assert (
        "LOL-v2-synthetic (test) was not found: no folder was given"
        in plan.missing["diffbir.lol_v2_synthetic.ours.s0.lol_v2_synthetic"]
    )
    assert "no model folder of RAP" in plan.missing["rap.lol_v2_real.base.s0.lol_v2_real"]
    whole = make_plan(wanted("1", tmp_path, [sets], [names], scale=SCALES["full"], words=()))
    reasons = {label: why for label, why in whole.missing.items() if label.startswith("diffbir.")}
    assert len(reasons) == 4 and all("DeQA-Score-Mix3 is not there" in why for why in reasons.values())


def test_a_finished_cell_is_not_planned_again_unless_it_lacks_a_figure(sets: Path, names: Path, tmp_path: Path) -> None:
    asked = wanted("5", tmp_path, [sets], [names], models=frozenset({"diffbir"}), arms=frozenset({"base"}))
    plan = make_plan(asked)
    assert len(plan.missing) == 2  # dual
    label = "diffbir.dpdd_single.base.s0.dpdd_single-indoor"
    finish(plan, tmp_path, label)
    again = make_plan(asked)
    assert again.done == (label,) and [cell.split for job in again.jobs for cell in job.cells] == ["test/outdoor"]
    more = make_plan(replace(asked, measuring=Measuring(device="cpu", scorers=("piqe",))))
    assert more.done == () and more.cells == 2


def test_a_cell_that_was_made_with_other_settings_is_refused_and_not_taken(
    sets: Path, names: Path, tmp_path: Path
) -> None:
    asked = wanted("1", tmp_path, [sets], [names], models=frozenset({"diffbir"}), arms=frozenset({"ours", "base"}))
    plan = make_plan(asked)
    for arm in ("base", "ours"):
        finish(plan, tmp_path, f"diffbir.lol_v2_real.{arm}.s0.lol_v2_real")
    assert len(make_plan(asked).done) == 2
    harmless = ("actors.count=3", "cluster.address=auto", "checkpoint_every=2", "evaluation.every=3")
    assert len(make_plan(replace(asked, words=(*asked.words, *harmless))).done) == 2
    with pytest.raises(
        ValueError, match=r"was made with other settings \(optimiser.lr: 0.001, not 0.1\); give another"
    ):
        make_plan(replace(asked, words=(*asked.words, "optimiser.lr=0.1")))
    with pytest.raises(ValueError, match=r"lol_v2_real was made with other settings \(sampler.steps: 2, not 3\)"):
        make_plan(replace(asked, words=(*asked.words, "sampler.steps=3")))
    with pytest.raises(ValueError, match="data.embeddings: None, not texts"):
        make_plan(replace(asked, words=(*asked.words, "data.embeddings=texts")))
    with pytest.raises(ValueError, match="tile: 0, not 64"):
        make_plan(replace(asked, measuring=Measuring(device="cpu", tile=64)))
    only_base = replace(asked, arms=frozenset({"base"}), words=(*asked.words, "optimiser.lr=0.1"))
    assert len(make_plan(only_base).done) == 1  # which no learning rate changes


def test_a_damaged_result_is_told_with_its_file(sets: Path, names: Path, tmp_path: Path) -> None:
    asked = wanted("1", tmp_path, [sets], [names], models=frozenset({"diffbir"}), arms=frozenset({"base"}))
    label = "diffbir.lol_v2_real.base.s0.lol_v2_real"
    finish(make_plan(asked), tmp_path, label)
    file = tmp_path / "cells" / label / CELL_FILE
    for content in ("{", "[]", json.dumps({"key": {}})):
        file.write_text(content)
        with pytest.raises(ValueError, match="is no result of a cell .*remove its folder"):
            make_plan(asked)


def test_a_job_goes_through_a_file_as_it_is(sets: Path, names: Path, tmp_path: Path) -> None:
    asked = wanted("6", tmp_path, [sets], [names], sft=Path("configs/sft.yaml"))
    for job in make_plan(replace(asked, measuring=Measuring(scorers=("piqe",), lpips=tmp_path))).jobs:
        assert Job.of(json.loads(json.dumps(job.plain()))) == job


def test_a_word_that_no_recipe_takes_is_an_error_before_anything_starts(
    sets: Path, names: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="optimiser.lrr"):
        make_plan(wanted("1", tmp_path, [sets], [names], words=("optimiser.lrr=1",)))


def test_a_path_with_signs_of_yaml_stays_a_path(sets: Path, tmp_path: Path) -> None:
    odd = tmp_path / "my models: #1, {two}"
    name_model(odd / "diffbir", "diffbir")
    plan = make_plan(wanted("1", tmp_path, [sets], [odd], models=frozenset({"diffbir"})))
    assert {config.model for config in plan.configs.values()} == {odd / "diffbir"}
