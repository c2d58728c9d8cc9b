"""Signs of reward hacking: the reward rises while a figure that is not optimised falls."""

from __future__ import annotations

import math
from collections.abc import Sequence

from restoration.evaluate import Row
from restoration.metrics.appearance import APPEARANCE

ERRORS = 2.0  # standard errors of the paired mean that count as a change


def alarms(base: Sequence[Row], now: Sequence[Row]) -> list[str]:
    """One sentence for each figure that got worse while the reward got better; rows of the same images.

    None of a run whose reward only compares with the ground truth: nothing is bought with such a reward.

    A figure gets worse when its mean paired difference is below 0 by more than two standard errors; a look
    (brightness, saturation, sharpness) when its distance to the ground truth's grew by as much.
    """
    before = {row.image_id: row.values for row in base}
    pairs = [(before[row.image_id], row.values) for row in now if row.image_id in before]
    if not pairs or any("reward" not in side for pair in pairs for side in pair):
        return []
    if _change([b["reward"] for _, b in pairs], [a["reward"] for a, _ in pairs])[1] <= ERRORS:
        return []
    found = []
    names = [n for n in pairs[0][1] if n in pairs[0][0] and not n.startswith(("input_", "gt_")) and n != "reward"]
    for name in names:
        if name in APPEARANCE:
            drift = [[abs(v[name] - v[f"gt_{name}"]) for v in side] for side in zip(*pairs, strict=True)]
            mean, size = _change(drift[1], drift[0])
            if size > ERRORS:
                found.append(f"the reward rises while {name} moves away from the ground truth's by {mean:.4f}")
        else:
            mean, size = _change([b[name] for _, b in pairs], [a[name] for a, _ in pairs])
            if size < -ERRORS:
                found.append(f"the reward rises while {name} falls by {-mean:.4f}")
    return found


def _change(new: Sequence[float], old: Sequence[float]) -> tuple[float, float]:
    """Mean of new - old, and the same in its standard errors (0 for fewer than two images).

    Images that lack the figure (NaN) on either side are left out.
    """
    differences = [a - b for a, b in zip(new, old, strict=True) if not math.isnan(a - b)]
    if not differences:
        return 0.0, 0.0
    mean = math.fsum(differences) / len(differences)
    if len(differences) < 2:
        return mean, 0.0
    variance = math.fsum((d - mean) ** 2 for d in differences) / (len(differences) - 1)
    error = math.sqrt(variance / len(differences))
    return mean, mean / error if error else math.copysign(math.inf, mean) if mean else 0.0
