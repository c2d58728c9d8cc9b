"""A run that takes far longer than its recipe says, from invented measurements: what is told and what is offered."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.config.configure import load_config, save_config
from cluster.config.recipe import RunConfig
from cluster.run.expected import FIXED, Expected, Here, Measured, causes, cores_wanted, far_above, seconds_of, smaller
from cluster.run.machine import Machine
from cluster.run.pace import Pace

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
HERE = Here(Machine(bf16=False), bf16=False, cores=2, others=0.0)
# As measured where the decoder ran in bfloat16 on a processor without it, ten times as slow.
SLOW = Measured(start_s=30.0, iteration_s=330.0, part_s=60.0, parts=3, pictures=48)


def demo(*overrides: str) -> RunConfig:
    return load_config(RunConfig, DEMO, ["expected_minutes=18", *overrides])


def command_in(text: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if "restorl train" in line)
    return shlex.split(line[line.index("restorl train") :])


def test_a_smaller_run_fits_into_what_the_recipe_says_and_its_command_is_one_that_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a run"
    save_config(demo(), folder / "config.yaml")
    said = far_above(demo(), folder, 12_300.0, SLOW, HERE)
    assert "will take about 3 h 20 min, and its recipe says about 18 min (expected_minutes=18); it goes on" in said
    calls: list[Any] = []
    summary = SimpleNamespace(base={}, rl={}, iterations=1, seconds=1.0, peak_memory_mb=1.0, report=None, folder=folder)
    monkeypatch.setattr("cluster.run.driver.train", lambda *given: calls.append(given) or summary)
    program, *words = command_in(said)
    result = CliRunner().invoke(app, words)
    assert program == "restorl" and result.exit_code == 0, result.output
    ((config, new, resume),) = calls
    assert new == tmp_path / "a run-smaller" and not new.exists() and not resume
    assert config.source.groups_per_step < 8 or config.iterations < 36
    takes = 30 + config.iterations * 330 * (FIXED + (1 - FIXED) * config.source.groups_per_step / 8)
    assert takes <= 18 * 60 and config.source.groups_per_step % config.rollout.images_per_batch == 0


@pytest.mark.parametrize(
    ("minutes", "wanted"),
    [
        (100, {"iterations": 36}),
        (22, {"iterations": 29}),
        (18, {"iterations": 23}),
        (13, {"iterations": 18, "evaluation.every": 0, "evaluation.limit": 16}),
        (9, {"iterations": 18, "source.groups_per_step": 4}),
        (4, {"iterations": 8, "source.groups_per_step": 4, "evaluation.every": 0, "evaluation.limit": 16}),
    ],
)
def test_iterations_go_first_and_below_half_of_them_evaluations_and_pictures_of_an_iteration(
    minutes: float, wanted: dict[str, Any]
) -> None:
    measured = Measured(start_s=30.0, iteration_s=40.0, part_s=8.0, parts=3, pictures=48)
    found = smaller(demo(), measured, minutes * 60)
    assert found is not None
    overrides, seconds = found
    assert overrides == wanted and seconds <= minutes * 60
    assert seconds == pytest.approx(seconds_of(demo(), measured, overrides))
    more = {**overrides, "iterations": overrides["iterations"] + 1}
    assert overrides["iterations"] == 36 or seconds_of(demo(), measured, more) > minutes * 60


def test_the_cost_of_a_run_is_start_iterations_and_every_evaluation_of_each_model() -> None:
    measured = Measured(start_s=10.0, iteration_s=20.0, part_s=3.0, parts=2, pictures=32)
    evaluations = 1 + 2 * 2  # the base; after 18 and 36 the last weights and their average
    assert seconds_of(demo(), measured, {}) == pytest.approx(10 + 36 * 20 + evaluations * 2 * 3)
    assert seconds_of(demo("optimiser.ema=0"), measured, {}) == pytest.approx(10 + 36 * 20 + 3 * 2 * 3)
    few = {"iterations": 5, "evaluation.every": 0, "evaluation.limit": 16, "source.groups_per_step": 4}
    assert seconds_of(demo(), measured, few) == pytest.approx(10 + 5 * 20 * (FIXED + (1 - FIXED) / 2) + 3 * 3)


def test_where_nothing_fits_that_is_said() -> None:
    assert smaller(demo(), SLOW, 60.0) is None
    said = far_above(demo("expected_minutes=1"), Path("runs/x"), 12_300.0, SLOW, HERE)
    assert "no run of 2 iterations fits" in said and "restorl" not in said


def test_a_folder_that_exists_is_never_offered(tmp_path: Path) -> None:
    (tmp_path / "r-smaller").mkdir()
    said = far_above(demo(), tmp_path / "r", 12_300.0, SLOW, HERE)
    assert command_in(said)[-1] == str(tmp_path / "r-smaller-2")


def test_the_cause_is_told_where_it_can_be() -> None:
    named = list(causes(demo("rollout.decode_dtype=bfloat16"), HERE))
    assert len(named) == 1 and named[0].startswith("rollout.decode_dtype=bfloat16, in which this processor takes")
    assert "rollout.decode_dtype=auto mends that" in named[0]
    (believed,) = causes(demo(), replace(HERE, machine=Machine(bf16=True)))
    assert "rollout.decode_dtype=auto means bfloat16 because RESTORL_NATIVE_BF16=1 says so" in believed
    native = replace(HERE, machine=Machine(bf16=True), bf16=True)
    assert list(causes(demo("rollout.decode_dtype=bfloat16"), native)) == []
    (few,) = causes(demo(), replace(HERE, cores=1))
    assert few == "this process may use 1 of the 2 cores that the recipe counts on"
    (busy,) = causes(demo(), replace(HERE, others=1.26))
    assert busy == "other programs use 1.3 of this machine's cores"
    assert list(causes(demo(), replace(HERE, others=0.1))) == []
    assert list(causes(demo("cluster.address=10.0.0.1:6379"), replace(HERE, cores=1, others=2))) == []
    unknown = far_above(demo(), Path("runs/x"), 12_300.0, SLOW, HERE)
    assert "why: neither a slow number type nor missing cores nor other load" in unknown


def test_cores_are_those_of_the_cluster_or_else_the_threads_of_roles_on_the_cpu() -> None:
    assert cores_wanted(demo()) == 2
    assert cores_wanted(demo("cluster.num_cpus=null", "actors.count=3", "ranks.threads=2")) == 5
    assert cores_wanted(demo("cluster.num_cpus=null", "actors.count=3", "ranks.num_gpus=1")) == 3


def test_it_is_told_once_and_after_a_first_iteration_only_if_there_can_be_no_doubt() -> None:
    def expected(config: RunConfig, looked: list[str]) -> Expected:
        def look() -> Here:
            looked.append("x")
            return HERE

        return Expected(config, Path("runs/x"), 30.0, 3, 48, look)

    pace, looked = Pace(0.0, ahead=False), list[str]()
    pace.passed(330.0, evaluating=False)
    minutes = 18 * 60
    before = expected(demo(), looked)
    assert before.after(1, 9 * minutes, pace) == ""  # nothing was measured
    pace.learned()
    assert before.after(1, 3.9 * minutes, pace) == "" and before.after(2, 1.9 * minutes, pace) == ""
    assert before.after(2, None, pace) == "" and looked == []
    assert before.after(3, 2.1 * minutes, pace).startswith("WARNING: the whole run will take about 38 min")
    assert before.after(4, 9.0 * minutes, pace) == "" and looked == ["x"]
    assert expected(demo(), looked).after(1, 4.1 * minutes, pace).startswith("WARNING: ")
    assert expected(demo("expected_minutes=null"), looked).after(2, 99 * minutes, pace) == ""
