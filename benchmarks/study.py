"""The paper's comparison on the demo's photographs: python -m benchmarks.study [--quick] [--task rain] [--jobs 2]

Every arm trains from the same base model by `restorl train --single` (`learner.reference`), with the same data order,
number of iterations and seeds, and is measured on held-out tiles with the same draws of sampling noise. An arm that
is done (TASK-ARM-SEED.json in the folder of results) is not run again, so that an interrupted study goes on;
`python -m benchmarks.study_report` makes tables and pictures of what is there. With `--results` of an empty folder
the committed results are made once more, and the report compares. `--published` measures LPIPS and FID, too, with
weights that the user downloads (docs/models.md); arms that were measured without are measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import RESULTS, write
from cluster.config.configure import load_config
from cluster.config.recipe import RunConfig
from cluster.models import load_policy
from cluster.report.records import read_metrics
from restoration.base_models.interface import BaseModel
from restoration.evaluate import evaluate_pairs
from restoration.metrics.appearance import APPEARANCE
from restoration.metrics.perceptual import Lite0Metrics
from restoration.metrics.published import Published
from reward_service.scorers import make_scorer

RECIPE = Path("configs/study.yaml")
FOLDER = RESULTS / "study"
MAIN = ("ours", "diff_sft", "base")  # the longest first
ARMS: dict[str, list[str]] = {
    "base": [],
    "ours": [],
    "diff_sft": ["objective.recipe=diff_sft"],
    "iqa_reward": ["reward.terms=[]"],
    "rec_reward": ["reward.terms=[{weight: 0}, {scorer: reconstruction}]"],
    "no_weights": ["objective.use_weights=false"],
    "sampled_action": ["rollout.action_target=sampled"],
    "reward_final": ["rollout.reward_at=final"],
    "norm_track": ["advantage.stats=track"],
    # their scales are about 25 times that of the levels
    "piqe_reward": ["reward.scorer=piqe", "reward.terms=[{}, {scorer: psnr, weight: 12.5}]"],
    "brisque_reward": ["reward.scorer=brisque", "reward.terms=[{}, {scorer: psnr, weight: 12.5}]"],
}
TASKS = ("rain", "low_light")
SEEDS = (0, 1, 2)
DRAWS = (101, 102)
SHOWN = ("chelsea_0003", "coffee_0006", "seeding_0002")  # in the strips: CC0 photographs
OF_SETS = ("frechet", "fid")  # figures without a value for each image
CURVE = ("reward_mean", "reward_std_within", "error_l2", "loss_rl", "loss_sft", "grad_norm")


@dataclass(frozen=True)
class Arm:
    task: str
    name: str
    seed: int
    folder: Path = FOLDER
    published: Path | None = None  # weights of LPIPS and FID

    @property
    def label(self) -> str:
        return f"{self.task}-{self.name}-{self.seed}"

    @property
    def result(self) -> Path:
        return self.folder / f"{self.label}.json"

    @property
    def done(self) -> bool:
        if not self.result.exists():
            return False
        return self.published is None or "fid" in json.loads(self.result.read_text())

    @property
    def run(self) -> Path:
        return Path("runs") / self.folder.name / self.label

    @property
    def shown(self) -> Path:
        """Inputs, outputs and originals of `SHOWN`, uint8."""
        return self.run.with_suffix(".npz")

    @property
    def overrides(self) -> list[str]:
        return [f"data.root=data/demo/{self.task}", f"seed={self.seed}", *ARMS[self.name]]


def planned(tasks: list[str], quick: bool, folder: Path = FOLDER, published: Path | None = None) -> Iterator[Arm]:
    """The three main arms of every seed and task first, then the ablations of the first task. The base has no seed."""
    for seed in SEEDS[:1] if quick else SEEDS:
        for task in tasks:
            yield from (Arm(task, name, seed, folder, published) for name in MAIN if name != "base" or seed == SEEDS[0])
    if not quick:
        ablations = [name for name in ARMS if name not in MAIN]
        yield from (Arm(tasks[0], name, seed, folder, published) for seed in SEEDS for name in ablations)


def run_arm(arm: Arm) -> None:
    """Train and measure in a process of its own, of one thread."""
    log = arm.run.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.study", "--results", str(arm.folder)]
    command += ["--arm", arm.task, arm.name, str(arm.seed)]
    if arm.published is not None:
        command += ["--published", str(arm.published)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with log.open("w") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        raise RuntimeError(f"{arm.label} failed; see {log}")


def train_and_measure(arm: Arm) -> None:
    from cluster.run.single import train_single

    torch.set_num_threads(1)
    config = load_config(RunConfig, RECIPE, arm.overrides)
    began = time.monotonic()
    curve: list[dict[str, Any]] = []
    if arm.name != "base":
        if not (arm.run / "run.json").exists():
            shutil.rmtree(arm.run, ignore_errors=True)  # of an interrupted study
            train_single(config, arm.run)
        for record in read_metrics(arm.run, "train"):
            curve.append({name: record[name] for name in CURVE if name in record})
    if arm.name == "base":
        measured = measure(config, load_policy(config.model)[0], arm.published, arm.shown)
    else:
        measured = measure(config, load_policy(arm.run, "average")[0], arm.published, arm.shown)
        measured["last"] = mean_figures(measure(config, load_policy(arm.run)[0], arm.published))
    write(arm.result, {"arm": arm.name, "task": arm.task, "seed": arm.seed, "iterations": config.iterations}
          | measured | {"curve": curve, "seconds": time.monotonic() - began})  # fmt: skip


def mean_figures(measured: dict[str, Any]) -> dict[str, float]:
    rows = list(measured["images"].values())
    of_sets = {name: measured[name] for name in OF_SETS if name in measured}
    return {name: float(np.mean([r[name] for r in rows])) for name in rows[0]} | of_sets


def measure(
    config: RunConfig, model: BaseModel, published: Path | None, shown_file: Path | None = None
) -> dict[str, Any]:
    """Per-image figures, each the mean over `DRAWS`, and the mean of the draws' Fréchet distances."""
    pairs = config.data.open(config.data.heldout)
    scorers = {"reward": make_scorer("lite0_levels").score, "piqe": make_scorer("piqe").score, **APPEARANCE}
    draws, images = [], {}
    of_sets: dict[str, list[float]] = {}
    shown: dict[str, np.ndarray] = {}
    for draw in DRAWS:
        metrics, weighed = Lite0Metrics(), Published(published, published)

        def look(
            image_id: str, lq: np.ndarray, out: np.ndarray, gt: np.ndarray, seen: Any = (metrics, weighed)
        ) -> None:
            seen[0].add(image_id, out, gt)
            seen[1].see(image_id, lq, out, gt)
            if image_id in SHOWN:
                for what, image in (("lq", lq), ("out", out), ("gt", gt)):
                    shown.setdefault(f"{image_id} {what}", image.copy())  # of the first draw

        rows = evaluate_pairs(model, pairs, config.sampler, scorers, config.evaluation.protocol, draw, on_image=look)
        rows = weighed.beside(rows)
        draws.append({r.image_id: r.values | {"distance": metrics.distances[r.image_id]} for r in rows})
        of_sets.setdefault("frechet", []).append(metrics.frechet())
        if weighed.fid is not None:
            of_sets.setdefault("fid", []).append(weighed.fid.value())
    for image_id, values in draws[0].items():
        images[image_id] = {name: float(np.mean([d[image_id][name] for d in draws])) for name in values}
    if shown_file is not None:
        np.savez(shown_file, **shown)  # type: ignore[arg-type]
    return {"images": images} | {name: float(np.mean(values)) for name, values in of_sets.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the three main arms of one seed and task")
    parser.add_argument("--task", action="append", choices=TASKS, help="all if none is given")
    parser.add_argument("--jobs", type=int, default=2, help="arms trained at the same time, a core each")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of results (default: the committed ones)")
    parser.add_argument("--published", type=Path, help="folder with the weights of LPIPS and FID")
    parser.add_argument("--arm", nargs=3, metavar=("TASK", "ARM", "SEED"), help="one arm, in this process")
    options = parser.parse_args()
    results, published = options.results.resolve(), options.published
    if options.arm:
        task, name, seed = options.arm
        train_and_measure(Arm(task, name, int(seed), results, published))
        return
    Published(published, published)  # so that absent weights are told now
    tasks = options.task or list(TASKS[:1] if options.quick else TASKS)
    todo = [arm for arm in planned(tasks, options.quick, results, published) if not arm.done]
    print(f"{len(todo)} arms to run, {options.jobs} at a time", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        for arm, _ in zip(todo, pool.map(run_arm, todo), strict=True):
            print(f"done: {arm.label}", flush=True)


if __name__ == "__main__":
    main()
