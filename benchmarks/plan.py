"""What `restorl plan`'s model says against what runs of sleeping stand-ins take: python -m benchmarks.plan

    python -m benchmarks.plan [--output benchmarks/results/plan.json] [--folder runs/bench-plan]

Each layout is a run by the real driver, with the real store, reward service and intake of the learner's ranks; actors,
scorer and ranks sleep known times (`benchmarks.stand_ins`). Predicted twice: from those times, and, as `--from` does,
from the phase times that the run of the first layout has recorded, which also has in it what the driver and Ray take.
The figure is predicted over measured seconds of an iteration, in the middle of the run: without the first iterations,
which fill the pipeline, and the last, for which nothing more is rolled out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, write
from benchmarks.stand_ins import Sleeps, recipe, train, write_pairs
from cluster.config.recipe import RunConfig
from cluster.plan.estimate import PLUMBING, moving
from cluster.plan.measured import measured
from cluster.plan.model import REWARD, Costs, Counts, iteration
from cluster.plan.recipe import counts_of, loop_of
from cluster.report.records import read_metrics

LIMIT = 0.15
SLEEPS = Sleeps(rollout_s=1.6, policy_s=0.28)
SCORE_MS = 32.0
DECISIONS, SCORED = 2, 2  # of the chain of three steps
GROUPS, IMAGES, ROLLOUTS = 8, 2, 4


@dataclass(frozen=True)
class Layout:
    """Counts, staleness, iterations, and which part was meant to be the slowest."""

    actors: int
    replicas: int
    ranks: int
    staleness: int
    iterations: int
    slowest: str


LAYOUTS = {
    "few actors": Layout(2, 1, 1, 1, 12, "actors"),
    "one scorer": Layout(6, 1, 2, 3, 16, "reward"),
    "one rank": Layout(4, 2, 1, 3, 16, "ranks"),
    "in step": Layout(3, 2, 2, 0, 10, "admission"),
    "narrow window": Layout(4, 1, 1, 1, 12, "admission"),
}


def config_of(layout: Layout, pairs: Path) -> RunConfig:
    return recipe(
        pairs,
        iterations=layout.iterations,
        rollout={"images_per_batch": IMAGES, "rollouts_per_image": ROLLOUTS},
        reward={
            "scorer": "benchmarks.fixed_cost:FixedCost",
            "params": {"ms": SCORE_MS},
            "max_batch": IMAGES * ROLLOUTS,
            "replicas": layout.replicas,
            "num_cpus": 0.1,
        },
        source={"groups_per_step": GROUPS, "max_staleness": layout.staleness, "timeout_s": 240.0},
        actors={"count": layout.actors},
        ranks={"count": layout.ranks},
    )


def known(group_bytes: float) -> Costs:
    """From the times that are slept."""
    pictures = IMAGES * ROLLOUTS * SCORED
    return Costs(
        rollout_s=SLEEPS.rollout_s,
        score_s={REWARD: pictures * SCORE_MS / 1e3},
        blocks=SCORED,
        policy_s=SLEEPS.policy_s,
        **moving(group_bytes, PLUMBING),
    )


def middle(records: list[dict[str, Any]], staleness: int) -> list[dict[str, Any]]:
    return records[staleness + 2 : len(records) - staleness]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=RESULTS / "plan.json")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-plan"))
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    write_pairs(options.folder / "pairs", 32, 8)
    load, rows, costs = os.getloadavg()[0], dict[str, Any](), None
    for name in options.layouts:
        layout, folder = LAYOUTS[name], options.folder / name.replace(" ", "-")
        config = config_of(layout, options.folder / "pairs")
        train(config, folder, SLEEPS)
        records, loop, counts = read_metrics(folder, "train"), loop_of(config, DECISIONS), counts_of(config)
        group_bytes = 4096.0 + 2 * 4 * ROLLOUTS * DECISIONS * 64
        if costs is None:
            used = middle(records, layout.staleness)
            run = measured(
                [*records[:2], *used], loop, counts, [REWARD], SCORED, 0.0, moving(group_bytes, PLUMBING), name
            )
            costs = run.costs
        took = statistics.mean(r["iteration_s"] for r in middle(records, layout.staleness))
        rows[name] = row(
            layout, counts, took, iteration(loop, known(group_bytes), counts), iteration(loop, costs, counts)
        )
        print(name, json.dumps(rows[name]), flush=True)
    worst = max(abs(r[f"{way}_over_measured"] - 1) for r in rows.values() for way in ("sleeps", "first_run"))
    verdict = "ok" if worst <= LIMIT else "TOO FAR"
    result = {"limit": LIMIT, "worst": worst, "layouts": rows, "load_average": [load, os.getloadavg()[0]]}
    write(options.output, result)
    print(f"furthest from what was measured: {worst:.1%}, limit {LIMIT:.0%}: {verdict}")
    others = [
        f"{name}: {found['bottleneck']}, meant {found['meant']}" for name, found in rows.items() if is_other(found)
    ]
    print(f"layouts whose bottleneck is another than meant: {'; '.join(others) or 'none'}")
    sys.exit(0 if worst <= LIMIT and not others else 1)


def is_other(found: Mapping[str, Any]) -> bool:
    """Whether the model takes another part for the slowest than the layout was made for."""
    return bool(found["bottleneck"] != found["meant"])


def row(layout: Layout, counts: Counts, took: float, by_sleeps: Any, by_run: Any) -> dict[str, Any]:
    return {
        "actors": counts.actors,
        "replicas": counts.replicas[REWARD],
        "ranks": counts.ranks,
        "staleness": layout.staleness,
        "meant": layout.slowest,
        "bottleneck": by_sleeps.bottleneck,
        "sleeps_over_measured": by_sleeps.seconds / took,
        "first_run_over_measured": by_run.seconds / took,
        "iteration_over_rollout": took / SLEEPS.rollout_s,
    }


if __name__ == "__main__":
    main()
