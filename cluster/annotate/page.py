"""The page of ratings: who agrees with whom, what is known of the pictures, and where people differ most."""

from __future__ import annotations

import base64
import html
import io
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

import numpy as np

from cluster.annotate import figures
from cluster.files import write_text
from cluster.report.report import TEMPLATE
from cluster.report.strips import Strip, draw_strips
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
        _section("Left out", _list([f"{who} {why}" for who, why in cleaned.left_out.items()] or ["nobody"])),
        _section("To know", _list(cleaned.notes)) if cleaned.notes else "",
        _section("Annotators", _annotators(cleaned), "Agreement is with the others who count."),
    ]
    if cleaned.rated:
        sections.append(_section("Ratings and qualities", _plot(_histograms(manifest, cleaned), "histograms")))
    if agreed is not None:
        sections.append(_section("The scorer", _plot(_against(manifest, cleaned), "quality against score")))
    sections += [
        _section(
            "Where people differ most",
            _picture(worst_ratings(folder, manifest, cleaned)),
            "Input, rated picture, ground truth; each level with how many gave it.",
        )
        if cleaned.rated
        else "",
        _section(
            "Pairs that divide people most",
            _picture(worst_pairs(folder, manifest, cleaned)),
            "Input, the two that were compared, ground truth.",
        )
        if cleaned.compared
        else "",
        _section("How", _facts(_how(manifest, cleaned, rules))),
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
    for _, picture, level in cleaned.ratings.rows():
        given[picture].append(level)
    worst = sorted(cleaned.rated, key=lambda one: (-float(np.std(given[one.picture])), one.picture))[:most]
    strips = []
    for one in worst:
        levels = given[one.picture]
        words = [(levels.count(level), LEVELS[BEST - int(level)]) for level in sorted(set(levels))]
        counted = ", ".join(f"{count} x {word}" for count, word in words)
        names = [manifest.beside(one.picture, INPUT), one.picture, manifest.beside(one.picture, TRUTH)]
        captions = ["", f"{one.quality:.2f}", ""]
        strips.append(_strip(folder, manifest, names, ("input", "rated", "ground truth"), captions, counted))
    return _drawn(strips)


def worst_pairs(folder: Path, manifest: Manifest, cleaned: Cleaned, most: int = WORST) -> bytes:
    """The pairs that people are most divided about, those with more votes first, as PNG."""
    ranked = sorted(cleaned.compared, key=lambda p: (abs(p.first_better - 0.5), -p.votes, p.first, p.second))[:most]
    strips = []
    for pair in ranked:
        names = [manifest.beside(pair.first, INPUT), pair.first, pair.second, manifest.beside(pair.first, TRUTH)]
        captions = ["", f"{pair.first_better:.0%}", f"{1 - pair.first_better:.0%}", ""]
        labels = ("input", "better", "better", "ground truth")
        strips.append(_strip(folder, manifest, names, labels, captions, f"{pair.votes} votes"))
    return _drawn(strips)


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
        picture = manifest.pictures[one.picture]
        iteration = picture.checkpoint if picture.checkpoint == "base" else f"iteration {picture.checkpoint}"
        qualities[
            iteration if picture.role == OUTPUT else {INPUT: "input", TRUTH: "ground truth"}[picture.role]
        ].append(one.quality)
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
    return _table((*head, "bias", "inconsistency", ""), rows)


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


def _drawn(strips: Sequence[Strip]) -> bytes:
    buffer = io.BytesIO()
    draw_strips(strips, 224).save(buffer, "PNG")
    return buffer.getvalue()


def _section(title: str, content: str, note: str = "") -> str:
    aside = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{title}</h2>{aside}{content}</section>"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    above = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr><th>{first}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>" for first, *rest in rows)
    return f"<table><thead><tr>{above}</tr></thead><tbody>{body}</tbody></table>"


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in facts.items())
    return f'<table class="facts">{rows}</table>'


def _plot(png: bytes, description: str) -> str:
    return f'<img class="plot" alt="{description}" src="{_url(png)}">'


def _picture(png: bytes) -> str:
    return f'<figure><img alt="" src="{_url(png)}"></figure>'


def _url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
