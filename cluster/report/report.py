"""`report.html` of a run: one file that shows everything and needs nothing, neither a network nor a server."""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Iterable
from pathlib import Path
from string import Template

from cluster.files import write_text
from cluster.report import figures
from cluster.report.data import Comparison, RunData, compare, drift, facts, read_run, wasserstein
from cluster.report.spans import read_timeline, typical

TEMPLATE = Path(__file__).with_name("template.html")
NAMES = {"psnr": ("PSNR", "dB", 2), "ssim": ("SSIM", "", 4), "reward": ("Reward", "", 4), "piqe": ("100 - PIQE", "", 2)}
ANIMATION = "chain.webp"  # in a run folder, see `cluster.report.chains`
MOST_STRIPS = 6
MOST_SLIDERS = 3
SIDES = {"input": "input", "base": "base", "rl": "RL", "gt": "truth"}  # folder of an evaluation -> label


def write_report(folder: Path, path: Path | None = None) -> Path:
    """Write the report of a run, running, finished or not; returns its path (`<folder>/report.html` by default).

    Read from the run folder: config.yaml, run.json, metrics.jsonl, evaluation/{base,rl}.csv, strips/*.png, spans.jsonl,
    chain.webp and, for the sliders, evaluation/{input,base,rl,gt}/<image_id>.png. A part whose file is missing is left
    out.

    Raises:
        FileNotFoundError: no run folder.
        ValueError: a damaged file, named.
        OSError: the report can't be written.
    """
    run = read_run(folder)
    path = Path(folder) / "report.html" if path is None else Path(path)
    write_text(path, render(run))
    return path


def render(run: RunData) -> str:
    """The page as text."""
    comparisons = compare(run.base, run.tuned) if run.base and run.tuned else []
    name = str(run.about.get("name") or run.folder.resolve().name)
    sections = [
        _section("Held-out photographs", _table(comparisons), _note(comparisons, run)),
        _section(
            "Alarms",
            _alarms(run),
            "Signs of a reward bought with something else, or of replays unlike their rollouts.",
        ),
        _section("Drift", _drift(run), "Output minus ground truth, means over images."),
        _section(
            "Before and after",
            _sliders(run.folder),
            "Drag the line; the buttons at the left and right choose what is shown there.",
        ),
        _section(
            "The chain",
            _animation(run.folder / ANIMATION),
            "Step by step what the model takes the clean picture for, base above RL, each with its score and PSNR. "
            "Below: the scores, of the base in blue and of RL in red; the ground truth's is the green line.",
        ),
        _section("Reward", _figure(figures.reward_curve(run.train, run.evaluations), "reward against iterations")),
        _section(
            "Terms of the reward",
            _figure(figures.term_curves(run.train), "terms of the reward against iterations"),
            "Each scorer's mean over the final outputs of the rollouts, before weights.",
        ),
        _section("Scores", _figure(figures.score_histograms(run.base, run.tuned), "reward histograms"), _distance(run)),
        _section("Images", _strips(run.strips)),
        _section("Gradients", _figure(figures.gradient_norms(run.train), "gradient norms of RL and SFT")),
        _section("Pace", _figure(figures.staleness_and_phases(run.train), "staleness and phases")),
        _section("One iteration", *_iteration(run.folder)),
        _section("The run", _facts(run)),
        _section(
            "Configuration", f"<details><summary>config.yaml</summary><pre>{html.escape(run.config)}</pre></details>"
        )
        if run.config
        else "",
    ]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        kind="run",
        title=html.escape(name),
        written=time.strftime("%Y-%m-%d %H:%M"),
        cards=_cards(comparisons),
        sections="\n".join(filter(None, sections)),
    )


def _section(title: str, content: str, note: str = "") -> str:
    if not content:
        return ""
    aside = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{title}</h2>{aside}{content}</section>"


def _cards(comparisons: Iterable[Comparison]) -> str:
    cards = []
    for c in comparisons:
        label, unit, digits = _naming(c.metric)
        cards.append(
            f'<div class="card"><span>{label}</span><b>{c.tuned:.{digits}f}<small>{unit}</small></b>'
            f'<em class="{c.verdict}">{c.difference:+.{digits}f} against base</em></div>'
        )
    return "".join(cards)


def _table(comparisons: list[Comparison]) -> str:
    if not comparisons:
        return ""
    rows = []
    for c in comparisons:
        label, unit, d = _naming(c.metric)
        degraded = "" if c.degraded is None else f"{c.degraded:.{d}f}"
        best = max(c.base, c.tuned)
        base, tuned = (f"<b>{v:.{d}f}</b>" if v == best else f"{v:.{d}f}" for v in (c.base, c.tuned))
        rows.append(
            f"<tr><th>{label}{f' ({unit})' if unit else ''}</th><td>{degraded}</td><td>{base}</td><td>{tuned}</td>"
            f'<td class="{c.verdict}">{c.difference:+.{d}f}</td><td>{c.low:+.{d}f} to {c.high:+.{d}f}</td></tr>'
        )
    head = "<th></th><th>Degraded input</th><th>Base</th><th>RL</th><th>RL - base</th><th>95% interval</th>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _alarms(run: RunData) -> str:
    rows = "".join(f"<tr><th>iteration {r['iteration']}</th><td>{html.escape(r['sign'])}</td></tr>" for r in run.alarms)
    return f'<table class="facts">{rows}</table>' if rows else ""


def _drift(run: RunData) -> str:
    rows = [
        f"<tr><th>{name.capitalize()}</th>" + "".join(f"<td>{value:+.4f}</td>" for value in values) + "</tr>"
        for name, *values in drift(run.base, run.tuned)
    ]
    head = "<th></th><th>Degraded input</th><th>Base</th><th>RL</th>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>" if rows else ""


def _note(comparisons: list[Comparison], run: RunData) -> str:
    if not comparisons:
        return ""
    photographs = len(run.base["image_id"])
    fewer = ", ".join(f"{_naming(c.metric)[0]} {c.count}" for c in comparisons if c.count < photographs)
    having = f" (those that have the figure: {fewer})" if fewer else ""
    return (
        f"Means over {photographs} images{having}. The difference is paired by image; its interval is a bootstrap over "
        "images and says nothing about other training seeds. Coloured where the interval leaves out 0."
    )


def _distance(run: RunData) -> str:
    truth = [v for v in run.base.get("gt_reward", []) if v == v]
    if not truth or not run.tuned.get("reward"):
        return ""
    before, after = (wasserstein([v for v in s.get("reward", []) if v == v], truth) for s in (run.base, run.tuned))
    moved = "nearer to" if after < before else "further from"
    return f"RL moved the scores {moved} the ground truth's: Wasserstein-1 distance {before:.3f}, then {after:.3f}."


def _iteration(folder: Path) -> tuple[str, str]:
    """A picture of a typical iteration, and what it shows; nothing where its spans aren't there."""
    timeline = read_timeline(folder)
    shown = typical(timeline)
    picture = None if shown is None else figures.iteration_picture(timeline, shown)
    clocks = "".join(f" ({html.escape(str(clock))})" for clock in timeline.clocks if clock.shift)
    note = f"Who was busy with what, in the iteration of median length that is kept.{clocks}"
    return _figure(picture, "timeline of one iteration"), note


def _figure(png: bytes | None, description: str) -> str:
    return f'<img class="plot" alt="{description}" src="{_data_url(png)}">' if png else ""


def _strips(paths: list[Path]) -> str:
    """The first, the last, and some between, newest first."""
    if len(paths) > MOST_STRIPS:
        step = (len(paths) - 1) / (MOST_STRIPS - 1)
        paths = [paths[round(i * step)] for i in range(MOST_STRIPS)]
    if not paths:
        return ""
    newest, *older = paths[::-1]
    shown = _strip(newest)
    if older:
        shown += f"<details><summary>Earlier in the run</summary>{''.join(map(_strip, older))}</details>"
    return shown


def _strip(path: Path) -> str:
    caption = html.escape(path.stem.replace("iter_", "iteration ").replace("_", " "))
    return (
        f'<figure><img alt="{caption}" src="{_data_url(path.read_bytes())}"><figcaption>{caption}</figcaption></figure>'
    )


def _sliders(folder: Path) -> str:
    """Pictures of which base and RL are there; input and ground truth where they are, too."""
    shown: list[str] = []
    where = folder / "evaluation"
    for base in sorted((where / "base").rglob("*.png")):
        image = base.relative_to(where / "base")
        files = {label: where / who / image for who, label in SIDES.items()}
        there = {label: path for label, path in files.items() if path.is_file()}
        if SIDES["rl"] in there and len(shown) < MOST_SLIDERS:
            shown.append(_slider(html.escape(image.with_suffix("").as_posix()), there))
    return f'<div class="sliders">{"".join(shown)}</div>' if shown else ""


def _slider(name: str, files: dict[str, Path]) -> str:
    choices = {"left": SIDES["base"], "right": SIDES["rl"]}
    classes = {label: f' class="{side}"' for side, label in choices.items()}  # shown where no script runs, too
    images = "".join(
        f'<img{classes.get(label, "")} alt="{name}, {label}" data-side="{label}" src="{_data_url(path.read_bytes())}">'
        for label, path in files.items()
    )
    buttons = [
        f'<span class="{side}">'
        + "".join(f'<button type="button"{" class=on" * (one == chosen)}>{one}</button>' for one in files)
        + "</span>"
        for side, chosen in choices.items()
    ]
    return (
        f'<figure><div class="compare" data-left="{choices["left"]}" data-right="{choices["right"]}">{images}<i></i>'
        '<input type="range" min="0" max="100" value="50" aria-label="part of the left image shown"></div>'
        f'<div class="sides">{"".join(buttons)}</div><figcaption>{name}</figcaption></figure>'
    )


def _animation(path: Path) -> str:
    if not path.is_file():
        return ""
    source = _data_url(path.read_bytes(), "webp")
    return f'<figure class="chain"><img alt="clean estimates of the steps, base and RL" src="{source}"></figure>'


def _facts(run: RunData) -> str:
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in facts(run))
    return f'<table class="facts">{rows}</table>' if rows else ""


def _naming(metric: str) -> tuple[str, str, int]:
    return NAMES.get(metric, (html.escape(metric), "", 4))


def _data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()
