"""The page of a reward check: the verdict in words, and what it rests on; one file that needs no network."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from string import Template

import numpy as np

from cluster.files import write_text
from cluster.report.parts import TEMPLATE, facts_table, picture, plot, section, table
from cluster.report.strips import Strip, strips_png
from cluster.trust import figures
from cluster.trust.measures import Mean, Measures
from cluster.trust.rewards import Reward
from cluster.trust.verdict import Bars, Verdict
from cluster.trust.versions import LADDERS, TASK, TRICK_SEVERITIES, TRICKS, Specimen, ladder, tricked
from restoration.evaluate import evenly
from reward_service.training.distortions import SEVERITIES

Judged = Sequence[tuple[Reward, Measures, Verdict]]
HEADS = {"trust": "can be trusted", "care": "with care", "no": "not to be trusted"}
KNOWN = (
    "PSNR is a part of this reward: that the ground truth wins and that groups agree with PSNR hold by construction; "
    "look at the tricks on the base output."
)
COLOURS = {"trust": "up", "care": "unclear", "no": "down", "good": "up", "doubt": "unclear", "bad": "down"}


def write_page(path: Path, title: str, judged: Judged, tried: Sequence[Specimen], facts: dict[str, str]) -> Path:
    """Write the page; what it shows is computed already, but for the pictures' captions, which are scored anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(title, judged, tried, facts))
    return path


def render(title: str, judged: Judged, tried: Sequence[Specimen], facts: dict[str, str]) -> str:
    """The page as text."""
    sections = [part for reward, found, verdict in judged for part in _of_reward(reward, found, verdict)]
    reward, example = judged[0][0], tried[len(tried) // 2]
    sections += [
        section("Pictures", picture(restored_strips(tried, reward)), "With their scores."),
        section("A ladder of damage", picture(ladder_strips(example, reward)), "One picture, with its scores."),
        section("Tricks", picture(trick_strips(example, reward)), "On the base model's output, with its scores."),
        section("How it was tried", facts_table({**facts, **_bars()}.items())),
    ]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        kind="reward check",
        title=html.escape(title),
        written=time.strftime("%Y-%m-%d %H:%M"),
        cards="".join(_card(verdict) for _, _, verdict in judged),
        sections="\n".join(sections),
    )


def restored_strips(tried: Sequence[Specimen], reward: Reward, most: int = 3) -> bytes:
    """Input, base output and ground truth of some pictures, as PNG."""
    strips = []
    for one in evenly(tried, most):
        images = [one.lq, one.base, one.gt]
        labels = ("input", "base", "ground truth")
        strips.append(Strip(images, labels, _scores(reward, images, one.gt), title=one.image_id))
    return strips_png(strips, 256)


def ladder_strips(one: Specimen, reward: Reward) -> bytes:
    """All kinds of damage at all strengths."""
    labels = ("ground truth", *(f"{severity:g}" for severity in SEVERITIES))
    strips = []
    for kind in (TASK, *LADDERS):
        images = list(ladder(one, kind))
        strips.append(Strip(images, labels, _scores(reward, images, one.gt), title=kind))
    return strips_png(strips, 160)


def trick_strips(one: Specimen, reward: Reward) -> bytes:
    """All tricks at all strengths, on the base model's output."""
    labels = ("base", *(f"{severity:g}" for severity in TRICK_SEVERITIES))
    strips = []
    for trick in TRICKS:
        images = [one.base, *tricked(one.base, trick, one.image_id)]
        strips.append(Strip(images, labels, _scores(reward, images, one.gt), title=trick))
    return strips_png(strips, 160)


def _of_reward(reward: Reward, found: Measures, verdict: Verdict) -> list[str]:
    name = html.escape(verdict.name)
    known = f" {KNOWN}" if reward.referenced else ""
    version = f" Version {html.escape(reward.version)}." if reward.version else ""
    return [
        section(f"{name}: the verdict", _findings(verdict), html.escape(verdict.sentence) + "." + known + version),
        section(f"{name}: scores", _scores_table(found)),
        section(
            f"{name}: ladders",
            plot(figures.ladders(found, not reward.referenced), "scores of ladders") + _ladder_table(found),
        ),
        section(
            f"{name}: tricks",
            plot(figures.tricks(found), "gains of tricks") + _trick_table(found),
            "Only pictures whose PSNR the trick lowers count. Share: those that score higher without it.",
        ),
        section(
            f"{name}: groups of rollouts",
            plot(figures.groups(found), "score against PSNR") + _group_table(found),
            "Correlation of score and PSNR among the rollouts of one picture, which is what RL learns from.",
        ),
    ]


def _card(verdict: Verdict) -> str:
    colour = COLOURS[verdict.word]
    return (
        f'<div class="card"><span>{html.escape(verdict.name)}</span><b>{HEADS[verdict.word]}</b>'
        f'<em class="{colour}">{sum(f.standing != "good" for f in verdict.findings)} of {len(verdict.findings)} '
        "findings speak against it</em></div>"
    )


def _findings(verdict: Verdict) -> str:
    worst = sorted(verdict.findings, key=lambda f: ("bad", "doubt", "good").index(f.standing))
    return table(
        ("", ""), [(f'<span class="{COLOURS[f.standing]}">{f.standing}</span>', html.escape(f.text)) for f in worst]
    ).replace("<table>", '<table class="facts">')


def _scores_table(found: Measures) -> str:
    rows = [(name, _interval(mean, "{:.3f}")) for name, mean in found.scores.items()]
    rows += [(f"{name}, share of pictures", _interval(mean, "{:.0%}")) for name, mean in found.pairs.items()]
    return table(("", "mean and 95% interval over pictures"), rows)


def _ladder_table(found: Measures) -> str:
    rows = []
    for kind, mean in found.ladders.items():
        rows.append((kind, _interval(mean, "{:.0%}"), *(f"{value:.3f}" for value in found.steps[kind])))
    return table(("", "pairs in order", "ground truth", *(f"{s:g}" for s in SEVERITIES)), rows)


def _trick_table(found: Measures) -> str:
    rows = []
    for source, by_trick in found.tricks.items():
        for trick, strengths in by_trick.items():
            cells = [f"{_interval(t.beaten, '{:.0%}')} of {t.beaten.count}" for t in strengths]
            rows.append((f"{trick}, {source}", *cells))
    return table(("share that scores higher without", *(f"strength {s:g}" for s in TRICK_SEVERITIES)), rows)


def _group_table(found: Measures) -> str:
    rows = []
    for decision, w in found.within.items():
        cells = (_interval(w.spearman, "{:+.2f}"), _interval(w.pearson, "{:+.2f}"), str(w.spearman.count), str(w.flat))
        rows.append((f"decision {decision + 1}", *cells, f"{w.score_spread:.3f}", f"{w.psnr_spread:.2f} dB"))
    head = ("", "Spearman", "Pearson", "groups", "flat ones", "score's spread", "PSNR's")
    return table(head, rows) if rows else "<p>Nothing was rolled out.</p>"


def _interval(mean: Mean, form: str) -> str:
    if math.isnan(mean.value):
        return "unknown"
    return f"{form.format(mean.value)} ({form.format(mean.low)} to {form.format(mean.high)})"


def _bars() -> dict[str, str]:
    """The bars as they are stated."""
    found = {}
    for name, bar in asdict(Bars()).items():
        text = f"good from {bar[0]:g}, bad below {bar[1]:g}" if isinstance(bar, tuple) else f"{bar:g}"
        found[f"bar: {name.replace('_', ' ')}"] = text
    return found


def _scores(reward: Reward, images: Sequence[np.ndarray], gt: np.ndarray) -> tuple[str, ...]:
    block = np.stack(images)
    found: list[float] = []
    for start in range(0, len(block), reward.batch):
        part = block[start : start + reward.batch]
        found += np.asarray(reward.score(part, np.repeat(gt[None], len(part), 0)), np.float64).tolist()
    return tuple(f"{score:.3f}" for score in found)
