"""`restorl data`: stand-ins for public sets, what is wrong with a set on the disk, the demo's own sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.errors import UserMistake, as_mistake, guarded, only_with
from cluster.cli.output import Counter

if TYPE_CHECKING:
    from restoration.datasets.paired import PairedFolder

data_app = typer.Typer(help="Make data sets, and look at those that are there.", no_args_is_help=True)

Name = Annotated[
    str, typer.Argument(help="Name of a public set, such as rain100h; docs/data.md has all.", metavar="SET")
]
PHOTOS = Path("data/photos")


@data_app.command("demo")
@guarded
def data_demo(
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    photos: Annotated[
        Path, typer.Option(help="Folder with train/ and heldout/ photographs, and unseen/ if you like.")
    ] = PHOTOS,
    task: Annotated[list[str] | None, typer.Option(help="rain, motion_blur, defocus, low_light; all if none.")] = None,
    crop: Annotated[int, typer.Option(help="Side of a tile.")] = 128,
    train_count: Annotated[int, typer.Option(help="Training tiles.")] = 200,
    test_count: Annotated[int, typer.Option(help="Held-out tiles.")] = 48,
    seed: Annotated[int, typer.Option(help="Seed of places and degradations.")] = 0,
) -> None:
    """Degrade the shipped photographs into paired folders, in the layout of public sets.

    restorl data demo data/demo --task rain
    """
    from restoration.degradations import KINDS
    from restoration.demo_data import make_demo

    with as_mistake(ValueError):
        tasks: Any = task or KINDS
        made = make_demo(photos, out, tasks, seed, crop, train_count=train_count, test_count=test_count)
    for name, folder in made.items():
        print(f"{name}: {folder}")


@data_app.command("make")
@guarded
def data_make(
    name: Name,
    out: Annotated[Path, typer.Argument(help="Folder to write to; `data.root` may name it then.")],
    layout: Annotated[str | None, typer.Option(help="One of the set's layouts; default its first.")] = None,
    photos: Annotated[Path, typer.Option(help="Folder with train/ and heldout/ photographs.")] = PHOTOS,
    side: Annotated[int, typer.Option(help="Side of a tile.")] = 128,
    train: Annotated[int, typer.Option(help="Training tiles; of arrays at most as many as the set has scenes.")] = 8,
    test: Annotated[int, typer.Option(help="Tiles of each other split, likewise.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of places and degradations.")] = 0,
) -> None:
    """Write a small stand-in for a public set, of photographs, in exactly its layout.

    restorl data make rain100h data/rain100h
    """
    from restoration.datasets.make import make_set

    with as_mistake(ValueError):
        made = make_set(name, photos, out, layout=layout, seed=seed, side=side, train=train, test=test)
    print(f"{out}: {', '.join(f'{split} {count}' for split, count in made.items())}")


@data_app.command("check")
@guarded
def data_check(
    name: Name,
    root: Annotated[Path, typer.Argument(help="Folder that the set was unpacked in.")],
    also: Annotated[
        list[Path] | None, typer.Option(help="Other pictures you train on, such as LOL-v1's; may be repeated.")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet here, a PNG.")] = None,
) -> None:
    """Decode a set once: counts, pairs, sizes, depth, pictures in both train and test. Status 1 on problems.

    restorl data check lol_v2_real data/LOLv2 --also data/LOLv1/our485 --sheet lol.png
    """
    from restoration.datasets.check import check_set
    from restoration.datasets.sheet import contact_sheet
    from restoration.images import write_image

    if sheet is not None and sheet.suffix.lower() != ".png":
        raise UserMistake(f"--sheet {sheet}: a contact sheet is a PNG; give a name that ends in .png")
    with as_mistake(ValueError), Counter() as progress:
        report = check_set(name, root, tuple(also or ()), progress)
    print("\n".join(report.lines()))
    if sheet is not None and any(split.shown for split in report.splits):
        import numpy as np

        write_image(sheet, np.asarray(contact_sheet(report.splits)))
        print(f"contact sheet: {sheet}")
    raise typer.Exit(int(not report.ok))


@dataclass(frozen=True)
class Compared:
    """What `restorl evaluate` compares: pairs, by a protocol; `per_scene` where papers give means over scenes, too."""

    pairs: PairedFolder
    protocol: str
    per_scene: bool = False


def compared(
    root: Path,
    gt: Path | None,
    match: str | None,
    name: str | None,
    split: str | None,
    results: Path | None,
    protocol: str | None,
) -> Compared:
    """Two folders, or a split of the public set `name` in `root`, by its own protocol unless one is given.

    `results` is a folder of pictures that are measured in the place of the set's degraded ones.

    Raises:
        UserMistake: neither or both are given; an unknown set, split or protocol; `split` of folders, `match` of a set.
        FileNotFoundError, DataError: pairs that can't be opened; a set without originals.
    """
    from restoration.datasets.opening import open_set, public_set, with_results
    from restoration.datasets.paired import PairedFolder
    from restoration.metrics import DEFAULT_PROTOCOL
    from restoration.metrics import protocol as find_protocol

    if (gt is None) == (name is None) or (results is not None and name is None):
        raise UserMistake("give the folders LQ and GT, or the root of a set with --set NAME")
    only_with("--set NAME", name is not None, split=split)
    if name is not None and match is not None:
        raise UserMistake(f"--match {match} with --set {name}: a set knows its pairs; leave --match out")
    with as_mistake(ValueError):
        of = public_set(name) if name is not None else None
        chosen = find_protocol(protocol or (of.protocol if of else None) or DEFAULT_PROTOCOL).name
        if of is not None:
            data = open_set(of.name, root, split or "test", check=False)
            return Compared(with_results(data, results) if results else data, chosen, of.per_scene)
    assert gt is not None
    return Compared(PairedFolder(root, gt, match or "stem", check=False), chosen)  # type: ignore[arg-type]
