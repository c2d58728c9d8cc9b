"""The pictures that a reward is tried on, made by the run's own model and data, and what a reward says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from actors.rollout import PairBatch, RolloutSettings, rollout
from cluster.trust.measures import Mean, Measures, beats, mean_steps, order, trick_at, within
from cluster.trust.versions import LADDERS, TASK, TRICK_SEVERITIES, TRICKS, Specimen, ladder, tricked
from restoration.base_models.interface import BaseModel, SamplerSettings
from restoration.datasets.paired import PairedFolder, crop_pair, random_crop
from restoration.degradations import seeded_rng
from restoration.evaluate import evenly
from restoration.images import to_uint8
from restoration.metrics import protocol
from restoration.precision import autocast
from restoration.restore import sample, seeded_generator

ScoreFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Images and their ground truths, uint8 [N, H, W, 3] each -> float32 [N]; NaN where there is no score."""
Progress = Callable[[str, int, int], None]
GROUND_TRUTH, BASE = "ground truth", "base output"


@dataclass(frozen=True)
class Amount:
    """How much is tried.

    Args:
        pictures: held-out pictures that are edited and restored.
        groups: of these, how many are rolled out too.
        rollouts: chains of a group.
        seed: of crops and noise.
    """

    pictures: int = 16
    groups: int = 8
    rollouts: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("pictures", 2), ("groups", 0), ("rollouts", 3)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: at least {least}")


@torch.no_grad()
def specimens(
    model: BaseModel,
    sampler: SamplerSettings,
    settings: RolloutSettings,
    pairs: PairedFolder,
    amount: Amount,
    progress: Progress,
    dtype: torch.dtype = torch.float32,
) -> list[Specimen]:
    """Held-out pictures, evenly spread, cropped as the run's rollouts are, restored and rolled out by `model`.

    Args:
        model: on its device.
        dtype: that the networks compute in (autocast) to restore; rollouts follow `settings`.

    Raises:
        ImageError: a picture that can't be read.
        ValueError: one that is smaller than the crop, or a chain without decisions.
    """
    chosen = evenly(pairs.pairs, min(amount.pictures, len(pairs)))
    rolled = {p.image_id for p in evenly(chosen, min(amount.groups, len(chosen)))} if amount.groups else set()
    settings = replace(settings, images_per_batch=1, rollouts_per_image=amount.rollouts)
    device = next(iter(model.policy.parameters())).device
    found = []
    for done, pair in enumerate(chosen):
        progress("restoring and rolling out", done, len(chosen))
        lq, gt, crop = _cut(pairs, pair.image_id, settings.crop, model.size_multiple, amount.seed)
        generator = seeded_generator(f"reward check/{pair.image_id}", amount.seed)
        with autocast(device, dtype):
            restored = sample(model, lq[None].to(device), sampler, [generator], image_ids=[pair.image_id])
        blocks: dict[int, np.ndarray] = {}
        if pair.image_id in rolled:
            batch = PairBatch([pair.image_id], [crop], [False], lq[None].to(device), gt[None].to(device))
            blocks = rollout(model, batch, sampler, settings, generator).blocks
        base = to_uint8(restored.float().cpu())[0]
        found.append(Specimen(pair.image_id, to_uint8(gt[None])[0], to_uint8(lq[None])[0], base, blocks))
    progress("restoring and rolling out", len(chosen), len(chosen))
    return found


def _cut(
    pairs: PairedFolder, image_id: str, side: int, multiple: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int, int, int]]:
    lq, gt = pairs.load(image_id)
    height, width = lq.shape[-2:]
    crop = (0, 0, height // multiple * multiple, width // multiple * multiple)
    if side:
        crop = random_crop((height, width), side, seeded_rng(f"reward check/{image_id}", seed))
    return (*crop_pair(lq, gt, crop, flip=False), crop)


def measure(
    tried: Sequence[Specimen], score: ScoreFunction, protocol_name: str, progress: Progress, batch: int = 32
) -> Measures:
    """What `score` says of every version of the specimens.

    Args:
        batch: pictures of one call at most.

    Raises:
        Whatever `score` raises.
    """
    psnr = protocol(protocol_name).psnr
    asking = _Asking(score, batch)
    plain: list[np.ndarray] = []  # of ground truth, input, base output
    ladders: dict[str, list[np.ndarray]] = {kind: [] for kind in (TASK, *LADDERS)}
    tricks: dict[str, dict[str, list[np.ndarray]]] = {s: {t: [] for t in TRICKS} for s in (GROUND_TRUTH, BASE)}
    lowers: dict[str, dict[str, list[np.ndarray]]] = {s: {t: [] for t in TRICKS} for s in (GROUND_TRUTH, BASE)}
    groups: dict[int, tuple[list[np.ndarray], list[np.ndarray]]] = {}
    for done, one in enumerate(tried):
        progress("scoring", done, len(tried))
        plain.append(asking(np.stack([one.gt, one.lq, one.base]), one.gt))
        for kind, scores in ladders.items():
            scores.append(asking(ladder(one, kind), one.gt))
        for source, image in ((GROUND_TRUTH, one.gt), (BASE, one.base)):
            before = float(psnr(image[None], one.gt[None])[0])
            for trick in TRICKS:
                edited = tricked(image, trick, one.image_id)
                tricks[source][trick].append(asking(edited, one.gt))
                lowers[source][trick].append(psnr(edited, _repeated(one.gt, len(edited))) < before)
        for decision, images in one.rollouts.items():
            scores, decibels = groups.setdefault(decision, ([], []))
            scores.append(asking(images, one.gt))
            decibels.append(psnr(images, _repeated(one.gt, len(images))))
    progress("scoring", len(tried), len(tried))
    gt, lq, base = np.stack(plain, 1)
    tables = {kind: np.stack(rows) for kind, rows in ladders.items()}
    return Measures(
        scores={GROUND_TRUTH: Mean.of(gt.tolist()), "input": Mean.of(lq.tolist()), BASE: Mean.of(base.tolist())},
        pairs={
            "ground truth over input": _won(gt, lq),
            "ground truth over base": _won(gt, base),
            "base over input": _won(base, lq),
        },
        ladders={kind: Mean.of([order(row) for row in table]) for kind, table in tables.items()},
        steps=mean_steps(tables),
        tricks={
            source: {
                trick: [
                    trick_at(before, np.stack(rows)[:, i], np.stack(lowers[source][trick])[:, i])
                    for i in range(len(TRICK_SEVERITIES))
                ]
                for trick, rows in tricks[source].items()
            }
            for source, before in ((GROUND_TRUTH, gt), (BASE, base))
        },
        within={decision: within(*found) for decision, found in sorted(groups.items())},
        missing=asking.missing,
        asked=asking.asked,
    )


class _Asking:
    """Asks in blocks, and counts scores that are missing."""

    def __init__(self, score: ScoreFunction, batch: int) -> None:
        self.score, self.batch = score, batch
        self.asked = self.missing = 0

    def __call__(self, images: np.ndarray, gt: np.ndarray) -> np.ndarray:
        """float64 [N], NaN where there is no finite score."""
        parts = []
        for start in range(0, len(images), self.batch):
            block = np.ascontiguousarray(images[start : start + self.batch])
            parts.append(np.asarray(self.score(block, _repeated(gt, len(block))), dtype=np.float64))
        found = np.concatenate(parts)
        if found.shape != (len(images),):
            raise ValueError(f"the reward gave scores of shape {list(found.shape)} for {len(images)} pictures, not [N]")
        found = np.where(np.isfinite(found), found, np.nan)
        self.asked += len(found)
        self.missing += int(np.isnan(found).sum())
        return found


def _repeated(image: np.ndarray, count: int) -> np.ndarray:
    return np.repeat(image[None], count, 0)


def _won(better: Iterable[float], worse: Iterable[float]) -> Mean:
    return Mean.of([beats(float(a), float(b)) for a, b in zip(better, worse, strict=True)])
