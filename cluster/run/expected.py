"""A run that takes far longer than its recipe says: told once, with why, and with a smaller one as a command."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.config.configure import ConfigError, build_config, plain
from cluster.config.recipe import RunConfig
from cluster.jobs import effective_address
from cluster.run.checks.roles import number_types
from cluster.run.machine import Machine
from cluster.run.pace import Pace, about
from restoration.precision import AUTO, NATIVE_BF16

FAR = 2.0  # times what the recipe says
AT_ONCE = 4.0  # told after the first iteration already, which is the least certain
ENOUGH = 0.5  # of the iterations: with fewer, smaller iterations are the better way to save
FEWEST = 2  # iterations of a run that is worth offering
FIXED = 0.1  # of an iteration, whatever its number of pictures: weights are published, a checkpoint is written
LEAST_OTHERS = 0.25  # cores


@dataclass(frozen=True)
class Measured:
    """What the parts of a run take on this machine.

    Attributes:
        start_s: seconds until everything was up.
        iteration_s, part_s: as `Pace` has them.
        parts, pictures: of the evaluation of one model.
    """

    start_s: float
    iteration_s: float
    part_s: float
    parts: int
    pictures: int


@dataclass(frozen=True)
class Here:
    """What may explain a slow run.

    Attributes:
        machine: as the configuration was checked against it.
        bf16: whether the processor multiplies bfloat16 natively, whatever `RESTORL_NATIVE_BF16` says.
        cores: that this process may use.
        others: cores that other programs used meanwhile.
    """

    machine: Machine
    bf16: bool
    cores: float
    others: float


class Expected:
    """Compares a new run with `config.expected_minutes`, after its first iterations.

    Args:
        start_s: seconds until everything was up.
        parts, pictures: of the evaluation of one model.
        look: asked once, when there is something to explain.
    """

    def __init__(
        self, config: RunConfig, folder: Path, start_s: float, parts: int, pictures: int, look: Callable[[], Here]
    ) -> None:
        self.config, self.folder, self.start_s = config, folder, start_s
        self.parts, self.pictures, self.look = parts, pictures, look
        self.told = False

    def after(self, iterations: int, whole_s: float | None, pace: Pace) -> str:
        """What to tell after so many iterations, if anything.

        Args:
            whole_s: the estimate for the whole run; None before it can be made.
        """
        minutes = self.config.expected_minutes
        if minutes is None or whole_s is None or pace.iteration_s is None or self.told:
            return ""
        if whole_s < (AT_ONCE if iterations == 1 else FAR) * minutes * 60:
            return ""
        self.told = True
        measured = Measured(self.start_s, pace.iteration_s, pace.part_s or 0.0, self.parts, self.pictures)
        return far_above(self.config, self.folder, whole_s, measured, self.look())


def far_above(config: RunConfig, folder: Path, whole_s: float, measured: Measured, here: Here) -> str:
    """The warning about a run in `folder` that takes `whole_s`, in lines: how long, why, what to do."""
    assert config.expected_minutes is not None
    said = config.expected_minutes * 60
    lines = [
        f"WARNING: the whole run will take {about(whole_s)}, and its recipe says {about(said)} "
        f"(expected_minutes={config.expected_minutes:g}); it goes on meanwhile"
    ]
    why = list(causes(config, here))
    if not why and effective_address(config.cluster) == "local":
        why = [
            "neither a slow number type nor missing cores nor other load: the processor is slower than the author's, "
            "or the run larger than the recipe's (expected_minutes=null switches this off)"
        ]
    lines += [f"  why: {cause}" for cause in why]
    found = smaller(config, measured, said)
    if found is None:
        lines.append(f"  no run of {FEWEST} iterations fits into that; take a smaller rollout.crop, or fewer rollouts")
    else:
        overrides, seconds = found
        lines.append(f"  a smaller one, {about(seconds)}: {command(folder, overrides)}")
    return "\n".join(lines)


def causes(config: RunConfig, here: Here) -> Iterator[str]:
    """What can be told of why a run is slow, of one whose processes are on this machine."""
    if effective_address(config.cluster) != "local":
        return
    slow = {} if here.bf16 else _in_bf16(config, here.machine)
    named, believed = ([k for k, given in slow.items() if (given == AUTO) == auto] for auto in (False, True))
    if named:
        yield (
            f"{', '.join(named)}=bfloat16, in which this processor takes about ten times as long as in float32; "
            f"{' '.join(f'{key}=auto' for key in named)} mends that"
        )
    if believed:
        yield (
            f"{', '.join(believed)}=auto means bfloat16 because {NATIVE_BF16}=1 says so, and this processor takes "
            "about ten times as long in it as in float32; leave the variable out"
        )
    if here.cores < (wanted := cores_wanted(config)):
        yield f"this process may use {here.cores:g} of the {wanted:g} cores that the recipe counts on"
    if here.others >= LEAST_OTHERS:
        yield f"other programs use {here.others:.1f} of this machine's cores"


def cores_wanted(config: RunConfig) -> float:
    """That a recipe is written for: `cluster.num_cpus`, or else the threads of all roles that compute on the CPU."""
    if config.cluster.num_cpus is not None:
        return float(config.cluster.num_cpus)
    return float(sum(role.count * role.threads for role in (config.actors, config.ranks) if role.device == "cpu"))


def _in_bf16(config: RunConfig, machine: Machine) -> dict[str, str]:
    """Key -> what was given, of settings that mean bfloat16 on the CPU."""
    types = number_types(config, machine).items()
    return {key: found.given for key, found in types if found.means == "bfloat16" and found.device == "cpu"}


# -- a smaller run ---------------------------------------------------------------------------------------------------


def smaller(config: RunConfig, measured: Measured, within_s: float) -> tuple[dict[str, Any], float] | None:
    """Overrides of a run that takes at most `within_s`, and what it takes; None where not even `FEWEST` iterations fit.

    Iterations are left out, down to `ENOUGH` of them; then evaluations, and then pictures of an iteration.
    """
    item, groups = config.rollout.images_per_batch, config.source.groups_per_step
    one_part = max(1, measured.pictures // max(1, measured.parts))
    fewer: list[dict[str, Any]] = [
        {},
        {"evaluation.every": 0},
        {"evaluation.every": 0, "evaluation.limit": one_part},
    ]
    best: tuple[dict[str, Any], float] | None = None
    most = FEWEST - 1
    for pictures in range(groups, 0, -item):
        for given in fewer:
            overrides = dict(given) if pictures == groups else {"source.groups_per_step": pictures, **given}
            iterations = _fitting(config, measured, overrides, within_s)
            if iterations <= most:
                continue
            overrides = {"iterations": iterations, **overrides}
            if 0 < iterations < config.evaluation.every:
                overrides["evaluation.every"] = 0  # the same, without a warning that it has no effect
            if not _valid(config, overrides):
                continue
            best, most = (overrides, seconds_of(config, measured, overrides)), iterations
            if iterations >= ENOUGH * config.iterations:
                return best
    return best


def seconds_of(config: RunConfig, measured: Measured, overrides: Mapping[str, Any]) -> float:
    """What the run by `config` takes under `overrides` of what `smaller` gives."""
    iterations = overrides.get("iterations", config.iterations)
    every = overrides.get("evaluation.every", config.evaluation.every)
    due = 1 if not every else -(-iterations // every)
    parts = 1 if "evaluation.limit" in overrides else measured.parts
    models = 2 if config.optimiser.ema else 1
    share = overrides.get("source.groups_per_step", config.source.groups_per_step) / config.source.groups_per_step
    each = measured.iteration_s * (FIXED + (1 - FIXED) * share)
    return measured.start_s + iterations * each + parts * (1 + models * due) * measured.part_s


def command(folder: Path, overrides: Mapping[str, Any]) -> str:
    """The run in `folder` once more, under `overrides`, in a folder beside it."""
    new, number = folder.with_name(f"{folder.name}-smaller"), 2
    while new.exists():
        new, number = folder.with_name(f"{folder.name}-smaller-{number}"), number + 1
    words = [f"{key}={value}" for key, value in overrides.items()]
    return shlex.join(["restorl", "train", str(folder / "config.yaml"), *words, "--run", str(new)])


def _fitting(config: RunConfig, measured: Measured, overrides: dict[str, Any], within_s: float) -> int:
    """The most iterations, up to those of `config`, that fit; 0 if none does."""
    low, high = 0, config.iterations
    while low < high:
        middle = (low + high + 1) // 2
        fits = seconds_of(config, measured, {**overrides, "iterations": middle}) <= within_s
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _valid(config: RunConfig, overrides: Mapping[str, Any]) -> bool:
    """Whether a run may be configured so."""
    data = plain(config)
    for key, value in overrides.items():
        *sections, name = key.split(".")
        place = data
        for section in sections:
            place = place[section]
        place[name] = value
    try:
        build_config(RunConfig, data)
    except ConfigError:
        return False
    return True
