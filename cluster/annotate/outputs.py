"""Outputs of a run that may be rated: made from its checkpoints, since a run keeps but a few pictures."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cluster.annotate.picking import ExportSettings, Output, steps_of
from cluster.models import load_policy
from learner.difficulty import difficulty_weights
from restoration.chain import chain
from restoration.evaluate import INPUT, Row, evaluate_pairs, evenly, read_csv
from restoration.figures import PICTURE, ScoreFunction
from restoration.restore import seeded_generator

if TYPE_CHECKING:
    from cluster.config.recipe import RunConfig
    from restoration.datasets.paired import PairedFolder

Progress = Callable[[str, int, int], None]
BASE, LATEST = "base", "latest"


def name_of(source: str, role: str, pixels: np.ndarray) -> str:
    """Of a picture in an export: it says nothing of where it comes from, and equal outputs have equal names."""
    head = f"{source}\n{role}\n{pixels.shape}\n".encode()
    return hashlib.sha256(head + np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]


def figures_of(
    run: Path,
    config: RunConfig,
    pairs: PairedFolder,
    settings: ExportSettings,
    checkpoint: str,
    device: str,
    progress: Progress,
) -> list[Row]:
    """PSNR of inputs and results of the pairs that are chosen from.

    Those of the run's last evaluation where held-out pairs are wanted and it has them; else `checkpoint` restores so
    many pairs as `settings.pool` says.

    Raises:
        ConfigError, CheckpointError: as `load_policy`.
        ValueError: a damaged table of the evaluation.
    """
    if settings.split == "heldout":
        try:
            rows = read_csv(run / "evaluation" / "rl.csv")
        except FileNotFoundError:
            rows = []
        there = set(pairs.image_ids)
        if known := [row for row in rows if row.image_id in there and {"psnr", f"{INPUT}psnr"} <= row.values.keys()]:
            return known
    chosen = evenly(pairs.pairs, min(len(pairs), settings.images * settings.pool))
    model, sampler = load_policy(run, checkpoint, config.data.embeddings)
    model.to(device)
    of = config.evaluation
    return evaluate_pairs(
        model,
        pairs,
        sampler,
        {},
        of.protocol,
        settings.seed,
        of.batch,
        device=device,
        only={pair.image_id for pair in chosen},
        pixels=of.pixels,
        tiling=of.tiling,
        tolerant=True,
        progress=lambda done, total: progress("difficulty", done, total),
    )


def hardest(rows: Sequence[Row], count: int) -> tuple[dict[str, float], list[str]]:
    """Difficulty of the `count` hardest pairs, hardest first; and what was left out, in words.

    The root mean square error of the result, relative to the worst (`learner.difficulty`, which takes the norm: here
    pictures have unequal sizes).

    Raises:
        ValueError: not one pair has a PSNR.
    """
    notes = [
        f"{row.image_id} is left out: {row.missing.get(PICTURE) or row.missing.get('psnr') or 'it has no PSNR'}"
        for row in rows
        if math.isnan(row.values["psnr"])
    ]
    found = [row for row in rows if not math.isnan(row.values["psnr"])]
    if not found:
        raise ValueError("no pair can be restored, so that nothing is there to rate:\n" + "\n".join(notes))
    errors = torch.tensor([10 ** (-row.values["psnr"] / 20) for row in found], dtype=torch.float64)
    weights = dict(zip((row.image_id for row in found), difficulty_weights(errors).tolist(), strict=True))
    ranked = sorted(weights, key=lambda image_id: (-weights[image_id], image_id))
    return {image_id: weights[image_id] for image_id in ranked[:count]}, notes


def plainest(rows: Sequence[Row]) -> list[str]:
    """The pairs by how bad the input is, worst first: there nobody can take it for the ground truth."""
    known = [row for row in rows if not math.isnan(row.values.get(f"{INPUT}psnr", math.nan))]
    return [row.image_id for row in sorted(known, key=lambda row: (row.values[f"{INPUT}psnr"], row.image_id))]


def made(
    run: Path,
    config: RunConfig,
    pairs: PairedFolder,
    difficulty: dict[str, float],
    checkpoints: Sequence[str],
    settings: ExportSettings,
    score: ScoreFunction,
    device: str,
    progress: Progress,
) -> Iterator[tuple[Output, np.ndarray]]:
    """Every output that may be rated, with its picture, uint8 [H, W, 3].

    Args:
        checkpoints: names as `load_policy` takes them, but for "latest".
        score: uint8 [N, H, W, 3] -> float32 [N]; what isn't finite is no score.

    Raises:
        ConfigError, CheckpointError: as `load_policy`.
        ImageError: a picture can't be read.
        ValueError, FloatingPointError: as `restoration.chain.chain`.
    """
    total, done = len(checkpoints) * len(difficulty) * settings.rollouts, 0
    for checkpoint in checkpoints:
        model, sampler = load_policy(run, checkpoint, config.data.embeddings)
        model.to(device)
        for source, weight in difficulty.items():
            lq, gt = pairs.load(source)
            for rollout in range(settings.rollouts):
                progress("outputs", done, total)
                done += 1
                seed = settings.seed + rollout
                frames = chain(
                    model,
                    lq,
                    sampler,
                    seeded_generator(source, seed),
                    score,
                    gt,
                    protocol_name=config.evaluation.protocol,
                    device=device,
                    tiling=config.evaluation.tiling,
                    image_ids=(source,),
                )
                steps = len(frames) - 1
                for step in steps_of(steps, settings.steps):
                    frame = frames[step]
                    value = float(frame.score) if math.isfinite(frame.score) else None
                    name = name_of(source, "output", frame.image)
                    yield Output(name, source, checkpoint, step, steps, seed, value, weight), frame.image
