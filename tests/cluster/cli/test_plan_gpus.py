"""`restorl plan`: what it prints, and what it refuses in one line."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import cluster.cli.app as cli
from cluster.config.configure import load_config, save_config
from cluster.config.recipe import RunConfig
from cluster.plan.recipe import counts_of, shares_of
from cluster.report.records import MetricsLog
from cluster.run.checks.resources import demands
from cluster.run.memory_plan import RoleMemory
from restoration.flops import PassFlops
from tests.cluster.plan.test_measured import records

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "configs" / "gpu.yaml"
TERA = 10**12


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted on the meta device, in seconds, has tests of its own; here it is a large model's."""
    each = PassFlops(condition=TERA, denoise=TERA, decode=TERA, replay=4 * TERA, sft=3 * TERA)
    monkeypatch.setattr("cluster.plan.counting.pass_flops", lambda *_, **__: each)
    roles = [
        RoleMemory("actor", {"weights": 8 << 30}, {"decode": 4 << 30}, {}),
        RoleMemory("rank", {}, {"step": 30 << 30}),
    ]
    monkeypatch.setattr("cluster.plan.counting.memory_plan", lambda *_: roles)


@pytest.fixture
def given(tmp_path: Path) -> tuple[str, ...]:
    """The demo's small model, and a pair of pictures."""
    for split in ("train", "test"):
        for kind in ("input", "target"):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
            Image.new("RGB", (80, 64)).save(tmp_path / "data" / split / kind / "a.png")
    return (
        f"model={ROOT / 'models' / 'demo'}",
        f"data.root={tmp_path / 'data'}",
        "rollout.crop=64",
        "objective.rl_coef=1",
    )


def plan(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["plan", *map(str, arguments)])


def written(text: str) -> list[str]:
    """The overrides that it says to write."""
    (line,) = [line for line in text.splitlines() if " GPUs: actors.count=" in line]
    return shlex.split(line.split(" GPUs: ")[1])


def test_the_overrides_that_it_prints_are_a_recipe_that_takes_no_more_gpus_than_there_are(
    given: tuple[str, ...],
) -> None:
    result = plan(RECIPE, "--gpus", 8, "--score-ms", 5, *given)
    assert result.exit_code == 0, result.output
    config = load_config(RunConfig, RECIPE, [*given, *written(result.stdout)])
    assert shares_of(config).of(counts_of(config)) <= 8
    text = " ".join(result.stdout.split())
    assert text.startswith("an ESTIMATE within a factor of 2, nothing was measured") and "it waits for" in text
    assert all(word in text for word in ("iterations an hour", "one more process of", "memory of one", "MiB"))
    assert re.search(r"actor +13\.0 +74\.5", result.stdout)


def parts_of(text: str) -> str:
    """The table of an iteration's parts."""
    return text.partition("s an iteration")[2].partition("one more process of")[0]


SCORER = "tests.cluster.cli.test_cli:Brightness"


def gpus_of(config: RunConfig) -> float:
    """That a run of it reserves."""
    return sum(role.count * role.each.get("GPU", 0.0) for role in demands(config))


def test_terms_that_only_evaluations_ask_take_their_gpus_first_and_keep_their_replicas(given: tuple[str, ...]) -> None:
    terms = f"reward.terms=[{{name: a, scorer: '{SCORER}'}}, {{name: b, scorer: '{SCORER}', weight: 0, replicas: 2}}]"
    result = plan(RECIPE, "--gpus", 8, "--score-ms", 5, *given, terms)
    assert result.exit_code == 0, result.output
    config = load_config(RunConfig, RECIPE, [*given, terms, *written(result.stdout)])
    assert gpus_of(config) <= 8 and config.reward.services["b"].replicas == 2
    assert f"{gpus_of(config):g} of 8 GPUs are used" in result.stdout
    assert "2 of them by terms with weight 0 (b), for evaluations" in result.stdout
    few = plan(RECIPE, "--gpus", 4, "--score-ms", 5, *given, terms)
    assert few.exit_code == 2 and "reserve 3; give more" in few.stderr and "(2 of the 4 are those of" in few.stderr
    none = plan(RECIPE, "--gpus", 2, "--score-ms", 5, *given, terms)
    assert none.exit_code == 2 and "weight 0 (b) reserve 2, and none is left" in none.stderr


@pytest.mark.parametrize("own", ["", ", replicas: 1", ", min_replicas: 1, max_replicas: 1"])
def test_terms_that_want_other_numbers_are_written_as_an_override_that_a_recipe_takes(
    given: tuple[str, ...], own: str
) -> None:
    terms = f"reward.terms=[{{name: a, scorer: '{SCORER}'{own}}}, {{name: b, scorer: '{SCORER}'}}]"
    result = plan(RECIPE, "--gpus", 32, "--score-ms", "a=40", "--score-ms", "b=4", *given, terms)
    assert result.exit_code == 0, result.output
    config = load_config(RunConfig, RECIPE, [*given, terms, *written(result.stdout)])
    table = {name: int(count) for name, count in re.findall(r"reward (\w) +(\d+) ", parts_of(result.stdout))}
    most = {name: of.max_replicas or of.replicas for name, of in config.reward.services.items()}
    assert most == table and table["a"] > table["b"] >= 1
    assert config.reward.resolved.terms[0].name == "a"


def test_more_gpus_than_a_batch_feeds_are_told_with_a_batch_that_would(given: tuple[str, ...]) -> None:
    result = plan(RECIPE, "--gpus", 512, "--score-ms", 5, *given)
    assert result.exit_code == 0, result.output
    assert "a batch of this recipe feeds no more; with source.groups_per_step=" in result.stdout


def run_of(folder: Path, given: tuple[str, ...], iterations: int) -> Path:
    folder.mkdir()
    save_config(load_config(RunConfig, RECIPE, [*given, "reward.replicas=2", "ranks.count=2"]), folder / "config.yaml")
    with MetricsLog(folder, tensorboard=False) as log:
        for record in records(iterations):
            log.append(record)
    return folder


def test_a_run_is_planned_by_with_its_iterations_their_spread_and_how_well_the_model_tells_it(
    given: tuple[str, ...], tmp_path: Path
) -> None:
    folder = run_of(tmp_path / "run", given, 9)
    result = plan(RECIPE, "--gpus", 8, "--from", folder, *given)
    assert result.exit_code == 0, result.output
    assert "run: 7 iterations, seconds of each" in result.stdout and "ESTIMATE" not in result.stdout
    assert re.search(r"rollout: \S+ s \(\S+ to \S+\)", result.stdout)
    assert re.search(r"the model says \S+ s for that run's own counts, it took \S+ \([+-]\d+%\)", result.stdout)
    assert written(result.stdout)


def test_how_well_the_model_tells_a_run_does_not_hang_on_the_new_recipes_evaluations(
    given: tuple[str, ...], tmp_path: Path
) -> None:
    folder, told, plans = run_of(tmp_path / "run", given, 9), set[str](), list[str]()
    for every in (0, 1):
        result = plan(RECIPE, "--gpus", 8, "--from", folder, *given, f"evaluation.every={every}")
        assert result.exit_code == 0, result.output
        told |= {*re.findall("the model says .*", result.stdout)}
        plans += re.findall(r"actors +\d+ +(\S+)", parts_of(result.stdout))
    assert len(told) == 1 and len(set(plans)) == 2  # of what is planned they are a part


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--gpus", 8, "--from", "runs/a", "--score-ms", 5), "--score-ms 5: is for an estimate, and --from runs/a"),
        (("--gpus", 8, "--gpu-kind", "tpu"), "--gpu-kind tpu: nothing is known of it; choose h200, "),
        (("--gpus", 2), "2 GPUs: an actor, a replica of each reward and 1 rank reserve 3; give more"),
        (("--gpus", 8, "actors.num_gpus=0"), "actors.num_gpus=0: the role computes on CPUs"),
        (
            ("--gpus", 8, "--gpu-kind", "l4"),
            "as one of 8, and 22.4 of a l4 are its; give more GPUs with optimiser.zero_stage=3",
        ),
        (("--gpus", 8, "--gpu-kind", "l4", "actors.num_gpus=0.5"), "actors: a process needs about 13.0 GiB (decode)"),
        (("--gpus", 8, "--score-ms", "sharp=3"), "--score-ms sharp=...: no such term"),
        (("--gpus", 8, "--score-ms", "0"), "--score-ms 0: milliseconds of a picture, above 0"),
        (("--gpus", 8, "actors.num_gpus=0", "ranks.num_gpus=0", "reward.num_gpus=0"), "no role of it reserves a GPU"),
        (("--gpus", 8, "sampler.steps=1"), "sampler.steps=1"),
        (("--gpus", 8, "model=/nowhere"), "/nowhere is not a folder"),
    ],
)
def test_what_can_not_be_planned_is_one_line(given: tuple[str, ...], arguments: tuple[object, ...], told: str) -> None:
    score = () if "--score-ms" in arguments else ("--score-ms", 5)
    result = plan(RECIPE, *given, *score, *arguments)
    assert result.exit_code == 2 and not result.stdout, result.output
    assert told in result.stderr, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_scorer_whose_time_is_unknown_is_asked_for(given: tuple[str, ...]) -> None:
    result = plan(RECIPE, "--gpus", 8, *given)
    assert (
        result.exit_code == 2 and "reward: how long its scorer takes isn't known; give --score-ms MS" in result.stderr
    )


def test_runs_of_other_work_or_of_too_few_iterations_are_refused(given: tuple[str, ...], tmp_path: Path) -> None:
    few = plan(RECIPE, "--gpus", 8, "--from", run_of(tmp_path / "few", given, 4), *given)
    assert few.exit_code == 2 and "few: 4 iterations, and phase times are taken from 3 at least" in few.stderr
    other = plan(RECIPE, "--gpus", 8, "--from", tmp_path / "few", *given, "rollout.crop=32")
    assert other.exit_code == 2 and "other work than this recipe's (rollout.crop: 64 there, 32 here)" in other.stderr
    none = plan(RECIPE, "--gpus", 8, "--from", tmp_path / "none", *given)
    assert none.exit_code == 2 and "none is no run" in none.stderr
