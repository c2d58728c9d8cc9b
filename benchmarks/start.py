"""How long a run takes to its first step, and from there to the prompt: python -m benchmarks.start [--before COMMIT]

Both trees, this one and a checkout of the commit before, run `restorl train` as a process of its own: the demo's model,
four pairs of 64 pixels, one step. First once each uncounted (the interpreter compiles modules, the disk is read), then
taking turns, the order changed each time. The figure is the ratio of the medians, after to before; absolute seconds
stand beside it for the machine it ran on.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.report import RESULTS, show, spread, write
from restoration.images import read_pixels, write_image

ROOT = Path(__file__).resolve().parent.parent
BEFORE = "fd95b57"
LIMIT = 0.60
ROUNDS = 3
TIMEOUT_S = 600.0
PARTS = ("to_first_step", "step_to_prompt")


def make_recipe(folder: Path) -> Path:
    """Four pairs to train on and four held out, dimmed photographs of 64 pixels, and a recipe of one step."""
    photos = sorted((ROOT / "data" / "photos" / "train").glob("*.jpg"))[:8]
    for n, photo in enumerate(photos):
        pixels = read_pixels(photo)[:64, :64]
        for kind, image in (("target", pixels), ("input", pixels // 2)):
            write_image(folder / "pairs" / ("train" if n < 4 else "test") / kind / f"{n}.png", image)
    recipe = {
        "name": "start",
        "iterations": 1,
        "model": str(ROOT / "models" / "demo"),
        "data": {"root": str(folder / "pairs")},
        "sampler": {"steps": 3, "eta": 1.0},
        "rollout": {"images_per_batch": 4, "rollouts_per_image": 2, "crop": 64},
        "reward": {"scorer": "lite0_levels", "num_cpus": 0.5},
        "ranks": {"num_cpus": 0.5},
        "actors": {"num_cpus": 0.5},
        "source": {"groups_per_step": 4},
        "cluster": {"num_cpus": 2},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def measure(tree: Path, recipe: Path, folder: Path) -> dict[str, float]:
    """Seconds from the command to its first step's line of metrics, and from there to its end."""
    command = [sys.executable, "-m", "cluster.cli", "train", str(recipe), "--run", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        began, stepped = time.monotonic(), 0.0
        process = subprocess.Popen(command, cwd=tree, env=environment, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                if not stepped and _has_stepped(folder / "metrics.jsonl"):
                    stepped = time.monotonic()
                if time.monotonic() - began > TIMEOUT_S:
                    raise TimeoutError(f"{tree}: no end within {TIMEOUT_S:g} s; see {log.name}")
                time.sleep(0.02)
        finally:
            process.kill()
        ended = time.monotonic()
    if process.returncode or not stepped:
        raise RuntimeError(f"{tree}: the run ended with status {process.returncode}: {Path(log.name).read_text()}")
    return {"to_first_step": stepped - began, "step_to_prompt": ended - stepped}


def _has_stepped(metrics: Path) -> bool:
    return metrics.exists() and '"kind": "train"' in metrics.read_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default=BEFORE, help=f"commit to compare with, {BEFORE} by default")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="restorl_start_") as temporary:
        place = Path(temporary)
        recipe, before = make_recipe(place), place / "before"
        subprocess.run(["git", "worktree", "add", "--detach", "-f", before, given.before], cwd=ROOT, check=True)
        try:
            trees = {"before": before, "after": ROOT}
            found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
            for turn in range(given.rounds + 1):
                for name in sorted(trees, reverse=turn % 2 == 1):
                    times = measure(trees[name], recipe, place / f"{name}{turn}")
                    print(name, {k: round(v, 1) for k, v in times.items()}, "" if turn else "(uncounted)", flush=True)
                    if turn:
                        found[name].append(times)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before], cwd=ROOT, check=True)
    result: dict[str, object] = {"before": given.before, "limit": LIMIT, "cores": os.cpu_count()}
    for part in PARTS:
        seconds = {name: spread([t[part] for t in times]) for name, times in found.items()}
        base = statistics.median([t[part] for t in found["before"]])
        ratio = spread([t[part] / base for t in found["after"]])
        result[part] = {"ratio": ratio, "seconds": seconds}
        print(
            f"{part}: after / before {show(ratio)}, limit {LIMIT}: {'ok' if ratio['median'] <= LIMIT else 'TOO SLOW'}"
        )
    write(RESULTS / "start.json", result)


if __name__ == "__main__":
    main()
