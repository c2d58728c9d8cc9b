"""From votes to labels: who counts, how good each picture is, which of two is better, and how far people agree."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from reward_service.annotation.agreement import krippendorff_alpha, reliability
from reward_service.annotation.manifest import REPEAT, TRAP, TRUTH, Manifest, Task
from reward_service.annotation.opinion import Opinions, opinions, require_differing
from reward_service.annotation.screening import Judged, Rules, screen
from reward_service.annotation.strengths import Model, strengths
from reward_service.annotation.votes import BEST, LEFT, RIGHT, Choices, Ratings, Vote
from reward_service.training.labels import Way, soft_labels

_FIRST_WON = {LEFT: 1.0, RIGHT: 0.0}  # a tie is half


@dataclass(frozen=True)
class Rated:
    """What the ratings of a picture amount to.

    Attributes:
        quality: in levels, 1 to 5.
        error: its standard error.
        spread: deviation of single opinions.
        votes: how many count.
        levels: soft label, probabilities of excellent, good, fair, poor and bad.
    """

    picture: str
    quality: float
    error: float
    spread: float
    votes: int
    levels: tuple[float, ...]


@dataclass(frozen=True)
class Compared:
    """What the comparisons of two pictures amount to.

    Attributes:
        votes: how many count.
        first_better: share of them, ties half each.
        preference: probability that the first is better, by the strengths of all pictures that were compared with them.
    """

    first: str
    second: str
    votes: int
    first_better: float
    preference: float


@dataclass(frozen=True)
class Agreement:
    """Figures of those who count; NaN where there is nothing to tell from.

    Attributes:
        alpha: Krippendorff's, of the ratings (interval) and of the comparisons (ordinal: better, neither, worse).
        single, mean: reliability of one rating and of a picture's mean (intraclass correlation, one-way random).
    """

    alpha: float
    alpha_in_pairs: float
    single: float
    mean: float


@dataclass(frozen=True)
class Cleaned:
    """Labels, and all that a report tells of them.

    Attributes:
        annotators: everybody, those too who are left out, with the reason.
        rated, compared: in the order of the names.
        strengths: of compared pictures: strength and its standard error; comparable among outputs of one photograph.
        opinions: bias and inconsistency of `raters`; None without ratings.
        ratings, choices: the votes that count.
        notes: what a user should know, in words.
    """

    annotators: dict[str, Judged]
    rated: tuple[Rated, ...]
    compared: tuple[Compared, ...]
    strengths: dict[str, tuple[float, float]]
    agreement: Agreement
    opinions: Opinions | None
    raters: tuple[str, ...]
    ratings: Ratings
    choices: Choices
    notes: tuple[str, ...]

    @property
    def left_out(self) -> dict[str, str]:
        """Who is left out, and why."""
        return {who: judged.left_out for who, judged in self.annotators.items() if judged.left_out}


def clean(
    manifest: Manifest,
    votes: Sequence[Vote],
    rules: Rules = Rules(),  # noqa: B008  frozen
    model: Model = "bradley-terry",
    way: Way = "density",
) -> Cleaned:
    """Labels of all votes on an export.

    Ratings of traps count as ratings; comparisons of traps only judge the annotators.

    Args:
        model: of comparisons.
        way: of soft labels.

    Raises:
        ValueError: no vote; one annotator alone; nothing but equal ratings; nobody left, or two who disagree.
    """
    if not votes:
        raise ValueError(f"export {manifest.export} has no vote yet; rate first")
    tasks = manifest.task_of
    ratings = Ratings.of(
        (vote.annotator, tasks[vote.task].pictures[0], float(vote.answer))
        for vote in votes
        if isinstance(vote.answer, int)
    )
    choices = Choices.of(
        (vote.annotator, *_both(tasks[vote.task]), _FIRST_WON.get(str(vote.answer), 0.5))
        for vote in votes
        if not isinstance(vote.answer, int) and tasks[vote.task].role != TRAP
    )
    if len(people := {vote.annotator for vote in votes}) < 2:
        raise ValueError(
            f"all {len(votes)} votes are of {next(iter(people))}: whether one annotator alone is right, nobody can "
            "tell; have another one rate the same pictures"
        )
    require_differing(ratings)
    judged = screen(ratings, choices, failed_traps(manifest, votes), rules)
    kept = {who for who, of in judged.items() if not of.left_out}
    ratings, choices = ratings.only(kept), choices.only(kept)
    if len(kept) < 2:
        out = "\n".join(f"  {who} {of.left_out}" for who, of in judged.items() if of.left_out)
        raise ValueError(f"only {next(iter(kept))} is left, and one annotator alone is not enough:\n{out}")
    found = opinions(ratings) if len(ratings) else None
    rated = _rated(ratings, found, way) if found is not None else ()
    compared, strength = _compared(choices, model)
    single, mean = reliability(ratings)
    return Cleaned(
        annotators=judged,
        rated=rated,
        compared=compared,
        strengths=strength,
        agreement=Agreement(_alpha(ratings), _alpha_in_pairs(choices), single, mean),
        opinions=found,
        raters=ratings.annotators,
        ratings=ratings,
        choices=choices,
        notes=tuple(_notes(manifest, votes, kept, found, judged, rules)),
    )


def failed_traps(manifest: Manifest, votes: Iterable[Vote]) -> dict[str, list[float]]:
    """Of each annotator, how far each trap was failed: 0, 0.5 where ground truth and input were called equal, or 1."""
    given: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    found: dict[str, list[float]] = defaultdict(list)
    for vote in votes:
        task = manifest.task_of[vote.task]
        if task.role != TRAP:
            continue
        roles = [manifest.pictures[picture].role for picture in task.pictures]
        if isinstance(vote.answer, int):
            given[vote.annotator, task.of][roles[0]] = vote.answer
        else:
            won = _FIRST_WON.get(vote.answer, 0.5)
            found[vote.annotator].append(1 - won if roles[0] == TRUTH else won)
    for (who, _), levels in given.items():
        if len(levels) == 2:
            truth, degraded = levels[TRUTH], next(level for role, level in levels.items() if role != TRUTH)
            found[who].append(0.5 if truth == degraded else float(truth < degraded))
    return dict(found)


def _both(task: Task) -> tuple[str, str]:
    left, right = task.pictures
    return left, right


def _rated(ratings: Ratings, found: Opinions, way: Way) -> tuple[Rated, ...]:
    quality = np.clip(found.quality, 1, BEST)
    labels = soft_labels(torch.from_numpy(quality), torch.from_numpy(found.spread), way).tolist()
    return tuple(
        Rated(
            picture=picture,
            quality=float(quality[j]),
            error=float(found.error[j]),
            spread=float(found.spread[j]),
            votes=int(found.votes[j]),
            levels=tuple(labels[j]),
        )
        for j, picture in enumerate(ratings.pictures)
    )


def _compared(choices: Choices, model: Model) -> tuple[tuple[Compared, ...], dict[str, tuple[float, float]]]:
    if not len(choices):
        return (), {}
    found = strengths(choices, model)
    given: dict[tuple[int, int], list[float]] = defaultdict(list)
    for a, b, won in zip(choices.first.tolist(), choices.second.tolist(), choices.won.tolist(), strict=True):
        given[a, b].append(won)
    pairs = sorted(given)
    first, second = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    preference = found.preference(first, second, model)
    compared = tuple(
        Compared(choices.pictures[a], choices.pictures[b], len(given[a, b]), float(np.mean(given[a, b])), float(p))
        for (a, b), p in zip(pairs, preference, strict=True)
    )
    values = zip(choices.pictures, found.value.tolist(), found.error.tolist(), strict=True)
    return compared, {picture: (value, error) for picture, value, error in values}


def _alpha(ratings: Ratings) -> float:
    """Of the first rating that each annotator gave to each picture: repeats are about the annotator alone."""
    once: dict[tuple[str, str], float] = {}
    for who, picture, level in ratings.rows():
        once.setdefault((who, picture), level)
    return krippendorff_alpha([picture for _, picture in once], list(once.values()), "interval")


def _alpha_in_pairs(choices: Choices) -> float:
    once: dict[tuple[str, str, str], float] = {}
    for who, a, b, won in choices.rows():
        once.setdefault((who, a, b), won)
    return krippendorff_alpha([(a, b) for _, a, b in once], list(once.values()), "ordinal")


def _notes(
    manifest: Manifest,
    votes: Sequence[Vote],
    kept: set[str],
    found: Opinions | None,
    judged: dict[str, Judged],
    rules: Rules,
) -> list[str]:
    notes = []
    answered = {vote.task for vote in votes if vote.annotator in kept}
    if open_tasks := sum(task.role != REPEAT and task.name not in answered for task in manifest.tasks):
        notes.append(f"{open_tasks} tasks have no vote that counts")
    for who, of in judged.items():
        if not of.left_out and math.isnan(of.agreement) and math.isnan(of.agreement_in_pairs):
            notes.append(
                f"{who} counts, though nobody can say how far the others agree: fewer than {rules.least_votes} votes "
                "on what others judged, too"
            )
    if found is not None:
        if alone := int((found.votes == 1).sum()):
            notes.append(f"{alone} pictures have one rating each, so that their spread is that of all pictures")
        if (beyond := int(((found.quality < 1) | (found.quality > BEST)).sum())) > 0:
            notes.append(f"{beyond} pictures lie beyond the levels once bias is taken off, and are set to the end")
        if (groups := int(found.groups.max()) + 1) > 1:
            notes.append(
                f"the annotators fall into {groups} groups that share no picture: biases between them can't be told "
                "from qualities; have some rate pictures of the others"
            )
        if not found.converged:
            notes.append(f"the qualities still moved after {found.iterations} iterations")
    return notes
