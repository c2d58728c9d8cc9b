"""Which annotators count: those at random, and those that fail traps, are left out by rule and by name."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, fields

import numpy as np

from reward_service.annotation.agreement import repeat_difference, repeats_of
from reward_service.annotation.votes import Choices, Ratings


@dataclass(frozen=True)
class Rules:
    """When an annotator is left out.

    Attributes:
        least_agreement: with the others; below it an annotator is at random. Of ratings: the correlation with the mean
            of the others. Of comparisons: the share that is as most of the others say, scaled so that chance is 0.
        least_votes: that others judged, too, before agreement is asked about; with fewer an annotator is kept.
        most_traps_failed: share of traps, above which an annotator is left out. A trap is failed where the ground
            truth is not above the degraded input; equal is half of it.
        least_traps: before traps are asked about.
    """

    least_agreement: float = 0.3
    least_votes: int = 8
    most_traps_failed: float = 0.34
    least_traps: int = 2

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "least_votes" and value < 3:
                raise ValueError(f"{f.name}={value}: at least 3; a correlation of two pictures is 1 or -1")
            if f.name == "least_traps" and value < 1:
                raise ValueError(f"{f.name}={value}: at least 1")
            if isinstance(f.default, float) and not -1 <= value <= 1:
                raise ValueError(f"{f.name}={value}: must be a number from -1 to 1")


@dataclass(frozen=True)
class Judged:
    """What is known of an annotator. A figure that can't be had is NaN.

    Attributes:
        ratings, comparisons: votes.
        agreement: of ratings, agreement_in_pairs: of comparisons, with the others who count, see `Rules`.
        traps: judged; traps_failed: share of them.
        repeat_difference: mean, of ratings of the same picture, in levels.
        repeat_agreement: of repeated comparisons, 1 where all were answered alike; a tie and a side differ by half.
        left_out: why; empty where the annotator counts.
    """

    ratings: int = 0
    comparisons: int = 0
    agreement: float = math.nan
    agreement_in_pairs: float = math.nan
    traps: int = 0
    traps_failed: float = math.nan
    repeat_difference: float = math.nan
    repeat_agreement: float = math.nan
    left_out: str = ""


def screen(ratings: Ratings, choices: Choices, traps: Mapping[str, list[float]], rules: Rules) -> dict[str, Judged]:
    """Every annotator with the verdict.

    First those go who fail traps or give one answer to everything; then, one at a time, who agrees least with the
    others, since one at random spoils what the others are compared with.

    Args:
        traps: of each annotator, how far each trap was failed: 0, 0.5 or 1.

    Raises:
        ValueError: nobody is left; or two are, who don't agree: nobody can tell who of them is right.
    """
    everyone = sorted({*ratings.annotators, *choices.annotators, *traps})
    out: dict[str, str] = {}
    for who in everyone:
        failed = traps.get(who, [])
        if len(failed) >= rules.least_traps and np.mean(failed) > rules.most_traps_failed:
            out[who] = (
                f"fails {np.mean(failed):.0%} of {len(failed)} traps, more than {rules.most_traps_failed:.0%} "
                "(ground truth against degraded input)"
            )
        elif answer := _only_answer(who, ratings, choices, rules.least_votes):
            out[who] = f"gives the answer {answer} to everything"
    while True:
        kept = [who for who in everyone if who not in out]
        if not kept:
            raise ValueError("no annotator is left:\n" + "\n".join(f"  {who} {why}" for who, why in out.items()))
        agreement = _agreements(ratings, choices, kept, rules.least_votes)
        low = {who: min(a) for who, a in agreement.items() if min(a) < rules.least_agreement}
        if not low:
            break
        worst = min(low, key=lambda who: (low[who], who))
        if len(kept) == 2:
            raise ValueError(
                f"{' and '.join(kept)} don't agree ({low[worst]:.2f}, less than {rules.least_agreement:g}), and with "
                "two annotators nobody can tell who is right; have a third one rate the same pictures"
            )
        out[worst] = (
            f"agrees with the others no more than by chance ({low[worst]:.2f}, less than {rules.least_agreement:g})"
        )
    return {who: _judged(who, ratings, choices, traps.get(who, []), kept, out, rules) for who in everyone}


def agreement_in_ratings(ratings: Ratings, who: str, others: Collection[str], least: int) -> float:
    """Pearson's correlation of an annotator's mean ratings with the others' means, over pictures that both rated.

    NaN with fewer than `least` pictures, or where one of the two says the same of all.
    """
    own: dict[str, list[float]] = defaultdict(list)
    theirs: dict[str, list[float]] = defaultdict(list)
    for name, picture, level in ratings.rows():
        if name == who:
            own[picture].append(level)
        elif name in others:
            theirs[picture].append(level)
    both = sorted(own.keys() & theirs.keys())
    x, y = (np.array([np.mean(of[p]) for p in both]) for of in (own, theirs))
    if len(both) < least or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def agreement_in_choices(choices: Choices, who: str, others: Collection[str], least: int) -> float:
    """2 s - 1, where s is the share of comparisons that an annotator decides as most of the others do.

    A tie of the annotator's counts half; pairs that the others leave undecided don't count. NaN below `least`.
    """
    own: dict[tuple[str, str], list[float]] = defaultdict(list)
    theirs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for name, a, b, won in choices.rows():
        if name == who:
            own[a, b].append(won)
        elif name in others:
            theirs[a, b].append(won)
    shares = [
        float(np.mean(own[pair])) if np.mean(theirs[pair]) > 0.5 else 1 - float(np.mean(own[pair]))
        for pair in own.keys() & theirs.keys()
        if np.mean(theirs[pair]) != 0.5
    ]
    return 2 * float(np.mean(shares)) - 1 if len(shares) >= least else math.nan


def _agreements(ratings: Ratings, choices: Choices, kept: list[str], least: int) -> dict[str, list[float]]:
    """What can be said of each annotator's agreement; who has too few votes for any of it is not in it."""
    found = {}
    for who in kept:
        others = [name for name in kept if name != who]
        both = (
            agreement_in_ratings(ratings, who, others, least),
            agreement_in_choices(choices, who, others, least),
        )
        if known := [a for a in both if not math.isnan(a)]:
            found[who] = known
    return found


def _only_answer(who: str, ratings: Ratings, choices: Choices, least: int) -> str:
    """What an annotator says of everything; empty where answers differ, or are fewer than `least`."""
    levels = [level for name, _, level in ratings.rows() if name == who]
    won = [w for name, _, _, w in choices.rows() if name == who]
    if len(levels) >= least and len(set(levels)) == 1:
        return f"{levels[0]:g}"
    return "tie" if len(won) >= least and set(won) == {0.5} else ""


def _judged(
    who: str,
    ratings: Ratings,
    choices: Choices,
    traps: list[float],
    kept: list[str],
    out: Mapping[str, str],
    rules: Rules,
) -> Judged:
    others = [name for name in kept if name != who]
    pairs: dict[Hashable, list[float]] = defaultdict(list)
    for name, a, b, won in choices.rows():
        if name == who:
            pairs[a, b].append(won)
    return Judged(
        ratings=sum(name == who for name, _, _ in ratings.rows()),
        comparisons=sum(map(len, pairs.values())),
        agreement=agreement_in_ratings(ratings, who, others, rules.least_votes),
        agreement_in_pairs=agreement_in_choices(choices, who, others, rules.least_votes),
        traps=len(traps),
        traps_failed=float(np.mean(traps)) if traps else math.nan,
        repeat_difference=repeats_of(ratings).get(who, math.nan),
        repeat_agreement=1 - repeat_difference(pairs),
        left_out=out.get(who, ""),
    )
