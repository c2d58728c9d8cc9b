"""`restorl compare`: results of several methods, other people's included, held against their originals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.errors import UserMistake, as_mistake, guarded, say
from cluster.cli.output import Counter, missing_lines, partial_csv
from cluster.cli.scorer_text import named_scorer

if TYPE_CHECKING:
    from cluster.compare.measured import Comparison
    from cluster.compare.pictures import Crop

Folders = Annotated[
    list[str], typer.Argument(help="Folders of results, each FOLDER or NAME=FOLDER.", metavar="A B [C ...]")
]
Gt = Annotated[Path, typer.Option(help="Folder of the originals; with --set, the set's root.")]
Lq = Annotated[Path | None, typer.Option(help="Folder of the degraded pictures, to show them too.")]
SetName = Annotated[str | None, typer.Option("--set", help="A public set by name (docs/data.md) in the folder GT.")]
Split = Annotated[str, typer.Option(help="With --set: which part of it.")]
Matching = Annotated[
    str | None,
    typer.Option(help="How names find their originals: stem, digits, group or sorted; default the first that fits."),
]
Protocols = Annotated[
    list[str] | None,
    typer.Option(
        help="How PSNR and SSIM are taken (docs/data.md); may be repeated. Default the set's, else lowlight_rgb."
    ),
]
Scorers = Annotated[list[str] | None, typer.Option(help="No-reference score(s); as of `score`.")]
Crops = Annotated[
    list[str] | None,
    typer.Option(
        help="Picture to show, ID or ID:X,Y,WIDTH,HEIGHT; may be repeated. Others: where methods differ most."
    ),
]


@guarded
def compare(
    folders: Folders,
    gt: Gt,
    lq: Lq = None,
    set_name: SetName = None,
    split: Split = "test",
    match: Matching = None,
    protocol: Protocols = None,
    scorer: Scorers = None,
    lpips: Annotated[Path | None, typer.Option(help="Folder with LPIPS's weights, see docs/models.md.")] = None,
    lpips_net: Annotated[list[str] | None, typer.Option(help="alex or vgg; may be repeated.")] = None,
    dists: Annotated[Path | None, typer.Option(help="Folder with DISTS's weights, see docs/models.md.")] = None,
    fid: Annotated[Path | None, typer.Option(help="Folder with FID's weights, see docs/models.md.")] = None,
    fid_kind: Annotated[list[str] | None, typer.Option(help="clean, legacy or patchN; may be repeated.")] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Add lite0_distance and lite0_frechet, stand-ins for LPIPS and FID.")
    ] = False,
    crop: Crops = None,
    strips: Annotated[int, typer.Option(help="Pictures to show.", min=0)] = 4,
    out: Annotated[Path | None, typer.Option(help="Write tables, pictures and a page into this folder.")] = None,
) -> None:
    """Results of several methods against their originals: a table, differences with interval and test, a page.

    restorl compare results/ours others/restormer --gt data/test/target --lq data/test/input --out compared

    restorl compare ours=runs/a/out base=runs/b/out --set rain100h --gt data/Datasets --scorer piqe
    """
    from cluster.compare.table import as_markdown

    if crop and out is None:
        raise UserMistake("--crop chooses what is shown: give --out FOLDER, too, for the pictures")
    comparison, crops = measured(
        Asked(
            *(folders, gt, lq, set_name, split, match, protocol or [], scorer or [], crop or []),
            published=(lpips, lpips_net or ["alex"], fid, fid_kind or ["clean"], dists),
            offline=offline,
            out=out,
        )
    )
    print(as_markdown(comparison), end="")
    if out is not None:
        from cluster.compare.page import write_comparison
        from cluster.compare.pictures import shown_crops

        files = write_comparison(out, comparison, shown_crops(comparison, strips, crops))
        print("\n".join(map(str, ["", *files])))
    incomplete = any(row.missing for m in comparison.measured for row in m.rows)
    raise typer.Exit(int(incomplete or bool(comparison.problems())))


@dataclass(frozen=True)
class Asked:
    """What the command line asks to be measured, as it was typed.

    Attributes:
        published: folder of LPIPS's weights, its nets, folder of FID's weights, its kinds, folder of DISTS's weights.
        out: where rows are kept that were made before an early end.
        least: folders there must be.
    """

    folders: list[str]
    gt: Path
    lq: Path | None
    set_name: str | None
    split: str
    match: Any
    protocol: list[str]
    scorer: list[str]
    crop: list[str]
    published: tuple[Path | None, Sequence[str], Path | None, Sequence[str], Path | None] = (None, (), None, (), None)
    offline: bool = False
    out: Path | None = None
    least: int = 2


def measured(asked: Asked) -> tuple[Comparison, list[Crop]]:
    """Open and measure the folders, and tell on stderr what is missing of which picture; and the crops to show.

    Raises:
        UserMistake, DataError, FileNotFoundError, CheckpointError: what can't be compared, before anything is measured.
    """
    from cluster.compare.measured import measure_all
    from cluster.compare.opening import Originals, named, open_methods, protocols_of, require_depth
    from cluster.compare.pictures import Crop, check_crops
    from restoration.evaluate import Row
    from restoration.metrics.perceptual import Lite0Metrics
    from restoration.metrics.published import Published

    if len(asked.folders) < asked.least:
        raise UserMistake(
            f"{len(asked.folders)} folder of results: a comparison takes at least {asked.least}; restorl evaluate "
            "measures one"
        )
    if asked.match not in (None, "stem", "digits", "group", "sorted"):
        raise UserMistake(f"--match {asked.match}: choose stem, digits, group or sorted")

    def published() -> Published:
        lpips, nets, fid, kinds, weights = asked.published
        return Published(lpips, fid, nets, kinds, weights)

    with as_mistake(ValueError):
        crops = [Crop.parse(text) for text in asked.crop]
        protocols = protocols_of(asked.protocol, asked.set_name)
        published()
        originals = Originals(asked.gt, asked.lq, asked.set_name, asked.split, asked.match)
        methods = open_methods(named(asked.folders), originals)
        check_crops(methods[0].data, crops)
        require_depth(methods, protocols)
    scorers = {name: judge.score for name, _, judge in map(named_scorer, asked.scorer)}
    made: list[Row] = []

    def keep(name: str, row: Row) -> None:
        made.append(Row(f"{name}/{row.image_id}", row.values, row.missing))

    with partial_csv(asked.out and asked.out / "compare.csv", made), Counter() as shown:
        stand_ins = Lite0Metrics if asked.offline else None
        found = measure_all(methods, protocols, scorers, published, shown, keep, stand_ins)
    for m in found.measured:
        if lines := missing_lines(list(m.rows)):
            incomplete = sum(bool(row.missing) for row in m.rows)
            say("\n".join([f"{m.method.name}: {incomplete} of {len(m.rows)} pictures lack figures:", *lines]))
    return found, crops
