"""What a finished cell leaves: a folder with one line an image, as `restorl evaluate --csv` writes it, and cell.json.

cell.json is written last and whole: a cell is finished if, and only if, it is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cluster.files import write_text
from cluster.paper.cells import Cell, Key, label_of
from cluster.paper.gains import Images, Place
from restoration.datasets.matching import DataError
from restoration.evaluate import counts, has_scenes, mean_values, read_csv, scene_means, write_csv
from restoration.figures import Row

CELL_FILE, IMAGES_FILE, PICTURES = "cell.json", "images.csv", "pictures"


@dataclass(frozen=True)
class Result:
    """
    Attributes:
        told: the protocol in words.
        n: pictures that were measured; published: that the published test has, None where that isn't known.
        means, counts: of each column of images.csv, over how many pictures.
        scenes: the means over scenes, where the field reports them besides.
        of_sets: figures that only a whole set has, such as fid.
        missing: pictures that lack a figure.
        versions: of the program and what it computes with.
    """

    key: Key
    set: str
    split: str
    settings: Mapping[str, Any]
    scale: str
    protocol: str
    told: str
    n: int
    published: int | None
    means: Mapping[str, float | None]
    counts: Mapping[str, int]
    scenes: Mapping[str, float | None] | None
    of_sets: Mapping[str, float]
    missing: int
    seconds: float
    versions: Mapping[str, str]

    @property
    def label(self) -> str:
        return label_of(self.key, self.set, self.split)

    def figure(self, name: str) -> float | None:
        """None where it wasn't measured or no picture has it."""
        return self.of_sets.get(name, self.means.get(name))

    def has(self, wanted: Sequence[str]) -> bool:
        return all(name in self.means or name in self.of_sets for name in wanted)


def result_of(
    cell: Cell,
    rows: Sequence[Row],
    *,
    scale: str,
    told: str,
    published: int | None,
    per_scene: bool,
    of_sets: Mapping[str, float],
    seconds: float,
    versions: Mapping[str, str],
) -> Result:
    """Of the rows of a cell.

    Raises:
        DataError: no picture has PSNR, or a figure of the whole set isn't finite: nothing was measured.
    """
    having = counts(rows)
    if not rows or not having["psnr"]:
        why = next((reason for row in rows for reason in row.missing.values()), "there are none")
        raise DataError(f"{cell.label}: none of {len(rows)} pictures could be measured; the first: {why}")
    if wrong := [name for name, value in of_sets.items() if not abs(value) < float("inf")]:
        raise DataError(f"{cell.label}: {wrong[0]} is {of_sets[wrong[0]]}, which is no figure")
    return Result(
        cell.key,
        cell.set,
        cell.split,
        cell.settings,
        scale,
        cell.protocol,
        told,
        len(rows),
        published,
        _finite(mean_values(rows)),
        having,
        _finite(scene_means(rows)) if per_scene and has_scenes(rows) else None,
        dict(of_sets),
        sum(bool(row.missing) for row in rows),
        seconds,
        dict(versions),
    )


def write_result(folder: Path, rows: Sequence[Row], result: Result) -> None:
    """Raises OSError: a file can't be written; there is no cell.json then."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / IMAGES_FILE, rows)
    write_text(folder / CELL_FILE, json.dumps(asdict(result), indent=1, allow_nan=False) + "\n")


def read_result(folder: Path) -> Result | None:
    """None of a cell that isn't finished.

    Raises:
        ValueError: a cell.json that is none.
    """
    file = folder / CELL_FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if lacking := {f.name for f in fields(Result)} - found.keys():
            raise ValueError(f"it has no {sorted(lacking)[0]}")
        return Result(**{**found, "key": Key(**found["key"])})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        what = f"{file} is no result of a cell ({error})"
        raise ValueError(f"{what}; remove its folder and run the table again") from None


def every_result(cells: Path) -> Iterator[Result]:
    """All that are finished, in the order of their names. Raises ValueError: as `read_result`."""
    for folder in sorted(p for p in cells.iterdir() if p.is_dir()) if cells.is_dir() else ():
        if (found := read_result(folder)) is not None:
            yield found


def images_of(cells: Path, results: Sequence[Result]) -> dict[Place, dict[int, Images]]:
    """The figures of every picture of these results, by place and seed.

    Raises:
        ValueError, FileNotFoundError: an images.csv that is damaged or has gone.
    """
    found: dict[Place, dict[int, Images]] = {}
    for r in results:
        rows = read_csv(cells / r.label / IMAGES_FILE)
        place = (r.key.model, r.key.trained_on, r.key.arm, r.set, r.split)
        found.setdefault(place, {})[r.key.seed] = {row.image_id: row.values for row in rows}
    return found


def differences(result: Result, cell: Cell) -> list[str]:
    """In what a finished cell was made otherwise than `cell` wants it: "key: its value, not the wanted one"."""
    was, wanted = dict(result.settings), dict(cell.settings)
    return [f"{k}: {was.get(k)}, not {wanted.get(k)}" for k in {**wanted, **was} if was.get(k) != wanted.get(k)]


def _finite(means: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if value != value else value for name, value in means.items()}
