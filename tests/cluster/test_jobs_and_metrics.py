"""The one test module of these parts that starts Ray (about 10 s); everything that needs it shares one cluster."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from cluster.jobs import (
    ClusterError,
    ClusterSettings,
    Connection,
    attach,
    connect,
    effective_address,
    entrypoint,
)
from cluster.local_ray import LocalRay, folder_of_sessions
from cluster.metrics import METRICS, PHASES, RunMetrics
from cluster.report.status import read_status
from cluster.run.elsewhere import Elsewhere, announce
from tests.cluster.report.synthetic_run import make_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def cluster(run_folder: Path) -> Iterator[Connection]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")  # in place of ten seconds
        with connect(ClusterSettings(num_cpus=1, dashboard=False, object_store_mb=80), run_folder) as connection:
            yield connection


def test_a_local_cluster_asks_for_a_token_that_only_its_user_can_read(cluster: Connection, run_folder: Path) -> None:
    assert cluster.local and cluster.address.rpartition(":")[2].isdigit()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert stat.S_IMODE((run_folder / "ray_token").stat().st_mode) == 0o600
    # Another user's process: same address, no token.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(run_folder)}
    code = (
        "from cluster.jobs import *\n"
        f"try: connect(ClusterSettings({cluster.address!r}, auth='disabled'))\n"
        "except ClusterError as error: print(error)\n"
    )
    stranger = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "refused the token" in stranger.stdout, stranger


def test_another_process_joins_through_the_run_folder(cluster: Connection, run_folder: Path) -> None:
    code = (
        f"import sys, pathlib, ray; from cluster.jobs import attach\n"
        f"with attach(pathlib.Path({str(run_folder)!r})) as c: print(c.local, ray.get_runtime_context().namespace)\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert other.stdout.split() == ["False", "restorl"], other


def test_a_job_joins_its_cluster_and_keeps_the_environment_it_was_submitted_with(
    cluster: Connection, run_folder: Path
) -> None:
    # What Ray's job supervisor sets for the entry point.
    job = {"runtime_env": {"env_vars": {"SUBMITTED": "yes"}}, "metadata": {}}
    given = {
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job),
        "RAY_ADDRESS": cluster.address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(run_folder / "ray_token"),
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | given
    code = (
        "import os, ray; from cluster.jobs import ClusterSettings, connect\n"
        "names = ('SUBMITTED', 'OMP_WAIT_POLICY')\n"
        "with connect(ClusterSettings()) as c:\n"
        "    work = ray.remote(num_cpus=0)(lambda: [os.environ.get(n) for n in names])\n"
        "    print(c.local, *ray.get(work.remote()))\n"
    )
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert other.stdout.split() == ["False", "yes", "PASSIVE"], other


def test_the_status_of_a_run_is_read_on_the_machine_of_its_driver_by_its_id(
    cluster: Connection, tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "run", images=3, iterations=3)
    announce("demo-1", folder)
    found = Elsewhere("demo-1").status()
    assert found == replace(read_status(folder), silent_s=found.silent_s)
    with pytest.raises(ClusterError, match="no run 'demo-2' on this cluster; there are: demo-1"):
        Elsewhere("demo-2")
    shutil.rmtree(folder)
    with pytest.raises(ClusterError, match=r"can't be read there: .*give the folder of a run"):
        Elsewhere("demo-1").status()


def test_a_local_cluster_listens_on_loopback_only(cluster: Connection) -> None:
    import ray

    ray.get(ray.remote(num_cpus=0.1)(lambda: 1).remote())  # a worker listens too
    sockets = set()
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            listening = [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
            sockets |= {(c.laddr.ip.removeprefix("::ffff:"), c.laddr.port, process.name()) for c in listening}
    assert len(sockets) >= 5
    assert [s for s in sockets if s[0] not in ("127.0.0.1", "::1")] == []
    assert cluster.address.startswith("127.0.0.1:")


def test_no_other_process_finds_the_cluster_by_auto(cluster: Connection, tmp_path: Path) -> None:
    code = (
        "import ray; from cluster.jobs import *\n"
        "try: connect(ClusterSettings('auto'))\n"
        "except ClusterError as error: print(error)\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"TMPDIR": str(tmp_path)}
    if Path("/tmp/ray/ray_current_cluster").exists():
        pytest.skip("somebody has used `ray start` on this machine")
    stranger = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "no cluster was started with `ray start` on this machine" in stranger.stdout, stranger


def test_auto_is_the_cluster_of_ray_start_or_of_ray_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:9\n")
    with pytest.raises(ClusterError, match="127.0.0.1:9 can't be reached"):
        connect(ClusterSettings("auto", auth="disabled"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:7")
    with pytest.raises(ClusterError, match="127.0.0.1:7 can't be reached"):
        connect(ClusterSettings("auto", auth="disabled"))
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(ClusterError, match="RAY_ADDRESS=http://127.0.0.1:8265 is no cluster's address"):
        connect(ClusterSettings(auth="disabled"))


def test_a_temporary_folder_too_deep_for_sockets_is_told_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/" + "x" * 86)
    with pytest.raises(ClusterError, match=r"TMPDIR=/x+ makes .* set RAY_TMPDIR=/tmp"):
        connect(ClusterSettings(num_cpus=1), tmp_path)
    monkeypatch.setenv("RAY_TMPDIR", "/" + "y" * 86)
    with pytest.raises(ClusterError, match=r" RAY_TMPDIR=/y+ makes .* set RAY_TMPDIR=/tmp"):
        connect(ClusterSettings(num_cpus=1), tmp_path)


def test_with_the_advice_taken_no_process_of_ray_makes_sockets_in_the_deep_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The dashboard did not start: Python's multiprocessing, which it uses, looks at TMPDIR only."""
    import ray

    seen = []

    def start(self: LocalRay, options: dict[str, object]) -> None:
        seen.append(os.environ.get("TMPDIR"))
        raise TimeoutError("timed out")

    monkeypatch.setattr(ray, "shutdown", lambda: None)  # of the cluster that the others share
    monkeypatch.setattr(LocalRay, "start", start)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    kept, deep = "/" + "x" * 74, "/" + "x" * 75  # what multiprocessing makes below has 32 bytes more, 107 are the most
    for given in (kept, deep):
        monkeypatch.setenv("TMPDIR", given)
        with pytest.raises(ClusterError):
            connect(ClusterSettings(num_cpus=1))
        assert os.environ["TMPDIR"] == given
    assert seen == [kept, "/tmp"]


@pytest.mark.parametrize("set_to", [{}, {"TMPDIR": "/a"}, {"TMPDIR": "/a", "RAY_TMPDIR": "/b"}, {"RAY_TMPDIR": ""}])
def test_the_folder_of_logs_is_the_one_that_ray_takes(
    set_to: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ray._common.utils import get_default_ray_temp_dir

    monkeypatch.chdir(tmp_path)
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_to.items():
        monkeypatch.setenv(name, value)
    assert folder_of_sessions() == Path(get_default_ray_temp_dir()).absolute()


def test_a_cluster_of_our_own_says_where_its_logs_are(cluster: Connection) -> None:
    import ray

    assert cluster.logs is not None and (cluster.logs / "raylet.out").is_file()
    assert str(cluster.logs) == ray._private.worker._global_node.get_logs_dir_path()  # type: ignore[union-attr]


def test_a_ray_that_cannot_start_names_the_logs_of_its_own_session_and_none_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    def start(self: LocalRay, options: dict[str, object]) -> None:
        raise TimeoutError("timed out")

    def told() -> str:
        with pytest.raises(ClusterError) as error:
            connect(ClusterSettings(num_cpus=1))
        return str(error.value)

    monkeypatch.setattr(ray, "shutdown", lambda: None)  # of the cluster that the others share
    monkeypatch.setattr(LocalRay, "start", start)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with tempfile.TemporaryDirectory(dir="/tmp") as parent:  # pytest's own are too deep for sockets
        monkeypatch.setenv("RAY_TMPDIR", parent)
        assert f"{parent}/ray has no logs of it" in told() and "RAY_TMPDIR=/tmp" in told()
        own = [Path(parent) / "ray" / f"session_2026-01-0{d}_00-00-00_000000_{os.getpid()}" / "logs" for d in (1, 2)]
        for folder in (*own, Path(parent) / "ray" / "session_2026-01-03_00-00-00_000000_1" / "logs"):
            folder.mkdir(parents=True)
        (Path(parent) / "ray" / "session_latest").symlink_to("session_2026-01-03_00-00-00_000000_1")
        assert told().endswith(f"(timed out); see {own[1]}")


def test_metrics_of_driver_and_actors_appear_on_the_metrics_port(cluster: Connection) -> None:
    import ray

    @ray.remote(num_cpus=0)
    class Actor:
        def work(self) -> float:
            self.metrics = RunMetrics("actor", "demo-1")  # kept: Ray exports what lives
            with self.metrics.phase("rollout") as took:
                time.sleep(0.02)
            self.metrics.published(4)
            self.metrics.reward_failed(TimeoutError())
            return took.seconds

    actor = Actor.remote()  # type: ignore[attr-defined]
    assert ray.get(actor.work.remote()) >= 0.02
    driver = RunMetrics("driver", "demo-1")
    driver.dropped("stale", 3)
    driver.dropped("stale", 0)
    driver.queue(7, 1000)
    driver.staleness(1)
    wanted = {
        ("trajectories", 'what="published"', "4.0"),
        ("reward_request_failures", 'kind="TimeoutError"', "1.0"),
        ("dropped_samples", 'reason="stale"', "3.0"),
        ("queue_depth", 'role="driver"', "7.0"),
        ("phase_passes", 'phase="rollout"', "1.0"),
        ("staleness_versions_bucket", 'le="1.5"', "1.0"),
        ("phase_seconds_count", 'phase="rollout"', "1.0"),
    }
    deadline = time.monotonic() + 45
    text = ""
    while time.monotonic() < deadline:
        text = "".join(
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
            for port in cluster.metrics_ports
        )
        lines = [line for line in text.splitlines() if line.startswith("ray_restorl_")]
        found = {w for w in wanted for s in lines if f"_{w[0]}" in s and w[1] in s and s.endswith(" " + w[2])}
        assert all('run="demo-1"' in line for line in lines)
        if found == wanted:
            return
        time.sleep(0.2)
    pytest.fail(f"missing {wanted - found} in\n" + "\n".join(lines))


def test_without_ray_phases_are_timed_and_nothing_else_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.metrics.ray_is_running", lambda: False)
    metrics = RunMetrics("driver", "demo-1")
    with pytest.raises(ZeroDivisionError), metrics.phase("step") as took:
        _ = 1 / 0
    assert 0 < took.seconds < 1 and not metrics._made
    with (
        pytest.raises(ValueError, match="none of rollout, reward_wait, learner_wait, step, publish"),
        metrics.phase("x"),
    ):
        pass
    assert len(PHASES) == 5 and all(kind in ("counter", "gauge", "histogram") for kind, _, _ in METRICS.values())


def test_a_cluster_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(ClusterError, match="127.0.0.1:9 can't be reached .* or set cluster.address=local"):
        connect(ClusterSettings("127.0.0.1:9", auth="disabled"))
    with pytest.raises(ClusterError, match="no such file; give the token file"):
        connect(ClusterSettings("127.0.0.1:9", token_path=str(tmp_path / "none")))
    with pytest.raises(ClusterError, match="no run is running there"):
        attach(tmp_path)
    assert time.monotonic() - start < 5


def test_within_a_ray_job_a_local_address_means_the_cluster_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    assert effective_address(ClusterSettings()) == "local"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert effective_address(ClusterSettings()) == "auto"
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert effective_address(ClusterSettings()) == "auto"
    assert effective_address(ClusterSettings("ray://10.0.0.2:10001")) == "ray://10.0.0.2:10001"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"address": "somewhere"}, "cluster.address='somewhere'; give local, auto"),
        ({"auth": "none"}, "cluster.auth='none'; choose"),
        ({"num_cpus": 0}, "cluster.num_cpus=0; give a positive"),
        ({"namespace": ""}, "cluster.namespace is empty"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ClusterSettings(**wrong)  # type: ignore[arg-type]


def test_a_job_runs_this_interpreter() -> None:
    assert entrypoint(["train", "a b.yaml"]) == f"{sys.executable} -m cluster.cli train 'a b.yaml'"
