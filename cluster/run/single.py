"""A recipe in this process alone, by `learner.reference`: no Ray, no store, no service, no DeepSpeed.

The same recipe, seeds, data order and noise as a synchronous run of the system (one actor, staleness 0), on the CPU.
Its run folder has configuration, metrics, evaluations and the last weights, so that `restorl restore`, `evaluate` and
`report` read it; it has no ledger, no pictures, no alarms and no checkpoint in between, and can't be resumed.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from actors.actor import draw_batch, seed_of
from actors.work import WorkSequence
from cluster.config.configure import ConfigError, save_config
from cluster.config.recipe import TENSORBOARD, RunConfig
from cluster.files import write_text
from cluster.report.live import RUNNING
from cluster.report.records import MetricsLog
from cluster.report.spans import ACTOR, LEARNER
from cluster.run.folder import new_run_id
from cluster.run.folder_lock import locked
from cluster.run.judges import judges
from cluster.run.looking import ForLooking
from cluster.run.preflight import before_start
from cluster.run.pulse import Pulse
from cluster.run.timeline import Timeline
from cluster.trackers import trackers_of
from learner import checkpoint
from learner.learner import AVERAGE_FILE, STATE_FILES
from learner.reference import Group, Method, PairScore, Reference
from restoration.adapters import trainable_state
from restoration.base_models import load
from restoration.datasets.paired import DataError, PairedFolder
from restoration.evaluate import Row, ScoreFunction, evaluate_pairs, mean_values, write_csv
from restoration.metrics.appearance import APPEARANCE
from restoration.metrics.full_reference import full_reference
from restoration.precision import autocast, resolve
from reward_service.scorers import make_scorer


def method_of(config: RunConfig) -> Method:
    """The part of a recipe that the reference knows.

    Raises:
        ConfigError: a setting that changes numbers and that the reference doesn't have.
    """
    for name, value in (
        ("rollout.denoise_dtype", config.rollout.denoise_dtype),
        ("rollout.storage_dtype", config.rollout.storage_dtype),
        ("learner.dtype", config.learner.dtype),
    ):
        if value != "float32":
            raise ConfigError.of(f"{name}={value}: a single process computes in float32 only; use `restorl train`")
    r = config.rollout
    return Method(
        config.learner_settings(),
        rollouts=r.rollouts_per_image,
        enhanced=r.action_target == "enhanced",
        weights={term.name: term.weight for term in config.reward.resolved.trained},
        gdpo=config.reward.combine == "gdpo",
        final_only=r.reward_at == "final",
        stride=r.reward_stride,
        decode_batch=r.decode_batch,
    )


def train_single(
    config: RunConfig, folder: Path, progress: Callable[[int, dict[str, float]], None] | None = None
) -> list[Row]:
    """Run `config` in `folder` and return the held-out rows of the trained model.

    Args:
        progress: called with the iteration and its metrics.

    Raises:
        ConfigError: the folder holds a run already or can't be locked, an unknown scorer, or see `method_of` and
            `before_start`.
        DataError, ModelError: what can't be read.
    """
    _require_new(folder)
    torch.set_num_threads(config.ranks.threads)
    train = config.data.open(config.data.train)
    heldout = config.data.open(config.data.heldout)
    method = method_of(config)
    before_start(config, train, heldout)
    runner = Reference(load(config.model, config.data.embeddings), method)
    work = WorkSequence(train.image_ids, config.rollout.images_per_batch, config.seed)
    score, shown = scores_of(config)
    scorers = {**judges(config.evaluation.scorers), **shown, **APPEARANCE}
    began, run_id = time.monotonic(), f"{new_run_id(config.name)}-single"  # `restorl status` knows it by the last word

    def evaluate(known: list[Row]) -> list[Row]:
        e = config.evaluation
        return evaluate_pairs(
            *(runner.model, heldout, config.sampler, scorers, e.protocol, e.seed, e.batch),
            known=known,
            pixels=e.pixels,
            limit=e.limit,
            dtype=resolve(e.dtype, "cpu"),
            tiling=e.tiling,
        )

    looking = ForLooking(lambda text: warnings.warn(text, stacklevel=2))
    timeline, facts = Timeline(folder, looking), {"run_id": run_id, "iterations": config.iterations}
    with locked(folder) as lock, ExitStack() as exits:
        _require_new(folder)  # another process may have begun one meanwhile
        trackers = exits.enter_context(trackers_of(config, folder, run_id, looking))
        log = exits.enter_context(MetricsLog(folder, TENSORBOARD in config.tracking, also=trackers.record))
        exits.enter_context(Pulse(folder, looking, lock.guards, facts)).state = RUNNING
        save_config(config, folder / "config.yaml")
        base = rows = evaluate([])
        write_csv(folder / "evaluation" / "base.csv", base)
        log.append({"kind": "eval", "iteration": 0, "who": "base", **mean_values(base)})
        for iteration in range(1, config.iterations + 1):
            metrics = step(config, runner, train, work, score)
            log.append({"kind": "train", "iteration": iteration, **metrics})
            _note(timeline, iteration, metrics)
            if config.evaluation.due(iteration, config.iterations):
                rows = evaluate(base)
                write_csv(folder / "evaluation" / "rl.csv", rows)
                log.append({"kind": "eval", "iteration": iteration, "who": "now", **mean_values(rows)})
            if progress is not None:
                progress(iteration, metrics)
        state = {STATE_FILES[0]: trainable_state(runner.model)}
        files = state | ({AVERAGE_FILE: runner.average} if runner.average else {})
        saved = {name: safetensors.torch.save(state) for name, state in files.items()}
        checkpoint.write(folder / "checkpoints", config.iterations, saved, config.keep_checkpoints)
        identity = {"run_id": run_id, "seconds": time.monotonic() - began}
        write_text(folder / "run.json", json.dumps(identity, indent=2) + "\n")
    return rows


def _note(timeline: Timeline, iteration: int, metrics: Mapping[str, float]) -> None:
    """Its spans, as it ends: first the rollouts, then the step."""
    end = time.time()
    start = end - metrics["iteration_s"]
    rolled = start + metrics["rollout_s"]
    timeline.add(ACTOR, "rollouts", "rollout", start, rolled)
    timeline.add(LEARNER, "learner", "step", rolled, end)
    timeline.iteration(iteration, time.monotonic() - metrics["iteration_s"])


def _require_new(folder: Path) -> None:
    if (folder / "config.yaml").exists():
        raise ConfigError.of(f"{folder} already holds a run, finished or not; give another folder")


def scores_of(config: RunConfig) -> tuple[dict[str, PairScore], dict[str, ScoreFunction]]:
    """What scores rollouts, by term, and what evaluations show of the reward's scorers, by column.

    Raises:
        ConfigError: no such scorer.
    """
    terms = config.reward.resolved
    score: dict[str, PairScore] = {}
    shown: dict[str, ScoreFunction] = {}
    for term in terms.terms:
        try:
            if not term.served:
                score[term.name] = full_reference(term.scorer, **term.params).score
                continue
            made = make_scorer(term.scorer, **config.reward.services[term.name].params).score
        except ValueError as error:
            raise ConfigError.of(f"{config.reward.key(term.name)}.scorer: {error}") from error
        score[term.name] = partial(_alone, made)
        shown["reward" if term.name == terms.main else term.name] = made
    return score, shown


def _alone(score: ScoreFunction, images: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """A scorer that needs no ground truth."""
    return score(images)


def step(config: RunConfig, runner: Reference, train: PairedFolder, work: WorkSequence, score: Any) -> dict[str, float]:
    """Roll out the iteration's batch, score it and learn from it."""
    began = time.monotonic()
    items = config.source.groups_per_step // config.rollout.images_per_batch
    groups: list[Group] = []
    for index in range(runner.iteration * items, (runner.iteration + 1) * items):
        item = work.item(index)
        batch, refused = draw_batch(train, item, config.rollout.crop, config.seed, runner.model.size_multiple)
        if batch is None or refused:
            raise DataError(f"{refused[0].detail}; mend the picture or take it out of the set")
        generator = torch.Generator().manual_seed(seed_of(config.seed, index))
        decoding = autocast("cpu", resolve(config.rollout.decode_dtype, "cpu"))
        groups += runner.rollout(list(item.group_ids), item.image_ids, batch.lq, batch.gt, score, generator, decoding)
    rolled = time.monotonic()
    scores = torch.stack([g.scores for g in groups]).double()
    metrics = runner.step(groups)
    for name in groups[0].terms if len(groups[0].terms) > 1 else ():
        of_term = torch.stack([g.terms[name] for g in groups]).double()
        metrics[f"term_{name}_mean"] = float(of_term.mean())
        metrics[f"term_{name}_std_within"] = float(of_term.std(1, correction=0).mean())
    return metrics | {
        "reward_mean": float(scores.mean()),
        "reward_std_within": float(scores.std(1, correction=0).mean()),
        "error_l2": float(torch.cat([g.errors[:, 1] for g in groups]).double().mean()),
        "rollout_s": rolled - began,
        "iteration_s": time.monotonic() - began,
    }
