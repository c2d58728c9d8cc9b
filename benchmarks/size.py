"""How many actors, groups and bytes the driver, the store and a rank's intake sustain: python -m benchmarks.size

    python -m benchmarks.size [--output benchmarks/results/size.json] [--folder runs/bench-size]

Three parts (`--parts`), the last two by runs of stand-ins that sleep (`benchmarks.stand_ins` says what is real), each
in a process of its own:

- **turns**: what a turn of the driver's loop costs the processor, by the number of actors, without Ray and the store;
- **actors**: 10 to 500 of them, each asleep for two seconds an item of one image, with records of two kilobytes, so
  that the driver's bookkeeping is what there is to measure: groups a second against what the actors could give, the
  driver's share of a core, what it spends a group on what, memory;
- **bytes**: records of true size (512 px: latents of 4 x 64 x 64, 20 steps, K = 8, float32), from 8 and 32 actors that
  are never the slowest: groups and bytes a second through the store and a rank's intake, and their memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from actors.work import WorkItem
from benchmarks.report import RESULTS, write
from benchmarks.stand_ins import Sleeps, recipe, train, write_pairs
from cluster.report.records import read_metrics
from cluster.run import driver, state
from cluster.run.actor_pool import ActorPool, Call
from cluster.run.driver_stream import DriverStream
from cluster.run.topology import Topology
from cluster.run.work_queue import WorkQueue

ACTORS = (10, 50, 100, 250, 500)
SLEEP_S = 2.0
LONGEST_S = 1800.0  # of a run, on a machine that others use
TRUE_SIZE = Sleeps(rollout_s=0.05, latent=(4, 64, 64), side=512)
PROCESSES = {"store": "valkey-server", "rank": "ray::SleepingRank", "hosts": "ray::ActorHost"}
WATCHED: tuple[tuple[str, Any, str], ...] = (
    ("hand out", ActorPool, "call"),
    ("who is free", ActorPool, "free"),
    ("what has ended", ActorPool, "finished"),
    ("take results", ActorPool, "take"),
    ("what is rolling", Topology, "rolling"),
    ("who evaluates", Topology, "evaluating"),
    ("what is unsettled", DriverStream, "unsettled"),
    ("admission", driver, "capacity"),
    ("next items", WorkQueue, "take"),
    ("record", state.RunState, "_record"),
)


class Watch:
    """Seconds of the driver's loop by what it does: of the clock, and of the processor in its thread; peak memory."""

    def __init__(self) -> None:
        self.wall, self.cpu, self.calls = Counter[str](), Counter[str](), Counter[str]()
        self.peaks = Counter[str]()
        self._stop = threading.Event()

    def around(self, name: str, owner: Any, attribute: str) -> None:
        original: Callable[..., Any] = getattr(owner, attribute)

        def call(*arguments: Any, **named: Any) -> Any:
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return original(*arguments, **named)
            finally:
                self.wall[name] += time.perf_counter() - wall
                self.cpu[name] += time.thread_time() - cpu
                self.calls[name] += 1

        setattr(owner, attribute, call)

    @contextmanager
    def memory(self) -> Iterator[None]:
        looking = threading.Thread(target=self._look, daemon=True)
        looking.start()
        try:
            yield
        finally:
            self._stop.set()
            looking.join()

    def _look(self) -> None:
        while not self._stop.wait(1.0):
            found = Counter({"driver": psutil.Process().memory_info().rss})
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    line = " ".join(process.cmdline())
                    for name, sign in PROCESSES.items():
                        if sign in line and "watched.py" not in line:
                            found[name] += process.memory_info().rss
            for name, size in found.items():
                self.peaks[name] = max(self.peaks[name], size)


def one(part: str, actors: int, folder: Path) -> dict[str, Any]:
    """A run, in this process."""
    shutil.rmtree(folder, ignore_errors=True)
    small = part == "actors"
    side, batch = (32, actors) if small else (512, 8)
    iterations = 12 if small else 9
    sleeps = Sleeps(rollout_s=SLEEP_S) if small else TRUE_SIZE
    write_pairs(folder / "pairs", side, 8)
    config = recipe(
        folder / "pairs",
        iterations=iterations,
        sampler={"steps": 3 if small else 20},
        rollout={"images_per_batch": 1, "rollouts_per_image": 2 if small else 8, "crop": side},
        reward={"terms": [{"scorer": "psnr"}]},
        source={"groups_per_step": batch, "max_staleness": 1, "timeout_s": 240.0},
        store={"max_entries": 8 * batch, "max_bytes": 3 << 30},
        actors={"count": actors},
        checkpoint_every=1 if small else 2,
    )
    watch = Watch()
    for what in WATCHED:
        watch.around(*what)
    began_cpu = time.process_time()
    with watch.memory():
        train(config, folder / "run", sleeps, processes=4 if small else 2)
    used_cpu = time.process_time() - began_cpu
    records = read_metrics(folder / "run", "train")
    kept = records[3:-2]  # the pipeline is full, and goes on being filled
    seconds = sum(r["iteration_s"] for r in kept)
    groups = batch * len(kept)
    all_groups = batch * iterations
    ledger = json.loads((folder / "run" / "ledger.json").read_text())
    found: dict[str, Any] = {
        "actors": actors,
        "groups_a_step": batch,
        "iterations": iterations,
        "groups_per_s": groups / seconds,
        "driver_cpu_ms_a_group": 1e3 * used_cpu / all_groups,
        "loop_ms_a_group": {
            name: [1e3 * watch.wall[name] / all_groups, 1e3 * watch.cpu[name] / all_groups] for name, *_ in WATCHED
        },
        "loops_a_group": watch.calls["what has ended"] / all_groups,
        "unsettled_ms_a_call": 1e3 * watch.wall["what is unsettled"] / max(1, watch.calls["what is unsettled"]),
        "prepare_s": statistics.median(r["prepare_s"] for r in kept),
        "open_s": statistics.median(r["open_s"] for r in kept),
        "peak_mb": {name: size / 2**20 for name, size in sorted(watch.peaks.items())},
    }
    if small:
        offered = actors / SLEEP_S
        found |= {"offered_per_s": offered, "sustained": found["groups_per_s"] / offered}
    else:
        size = statistics.median(entry["nbytes"] for entry in ledger["entries"])
        found |= {"group_bytes": size, "mb_per_s": size * found["groups_per_s"] / 1e6}
        found |= {"intake_mb_per_s": size * batch / found["prepare_s"] / 1e6}
        busy = sum(r["publish_s"] for r in kept)
        found |= {"publish_mb_per_s_an_actor": size * groups / busy / 1e6}
    return found


def turn(actors: int) -> dict[str, Any]:
    """Processor's milliseconds in a turn of the driver's loop with all actors at work, without Ray and the store."""
    pool = ActorPool.__new__(ActorPool)
    pool.calls = {f"call {a}": Call(a, WorkItem(a, (str(a),)), 0.0) for a in range(actors)}  # type: ignore[misc]
    parts = Topology.__new__(Topology)
    parts.actors = pool
    unsettled = {f"{i:08d}-000": "1-1" for i in range(2 * actors)}
    ways: dict[str, Callable[[], object]] = {
        "who evaluates": parts.evaluating,
        "what is rolling": parts.rolling,
        "admission": lambda: driver.capacity(actors, 1, 9, unsettled, set(), parts.rolling()),
    }
    found: dict[str, Any] = {"actors": actors}
    for name, way in ways.items():
        took = []
        for _ in range(5):
            began = time.thread_time()
            way()
            took.append(1e3 * (time.thread_time() - began))
        found[f"{name}, ms"] = statistics.median(took)
    return found


def apart(part: str, actors: int, folder: Path) -> dict[str, Any]:
    """A run in a process of its own, so that its memory is its own."""
    command = [sys.executable, "-m", "benchmarks.size", "--one", part, str(actors), "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=LONGEST_S)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    shutil.rmtree(folder, ignore_errors=True)  # gigabytes of an append-only file
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=RESULTS / "size.json")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-size"))
    parser.add_argument("--one", nargs=2, metavar=("PART", "ACTORS"), help="a single run, in this process")
    parser.add_argument(
        "--parts", nargs="+", choices=("turns", "actors", "bytes"), default=["turns", "actors", "bytes"]
    )
    parser.add_argument("--actors", nargs="+", type=int, default=list(ACTORS))
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one[0], int(options.one[1]), options.folder)))
        return
    load = os.getloadavg()[0]
    result: dict[str, Any] = {"machine": {"cpus": os.cpu_count()}}
    if "turns" in options.parts:
        result["turns"] = [turn(count) for count in options.actors]
        print("turns", json.dumps(result["turns"]), flush=True)
    for part, counts in (("actors", options.actors), ("bytes", (8, 32))):
        if part not in options.parts:
            continue
        result[part] = []
        for count in counts:
            found = apart(part, count, options.folder / f"{part}-{count}")
            result[part].append(found)
            print(part, json.dumps(found), flush=True)
    result["machine"]["load_average"] = [load, os.getloadavg()[0]]
    write(options.output, result)


if __name__ == "__main__":
    main()
