"""Methods measured on the same pictures, and held against each other in pairs. Nothing is printed or drawn here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from cluster.compare.columns import AT, Column
from restoration.base_models.interface import SamplerSettings
from restoration.datasets.matching import some
from restoration.datasets.paired import PairedFolder
from restoration.evaluate import evaluate_pairs
from restoration.figures import Pixels, Row, ScoreFunction
from restoration.metrics import protocol
from restoration.metrics.compare import Paired
from restoration.metrics.compare import compare as compare_figures
from restoration.metrics.fid import FEATURES
from restoration.metrics.perceptual import Lite0Metrics
from restoration.metrics.published import Published

Progress = Callable[[str, int, int], None]
DISTANCE, FRECHET = "lite0_distance", "lite0_frechet"  # stand-ins for LPIPS and FID, under their own names
DARK, BRIGHT = 1, 16  # of 255: a result without a level above the first, its original with one above the last


@dataclass(frozen=True)
class Method:
    """Results of one method beside their originals; `is_input` where they are the degraded pictures themselves."""

    name: str
    data: PairedFolder
    is_input: bool = False


@dataclass(frozen=True)
class Whole:
    """A figure of all pictures together, of `count` pictures or tiles; NaN with the reason where there is none."""

    value: float
    count: int
    why: str = ""


@dataclass(frozen=True)
class Measured:
    """A method with its figures.

    Attributes:
        rows: of the pictures, in one order for all methods.
        whole: name of a figure of the set, such as `fid` -> it.
        doubts: what makes the files themselves doubtful, a sentence each.
    """

    method: Method
    rows: tuple[Row, ...]
    whole: Mapping[str, Whole] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()

    def column(self, key: str) -> dict[str, float]:
        return {row.image_id: row.values[key] for row in self.rows}


@dataclass(frozen=True)
class Difference:
    """One figure of two methods, the first minus the second, picture by picture; `why` where it can't be had."""

    key: str
    first: str
    second: str
    paired: Paired | None
    why: str = ""


@dataclass(frozen=True)
class Comparison:
    """What was measured, by protocols whose names are in the order of the columns."""

    protocols: tuple[str, ...]
    measured: tuple[Measured, ...]
    scorers: tuple[str, ...] = ()

    @property
    def image_ids(self) -> list[str]:
        return [row.image_id for row in self.measured[0].rows]

    @property
    def columns(self) -> list[Column]:
        """In the order of papers: against the originals, of the sets as wholes, scores without a reference."""
        first = self.measured[0]
        scores = {*self.scorers, *(f"gt_{scorer}" for scorer in self.scorers)}
        referenced = [key for key in first.rows[0].values if key not in scores]
        return [Column(key) for key in (*referenced, *first.whole, *self.scorers)]

    @property
    def methods(self) -> list[Measured]:
        """Without the degraded pictures."""
        return [m for m in self.measured if not m.method.is_input]

    def shared(self, key: str) -> list[str]:
        """The pictures of which every method has the figure: others would compare means of other pictures."""
        columns = [m.column(key) for m in self.measured]
        return [i for i in self.image_ids if not any(math.isnan(column[i]) for column in columns)]

    def value(self, measured: Measured, column: Column) -> float:
        """The mean over the pictures that all methods have the figure of, or that of the set; NaN where none is."""
        if column.key in measured.whole:
            return measured.whole[column.key].value
        ids, values = self.shared(column.key), measured.column(column.key)
        return math.fsum(values[i] for i in ids) / len(ids) if ids else math.nan

    def count(self, column: Column) -> int:
        """Pictures, or tiles, that a column is of; of methods with other numbers the least."""
        if column.key in self.measured[0].whole:
            return min(m.whole[column.key].count for m in self.measured)
        return len(self.shared(column.key))

    def differences(self) -> list[Difference]:
        """Every pair of methods in every figure that pictures have, always."""
        found = []
        for column in self.columns:
            if column.key in self.measured[0].whole:
                continue
            ids = self.shared(column.key)
            for first, second in combinations(self.methods, 2):
                a, b = ({i: m.column(column.key)[i] for i in ids} for m in (first, second))
                names = (column.key, first.method.name, second.method.name)
                if len(ids) < 2:
                    why = f"{len(ids)} of the pictures have it of every method: interval and test take at least two"
                    found.append(Difference(*names, None, why))
                else:
                    found.append(Difference(*names, compare_figures(a, b)))
        return found

    def scores(self, scorer: str) -> tuple[dict[str, list[float]], list[float]]:
        """A scorer's scores of each method and of the originals, of the pictures that have them everywhere."""
        truth = self.measured[0].column(f"gt_{scorer}")
        ids = [i for i in self.shared(scorer) if not math.isnan(truth[i])]
        return {m.method.name: [m.column(scorer)[i] for i in ids] for m in self.measured}, [truth[i] for i in ids]

    def problems(self) -> list[str]:
        """What a reader of the figures must know of them, a sentence each."""
        found = [f"{m.method.name}: {doubt}" for m in self.measured for doubt in m.doubts]
        for name in self.measured[0].whole:
            counts = {m.method.name: m.whole[name].count for m in self.measured}
            if len({*counts.values()}) > 1:
                told = ", ".join(f"{who} {count}" for who, count in counts.items())
                found.append(f"{name} is of other numbers of pictures ({told}) and does not compare")
            found += [f"{m.method.name}: no {m.whole[name].why}" for m in self.measured if m.whole[name].why]
        return found

    def notes(self) -> list[str]:
        """What belongs to the figures and speaks against none."""
        found = []
        for column in self.columns:
            count = self.count(column)
            if column.key in self.measured[0].whole:
                few = column.key != FRECHET and count <= FEATURES
                warning = f", below its {FEATURES} features: compare at equal n only" if few else ""
                found.append(f"{column.label} of n={count}{warning}")
            elif count < len(self.image_ids):
                found.append(f"{column.label} of the {count} of {len(self.image_ids)} pictures that all have it of")
        return found


def measure_all(
    methods: Sequence[Method],
    protocols: Sequence[str],
    scorers: Mapping[str, ScoreFunction],
    published: Callable[[], Published],
    progress: Progress = lambda what, done, total: None,
    on_row: Callable[[str, Row], None] = lambda name, row: None,
    offline: Callable[[], Lite0Metrics] | None = None,
) -> Comparison:
    """Measure every method under every protocol; a picture that can't be read has a row of its reason.

    Args:
        methods: of the same image ids.
        published: makes what measures LPIPS and FID of one method.
        progress: called with (method, pictures done, pictures in all).
        on_row: called with a method's name and each of its rows, when it is there.
        offline: makes what measures the offline stand-ins for LPIPS and FID of one method; None leaves them out.

    Raises:
        ValueError: no method, an unknown protocol.
    """
    if not methods or not protocols:
        raise ValueError("measure_all: no method, or no protocol")
    measured: list[Measured] = []
    for method in methods:
        figures = _Figures(published(), offline() if offline is not None else None)
        known = measured[0].rows if measured else ()
        found = _measured(method, protocols, scorers, figures, known, progress, on_row)
        order = {row.image_id: row for row in found.rows}
        ids = [row.image_id for row in (measured[0].rows if measured else found.rows)]
        measured.append(Measured(method, tuple(order[i] for i in ids), found.whole, found.doubts))
    return Comparison(tuple(protocols), tuple(measured), tuple(scorers))


def _measured(
    method: Method,
    protocols: Sequence[str],
    scorers: Mapping[str, ScoreFunction],
    figures: _Figures,
    known: Sequence[Row],
    progress: Progress,
    on_row: Callable[[str, Row], None],
) -> Measured:
    parts = []
    for place, name in enumerate(protocols):
        parts.append(
            evaluate_pairs(
                *(None, method.data, SamplerSettings(), scorers if place == 0 else {}, name),
                batch=1,
                known=known if place == 0 else (),
                on_image=figures.see if place == 0 else None,
                progress=lambda done, total: progress(method.name, done, total),
                tolerant=True,
                on_row=(lambda row: on_row(method.name, row)) if place == 0 else None,
                inputs_too=False,
            )
        )
    rows = figures.beside(_joined(parts, protocols))
    return Measured(method, tuple(rows), figures.whole(), figures.doubts(len(rows)))


class _Figures:
    """What sees the pictures of one method beside those who measure them by protocols and scorers."""

    def __init__(self, published: Published, offline: Lite0Metrics | None) -> None:
        self.published, self.offline = published, offline
        self._dark: list[str] = []

    def see(self, image_id: str, lq: Pixels, restored: Pixels, gt: Pixels) -> None:
        if int(restored.max()) <= DARK and int(gt.max()) > BRIGHT:
            self._dark.append(image_id)
        self.published.see(image_id, lq, restored, gt)
        if self.offline is not None:
            self.offline.add(image_id, restored, gt)

    def beside(self, rows: Sequence[Row]) -> list[Row]:
        found = self.published.beside(rows)
        if self.offline is None:
            return found
        far = self.offline.distances
        return [replace(r, values=r.values | {DISTANCE: far.get(r.image_id, math.nan)}) for r in found]

    def whole(self) -> dict[str, Whole]:
        found = {fid.name: _whole(fid.value, fid.count) for fid in self.published.fid}
        if self.offline is not None and not self.offline.distances:
            found[FRECHET] = Whole(math.nan, 0, f"{FRECHET}: no picture can be read")
        elif self.offline is not None:
            found[FRECHET] = _whole(self.offline.frechet, len(self.offline.distances))
        return found

    def doubts(self, count: int) -> tuple[str, ...]:
        found = [f"{name} is without pictures such as {why}" for name, why in self.published.left_out.items()]
        if self._dark:
            found.append(
                f"{len(self._dark)} of {count} results are black where their originals are not ({some(self._dark)}): "
                "NaN, or values of [0, 1] or of 8 bits in files of more levels; write them anew, from 0 to 255, or to "
                "65535 in 16 bits"
            )
        return tuple(found)


def _whole(value: Callable[[], float], count: int) -> Whole:
    try:
        return Whole(value(), count)
    except ValueError as error:
        return Whole(math.nan, count, str(error))


def _joined(parts: Sequence[Sequence[Row]], protocols: Sequence[str]) -> list[Row]:
    """The rows of all protocols as one, figures of a protocol under its name where there are several."""
    if len(parts) == 1:
        return list(parts[0])
    joined = []
    for rows in zip(*parts, strict=True):
        values: dict[str, float] = {}
        missing: dict[str, str] = {}
        for row, name in zip(rows, protocols, strict=True):
            of = protocol(name).figures
            values |= {f"{key}{AT}{name}" if key in of else key: value for key, value in row.values.items()}
            missing |= {f"{key}{AT}{name}" if key in of else key: why for key, why in row.missing.items()}
        scores = {key: value for key, value in values.items() if AT not in key}
        joined.append(Row(rows[0].image_id, {k: v for k, v in values.items() if AT in k} | scores, missing))
    return joined


def spread(comparison: Comparison, key: str) -> dict[str, float]:
    """How far the methods lie apart in a figure, of each picture that all have it of."""
    columns = [m.column(key) for m in comparison.methods]
    return {i: float(np.ptp([column[i] for column in columns])) for i in comparison.shared(key)}
