"""Wall time that a run loses to an evaluation beside training: python -m benchmarks.evaluation

The demo runs twice, with evaluations only at its ends and with one every second iteration. What its iterations take
longer, for each evaluation, is divided by the time of the same evaluation in a process that does nothing else, which is
what a loop that stands still meanwhile would lose.
"""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path

import torch

from benchmarks.report import RESULTS, write
from cluster.config.configure import load_config
from cluster.config.recipe import RunConfig
from cluster.models import load_policy
from cluster.report.records import read_metrics
from cluster.run.driver import train
from cluster.run.judges import judges
from restoration.evaluate import evaluate_pairs
from restoration.metrics.appearance import APPEARANCE
from reward_service.scorers import make_scorer

ITERATIONS, EVERY, FIRST = 8, 2, 3  # the first iterations warm caches and fill the pipeline


def run(every: int) -> tuple[list[float], RunConfig, Path]:
    """Seconds of the iterations that count."""
    folder = Path(f"runs/bench-evaluation{every}")
    shutil.rmtree(folder, ignore_errors=True)
    overrides = [f"iterations={ITERATIONS}", f"evaluation.every={every}", "learner.norms_every=0"]
    config = load_config(RunConfig, "configs/demo.yaml", [*overrides, "cluster.dashboard=false"])
    train(config, folder)
    records = read_metrics(folder, "train")
    return [r["iteration_s"] for r in records if FIRST < r["iteration"] < ITERATIONS], config, folder


def alone(config: RunConfig, folder: Path) -> float:
    """Seconds of one evaluation of the run's weights, its scores included, with one thread."""
    torch.set_num_threads(1)
    model, sampler = load_policy(folder)
    of, score = config.evaluation, make_scorer(config.reward.scorer, **config.reward.params).score
    pairs = config.data.open(config.data.heldout)
    scorers = {"reward": score, **judges(of.scorers), **APPEARANCE}
    known = evaluate_pairs(model, pairs, sampler, scorers, of.protocol, of.seed, of.batch)
    start = time.perf_counter()
    evaluate_pairs(model, pairs, sampler, scorers, of.protocol, of.seed, of.batch, known=known)
    return time.perf_counter() - start


def main() -> None:
    without, config, folder = run(0)
    beside, _, _ = run(EVERY)
    evaluation = alone(config, folder) * (2 if config.optimiser.ema else 1)  # of the weights and of their average
    evaluations = len([i for i in range(FIRST + 1, ITERATIONS) if i % EVERY == 0])
    lost = (sum(beside) - sum(without)) / evaluations
    result = {
        "lost_of_an_evaluation": lost / evaluation,
        "evaluation_of_an_iteration": evaluation / statistics.median(without),
        "evaluations": evaluations,
        "iterations": len(without),
    }
    write(RESULTS / "evaluation.json", result)
    share, lost = result["evaluation_of_an_iteration"], result["lost_of_an_evaluation"]
    print(f"an evaluation takes {share:.2f} of an iteration; the loop loses {lost:.2f} of it (standing still: 1.00)")


if __name__ == "__main__":
    main()
