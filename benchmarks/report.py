"""What every benchmark writes: spread of its ratios, a JSON file of results, and a verdict against its limit."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def show(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.3f} [{ratio['min']:.3f}-{ratio['max']:.3f}]"


def write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
