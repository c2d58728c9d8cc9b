"""Which outputs are worth rating, and the questions that are asked of them. Pure: no picture is made or read here."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from reward_service.annotation.manifest import KINDS, REPEAT, TRAP, Kind, Task

SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class ExportSettings:
    """How much is exported, and of what.

    Attributes:
        images: photographs, the hardest of `pool` times as many.
        outputs: that are to be rated, of all that are made.
        rollouts: of each photograph by each checkpoint, each with noise of its own.
        steps: of each chain whose clean estimates are made, evenly spread; the last is the result.
        bins: of scores, that outputs are spread over.
        kinds: of questions: rate, pair or both.
        repeats, traps: share of the questions that come once more, or have a known answer.
        split: of the run's data.
        seed: of noise and order.
    """

    images: int = 24
    outputs: int = 96
    rollouts: int = 2
    steps: int = 2
    bins: int = 5
    pool: int = 4
    kinds: tuple[Kind, ...] = KINDS
    repeats: float = 0.08
    traps: float = 0.08
    split: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if type(f.default) is int and f.name != "seed" and value < 1:
                raise ValueError(f"{f.name}={value}: at least 1")
            if isinstance(f.default, float) and not 0 <= value <= 0.5:
                raise ValueError(f"{f.name}={value}: a share from 0 to 0.5")
        if not self.kinds or any(kind not in KINDS for kind in self.kinds):
            raise ValueError(f"kinds={list(self.kinds)}: choose of {', '.join(KINDS)}")
        if self.split not in SPLITS:
            raise ValueError(f"split={self.split}: choose {' or '.join(SPLITS)}")


@dataclass(frozen=True)
class Output:
    """A picture that may be rated. Attributes as of `reward_service.annotation.manifest.Picture`."""

    name: str
    source: str
    checkpoint: str
    step: int
    steps: int
    seed: int
    score: float | None
    difficulty: float


def steps_of(count: int, wanted: int) -> list[int]:
    """`wanted` of the steps 1 to `count`, evenly spread, the last among them."""
    wanted = min(count, wanted)
    return sorted({round(count * (i + 1) / wanted) for i in range(wanted)})


def choose(outputs: Sequence[Output], count: int, bins: int, rng: np.random.Generator) -> list[Output]:
    """`count` of the outputs, in turn of each bin of scores, there of each step and checkpoint, the hardest first.

    Bins of scores hold equally many outputs; those without a score have a bin of their own.
    """
    scored = sorted((o for o in outputs if o.score is not None), key=lambda o: (o.score, o.name))
    bin_of = {o.name: place * bins // len(scored) for place, o in enumerate(scored)}
    strata: dict[int, dict[tuple[int, str], list[Output]]] = defaultdict(lambda: defaultdict(list))
    for output in sorted(outputs, key=lambda o: (-o.difficulty, o.name)):
        strata[bin_of.get(output.name, bins)][output.step, output.checkpoint].append(output)
    return _in_turn([_in_turn(list(strata[place].values()), rng) for place in sorted(strata)], rng)[:count]


def _in_turn(queues: Sequence[Sequence[Output]], rng: np.random.Generator) -> list[Output]:
    """One of each queue, in an order that is drawn, then the next of each."""
    longest = max(map(len, queues), default=0)
    order = rng.permutation(len(queues)).tolist()
    return [queues[i][place] for place in range(longest) for i in order if place < len(queues[i])]


def pairs_of(chosen: Iterable[Output]) -> list[tuple[str, str]]:
    """Of each photograph, the outputs that are next to each other by score: the closest, and all are connected."""
    groups: dict[str, list[Output]] = defaultdict(list)
    for output in chosen:
        groups[output.source].append(output)
    found = []
    for source in sorted(groups):
        ranked = sorted(groups[source], key=lambda o: (math.inf if o.score is None else o.score, o.name))
        found += [(a.name, b.name) for a, b in zip(ranked, ranked[1:], strict=False)]
    return found


def tasks_of(
    chosen: Sequence[Output],
    references: Mapping[str, tuple[str, str]],
    trapped: Sequence[str],
    settings: ExportSettings,
    rng: np.random.Generator,
) -> tuple[Task, ...]:
    """The questions in the order in which they are shown.

    Repeats come half of all questions after the first time, pairs with their sides changed.

    Args:
        references: photograph -> names of its input and its ground truth.
        trapped: photographs for traps, the plainest first.

    Raises:
        ValueError: there is no question to ask: pairs alone are wanted, and no photograph has two outputs.
    """
    plain: list[Task] = []
    if "rate" in settings.kinds:
        plain += [Task("", "rate", (output.name,)) for output in chosen]
    if "pair" in settings.kinds:
        plain += [Task("", "pair", _shuffled(pair, rng)) for pair in pairs_of(chosen)]
    if not plain:
        raise ValueError("no photograph has two outputs to compare; export more outputs, or rate them too")
    traps = _traps(round(len(plain) * settings.traps), references, trapped, settings, rng)
    shown = [*plain, *traps]
    shown = [shown[i] for i in rng.permutation(len(shown))]
    half = len(shown) // 2
    places = [place for place, task in enumerate(shown) if place <= half and task.role != TRAP]
    count = min(len(places), max(1, round(len(plain) * settings.repeats)) if settings.repeats else 0)
    again = sorted(rng.choice(places, count, replace=False).tolist()) if count else []
    ordered: list[tuple[float, Task, int | None]] = [(place, task, None) for place, task in enumerate(shown)]
    ordered += [(place + half + 0.5, shown[place], place) for place in again]
    ordered.sort(key=lambda item: item[0])
    names = {place: f"t{at:04d}" for at, (place, _, first) in enumerate(ordered, 1) if first is None}
    found = []
    for at, (_, task, first) in enumerate(ordered, 1):
        name = f"t{at:04d}"
        if first is None:
            found.append(replace(task, name=name))
        else:
            found.append(Task(name, task.kind, task.pictures[::-1], REPEAT, names[first]))
    return tuple(found)


def _traps(
    count: int,
    references: Mapping[str, tuple[str, str]],
    trapped: Sequence[str],
    settings: ExportSettings,
    rng: np.random.Generator,
) -> list[Task]:
    """Ground truth against input: side by side, or each by itself among the pictures that are rated."""
    found: list[Task] = []
    for place, source in enumerate(trapped[: max(count, 2) if settings.traps else 0]):
        degraded, truth = references[source]
        name = f"trap{place + 1}"
        kind = settings.kinds[place % len(settings.kinds)]
        if kind == "pair":
            found.append(Task("", "pair", _shuffled((degraded, truth), rng), TRAP, name))
        else:
            found += [Task("", "rate", (picture,), TRAP, name) for picture in (degraded, truth)]
    return found


def _shuffled(pair: tuple[str, str], rng: np.random.Generator) -> tuple[str, str]:
    return pair if rng.random() < 0.5 else pair[::-1]
