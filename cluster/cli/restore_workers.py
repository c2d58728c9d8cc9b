"""Restoring on several devices: Ray actors that each hold the model and take one file after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cluster.jobs import ClusterError, ClusterSettings, connect
from cluster.models import load_policy
from restoration.base_models.interface import SamplerSettings
from restoration.images import ImageError
from restoration.precision import resolve, set_precision
from restoration.restore import LESS_MEMORY, Job, RestoreSummary, restore_file, restore_jobs, tried
from restoration.tiling import Tiling
from restoration.trouble import told

START_TIMEOUT_S, FILE_TIMEOUT_S = 600.0, 3600.0
DEATHS = 3  # of each worker's place in a row, after which it is not the files


@dataclass(frozen=True)
class RestoreSpec:
    """What a worker needs to build itself; paths are absolute and on storage that all nodes share."""

    model: Path
    checkpoint: str
    embeddings: Path | None
    sampler: SamplerSettings
    dtype: str
    seed: int
    device: str  # "cpu", or "cuda": the one GPU that a worker sees
    tiling: Tiling | None
    bits: int


class RestoreWorker:
    def __init__(self, spec: RestoreSpec) -> None:
        self.spec, (model, _) = spec, load_policy(spec.model, spec.checkpoint, spec.embeddings)
        set_precision(model, resolve(spec.dtype, spec.device))
        self.model = model.to(spec.device)

    def ready(self) -> bool:
        return True

    def restore(self, job: Job) -> ImageError | None:
        spec = self.spec
        error = tried(
            lambda one: restore_file(self.model, one, spec.sampler, spec.seed, spec.device, spec.tiling, spec.bits), job
        )
        # Of another class the driver may lack the module.
        return (
            error
            if error is None or isinstance(error, ImageError)
            else ImageError(told(job.source, error, LESS_MEMORY))
        )


def restore_on_workers(
    spec: RestoreSpec,
    count: int,
    input: Path,
    output: Path,
    skip_existing: bool = True,
    progress: Callable[[int, int, Path], None] | None = None,
) -> RestoreSummary:
    """As `restoration.restore.restore_folder`, on `count` GPUs or, for device cpu, processes.

    Raises:
        ValueError: a device with a number, which is up to Ray.
        ClusterError: too few devices, no worker left, or a model or a file that takes too long.
    """
    if spec.device not in ("cpu", "cuda"):
        raise ValueError(f"several devices: {spec.device} names one; choose cpu or cuda")
    return restore_jobs(partial(_run, spec, count), input, output, skip_existing, progress)


def _run(spec: RestoreSpec, count: int, jobs: list[Job]) -> Iterator[tuple[Job, Exception | None]]:
    if not jobs:
        return
    count = min(count, len(jobs))
    with connect(ClusterSettings(num_cpus=count, dashboard=False)):
        import ray

        kind = "GPU" if spec.device == "cuda" else "CPU"
        if (there := ray.cluster_resources().get(kind, 0)) < count:
            raise ClusterError(f"{count} devices are wanted and Ray has {there:g} of kind {kind}; ask for fewer")
        actor: Any = ray.remote(num_cpus=int(kind == "CPU"), num_gpus=int(kind == "GPU"))(RestoreWorker)
        workers = [actor.remote(spec) for _ in range(count)]
        try:
            ray.get([worker.ready.remote() for worker in workers], timeout=START_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError as error:
            raise ClusterError(f"{count} workers did not load {spec.model} within {START_TIMEOUT_S:g} s") from error
        yield from _hand_out(ray, workers, jobs, lambda: actor.remote(spec))


def _hand_out(
    ray: Any, workers: list[Any], jobs: list[Job], another: Callable[[], Any]
) -> Iterator[tuple[Job, Exception | None]]:
    """A job to each idle worker until all are done; one whose worker dies (out of memory) has failed.

    Args:
        another: starts a worker in place of one that has died.

    Raises:
        ClusterError: no file within `FILE_TIMEOUT_S`, or so many deaths in a row that more would not help.
    """
    idle, waiting, running = list(workers), deque(jobs), dict[Any, tuple[Any, Job]]()
    deaths, dead = 0, (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)  # the latter by Ray's own watch
    while waiting or running:
        while idle and waiting:
            worker, job = idle.pop(), waiting.popleft()
            running[worker.restore.remote(job)] = worker, job
        done, _ = ray.wait(list(running), timeout=FILE_TIMEOUT_S)
        if not done:
            names = ", ".join(str(job.source) for _, job in running.values())
            raise ClusterError(f"no worker finished a file within {FILE_TIMEOUT_S:g} s: {names}")
        for ref in done:
            worker, job = running.pop(ref)
            error: Exception | None
            try:
                error = ray.get(ref, timeout=START_TIMEOUT_S)
                idle.append(worker)
                deaths = 0
            except dead as death:
                reason = str(death).strip().splitlines()[0]
                error = ImageError(f"{job.source}: its worker died: {reason}; if memory ran out, {LESS_MEMORY}")
                deaths += 1
                if deaths >= DEATHS * len(workers):
                    raise ClusterError(f"{deaths} workers in a row have died, at last of {error}") from death
                idle.append(another())
            yield job, error
