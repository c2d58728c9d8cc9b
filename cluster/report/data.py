"""What a report says, computed from the files of a run folder. No pictures here."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.report.records import FILE_NAME, Record, read_metrics
from restoration.evaluate import MISSING
from restoration.metrics.appearance import APPEARANCE

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Comparison:
    """One metric over the held-out photographs: means of each, and RL minus base, paired, with its 95% interval."""

    metric: str
    count: int
    degraded: float | None
    base: float
    tuned: float
    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`up` or `down` where the interval leaves out 0, else `unclear`."""
        if self.low > 0:
            return "up"
        return "down" if self.high < 0 else "unclear"


@dataclass(frozen=True)
class RunData:
    """The files of a run folder; whatever the run has not written yet is empty."""

    folder: Path
    about: dict[str, Any]
    config: str
    train: list[Record]
    evaluations: list[Record]
    alarms: list[Record]
    base: Columns
    tuned: Columns
    strips: list[Path]


def read_run(folder: Path) -> RunData:
    """Read a run folder.

    Raises:
        FileNotFoundError: it isn't one.
        ValueError: a file of it is damaged, or the two evaluations are of different images.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file() and not (folder / FILE_NAME).is_file():
        raise FileNotFoundError(f"{folder}: neither config.yaml nor {FILE_NAME} in it; give the folder of a run")
    records = read_metrics(folder) if (folder / FILE_NAME).is_file() else []
    base, tuned = (read_scores(folder / "evaluation" / f"{who}.csv") for who in ("base", "rl"))
    if base and tuned:
        base, tuned = _paired(base, tuned, folder)
    config = folder / "config.yaml"
    return RunData(
        folder=folder,
        about=_read_json(folder / "run.json"),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        train=[r for r in records if r.get("kind") == "train"],
        evaluations=[r for r in records if r.get("kind") == "eval"],
        alarms=[r for r in records if r.get("kind") == "alarm"],
        base=base,
        tuned=tuned,
        strips=sorted((folder / "strips").glob("*.png")),
    )


def read_scores(path: Path) -> Columns:
    """An evaluation's CSV by columns; `image_id` is text, every other column float (an empty cell is NaN).

    Without the column of reasons for empty cells.

    Raises:
        ValueError: no `image_id`, or a cell that is no number, with its line.
    """
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or "image_id" not in rows[0]:
        raise ValueError(f"{path}: no rows with an image_id; evaluate the run again")
    columns: Columns = {name: [] for name in rows[0] if name and name != MISSING}
    for line, row in enumerate(rows, 2):
        for name, cells in columns.items():
            try:
                cells.append(row[name] if name == "image_id" else float(row[name] or "nan"))
            except (TypeError, ValueError):
                raise ValueError(f"{path}:{line}: {name}={row[name]!r} is no number; evaluate the run again") from None
    return columns


def compare(base: Columns, tuned: Columns) -> list[Comparison]:
    """Every metric that both have, in the order of the file; images without a finite value of both are left out.

    Without the looks (brightness, saturation, sharpness), of which more is not better.
    """
    found = []
    for name in base:
        if name == "image_id" or name.startswith(("input_", "gt_")) or name in APPEARANCE or name not in tuned:
            continue
        x, y = np.array(base[name]), np.array(tuned[name])
        valid = np.isfinite(x) & np.isfinite(y)
        if not valid.any():
            continue
        degraded = np.array(base.get(f"input_{name}", []))
        degraded = degraded[valid][np.isfinite(degraded[valid])] if len(degraded) else degraded
        low, high = bootstrap_interval(y[valid] - x[valid])
        found.append(
            Comparison(
                metric=name,
                count=int(valid.sum()),
                degraded=float(degraded.mean()) if len(degraded) else None,
                base=float(x[valid].mean()),
                tuned=float(y[valid].mean()),
                difference=float((y - x)[valid].mean()),
                low=low,
                high=high,
            )
        )
    return found


def drift(base: Columns, tuned: Columns) -> list[tuple[str, float, float, float]]:
    """Of each look: its name, and degraded input, base and RL minus the ground truth, means over images."""
    found = []
    for name in (n for n in APPEARANCE if n in tuned and n in base):
        truth = np.array(base[f"gt_{name}"])
        values = (np.array(base[f"input_{name}"]), np.array(base[name]), np.array(tuned[name]))
        found.append((name, *(float(np.nanmean(v - truth)) for v in values)))
    return found  # type: ignore[return-value]


def bootstrap_interval(differences: np.ndarray, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of the mean of `differences` [N], resampled over images."""
    rng = np.random.default_rng(seed)
    means = differences[rng.integers(0, len(differences), (draws, len(differences)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def wasserstein(x: Sequence[float], y: Sequence[float]) -> float:
    """Wasserstein-1 distance of two samples; NaN where one is empty."""
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(x, y)) if len(x) and len(y) else math.nan


def smooth(values: Sequence[float], decay: float = 0.9) -> list[float]:
    """Exponential moving average without the pull of a zero start."""
    out, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
        out.append(total / weight)
    return out


def facts(run: RunData) -> list[tuple[str, str]]:
    """Versions, elapsed time, peak memory and whatever else run.json records, flattened."""
    found = [("iterations", str(run.train[-1]["iteration"]))] if run.train else []
    for name, value in _flat(run.about):
        if value is None:  # such as `finished` of a run that isn't
            continue
        if name == "seconds":
            found.append(("elapsed", seconds_text(value)))
        elif name.endswith("_mb"):
            found.append((name.removesuffix("_mb").replace("_", " "), f"{value / 1024:.2f} GiB"))
        else:
            found.append((name.replace("_", " "), _text(value)))
    return found


def seconds_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _paired(base: Columns, tuned: Columns, folder: Path) -> tuple[Columns, Columns]:
    """Both in the order of base's images."""
    places = {image: i for i, image in enumerate(tuned["image_id"])}
    if sorted(places) != sorted(base["image_id"]):
        raise ValueError(f"{folder}/evaluation: base.csv and rl.csv are not of the same images; evaluate both again")
    order = [places[image] for image in base["image_id"]]
    return base, {name: [cells[i] for i in order] for name, cells in tuned.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    return content if isinstance(content, dict) else {"run": content}


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, item in value.items():
        rows += _flat(item, f"{prefix}{name} ") if isinstance(item, dict) else [(prefix + name, item)]
    return rows


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
