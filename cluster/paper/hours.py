"""GPU hours of a plan before it starts, by the cost model of `restorl plan`: an estimate, within a factor of 2."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.config.recipe import RunConfig
from cluster.paper.cells import Job
from cluster.paper.plan import Plan
from cluster.plan import counting
from cluster.plan.estimate import PLUMBING, Arithmetic, estimated
from cluster.plan.gpus import GpuKind
from cluster.plan.model import PlanError, iteration
from cluster.plan.recipe import chain_of, counts_of, loop_of, services_of, shares_of
from cluster.run.checks.roles import as_here
from cluster.run.flow import Flow, Size, flow, rolled_sizes
from cluster.run.machine import Machine
from restoration.base_models import CheckpointError, ModelFacts, describe
from restoration.datasets.opening import open_set
from restoration.evaluate import evenly

PICTURE = (512, 512)  # of which a base model's arithmetic is counted where no training names a crop


@dataclass(frozen=True)
class Hours:
    """GPU hours.

    Attributes:
        unknown: jobs that are in none of the sums, each with why.
        unscored: jobs in whose sum the scorer is left out, whose time isn't known.
    """

    training: float = 0.0
    measuring: float = 0.0
    unknown: tuple[str, ...] = ()
    unscored: int = 0

    def __add__(self, other: Hours) -> Hours:
        return Hours(
            self.training + other.training,
            self.measuring + other.measuring,
            self.unknown + other.unknown,
            self.unscored + other.unscored,
        )


def hours_of(plan: Plan, kind: GpuKind, machine: Machine) -> Hours:
    """Of all jobs of a plan. What is fine-tuned before is not in it."""
    estimates, total = _Estimates(kind, machine), Hours()
    for job in plan.jobs:
        if job.label not in plan.configs:
            total += Hours(unknown=(f"{job.label}: fine-tuning isn't estimated",))
            continue
        try:
            total += estimates.of(job, plan.configs[job.label], plan.models[job.label])
        except (PlanError, CheckpointError, ValueError) as error:
            total += Hours(unknown=(f"{job.label}: {error}",))
    return total


class _Estimates:
    """Keeps what several jobs share: the arithmetic of a model, the sizes of a set's pictures."""

    def __init__(self, kind: GpuKind, machine: Machine) -> None:
        self.kind, self.machine = kind, machine
        self._facts: dict[Path, ModelFacts] = {}
        self._work: dict[str, Arithmetic] = {}
        self._sizes: dict[tuple[str, Path, str], list[Size]] = {}

    def of(self, job: Job, config: RunConfig, model: Path) -> Hours:
        if not (config.actors.num_gpus and config.ranks.num_gpus):
            return Hours(unknown=(f"{job.label}: it computes on CPUs",))
        here = as_here(config, self.machine)
        facts = self._facts_of(model)
        schedule = facts.schedule(here.sampler)
        data, trains = here.data, job.run is not None
        rolled = [PICTURE]
        if here.rollout.crop or trains:
            sizes = [] if here.rollout.crop else self._sizes_of(str(data.set), data.root, data.train)
            rolled = rolled_sizes(here, sizes, facts.size_multiple)
        moved = flow(here, rolled[-1], facts.vae_factor, facts.latent_channels, len(schedule.decisions))
        work = self._work_of(here, facts, moved, model)
        alone = work.condition + len(schedule) * work.denoise + work.decode
        tested = [s for cell in job.cells for s in evenly(self._sizes_of(cell.set, cell.root, cell.split), cell.limit)]
        area = sum(h * w for h, w in tested) / (moved.picture[0] * moved.picture[1])
        measuring = area * self.kind.seconds(alone, bf16=False) / 3600
        if not trains:
            return Hours(measuring=measuring)
        heldout = self._sizes_of(str(data.set), data.root, data.heldout)
        unscored = [name for name in services_of(here) if name not in work.score]
        chain = chain_of(here, moved, len(schedule), heldout)
        costs = estimated(work, chain, self.kind, dict.fromkeys(unscored, 0.0), PLUMBING)
        counts = counts_of(here)
        found = iteration(loop_of(here, moved.decisions), costs, counts)
        training = found.run_s(here.iterations) * shares_of(here).of(counts) / 3600
        return Hours(training, measuring, unscored=int(bool(unscored)))

    def _facts_of(self, model: Path) -> ModelFacts:
        if model not in self._facts:
            self._facts[model] = describe(model)
        return self._facts[model]

    def _work_of(self, config: RunConfig, facts: ModelFacts, moved: Flow, model: Path) -> Arithmetic:
        told = repr((model, moved.picture, config.adapt, config.sampler, config.learner))
        if told not in self._work:
            self._work[told] = counting.arithmetic(config, facts, moved)
        score = {n: flops for n, of in services_of(config).items() if (flops := counting.scorer_flops(of)) is not None}
        return replace(self._work[told], score=score)

    def _sizes_of(self, name: str, root: Path, split: str) -> list[Size]:
        key = (name, root, split)
        if key not in self._sizes:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of counts that aren't the published ones, which the plan tells
                pairs = open_set(name, root, split, check=False)
            self._sizes[key] = [pair.size for pair in pairs.pairs]
        return self._sizes[key]
