"""What is done for a table: cells, which are measurements, and jobs, which train a model and measure it. Pure.

A cell is one base model after one arm and one seed on the test of one set. A job is a process: it trains what its cells
measure, if they aren't of the base model itself, and then measures them one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

TUNE: Final = "tune"
MEASURE: Final = "measure"


@dataclass(frozen=True)
class Key:
    """What is trained: of which base model, on which set, by which arm, with which seed."""

    model: str
    trained_on: str
    arm: str
    seed: int

    @property
    def label(self) -> str:
        return f"{self.model}.{self.trained_on}.{self.arm}.s{self.seed}"


def label_of(key: Key, name: str, split: str) -> str:
    """Of the cell that is this split of the set `name`."""
    part = split.rpartition("/")[2]
    return f"{key.label}.{name}" + (f"-{part}" if part != "test" else "")


@dataclass(frozen=True)
class Cell:
    """
    Attributes:
        root: `data.root` of the set.
        limit: pictures that are measured; None for all.
        settings: all that its figures rest on, by which a finished cell is known again.
    """

    key: Key
    set: str
    split: str
    root: Path
    protocol: str
    limit: int | None
    settings: Mapping[str, Any]

    @property
    def label(self) -> str:
        return label_of(self.key, self.set, self.split)


@dataclass(frozen=True)
class Measuring:
    """How all cells are measured besides.

    Attributes:
        tile: restore larger pictures in tiles of this side; 0 restores each whole.
        scorers: as words of the command line.
        lpips, fid: folders of published weights.
        pictures: keep the results as PNG beside the figures.
    """

    batch: int = 8
    tile: int = 0
    device: str = "auto"
    scorers: tuple[str, ...] = ()
    lpips: Path | None = None
    fid: Path | None = None
    pictures: bool = False

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of figures that a cell must have besides PSNR and SSIM to be finished."""
        names = tuple(word.split(",")[0] for word in self.scorers)
        return (*names, *(["lpips"] if self.lpips else []), *(["fid"] if self.fid else []))


@dataclass(frozen=True)
class Job:
    """A process of a table.

    Attributes:
        form: "tune" fine-tunes a base model on a set and writes the folder `run`; "measure" measures cells, after a
            training in `run` unless that is None.
        recipe, words: of the training.
        model: folder that the training starts from, or that is measured; where `exported_from`, a run, is given, its
            result is written there first.
        needs: labels of jobs that must be done before.
    """

    label: str
    form: Literal["tune", "measure"]
    recipe: Path
    words: tuple[str, ...]
    model: Path
    run: Path | None = None
    single: bool = False
    exported_from: Path | None = None
    needs: tuple[str, ...] = ()
    cells: tuple[Cell, ...] = ()
    measuring: Measuring = field(default_factory=Measuring)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return _plain(asdict(self))  # type: ignore[no-any-return]

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Job:
        """What `plain` gave. Raises KeyError, TypeError: it is none."""

        def path(value: str | None) -> Path | None:
            return None if value is None else Path(value)

        cells = [Cell(**{**cell, "key": Key(**cell["key"]), "root": Path(cell["root"])}) for cell in found["cells"]]
        measuring = dict(found["measuring"])
        measuring |= {"scorers": tuple(measuring["scorers"])} | {n: path(measuring[n]) for n in ("lpips", "fid")}
        paths = {name: path(found[name]) for name in ("recipe", "model", "run", "exported_from")}
        lists = {name: tuple(found[name]) for name in ("words", "needs")}
        return cls(**{**found, **paths, **lists, "cells": tuple(cells), "measuring": Measuring(**measuring)})


@dataclass(frozen=True)
class Folders:
    """Where the parts of `--out` lie."""

    out: Path

    def cell(self, cell: Cell) -> Path:
        return self.cells / cell.label

    @property
    def cells(self) -> Path:
        return self.out / "cells"

    def run(self, key: Key) -> Path:
        return self.out / "runs" / key.label

    def tuned(self, model: str, trained_on: str) -> Path:
        return self.out / "tuned" / f"{model}_{trained_on}"

    def exported(self, key: Key) -> Path:
        return self.out / "exported" / key.label

    def job(self, label: str) -> Path:
        return self.out / "jobs" / label


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
