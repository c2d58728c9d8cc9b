"""Throughput of the reward service against direct in-process batches of the same scorer, and against other servers.

    python -m benchmarks.reward_path [--repeats 3] [--output benchmarks/results/reward_path.json]

Eight callers, each its own process, send blocks of 16 images of 512x512x3 uint8 and keep some on their way; the scorer
costs 5 ms an image. Rounds of what is compared alternate; a ratio is of neighbouring rounds. About five minutes.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.fixed_cost import turns_for
from benchmarks.report import RESULTS, show, spread, write
from benchmarks.reward_http import KINDS, HttpServer, sender
from reward_service import service
from reward_service.client import RewardClient
from reward_service.figures import merged
from reward_service.scorers import make_scorer
from reward_service.settings import RewardApp, RewardSettings

CALLERS, BLOCK, SIDE, COST_MS, MERGED = 8, 16, 512, 5.0, 64
SCORER = "benchmarks.fixed_cost:FixedCost"
TARGETS = {"sleep": 0.95, "burn": 0.8, "two replicas": 1.8, "json": 8.0, "jpeg": 1.4, "fill": 0.9}


def pictures(seed: int) -> np.ndarray:
    """uint8 [BLOCK, SIDE, SIDE, 3], smooth with a little noise, as photographs compress."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (BLOCK, SIDE // 32, SIDE // 32, 3)).astype(np.float32)
    smooth = np.repeat(np.repeat(coarse, 32, axis=1), 32, axis=2)
    for axis in (1, 2):
        smooth = sum(np.roll(smooth, shift, axis) for shift in range(-16, 16, 4)) / 8
    return np.clip(smooth + rng.normal(0, 3, smooth.shape), 0, 255).astype(np.uint8)


@ray.remote(num_cpus=0)
class Caller:
    """Sends blocks, of its own pictures, to a service or an HTTP server, and looks whether the scores are theirs."""

    def __init__(self, seed: int) -> None:
        self.images = pictures(seed)
        self.right = self.images[:, 0, 0, 1].astype(np.float32)
        self.clients: dict[str, RewardClient] = {}

    def send(self, app: RewardApp, blocks: int, outstanding: int) -> int:
        client = self.clients.setdefault(app.name, RewardClient(app))
        tickets: list[Any] = []
        for number in range(blocks):
            tickets.append(client.submit(self.images))
            while tickets and (len(tickets) == outstanding or number == blocks - 1):
                assert np.array_equal(tickets.pop(0).result().scores, self.right)
        return blocks * BLOCK

    def post(self, kind: str, port: int, images: int) -> int:
        send = sender(kind, port)
        scores = send(self.images[:images])
        # JPEG loses a little.
        assert np.abs(np.array(scores) - self.right[:images]).max() <= (0 if kind == "json" else 12)
        return images


def rate(calls: Callable[[], list[Any]]) -> float:
    """Images a second of what the callers do side by side."""
    started = time.perf_counter()
    images = sum(ray.get(calls()))
    return float(images / (time.perf_counter() - started))


def direct(params: dict[str, Any], images: int) -> float:
    """Images a second of the scorer alone, in batches as large as the service merges."""
    scorer = make_scorer(SCORER, **params)
    batch = np.concatenate([pictures(seed) for seed in range(MERGED // BLOCK)])
    started = time.perf_counter()
    for _ in range(images // MERGED):
        scorer.score(batch)
    return images / (time.perf_counter() - started)


def deploy(name: str, params: dict[str, Any], replicas: int = 1) -> RewardApp:
    settings = RewardSettings(scorer=SCORER, params=params, max_batch=MERGED, num_cpus=0, replicas=replicas)
    return service.deploy(settings, name)


def compare(name: str, pairs: list[tuple[float, float]], **more: Any) -> dict[str, Any]:
    """One row: rates of (this, that) in neighbouring rounds."""
    found = spread([this / that for this, that in pairs])
    rounds = [[round(this, 1), round(that, 1)] for this, that in pairs]
    print(f"{name}: {show(found)}, wanted {TARGETS[name]:g}", flush=True)
    return {"name": name, "ratio": found, "target": TARGETS[name], "images_per_s": rounds, **more}


def against_direct(
    name: str, params: dict[str, Any], callers: list[Any], repeats: int, blocks: int
) -> tuple[dict[str, Any], RewardApp]:
    app = deploy(f"benchmark-{name}", params)
    images = CALLERS * BLOCK * blocks
    rate(lambda: [c.send.remote(app, 2, 2) for c in callers])
    pairs = []
    for _ in range(repeats):
        base = direct(params, images)
        pairs.append((rate(lambda: [c.send.remote(app, blocks, 2) for c in callers]), base))
    seen = merged(replica["figures"] for replica in service.describe_all(app))
    return compare(name, pairs, service=seen), app


def against_http(kind: str, app: RewardApp, callers: list[Any], repeats: int, images: int) -> dict[str, Any]:
    server = HttpServer.remote(kind, SCORER, {"ms": COST_MS})  # type: ignore[attr-defined]
    port = ray.get(server.port.remote())
    pairs = []
    for _ in range(repeats):
        that = rate(lambda: [c.post.remote(kind, port, images) for c in callers])
        pairs.append((rate(lambda: [c.send.remote(app, 4, 2) for c in callers]), that))
    ray.kill(server)
    return compare(kind, pairs)


def two_replicas(app: RewardApp, callers: list[Any], repeats: int, blocks: int) -> dict[str, Any]:
    two = deploy("benchmark-two", {"ms": COST_MS}, replicas=2)
    rate(lambda: [c.send.remote(two, 4, 4) for c in callers])
    pairs = []
    for _ in range(repeats):
        one = rate(lambda: [c.send.remote(app, blocks, 4) for c in callers])
        pairs.append((rate(lambda: [c.send.remote(two, 2 * blocks, 4) for c in callers]), one))
    return compare("two replicas", pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=10, help="blocks a caller sends in a round")
    parser.add_argument("--output", type=Path, default=RESULTS / "reward_path.json")
    args = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")  # 15 s are too few on a busy machine
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    began = time.perf_counter()
    ray.init(num_cpus=2, include_dashboard=False, logging_level="warning", log_to_driver=False)
    try:
        callers = [Caller.remote(seed) for seed in range(CALLERS)]  # type: ignore[attr-defined]
        slept, app = against_direct("sleep", {"ms": COST_MS}, callers, args.repeats, args.blocks)
        results = [slept]
        results += [against_http(kind, app, callers, args.repeats, 8) for kind in KINDS]
        results.append(two_replicas(app, callers, args.repeats, args.blocks // 2))
        burn = {"turns": turns_for(COST_MS)}
        results.append(against_direct("burn", burn, callers, args.repeats, args.blocks // 2)[0])
    finally:
        ray.shutdown()
    seen = slept["service"]
    print(
        f"fill {seen['fill']:.3f}, wanted {TARGETS['fill']:g}; a block waits {seen['queue_p50_s']:.3f} s (p50), "
        f"{seen['queue_p99_s']:.3f} s (p99), of which the scorer's batch of {MERGED} takes {seen['scorer_p50_s']:.3f} s"
    )
    report = {
        "what": f"{CALLERS} callers, blocks of {BLOCK} images {SIDE}x{SIDE}x3, {COST_MS:g} ms an image, batches of "
        f"{MERGED}; images a second of the service by those of what it is compared with",
        "load_average": os.getloadavg(),
        "seconds": round(time.perf_counter() - began),
        "fill": seen["fill"],
        "queue_s": {"p50": seen["queue_p50_s"], "p99": seen["queue_p99_s"]},
        "results": results,
    }
    write(args.output, report)


if __name__ == "__main__":
    main()
