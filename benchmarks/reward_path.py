"""Throughput of the reward service against direct in-process batches of the same scorer.

    python -m benchmarks.reward_path [--repeats 5] [--output benchmarks/results/reward_path.json]

Four callers, each its own process, send blocks of 16 images of 512x512x3 uint8 and keep one or two blocks on their
way; the scorer costs 5 ms an image. Direct and served rounds alternate; a ratio is of neighbouring rounds.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.fixed_cost import turns_for
from benchmarks.report import RESULTS, show, spread, write
from reward_service import service
from reward_service.client import RewardClient
from reward_service.scorers import make_scorer
from reward_service.settings import RewardApp, RewardSettings

CALLERS, BLOCK, SIDE, COST_MS, MERGED = 4, 16, 512, 5.0, 64
SCORER = "benchmarks.fixed_cost:FixedCost"


@ray.remote(num_cpus=0)
class Caller:
    """Sends blocks and keeps `outstanding` of them on their way."""

    def __init__(self, app: RewardApp, seed: int) -> None:
        self.client = RewardClient(app)
        self.images = np.random.default_rng(seed).integers(0, 256, (BLOCK, SIDE, SIDE, 3), np.uint8)

    def send(self, blocks: int, outstanding: int) -> int:
        tickets, scored = [], 0
        for _ in range(blocks):
            tickets.append(self.client.submit(self.images))
            if len(tickets) == outstanding:
                scored += len(tickets.pop(0).result().scores)
        return scored + sum(len(t.result().scores) for t in tickets)


def direct(params: dict[str, Any], blocks: int) -> float:
    """Images a second of the scorer alone, in batches as large as the service merges."""
    scorer = make_scorer(SCORER, **params)
    images = np.random.default_rng(0).integers(0, 256, (MERGED, SIDE, SIDE, 3), np.uint8)
    total = CALLERS * BLOCK * blocks
    started = time.perf_counter()
    for _ in range(total // MERGED):
        scorer.score(images)
    return total / (time.perf_counter() - started)


def served(callers: list[Any], blocks: int, outstanding: int) -> float:
    started = time.perf_counter()
    scored = sum(ray.get([c.send.remote(blocks, outstanding) for c in callers]))
    seconds = time.perf_counter() - started
    assert scored == CALLERS * BLOCK * blocks
    return scored / seconds


def compare(name: str, params: dict[str, Any], outstanding: int, repeats: int, blocks: int) -> dict[str, Any]:
    settings = RewardSettings(scorer=SCORER, params=params, max_batch=MERGED, num_cpus=0)
    app = service.deploy(settings, name="benchmark")
    callers = [Caller.remote(app, seed) for seed in range(CALLERS)]  # type: ignore[attr-defined]
    served(callers, 2, outstanding)
    rounds = []
    for _ in range(repeats):
        base = direct(params, blocks)
        rounds.append({"direct": round(base, 1), "served": round(served(callers, blocks, outstanding), 1)})
    ratios = [r["served"] / r["direct"] for r in rounds]
    for caller in callers:
        ray.kill(caller)
    summary = {
        "name": name,
        "outstanding": outstanding,
        "ratio": spread(ratios),
        "images_per_s": rounds,
        "settings": asdict(settings),
    }
    print(f"{name:6} {outstanding} on their way: {show(summary['ratio'])} of direct", flush=True)
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=12, help="blocks a caller sends in a round")
    parser.add_argument("--output", type=Path, default=RESULTS / "reward_path.json")
    args = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")  # 15 s are too few on a busy machine
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="warning", log_to_driver=False)
    burn = {"turns": turns_for(COST_MS)}
    try:
        results = [
            compare("sleep", {"ms": COST_MS}, outstanding, args.repeats, args.blocks) for outstanding in (2, 1)
        ] + [compare("burn", burn, 2, args.repeats, args.blocks)]
    finally:
        ray.shutdown()
    report = {
        "what": f"{CALLERS} callers, blocks of {BLOCK} images {SIDE}x{SIDE}x3, {COST_MS:g} ms an image; served/direct",
        "target": 0.8,
        "load_average": os.getloadavg(),
        "results": results,
    }
    write(args.output, report)


if __name__ == "__main__":
    main()
