"""The plots of a report on ratings, as PNG bytes, in the style of a run's report."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np

from cluster.report.figures import BASE, PHASE_COLOURS, STYLE, TUNED
from reward_service.annotation.votes import BEST, LEVELS


def histograms(levels: Sequence[float], qualities: Mapping[str, Sequence[float]]) -> bytes:
    """How often each level was given, and the qualities of pictures by where they come from."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(10, 3.0), dpi=130, layout="constrained")
        left, right = figure.subplots(1, 2)
        counts = [sum(level == value for level in levels) for value in range(1, BEST + 1)]
        left.bar(range(1, BEST + 1), counts, color=BASE, width=0.7)
        left.set(title="Ratings", ylabel="votes")
        left.set_xticks(range(1, BEST + 1), [f"{i}\n{word}" for i, word in enumerate(LEVELS[::-1], 1)])
        colours = [PHASE_COLOURS[i % len(PHASE_COLOURS)] for i in range(len(qualities))]
        right.hist(
            [list(values) for values in qualities.values()],
            bins=np.linspace(1, BEST, 17).tolist(),
            color=colours,
            label=list(qualities),
            stacked=True,
        )
        right.set(title="Qualities", xlabel="quality", ylabel="pictures")
        right.legend(loc="best")
        return _png(figure)


def against_score(scores: Sequence[float], qualities: Sequence[float], errors: Sequence[float], title: str) -> bytes:
    """Quality of each output against the score that the run's scorer gives it."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(10, 3.0), dpi=130, layout="constrained")
        axis = figure.subplots()
        axis.errorbar(scores, qualities, errors, fmt="o", color=TUNED, ecolor="#e6e9ef", markersize=3.5, linewidth=1)
        axis.set(title=title, xlabel="score", ylabel="quality by people")
        return _png(figure)


def _png(figure: object) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")  # type: ignore[attr-defined]
    return buffer.getvalue()
