"""Golden files of what ratings and comparisons amount to; how they were made: `tests/golden/make_ratings.py`."""

from __future__ import annotations

import numpy as np
import torch

from reward_service.annotation.opinion import ROUNDING, opinions
from reward_service.annotation.strengths import Model, strengths
from reward_service.annotation.votes import Choices, Ratings
from tests.golden.case import Golden, Outputs

THEIR_FLOOR = 1e-4


def opinions_of(golden: Golden) -> Outputs:
    """ITU-T P.910 Annex E. A vote is NaN where there is none: [pictures, annotators, repetitions].

    With our floor, unless an annotator of theirs is more consistent than rounding allows: then with theirs.
    """
    ours: Outputs = {}
    for name, votes in golden.inputs.items():
        number = name.removeprefix("votes.")
        table = votes.numpy()
        floor = ROUNDING if golden.outputs[f"inconsistency.{number}"].min() > ROUNDING else THEIR_FLOOR
        found = opinions(
            Ratings.of(
                (f"a{i:03d}", f"p{j:03d}", float(table[j, i, r]))
                for j, i, r in np.argwhere(np.isfinite(table)).tolist()
            ),
            floor,
        )
        for figure in ("quality", "error", "bias", "inconsistency"):
            ours[f"{figure}.{number}"] = torch.from_numpy(getattr(found, figure))
    return ours


def strengths_of(golden: Golden) -> Outputs:
    """How often each picture won against each other, [pictures, pictures]."""
    ours: Outputs = {}
    for name, wins in golden.inputs.items():
        model: Model = "bradley-terry" if name.startswith("bradley") else "thurstone"
        rows = [
            ("x", f"p{a:03d}", f"p{b:03d}", 1.0)
            for a, b in np.argwhere(wins.numpy() > 0).tolist()
            for _ in range(int(wins[a, b]))
        ]
        found = strengths(Choices.of(rows), model, prior=1e-9)
        ours[name.replace(".wins", ".strength")] = torch.from_numpy(found.value)
    return ours
