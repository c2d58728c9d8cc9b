"""Evaluations beside training: cut into parts that any actor can do, put together when all parts are there."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.work import Quarantined
from restoration.evaluate import Row
from restoration.weights import WeightsMessage

Images = dict[str, np.ndarray]


@dataclass(frozen=True)
class EvaluationPart:
    """Some held-out images under the weights of one evaluation.

    Attributes:
        weights: None for the base model.
        keep: ids whose outputs are wanted.
    """

    serial: int
    image_ids: tuple[str, ...]
    weights: WeightsMessage | None
    keep: tuple[str, ...] = ()


@dataclass
class Evaluation:
    """One evaluation as a whole; `serial` tells it from another of the same iteration that was given up."""

    serial: int
    iteration: int
    who: str
    weights: WeightsMessage | None
    image_ids: tuple[str, ...]
    keep: tuple[str, ...]
    waiting: deque[EvaluationPart] = field(default_factory=deque)
    out: int = 0  # parts that actors work on
    rows: dict[str, Row] = field(default_factory=dict)
    images: Images = field(default_factory=dict)
    left_out: list[Quarantined] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return not self.waiting and not self.out

    def ordered_rows(self) -> list[Row]:
        return [self.rows[i] for i in self.image_ids if i in self.rows]


class Evaluations:
    """The evaluations that are due, one after the other: each may need the figures of the one before.

    Args:
        image_ids: the held-out set, in order.
        blocks: which images go together (`restoration.evaluate.blocks`); a part is one block, so that the figures don't
            depend on how many actors share an evaluation.
    """

    def __init__(self, image_ids: Sequence[str], blocks: Sequence[Sequence[str]]) -> None:
        self.image_ids, self.blocks = tuple(image_ids), [tuple(block) for block in blocks]
        self.queue: deque[Evaluation] = deque()
        self.begun = 0

    def __len__(self) -> int:
        return len(self.queue)

    def begin(
        self,
        iteration: int,
        who: str,
        weights: WeightsMessage | None,
        without: Iterable[str] = (),
        keep: Sequence[str] = (),
    ) -> None:
        """Queue an evaluation of all images but those in `without`.

        Args:
            who: "base" (before training), "now" or "ema" (the average).
            weights: None for the base model.
        """
        self.begun += 1
        barred = set(without)
        parts = [kept for block in self.blocks if (kept := [i for i in block if i not in barred])]
        chosen = {i for part in parts for i in part}
        whole = Evaluation(
            self.begun, iteration, who, weights, tuple(i for i in self.image_ids if i in chosen), tuple(keep)
        )
        whole.waiting.extend(self._part(whole, part) for part in parts)
        self.queue.append(whole)

    def take(self) -> EvaluationPart | None:
        """A part for an actor, of the oldest evaluation; None when all its parts are given out."""
        if not self.queue or not self.queue[0].waiting:
            return None
        self.queue[0].out += 1
        return self.queue[0].waiting.popleft()

    def done(self, part: EvaluationPart, rows: Sequence[Row], images: Mapping[str, Any]) -> None:
        if (whole := self._of(part)) is not None:
            whole.out -= 1
            whole.rows |= {row.image_id: row for row in rows}
            whole.images |= images

    def again(self, part: EvaluationPart) -> None:
        """Its actor died, or a reward came too late: the part waits for another actor."""
        if (whole := self._of(part)) is not None:
            whole.out -= 1
            whole.waiting.append(part)

    def poisoned(self, part: EvaluationPart, reason: str, detail: str) -> None:
        """An image of the part can't be evaluated: find out which, by single images, and leave that one out."""
        whole = self._of(part)
        if whole is None:
            return
        whole.out -= 1
        if len(part.image_ids) > 1:
            whole.waiting.extend(self._part(whole, [image_id]) for image_id in part.image_ids)
        else:
            whole.left_out.append(Quarantined(part.image_ids[0], reason, detail))

    def completed(self) -> Evaluation | None:
        """The oldest evaluation, taken out, if all its parts are there."""
        return self.queue.popleft() if self.queue and self.queue[0].complete else None

    def forget_after(self, iteration: int) -> None:
        """Drop evaluations of later iterations: the learner fell back, and they will come again."""
        self.queue = deque(e for e in self.queue if e.iteration <= iteration)

    def _part(self, whole: Evaluation, ids: Sequence[str]) -> EvaluationPart:
        keep = tuple(i for i in ids if i in whole.keep)
        return EvaluationPart(whole.serial, tuple(ids), whole.weights, keep)

    def _of(self, part: EvaluationPart) -> Evaluation | None:
        return next((e for e in self.queue if e.serial == part.serial), None)
