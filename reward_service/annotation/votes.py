"""Votes of people about pictures: a level of one picture, or which of two is better."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

LEVELS = ("excellent", "good", "fair", "poor", "bad")
"""Worth 5 to 1, in the order in which DeQA-Score and Q-Align have them."""
BEST = len(LEVELS)
LEFT, RIGHT, TIE = SIDES = ("left", "right", "tie")
NAME = re.compile(r"[\w@+-][\w.@+-]{0,63}")
"""Of an annotator: it becomes the name of a file."""

Indices = NDArray[np.int64]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Vote:
    """One answer of one annotator.

    Attributes:
        annotator: a name of letters, digits and `_.@+-`.
        task: of the manifest.
        answer: of a rating the level, 1 (bad) to 5 (excellent); of a pair left, right or tie.
        seconds: that it took; None where nobody knows.
        at: when it was given, seconds since 1970; None where nobody knows.

    Raises:
        ValueError: a name or an answer that is none.
    """

    annotator: str
    task: str
    answer: int | str
    seconds: float | None = None
    at: float | None = None

    def __post_init__(self) -> None:
        check_name(self.annotator)
        if not isinstance(self.task, str) or not self.task:
            raise ValueError(f"task={self.task!r}: must be the name of a task")
        answer = self.answer
        is_level = isinstance(answer, int) and not isinstance(answer, bool) and 1 <= answer <= BEST
        if not is_level and answer not in SIDES:
            raise ValueError(f"{self.task}: answer={answer!r}: choose a level, 1 to {BEST}, or {', '.join(SIDES)}")
        for name in ("seconds", "at"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise ValueError(f"{self.task}: {name}={value!r}: must be a number of at least 0")


@dataclass(frozen=True, eq=False)
class Ratings:
    """N levels that annotators gave to pictures. A missing vote is no row; a repeated one is a row more.

    Attributes:
        pictures, annotators: the names that the indices mean.
        picture, annotator: int64 [N].
        level: float64 [N], 1 to 5.
    """

    pictures: tuple[str, ...]
    annotators: tuple[str, ...]
    picture: Indices
    annotator: Indices
    level: Values

    @classmethod
    def of(cls, rows: Iterable[tuple[str, str, float]]) -> Self:
        """Of (annotator, picture, level); names are sorted, so that the order of rows changes no figure's meaning."""
        listed = list(rows)
        annotators, annotator = numbered([row[0] for row in listed])
        pictures, picture = numbered([row[1] for row in listed])
        return cls(pictures, annotators, picture, annotator, np.array([row[2] for row in listed], np.float64))

    def __len__(self) -> int:
        return len(self.level)

    def rows(self) -> list[tuple[str, str, float]]:
        """As `of` takes them."""
        return [
            (self.annotators[i], self.pictures[j], float(u))
            for i, j, u in zip(self.annotator, self.picture, self.level, strict=True)
        ]

    def only(self, annotators: Collection[str]) -> Self:
        """Of these annotators; pictures that nobody of them rated are gone."""
        return self.of(row for row in self.rows() if row[0] in annotators)


@dataclass(frozen=True, eq=False)
class Choices:
    """N comparisons of two pictures.

    Attributes:
        pictures, annotators: the names that the indices mean.
        first, second, annotator: int64 [N]; `first` comes before `second` among the pictures, so that the same two
            pictures are always the same pair, whichever side they were shown on.
        won: float64 [N]; 1 where the first is better, 0 where the second is, 0.5 where neither.
    """

    pictures: tuple[str, ...]
    annotators: tuple[str, ...]
    first: Indices
    second: Indices
    annotator: Indices
    won: Values

    @classmethod
    def of(cls, rows: Iterable[tuple[str, str, str, float]]) -> Self:
        """Of (annotator, a picture, another, how far the first named won).

        Raises:
            ValueError: a picture against itself.
        """
        listed = [(who, a, b, won) if a < b else (who, b, a, 1 - won) for who, a, b, won in rows]
        if same := [a for _, a, b, _ in listed if a == b]:
            raise ValueError(f"{same[0]} is compared with itself")
        annotators, annotator = numbered([row[0] for row in listed])
        pictures, both = numbered([row[1] for row in listed] + [row[2] for row in listed])
        first, second = both[: len(listed)], both[len(listed) :]
        return cls(pictures, annotators, first, second, annotator, np.array([row[3] for row in listed], np.float64))

    def __len__(self) -> int:
        return len(self.won)

    def rows(self) -> list[tuple[str, str, str, float]]:
        """As `of` takes them."""
        return [
            (self.annotators[i], self.pictures[a], self.pictures[b], float(won))
            for i, a, b, won in zip(self.annotator, self.first, self.second, self.won, strict=True)
        ]

    def only(self, annotators: Collection[str]) -> Self:
        """Of these annotators; pictures that nobody of them compared are gone."""
        return self.of(row for row in self.rows() if row[0] in annotators)


def numbered(names: Sequence[str]) -> tuple[tuple[str, ...], Indices]:
    """The distinct names, sorted, and which of them each is, int64."""
    distinct = sorted(set(names))
    places = {name: place for place, name in enumerate(distinct)}
    return tuple(distinct), np.array([places[name] for name in names], np.int64)


def check_name(annotator: object) -> str:
    """The name of an annotator.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(annotator, str) or not NAME.fullmatch(annotator):
        raise ValueError(
            f"annotator={annotator!r}: a name has 1 to 64 letters, digits or any of _ . @ + -, and no dot in front"
        )
    return annotator
