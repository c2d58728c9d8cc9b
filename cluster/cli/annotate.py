"""`restorl annotate`: what people shall rate of a run, and what their ratings amount to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from cluster.cli.errors import UserMistake, as_mistake, guarded
from cluster.cli.output import Counter

annotate_app = typer.Typer(help="Let people rate a run's outputs, and make labels of it.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="Of `restorl annotate export`.", metavar="FOLDER")]
Ratings = Annotated[
    list[Path] | None,
    typer.Argument(help="Ratings besides those in FOLDER: .csv, or .json of Label Studio.", metavar="[RATINGS]..."),
]


@annotate_app.command("export")
@guarded
def export(
    run: Annotated[Path, typer.Argument(help="Folder of the run.", metavar="RUN")],
    out: Annotated[Path, typer.Option(help="Folder to write; must be new.")],
    checkpoint: Annotated[
        list[str] | None, typer.Option(help="Whose outputs: base, latest or an iteration; default: base and latest.")
    ] = None,
    images: Annotated[int, typer.Option(help="Photographs, the hardest of four times as many.", min=1)] = 24,
    outputs: Annotated[int, typer.Option(help="Outputs that are asked about.", min=1)] = 96,
    rollouts: Annotated[int, typer.Option(help="Of each photograph by each checkpoint.", min=1)] = 2,
    steps: Annotated[int, typer.Option(help="Of each chain whose clean estimates are taken, too.", min=1)] = 2,
    kind: Annotated[str, typer.Option(help="Questions: rate (five levels), pair (which is better) or both.")] = "both",
    repeats: Annotated[float, typer.Option(help="Share of questions that come twice.")] = 0.08,
    traps: Annotated[float, typer.Option(help="Share of questions with a known answer.")] = 0.08,
    split: Annotated[str, typer.Option(help="Of the run's data: train or heldout.")] = "train",
    scorer: Annotated[str | None, typer.Option(help="As of `restorl score`; default: the run's reward.")] = None,
    seed: Annotated[int, typer.Option(help="Of noise and order.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Pick what is worth rating: hard photographs first, spread over scores, steps and checkpoints.

    The outputs are made from the run's checkpoints, beside them stand input and ground truth; some questions come
    twice, some are traps (ground truth against input).

    restorl annotate export runs/demo --out annotate/round1

    restorl annotate export runs/demo --out annotate/round1 --checkpoint base --checkpoint 40 --kind pair
    """
    from cluster.annotate import export as exporting
    from cluster.annotate.picking import ExportSettings
    from cluster.cli.scorer_text import named_scorer
    from cluster.models import load_run_config
    from cluster.report.chains import score_of
    from restoration.devices import device_of
    from reward_service.annotation.manifest import KINDS, REPEAT, TRAP

    kinds: dict[str, Any] = {"both": KINDS, **{str(name): (name,) for name in KINDS}}
    if kind not in kinds:
        raise UserMistake(f"--kind {kind}: choose {', '.join(kinds)}")
    config = load_run_config(run)
    exporting.require_free(out)  # before a scorer is loaded
    with as_mistake(ValueError, RuntimeError), Counter() as shown:
        settings = ExportSettings(
            images=images,
            outputs=outputs,
            rollouts=rollouts,
            steps=steps,
            kinds=kinds[kind],
            repeats=repeats,
            traps=traps,
            split=split,
            seed=seed,
        )
        place = str(device_of(device))
        score = score_of(config) if scorer is None else named_scorer(scorer)[2].score
        main = config.reward.resolved.main
        called = scorer or str(next((t.scorer for t in config.reward.resolved.terms if t.name == main), main))
        given = checkpoint or [exporting.BASE, exporting.LATEST]
        found = exporting.export(run, config, out, settings, score, called, given, place, shown)
    tasks = found.manifest.tasks
    for note in found.notes:
        print(note)
    print(
        f"{len(tasks)} questions on {len(found.manifest.pictures)} pictures, {sum(t.role == REPEAT for t in tasks)} of "
        f"them repeats and {sum(t.role == TRAP for t in tasks)} for traps: {out}"
    )


@annotate_app.command("clean")
@guarded
def clean(
    folder: Folder,
    ratings: Ratings = None,
    out: Annotated[Path, typer.Option(help="Folder of the labels.")] = Path("labels"),
    least_agreement: Annotated[
        float | None, typer.Option(help="With the others, below which an annotator is left out (0 is chance).")
    ] = None,
    most_traps_failed: Annotated[
        float | None, typer.Option(help="Share of traps, above which an annotator is left out.")
    ] = None,
    model: Annotated[str, typer.Option(help="Of comparisons: bradley-terry or thurstone.")] = "bradley-terry",
    way: Annotated[str, typer.Option(help="Of soft labels: density or mass of a normal distribution.")] = "density",
) -> None:
    """Make labels of the ratings, and a page that tells how far people agree.

    Who is at random or fails traps is left out, by name. Qualities by maximum likelihood with each annotator's bias and
    inconsistency (ITU-T P.910, Annex E), soft labels over five levels as DeQA-Score's, preferences from comparisons.

    restorl annotate clean annotate/round1 --out labels/round1

    restorl annotate clean annotate/round1 label_studio.json anna.csv --out labels/round1
    """
    from cluster.annotate.page import REPORT, number, write_page
    from reward_service.annotation import manifest as manifests
    from reward_service.annotation.cleaning import clean as cleaned_of
    from reward_service.annotation.gathering import gather
    from reward_service.annotation.label_table import write_labels
    from reward_service.annotation.screening import Rules
    from reward_service.annotation.strengths import MODELS
    from reward_service.training.labels import Way

    if way not in get_args(Way):
        raise UserMistake(f"--way {way}: choose {' or '.join(get_args(Way))}")
    if model not in MODELS:
        raise UserMistake(f"--model {model}: choose {' or '.join(MODELS)}")
    with as_mistake(ValueError):
        given: dict[str, Any] = {"least_agreement": least_agreement, "most_traps_failed": most_traps_failed}
        rules = Rules(**{name: value for name, value in given.items() if value is not None})
        manifest = manifests.read(folder)
        manifests.verify(folder, manifest)
        gathered = gather(folder, manifest, ratings or ())
        found = cleaned_of(manifest, gathered.votes, rules, model, way)  # type: ignore[arg-type]
    how = {"rules": vars(rules), "model": model, "way": way}
    files = write_labels(out, folder, manifest, found, how)
    page = write_page(out / REPORT, folder, manifest, found, rules)
    for who, why in found.left_out.items():
        print(f"left out: {who} {why}")
    for note in (*gathered.notes, *found.notes):
        print(note)
    of = found.agreement
    if found.rated:
        print(
            f"{len(found.rated)} pictures by {len(found.raters)} annotators: alpha {number(of.alpha)}, reliability of "
            f"a mean {number(of.mean)}"
        )
    if found.compared:
        print(f"{len(found.compared)} pairs: alpha {number(of.alpha_in_pairs)}")
    print("\n".join(map(str, [*files, page])))


@annotate_app.command("convert")
@guarded
def convert(
    folder: Folder,
    out: Annotated[Path, typer.Argument(help="FILE.csv, or FILE.json for Label Studio.", metavar="FILE")],
    ratings: Ratings = None,
    kind: Annotated[str, typer.Option(help="For Label Studio, whose projects have one kind: rate or pair.")] = "rate",
    root: Annotated[
        str | None, typer.Option(help="For Label Studio: what stands before the path of a picture.")
    ] = None,
) -> None:
    """Write the ratings as a table, or the questions and ratings as Label Studio has them.

    restorl annotate convert annotate/round1 ratings.csv

    restorl annotate convert annotate/round1 pairs.json --kind pair
    """
    from reward_service.annotation import manifest as manifests
    from reward_service.annotation.gathering import gather
    from reward_service.annotation.label_studio import ROOT, write_tasks
    from reward_service.annotation.table import write_table

    if out.suffix not in (".csv", ".json"):
        raise UserMistake(f"{out}: choose a name that ends in .csv, or in .json for Label Studio")
    if kind not in manifests.KINDS:
        raise UserMistake(f"--kind {kind}: choose {' or '.join(manifests.KINDS)}")
    with as_mistake(ValueError):
        manifest = manifests.read(folder)
        gathered = gather(folder, manifest, ratings or ())
        if out.suffix == ".csv":
            files = [write_table(out, manifest, gathered.votes)]
        else:
            files = write_tasks(out, manifest, kind, gathered.votes, ROOT if root is None else root)  # type: ignore[arg-type]
    print("\n".join([*gathered.notes, *map(str, files)]))
