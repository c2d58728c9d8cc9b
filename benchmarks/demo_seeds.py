"""The demo over several seeds as one table: python -m benchmarks.demo_seeds RUN [RUN ...]

`make demo-seeds` runs the demo for seeds 0, 1, 2 and calls this. Sampling is random too, and one draw of its noise
moves the base model's mean IQA score by 0.02: base and tuned models are measured here with the same `DRAWS` draws an
image, which no run has seen. Of a run with `optimiser.ema` the averaged weights are measured, and the last beside them.
Writes benchmarks/results/demo_seeds.{json,md}.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from benchmarks.report import RESULTS, write
from cluster.models import load_policy, load_run_config
from restoration.datasets.paired import PairedFolder
from restoration.evaluate import evaluate_pairs, mean_values
from reward_service.scorers import make_scorer

METRICS = ("psnr", "ssim", "reward", "piqe")  # piqe: 100 - PIQE, which no run has optimised
DRAWS = (101, 102, 103, 104)

Means = dict[str, float]


def measure(run: Path, checkpoint: str, pairs: PairedFolder) -> list[Means]:
    """Held-out means of a run's model, one for each draw."""
    config = load_run_config(run)
    scorers = {"reward": make_scorer(config.reward.scorer).score, "piqe": make_scorer("piqe").score}
    model, sampler = load_policy(run, checkpoint)
    print(f"{run}, {checkpoint}: {len(pairs)} images x {len(DRAWS)} draws", flush=True)
    protocol = config.evaluation.protocol
    return [mean_values(evaluate_pairs(model, pairs, sampler, scorers, protocol, draw)) for draw in DRAWS]


def average(draws: list[Means]) -> Means:
    return {name: statistics.mean(draw[name] for draw in draws) for name in draws[0]}


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {deviation:.4f}"


def row(label: str, cells: list[str]) -> str:
    return "| " + " | ".join([label, *cells]) + " |"


def main() -> None:
    runs = {load_run_config(run).seed: run for run in map(Path, sys.argv[1:])}
    if len(runs) < len(sys.argv) - 1 or not runs:
        sys.exit(__doc__)
    config = load_run_config(next(iter(runs.values())))
    data, averaged = config.data, config.optimiser.ema > 0
    pairs = data.open(data.heldout)
    before = measure(next(iter(runs.values())), "base", pairs)
    base = average(before)
    last = {seed: average(measure(run, "latest", pairs)) for seed, run in sorted(runs.items())}
    tuned = {s: average(measure(run, "average", pairs)) for s, run in sorted(runs.items())} if averaged else last
    gains = {seed: {m: means[m] - base[m] for m in METRICS} for seed, means in tuned.items()}
    lines = [row("", ["PSNR (dB)", "SSIM", "IQA score", "100 - PIQE, held out"]), "|-|-|-|-|-|"]
    lines.append(row("degraded input", [f"{base[f'input_{m}']:.4f}" for m in METRICS]))
    lines.append(row(f"base, {len(DRAWS)} draws", [spread([draw[m] for draw in before]) for m in METRICS]))
    for seed, means in tuned.items():
        lines.append(row(f"RL, seed {seed}", [f"{means[m]:.4f}" for m in METRICS]))
    lines.append(row("RL, mean ± deviation of seeds", [spread([t[m] for t in tuned.values()]) for m in METRICS]))
    if averaged:
        lines.append(row("its last weights, not averaged", [spread([t[m] for t in last.values()]) for m in METRICS]))
    lines.append(row("RL - base", [spread([g[m] for g in gains.values()]) for m in METRICS]))
    lines.append(row("ground truth", ["", "", *(f"{base[f'gt_{m}']:.4f}" for m in METRICS[2:])]))
    seeds = {
        str(seed): {"rl": tuned[seed], "last": last[seed], "gain": gains[seed], **identity(run)}
        for seed, run in runs.items()
    }
    write(RESULTS / "demo_seeds.json", {"base": before, "seeds": seeds})
    (RESULTS / "demo_seeds.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def identity(run: Path) -> Means:
    """How long the run took on its machine, and its peak memory."""
    found = json.loads((run / "run.json").read_text())
    config = load_run_config(run)
    return {
        "iterations": config.iterations,
        "seconds": found["seconds"],
        "peak_memory_mb": found["peak_memory_mb"],
    }


if __name__ == "__main__":
    main()
