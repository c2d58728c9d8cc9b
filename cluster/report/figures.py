"""The curves and histograms of a report, as PNG bytes; light, quiet, readable at half size."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cluster.report.data import Columns, smooth, wasserstein
from cluster.report.records import Record, is_timing, series
from cluster.report.spans import ACTOR, LEARNER, RANK, Busy, Iteration, Timeline, lanes, overlap

TERM = re.compile(r"term_(.+)_mean")  # as `learner.statistics` calls them
LIBRARIES = ("matplotlib.figure", "matplotlib.backends.backend_agg", "scipy.stats")

BASE, TUNED, TRUTH, DEGRADED = "#5b8def", "#e2583e", "#2f9e6e", "#9aa3b2"
METHOD_COLOURS = (BASE, TUNED, "#f2b134", "#8d6bd1", DEGRADED, "#20242c", "#3fb8c4")
COURSE_COLOURS = (TUNED, BASE, "#8d6bd1", "#f2b134")
PHASE_COLOURS = ("#5b8def", "#f2b134", "#9aa3b2", "#e2583e", "#2f9e6e", "#8d6bd1")
# Name of a span -> colour; of what failed, and whatever else there is, see `_colour`.
SPAN_COLOURS = {
    **{"rollout": BASE, "reward": "#f2b134", "publish": "#9fc0ff", "evaluation": "#8d6bd1"},
    **{"wait": "#e6e9ef", "fetch": "#c3c9d4", "step": TUNED, "weights": TRUTH},
    **{"snapshot": "#6a7383", "checkpoint": "#9aa3b2"},
}
MOST_ACTORS, MOST_RANKS = 8, 4  # rows of a picture
LANE = 0.8  # of a row
STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#c3c9d4",
    "axes.labelcolor": "#4a5261",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": "#20242c",
    "axes.grid": True,
    "grid.color": "#eceff4",
    "axes.axisbelow": True,
    "xtick.color": "#6a7383",
    "ytick.color": "#6a7383",
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def reward_curve(train: Sequence[Record], evaluations: Sequence[Record]) -> bytes | None:
    """Training reward, raw (thin) and smoothed, and the held-out reward and PSNR of the evaluations."""
    x, y = series(train, "reward_mean")
    held = {key: series([r for r in evaluations if r.get("who") == "now"], key) for key in ("reward", "psnr")}
    base = {key: series([r for r in evaluations if r.get("who") == "base"], key)[1] for key in ("reward", "psnr")}
    if not x and not held["reward"][0]:
        return None
    with _Figure(1 + bool(held["reward"][0]) + bool(held["psnr"][0])) as (figure, axes):
        axes[0].plot(x, y, color=TUNED, linewidth=0.7, alpha=0.45, label="each iteration")
        axes[0].plot(x, smooth(y), color=TUNED, linewidth=2, label="smoothed")
        axes[0].set(title="Reward of the rollouts", xlabel="iteration")
        if x:
            axes[0].legend(loc="best")
        shown = [(key, title) for key, title in (("reward", "Held-out reward"), ("psnr", "Held-out PSNR (dB)"))]
        for axis, (key, title) in zip(axes[1:], [s for s in shown if held[s[0]][0]], strict=True):
            axis.plot(*held[key], color=TUNED, linewidth=2, marker="o", markersize=3.5, label="RL")
            averaged = series([r for r in evaluations if r.get("who") == "ema"], key)
            if averaged[0]:
                axis.plot(*averaged, color=TRUTH, linewidth=2, marker="o", markersize=3.5, label="RL, averaged weights")
            if base[key]:
                axis.axhline(base[key][0], color=BASE, linestyle="--", label="base")
            axis.set(title=title, xlabel="iteration")
            axis.legend(loc="best")
        return _drawn(figure)


def term_curves(train: Sequence[Record]) -> bytes | None:
    """Of a reward of several terms, each by its name: mean of the rollouts, raw and smoothed."""
    found = dict.fromkeys(key for record in train for key in record if TERM.fullmatch(key))
    curves = {match[1]: series(train, key) for key in found if (match := TERM.fullmatch(key))}
    if not curves:
        return None
    with _Figure(len(curves)) as (figure, axes):
        for axis, (name, (x, y)) in zip(axes, curves.items(), strict=True):
            axis.plot(x, y, color=TUNED, linewidth=0.7, alpha=0.45)
            axis.plot(x, smooth(y), color=TUNED, linewidth=2)
            axis.set(title=name, xlabel="iteration")
        return _drawn(figure)


def gradient_norms(train: Sequence[Record]) -> bytes | None:
    """Norms of the two parts of the gradient, RL against SFT, on a log scale, and their ratio."""
    rl, sft = series(train, "grad_norm_rl"), series(train, "grad_norm_sft")
    both = sorted(set(rl[0]) & set(sft[0]))
    if not both:
        return None
    with _Figure(2) as (figure, axes):
        for (x, y), colour, label in ((rl, TUNED, "RL"), (sft, BASE, "SFT")):
            axes[0].plot(x, y, color=colour, linewidth=0.7, alpha=0.45)
            axes[0].plot(x, smooth(y), color=colour, linewidth=2, label=label)
        if all(v > 0 for v in rl[1] + sft[1]):
            axes[0].set_yscale("log")
        axes[0].set(title="Gradient norms", xlabel="iteration")
        axes[0].legend(loc="best")
        of = dict(zip(*rl, strict=True)), dict(zip(*sft, strict=True))
        ratio = [of[0][i] / of[1][i] if of[1][i] else np.nan for i in both]
        axes[1].plot(both, ratio, color="#8d6bd1", linewidth=1.5)
        axes[1].set(title="RL / SFT", xlabel="iteration")
        axes[1].set_ylim(bottom=0)
        return _drawn(figure)


def staleness_and_phases(train: Sequence[Record]) -> bytes | None:
    """Staleness of the consumed groups and where the seconds of an iteration go."""
    x, staleness = series(train, "staleness_mean")
    phases = {name: series(train, key) for name, key in _phases(train).items()}
    phases = {name: found for name, found in phases.items() if found[0]}
    if not x and not phases:
        return None
    with _Figure(bool(x) + bool(phases)) as (figure, axes):
        if x:
            axes[0].plot(x, staleness, color="#8d6bd1", linewidth=1.5, drawstyle="steps-mid")
            axes[0].set(title="Staleness (weights versions)", xlabel="iteration")
            axes[0].set_ylim(bottom=0, top=max(1.0, max(staleness) * 1.15))
        if phases:
            means = {name: float(np.mean(found[1])) for name, found in phases.items()}
            names = list(means)[::-1]
            colours = [PHASE_COLOURS[i % len(PHASE_COLOURS)] for i in range(len(names))][::-1]
            bars = axes[-1].barh(names, [means[n] for n in names], color=colours)
            axes[-1].bar_label(bars, fmt="%.2f", padding=3, color="#4a5261")
            axes[-1].set(title="Seconds per iteration (mean)")
            axes[-1].grid(axis="y", visible=False)
        return _drawn(figure)


def score_histograms(base: Columns, tuned: Columns) -> bytes | None:
    """Reward histograms of base, RL and ground truth over the same bins; means dashed, distances to the truth told."""
    samples = {"base": base.get("reward", []), "RL": tuned.get("reward", [])}
    return histograms(samples, base.get("gt_reward", []), "Reward of the held-out photographs", "reward")


def histograms(
    samples: Mapping[str, Sequence[float]], truth: Sequence[float], title: str, of: str, form: str = "png"
) -> bytes | None:
    """Histograms of several methods' scores, and of the originals', over the same bins.

    Args:
        samples: name of a method -> its scores; those that are not finite are left out, as are methods without any.
        truth: of the originals, to which each Wasserstein-1 distance is told.
        of: what the scores are, under the axis.
        form: png, pdf or svg.

    Returns:
        None for fewer than two samples, the originals' among them.
    """
    colours = {name: METHOD_COLOURS[i % len(METHOD_COLOURS)] for i, name in enumerate(samples)} | {"GT": TRUTH}
    known = {name: [v for v in values if np.isfinite(v)] for name, values in {**samples, "GT": truth}.items()}
    known = {name: values for name, values in known.items() if values}
    if len(known) < 2:
        return None
    originals = known.get("GT", [])
    everything = np.concatenate([*known.values()])
    bins = np.histogram_bin_edges(everything, bins=int(np.clip(2 * np.sqrt(len(next(iter(known.values())))), 12, 40)))
    with _Figure(1, height=3.4) as (figure, (axis,)):
        for name, values in known.items():
            colour = colours[name]
            distance = f", W1 to GT {wasserstein(values, originals):.3f}" if originals and name != "GT" else ""
            label = f"{name}: mean {np.mean(values):.3f}{distance}"
            axis.hist(values, bins, density=True, color=colour, alpha=0.28)
            axis.hist(values, bins, density=True, histtype="step", color=colour, linewidth=1.6, label=label)
            axis.axvline(np.mean(values), color=colour, linestyle="--", linewidth=1.4)
        axis.set(title=title, xlabel=of, ylabel="density")
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return _drawn(figure, form)


def reward_courses(runs: Mapping[str, Sequence[Record]], form: str = "png") -> bytes | None:
    """The training reward of several runs beside each other, over the same iterations: raw (thin) and smoothed.

    Each has an axis of its own, as rewards of different kinds have no common scale.

    Args:
        runs: name of a run -> its records of training.
        form: png, pdf or svg.

    Returns:
        None where no run has a reward.
    """
    curves = {name: series(records, "reward_mean") for name, records in runs.items()}
    curves = {name: found for name, found in curves.items() if found[0]}
    if not curves:
        return None
    last = max(x[-1] for x, _ in curves.values())
    with _Figure(len(curves)) as (figure, axes):
        for place, (axis, (name, (x, y))) in enumerate(zip(axes, curves.items(), strict=True)):
            colour = COURSE_COLOURS[place % len(COURSE_COLOURS)]
            axis.plot(x, y, color=colour, linewidth=0.7, alpha=0.45)
            axis.plot(x, smooth(y), color=colour, linewidth=2)
            axis.set(title=name, xlabel="iteration", ylabel="reward", xlim=(min(0, x[0]), last))
        return _drawn(figure, form)


def iteration_picture(timeline: Timeline, shown: Iteration) -> bytes | None:
    """Who was busy with what in one iteration: a row each for the learner, its ranks and the actors."""
    spans = timeline.within(shown.start, shown.end)
    rows = _rows(spans)
    if not rows:
        return None
    at_once = overlap(spans, shown.start, shown.end)
    share = "" if at_once.share is None else f"; {100 * at_once.share:.0f} % of the learner's work beside rollouts"
    with _Figure(1, height=1.3 + 0.34 * len(rows)) as (figure, (axis,)):
        named: dict[str, Any] = {}
        for place, (_, of) in enumerate(rows):
            several = lanes(of)
            height = LANE / len(several)
            for lane, row in enumerate(several):
                for span in row:
                    start, end = max(span.start, shown.start), min(span.end, shown.end)
                    top = place - LANE / 2 + (lane + 0.5) * height
                    bar = axis.barh(
                        top, end - start, 0.92 * height, left=start - shown.start, color=_colour(span.name), linewidth=0
                    )
                    named.setdefault(span.name, bar)
        axis.set_yticks(range(len(rows)), [who for who, _ in rows])
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        axis.set(xlim=(0, shown.end - shown.start), xlabel="seconds")
        axis.set_title(f"Iteration {shown.number}: {at_once.seconds:.1f} s{share}")
        axis.legend(named.values(), named.keys(), loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return _drawn(figure)


def _rows(spans: Sequence[Busy]) -> list[tuple[str, list[Busy]]]:
    """(who, spans) from the learner down; of many actors or ranks the first."""
    of: dict[str, dict[str, list[Busy]]] = {LEARNER: {}, RANK: {}, ACTOR: {}}
    for span in spans:
        of.get(span.role, {}).setdefault(span.who, []).append(span)
    rows = []
    for role, most in ((LEARNER, 1), (RANK, MOST_RANKS), (ACTOR, MOST_ACTORS)):
        ordered = sorted(of[role], key=lambda who: (len(who), who))  # by number
        rows += [(who, of[role][who]) for who in ordered[:most]]
        if rows and len(ordered) > most:
            rows[-1] = (f"{rows[-1][0]} of {len(ordered)}", rows[-1][1])
    return rows


def _colour(name: str) -> str:
    return SPAN_COLOURS.get(name, "#20242c")


def load_libraries() -> None:
    """Import what figures need, seconds of it, ahead of the first one."""
    for name in LIBRARIES:
        importlib.import_module(name)


def _phases(train: Sequence[Record]) -> dict[str, str]:
    """Name of each phase -> key of its seconds; what spans several phases is no phase."""
    timings = dict.fromkeys(key for record in train for key in record if is_timing(key))
    keys = [key for key in timings if not key.endswith(("_mb", "_per_s"))]
    names = {key: key.removeprefix("seconds_").removesuffix("_s").replace("_", " ") for key in keys}
    return {name: key for key, name in names.items() if name not in ("iteration", "elapsed")}


class _Figure:
    """A row of `columns` axes in the report's style; closed at the end."""

    def __init__(self, columns: int, height: float = 2.9):
        self.columns, self.height = columns, height

    def __enter__(self) -> tuple[Any, Any]:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self._context = rc_context(STYLE)  # type: ignore[arg-type]
        self._context.__enter__()
        figure = Figure(figsize=(10.4, self.height), layout="constrained")
        FigureCanvasAgg(figure)  # no pyplot: nothing global, usable in any thread
        return figure, figure.subplots(1, self.columns, squeeze=False)[0]

    def __exit__(self, *exception: Any) -> None:
        self._context.__exit__(*exception)


def _drawn(figure: Any, form: str = "png") -> bytes:
    buffer = io.BytesIO()
    # Without the time of writing, so that equal figures are equal files.
    stamp: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(form, {})
    figure.savefig(buffer, format=form, dpi=150, metadata=stamp)
    return buffer.getvalue()
