"""The chains of a run or a model on pictures, base above RL, with their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from cluster.config.configure import ConfigError
from cluster.models import is_run, load_policy, load_run_config
from cluster.report.chain_picture import Shown, save_chains
from cluster.report.report import ANIMATION
from restoration.chain import chain
from restoration.evaluate import evenly
from restoration.figures import ScoreFunction
from restoration.images import to_uint8
from restoration.metrics import DEFAULT_PROTOCOL
from restoration.restore import seeded_generator
from restoration.tiling import Tiling

if TYPE_CHECKING:
    from cluster.config.recipe import RunConfig
    from restoration.base_models.interface import BaseModel, SamplerSettings

STRIP = "chain.png"  # in a run folder
PICTURES = 3


@dataclass(frozen=True)
class Picture:
    """What is restored, float32 [3, H, W] in [0, 1], and its ground truth, if it has one; the name seeds its noise."""

    name: str
    lq: Tensor
    gt: Tensor | None = None


def chains_of(
    run_or_folder: Path,
    pictures: Sequence[Picture],
    score: ScoreFunction,
    *,
    checkpoint: str = "latest",
    changes: dict[str, Any] | None = None,
    seed: int = 0,
    device: str = "cpu",
    tiling: Tiling | None = None,
    embeddings: Path | None = None,
    protocol: str = DEFAULT_PROTOCOL,
    check: Callable[[BaseModel, SamplerSettings], None] = lambda model, sampler: None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Shown]:
    """Of a run the chains of its base model and of what it has trained, of a model folder those of the model.

    The last picture of a chain is what `restorl restore` makes with the same seed.

    Args:
        checkpoint: of a run, see `load_policy`.
        changes: fields of the sampler, in place of the model's own.
        check: refuses at once what would fail on each picture.
        progress: called with (model, done, total).

    Raises:
        ConfigError, CheckpointError: see `load_policy`.
        ValueError, FloatingPointError: see `restoration.chain.chain`.
    """
    models = {"base": "base", "RL": checkpoint} if is_run(run_or_folder) else {"": checkpoint}
    ways: list[dict[str, Any]] = [{} for _ in pictures]
    for label, of in models.items():
        model, sampler = load_policy(run_or_folder, of, embeddings)
        sampler = replace(sampler, **(changes or {}))
        check(model, sampler)
        model.to(device)
        for i, picture in enumerate(pictures):
            progress(label or model.name, i, len(pictures))
            ways[i][label or model.name] = chain(
                model,
                picture.lq,
                sampler,
                seeded_generator(picture.name, seed),
                score,
                picture.gt,
                protocol_name=protocol,
                device=device,
                tiling=tiling,
                image_ids=(picture.name,),
            )
    shown = []
    for picture, way in zip(pictures, ways, strict=True):
        truth = None if picture.gt is None else to_uint8(picture.gt[None])
        value = float("nan") if truth is None else float(np.asarray(score(truth))[0])
        shown.append(Shown(picture.name, way, None if truth is None else truth[0], value))
    return shown


def heldout_pictures(config: RunConfig, count: int = PICTURES) -> list[Picture]:
    """Some held-out pairs of a run, evenly spread.

    Raises:
        DataError, FileNotFoundError: they aren't there.
        ImageError: one can't be read.
    """
    pairs = config.data.open(config.data.heldout)
    chosen = evenly(pairs.pairs, min(count, len(pairs)))
    return [Picture(pair.image_id, *pairs.load(pair.image_id)) for pair in chosen]


def as_evaluated(config: RunConfig) -> dict[str, Any]:
    """Arguments of `chains_of` by which a run's held-out pictures are restored and measured as its evaluations do."""
    of = config.evaluation
    return {
        "seed": of.seed,
        "tiling": of.tiling,
        "embeddings": config.data.embeddings,
        "protocol": of.protocol,
    }


def score_of(config: RunConfig) -> ScoreFunction:
    """What a run's evaluations call its reward.

    Raises:
        ConfigError: it has none without a ground truth, or its scorer can't be made here.
    """
    from reward_service.scorers import make_scorer

    main = config.reward.resolved.main
    if main is None:
        raise ConfigError.of("the run's reward only compares with the ground truth; name a --scorer")
    term = next(term for term in config.reward.resolved.terms if term.name == main)
    try:
        made: ScoreFunction = make_scorer(term.scorer, **config.reward.services[main].params).score
    except (ValueError, OSError) as error:
        raise ConfigError.of(f"the run's scorer can't be had here ({error}); name another --scorer") from error
    return made


def animate(
    run: Path, score: ScoreFunction | None = None, progress: Callable[[str, int, int], None] = lambda *_: None
) -> list[Path]:
    """Write the animation that the report shows, and the same as a strip, of some held-out pictures of the run.

    By its last weights and with an evaluation's noise, in float32: chains end in the pictures that the report has
    elsewhere, but for rounding where its evaluations compute in another number type.

    Args:
        score: in place of the run's own.

    Raises:
        ConfigError, CheckpointError, DataError, ImageError, ValueError: see `chains_of`, `score_of`,
            `heldout_pictures`.
    """
    config = load_run_config(run)
    scored = score or score_of(config)
    shown = chains_of(run, heldout_pictures(config), scored, progress=progress, **as_evaluated(config))
    return [save_chains(run / ANIMATION, shown), save_chains(run / STRIP, shown)]
