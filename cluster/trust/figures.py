"""The plots of a reward check, as PNG bytes, in the style of a run's report."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from cluster.report.figures import BASE, PHASE_COLOURS, STYLE, TRUTH, TUNED
from cluster.trust.measures import Measures, Trick
from cluster.trust.versions import TRICK_SEVERITIES
from reward_service.training.distortions import SEVERITIES


def ladders(found: Measures, truth: bool = True) -> bytes:
    """Mean score against severity, a line a kind; the ground truth, if it is shown, is at 0."""
    first = 0 if truth else 1
    with _panels(1, 3.2) as (figure, (axis,)):
        for i, (kind, means) in enumerate(found.steps.items()):
            colour = PHASE_COLOURS[i % len(PHASE_COLOURS)]
            axis.plot(
                (0.0, *SEVERITIES)[first:],
                means[first:],
                color=colour,
                linewidth=1.8,
                marker="o",
                markersize=3.5,
                label=kind,
            )
        for name, colour in (("input", "#9aa3b2"), ("base output", BASE)):
            axis.axhline(found.scores[name].value, color=colour, linestyle="--", linewidth=1.2, label=f"{name}, mean")
        unit = "severity (0: ground truth)" if truth else "severity"
        axis.set(title="More damage, less reward?", xlabel=unit, ylabel="mean score")
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return _png(figure)


def tricks(found: Measures) -> bytes:
    """What each trick adds to the score, by strength; above 0 it pays."""
    with _panels(len(found.tricks), 3.0) as (figure, axes):
        for axis, (source, by_trick) in zip(axes, found.tricks.items(), strict=True):
            for i, (trick, strengths) in enumerate(by_trick.items()):
                gains = [t.gain.value for t in strengths]
                spread = np.array([_reach(t) for t in strengths]).T
                colour = PHASE_COLOURS[i % len(PHASE_COLOURS)]
                axis.errorbar(
                    np.array(TRICK_SEVERITIES) + 0.006 * (i - 1.5), gains, spread, color=colour, linewidth=1.6,
                    marker="o", markersize=3.5, capsize=2, label=trick,
                )  # fmt: skip
            axis.axhline(0, color="#20242c", linewidth=0.8)
            axis.set(title=f"Tricks on the {source}", xlabel="strength", ylabel="change of score")
            axis.legend(loc="best")
        return _png(figure)


def groups(found: Measures) -> bytes | None:
    """Score against PSNR of rollouts, both less their group's mean, at the first and the last decision."""
    known = {d: w for d, w in found.within.items() if any(w.groups)}
    if not known:
        return None
    shown = sorted({min(known), max(known)})
    with _panels(len(shown), 3.2) as (figure, axes):
        for axis, decision in zip(axes, shown, strict=True):
            for i, group in enumerate(known[decision].groups):
                values = np.array(group)
                centred = values - np.nanmean(values, 0)
                colour = (BASE, TUNED, TRUTH, *PHASE_COLOURS)[i % 9]
                axis.scatter(centred[:, 1], centred[:, 0], s=14, color=colour, alpha=0.7, linewidths=0)
            rank = known[decision].spearman.value
            title = f"Decision {decision + 1} of {max(known) + 1}: rank correlation {rank:+.2f}"
            axis.set(title=title, xlabel="PSNR less its group's mean (dB)", ylabel="score less its group's")
        return _png(figure)


def _reach(trick: Trick) -> tuple[float, float]:
    gain = trick.gain
    return (gain.value - gain.low, gain.high - gain.value) if gain.count else (0.0, 0.0)


@contextmanager
def _panels(columns: int, height: float) -> Iterator[tuple[Any, Any]]:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(10.4, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(1, columns, squeeze=False)[0]


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150)
    return buffer.getvalue()
