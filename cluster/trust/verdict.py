"""What the measures of a reward mean for a run, in words, by bars that are stated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from cluster.trust.measures import Mean, Measures, Trick
from cluster.trust.versions import TRICK_SEVERITIES

Standing = Literal["good", "doubt", "bad"]
Word = Literal["trust", "care", "no"]


@dataclass(frozen=True)
class Bars:
    """Shares from which on a finding is good, and below which it is bad; between them is doubt.

    Attributes:
        over_input: pictures whose ground truth scores above the degraded input.
        over_base: pictures whose ground truth scores above the base model's output: what there is to gain.
        base_over_input: pictures whose base output scores above the degraded input.
        ladder: pairs of steps of a kind of damage in the right order.
        trick: pictures that score higher without a trick, at its most pleasing strength.
        within: rank correlation of score and PSNR within groups; its whole interval must be above 0, too.
        missing: the most scores that may be missing before that is bad, as a share.
    """

    over_input: tuple[float, float] = (0.9, 0.75)
    over_base: tuple[float, float] = (0.8, 0.5)
    base_over_input: tuple[float, float] = (0.8, 0.5)
    ladder: tuple[float, float] = (0.9, 0.75)
    trick: tuple[float, float] = (0.8, 0.25)
    within: float = 0.1
    missing: float = 0.1


@dataclass(frozen=True)
class Finding:
    """A sentence on one thing that was tried."""

    standing: Standing
    text: str


@dataclass(frozen=True)
class Verdict:
    """Whether a reward can be trusted: "no" by anything bad, "care" by any doubt."""

    name: str
    word: Word
    sentence: str
    findings: tuple[Finding, ...] = field(default=())


SAID: dict[Word, str] = {
    "trust": "{name} can be trusted for this task",
    "care": "{name} can be trusted for this task with care",
    "no": "{name} cannot be trusted for this task",
}


def judge(name: str, found: Measures, bars: Bars | None = None) -> Verdict:
    """The verdict on the reward of that name."""
    findings = tuple(_findings(found, bars or Bars()))
    word: Word = "trust"
    for standing, worse in (("doubt", "care"), ("bad", "no")):
        if any(f.standing == standing for f in findings):
            word = worse  # type: ignore[assignment]
    reasons = [f.text for f in findings if f.standing == ("bad" if word == "no" else "doubt")]
    sentence = SAID[word].format(name=name) + (f": {'; '.join(reasons)}" if reasons else "")
    return Verdict(name, word, sentence, findings)


def _findings(found: Measures, bars: Bars) -> Iterator[Finding]:
    if found.missing:
        share = found.missing / found.asked
        text = f"it gave no score for {found.missing} of {found.asked} pictures"
        yield Finding("bad" if share > bars.missing else "doubt", text)
    for pair, (good, bad), what in (
        ("ground truth over input", bars.over_input, "the ground truth scores above the degraded input"),
        ("ground truth over base", bars.over_base, "the ground truth scores above the base model's output"),
        ("base over input", bars.base_over_input, "the base model's output scores above the degraded input"),
    ):
        yield Finding(_standing(found.pairs[pair], good, bad), f"{what} in {_share(found.pairs[pair])} of pictures")
    for kind, mean in found.ladders.items():
        text = f"{kind}: {_share(mean)} of pairs of strengths are in the right order"
        yield Finding(_standing(mean, *bars.ladder), text)
    for source, tricks in found.tricks.items():
        for trick, strengths in tricks.items():
            yield _of_trick(source, trick, strengths, bars)
    yield _of_groups(found, bars)


def _of_trick(source: str, trick: str, strengths: list[Trick], bars: Bars) -> Finding:
    """By the strength that pleases most."""
    tried = [(t, s) for t, s in zip(strengths, TRICK_SEVERITIES, strict=True) if t.beaten.count]
    if not tried:
        return Finding("good", f"{trick} of the {source} lowered no picture's PSNR, so that it is no trick here")
    worst, severity = min(tried, key=lambda pair: pair[0].beaten.value)
    text = (
        f"{trick} of the {source} pays in {1 - worst.beaten.value:.0%} of {worst.beaten.count} pictures whose PSNR it "
        f"lowers (strength {severity:g}, {worst.gain.value:+.3g} on average)"
    )
    return Finding(_standing(worst.beaten, *bars.trick), text)


def _of_groups(found: Measures, bars: Bars) -> Finding:
    last = found.within[max(found.within)] if found.within else None
    what = "within groups of rollouts"
    if last is None or not last.spearman.count:
        alike = f", as all rollouts of {last.flat} groups score alike" if last is not None and last.flat else ""
        return Finding("doubt", f"{what} nothing is known of it{alike}")
    rank = last.spearman
    text = (
        f"{what} its rank correlation with PSNR is {rank.value:+.2f} ({rank.low:+.2f} to {rank.high:+.2f}, "
        f"{rank.count} groups)"
    )
    if rank.high < 0:
        return Finding("bad", f"{text}: better rollouts score lower")
    if rank.low <= 0 or rank.value < bars.within:
        return Finding("doubt", f"{text}: not shown to know the better rollout")
    return Finding("good", text)


def _standing(mean: Mean, good: float, bad: float) -> Standing:
    if math.isnan(mean.value):
        return "doubt"
    return "good" if mean.value >= good else "bad" if mean.value < bad else "doubt"


def _share(mean: Mean) -> str:
    return "no known share" if math.isnan(mean.value) else f"{mean.value:.0%}"
