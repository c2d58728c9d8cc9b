"""Large sets, and evaluation beside its metrics: python -m benchmarks.data_opening [--pairs 100000] [--images 200]

Opening: a process of its own opens so many pairs (links to one small picture, so that the disk holds names and not
pixels) and says how long that took, and the memory at its peak beside that of the libraries. Evaluation:
`evaluate_folders` of pairs of 600 x 400 against PSNR and SSIM alone of the same pictures in memory, taking turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.report import RESULTS, show, spread, write
from restoration.evaluate import evaluate_folders
from restoration.images import read_pixels
from restoration.metrics import protocol

ROOT = Path(__file__).resolve().parent.parent
SECONDS, MEGABYTES, BESIDE = 5.0, 500.0, 1.2
OPEN = """
import json, sys, time
from restoration.datasets.paired import discover
def memory(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) / 1000
before = memory("VmRSS")
began = time.perf_counter()
data = discover(sys.argv[1], "train")
seconds = time.perf_counter() - began
print(json.dumps({"pairs": len(data), "headers": len(data.known_sizes), "seconds": seconds,
                  "megabytes": memory("VmHWM") - before, "of_libraries": before}))
"""


def opening(folder: Path, pairs: int) -> dict[str, float]:
    """Open `pairs` of linked files in a new process."""
    picture = folder / "one.png"
    Image.new("RGB", (64, 64), (90, 120, 30)).save(picture)
    for side in ("input", "target"):
        (folder / "train" / side).mkdir(parents=True)
        for n in range(pairs):
            # A file system bounds the links to one file.
            if n % 30_000 == 0:
                source = folder / "train" / side / f"{n:07d}.png"
                source.write_bytes(picture.read_bytes())
            else:
                os.link(source, folder / "train" / side / f"{n:07d}.png")
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(folder)], capture_output=True, text=True, cwd=ROOT, check=True, timeout=600
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def beside(folder: Path, images: int, rounds: int) -> list[float]:
    """Evaluation over metrics alone, a ratio a round."""
    photos = sorted((ROOT / "data" / "photos" / "train").glob("*.jpg"))
    rng, held = np.random.default_rng(0), []
    for n in range(images):
        pixels = read_pixels(photos[n % len(photos)])
        clean = np.ascontiguousarray(np.resize(pixels[:400, :600], (400, 600, 3)).astype(np.uint8))
        worse = np.clip(clean + rng.normal(0, 8, clean.shape), 0, 255).astype(np.uint8)
        for side, picture in (("restored", worse), ("gt", clean)):
            (folder / side).mkdir(exist_ok=True)
            Image.fromarray(picture).save(folder / side / f"{n:04d}.png", compress_level=1)
        held.append((worse, clean))
    measured, ratios = protocol(), []
    for _ in range(rounds):
        began = time.perf_counter()
        for worse, clean in held:
            measured.psnr(worse, clean)
            measured.ssim(worse, clean)
        alone = time.perf_counter() - began
        began = time.perf_counter()
        rows = evaluate_folders(folder / "restored", folder / "gt", {})
        ratios.append((time.perf_counter() - began) / alone)
        assert len(rows) == images and not any(row.missing for row in rows)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        opened = opening(Path(folder), options.pairs)
    with tempfile.TemporaryDirectory() as folder:
        ratios = beside(Path(folder), options.images, options.rounds)
    result = {
        "opening": opened,
        "opening_asked": {"seconds": SECONDS, "megabytes": MEGABYTES},
        "evaluation_of_metrics_alone": spread(ratios),
        "evaluation_asked": BESIDE,
        "images": options.images,
    }
    write(RESULTS / "data_opening.json", result)
    print(f"{opened['pairs']} pairs opened: {opened['seconds']:.1f} s, {opened['megabytes']:.0f} MB at the peak")
    print(f"evaluation of {options.images} pairs against the metrics alone: {show(spread(ratios))}")
    met = opened["seconds"] <= SECONDS and opened["megabytes"] <= MEGABYTES and statistics.median(ratios) <= BESIDE
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
