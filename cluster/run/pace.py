"""How long a run will take yet, from what its iterations and evaluations have taken so far."""

from __future__ import annotations

from collections import deque

RECENT = 20  # iterations: what was long ago tells less
SHARE = 0.5  # of the time of an evaluation beside training: actors take turns between a part of it and a rollout


class Pace:
    """Counts seconds from `now_s` on, when everything is up, so that a start is no part of an iteration.

    Args:
        now_s: on the monotonic clock, as every other time here.
        ahead: rollouts of the next batch go on beside a step (`source.max_staleness` above 0).
    """

    def __init__(self, now_s: float, ahead: bool) -> None:
        self._last_s, self._ahead = now_s, ahead
        self._span_s = self._beside_s = 0.0  # since the last iteration: all, and with an evaluation under way
        self._evaluating_s, self._parts = 0.0, 0
        self._first_s: float | None = None
        self._recent: deque[float] = deque(maxlen=RECENT)

    def passed(self, now_s: float, evaluating: bool) -> None:
        """Time has passed, with an evaluation under way or without; to be told before one begins or ends."""
        span, self._last_s = now_s - self._last_s, now_s
        self._span_s += span
        if evaluating:
            self._beside_s += span
            self._evaluating_s += span

    def evaluated(self) -> None:
        """A part of an evaluation is done."""
        self._parts += 1

    def learned(self, step_s: float | None = None) -> None:
        """An iteration is done.

        Args:
            step_s: what the learner's step alone took. The first iteration is the only one whose rollouts and step
                follow each other where later ones overlap.
        """
        took = self._span_s - SHARE * self._beside_s
        if self._first_s is None:
            self._first_s = max(step_s, took - step_s) if self._ahead and step_s and step_s < took else took
        else:
            self._recent.append(took)
        self._span_s = self._beside_s = 0.0

    def interrupted(self, now_s: float) -> None:
        """What was since the last iteration is no measure: the learner had to be started again."""
        self._last_s, self._span_s, self._beside_s = now_s, 0.0, 0.0

    @property
    def iteration_s(self) -> float | None:
        """Seconds of an iteration without evaluations; None before the first."""
        return sum(self._recent) / len(self._recent) if self._recent else self._first_s

    @property
    def part_s(self) -> float | None:
        """By how many seconds a part of an evaluation makes the run longer; None before the first."""
        return SHARE * self._evaluating_s / self._parts if self._parts else None

    def left(self, iterations: int, parts: int) -> str:
        """Such as "about 14 min left"; nothing where nothing is left, or nothing is known.

        Args:
            iterations, parts: of the run and of its evaluations that are still to be made.
        """
        each, part = self.iteration_s, self.part_s
        if each is None or not (iterations or parts):
            return ""
        besides = ", besides evaluations" if parts and part is None else ""
        return f"{about(iterations * each + parts * (part or 0.0))} left{besides}"

    def left_s(self, iterations: int, parts: int) -> float | None:
        """The same in seconds; None where iterations or evaluations that are left were not measured yet."""
        each, part = self.iteration_s, self.part_s
        if each is None or (parts and part is None):
            return None
        return iterations * each + parts * (part or 0.0)


def overlap(rolling_s: float, learning_s: float | None, iteration_s: float) -> float | None:
    """Which share of the shorter of rolling out and learning was hidden behind the other: 0 where one follows the
    other, 1 where an iteration takes no longer than the longer of them; None where either took no time.

    Args:
        rolling_s: of an iteration's rollouts, by an actor (their sum, divided by the actors).
        learning_s: of its step.
        iteration_s: of the whole.
    """
    if not learning_s or rolling_s <= 0:
        return None
    hidden = (rolling_s + learning_s - iteration_s) / min(rolling_s, learning_s)
    return min(1.0, max(0.0, hidden))


def about(seconds: float) -> str:
    """As exact as an estimate is."""
    if seconds < 95:
        return f"about {max(1, round(seconds / 10)) * 10} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min"
    if seconds < 47.5 * 3600:
        hours, tens = divmod(round(seconds / 600), 6)
        return f"about {hours} h" + (f" {tens * 10} min" if tens else "")
    return f"about {seconds / 86400:.1f} days"
