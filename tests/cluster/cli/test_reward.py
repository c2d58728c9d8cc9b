"""`restorl reward` finds the services that are meant, and no other."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cluster.jobs
from cluster.cli.app import app
from cluster.cli.reward import named_services, told
from cluster.config.configure import ConfigError
from cluster.run.interrupts import Stopped
from reward_service import rescaling, standing
from reward_service.errors import RewardUnavailable
from reward_service.settings import RewardApp, RewardSettings


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    calls: list[tuple[str, Any]] = []
    monkeypatch.setattr(cluster.jobs, "attach", lambda folder: contextlib.nullcontext())
    monkeypatch.setattr(cluster.jobs, "connect", lambda settings: contextlib.nullcontext())
    monkeypatch.setattr(rescaling, "rescale", lambda name, *wanted: calls.append((name, wanted)))
    monkeypatch.setattr(standing, "names", lambda: ["iqa", "reward-x-1"])
    return calls


@pytest.mark.parametrize(
    ("there", "words", "wanted"),
    [
        (["reward-demo-1a2b", "reward-demo-1a2b9", "iqa"], [], "reward-demo-1a2b"),
        (["reward-demo-1a2b.term.lite0_levels"], [], "reward-demo-1a2b.term.lite0_levels"),
        (["reward-demo-1a2b.term.a", "reward-demo-1a2b.term.b"], ["--term", "b"], "reward-demo-1a2b.term.b"),
        (["reward-demo-1a2b.term.a", "reward-demo-1a2b.term.b"], [], "these terms with one: a, b; name it by --term"),
        (["reward-demo-1a2b.term.a"], ["--term", "b"], "these terms with one: a; name it by --term"),
        ([], [], "these terms with one: none"),
    ],
)
def test_the_service_is_that_of_the_runs_own_id_and_of_the_named_term(
    scaled: list[tuple[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: list[str],
    words: list[str],
    wanted: str,
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"run_id": "demo-1a2b"}))
    monkeypatch.setattr(standing, "names", lambda: there)
    result = CliRunner().invoke(app, ["reward", "scale", "3", "--run", str(tmp_path), *words])
    if wanted.startswith("reward-"):
        assert (result.exit_code, scaled) == (0, [(wanted, (3, None, None))])
    else:
        assert result.exit_code == 2 and wanted in " ".join(result.output.split()) and not scaled


def test_on_a_cluster_the_service_is_named(scaled: list[tuple[str, Any]]) -> None:
    result = CliRunner().invoke(app, ["reward", "scale", "2", "--address", "10.0.0.1:6379", "--app", "reward-x-1"])
    assert (result.exit_code, scaled) == (0, [("reward-x-1", (2, None, None))])


@pytest.mark.parametrize("arguments", [[], ["--address", "auto"], ["--run", "runs/x", "--app", "reward-x-1"]])
def test_no_service_is_guessed(scaled: list[tuple[str, Any]], arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["reward", "scale", "2", *arguments])
    assert result.exit_code == 2 and not scaled
    assert "which service?" in result.output


def test_bounds_let_a_service_scale_itself(scaled: list[tuple[str, Any]]) -> None:
    result = CliRunner().invoke(app, ["reward", "scale", "--min", "1", "--max", "4", "--app", "iqa"])
    assert (result.exit_code, scaled) == (0, [("iqa", (None, 1, 4))])
    for wrong in (["2", "--min", "1", "--max", "4"], ["--min", "1"], []):
        result = CliRunner().invoke(app, ["reward", "scale", *wrong, "--app", "iqa"])
        assert result.exit_code == 2 and "how many?" in result.output and len(scaled) == 1


@pytest.fixture
def stood(monkeypatch: pytest.MonkeyPatch, scaled: list[tuple[str, Any]]) -> dict[str, RewardSettings]:
    found: dict[str, RewardSettings] = {}

    def stand(settings: RewardSettings, name: str) -> RewardApp:
        found[name] = settings
        return RewardApp(name, settings.scorer, "v1")

    monkeypatch.setattr(standing, "stand", stand)
    return found


def test_scorers_are_served_each_with_its_own_parameters_and_the_settings_of_all(
    stood: dict[str, RewardSettings],
) -> None:
    words = ["deqa,weights=some/folder", "piqe", "num_gpus=0.5", "min_replicas=1", "max_replicas=3"]
    result = CliRunner().invoke(app, ["reward", "serve", *words, "--name", "iqa"])
    assert result.exit_code == 0 and "reward.app=iqa-deqa" in result.output, result.output
    assert list(stood) == ["iqa-deqa", "iqa-piqe"]
    assert (stood["iqa-deqa"].params, stood["iqa-piqe"].params) == ({"weights": "some/folder"}, {})
    assert {(s.num_gpus, s.min_replicas, s.max_replicas) for s in stood.values()} == {(0.5, 1, 3)}


def test_the_reward_of_a_recipe_is_served_and_what_is_given_beside_it_wins(
    stood: dict[str, RewardSettings], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: nowhere\nreward: {scorer: piqe, max_batch: 4, replicas: 2, app: other}\n")
    result = CliRunner().invoke(app, ["reward", "serve", str(recipe), "replicas=3", "params.device=cpu"])
    assert result.exit_code == 0, result.output
    assert stood == {"piqe": RewardSettings("piqe", {"device": "cpu"}, replicas=3, max_batch=4)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["replicas=2"], "which scorer?"),
        (["piqe", "replica=2"], "replicas"),
        (["piqe", "replicas=0"], "at least 1"),
        (["piqe", "piqe"], "two services named piqe"),
        (["nowhere.yaml"], "no such file"),
        (["nima"], "no scorer named 'nima'; there are brisque"),
        (["https://scores.example/iqa"], "a server's address is no name"),
        (["http://localhost:8900,insecure=true"], "a server's address is no name"),
    ],
)
def test_words_that_make_no_service_are_refused(words: list[str], said: str, stood: dict[str, RewardSettings]) -> None:
    with pytest.raises((ConfigError, ValueError), match=said):
        named_services(words, None)
    result = CliRunner().invoke(app, ["reward", "serve", *words])
    assert result.exit_code == 2 and not stood and "Traceback" not in result.output


def test_a_cluster_that_ends_with_the_command_serves_nobody(stood: dict[str, RewardSettings]) -> None:
    result = CliRunner().invoke(app, ["reward", "serve", "piqe", "--address", "local"])
    assert result.exit_code == 2 and not stood and "ray start --head" in result.output


def test_the_status_tells_what_each_service_does_and_fails_if_one_does_not_run(
    monkeypatch: pytest.MonkeyPatch, scaled: list[tuple[str, Any]], tmp_path: Path
) -> None:
    gone = {"app": "gone", "status": "UNHEALTHY", "replicas": {}, "message": "no room", "owner": None}
    runs = {
        **{"app": "reward-demo-1", "status": "RUNNING", "replicas": {"RUNNING": 2}, "message": "", "owner": "me@here"},
        **{"stands_alone": False, "scorer": "piqe piqe-2", "settings": {"min_replicas": 1, "max_replicas": 3}},
        **{"images": 640, "images_per_s": 12.34, "ongoing": 16, "fill": 0.97, "failures": {"timeout": 2}},
        **{"queue_p50_s": 0.1, "queue_p99_s": 1.5, "scorer_p50_s": 0.25, "scorer_p99_s": 0.5, "limits": {"8x8": 4}},
    }
    services = {"gone": {**gone, "stands_alone": False}, "reward-demo-1": runs}
    monkeypatch.setattr(standing, "names", lambda: list(services))
    monkeypatch.setattr(standing, "overview", lambda name: services[name])
    (tmp_path / "run.json").write_text(json.dumps({"run_id": "demo-1"}))
    result = CliRunner().invoke(app, ["reward", "status", "--run", str(tmp_path)])
    assert result.exit_code == 0
    assert (
        result.output.splitlines()
        == told(runs).splitlines()
        == [
            "reward-demo-1: RUNNING, 2 running; of me@here",
            "  scales itself between 1 and 3 replicas",
            "  piqe piqe-2",
            "  640 images, 12.3 a second in the last minute, 16 under way; batches 97 % full",
            "  a block waits 0.100 s (p50), 1.500 s (p99); a batch takes 0.250 s, 0.500 s",
            "  without rewards: 2 timeout",
            "  memory allows 4 images of 8x8 at once",
        ]
    )
    every = CliRunner().invoke(app, ["reward", "status", "--json"])
    assert every.exit_code == 1 and json.loads(every.output) == list(services.values())
    assert "gone: UNHEALTHY, no replicas" in CliRunner().invoke(app, ["reward", "status"]).output


def test_services_are_stopped_by_name(monkeypatch: pytest.MonkeyPatch, scaled: list[tuple[str, Any]]) -> None:
    stopped: list[str] = []
    monkeypatch.setattr(standing, "stop", stopped.append)
    assert CliRunner().invoke(app, ["reward", "stop", "iqa", "other"]).exit_code == 0 and stopped == ["iqa", "other"]


def test_each_served_term_of_a_recipe_is_a_service(stood: dict[str, RewardSettings], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("reward: {terms: [{scorer: piqe}, {scorer: niqe, weight: 2, max_batch: 3}, {scorer: psnr}]}\n")
    assert CliRunner().invoke(app, ["reward", "serve", str(recipe), "num_cpus=2"]).exit_code == 0
    assert {name: (s.max_batch, s.num_cpus) for name, s in stood.items()} == {"piqe": (64, 2.0), "niqe": (3, 2.0)}


def test_a_server_is_served_under_the_name_that_is_given(stood: dict[str, RewardSettings]) -> None:
    result = CliRunner().invoke(app, ["reward", "serve", "https://scores.example/iqa,retries=1", "--name", "iqa"])
    assert result.exit_code == 0, result.output
    assert stood["iqa"] == RewardSettings("https://scores.example/iqa", {"retries": 1})


def test_a_start_that_is_interrupted_says_what_may_be_left(
    stood: dict[str, RewardSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(settings: RewardSettings, name: str) -> RewardApp:
        raise Stopped(number=signal.SIGTERM)

    monkeypatch.setattr(standing, "stand", interrupted)
    result = CliRunner().invoke(app, ["reward", "serve", "piqe", "--name", "iqa"])
    assert result.exit_code == 143 and "iqa is taken back, or goes back to the settings it had" in result.output


def test_one_service_that_can_not_be_stopped_keeps_no_other(
    monkeypatch: pytest.MonkeyPatch, scaled: list[tuple[str, Any]]
) -> None:
    stopped: list[str] = []

    def stop(name: str) -> None:
        if name.startswith("no"):
            raise RewardUnavailable(f"no reward service {name!r} to stop")
        stopped.append(name)

    monkeypatch.setattr(standing, "stop", stop)
    result = CliRunner().invoke(app, ["reward", "stop", "none", "iqa", "iqa", "nobody"])
    assert (result.exit_code, stopped) == (2, ["iqa"])
    assert "service 'none' to stop" in result.output and "service 'nobody' to stop" in result.output


def test_a_status_of_a_service_and_of_a_run_is_of_neither(scaled: list[tuple[str, Any]]) -> None:
    result = CliRunner().invoke(app, ["reward", "status", "iqa", "--run", "runs/x"])
    assert result.exit_code == 2 and "give either its name, iqa, or --run" in result.output


@pytest.mark.parametrize("words", [["scale", "2", "--app", "iq"], ["status", "iq"]])
def test_a_service_that_is_not_there_is_told_with_those_that_are(
    scaled: list[tuple[str, Any]], words: list[str]
) -> None:
    result = CliRunner().invoke(app, ["reward", *words])
    assert result.exit_code == 2 and not scaled
    assert "no reward service 'iq'; there are: iqa, reward-x-1" in " ".join(result.output.split())
