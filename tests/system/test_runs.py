"""Whole runs: killed, interrupted, resumed, refused."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cluster.config.configure import ConfigError, load_config
from cluster.config.recipe import RunConfig
from cluster.models import load_policy
from cluster.report.records import read_metrics, without_timings
from cluster.report.run_audit import audit_run
from cluster.run.driver import train
from learner.checkpoint import latest
from restoration.datasets.paired import DataError
from tests.system.conftest import SYNCHRONOUS, Run, Start

pytestmark = pytest.mark.timeout(900)


def trained(run: Path, file: str = "weights.safetensors") -> dict[str, torch.Tensor]:
    path = latest(run / "checkpoints")
    assert path is not None
    return load_file(path / file)


@pytest.mark.slow
def test_a_run_survives_the_kill_of_its_parts_and_uses_each_trajectory_once(start: Start) -> None:
    # The second actor has room only where it takes that of the rank: at the start, or when the rank is killed.
    crowded = ("actors.count=2", "actors.min=1", "actors.num_cpus=0.7", "ranks.num_cpus=0.7")
    fewer = ("evaluation.every=0", "evaluation.strips=0")
    run = start("killed", "iterations=7", "source.max_staleness=1", *fewer, *crowded)
    victims = ("ray::RolloutActor", "ray::ServeReplica", "ray::RankProcess", "valkey-server")
    for iteration, victim in enumerate(victims, 1):
        run.wait_for_iteration(iteration)
        run.kill(victim)
    assert run.wait() == 0, run.output()

    report, _ = audit_run(run.folder)
    assert report.ok, report.render()
    assert report.consumed == 7 * 4
    assert report.published == report.consumed + sum(report.dropped.values()) + report.pending
    steps = [r["iteration"] for r in read_metrics(run.folder, "train")]
    assert steps == list(range(1, 8))
    assert (run.folder / "report.html").stat().st_size > 1000


LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.slow
def test_a_local_run_with_dashboard_and_two_ranks_listens_on_loopback_only(start: Start) -> None:
    run = start("ports", "cluster.dashboard=true", "ranks.count=2", "iterations=50")
    run.wait_for_iteration(1)
    run.wait_for_output("Ray dashboard: http://127.0.0.1:")
    time.sleep(1)  # it stays: the kernel ends what it fears to be orphaned
    found = run.listening()
    told = " ".join(line for lines in found.values() for line in lines)
    for part in ("gcs_server", "raylet", "dashboard", "ServeReplica", "RankProcess", "valkey-server"):
        assert part in told
    assert "52365" not in str(found)  # the agent's of any other Ray
    assert found.keys() <= LOOPBACK, {k: v for k, v in found.items() if k not in LOOPBACK}
    os.kill(run.process.pid, signal.SIGINT)
    assert run.wait() == 130, run.output()


def test_a_run_interrupted_and_resumed_equals_one_that_was_not_bit_for_bit(start: Start, synchronous: Run) -> None:
    parts = start("parts", *SYNCHRONOUS)
    parts.wait_for_iteration(2)
    assert parts.listening().keys() <= LOOPBACK
    os.kill(parts.process.pid, signal.SIGINT)
    assert parts.wait() == 130, parts.output()
    assert "--resume" in parts.output() and "Traceback" not in parts.output()
    assert parts.iteration() < 4
    resumed = start("parts", resume=True)
    assert resumed.wait() == 0, resumed.output()

    # Evaluations end beside training, when they do.
    records = [
        sorted(without_timings(read_metrics(run.folder)), key=lambda r: (r["iteration"], r["kind"], r.get("who", "")))
        for run in (synchronous, resumed)
    ]
    assert records[0] == records[1]
    weights = [trained(run.folder) for run in (synchronous, resumed)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert audit_run(resumed.folder)[0].ok
    assert json.loads((resumed.folder / "run.json").read_text())["run_id"].startswith("system-")
    assert "groups_per_step: 4" in (resumed.folder / "config.yaml").read_text()


def test_a_single_process_gives_what_a_synchronous_run_of_the_system_gives(start: Start, synchronous: Run) -> None:
    """The same recipe through `learner.reference`: other code for rollout, advantage, loss and update."""
    single = start("single", "--single", *SYNCHRONOUS)
    assert single.wait() == 0, single.output()
    names = ("loss", "loss_rl", "loss_sft", "grad_norm", "reward_mean", "reward_std_within", "error_l2")
    pairs = zip(read_metrics(synchronous.folder, "train"), read_metrics(single.folder, "train"), strict=True)
    for ours, reference in pairs:
        for name in names:
            assert ours[name] == pytest.approx(reference[name], rel=1e-4, abs=1e-5), (ours["iteration"], name)
    # Two terms, each told by its name.
    last, alone = (read_metrics(run.folder, "train")[-1] for run in (synchronous, single))
    told = {name: value for name, value in last.items() if name.startswith("term_")}
    assert len(told) == 4 and told == pytest.approx({name: alone[name] for name in told}, rel=1e-4, abs=1e-5)
    assert last["reward_mean"] == pytest.approx(last["term_contrast_mean"], rel=1e-5)
    assert 5 < last["term_psnr_mean"] < 60 and last["term_psnr_std_within"] > 0
    assert "Terms of the reward" in (synchronous.folder / "report.html").read_text()
    for file in ("average.safetensors", "weights.safetensors"):
        ours, reference = (trained(run.folder, file) for run in (synchronous, single))
        assert all(torch.allclose(value, reference[name], rtol=0, atol=1e-5) for name, value in ours.items())
    moved = max(float(value.abs().max()) for name, value in ours.items() if "lora_B" in name)  # from 0
    assert moved > 1e-4
    assert [r["who"] for r in read_metrics(synchronous.folder, "eval")] == ["base", "now", "ema", "now", "ema"]
    averaged = load_policy(synchronous.folder, "average")[0].policy.state_dict()
    assert torch.equal(averaged[name := next(iter(ours))], trained(synchronous.folder, "average.safetensors")[name])


def test_a_scorer_that_gives_nan_ends_the_run_with_its_reason_and_no_reward_of_0(start: Start) -> None:
    small = ("sampler.steps=2", "rollout.images_per_batch=1", "evaluation.limit=1", "evaluation.strips=0")
    run = start("failing", "reward.scorer=tests.system.scorers:NotANumber", *small)
    assert run.wait() == 2, run.output()
    assert "gave nan" in run.output() and "Traceback" not in run.output()
    assert read_metrics(run.folder, "train") == []


@pytest.mark.slow
def test_terms_with_a_service_each_start_side_by_side_and_a_run_is_scored_by_both(start: Start) -> None:
    second = "{scorer: tests.system.scorers:Percent, name: percent, weight: 0.01}"
    run = start("two", f"reward.terms=[{{name: contrast}}, {second}]", "iterations=1", "evaluation.every=0")
    assert run.wait() == 0, run.output()
    (record,) = read_metrics(run.folder, "train")
    assert record["term_percent_mean"] == pytest.approx(30 + 10 * record["term_contrast_mean"], rel=1e-4)
    assert {"reward", "percent"} <= read_metrics(run.folder, "eval")[-1].keys()


@pytest.mark.slow
def test_a_service_that_can_not_start_ends_the_others_and_the_run(start: Start) -> None:
    wrong = "{scorer: tests.system.scorers:Percent, name: percent, params: {nonsense: 1}}"
    run = start("wrong", f"reward.terms=[{{name: contrast}}, {wrong}]")
    assert run.wait() == 2 and "nonsense" in run.output() and "Traceback" not in run.output()


def test_an_unreachable_store_is_told_without_a_stack_trace(start: Start) -> None:
    run = start("mistake", "store.url=redis://127.0.0.1:1", "store.reconnect_timeout_s=2")
    assert run.wait() == 2, run.output()
    assert "127.0.0.1:1" in run.output() and "Traceback" not in run.output()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimiser.lrr=1", "optimiser.lr"),
        ("sampler.eta=0", "sampler.eta"),
        ("source.groups_per_step=3", "rollout.images_per_batch"),
        ("store.max_entries=4", "store.max_entries"),
        ("objective.recipe=mine", "diff_sft"),
        ("learner.dtype=bfloat16", "rollout.denoise_dtype"),
    ],
)
def test_a_mistake_in_the_recipe_is_told_before_anything_starts(workplace: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(RunConfig, workplace / "recipe.yaml", [override])


def test_an_unknown_scorer_of_evaluations_is_told_before_ray_starts(workplace: Path, tmp_path: Path) -> None:
    config = load_config(RunConfig, workplace / "recipe.yaml", ["evaluation.scorers=[nonsense]"])
    with pytest.raises(ConfigError, match="evaluation.scorers: no scorer named 'nonsense'"):
        train(config, tmp_path / "run")


def test_missing_data_is_told_before_ray_starts(workplace: Path, tmp_path: Path) -> None:
    config = load_config(RunConfig, workplace / "recipe.yaml", ["data.root=/nowhere"])
    with pytest.raises((FileNotFoundError, DataError), match="nowhere"):
        train(config, tmp_path / "run")
