"""A table with its figures: means over seeds, ranks, differences to the paper, and what the head has to say. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cluster.paper.gains import Gain, Images, Place, gains, place_of
from cluster.paper.results import Result
from cluster.paper.scales import SCALES
from cluster.paper.tables import MEAN, Line, Metric, Part, Table, printed, source

BEST, SECOND = 1, 2


@dataclass(frozen=True)
class Figure:
    """One cell of one column.

    Attributes:
        value: the mean over seeds, None where it is missing.
        deviation: over seeds, None with fewer than two.
        seeds: that it is the mean over.
        n: pictures of each seed that have it.
        rank: `BEST`, `SECOND` or None; figures that are printed alike share a rank.
        paper: what the paper prints, None where that is nothing.
    """

    value: float | None = None
    deviation: float | None = None
    seeds: tuple[int, ...] = ()
    n: tuple[int, ...] = ()
    rank: int | None = None
    paper: float | None = None

    @property
    def difference(self) -> float | None:
        return None if self.value is None or self.paper is None else self.value - self.paper


@dataclass(frozen=True)
class Column:
    """`part` is None of the mean over the table's parts."""

    part: Part | None
    metric: Metric

    @property
    def title(self) -> str:
        return MEAN if self.part is None else self.part.title


@dataclass(frozen=True)
class Filled:
    """
    Attributes:
        rows: of each line of the table a figure a column.
        head: what belongs above it: protocols, n, seeds, scale, versions.
        notes: what belongs below: what is missing, of which cells some pictures are.
        gains: of rows over their base models.
    """

    table: Table
    columns: tuple[Column, ...]
    rows: tuple[tuple[Line, tuple[Figure, ...]], ...]
    head: tuple[str, ...]
    notes: tuple[str, ...]
    gains: tuple[Gain, ...] = ()

    def groups(self) -> list[tuple[str, int]]:
        """(title, columns) of what stands above the metrics."""
        found: list[tuple[str, int]] = []
        for column in self.columns:
            if found and found[-1][0] == column.title:
                found[-1] = (column.title, found[-1][1] + 1)
            else:
                found.append((column.title, 1))
        return found


def fill(table: Table, results: Iterable[Result], images: Mapping[Place, Mapping[int, Images]] | None = None) -> Filled:
    """The table of the cells that are finished; those of other tables are left alone.

    Args:
        images: figures of each picture, by place and seed, where rows are to be compared with their base models.
    """
    held: dict[Place, list[Result]] = {}
    for result in results:
        key = result.key
        held.setdefault((key.model, key.trained_on, key.arm, result.set, result.split), []).append(result)
    places = {(line.title, part.title): place_of(line, part) for line in table.lines for part in table.parts}
    wanted = {titles: held.get(place, []) for titles, place in places.items()}
    columns = [Column(part, metric) for part in table.parts for metric in table.metrics]
    if table.mean:
        columns += [Column(None, metric) for metric in table.metrics]
    paper = printed(table)
    rows = []
    for line in table.lines:
        figures: dict[tuple[str, str], Figure] = {}
        for column in columns:
            if column.part is not None:
                found = _figure(wanted[line.title, column.part.title], column.metric)
            else:
                found = _mean([figures[part.title, column.metric.name] for part in table.parts])
            told = paper.get((line.title, column.title, column.metric.name))
            figures[column.title, column.metric.name] = _with(found, paper=told)
        rows.append((line, [figures[c.title, c.metric.name] for c in columns]))
    for i, column in enumerate(columns):
        for row, rank in _ranks([figures[i] for _, figures in rows], column.metric).items():
            rows[row][1][i] = _with(rows[row][1][i], rank=rank)
    better, without = gains(table, images or {})
    return Filled(
        table,
        tuple(columns),
        tuple((line, tuple(figures)) for line, figures in rows),
        tuple(_head(table, wanted)),
        (*_notes(table, wanted), *without),
        tuple(better),
    )


def shown(value: float, metric: Metric) -> str:
    return f"{value:.{metric.digits}f}"


def _figure(results: Sequence[Result], metric: Metric) -> Figure:
    ordered = sorted(results, key=lambda r: r.key.seed)
    having = [(r, value) for r in ordered if (value := r.figure(metric.name)) is not None]
    if not having:
        return Figure()
    values = [value for _, value in having]
    return Figure(
        statistics.fmean(values),
        statistics.stdev(values) if len(values) > 1 else None,
        tuple(r.key.seed for r, _ in having),
        tuple(r.counts.get(metric.name, r.n) for r, _ in having),
    )


def _mean(figures: Sequence[Figure]) -> Figure:
    """Unweighted; missing if any of them is."""
    values = [figure.value for figure in figures if figure.value is not None]
    if len(values) < len(figures):
        return Figure()
    seeds = set.intersection(*({*figure.seeds} for figure in figures))
    return Figure(statistics.fmean(values), None, tuple(sorted(seeds)), tuple(n for f in figures for n in f.n[:1]))


def _with(figure: Figure, *, paper: float | None = None, rank: int | None = None) -> Figure:
    told = figure.paper if paper is None else paper
    return Figure(figure.value, figure.deviation, figure.seeds, figure.n, rank or figure.rank, told)


def _ranks(figures: Sequence[Figure], metric: Metric) -> dict[int, int]:
    """Row -> rank, of the best and the second best; none where fewer than two rows have the figure."""
    values = {row: float(shown(f.value, metric)) for row, f in enumerate(figures) if f.value is not None}
    if len(values) < 2:
        return {}
    order = sorted({*values.values()}, reverse=metric.more_is_better)[:2]
    return {row: order.index(value) + 1 for row, value in values.items() if value in order}


def _head(table: Table, wanted: Mapping[tuple[str, str], Sequence[Result]]) -> Iterator[str]:
    every = [result for found in wanted.values() for result in found]
    for part in table.parts:
        of = [r for (_, title), found in wanted.items() if title == part.title for r in found]
        if of:
            protocols = _distinct(f"{r.protocol} ({r.told})" for r in of)
            published = _distinct(str(r.published) for r in of if r.published)
            behind = f" of {published} published" if published else ""
            trained = "" if part.trained_on == part.set else f", trained on {part.trained_on}"
            yield f"{part.title}: protocol {protocols}; n={_distinct(str(r.n) for r in of)}{behind}{trained}"
        else:
            yield f"{part.title}: not measured"
    if every:
        yield f"seeds: {_distinct(str(seed) for seed in sorted({r.key.seed for r in every}))}"
        scales = (f"{r.scale} ({SCALES[r.scale].told})" if r.scale in SCALES else r.scale for r in every)
        yield f"scale: {_distinct(scales)}"
        yield f"versions: {_distinct(', '.join(f'{k} {v}' for k, v in r.versions.items()) for r in every)}"
        if any(metric.name == "fid" and r.figure("fid") is not None for metric in table.metrics for r in every):
            yield "FID of few pictures is biased: compare it at equal n only"
    yield f"paper: {source()}"


def _notes(table: Table, wanted: Mapping[tuple[str, str], Sequence[Result]]) -> Iterator[str]:
    lacking = [f"{line} on {part}" for (line, part), found in wanted.items() if not found]
    if lacking:
        more = "" if len(lacking) <= 3 else f", and {len(lacking) - 3} more"
        yield f"{len(lacking)} of {len(wanted)} cells are missing: {'; '.join(lacking[:3])}{more}"
    for metric in table.metrics:
        without = [r for found in wanted.values() for r in found if r.figure(metric.name) is None]
        if without:
            yield f"{metric.title} was not measured in {len(without)} cells that are there"
    for (line, part), found in wanted.items():
        for r in found:
            if r.missing:
                yield f"{line} on {part}, seed {r.key.seed}: {r.missing} of {r.n} pictures lack figures"
            if "aligned" in r.means and not math.isclose(r.means["aligned"] or 0.0, 1.0):
                share = (r.means["aligned"] or 0.0) * r.n
                yield f"{line} on {part}, seed {r.key.seed}: {r.n - round(share)} of {r.n} results couldn't be aligned"
    seeds = {tuple(sorted(r.key.seed for r in found)) for found in wanted.values() if found}
    if len(seeds) > 1:
        yield "cells have different seeds; the JSON form has those of each"


def _distinct(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))
