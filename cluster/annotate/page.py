"""The page of ratings: who agrees with whom, what is known of the pictures, and where people differ most."""

from __future__ import annotations

import html
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

import numpy as np

from cluster.annotate import figures
from cluster.files import write_text
from cluster.report.parts import TEMPLATE, facts_table, picture, plot, section, table
from cluster.report.strips import Strip, strips_png
from restoration.images import read_pixels, to_float, to_uint8
from reward_service.annotation.cleaning import Cleaned, Rated
from reward_service.annotation.manifest import INPUT, OUTPUT, TRUTH, Manifest
from reward_service.annotation.screening import Rules
from reward_service.annotation.votes import BEST, LEVELS

REPORT = "report.html"
WORST = 6
UNKNOWN = "unknown"


def write_page(path: Path, folder: Path, manifest: Manifest, cleaned: Cleaned, rules: Rules) -> Path:
    """Write the page, one file that needs no network. The pictures are read from `folder`.

    Raises:
        ImageError: a picture can't be read.
        OSError: the page can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(folder, manifest, cleaned, rules))
    return path


def render(folder: Path, manifest: Manifest, cleaned: Cleaned, rules: Rules) -> str:
    """The page as text."""
    kept = len(cleaned.annotators) - len(cleaned.left_out)
    of = cleaned.agreement
    cards = [("annotators who count", f"{kept} of {len(cleaned.annotators)}", "left out by rule and by name")]
    if len(cleaned.ratings):
        cards.append(("agreement of ratings", number(of.alpha), "Krippendorff's alpha"))
        cards.append(("reliability of a mean", number(of.mean), f"of one rating {number(of.single)}"))
    if len(cleaned.choices):
        cards.append(("agreement of comparisons", number(of.alpha_in_pairs), "Krippendorff's alpha"))
    agreed = scorer_agreement(manifest, cleaned)
    if agreed is not None:
        cards.append(("scorer against people", f"{agreed[0]:.2f}", f"rank correlation of {agreed[1]} outputs"))
    sections = [
        section("Left out", _list([f"{who} {why}" for who, why in cleaned.left_out.items()] or ["nobody"])),
        section("To know", _list(cleaned.notes)) if cleaned.notes else "",
        section("Annotators", _annotators(cleaned), "Agreement is with the others who count."),
    ]
    if cleaned.rated:
        sections.append(section("Ratings and qualities", plot(_histograms(manifest, cleaned), "histograms")))
    if agreed is not None:
        sections.append(section("The scorer", plot(_against(manifest, cleaned), "quality against score")))
    sections += [
        section(
            "Where people differ most",
            picture(worst_ratings(folder, manifest, cleaned)),
            "Input, rated picture, ground truth; each level with how many gave it.",
        )
        if cleaned.rated
        else "",
        section(
            "Pairs that divide people most",
            picture(worst_pairs(folder, manifest, cleaned)),
            "Input, the two that were compared, ground truth.",
        )
        if cleaned.compared
        else "",
        section("How", facts_table(_how(manifest, cleaned, rules).items())),
    ]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        kind="ratings",
        title=html.escape(str(manifest.about.get("run") or manifest.export)),
        written=time.strftime("%Y-%m-%d %H:%M"),
        cards="".join(
            f'<div class="card"><span>{html.escape(name)}</span><b>{html.escape(value)}</b>'
            f"<em>{html.escape(more)}</em></div>"
            for name, value, more in cards
        ),
        sections="\n".join(filter(None, sections)),
    )


def number(value: float, form: str = "{:.2f}") -> str:
    """A figure, or that it is unknown."""
    return form.format(value) if math.isfinite(value) else UNKNOWN


def scorer_agreement(manifest: Manifest, cleaned: Cleaned) -> tuple[float, int] | None:
    """Spearman's correlation of score and quality over the outputs, and their number; None below three."""
    from scipy.stats import spearmanr

    both = _scored(manifest, cleaned)
    scores, qualities = [score for score, _ in both], [one.quality for _, one in both]
    if len(both) < 3 or len(set(scores)) == 1 or len(set(qualities)) == 1:
        return None
    return float(spearmanr(scores, qualities).statistic), len(both)


def worst_ratings(folder: Path, manifest: Manifest, cleaned: Cleaned, most: int = WORST) -> bytes:
    """The pictures whose ratings spread most, as PNG."""
    given: dict[str, list[float]] = defaultdict(list)
    for _, rated, level in cleaned.ratings.rows():
        given[rated].append(level)
    worst = sorted(cleaned.rated, key=lambda one: (-float(np.std(given[one.picture])), one.picture))[:most]
    strips = []
    for one in worst:
        levels = given[one.picture]
        words = [(levels.count(level), LEVELS[BEST - int(level)]) for level in sorted(set(levels))]
        counted = ", ".join(f"{count} x {word}" for count, word in words)
        names = [manifest.beside(one.picture, INPUT), one.picture, manifest.beside(one.picture, TRUTH)]
        captions = ["", f"{one.quality:.2f}", ""]
        strips.append(_strip(folder, manifest, names, ("input", "rated", "ground truth"), captions, counted))
    return strips_png(strips, 224)


def worst_pairs(folder: Path, manifest: Manifest, cleaned: Cleaned, most: int = WORST) -> bytes:
    """The pairs that people are most divided about, those with more votes first, as PNG."""
    ranked = sorted(cleaned.compared, key=lambda p: (abs(p.first_better - 0.5), -p.votes, p.first, p.second))[:most]
    strips = []
    for pair in ranked:
        names = [manifest.beside(pair.first, INPUT), pair.first, pair.second, manifest.beside(pair.first, TRUTH)]
        captions = ["", f"{pair.first_better:.0%}", f"{1 - pair.first_better:.0%}", ""]
        labels = ("input", "better", "better", "ground truth")
        strips.append(_strip(folder, manifest, names, labels, captions, f"{pair.votes} votes"))
    return strips_png(strips, 224)


def _strip(
    folder: Path,
    manifest: Manifest,
    names: Sequence[str | None],
    labels: Sequence[str],
    captions: Sequence[str],
    title: str,
) -> Strip:
    there = [(n, label, c) for n, label, c in zip(names, labels, captions, strict=True) if n is not None]
    images = [to_uint8(to_float(read_pixels(folder / manifest.pictures[name].file))[None])[0] for name, _, _ in there]
    return Strip(images, [label for _, label, _ in there], [caption for _, _, caption in there], title=title)


def _scored(manifest: Manifest, cleaned: Cleaned) -> list[tuple[float, Rated]]:
    pictures = manifest.pictures
    scored = ((pictures[one.picture].score, one) for one in cleaned.rated if pictures[one.picture].role == OUTPUT)
    return [(score, one) for score, one in scored if score is not None]


def _histograms(manifest: Manifest, cleaned: Cleaned) -> bytes:
    qualities: dict[str, list[float]] = defaultdict(list)
    for one in cleaned.rated:
        shown = manifest.pictures[one.picture]
        iteration = shown.checkpoint if shown.checkpoint == "base" else f"iteration {shown.checkpoint}"
        kind = iteration if shown.role == OUTPUT else {INPUT: "input", TRUTH: "ground truth"}[shown.role]
        qualities[kind].append(one.quality)
    return figures.histograms(cleaned.ratings.level.tolist(), {name: qualities[name] for name in sorted(qualities)})


def _against(manifest: Manifest, cleaned: Cleaned) -> bytes:
    both = _scored(manifest, cleaned)
    title = f"{manifest.about.get('scorer', 'the scorer')} against people"
    return figures.against_score(
        [score for score, _ in both], [one.quality for _, one in both], [one.error for _, one in both], title
    )


def _annotators(cleaned: Cleaned) -> str:
    opinions = cleaned.opinions
    model: Mapping[str, tuple[float, float]] = {}
    if opinions is not None:
        pairs = zip(opinions.bias.tolist(), opinions.inconsistency.tolist(), strict=True)
        model = dict(zip(cleaned.raters, pairs, strict=True))
    rows = []
    for who, of in cleaned.annotators.items():
        bias, inconsistency = model.get(who, (math.nan, math.nan))
        verdict = '<span class="down">left out</span>' if of.left_out else '<span class="up">counts</span>'
        failed = f"{of.traps_failed:.0%} of {of.traps}" if of.traps else "none"
        cells = [str(of.ratings), str(of.comparisons), number(of.agreement), number(of.agreement_in_pairs), failed]
        cells += [number(of.repeat_difference), number(of.repeat_agreement, "{:.0%}")]
        cells += [number(bias, "{:+.2f}"), number(inconsistency), verdict]
        rows.append((html.escape(who), *cells))
    head = ("", "ratings", "comparisons", "agreement", "in pairs", "traps failed", "repeats differ by", "repeats alike")
    return table((*head, "bias", "inconsistency", ""), rows)


def _how(manifest: Manifest, cleaned: Cleaned, rules: Rules) -> dict[str, str]:
    found = {
        "export": manifest.export,
        "run": str(manifest.about.get("run", "")),
        "pictures": str(len(manifest.pictures)),
    }
    found |= {"tasks": str(len(manifest.tasks)), "scorer": str(manifest.about.get("scorer", ""))}
    found |= {f"rule: {name.replace('_', ' ')}": f"{value:g}" for name, value in vars(rules).items()}
    if cleaned.opinions is not None:
        found["iterations of maximum likelihood"] = str(cleaned.opinions.iterations)
    return found


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"
