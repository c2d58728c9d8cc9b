"""The paper's six tables, by tiny models on stand-ins of the sets: python -m benchmarks.paper_tables

Every step is that of the real ones: sets in their layouts by `restorl data make`, models converted from files in their
released layouts, `restorl paper run all --scale tiny`, `restorl paper table all`. The figures mean nothing. Sets,
models, trainings and results lie in runs/paper_tiny, the tables in docs/paper_tables; interrupted, it goes on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import RESULTS, write
from cluster.paper.tables import MODELS as ROWS
from cluster.paper.tables import TABLES
from restoration.datasets.make import make_set
from restoration.datasets.opening import public_set
from restoration.datasets.registry import SETS
from tests.restoration.released_models import MODELS

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = ROOT / "data" / "photos"
FOLDER, TABLES_FOLDER = Path("runs/paper_tiny"), Path("docs/paper_tables")
SIDE, TRAIN, TEST = 64, 4, 4
LIMIT_S = 3600


def make_sets(folder: Path) -> None:
    """A stand-in of every set of the tables, in the layout that it is published in."""
    parts = [part for table in TABLES.values() for part in table.parts]
    for name in dict.fromkeys(name for part in parts for name in (part.trained_on, part.set)):
        pairs = make_set(name, PHOTOS, folder / name, side=SIDE, train=TRAIN, test=TEST)
        layout = SETS[name].layouts[0].name
        counts = ", ".join(f"{split} {count}" for split, count in pairs.items())
        print(f"{public_set(name).title}, layout {layout}: {counts}", flush=True)


def make_models(folder: Path) -> None:
    """A model of each row, of tiny files in its released layout."""
    for name in ROWS:
        if not (folder / name / "restorl_model.json").is_file():
            with tempfile.TemporaryDirectory() as released:
                MODELS[name](Path(released)).save(folder / name)
            print(f"model {name}", flush=True)


def restorl(*arguments: str | Path) -> int:
    command = [sys.executable, "-m", "cluster.cli", *map(str, arguments)]
    return subprocess.run(command, timeout=LIMIT_S).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="trainings and measurements side by side")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--write", type=Path, default=TABLES_FOLDER)
    options = parser.parse_args()
    began = time.monotonic()
    make_sets(options.folder / "data")
    make_models(options.folder / "models")
    places = ("--data", options.folder / "data", "--models", options.folder / "models", "--out", options.folder)
    status = restorl("paper", "run", "all", *places, "--scale", "tiny", "--jobs", str(options.jobs))
    if status == 0:
        status = restorl("paper", "table", "all", "--out", options.folder, "--write", options.write)
    if status == 0:
        seconds = round(time.monotonic() - began)
        write(RESULTS / "paper_tables.json", {"seconds": seconds, "jobs": options.jobs})
        print(f"six tables in {seconds} s: {options.write}")
    sys.exit(status)


if __name__ == "__main__":
    main()
