"""`restorl paper figure`: figures 1, 2, 5 and 6 of the paper, of your own results and runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.compare import Asked, Crops, Lq, Matching, Protocols, Scorers, SetName, Split, measured
from cluster.cli.errors import UserMistake, as_mistake, guarded
from cluster.cli.output import print_table

if TYPE_CHECKING:
    from cluster.compare.measured import Comparison
    from cluster.compare.pictures import Crop

SCORES, TEASER, MORE, COURSES = 1, 2, 5, 6
PICTURES = {TEASER: 1, MORE: 4}  # that a figure of strips shows unless --crop says which
FORMS = (".png", ".pdf", ".svg")
DEFAULT_SCORER = "lite0_levels"


@guarded
def paper_figure(
    number: Annotated[int, typer.Argument(help="1, 2, 5 or 6.", metavar="NUMBER")],
    folders: Annotated[
        list[str],
        typer.Argument(
            help="Of figure 6 runs, of the others folders of results; each FOLDER or NAME=FOLDER.", metavar="FOLDER ..."
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write: .png, .pdf, or, of figures 1 and 6, .svg.")],
    gt: Annotated[Path | None, typer.Option(help="Folder of the originals; with --set, the set's root.")] = None,
    lq: Lq = None,
    set_name: SetName = None,
    split: Split = "test",
    match: Matching = None,
    protocol: Protocols = None,
    scorer: Scorers = None,
    crop: Crops = None,
    pictures: Annotated[int | None, typer.Option(help="Of figures 2 and 5: pictures to show; 1 and 4.", min=1)] = None,
    width: Annotated[int, typer.Option(help="Of figures 2 and 5: pixels of each picture.", min=32)] = 320,
) -> None:
    """Figure 1: histograms of scores with their distance to the originals'; 2 and 5: strips; 6: rewards of runs.

    restorl paper figure 1 SFT=results/sft RL=results/rl --gt data/test/target --scorer lite0_levels --out fig1.pdf

    restorl paper figure 2 base=results/sft Rec.=results/rec IQA=results/rl --gt data/test/target --lq data/test/input
    --crop 00690:120,40,64,64 --out fig2.png

    restorl paper figure 6 IQA=runs/rl Rec.=runs/rec --out fig6.pdf
    """
    form = out.suffix.lower()
    if number not in (SCORES, TEASER, MORE, COURSES):
        raise UserMistake(f"figure {number}: choose 1 (scores), 2 or 5 (pictures), or 6 (rewards)")
    if form not in FORMS or (form == ".svg" and number in PICTURES):
        raise UserMistake(f"--out {out}: give a name that ends in .png or .pdf, of figures 1 and 6 also .svg")
    if number == COURSES:
        given = {
            **{"--gt": gt, "--lq": lq, "--set": set_name, "--match": match, "--protocol": protocol},
            **{"--scorer": scorer, "--crop": crop, "--pictures": pictures},
        }
        if wrong := [option for option, value in given.items() if value is not None]:
            raise UserMistake(f"{wrong[0]} has no part in figure 6, which is of runs")
        _write(out, _courses(folders, form[1:]))
        return
    if gt is None:
        raise UserMistake(f"figure {number} is of results beside their originals: give --gt FOLDER")
    if number == SCORES and (crop or pictures):
        raise UserMistake("figure 1 shows scores, not pictures: leave out --crop and --pictures")
    if number != SCORES and scorer:
        raise UserMistake(f"figure {number} shows pictures, not scores: leave out --scorer")
    scorers = (scorer or [DEFAULT_SCORER]) if number == SCORES else []
    if len(scorers) > 1:
        raise UserMistake("figure 1 is of one --scorer; restorl compare --out draws one of each")
    found, crops = measured(
        Asked(folders, gt, lq, set_name, split, match, protocol or [], scorers, crop or [], least=1)
    )
    if number == SCORES:
        _write(out, _scores(found, form[1:]))
    else:
        _write(out, _strips(found, pictures or PICTURES[number], crops, width, form[1:]))


def _scores(comparison: Comparison, form: str) -> bytes:
    from cluster.compare.page import distances, histogram

    scorer = comparison.scorers[0]
    scores, truth = comparison.scores(scorer)
    drawn = histogram(comparison, scorer, form)
    if drawn is None:
        raise UserMistake(f"{scorer} has a score of no picture in all folders and its original: nothing to draw")
    away = distances(comparison)[scorer]
    rows = [[name, f"{sum(v) / len(v):.4f}", f"{away[name]:.4f}"] for name, v in scores.items()]
    rows.append(["GT", f"{sum(truth) / len(truth):.4f}", "-"])
    print_table(["", "mean", "W1 to GT"], rows, f"{scorer} of {len(truth)} pictures")
    return drawn


def _strips(comparison: Comparison, count: int, crops: list[Crop], width: int, form: str) -> bytes:
    from cluster.compare.page import encoded
    from cluster.compare.pictures import shown_crops, strips
    from cluster.report.strips import draw_strips

    shown = shown_crops(comparison, len(crops) or count, crops)
    if not shown:
        raise UserMistake("no picture of which every folder has a readable result: nothing to draw")
    return encoded(draw_strips(strips(comparison, shown), width), form)


def _courses(folders: list[str], form: str) -> bytes:
    from cluster.compare.courses import course, read_runs
    from cluster.compare.opening import named
    from cluster.report.figures import reward_courses

    with as_mistake(ValueError):
        runs = read_runs(named(folders))
    courses = [course(name, records) for name, records in runs.items()]
    rows = [
        [c.name, str(c.iterations), f"{c.first:.4f}", f"{c.last:.4f}", f"{c.scatter:.4f}", f"{c.rise:+.1f}"]
        for c in courses
    ]
    print_table(
        ["", "iterations", "first", "last", "scatter", "rise/scatter"], rows, "rewards; ends are means of a tenth"
    )
    drawn = reward_courses(runs, form)
    assert drawn is not None  # `read_runs` holds that they have rewards
    return drawn


def _write(out: Path, drawn: bytes) -> None:
    from restoration.whole_files import written_whole

    out.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(out) as temporary:
        temporary.write_bytes(drawn)
    print(out)
