"""What a resumed run may change in its configuration, and how the change is kept in the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.config.configure import ConfigError, load_config, plain, save_config
from cluster.config.earlier import translate
from cluster.config.recipe import RunConfig
from cluster.config.tree import Problem
from cluster.files import write_text

CONFIG_FILE = "config.yaml"
ANOTHER = "start another run, or leave it as it was"

FIXED = {
    "model": "the checkpoints hold what was trained beside this model",
    "adapt.mode": "the checkpoints hold the other parameters",
    "adapt.rank": "the checkpoints hold matrices of the other rank",
    "adapt.alpha": "it scales what was trained already",
    "adapt.targets": "the checkpoints hold the other modules",
    "adapt.seed": "the LoRA would not be the one that was trained",
    "seed": "the order of the work and its noise follow from it, and what is done is known by its place in that order",
    "rollout.images_per_batch": "what is done is known by its place in the order of batches of this size",
    "data.train": "the order of the work is one of these pictures",
    "data.match": "the order of the work is one of these pairs",
    "data.set": "the order of the work is one of these pictures",
    "data.heldout": "the base model was evaluated on the other pictures, once, before training",
    "evaluation.limit": "the base model was evaluated on the other pictures, once, before training",
    "evaluation.protocol": "the base model was evaluated by the other protocol, once, before training",
    "evaluation.scorers": "the base model was evaluated by the other scorers, once, before training",
    "evaluation.seed": "the base model was evaluated with other noise, once, before training",
    "evaluation.strips": "the base model's outputs were kept for the other pictures",
}
"""Key -> why a resumed run keeps it."""

TOLD = {
    "sampler": "the base model's figures are those of the old sampler, and groups rolled out with it are dropped",
    "reward.scorer": "the base model's reward is the old scorer's, whose groups are dropped and whose tracks end",
    "reward.params": "the base model's reward is the old scorer's, whose groups are dropped and whose tracks end",
    "reward.app": "if it is of another version, groups of the old one are dropped, and tracks end",
    "reward.terms": "groups under the old ones are dropped, tracks end, and the base model has their figures",
    "reward.combine": "groups under the old one are dropped, and tracks end",
    "evaluation.dtype": "the base model's figures are those of the old one",
    "evaluation.tile": "the base model's figures are those of the old one",
    "data.root": "it must hold the same pictures under the same names",
    "store.url": "the same store must be behind it, with the trajectories that wait",
}
"""Key, or section, -> what a change brings with it."""


def changes(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old value, new value), as YAML has them, of all that differ."""
    before, after = _flat(plain(old)), _flat(plain(new))
    keys = dict.fromkeys([*before, *after])
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def check_resume(old: RunConfig, new: RunConfig) -> list[str]:
    """Warnings about what changes with a run that is resumed under `new`.

    Raises:
        ConfigError: keys that a run keeps for good, each with the reason.
    """
    problems, warnings = [], []
    for key, (was, wanted) in changes(old, new).items():
        if why := FIXED.get(key):
            problems.append(Problem(key, f"{wanted} for a run that began with {was}: {why}", ANOTHER))
        elif why := TOLD.get(key) or TOLD.get(key.split(".")[0]):
            # A URL may hold a password.
            shown = "another store.url" if key == "store.url" else f"{key}={wanted} in place of {was}"
            warnings.append(f"{shown}: {why}")
    if old.store.is_embedded != new.store.is_embedded:
        what = "the run's trajectories, its ledger and its epochs are in the other store"
        problems.append(Problem("store.url", what, ANOTHER))
    if problems:
        raise ConfigError(problems)
    return warnings


def keep_config(folder: Path, config: RunConfig) -> list[str]:
    """Make `config` the one of the run in `folder`; what it had stays as config.yaml.1, .2, ...; returns warnings.

    Whoever reads the folder meanwhile finds the old one or the new one, whole. Nothing is written where nothing
    differs. The caller holds the lock of the run folder.

    Raises:
        ConfigError: see `check_resume`; the folder is as it was then.
        OSError: a file can't be written.
    """
    path = folder / CONFIG_FILE
    old = load_config(RunConfig, path, translate=translate)
    warnings = check_resume(old, config)
    if changes(old, config):
        number = 1
        while (kept := path.with_name(f"{CONFIG_FILE}.{number}")).exists():
            number += 1
        write_text(kept, path.read_text(encoding="utf-8"))
        save_config(config, path)
    return warnings


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Sections opened up, "section.field"."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return found
