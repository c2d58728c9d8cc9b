"""`restorl paper`: a table of the paper run on your sets and models, and printed beside the paper's own figures."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.errors import DEBUG, UserMistake, as_mistake, guarded, say
from cluster.cli.output import Counter

if TYPE_CHECKING:
    from cluster.paper.cells import Folders, Job
    from cluster.paper.plan import Plan, Wanted
    from cluster.paper.side_by_side import Outcome

paper_app = typer.Typer(help="The paper's tables, run and printed (docs/paper_tables.md).", no_args_is_help=True)

Number = Annotated[str, typer.Argument(help="Number of a table, 1 to 6, or all.", metavar="TABLE")]
Out = Annotated[Path, typer.Option(help="Folder of trainings and results.")]
OUT = Path("runs/paper")


@paper_app.command("run")
@guarded
def paper_run(
    table: Number,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Behind every recipe, such as `iterations=50`.", metavar="[KEY=VALUE]...")
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="Folder with public sets, or SET=FOLDER.")] = None,
    models: Annotated[
        list[str] | None, typer.Option(help="Folder with base models MODEL_SET or MODEL, or MODEL[:SET]=FOLDER.")
    ] = None,
    out: Out = OUT,
    scale: Annotated[str, typer.Option(help="full, quick or tiny.")] = "full",
    seed: Annotated[
        list[int] | None, typer.Option(help="Of training and sampling; may be repeated. Default 0.", min=0)
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="Of the rows, those of this base model.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Of the rows, those of this arm, such as ours.")] = None,
    sft: Annotated[
        Path | None, typer.Option(help="Fine-tune models that aren't tuned to a set by this recipe first.")
    ] = None,
    second: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE of the second round's reward (`with Iter. RL` of Table 6).")
    ] = None,
    recipes: Annotated[Path, typer.Option(help="Folder of MODEL.yaml.")] = Path("configs/paper"),
    lpips: Annotated[Path | None, typer.Option(help="Folder with LPIPS's weights, see docs/models.md.")] = None,
    fid: Annotated[Path | None, typer.Option(help="Folder with FID's weights, see docs/models.md.")] = None,
    scorer: Annotated[
        list[str] | None, typer.Option(help="No-reference score(s) of each result; as of `score`.")
    ] = None,
    pictures: Annotated[bool, typer.Option("--pictures", help="Keep the results as PNG.")] = False,
    batch: Annotated[int, typer.Option(help="Images restored together.", min=1)] = 8,
    tile: Annotated[int, typer.Option(help="Restore larger pictures in tiles of this side; 0 whole.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="Of the measurements: auto, cpu, cuda, ...")] = "auto",
    jobs: Annotated[int, typer.Option(help="Trainings and measurements side by side.", min=1)] = 1,
    hours: Annotated[float, typer.Option(help="Longest time of one of them.")] = 72.0,
    gpu_kind: Annotated[str, typer.Option(help="Of the estimate: h100, a100, ...")] = "h100",
    dry_run: Annotated[bool, typer.Option("--dry-run", "--plan", help="Show the plan; start nothing.")] = False,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Go on without the cells whose set or model isn't there.")
    ] = False,
) -> None:
    """Train and measure every cell of a table that isn't finished.

    restorl paper run 1 --data data --models models --dry-run

    restorl paper run 3 --data data/Datasets --models models --model diffbir --jobs 2 --skip-missing

    restorl paper run all --data data/paper --models models/paper --scale tiny --jobs 2

    Ended in any way, the same command goes on; no finished cell is repeated. On a Ray cluster that runs already the
    trainings share it by `cluster.address=auto`.
    """
    from cluster.paper.cells import Folders, Measuring
    from cluster.paper.measuring import published_of
    from cluster.paper.places import Models, Roots
    from cluster.paper.plan import Wanted, make_plan
    from cluster.paper.scales import scale_of
    from cluster.paper.tables import tables_of

    for word in (*(overrides or []), *(second or [])):
        if "=" not in word:
            raise UserMistake(f"{word}: behind the table stand KEY=VALUE of a recipe; folders by --data and --models")
    with as_mistake(ValueError):
        wanted = Wanted(
            tables_of(table),
            Folders(out.absolute()),  # a cluster's processes have other working directories
            Roots.of(data or []),
            Models.of(models or []),
            scale_of(scale),
            tuple(dict.fromkeys(seed or [0])),
            _known_models(model or []),
            _known_arms(arm or []),
            tuple(overrides or []),
            tuple(second or []),
            _absolute(sft),
            recipes.absolute(),
            Measuring(
                batch,
                tile or scale_of(scale).tile,
                device,
                tuple(scorer or []),
                _absolute(lpips),
                _absolute(fid),
                pictures,
            ),
        )
        _check_scorers(scorer or [])
        published_of(wanted.measuring)  # so that weights that are absent are told before anything runs
        plan = make_plan(wanted)
    print("\n".join(_plan_lines(wanted, plan, gpu_kind)))
    if plan.missing and not skip_missing:
        say(
            f"{len(plan.missing)} cells lack what is named above; add it, or go on without them by --skip-missing",
            red=True,
        )
        raise typer.Exit(2)
    if dry_run:
        return
    if not plan.jobs:
        print(f"nothing is left to do; restorl paper table {table} --out {out}")
        return
    try:
        failed = [outcome for outcome in _run(plan.jobs, wanted.folders, jobs, hours) if outcome.cause]
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(str(error) or "stopped; the same command goes on") from None
    if failed:
        print(f"{len(failed)} of {len(plan.jobs)} jobs failed; the same command tries them again:")
        for outcome in failed:
            print(f"  {outcome.label}: {outcome.cause} (log: {outcome.log})")
    if plan.missing:
        print(f"{len(plan.missing)} cells were left out for lack of what is named above")
    print(f"restorl paper table {table} --out {out}")
    raise typer.Exit(int(bool(failed)))


@paper_app.command("table")
@guarded
def paper_table(
    table: Number,
    out: Out = OUT,
    form: Annotated[str, typer.Option("--format", help="markdown, latex, csv or json.")] = "markdown",
    write: Annotated[
        Path | None, typer.Option(help="Write all four forms into this folder instead of printing one.")
    ] = None,
) -> None:
    """The table from the cells that are finished, in the paper's layout, with the paper's figures and the difference.

    restorl paper table 1

    restorl paper table 6 --format latex > ablations.tex

    restorl paper table all --write docs/paper_tables
    """
    from cluster.files import write_text
    from cluster.paper.cells import Folders
    from cluster.paper.filled import fill
    from cluster.paper.forms import FORMS
    from cluster.paper.results import every_result, images_of
    from cluster.paper.tables import tables_of

    if form not in FORMS:
        raise UserMistake(f"--format {form}: choose one of {', '.join(FORMS)}")
    with as_mistake(ValueError):
        cells = Folders(out).cells
        chosen, results = tables_of(table), list(every_result(cells))
        images = images_of(cells, results)
    if not results:
        raise UserMistake(f"{out} holds no finished cell; make some by `restorl paper run {table} --out {out}`")
    for of in chosen:
        filled = fill(of, results, images)
        if write is None:
            print(FORMS[form][1](filled), end="" if of is chosen[-1] else "\n")
            continue
        write.mkdir(parents=True, exist_ok=True)
        for suffix, made in FORMS.values():
            file = write / f"table{of.number}.{suffix}"
            write_text(file, made(filled))
            print(file)


@paper_app.command("job", hidden=True)
@guarded
def paper_job(
    file: Annotated[Path, typer.Argument(help="job.json, as `restorl paper run` wrote it.")],
    with_starter: Annotated[
        bool, typer.Option("--with-starter", help="End when standard input does, which whoever started this holds.")
    ] = False,
) -> None:
    """One job of a table, in this process.

    restorl paper job runs/paper/jobs/diffbir.lol_v2_real.ours.s0/job.json
    """
    from cluster.cli.paper_job import do_job

    if with_starter:
        from cluster.paper.lifeline import end_with_starter

        end_with_starter()
    do_job(file)


def _absolute(path: Path | None) -> Path | None:
    return path.absolute() if path else None


def _known_models(names: Sequence[str]) -> frozenset[str]:
    from cluster.paper.tables import MODELS

    if unknown := [name for name in names if name not in MODELS]:
        raise ValueError(f"--model {unknown[0]}: choose one of {', '.join(MODELS)}")
    return frozenset(names)


def _known_arms(names: Sequence[str]) -> frozenset[str]:
    from cluster.paper.arms import arm_of

    return frozenset(arm_of(name).name for name in names)


def _check_scorers(words: Sequence[str]) -> None:
    """Raises UserMistake: a scorer that can't be made, which else each job would find out."""
    from cluster.cli.scorer_text import named_scorer

    for word in words:
        named_scorer(word)


def _plan_lines(wanted: Wanted, plan: Plan, gpu_kind: str) -> list[str]:
    """For people."""
    from cluster.paper.cells import TUNE
    from cluster.paper.hours import hours_of
    from cluster.plan.gpus import FACTOR
    from cluster.plan.gpus import gpu_kind as kind_of
    from cluster.run.machine import this_machine

    with as_mistake(ValueError):
        kind = kind_of(gpu_kind)
    trainings = sum(job.run is not None and job.form != TUNE for job in plan.jobs)
    tunings = sum(job.form == TUNE for job in plan.jobs)
    lines = [f"Table {table.number}: {table.title}" for table in wanted.tables]
    lines += [f"scale {wanted.scale.name}: {wanted.scale.told}"]
    lines += [f"  {name}: {root}" for name, root in sorted(plan.roots.items())]
    lines += [f"  {told}: taken as it is, not fine-tuned to the set (--sft)" for told in plan.as_they_are]
    lines.append(
        f"{plan.cells + len(plan.done) + len(plan.missing)} cells: {len(plan.done)} finished, {len(plan.missing)} "
        f"missing, {plan.cells} to measure in {len(plan.jobs)} jobs ({tunings} fine-tunings, {trainings} trainings)"
    )
    if plan.jobs:
        found = hours_of(plan, kind, this_machine())
        hours = found.training + found.measuring
        if hours:
            lines.append(
                f"about {hours:.3g} GPU hours on {kind.name}: training {found.training:.3g}, measuring "
                f"{found.measuring:.3g}; an estimate within a factor of {FACTOR}"
            )
        if found.unscored:
            lines.append(f"  without scoring in {found.unscored} of them, whose scorer's time isn't known")
        if found.unknown:
            more = f", and {len(found.unknown) - 1} more" if len(found.unknown) > 1 else ""
            lines.append(f"no estimate of {len(found.unknown)} jobs ({found.unknown[0]}{more})")
    reasons: dict[str, list[str]] = {}
    for label, reason in plan.missing.items():
        reasons.setdefault(reason, []).append(label)
    for reason, labels in reasons.items():
        lines.append(f"missing for {len(labels)} cells, such as {labels[0]}: {reason}")
    return lines


def _run(planned: Sequence[Job], folders: Folders, jobs: int, hours: float) -> list[Outcome]:
    from cluster.cli.paper_job import JOB_FILE, LOG_FILE
    from cluster.files import write_text
    from cluster.paper.side_by_side import Task, side_by_side

    tasks = list[Task]()
    for job in planned:
        folder = folders.job(job.label)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / JOB_FILE, json.dumps({"out": str(folders.out), "job": job.plain()}, indent=1) + "\n")
        command = [sys.executable, "-m", "cluster.cli", "paper", "job", str(folder / JOB_FILE), "--with-starter"]
        tasks.append(Task(job.label, command, folder / LOG_FILE, job.needs))
    told = set[str]()
    shows = sys.stderr.isatty()

    with Counter() as bar:

        def changed(running: Sequence[str], outcomes: Sequence[Outcome]) -> None:
            bar(f"{len(running)} running", len(outcomes), len(tasks))
            for outcome in outcomes:
                if outcome.label not in told and not shows:
                    ended = f"failed: {outcome.cause}" if outcome.cause else "done"
                    say(f"[{len(told) + 1}/{len(tasks)}] {outcome.label}: {ended}, {outcome.seconds:.0f} s")
                told.add(outcome.label)

        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        # Their logs have the stack trace of every error.
        environment = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE", DEBUG: "1"} | os.environ
        with as_mistake(ValueError):
            return side_by_side(tasks, jobs, hours * 3600, changed, environment)
