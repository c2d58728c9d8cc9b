"""Is a row better than its base model by more than chance? Paired by picture, seeds averaged. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.paper.arms import BASE
from cluster.paper.tables import Line, Metric, Part, Table
from restoration.metrics.compare import Paired, compare

Place = tuple[str, str, str, str, str]  # model, trained_on, arm, set, split
Images = Mapping[str, Mapping[str, float]]  # image id -> figures, NaN of what is missing


@dataclass(frozen=True)
class Gain:
    """`paired`: the row minus its base model, in this metric on this part."""

    line: Line
    part: Part
    metric: Metric
    paired: Paired


def place_of(line: Line, part: Part) -> Place:
    return line.model, part.trained_on, line.arm, part.set, part.split


def gains(table: Table, images: Mapping[Place, Mapping[int, Images]]) -> tuple[list[Gain], list[str]]:
    """What can be paired, and of what can't why. Figures that only a whole set has (FID) have no pairs.

    Args:
        images: of each place, by seed; a row and its base model are compared over the seeds that both have.
    """
    found, without = list[Gain](), list[str]()
    for line in table.lines:
        base = next((other for other in table.lines if other.model == line.model and other.arm == BASE), None)
        if base is None or line is base:
            continue
        for part in table.parts:
            ours, theirs = (images.get(place_of(of, part), {}) for of in (line, base))
            seeds = sorted(ours.keys() & theirs.keys())
            for metric in table.metrics if seeds else ():
                a, b = (_over_seeds([of[seed] for seed in seeds], metric.name) for of in (ours, theirs))
                if all(math.isnan(value) for value in (*a.values(), *b.values())):
                    continue
                try:
                    found.append(Gain(line, part, metric, compare(a, b)))
                except ValueError as error:
                    without.append(f"{line.title} on {part.title}, {metric.title}: no paired test: {error}")
    return found, without


def _over_seeds(images: list[Images], name: str) -> dict[str, float]:
    """Image id -> its mean over seeds, NaN where one of them lacks it."""
    every = dict.fromkeys(image_id for of in images for image_id in of)
    return {
        image_id: math.fsum(of.get(image_id, {}).get(name, math.nan) for of in images) / len(images)
        for image_id in every
    }
