"""`restorl train --dry-run`: everything is checked and the plan shown; neither Ray nor a GPU is needed."""

from __future__ import annotations

import warnings
from pathlib import Path

from cluster.cli.errors import USER_MISTAKE, UserMistake
from cluster.cli.plan import plan_of
from cluster.config.configure import ConfigError
from cluster.config.recipe import DataSettings, RunConfig
from cluster.config.resume import check_resume
from cluster.config.tree import Problem
from cluster.models import load_run_config
from cluster.run.checks.model import facts_of
from cluster.run.checks.pictures import Pictures
from cluster.run.checks.roles import as_here, number_types
from cluster.run.checks.scorer_files import scorer_files
from cluster.run.machine import this_machine
from cluster.run.preflight import examine
from restoration.base_models import ModelFacts
from restoration.datasets.paired import DataError
from restoration.images import ImageError
from restoration.stock import stock


def show_plan(config: RunConfig, shape: str | None = None, resumed: Path | None = None) -> int:
    """Print the plan, warnings and problems; the exit status, 2 with problems.

    Args:
        shape: of a model without weights, in place of `config.model`; the pictures needn't be there either.
        resumed: folder of the run that would be resumed.

    Raises:
        UserMistake: no such shape, or nothing that tells the size of its pictures.
    """
    facts = facts_of(config) if shape is None else stock_facts(shape)
    pictures = pictures_for(config, assumed=shape is not None)
    machine = this_machine()
    found = examine(config, pictures, facts, machine)
    brought = [] if shape else [*scorer_files(config)]  # a shape is planned for before anything is downloaded
    problems, told = [*found.problems, *brought], list(found.warnings)
    if resumed is not None:
        try:
            told += check_resume(load_run_config(resumed), config)
        except ConfigError as error:
            problems += error.problems
    if isinstance(facts, ModelFacts) and isinstance(pictures, Pictures) and not problems:
        types = number_types(config, machine)
        here = as_here(config, machine)
        text, tight = plan_of(here, facts, pictures.train, pictures.heldout, types, assumed=not pictures.ids)
        print(text, end="\n\n")
        told += tight
    for line in (*(f"problem: {p}" for p in problems), *(f"warning: {w}" for w in told)):
        print(line)
    if not problems:
        print("nothing stands against a start, of what can be known without the cluster")
    return USER_MISTAKE if problems else 0


def stock_facts(shape: str) -> ModelFacts:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")  # of diffusers about itself
            return ModelFacts.of(stock(shape))
    except ValueError as error:
        raise UserMistake(f"--shape: {error}") from error


def pictures_for(config: RunConfig, assumed: bool) -> Pictures | Problem:
    """Those of the data; with `assumed`, where there are none or none were named, ones of the crop's size."""
    data = config.data
    if assumed and (data.root == DataSettings.root or not data.root.is_dir()):
        side = config.rollout.crop
        if not side:
            raise UserMistake(
                "rollout.crop=0 takes whole pictures, and there are none: give a rollout.crop or data.root"
            )
        return Pictures([(side, side)], [(side, side)] * config.evaluation.batch)
    try:
        return Pictures.of(*(data.open(split) for split in (data.train, data.heldout)))
    except (DataError, ImageError, FileNotFoundError) as error:
        what, _, action = str(error).partition("; ")
        return Problem("data", what, action)
