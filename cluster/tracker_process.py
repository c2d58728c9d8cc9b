"""A tracker's own process: reads records of a run from its standard input, a JSON object a line, and passes them on.

    python -m cluster.tracker_process wandb

The first object has kind "begin" and tells of the run, the last kind "end"; an input that ends without it is that of a
driver that was killed. The library is imported here and nowhere else.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

PROJECT = "restorl"  # unless the tracker's environment variable names another
NAMED = ("kind", "who", "iteration")
KILLED, TAKEN_OVER = "killed", "taken over"


class Tracker(Protocol):
    def log(self, iteration: int, figures: Mapping[str, float]) -> None: ...

    def picture(self, iteration: int, path: Path) -> None: ...

    def end(self, how: str) -> None:
        """`how`: finished, stopped, failed, killed, or taken over by another process, in which the run goes on."""
        ...


class Wandb:
    """Offline by WANDB_MODE=offline, off by disabled; another project by WANDB_PROJECT. A resumed run goes on."""

    def __init__(self, run: Mapping[str, Any]) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run["run_id"],
            name=run["name"],
            resume="allow",
            dir=str(run["folder"]),
            config=run["config"],
        )
        self._run.define_metric("iteration")
        for group in ("train/*", "eval/*"):
            # Evaluations come later than iterations, which wandb's own steps would refuse.
            self._run.define_metric(group, step_metric="iteration")

    def log(self, iteration: int, figures: Mapping[str, float]) -> None:
        self._run.log({"iteration": iteration, **figures})

    def picture(self, iteration: int, path: Path) -> None:
        self._run.log({"iteration": iteration, "eval/strip": self._wandb.Image(str(path))})

    def end(self, how: str) -> None:
        self._run.finish(exit_code=0 if how == "finished" else 1)


class Mlflow:
    """Where to by MLFLOW_TRACKING_URI, under which name by MLFLOW_EXPERIMENT_NAME. A resumed run goes on."""

    TAG = "restorl.run_id"
    STATUS = {"finished": "FINISHED", "stopped": "KILLED", KILLED: "KILLED"}

    def __init__(self, run: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        self._metric = Metric
        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if known is None else known.experiment_id
        earlier = self._client.search_runs([experiment], f"tags.`{self.TAG}` = '{run['run_id']}'", max_results=1)
        if earlier:
            self._id = earlier[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            tags = {self.TAG: str(run["run_id"]), "mlflow.runName": str(run["name"])}
            self._id = self._client.create_run(experiment, tags=tags).info.run_id
            self._client.log_dict(self._id, dict(run["config"]), "config.json")

    def log(self, iteration: int, figures: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        named = {re.sub(r"[^\w\-. /]", "_", name): value for name, value in figures.items()}
        self._client.log_batch(self._id, [self._metric(name, value, now, iteration) for name, value in named.items()])

    def picture(self, iteration: int, path: Path) -> None:
        self._client.log_artifact(self._id, str(path), "strips")

    def end(self, how: str) -> None:
        if how != TAKEN_OVER:
            self._client.set_terminated(self._id, self.STATUS.get(how, "FAILED"))


TRACKERS: dict[str, type[Wandb] | type[Mlflow]] = {"wandb": Wandb, "mlflow": Mlflow}


def mirror(lines: Iterable[str], make: type[Tracker] | type[Wandb] | type[Mlflow]) -> None:
    """Pass records on until their end.

    Raises:
        ValueError: no line "begin" at first.
        Whatever the tracker raises.
    """
    rows = (json.loads(line) for line in lines)
    run: dict[str, Any] = next(rows, {})
    if run.get("kind") != "begin":
        raise ValueError("the first line tells of the run, and has kind 'begin'")
    tracker, how = make(run), KILLED  # type: ignore[call-arg]
    strips = Path(str(run["folder"])) / "strips"
    for row in rows:
        if row.get("kind") == "end":
            how = str(row.get("how"))
            break
        iteration = int(row["iteration"])
        if figures := figures_of(row):
            tracker.log(iteration, figures)
        picture = strips / f"iter_{iteration:06d}.png"
        if row.get("kind") == "eval" and row.get("who") == "now" and picture.is_file():
            tracker.picture(iteration, picture)
    tracker.end(how)


def figures_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a record, named as TensorBoard has them: train/loss, eval/now/psnr."""
    group = "/".join(str(row[key]) for key in ("kind", "who") if key in row)
    numbers = {k: v for k, v in row.items() if k not in NAMED and isinstance(v, (int, float)) and math.isfinite(v)}
    return {f"{group}/{name}": float(value) for name, value in numbers.items()}


if __name__ == "__main__":
    mirror(sys.stdin, TRACKERS[sys.argv[1]])
