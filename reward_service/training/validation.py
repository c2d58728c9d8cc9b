"""Whether a scorer may be a reward: on photographs it has not seen, does it order and rank damage?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from scipy.stats import spearmanr

from restoration.degradations import KINDS as TASKS
from restoration.image_files import list_images
from restoration.pretrain.crops import PhotoCrops
from reward_service.scorers.lite0_levels import LevelHead, Lite0Statistics, expected_level
from reward_service.training.distortions import DISTORTIONS, SEVERITIES, distort
from reward_service.training.measure import measure
from reward_service.training.variants import Variants

ORDER, RANK = 0.95, 0.8  # what the restoration tasks must reach


def _one_photo(folder: Path, place: int, crop: int, scale: tuple[float, float]) -> PhotoCrops:
    """Crops of the photo at that place of the folder's list only."""
    crops = PhotoCrops(folder, crop, scale, seed=7)
    crops.levels = [crops.levels[place]]
    return crops


@torch.inference_mode()
def validate(
    network: Lite0Statistics,
    head: LevelHead,
    photos: Path,
    crop: int,
    scale: tuple[float, float],
    variants: Variants,
    crops_per_photo: int = 8,
) -> dict[str, dict[str, float]]:
    """Per kind: share of pairs with clean above damaged, rank correlations, mean scores.

    Spearman of the score with falling severity: `spearman` within each held-out crop, then averaged; with a photo's
    crops pooled `spearman_photo`; over everything `spearman_pooled`. `label_crop` is what the full-reference label
    reaches in place of the score, and `label_pooled` the score's Spearman with it. Clean images are in none of them.
    """
    rng = np.random.default_rng(11)
    kinds = [*DISTORTIONS] + (["restored", "decoded"] if variants.model is not None else [])
    scores: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
    labels: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
    clean_scores: list[float] = []
    photo_of: list[str] = []
    for place, file in enumerate(track(list_images(photos), "validation")):
        source = _one_photo(photos, place, crop, scale)
        for _ in range(crops_per_photo):
            clean = np.asarray(source.one() / np.float32(255), dtype=np.float32)
            images = [clean]
            for kind in kinds:
                if kind == "decoded":
                    images += [variants.decoded(clean, 0.6 * s, rng) for s in SEVERITIES]
                elif kind == "restored":
                    images += [variants.restored(clean, s, 1, rng)[0] for s in SEVERITIES]
                else:
                    images += [distort(clean, kind, s, rng) for s in SEVERITIES]
            features, label = measure(network, images)
            s, q = expected_level(head(features)).numpy(), label.numpy()
            clean_scores.append(float(s[0]))
            photo_of.append(file.stem)
            for kind, row in zip(kinds, s[1:].reshape(len(kinds), -1), strict=True):
                scores[kind].append(row)
            for kind, row in zip(kinds, q[1:].reshape(len(kinds), -1), strict=True):
                labels[kind].append(row)
    clean_column = np.array(clean_scores)[:, None]
    rows: dict[str, dict[str, float]] = {}
    for kind in kinds:
        table_ = np.stack(scores[kind])
        rows[kind] = {
            "ordered": float((clean_column > table_).mean()),
            "ordered_mildest": float((clean_column[:, 0] > table_[:, 0]).mean()),
            "spearman_photo": float(np.mean([_rank(table_[np.array(photo_of) == p]) for p in sorted(set(photo_of))])),
            "spearman": float(np.mean([_rank(row[None]) for row in table_])),
            "spearman_pooled": _rank(table_),
            "label_crop": float(np.mean([_rank(row[None]) for row in labels[kind]])),
            "label_pooled": float(spearmanr(np.stack(labels[kind]).ravel(), table_.ravel()).statistic),
            "clean": float(clean_column.mean()),
            "mildest": float(table_[:, 0].mean()),
            "worst": float(table_[:, -1].mean()),
        }
    for name, members in (("tasks", list(TASKS)), ("restorers", [k for k in kinds if k not in TASKS])):
        rows[name] = {key: float(np.mean([rows[k][key] for k in members])) for key in rows[kinds[0]]}
    return {kind: {k: round(v, 4) for k, v in row.items()} for kind, row in rows.items()}


def _rank(scores: np.ndarray) -> float:
    """Spearman of scores [crops, severities] with falling severity."""
    severity = np.broadcast_to(SEVERITIES, scores.shape)
    return float(spearmanr(-severity.ravel(), scores.ravel()).statistic)


def fit_tasks(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Tasks on which the scorer may be a reward: each meets both bars by itself, no average over tasks helps it."""
    return [k for k in TASKS if rows[k]["ordered"] >= ORDER and rows[k]["spearman"] >= RANK]


def table(rows: dict[str, dict[str, float]]) -> str:
    keys = list(next(iter(rows.values())))
    lines = [f"{'':14}" + "".join(f"{k:>16}" for k in keys)]
    lines += [f"{kind:14}" + "".join(f"{row[k]:16.3f}" for k in keys) for kind, row in rows.items()]
    return "\n".join(lines)
