"""One row, from the start of its hosts to its account."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.faults.hosts import ROOT, ClusterProblem
from benchmarks.faults.network import NetworkError
from benchmarks.faults.packages import NoPackage
from benchmarks.faults.recipe import GROUPS, ITERATIONS
from benchmarks.faults.rows import Row
from benchmarks.faults.runs import Run
from benchmarks.faults.scene import Scene
from benchmarks.faults.store import StoreProblem
from benchmarks.faults.verdict import Account, account, gaps, happened, recovered_s, usual_s

AFTER = 4  # iterations before the fault
START_S, END_S = 900.0, 600.0
SETTING = (NetworkError, NoPackage, StoreProblem, ClusterProblem, subprocess.SubprocessError, OSError)


def measure(row: Row, work: Path) -> dict[str, Any]:
    """The row's result; `outcome` is ok, failed, or not run: what it needs could not be set up.

    Raises:
        RunProblem, and what `failed` is for: the row came to no end.
    """
    common: dict[str, Any] = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "cpus": os.cpu_count()}
    common["load_average"] = round(os.getloadavg()[0], 1)
    with ExitStack() as exits:
        try:
            scene = exits.enter_context(Scene(row.name, row.setup, work))
        except SETTING as error:  # says nothing about the run
            return failed(error, "not run")
        common |= {"rate": scene.network.link.rate, "delay": scene.network.link.delay, "server": _server(scene)}
        for run in scene.runs:
            run.wait_for(AFTER, START_S)
        before = scene.run.iteration
        usual = usual_s(scene.run.train_rows(), before)
        fault = time.monotonic()
        by_hand = row.act(scene)
        away = time.monotonic() - fault
        told = _to_the_end(row, scene)
        for run in scene.runs[1:]:
            run.wait(END_S)
        accounts = [account(run.audit(), ITERATIONS * GROUPS) for run in scene.runs]
        wrong = [what for run in scene.runs if (what := gaps(run.train_rows(), ITERATIONS))]
        wrong += [f"{run.name} ended with status {run.statuses[-1]}" for run in scene.runs if run.statuses[-1]]
        recovered = recovered_s(scene.run.moments, fault, before)
        found = sum(accounts, Account(0, 0))
        resumed = len(scene.run.statuses) > 1
        if resumed and not row.ends:
            wrong.append("the run ended, where it should have gone on")
        wrong += [f"{run.name} had to be resumed" for run in scene.runs[1:] if len(run.statuses) > 1]
        return common | {
            "outcome": "ok" if found.ok and not wrong else "failed",
            "happened": _plain(happened(scene.run.statuses, told, scene.run.notes(), by_hand), scene.run),
            "wrong": [_plain(what, scene.run) for what in (*wrong, *found.other)],
            "lost": found.lost,
            "used_twice": found.used_twice,
            "iteration_s": round(usual, 2),
            "away_s": round(away, 1),
            "recovered_s": None if recovered is None else round(recovered, 1),
            "recovered_iterations": None if recovered is None else round(recovered / usual, 1),
            "resumed": resumed,
            "statuses": scene.run.statuses,
        }


def failed(error: BaseException, outcome: str = "failed") -> dict[str, Any]:
    """The result of a row that could not be measured to its end."""
    told = f"{type(error).__name__}: {error}".replace(f"{ROOT}/", "")
    return {"date": f"{datetime.now(UTC):%Y-%m-%d}", "outcome": outcome, "wrong": [told[:1000]]}


def _to_the_end(row: Row, scene: Scene) -> str:
    """Until the run that the fault was for is complete; resumes it if it has ended. The last line of what ended."""
    run = scene.run
    if run.wait(END_S) == 0:
        return ""
    told = run.tail()
    if row.mend is not None:
        row.mend(scene)
    scene.hosts.wait_whole()
    run.resume()
    run.wait(END_S)
    return told


def _server(scene: Scene) -> str:
    lines = dict(line.split(":", 1) for line in scene.store.ask("INFO", "server").splitlines() if ":" in line)
    version = lines.get("valkey_version") or lines.get("redis_version") or "unknown"
    return f"{lines.get('server_name', 'redis').strip()} {version.strip()}"


def _plain(text: str, run: Run) -> str:
    """Without what only this machine has."""
    return text.replace(str(run.folder), "RUN").replace(f"{ROOT}/", "")[:600]
