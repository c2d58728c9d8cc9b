"""Labels on disk, for the training of a scorer: a table of pictures, one of pairs, and what they rest on."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from restoration.whole_files import written_whole
from reward_service.annotation.cleaning import Cleaned
from reward_service.annotation.manifest import Manifest
from reward_service.annotation.votes import LEVELS

LABELS, PAIRS, ABOUT = "labels.csv", "pairs.csv", "labels.json"


def write_labels(out: Path, folder: Path, manifest: Manifest, cleaned: Cleaned, how: Mapping[str, Any]) -> list[Path]:
    """Write `labels.csv` and `pairs.csv`, each where there is something for it, and `labels.json`.

    A row of labels.csv is a picture: quality, its standard error, spread, votes and the soft label; `photograph`
    is what to split by. A row of pairs.csv are two pictures, and how many say that the first is better.
    Files are below `folder`, which labels.json has relative to `out`.

    Args:
        how: rules and ways that were taken, for the record.

    Raises:
        OSError: a file can't be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = []
    pictures = manifest.pictures
    if cleaned.rated:
        rows: list[list[Any]] = []
        for one in cleaned.rated:
            p = pictures[one.picture]
            origin = [
                p.file,
                p.sha256,
                p.source,
                p.photograph,
                p.role,
                p.checkpoint,
                _or_empty(p.step),
                _or_empty(p.score),
            ]
            figures = [f"{value:.6g}" for value in (one.quality, one.error, one.spread)]
            rows.append([one.picture, *origin, *figures, one.votes, *(f"{value:.6g}" for value in one.levels)])
        head = ["picture", "file", "sha256", "source", "photograph", "role", "checkpoint", "step", "score"]
        written.append(_table(out / LABELS, [*head, "quality", "error", "spread", "votes", *LEVELS], rows))
    if cleaned.compared:
        rows = []
        for pair in cleaned.compared:
            a, b = pictures[pair.first], pictures[pair.second]
            ends = [pair.first, a.file, a.sha256, pair.second, b.file, b.sha256, a.source, a.photograph]
            strengths = [f"{cleaned.strengths[name][0]:.6g}" for name in (pair.first, pair.second)]
            rows.append([*ends, pair.votes, f"{pair.first_better:.6g}", f"{pair.preference:.6g}", *strengths])
        head = [f"{end}{what}" for end in ("first", "second") for what in ("", "_file", "_sha256")] + [
            "source",
            "photograph",
        ]
        last = ["votes", "first_better", "preference", "first_strength", "second_strength"]
        written.append(_table(out / PAIRS, [*head, *last], rows))
    about = {
        "export": manifest.export,
        "folder": os.path.relpath(folder, out),
        "hashes": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in written},
        "how": dict(how),
        "agreement": _plain(asdict(cleaned.agreement)),
        "annotators": {who: _plain(asdict(judged)) for who, judged in cleaned.annotators.items()},
        "notes": list(cleaned.notes),
        "from": dict(manifest.about),
    }
    with written_whole(out / ABOUT) as temporary:
        temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return [*written, out / ABOUT]


def _table(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
    return path


def _or_empty(value: float | None) -> float | str:
    return "" if value is None else value


def _plain(figures: Mapping[str, Any]) -> dict[str, Any]:
    """NaN, which JSON has no form for, as null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}
