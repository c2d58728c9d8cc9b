"""From ratings to the quality of each picture, by maximum likelihood (ITU-T P.910, Annex E).

A rating is the picture's quality, plus the annotator's bias, plus noise whose deviation is the annotator's
inconsistency. All three are estimated in turn until nothing moves. An inconsistent annotator so has little weight: a
soft rejection, beside the hard one of `screening`. Missing and repeated votes need nothing special.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from reward_service.annotation.votes import Indices, Ratings, Values

ROUNDING = 12**-0.5
"""Deviation of what is rounded to whole levels, which no annotator can fall below."""


@dataclass(frozen=True, eq=False)
class Opinions:
    """What the ratings of J pictures by I annotators amount to.

    Attributes:
        quality: float64 [J], in levels; the mean of all annotators' biases (of each group's) is 0.
        error: float64 [J], standard error of the quality.
        spread: float64 [J], deviation of single opinions, free of bias, about the picture.
        votes: int64 [J].
        bias, inconsistency: float64 [I], in levels.
        groups: int64 [I]; annotators of two groups share no picture, not even through others, so that biases between
            the groups can't be told from qualities.
        iterations: that it took.
        converged: whether it had come to rest by then.
    """

    quality: Values
    error: Values
    spread: Values
    votes: Indices
    bias: Values
    inconsistency: Values
    groups: Indices
    iterations: int
    converged: bool


def opinions(
    ratings: Ratings, floor: float = ROUNDING, prior: float = 4.0, tolerance: float = 1e-8, most: int = 1000
) -> Opinions:
    """Quality and spread of each picture, bias and inconsistency of each annotator.

    Args:
        floor: least inconsistency, in levels. Without one the likelihood has no maximum where an annotator's own
            votes can become the qualities.
        prior: votes that the spread of all pictures counts for in the spread of each: of two or three votes alone it
            would be next to nothing.
        tolerance: of the change of all qualities together, in levels, at which it stops.
        most: iterations.

    Raises:
        ValueError: fewer than two annotators, or nothing but equal ratings.
    """
    people = len(ratings.annotators)
    if people < 2:
        who = ", ".join(ratings.annotators) or "nobody"
        raise ValueError(
            f"ratings of {who} alone: bias and inconsistency take at least two annotators; have another one rate, too"
        )
    require_differing(ratings)
    picture, annotator, level = ratings.picture, ratings.annotator, ratings.level
    pictures = len(ratings.pictures)
    votes = np.bincount(picture, minlength=pictures)
    cast = np.bincount(annotator, minlength=people)

    def by_picture(values: Values) -> Values:
        return np.bincount(picture, values, pictures).astype(np.float64)

    def by_annotator(values: Values) -> Values:
        return np.bincount(annotator, values, people).astype(np.float64)

    quality = by_picture(level) / votes
    bias = by_annotator(level - quality[picture]) / cast
    inconsistency, iterations, converged = np.full(people, floor), 0, False
    while iterations < most and not converged:
        before, iterations = quality, iterations + 1
        rest = level - quality[picture] - bias[annotator]
        variance = by_annotator(rest**2) / cast - (by_annotator(rest) / cast) ** 2
        inconsistency = np.sqrt(np.maximum(variance, floor**2))
        weight = inconsistency[annotator] ** -2
        quality = by_picture(weight * (level - bias[annotator])) / by_picture(weight)
        bias = by_annotator(level - quality[picture]) / cast
        converged = bool(np.linalg.norm(quality - before) < tolerance)

    of_annotator, of_picture = _groups(ratings)
    mean = np.bincount(of_annotator, bias) / np.bincount(of_annotator)
    quality, bias = quality + mean[of_picture], bias - mean[of_annotator]
    rest = level - quality[picture] - bias[annotator]
    free = max(1, len(ratings) - pictures - people + len(mean))  # degrees of freedom that the rests have
    pooled = (rest**2).sum() / free
    return Opinions(
        quality=quality,
        error=by_picture(inconsistency[annotator] ** -2) ** -0.5,
        spread=np.sqrt((prior * pooled + by_picture(rest**2)) / (prior + np.maximum(votes - 1, 0))),
        votes=votes,
        bias=bias,
        inconsistency=inconsistency,
        groups=of_annotator,
        iterations=iterations,
        converged=converged,
    )


def require_differing(ratings: Ratings) -> None:
    """Raises:
    ValueError: there are ratings, and all are equal.
    """
    if len(ratings) and len(np.unique(ratings.level)) == 1:
        raise ValueError(
            f"all {len(ratings)} ratings are {ratings.level[0]:g}: they tell no picture from another; rate pictures of "
            "unequal quality, or compare them in pairs"
        )


def _groups(ratings: Ratings) -> tuple[Indices, Indices]:
    """The group of each annotator and of each picture: those that votes connect."""
    people, pictures = len(ratings.annotators), len(ratings.pictures)
    links = (np.ones(len(ratings)), (ratings.annotator, people + ratings.picture))
    _, group = connected_components(coo_array(links, shape=(people + pictures,) * 2), directed=False)
    return group[:people].astype(np.int64), group[people:].astype(np.int64)
