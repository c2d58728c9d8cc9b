"""Everything that can be known before anything starts; `cluster.run.checks.resources` goes on once Ray is up.

All problems are told at once. What is said here is said again, later and by one process, where it happens.
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.config.configure import ConfigError
from cluster.config.recipe import RunConfig
from cluster.config.tree import Problem
from cluster.run.checks.findings import Checked, Finding, told
from cluster.run.checks.idle_keys import idle_keys
from cluster.run.checks.memory import evaluation, store
from cluster.run.checks.model import Facts, chain, conditions, facts_of, idle_keys_of_sampler
from cluster.run.checks.pictures import Pictures, crops, damaged, embeddings
from cluster.run.checks.reward_trust import reward_trust
from cluster.run.checks.roles import feeding, placement, precision
from cluster.run.checks.scorer_files import scorer_files
from cluster.run.checks.small_pictures import small_pictures
from cluster.run.flow import flow, rolled_sizes
from cluster.run.machine import Machine, this_machine
from cluster.trackers import lacking
from restoration.checkpoints import CheckpointError
from restoration.datasets.paired import PairedFolder
from restoration.datasets.registry import SETS
from restoration.metrics import protocol
from restoration.metrics.full_reference import FULL_REFERENCE, version_of
from restoration.transition import Schedule
from reward_service.scorers import SCORERS

OTHERS = "pyiqa:METRIC, https://... or module:class"


def before_start(
    config: RunConfig, train: PairedFolder, heldout: PairedFolder, machine: Machine | None = None
) -> list[str]:
    """Warnings, each a sentence with its way out.

    Args:
        machine: what this one has, None to look.

    Raises:
        ConfigError: with all problems.
    """
    found = examine(config, Pictures.of(train, heldout), facts_of(config), machine or this_machine())
    if problems := (*found.problems, *scorer_files(config), *damaged(config, heldout)):
        raise ConfigError(problems)
    return [*found.warnings, *reward_trust(config, heldout.image_ids)]


def examine(config: RunConfig, pictures: Pictures | Problem, facts: Facts | Problem, machine: Machine) -> Checked:
    """All that can be told before anything starts. A problem in place of pictures or facts is told with the others."""
    known = None if isinstance(pictures, Problem) else pictures
    findings: list[Finding] = list(of_config(config, machine))
    findings += [facts] if isinstance(facts, Problem) else of_model(config, facts, known)
    findings += [pictures] if isinstance(pictures, Problem) else embeddings(config, pictures.ids)
    return Checked.of(findings)


def of_config(config: RunConfig, machine: Machine) -> Iterator[Finding]:
    """What the configuration alone tells."""
    yield from names(config)
    yield from placement(config, machine)
    yield from precision(config, machine)
    yield from feeding(config)
    yield from idle_keys(config)
    yield from trackers(config)


def of_model(config: RunConfig, facts: Facts, pictures: Pictures | None) -> Iterator[Finding]:
    """What the model tells besides, and the sizes of the pictures, if they are known."""
    schedule, found = chain(config, facts)
    yield from found
    yield from conditions(config, facts)
    if pictures is not None:
        yield from of_sizes(config, facts, schedule, pictures)
    if schedule is not None:
        yield from idle_keys_of_sampler(config.sampler, facts, schedule)


def of_sizes(config: RunConfig, facts: Facts, schedule: Schedule | None, pictures: Pictures) -> Iterator[Finding]:
    """Pictures against crops, store and GPU."""
    yield from crops(config, facts, pictures.train)
    rolled = rolled_sizes(config, pictures.train, facts.size_multiple)
    if schedule is not None and min(rolled[-1]) >= facts.vae_factor:
        moved = flow(config, rolled[-1], facts.vae_factor, facts.latent_channels, len(schedule.decisions))
        yield from store(config, moved)
    yield from evaluation(config, facts.size_multiple, pictures.heldout)
    if pictures.ids:
        yield from small_pictures(config, pictures.heldout, pictures.ids[-len(pictures.heldout) :])


def trackers(config: RunConfig) -> Iterator[Finding]:
    """Libraries of `tracking`, which are extras."""
    for name in lacking(config.tracking):
        what = f"{name} asks for a library that isn't installed"
        yield Problem("tracking", what, f"pip install 'restorl[{name}]', or leave it out")


def names(config: RunConfig) -> Iterator[Finding]:
    """Names that something is looked up by."""
    try:
        protocol(config.evaluation.protocol)
    except ValueError as error:
        yield told("evaluation.protocol", str(error))
    of, measured = SETS.get(config.data.set or ""), config.evaluation.protocol
    if of is not None and of.protocol != measured.split("+")[0]:
        yield (
            f"evaluation.protocol={measured}: figures of {of.title} are published by {of.protocol}; set "
            f"evaluation.protocol={of.protocol} to compare with them"
        )
    # Of a class by its path only the replicas, whose nodes may have other packages, can tell.
    known = ", ".join(sorted({*SCORERS, *FULL_REFERENCE}))
    for term in config.reward.resolved.terms:
        key = config.reward.key(term.name)
        if term.served and ":" not in term.scorer and term.scorer not in SCORERS:
            yield Problem(f"{key}.scorer", f"no scorer named {term.scorer!r}", f"choose {known}, {OTHERS}")
        elif not term.served:
            try:
                version_of(term.scorer, **term.params)
            except (ValueError, CheckpointError) as error:
                yield told(f"{key}.params", str(error))
