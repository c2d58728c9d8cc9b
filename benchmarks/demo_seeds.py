"""The demo over several seeds as one table: python -m benchmarks.demo_seeds RUN [RUN ...]

`make demo-seeds` runs the demo for seeds 0, 1, 2 and calls this. Writes benchmarks/results/demo_seeds.{json,md}.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from cluster.models import load_run_config
from cluster.records import read_metrics

METRICS = ("psnr", "ssim", "reward")


def evaluations(run: Path) -> dict[int, dict[str, float]]:
    """Held-out means by iteration; 0 is the base model."""
    return {record["iteration"]: record for record in read_metrics(run, "eval")}


def figures(run: Path, iteration: int) -> dict[str, float]:
    """Held-out means of input, base, the run at `iteration`, and the difference of the last two."""
    base, tuned = evaluations(run)[0], evaluations(run)[iteration]
    found = {"iteration": float(iteration), "gt_reward": base["gt_reward"]}
    for metric in METRICS:
        found[f"input_{metric}"] = base[f"input_{metric}"]
        found[f"base_{metric}"], found[f"rl_{metric}"] = base[metric], tuned[metric]
        found[f"gain_{metric}"] = tuned[metric] - base[metric]
    return found


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {deviation:.4f}"


def main() -> None:
    runs = [Path(argument) for argument in sys.argv[1:]]
    if not runs:
        sys.exit(__doc__)
    last = max(set.intersection(*(set(evaluations(run)) for run in runs)))  # all seeds at the same iteration
    rows = {load_run_config(run).seed: figures(run, last) | memory(run) for run in runs}
    lines = ["| | PSNR (dB) | SSIM | reward |", "|-|-|-|-|"]
    first = next(iter(rows.values()))
    lines.append("| degraded input | " + " | ".join(f"{first[f'input_{m}']:.4f}" for m in METRICS) + " |")
    lines.append("| base | " + " | ".join(f"{first[f'base_{m}']:.4f}" for m in METRICS) + " |")
    for seed, row in sorted(rows.items()):
        lines.append(f"| RL, seed {seed} | " + " | ".join(f"{row[f'rl_{m}']:.4f}" for m in METRICS) + " |")
    for what, label in (("rl", "RL, mean ± deviation"), ("gain", "RL - base")):
        cells = (spread([row[f"{what}_{m}"] for row in rows.values()]) for m in METRICS)
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines.append(f"| ground truth | | | {first['gt_reward']:.4f} |")
    out = Path("benchmarks/results")
    (out / "demo_seeds.json").write_text(json.dumps({str(k): v for k, v in sorted(rows.items())}, indent=2) + "\n")
    (out / "demo_seeds.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def memory(run: Path) -> dict[str, float]:
    identity = json.loads((run / "run.json").read_text())
    return {"seconds": identity["seconds"], "peak_memory_mb": identity["peak_memory_mb"]}


if __name__ == "__main__":
    main()
