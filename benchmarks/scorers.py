"""BRISQUE and PIQE in batches of 32, beside the reference packages picture by picture.

    python -m benchmarks.scorers --packages PYTHON [--pairs 5] [--threads 2] [--output benchmarks/results/scorers.json]

PYTHON is the interpreter of an environment that has the packages brisque (0.2.0, numpy < 2.4) and pypiqe (1.2); they
are no part of this project. Without it ours are timed alone. Rounds alternate, a ratio is of neighbouring rounds:

- `wall`: time until all 32 scores are there; ours on `--threads` threads, the packages on the one that they can use.
- `processor`: seconds of the processor, ours on one thread.

The pictures are crops of the shipped photographs, in quadratic sizes that rollouts have.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import RESULTS, show, spread, write
from restoration.images import read_pixels
from reward_service.scorers import Scorer, make_scorer

PHOTOS = Path(__file__).resolve().parents[1] / "data" / "photos"
SIDES, COUNT, AT_LEAST = (64, 128, 256), 32, 20.0
# Reads lines "name file", answers each with the seconds of all pictures in the file: of the clock and the processor.
PACKAGES = """
import sys, time, warnings
import numpy as np
warnings.simplefilter("ignore")
from brisque import BRISQUE
from pypiqe import piqe
score = {"brisque": BRISQUE(url=False).score, "piqe": lambda image: piqe(np.ascontiguousarray(image[..., ::-1]))}
print("ready", flush=True)
for line in sys.stdin:
    name, file = line.split(maxsplit=1)
    images = np.load(file.strip(), allow_pickle=False)
    clock, processor = time.perf_counter(), time.process_time()
    for image in images:
        score[name](image)
    print(time.perf_counter() - clock, time.process_time() - processor, flush=True)
"""
Timed = Callable[[str, Path], tuple[float, float]]


def crops(side: int) -> np.ndarray:
    """uint8 [32, side, side, 3], of all photographs in turn, each time from another place."""
    photos = [np.asarray(read_pixels(file)) for file in sorted(PHOTOS.glob("*/*.jpg"))]
    large = [photo for photo in photos if min(photo.shape[:2]) >= side]
    rng, found = np.random.default_rng(0), []
    for number in range(COUNT):
        photo = large[number % len(large)]
        top, left = (int(rng.integers(0, size - side + 1)) for size in photo.shape[:2])
        found.append(photo[top : top + side, left : left + side])
    return np.stack(found)


@contextmanager
def packages(python: str) -> Iterator[Timed]:
    """Times a round of a package, in its own interpreter.

    Raises:
        SystemExit: the interpreter lacks a package.
    """
    with subprocess.Popen(
        [python, "-c", PACKAGES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            sys.exit(f"{python} has not both packages: install brisque and pypiqe there, and numpy < 2.4")

        def ask(name: str, file: Path) -> tuple[float, float]:
            process.stdin.write(f"{name} {file}\n")  # type: ignore[union-attr]
            wall, processor = process.stdout.readline().split()  # type: ignore[union-attr]
            return float(wall), float(processor)

        try:
            yield ask
        finally:
            process.stdin.close()


def round_of(scorer: Scorer, images: np.ndarray, threads: int, clock: Callable[[], float]) -> float:
    torch.set_num_threads(threads)
    scorer.score(images)  # the first after a change of threads starts them
    started = clock()
    scorer.score(images)
    return clock() - started


def measure(names: tuple[str, ...], pairs: int, threads: int, theirs: Timed | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            scorer = make_scorer(name)
            for side in SIDES:
                images = crops(side)
                file = Path(folder) / f"{side}.npy"
                np.save(file, images)
                rounds = []
                for _ in range(pairs):
                    wall = round_of(scorer, images, threads, time.perf_counter)
                    processor = round_of(scorer, images, 1, time.process_time)
                    rounds.append((wall, processor, *(theirs(name, file) if theirs else ())))
                entry: dict[str, Any] = {
                    "ms_an_image": {
                        "wall": spread([1e3 * r[0] / COUNT for r in rounds]),
                        "processor": spread([1e3 * r[1] / COUNT for r in rounds]),
                    }
                }
                if theirs:
                    entry["package_ms_an_image"] = spread([1e3 * r[2] / COUNT for r in rounds])
                    entry["ratio"] = {
                        "wall": spread([r[2] / r[0] for r in rounds]),
                        "processor": spread([r[3] / r[1] for r in rounds]),
                    }
                    entry["met"] = entry["ratio"]["wall"]["median"] >= AT_LEAST
                found[f"{name}, {side} px"] = entry
                print(f"{name}, {side} px: {told(entry)}", flush=True)
    return found


def told(entry: dict[str, Any]) -> str:
    text = f"{entry['ms_an_image']['wall']['median']:.2f} ms an image"
    if "ratio" in entry:
        text += (
            f", the package {entry['package_ms_an_image']['median']:.2f}: {show(entry['ratio']['wall'])} times as fast"
        )
        text += f", by the processor's time on one thread {show(entry['ratio']['processor'])}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", help="interpreter that has brisque and pypiqe")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "scorers.json")
    options = parser.parse_args()
    if options.packages:
        with packages(options.packages) as theirs:
            found = measure(("brisque", "piqe"), options.pairs, options.threads, theirs)
    else:
        found = measure(("brisque", "piqe"), options.pairs, options.threads, None)
    result = {"batch": COUNT, "threads": options.threads, "at_least": AT_LEAST, "scorers": found}
    write(options.output, result)
    print(json.dumps({name: entry.get("met") for name, entry in found.items()}))


if __name__ == "__main__":
    main()
