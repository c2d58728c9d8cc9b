"""Which split of some GPUs over the roles makes iterations shortest. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cluster.plan.model import ACTORS, RANKS, Costs, Counts, Iteration, Loop, PlanError, iteration, step_s

ALL_UP_TO = 64  # counts that are all tried; of larger ones every fiftieth, and then their neighbours
GROWTH = 1.02
WORTH = 0.01  # by so much shorter iterations are worth the GPUs that they take


@dataclass(frozen=True)
class Shares:
    """GPUs that one process of a role reserves; of a role with 0 the count is not the plan's to choose."""

    actor: float
    rank: float
    replicas: Mapping[str, float] = field(default_factory=dict)

    def of(self, counts: Counts) -> float:
        """All together."""
        replicas = sum(share * counts.replicas[name] for name, share in self.replicas.items())
        return counts.actors * self.actor + counts.ranks * self.rank + replicas


@dataclass(frozen=True)
class Split:
    """A choice, and what an iteration takes with it."""

    counts: Counts
    gpus: float
    found: Iteration


def best(loop: Loop, costs: Costs, shares: Shares, gpus: float, given: Counts, ranks: Sequence[int]) -> Split:
    """The split with the shortest iterations; of those that are as short, one with few GPUs.

    Args:
        given: of the recipe; what a role without GPUs keeps.
        ranks: the numbers of ranks that can be, ascending.

    Raises:
        PlanError: too few GPUs for one process of each role.
    """
    found = [
        Split(counts, shares.of(counts), iteration(loop, costs, counts))
        for counts in _tried(loop, costs, shares, gpus, given, ranks)
    ]
    if not found:
        least = Counts(1 if shares.actor else given.actors, ranks[0], _ones(shares, given))
        raise PlanError(
            f"{gpus:g} GPUs: an actor, a replica of each reward and {ranks[0]} rank{'s' * (ranks[0] > 1)} reserve "
            f"{shares.of(least):g}; give more, or lower their num_gpus"
        )
    chosen = min(found, key=lambda split: (split.found.seconds, split.gpus))
    return _trimmed(loop, costs, shares, _refined(loop, costs, shares, gpus, chosen, ranks), ranks)


def one_more(loop: Loop, costs: Costs, shares: Shares, chosen: Split, ranks: Sequence[int]) -> dict[str, float]:
    """By how much more iterations an hour there are with one more process of a role, as a share; by role or service."""
    return {
        name: iteration(loop, costs, counts).per_hour / chosen.found.per_hour - 1
        for name, counts in _neighbours(shares, chosen.counts, ranks, 1)
    }


def _tried(
    loop: Loop, costs: Costs, shares: Shares, gpus: float, given: Counts, ranks: Sequence[int]
) -> Iterator[Counts]:
    ones = _ones(shares, given)
    served = sum(shares.replicas[name] for name in shares.replicas)
    for count in _shorter(loop, costs, ranks if shares.rank else [given.ranks]):
        left = gpus - count * shares.rank
        if left < shares.actor + served - 1e-9:
            break
        if not shares.actor:
            yield Counts(given.actors, count, _replicas(loop, costs, shares, left, ones))
            continue
        most = int((left - served) / shares.actor + 1e-9)
        for actors in _sparse(most) if served else [most]:
            rest = left - actors * shares.actor
            yield Counts(actors, count, _replicas(loop, costs, shares, rest, ones))


def _shorter(loop: Loop, costs: Costs, ranks: Sequence[int]) -> Iterator[int]:
    """Numbers of ranks each of which makes a step shorter than all smaller ones, by a fiftieth where there are many."""
    shortest = math.inf
    for count in ranks:
        if (took := step_s(loop, costs, count)) < (shortest if count <= ALL_UP_TO else shortest / GROWTH):
            shortest = took
            yield count


def _sparse(most: int) -> list[int]:
    """From 1 to `most`, all of the small ones."""
    found, value = list(range(1, min(most, ALL_UP_TO) + 1)), float(ALL_UP_TO)
    while (value := value * GROWTH) < most:
        found.append(int(value))
    return sorted({*found, most}) if most else []


def _ones(shares: Shares, given: Counts) -> dict[str, int]:
    return {name: 1 if shares.replicas.get(name, 0) else count for name, count in given.replicas.items()}


def _replicas(loop: Loop, costs: Costs, shares: Shares, gpus: float, least: Mapping[str, int]) -> dict[str, int]:
    """Services share `gpus` by what they have to do; each has one replica at least."""
    counts = dict(least)
    own = [name for name, share in shares.replicas.items() if share and name in counts]
    load = {name: costs.score_s.get(name, 0.0) for name in own}
    weight = sum(load[name] * shares.replicas[name] for name in own)
    for name in own if weight else ():
        counts[name] = max(1, int(gpus * load[name] / weight + 1e-9))
    used = sum(counts[name] * shares.replicas[name] for name in own)
    while own and used > gpus + 1e-9:  # the ones of those with little to do
        several = [name for name in own if counts[name] > 1]
        if not several:
            break
        largest = max(several, key=lambda n: counts[n])
        counts[largest] -= 1
        used -= shares.replicas[largest]
    fitting = [name for name in own if used + shares.replicas[name] <= gpus + 1e-9]
    while fitting:
        name = max(fitting, key=lambda n: load[n] / counts[n])
        counts[name] += 1
        used += shares.replicas[name]
        fitting = [n for n in own if used + shares.replicas[n] <= gpus + 1e-9]
    return counts


def _neighbours(shares: Shares, counts: Counts, ranks: Sequence[int], by: int) -> Iterator[tuple[str, Counts]]:
    """So many processes more (or, below 0, less) of each role that has GPUs, where there can be."""
    if shares.actor and counts.actors + by >= 1:
        yield ACTORS, replace(counts, actors=counts.actors + by)
    others = [count for count in ranks if (count - counts.ranks) * by > 0]
    if shares.rank and len(others) >= abs(by):
        yield RANKS, replace(counts, ranks=others[by - 1 if by > 0 else by])
    for name, share in shares.replicas.items():
        if share and counts.replicas[name] + by >= 1:
            yield name, replace(counts, replicas={**counts.replicas, name: counts.replicas[name] + by})


def _refined(loop: Loop, costs: Costs, shares: Shares, gpus: float, chosen: Split, ranks: Sequence[int]) -> Split:
    """Processes moved from one role to another as long as that makes iterations shorter."""
    while True:
        moves = [
            more
            for _, less in _neighbours(shares, chosen.counts, ranks, -1)
            for _, more in _neighbours(shares, less, ranks, 1)
            if shares.of(more) <= gpus + 1e-9
        ]
        tried = [Split(counts, shares.of(counts), iteration(loop, costs, counts)) for counts in moves]
        better = min(tried, key=lambda split: split.found.seconds, default=chosen)
        if better.found.seconds >= chosen.found.seconds * (1 - 1e-9):
            return chosen
        chosen = better


def _trimmed(loop: Loop, costs: Costs, shares: Shares, chosen: Split, ranks: Sequence[int]) -> Split:
    """Without processes that make iterations no shorter."""
    limit = chosen.found.seconds * (1 + WORTH)
    for name in [name for name, _ in _neighbours(shares, chosen.counts, ranks, -1)]:
        by = 1 << 16
        while by:
            less = dict(_neighbours(shares, chosen.counts, ranks, -by)).get(name)
            found = None if less is None else iteration(loop, costs, less)
            if less is None or found is None or found.seconds > limit:
                by //= 2
            else:
                chosen = Split(less, shares.of(less), found)
    return chosen
