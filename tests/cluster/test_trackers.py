"""Experiment trackers: what they get, and that nothing they do reaches the run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.config.configure import ConfigError, build_config
from cluster.config.recipe import TRACKERS, RunConfig
from cluster.report.records import MetricsLog
from cluster.run.folder import RunFolder
from cluster.run.looking import ForLooking
from cluster.run.preflight import trackers as findings
from cluster.tracker_process import TAKEN_OVER, figures_of
from cluster.tracker_process import TRACKERS as ADAPTERS
from cluster.trackers import LIBRARIES, MOST_WAITING, Trackers, lacking, shareable

# As much of the libraries as is used; each notes what it is asked in `calls.jsonl` beside it.
NOTE = """
import json, os, pathlib, sys, time
def note(*what):
    with (pathlib.Path(__file__).parent / "calls.jsonl").open("a") as file:
        file.write(json.dumps(what) + chr(10))
"""
WANDB = (
    NOTE
    + """
class Run:
    def define_metric(self, name, **more): note("define", name, more)
    def log(self, row): note("log", row)
    def finish(self, exit_code): note("finish", exit_code)
class Image(dict):
    def __init__(self, path): super().__init__(image=path)
def init(**about):
    note("init", about, os.environ.get("WANDB_MODE"))
    return Run()
"""
)
MLFLOW = (
    NOTE
    + """
from types import SimpleNamespace as S
class MlflowClient:
    def get_experiment_by_name(self, name): return None
    def create_experiment(self, name): note("experiment", name); return "7"
    def search_runs(self, experiments, which, max_results):
        note("search", experiments, which)
        return [S(info=S(run_id="r0"))] if "goes-on" in which else []
    def update_run(self, run, status): note("again", run, status)
    def create_run(self, experiment, tags): note("run", experiment, tags); return S(info=S(run_id="r1"))
    def log_dict(self, run, what, name): note("config", run, what, name)
    def log_batch(self, run, metrics): note("batch", run, [list(m) for m in metrics])
    def log_artifact(self, run, path, folder): note("picture", run, path, folder)
    def set_terminated(self, run, status): note("end", run, status)
"""
)
ENTITIES = "def Metric(key, value, timestamp, step): return key, value, step\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path of imports, for fake libraries."""
    (tmp_path / "libraries").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "libraries"))
    yield tmp_path / "libraries"


@pytest.fixture
def told() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def make(tmp_path: Path, told: list[tuple[str, str]]) -> Callable[..., Trackers]:
    (tmp_path / "run" / "strips").mkdir(parents=True)
    (tmp_path / "run" / "strips" / "iter_000002.png").write_bytes(b"png")
    about = {"run_id": "demo-1", "name": "demo", "folder": str(tmp_path / "run"), "config": {"seed": 3}}
    return lambda *names, end_s=20.0: Trackers(names, about, lambda kind, why: told.append((kind, str(why))), end_s)


def calls(place: Path) -> list[Any]:
    return [json.loads(line) for line in (place / "calls.jsonl").read_text().splitlines()]


RECORDS: list[dict[str, Any]] = [
    {"kind": "train", "iteration": 1, "loss": 0.5, "nothing": None, "dropped:stale": 2},
    {"kind": "eval", "iteration": 2, "who": "now", "psnr": 24.0},
    {"kind": "alarm", "iteration": 2, "sign": "the reward rises"},
]


def test_wandb_gets_figures_by_iteration_strips_and_how_the_run_ended(
    place: Path, make: Callable[..., Trackers], told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "wandb.py").write_text(WANDB)
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(KeyboardInterrupt), make("tensorboard", "wandb") as trackers:
        for record in RECORDS:
            trackers.record(record)
        raise KeyboardInterrupt
    (init, about, mode), *rest = calls(place)
    assert (init, mode, about["id"], about["name"], about["project"]) == (
        "init",
        "offline",
        "demo-1",
        "demo",
        "restorl",
    )
    assert about["resume"] == "allow" and about["config"] == {"seed": 3}
    assert [call for call in rest if call[0] != "define"] == [
        ["log", {"iteration": 1, "train/loss": 0.5, "train/dropped:stale": 2.0}],
        ["log", {"iteration": 2, "eval/now/psnr": 24.0}],
        ["log", {"iteration": 2, "eval/strip": {"image": str(Path(about["dir"]) / "strips" / "iter_000002.png")}}],
        ["finish", 1],
    ]
    assert told == []


def test_mlflow_gets_the_same_under_names_that_it_takes(
    place: Path, make: Callable[..., Trackers], told: list[Any]
) -> None:
    (place / "mlflow").mkdir()
    (place / "mlflow" / "__init__.py").write_text(MLFLOW)
    (place / "mlflow" / "entities.py").write_text(ENTITIES)
    with make("mlflow") as trackers:
        for record in RECORDS:
            trackers.record(record)
    assert told == []
    made = [call for call in calls(place / "mlflow") if call[0] not in ("experiment", "search")]
    assert made[0] == ["run", "7", {"restorl.run_id": "demo-1", "mlflow.runName": "demo"}]
    assert made[1] == ["config", "r1", {"seed": 3}, "config.json"]
    assert made[2] == ["batch", "r1", [["train/loss", 0.5, 1], ["train/dropped_stale", 2.0, 1]]]
    assert made[3] == ["batch", "r1", [["eval/now/psnr", 24.0, 2]]]
    assert made[4][:2] == ["picture", "r1"] and made[5] == ["end", "r1", "FINISHED"]


def test_a_resumed_run_goes_on_in_the_one_that_mlflow_has_of_it(place: Path, tmp_path: Path, told: list[Any]) -> None:
    (place / "mlflow").mkdir()
    (place / "mlflow" / "__init__.py").write_text(MLFLOW)
    (place / "mlflow" / "entities.py").write_text(ENTITIES)
    about = {"run_id": "goes-on", "name": "demo", "folder": str(tmp_path), "config": {}}
    with Trackers(("mlflow",), about, lambda kind, why: told.append((kind, why))) as trackers:
        trackers.record(RECORDS[0])
        trackers.how = "failed"
    made = [call for call in calls(place / "mlflow") if call[0] not in ("experiment", "search")]
    assert [call[:2] for call in made] == [["again", "r0"], ["batch", "r0"], ["end", "r0"]] and made[2][2] == "FAILED"
    assert told == []


def test_a_run_that_goes_on_in_another_process_is_not_ended_in_mlflow(
    place: Path, make: Callable[..., Trackers]
) -> None:
    (place / "mlflow").mkdir()
    (place / "mlflow" / "__init__.py").write_text(MLFLOW)
    (place / "mlflow" / "entities.py").write_text(ENTITIES)
    with make("mlflow") as trackers:
        trackers.record(RECORDS[0])
        trackers.how = TAKEN_OVER
    assert [call[0] for call in calls(place / "mlflow")][-1] == "batch"


def test_a_folder_that_is_left_by_an_error_tells_trackers_of_a_failure(place: Path, tmp_path: Path) -> None:
    (place / "wandb.py").write_text(WANDB)
    config = build_config(RunConfig, {"model": tmp_path, "tracking": ["wandb"]})
    with pytest.raises(RuntimeError), RunFolder(config, tmp_path / "run", False, ForLooking(print)) as folder:
        folder.log.append(RECORDS[0])
        raise RuntimeError("no such thing")
    assert calls(place)[-1] == ["finish", 1]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raise OSError('no such server')", "no such server"),
        ("os._exit(0)", "ended with status 0"),
        ("os.kill(os.getpid(), 9)", "ended with status -9"),
    ],
)
def test_a_tracker_that_fails_is_told_once_with_its_reason_and_ends_nothing(
    fault: str, said: str, place: Path, make: Callable[..., Trackers], told: list[Any]
) -> None:
    (place / "wandb.py").write_text(WANDB.replace('note("log", row)', fault))
    with make("wandb") as trackers:
        deadline = time.monotonic() + 20
        while not told:
            trackers.record(RECORDS[0])
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for _ in range(3 * MOST_WAITING):
            trackers.record(RECORDS[0])
    assert len(told) == 1 and told[0][0] == "tracking by wandb" and said in told[0][1]


def test_a_tracker_that_hangs_holds_neither_a_record_nor_the_end_up(
    place: Path, make: Callable[..., Trackers], told: list[Any]
) -> None:
    (place / "wandb.py").write_text(WANDB.replace('note("log", row)', 'note("hangs", os.getpid()); time.sleep(600)'))
    trackers = make("wandb", end_s=0.5)
    with trackers:
        trackers.record(RECORDS[0])
        deadline = time.monotonic() + 20
        while not (place / "calls.jsonl").exists() or "hangs" not in (place / "calls.jsonl").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        began = time.monotonic()
        for _ in range(MOST_WAITING + 3000):  # more than the queue and the pipe hold
            trackers.record(RECORDS[0])
        assert time.monotonic() - began < 2
    assert time.monotonic() - began < 6
    assert len(told) == 1 and "what comes meanwhile is dropped" in told[0][1]
    pid = next(call[1] for call in calls(place) if call[0] == "hangs")
    assert not Path(f"/proc/{pid}").exists()


def test_a_run_that_never_gets_to_a_record_leaves_none_in_a_tracker(place: Path, make: Callable[..., Trackers]) -> None:
    (place / "wandb.py").write_text(WANDB)
    with make("wandb"):
        pass
    assert not (place / "calls.jsonl").exists()


def test_a_library_that_is_missing_is_told_before_the_start_and_a_folder_of_its_name_is_none(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build_config(RunConfig, {"model": tmp_path, "tracking": ["wandb", "tensorboard"]})
    monkeypatch.setattr("cluster.trackers.LIBRARIES", {"wandb": "restorl_test_no_such_library"})
    (place / "restorl_test_no_such_library").mkdir()  # as wandb leaves one where it is used
    (problem,) = findings(config)
    assert "pip install 'restorl[wandb]', or leave it out" in str(problem) and "tracking" in str(problem)
    (place / "restorl_test_no_such_library" / "__init__.py").touch()
    assert lacking(("wandb", "tensorboard")) == []


def test_a_recipe_names_one_tracker_or_several_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    def tracking(*given: Any) -> tuple[str, ...]:
        return build_config(RunConfig, {"model": tmp_path, **({"tracking": given[0]} if given else {})}).tracking

    assert tracking() == ("tensorboard",) and tracking([]) == () and tracking("mlflow") == ("mlflow",)
    assert tracking(["wandb", "wandb"]) == ("wandb",)
    with pytest.raises(ConfigError, match="'neptune' is no tracker; choose tensorboard, wandb, mlflow"):
        tracking(["neptune"])
    assert set(ADAPTERS) == set(LIBRARIES) == set(TRACKERS) - {"tensorboard"}


def test_a_password_in_the_address_of_the_store_is_not_shared(tmp_path: Path) -> None:
    store = {"url": "redis://me:secret@host:6379"}
    config = build_config(RunConfig, {"model": tmp_path, "store": store})
    assert "secret" not in json.dumps(shareable(config)) and "host:6379" in json.dumps(shareable(config))
    assert shareable(build_config(RunConfig, {"model": tmp_path}))["store"]["url"] == "embedded"


def test_figures_are_named_as_in_tensorboard_and_only_finite_numbers_go() -> None:
    row = {"kind": "eval", "who": "base", "iteration": 3, "psnr": 24, "text": "a", "gone": None, "nan": float("nan")}
    assert figures_of(row) == {"eval/base/psnr": 24.0}


@pytest.mark.parametrize("names", [["wandb"], ["tensorboard"], []], ids=str)
def test_a_run_is_mirrored_where_its_recipe_says_only(names: list[str], place: Path, tmp_path: Path) -> None:
    (place / "wandb.py").write_text(WANDB)
    config = build_config(RunConfig, {"model": tmp_path, "tracking": names})
    with RunFolder(config, tmp_path / "run", False, ForLooking(print)) as folder:
        folder.log.append(RECORDS[0])
        folder.trackers.how = "failed"
    assert (tmp_path / "run" / "tensorboard").exists() == ("tensorboard" in names)
    assert (place / "calls.jsonl").exists() == ("wandb" in names)
    if names == ["wandb"]:
        (_, about, _), *_, last = calls(place)
        assert about["id"] == folder.run_id and about["config"]["tracking"] == ["wandb"] and last == ["finish", 1]


def test_a_metrics_log_hands_each_record_on_once_it_is_written(tmp_path: Path) -> None:
    seen: list[Any] = []
    with MetricsLog(tmp_path, tensorboard=False, also=seen.append) as log:
        log.append({"kind": "train", "iteration": 1, "loss": float("inf")})
    assert seen == [{"kind": "train", "iteration": 1, "loss": None}]
