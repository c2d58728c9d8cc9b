"""Several runs, and jobs, on one Ray cluster that none of them started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.report.records import read_metrics
from cluster.report.run_audit import audit_run
from tests.system.conftest import ROOT, Run, Start, starter
from tests.system.ray_nodes import RAY, Cluster, ray_head

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ray_head(tmp_path_factory.mktemp("head")) as running:
        yield running


@pytest.fixture
def start(workplace: Path, tmp_path: Path, cluster: Cluster) -> Iterator[Start]:
    where = [f"cluster.address={cluster.address}", "cluster.auth=disabled"]
    yield from starter(workplace, tmp_path, cluster.environment, where)


def rewards(run: Run) -> list[float]:
    return [r["reward_mean"] for r in read_metrics(run.folder, "train")]


def test_two_runs_side_by_side_have_each_its_own_scorer_and_both_complete(start: Start, cluster: Cluster) -> None:
    first = start("contrast", "iterations=6")
    second = start("percent", "iterations=3", "reward.scorer=tests.system.scorers:Percent")
    assert second.wait() == 0, second.output()
    assert first.wait() == 0, first.output()
    assert len(rewards(first)) == 6 and len(rewards(second)) == 3
    assert all(0 < r < 15 for r in rewards(first)) and all(30 < r < 130 for r in rewards(second))
    assert all(audit_run(run.folder)[0].ok for run in (first, second))


def test_two_runs_share_a_service_that_stands_alone_and_it_stays_when_they_have_ended(
    start: Start, cluster: Cluster
) -> None:
    def reward(*words: str) -> str:
        command = [sys.executable, "-m", "cluster.cli", "reward", *words, "--address", cluster.address]
        done = subprocess.run(command, cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    told = reward("serve", "tests.system.scorers:Percent", "num_cpus=0.2", "max_batch=8", "--name", "shared")
    assert "shared: percent, version percent-1" in told
    shared = ("iterations=2", "evaluation.every=0", "reward.app=shared", "reward.scorer=tests.system.scorers:Percent")
    runs = [start(name, *shared) for name in ("one", "two")]
    for run in runs:
        assert run.wait() == 0, run.output()
        assert all(30 < r < 130 for r in rewards(run)) and audit_run(run.folder)[0].ok
    wrong = start("wrong", "reward.app=shared")  # whose recipe names another scorer
    assert wrong.wait() == 2 and "serves tests.system.scorers:Percent" in wrong.output()
    told = reward("status")
    assert told.startswith("shared: RUNNING, 1 running; stands alone") and told.count("RUNNING,") == 1
    assert int(re.search(r"(\d+) images", told)[1]) >= 2 * 2 * 4 * 2  # type: ignore[index]
    reward("stop", "shared")
    assert reward("status").strip() == "no reward service runs there"


def test_a_third_process_uses_the_reward_service_of_neither_by_accident(start: Start, cluster: Cluster) -> None:
    run = start("busy", "iterations=200")
    run.wait_for_iteration(1)
    script = (
        "import sys, numpy as np, ray\n"
        f"ray.init(address='{cluster.address}', namespace='restorl', logging_level='ERROR')\n"
        "from reward_service.service import status\n"
        "from reward_service.settings import reward_app_name\n"
        "print(status('reward')['status'], status(reward_app_name('another'))['status'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["NOT_STARTED", "NOT_STARTED"], done.stdout + done.stderr
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.wait(120) == 143, run.output()


def test_a_stopped_job_ends_in_order_leaves_no_process_and_goes_on(
    workplace: Path, tmp_path: Path, cluster: Cluster
) -> None:
    folder = tmp_path / "job"
    words = ["train", str(workplace / "recipe.yaml"), "--run", str(folder), "iterations=200"]
    words += ["store.publish_timeout_s=60"]
    where = [f"--address=http://{cluster.dashboard}"]
    job = f"restorl-{os.getpid()}"
    submit = [RAY, "job", "submit", *where, "--submission-id", job, "--no-wait"]
    entry = [sys.executable, "-m", "cluster.cli", *words]
    subprocess.run([*submit, "--", *entry], cwd=ROOT, env=cluster.environment, check=True, timeout=120)
    deadline = time.monotonic() + 300
    metrics = folder / "metrics.jsonl"
    while not (metrics.exists() and '"kind": "train"' in metrics.read_text()):
        assert time.monotonic() < deadline, _logs(where, job, cluster)
        time.sleep(0.3)
    subprocess.run([RAY, "job", "stop", *where, job], cwd=ROOT, env=cluster.environment, check=True, timeout=120)
    logs = _logs(where, job, cluster)
    assert f"--resume {folder}" in logs and "Traceback" not in logs, logs
    assert _of_run(folder) == []
    resumed = Run(folder, *_resume(folder, tmp_path, cluster))
    assert resumed.wait() == 0, resumed.output()
    report, _ = audit_run(folder)
    assert report.ok, report.render()


def _resume(folder: Path, tmp_path: Path, cluster: Cluster) -> tuple[subprocess.Popen[bytes], Path]:
    done = len(read_metrics(folder, "train"))
    log = tmp_path / "resumed.log"
    command = [sys.executable, "-m", "cluster.cli", "train", "--resume", str(folder), f"iterations={done + 1}"]
    command += [f"cluster.address={cluster.address}", "cluster.auth=disabled"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=cluster.environment, stdout=output, stderr=output)
    return process, log


def _of_run(folder: Path) -> list[str]:
    """Processes that have the run folder in their command line or work in it."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join(process.cmdline()) or str(folder) in process.cwd():
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def _logs(where: list[str], job: str, cluster: Cluster) -> str:
    command = [RAY, "job", "logs", *where, job]
    done = subprocess.run(command, cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr
