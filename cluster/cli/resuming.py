"""`restorl train --run FOLDER --resume-if-there`: one command that starts a run, and after any end of it goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.cli.errors import UserMistake, say

if TYPE_CHECKING:
    from cluster.config.recipe import RunConfig
    from cluster.run.state import RunSummary

LOCK_WAIT_S = 100.0  # a file server keeps the lock of a machine that was lost for a minute and a half
LOOK_S = 2.0


@dataclass(frozen=True)
class Found:
    """What is to be done in a folder.

    Attributes:
        resume: whether it holds a run that goes on; else one begins.
        complete: iterations after which the run there was complete, if it has all that are wanted.
    """

    config: RunConfig
    resume: bool
    complete: int | None = None


def resume_if_there(folder: Path, config: str | None, overrides: Sequence[str]) -> Found:
    """Whether the run in `folder` begins, goes on or is complete.

    Args:
        config: the recipe, or an override where the folder's own recipe is meant. A run that goes on under another
            recipe than its own has the rules of `--resume` (`cluster.config.resume`).

    Raises:
        UserMistake: neither a recipe nor a run.
        ConfigError: a recipe that can't be read, or a damaged run.json.
    """
    from cluster.config.configure import load_config
    from cluster.config.recipe import RunConfig
    from cluster.models import load_run_config
    from cluster.run.folder import finished_after, has_begun

    given, there = list(overrides), has_begun(folder)
    if config is not None and "=" in config:
        given, config = [config, *given], None
    if config is None and not there:
        raise UserMistake(f"{folder} holds no run to resume: say CONFIG, too, with which one is started there")
    loaded = load_run_config(folder, tuple(given)) if config is None else load_config(RunConfig, Path(config), given)
    done = finished_after(folder) if there else None
    return Found(loaded, there, done if done is not None and done >= loaded.iterations else None)


def tell_complete(folder: Path, iterations: int) -> None:
    print(f"{folder}: the run is complete, after {iterations} iterations; nothing is started")


def train_when_free(config: RunConfig, folder: Path) -> RunSummary | None:
    """The run in `folder`, begun or resumed, once the process that it replaces has let go of it.

    Returns:
        None where that process has completed the run meanwhile, as is told.

    Raises:
        FolderInUse: another process still uses the folder after `LOCK_WAIT_S`.
        As `cluster.run.driver.train`.
    """
    from cluster.config.configure import ConfigError
    from cluster.run import driver
    from cluster.run.folder import finished_after, has_begun
    from cluster.run.folder_lock import FolderInUse, holder_of

    ends, told = time.monotonic() + LOCK_WAIT_S, False
    while True:
        there, late, used = has_begun(folder), time.monotonic() > ends, ""
        if there and (done := finished_after(folder)) is not None and done >= config.iterations:
            tell_complete(folder, done)
            return None
        try:
            if late or not (holder := holder_of(folder)).held:  # else nothing is opened and checked in vain
                return driver.train(config, folder, there)
            used = f"{folder}: {holder}"
        except FolderInUse as error:
            if late:
                raise
            used = str(error)
        except ConfigError:
            if late or has_begun(folder) == there:  # else another process began the run meanwhile, or ended its start
                raise
        if used and not told:
            say(f"{used}; this one waits for that, {LOCK_WAIT_S:.0f} s at most")
            told = True
        time.sleep(LOOK_S)
