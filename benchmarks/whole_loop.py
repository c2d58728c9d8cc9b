"""Wall time of an iteration against its slowest phase: python -m benchmarks.whole_loop

How the phases are isolated: a synchronous run (staleness 0, one actor) of the demo takes them one after the other,
so each has the machine to itself: denoising with decoding (`rollout`), waiting for scores (`reward_wait`), the
learner's step (`learn`). Then the same recipe runs with staleness 1, where they overlap. The figure is the median
iteration of the second run over the median of the slowest phase of the first; every phase computes with one thread.

Two figures say where a difference comes from: the same phase in the second run over the first, what sharing the machine
costs it, and the iteration over the phase in the second run, what the loop itself costs.
"""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path

from benchmarks.report import RESULTS, show, spread, write
from cluster.config.configure import load_config
from cluster.config.recipe import RunConfig
from cluster.report.records import read_metrics
from cluster.run.driver import train

ITERATIONS = 8
LIMIT = 1.10
PHASES = ("rollout_s", "reward_wait_s", "learn_s")


def run(staleness: int) -> list[dict[str, float]]:
    folder = Path(f"runs/bench-staleness{staleness}")
    shutil.rmtree(folder, ignore_errors=True)
    overrides = [f"iterations={ITERATIONS}", f"source.max_staleness={staleness}", "evaluation.every=0"]
    config = load_config(
        RunConfig, "configs/demo.yaml", [*overrides, "learner.norms_every=0", "cluster.dashboard=false"]
    )
    train(config, folder)
    return read_metrics(folder, "train")[2:]  # the first iterations warm caches and fill the pipeline


def main() -> None:
    alone, overlapped = run(0), run(1)
    phases = {p: statistics.median(r[p] for r in alone) for p in PHASES}
    slowest = max(phases, key=lambda p: phases[p])
    walls = [r["iteration_s"] for r in overlapped]
    beside = statistics.median(r[slowest] for r in overlapped)
    ratio = spread([w / phases[slowest] for w in walls])
    sync = statistics.median(r["iteration_s"] for r in alone)
    result = {
        "ratio": ratio,
        "limit": LIMIT,
        "slowest_phase": slowest,
        "slowest_phase_beside_the_others": beside / phases[slowest],
        "iteration_over_it_there": statistics.median(walls) / beside,
        "learner_waits_share": statistics.median(r["learner_wait_s"] / r["iteration_s"] for r in overlapped),
        "phases_over_slowest": {p: v / phases[slowest] for p, v in phases.items()},
        "synchronous_over_slowest": sync / phases[slowest],
    }
    write(RESULTS / "whole_loop.json", result)
    verdict = "ok" if ratio["median"] <= LIMIT else "TOO SLOW"
    print(
        f"iteration / slowest phase ({slowest.removesuffix('_s')}): {show(ratio)}, limit {LIMIT}: {verdict}; "
        f"without overlap {sync / phases[slowest]:.3f}; that phase beside the others "
        f"{beside / phases[slowest]:.3f}, the iteration over it there {statistics.median(walls) / beside:.3f}"
    )


if __name__ == "__main__":
    main()
