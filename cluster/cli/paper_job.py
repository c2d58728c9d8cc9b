"""One job of a table of the paper, in a process of its own: train what its cells measure, then measure them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.cli.errors import UserMistake, say

if TYPE_CHECKING:
    from cluster.config.recipe import RunConfig
    from cluster.paper.cells import Folders, Job
    from restoration.base_models.interface import BaseModel, SamplerSettings

JOB_FILE, LOG_FILE = "job.json", "log.txt"
LOCK_WAIT_S = 100.0  # another process, whose starter was killed, has a minute to end
LOOK_S = 1.0
RETRIES = 1  # of measurements whose node was lost


def do_job(file: Path) -> None:
    """What `restorl paper run` has written to the file; what is done already isn't done again.

    Raises:
        UserMistake: no job, or another process that does it and doesn't end.
        Whatever training and measuring raise.
    """
    from cluster.paper.cells import TUNE, Folders, Job

    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        job, folders = Job.of(found["job"]), Folders(Path(found["out"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserMistake(f"{file} is no job of a table ({error}); run `restorl paper run`, which writes it") from None
    with _alone(file.parent):
        if job.form == TUNE:
            _tune(job)
            return
        if job.run is not None:
            _train(job)
        for line in _measured(job, folders):
            say(line)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the job's lock, once another process that does it has ended. Raises FolderInUse: it doesn't."""
    from contextlib import ExitStack

    from cluster.run.folder_lock import FolderInUse, locked

    ends = time.monotonic() + LOCK_WAIT_S
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(folder))
                break
            except FolderInUse:
                if time.monotonic() > ends:
                    raise
            time.sleep(LOOK_S)
        yield


def _tune(job: Job) -> None:
    """Fine-tune; stopped, it goes on from its last state."""
    from cluster.config.configure import load_config
    from restoration.pretrain.sft import SftRecipe, fine_tune

    assert job.run is not None
    fine_tune(load_config(SftRecipe, job.recipe, job.words), job.run)


def _train(job: Job) -> None:
    """The run of the job: begun, gone on with, or complete already."""
    from cluster.cli.resuming import resume_if_there, train_when_free

    assert job.run is not None
    _bring_model(job)
    if job.single:
        _train_single(job)
        return
    found = resume_if_there(job.run, str(job.recipe), job.words)
    if found.complete is None:
        say(f"run folder: {job.run}")
        train_when_free(found.config, job.run)


def _train_single(job: Job) -> None:
    """By `train --single`, which can't go on: what was interrupted is done anew."""
    from cluster.config.resume import changes
    from cluster.models import load_run_config
    from cluster.paper.plan import ELSEWHERE
    from cluster.run.single import train_single

    assert job.run is not None
    config = _config_of(job)
    if (job.run / "run.json").is_file():
        for key, (was, wanted) in changes(load_run_config(job.run), config).items():
            if key.split(".")[0] not in ELSEWHERE:
                raise UserMistake(
                    f"{job.run} was trained with {key}={was}, not {wanted}; remove it, or give another --out"
                )
        return
    shutil.rmtree(job.run, ignore_errors=True)
    train_single(config, job.run, lambda i, figures: say(f"iteration {i}: reward {figures['reward_mean']:.3f}"))


def _bring_model(job: Job) -> None:
    """Write the model that the training starts from, where that is the result of another run."""
    from cluster.cli.export import write
    from cluster.models import load_run_config
    from restoration.precision import DTYPES

    if job.exported_from is None or job.model.exists():
        return
    averaged = load_run_config(job.exported_from).optimiser.ema > 0
    fresh = job.model.with_name(f".{job.model.name}.part")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.parent.mkdir(parents=True, exist_ok=True)
    write(job.exported_from, fresh, "model", "average" if averaged else "latest", None, DTYPES["float32"])
    fresh.rename(job.model)


def _measured(job: Job, folders: Folders) -> list[str]:
    """What is said of the cells: measured in this process or, where the training's cluster isn't its own, on that."""
    from cluster.jobs import connect, effective_address

    config = _config_of(job)
    if not job.cells or effective_address(config.cluster) == "local":
        return measure_cells(job.plain(), str(folders.out))
    import ray

    with connect(config.cluster):
        # Cells that a lost node has finished aren't measured again.
        task = ray.remote(measure_cells).options(max_retries=RETRIES, **config.actors.options)
        lines: list[str] = ray.get(task.remote(job.plain(), str(folders.out)))  # this process has a deadline
        return lines


def measure_cells(plain: dict[str, Any], out: str) -> list[str]:
    """Every cell of the job, as JSON has it, that isn't finished; returns a line of each.

    Raises:
        As `cluster.paper.measuring.measure`; UserMistake for a device or a chain that can't be.
    """
    from cluster.cli.errors import as_mistake
    from cluster.cli.restore import require
    from cluster.cli.scorer_text import named_scorer
    from cluster.paper import measuring
    from cluster.paper.cells import Cell, Folders, Job
    from cluster.paper.results import differences, read_result
    from restoration.devices import device_of

    job, folders = Job.of(plain), Folders(Path(out))
    lines, todo = list[str](), list[Cell]()
    for cell in job.cells:
        found = read_result(folders.cell(cell))
        if found is not None and not differences(found, cell) and found.has(job.measuring.wanted):
            lines.append(f"{cell.label}: finished before")
        else:
            todo.append(cell)
    if not todo:
        return lines
    model, sampler = _model_of(job)
    with as_mistake(ValueError):
        require(model, sampler)
        device = device_of(job.measuring.device)
    scorers = {name: judge.score for name, _, judge in map(named_scorer, job.measuring.scorers)}
    model = model.to(device)
    for cell in todo:
        result = measuring.measure(cell, folders.cell(cell), model, sampler, scorers, job.measuring, device)
        lines.append(f"{cell.label}: {result.n} pictures, {result.seconds:.0f} s")
    return lines


def _model_of(job: Job) -> tuple[BaseModel, SamplerSettings]:
    """What the cells measure, restoring by the recipe's chain, a base model too: all rows of a table by the same."""
    from cluster.models import load_policy

    config = _config_of(job)
    checkpoint = "average" if config.optimiser.ema > 0 else "latest"
    return load_policy(job.run or job.model, checkpoint, config.data.embeddings)[0], config.sampler


def _config_of(job: Job) -> RunConfig:
    from cluster.config.configure import load_config
    from cluster.config.recipe import RunConfig

    return load_config(RunConfig, job.recipe, job.words)
