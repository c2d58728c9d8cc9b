"""`restorl plan`: how many GPUs each role of a run should take, and what an iteration takes then.

(`cluster/cli/plan.py` is what `restorl train --dry-run` prints of a run whose counts are chosen.)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.errors import UserMistake, as_mistake, guarded

if TYPE_CHECKING:
    from cluster.config.recipe import RunConfig
    from cluster.plan.estimate import Plumbing
    from cluster.plan.measured import Measured
    from cluster.plan.model import Counts
    from cluster.run.checks.pictures import Pictures
    from cluster.run.flow import Flow
    from restoration.base_models import ModelFacts

DEFAULT_KIND = "h100"


@guarded
def plan(
    config: Annotated[Path, typer.Argument(help="YAML recipe.", metavar="CONFIG")],
    gpus: Annotated[int, typer.Option("--gpus", help="GPUs that there are.", min=1)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Such as `rollout.crop=512`.", metavar="[KEY=VALUE]...")
    ] = None,
    gpu_kind: Annotated[str | None, typer.Option(help="h100, a100, ...; of --from only its memory counts.")] = None,
    from_run: Annotated[
        Path | None, typer.Option("--from", help="Phase times as this run measured them.", metavar="RUN")
    ] = None,
    score_ms: Annotated[
        list[str] | None,
        typer.Option(help="[TERM=]MS of a picture on one replica, where a scorer's arithmetic isn't known."),
    ] = None,
    shape: Annotated[str | None, typer.Option(help="sd21, sdxl, sd3 or flux in place of a model folder.")] = None,
) -> None:
    """How many actors, reward replicas and learner ranks to take, and how long an iteration is then.

    restorl plan configs/paper/diffbir.yaml --gpus 64 --gpu-kind h100 --shape sd21

    restorl plan configs/gpu/diffbir.yaml --gpus 64 --from runs/rl

    Nothing is started. Without --from it is an estimate from data sheets, within a factor of 2.
    """
    from cluster.config.configure import load_config
    from cluster.config.recipe import RunConfig

    if from_run is not None and score_ms:
        raise UserMistake(
            f"--score-ms {' '.join(score_ms)}: is for an estimate, and --from {from_run} has measured the scorer; "
            "leave one of them out"
        )
    given = [*(overrides or []), *([f"model={shape}"] if shape else [])]
    loaded = load_config(RunConfig, config, given)
    print(plan_text(loaded, gpus, gpu_kind, from_run, dict(map(_named_ms, score_ms or [])), shape, str(config)))


def plan_text(
    config: RunConfig,
    gpus: int,
    gpu_kind: str | None,
    from_run: Path | None,
    score_ms: dict[str, float],
    shape: str | None,
    recipe: str,
) -> str:
    """What the command prints.

    Args:
        score_ms: by term; "" for all that aren't named.

    Raises:
        UserMistake, ConfigError: there is no plan, and why.
    """
    from cluster.cli import plan_page
    from cluster.cli.dry_run import pictures_for, stock_facts
    from cluster.config.configure import ConfigError
    from cluster.config.tree import Problem
    from cluster.plan import counting
    from cluster.plan.estimate import PLUMBING, estimated
    from cluster.plan.gpus import gpu_kind as kind_of
    from cluster.plan.model import PlanError
    from cluster.plan.recipe import (
        beside,
        chain_of,
        counts_of,
        evaluation_share,
        loop_of,
        services_of,
        shares_of,
    )
    from cluster.plan.search import best, one_more
    from cluster.run.checks.model import facts_of
    from cluster.run.checks.roles import as_here
    from cluster.run.flow import flow, rolled_sizes
    from cluster.run.machine import this_machine

    facts = facts_of(config) if shape is None else stock_facts(shape)
    pictures = pictures_for(config, assumed=shape is not None)
    problems = [found for found in (facts, pictures) if isinstance(found, Problem)]
    if problems or isinstance(facts, Problem) or isinstance(pictures, Problem):
        raise ConfigError(problems)
    here = as_here(config, this_machine())
    with as_mistake(ValueError):
        kind = kind_of(gpu_kind or DEFAULT_KIND)
        schedule = facts.schedule(here.sampler)
    largest = rolled_sizes(here, pictures.train, facts.size_multiple)[-1]
    moved = flow(here, largest, facts.vae_factor, facts.latent_channels, len(schedule.decisions))
    loop, chain = loop_of(here, moved.decisions), chain_of(here, moved, len(schedule), pictures.heldout)
    shares, counts = shares_of(here), counts_of(here)
    with as_mistake(PlanError):
        if not any((shares.actor, shares.rank, *shares.replicas.values())):
            raise PlanError(
                "no role of it reserves a GPU, so that there is nothing to share out; set actors.num_gpus=1 "
                "ranks.num_gpus=1 reward.num_gpus=1"
            )
        run: Measured | None = None
        if from_run is None:
            _require_gpus(here)
            work = counting.arithmetic(here, facts, moved)
            missing = [name for name in services_of(here) if name not in work.score]
            costs = estimated(work, chain, kind, _asked(score_ms, missing, list(services_of(here))), PLUMBING)
        else:
            run = _measured(here, facts, pictures, from_run, moved, PLUMBING)
            # Its own evaluations may be others.
            each = evaluation_share(chain) * run.costs.rollout_s
            run = replace(run, costs=replace(run.costs, evaluation_s=each))
            costs = run.costs
        roles = {role.role: role for role in counting.memory_of(here, facts, moved, pictures.heldout)}
        keys = {"actor": ("actors", here.actors.num_gpus)}
        keys |= {name: (name, of.num_gpus) for name, of in services_of(here).items()}
        for name, (key, share) in keys.items():
            if name in roles:
                counting.require_room(roles[name], share, kind.memory, key, kind.name)
        room = min(here.ranks.num_gpus, 1.0) * kind.memory
        others = beside(here)
        if (free := gpus - sum(others.values())) <= 0:
            raise PlanError(
                f"{gpus} GPUs: the services of terms with weight 0 ({', '.join(others)}) reserve "
                f"{sum(others.values()):g}, and none is left; give more, or lower their num_gpus or replicas"
            )
        most = int(free / here.ranks.num_gpus) if here.ranks.num_gpus else 1
        ranks = counting.ranks_that_fit(here, facts, roles["rank"], room, most, kind.name)
        try:
            split = best(loop, costs, shares, free, counts, ranks)
        except PlanError as error:
            if not others:
                raise
            raise PlanError(
                f"{error} ({gpus - free:g} of the {gpus} are those of terms with weight 0: {', '.join(others)})"
            ) from None
        more = one_more(loop, costs, shares, split, [*ranks, ranks[-1] + 1] if len(ranks) > 1 else ranks)
        wider = plan_page.wider(loop, costs, shares, free, counts, ranks, split)
    roles["rank"] = counting.with_ranks(here, facts, roles["rank"], split.counts.ranks)
    return plan_page.page(
        recipe=recipe, config=here, gpus=gpus, kind=kind, run=run, where=from_run, split=split, more=more, wider=wider,
        beside=others, shares=shares, roles=list(roles.values()), group_bytes=moved.group_bytes,
    )  # fmt: skip


def _require_gpus(config: RunConfig) -> None:
    from cluster.plan.model import PlanError

    idle = [key for key, role in (("actors", config.actors), ("ranks", config.ranks)) if not role.num_gpus]
    if idle:
        raise PlanError(
            f"{', '.join(f'{key}.num_gpus=0' for key in idle)}: the role computes on CPUs, and an estimate is of GPUs; "
            f"add {' '.join(f'{key}.num_gpus=1' for key in idle)}, or measure a run and give it with --from"
        )


def _measured(
    config: RunConfig, facts: ModelFacts, pictures: Pictures, folder: Path, moved: Flow, plumbing: Plumbing
) -> Measured:
    """`moved`: of the recipe, whose rollouts are those of the run. Evaluations are the run's own."""
    from cluster.models import load_run_config
    from cluster.plan.estimate import moving
    from cluster.plan.measured import measured
    from cluster.plan.model import PlanError
    from cluster.plan.recipe import chain_of, counts_of, evaluation_share, loop_of, other_costs
    from cluster.report.records import read_metrics
    from cluster.run.checks.roles import as_here
    from cluster.run.machine import this_machine

    was = as_here(load_run_config(folder), this_machine())
    if others := other_costs(config, was):
        shown = "; ".join(others[:3]) + (f"; and {len(others) - 3} more" if len(others) > 3 else "")
        raise PlanError(f"{folder} measured other work than this recipe's ({shown}); give the recipe of that run")
    with as_mistake(ValueError, FileNotFoundError):
        records = read_metrics(folder, "train")
    counts: Counts = counts_of(was)
    schedule = facts.schedule(was.sampler)
    loop, chain = loop_of(was, len(schedule.decisions)), chain_of(was, moved, len(schedule), pictures.heldout)
    services, share = list(counts.replicas), evaluation_share(chain)
    return measured(
        records, loop, counts, services, chain.decoded, share, moving(chain.group_bytes, plumbing), str(folder)
    )


def _named_ms(text: str) -> tuple[str, float]:
    """Of `--score-ms`: (term or "", milliseconds)."""
    name, _, value = text.rpartition("=")
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise UserMistake(f"--score-ms {text}: milliseconds of a picture, above 0, or TERM=milliseconds")
    return name, number


def _asked(score_ms: dict[str, float], missing: list[str], services: list[str]) -> dict[str, float]:
    """Seconds of a picture by service, from `--score-ms`; of those that are `missing` it must be given."""
    from cluster.plan.model import PlanError

    if unknown := sorted(set(score_ms) - {"", *services}):
        raise PlanError(f"--score-ms {unknown[0]}=...: no such term; there are {', '.join(services)}")
    if lacking := [name for name in missing if name not in score_ms and "" not in score_ms]:
        raise PlanError(
            f"{lacking[0]}: how long its scorer takes isn't known; give --score-ms MS, the time of a picture on one "
            "replica (a second over the pictures a second of `restorl reward status`), or a measured run by --from"
        )
    named = {name: ms / 1e3 for name, ms in score_ms.items() if name}
    return {name: score_ms[""] / 1e3 for name in missing if name not in named and "" in score_ms} | named
