"""From comparisons to the strength of each picture: Bradley-Terry or Thurstone (case V), by maximum likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, log_expit, log_ndtr

from reward_service.annotation.votes import Choices, Indices, Values

Model = Literal["bradley-terry", "thurstone"]
MODELS: tuple[Model, ...] = ("bradley-terry", "thurstone")
_LOG_ROOT = 0.5 * np.log(2 * np.pi)


@dataclass(frozen=True, eq=False)
class Strengths:
    """Of J pictures.

    Attributes:
        value: float64 [J]; the mean of each group is 0. By Bradley-Terry in log odds, by Thurstone in deviations of one
            opinion.
        error: float64 [J], standard error.
        groups: int64 [J]; pictures of two groups were never compared, not even through others: their strengths aren't
            comparable either.
    """

    value: Values
    error: Values
    groups: Indices

    def preference(self, first: Indices, second: Indices, model: Model) -> Values:
        """Probability that each of `first` is better than its partner in `second`."""
        difference = self.value[first] - self.value[second]
        if model == "bradley-terry":
            return np.asarray(expit(difference))
        return np.asarray(np.exp(log_ndtr(difference * 2**-0.5)))


def strengths(choices: Choices, model: Model = "bradley-terry", prior: float = 0.1, most: int = 100) -> Strengths:
    """The strengths that make the comparisons likeliest; a tie is half a win of either.

    Args:
        prior: weight of a normal prior about 0. It keeps a picture that always won finite, and fixes the mean.

    Raises:
        ValueError: no comparison, another model, a prior that is not above 0.
        ArithmeticError: no maximum was found, which a bug alone could do.
    """
    if not len(choices):
        raise ValueError("no comparison: there is nothing to tell strengths from")
    if model not in MODELS:
        raise ValueError(f"model={model!r}: choose {' or '.join(MODELS)}")
    if not 0 < prior < np.inf:
        raise ValueError(f"prior={prior}: must be a number above 0")
    first, second, won, count = choices.first, choices.second, choices.won, len(choices.pictures)
    scale = 1.0 if model == "bradley-terry" else 2**-0.5

    def objective(value: Values) -> float:
        gap = scale * (value[first] - value[second])
        log = log_expit if model == "bradley-terry" else log_ndtr
        return float((won * log(gap) + (1 - won) * log(-gap)).sum() - prior / 2 * (value**2).sum())

    def slopes(value: Values) -> tuple[Values, Values]:
        """First derivative, and second with its sign turned, of each comparison's log likelihood by its gap."""
        gap = scale * (value[first] - value[second])
        if model == "bradley-terry":
            p = expit(gap)
            return scale * (won - p), scale**2 * p * (1 - p)
        up, down = _mills(gap), _mills(-gap)
        return scale * (won * up - (1 - won) * down), scale**2 * (
            won * up * (up + gap) + (1 - won) * down * (down - gap)
        )

    links = coo_array((np.ones(len(first)), (first, second)), shape=(count, count))
    _, groups = connected_components(links, directed=False)
    # Comparisons say nothing of the mean of a group: it is 0, and is kept so here whatever the prior weighs.
    means = (groups[:, None] == groups[None]) / np.bincount(groups)[groups]
    value = np.zeros(count)
    curvature = np.eye(count)
    for _ in range(most):
        slope, bend = slopes(value)
        gradient = np.bincount(first, slope, count) - np.bincount(second, slope, count) - prior * value
        curvature = prior * np.eye(count) + means
        for a, b, sign in ((first, first, 1), (second, second, 1), (first, second, -1), (second, first, -1)):
            np.add.at(curvature, (a, b), sign * bend)
        step = np.linalg.solve(curvature, gradient)
        step = step - means @ step
        there = objective(value)
        while objective(value + step) < there - 1e-9 * (1 + abs(there)):  # Newton's step may be too long
            step = step / 2
        value = value + step
        if np.abs(step).max() < 1e-9:
            break
    else:
        raise ArithmeticError(f"strengths of {count} pictures have not come to rest after {most} steps")
    free = np.eye(count) - means
    error = np.sqrt(np.diag(free @ np.linalg.inv(curvature) @ free))
    return Strengths(value, error, groups.astype(np.int64))


def _mills(gap: Values) -> Values:
    """Normal density over distribution."""
    return np.asarray(np.exp(-0.5 * gap**2 - _LOG_ROOT - log_ndtr(gap)))
