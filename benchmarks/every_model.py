"""`restorl train` and `restorl restore` for every kind of base model: python -m benchmarks.every_model

Each model is made from tiny files in its released layout and trained for two iterations by the command line, driver
and all, then restores a picture. Shows the ratio of the first update and how far the trained weights moved; a run whose
audit doesn't hold is an error. Results in benchmarks/results/every_model.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from benchmarks.report import RESULTS, write
from cluster.report.records import read_metrics
from restoration.base_models import load
from restoration.images import read_image
from tests.restoration.released_models import MODELS
from tests.system.conftest import write_pairs

LIMIT_S = 300


def command(*arguments: str | Path) -> None:
    """Raises RuntimeError with the end of its output."""
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", *map(str, arguments)], capture_output=True, text=True, timeout=LIMIT_S
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, arguments))}:\n{(done.stdout + done.stderr)[-3000:]}")


def whole_run(name: str, folder: Path) -> dict[str, Any]:
    MODELS[name](folder).save(folder / "model")
    pairs, run = folder / "pairs", folder / "run"
    write_pairs(pairs, side=64)
    recipe = {
        "name": name,
        "iterations": 2,
        "model": str(folder / "model"),
        "data": {"root": str(pairs)},
        "sampler": {"steps": min(load(folder / "model").sampler.steps, 2)},
        "rollout": {"images_per_batch": 2, "rollouts_per_image": 2, "crop": 64},
        "reward": {"scorer": "tests.system.scorers:Contrast", "num_cpus": 0.2},
        "adapt": {"rank": 2},
        "optimiser": {"lr": 1e-3},
        "source": {"groups_per_step": 2, "max_staleness": 0},
        "ranks": {"num_cpus": 0.2},
        "actors": {"num_cpus": 0.2},
        "cluster": {"num_cpus": 2, "dashboard": False, "object_store_mb": 200},
        "evaluation": {"every": 0, "strips": 0},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    began = time.monotonic()
    command("train", folder / "recipe.yaml", "--run", run)
    seconds = time.monotonic() - began
    command("audit", run)
    source = next((pairs / "test" / "input").glob("*.png"))
    command("restore", "--model", run, "--device", "cpu", source, folder / "out.png")
    steps = read_metrics(run, "train")
    weights = load_file(next((run / "checkpoints").rglob("weights.safetensors")))
    # a LoRA's second factor starts at 0
    moved = max(float(value.abs().max()) for key, value in weights.items() if "lora_B" in key)
    return {
        "iterations": len(steps),
        "first_ratio": [steps[0]["ratio_min"], steps[0]["ratio_max"]],
        "moved": moved,
        "restored": list(read_image(folder / "out.png").shape),
        "seconds": round(seconds),
    }


def main() -> None:
    found: dict[str, Any] = {}
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found[name] = whole_run(name, Path(folder))
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                found[name] = {"error": str(error)}
        print(name, json.dumps(found[name]), flush=True)
    write(RESULTS / "every_model.json", found)
    sys.exit(any("error" in result for result in found.values()))


if __name__ == "__main__":
    main()
