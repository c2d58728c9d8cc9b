"""A comparison as files in a folder: tables, a line a picture, histograms, strips, and one page that shows it all."""

from __future__ import annotations

import html
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from PIL import Image

from cluster.compare.measured import Comparison
from cluster.compare.pictures import TRUTH, Crop, pictures_of, strips
from cluster.compare.table import (
    CORRECTED,
    DIFFERENCE_HEAD,
    as_csv,
    as_json,
    as_latex,
    as_markdown,
    cells,
    difference_rows,
    head,
    versions,
)
from cluster.files import write_text
from cluster.report import figures
from cluster.report.data import wasserstein
from cluster.report.parts import TEMPLATE, facts_table, plot, section, slider, table
from cluster.report.strips import strips_png
from restoration.datasets.matching import some
from restoration.figures import Pixels
from restoration.whole_files import written_whole

SLIDER_SIDE = 768  # pixels of a picture in the page; larger ones are reduced
MOST_SLIDERS = 3
STRIP_WIDTH = 256


def distances(comparison: Comparison) -> dict[str, dict[str, float]]:
    """Of each scorer, Wasserstein-1 between a method's scores and the originals'; only where there are scores."""
    found: dict[str, dict[str, float]] = {}
    for scorer in comparison.scorers:
        scores, truth = comparison.scores(scorer)
        if truth:
            found[scorer] = {name: wasserstein(values, truth) for name, values in scores.items()}
    return found


def histogram(comparison: Comparison, scorer: str, form: str = "png") -> bytes | None:
    """The scores of every method and of the originals; None where no picture has them everywhere."""
    scores, truth = comparison.scores(scorer)
    return figures.histograms(scores, truth, f"{scorer} of {len(truth)} pictures", scorer, form) if truth else None


def write_comparison(folder: Path, comparison: Comparison, crops: Sequence[Crop]) -> list[Path]:
    """Write compare.{md,tex,csv,json,html}, strips.png and histogram_<scorer>.png; returns their paths.

    Raises:
        OSError: a file can't be written.
    """
    folder = Path(folder)
    drawn = strips(comparison, crops)
    pictures = {f"histogram_{_safe(s)}.png": histogram(comparison, s) for s in comparison.scorers}
    pictures["strips.png"] = strips_png(drawn, STRIP_WIDTH) if drawn else None
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    texts = {
        "compare.md": as_markdown(comparison),
        "compare.tex": as_latex(comparison),
        "compare.csv": as_csv(comparison),
        "compare.json": as_json(comparison, distances(comparison)),
        "compare.html": render(comparison, crops, pictures["strips.png"]),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
        written.append(folder / name)
    for name, png in pictures.items():
        if png is not None:
            with written_whole(folder / name) as temporary:
                temporary.write_bytes(png)
            written.append(folder / name)
    return written


def render(comparison: Comparison, crops: Sequence[Crop], strips_png: bytes | None) -> str:
    """The page as text."""
    names = [m.method.name for m in comparison.methods]
    told = distances(comparison)
    sections = [
        section("Figures", _table(comparison), "<br>".join(map(html.escape, head(comparison)))),
        section(
            "Differences",
            table(DIFFERENCE_HEAD, [tuple(map(html.escape, row)) for row in difference_rows(comparison.differences())]),
            "First method minus second, picture by picture, with a bootstrap interval over pictures and Wilcoxon's "
            f"signed-rank test; {CORRECTED}. Neither says anything about other seeds of a training.",
        ),
        section("To look into", "".join(f"<p>{html.escape(text)}</p>" for text in comparison.problems())),
        *(
            section(
                f"Scores by {html.escape(scorer)}",
                plot(histogram(comparison, scorer), f"histograms of {scorer}"),
                _distances(told.get(scorer, {})),
            )
            for scorer in comparison.scorers
        ),
        section(
            "Pictures",
            plot(strips_png, "strips of pictures with an enlarged part of each"),
            "Boxed and enlarged below: what was asked for, else where the methods differ most.",
        ),
        section(
            "Before and after",
            _sliders(comparison, crops),
            "Drag the line; the buttons at the left and right choose what is shown there.",
        ),
        section("Missing figures", facts_table(_missing(comparison))),
        section("How it was measured", facts_table(_facts(comparison))),
    ]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        kind="comparison",
        title=html.escape(" and ".join(names)),
        written=time.strftime("%Y-%m-%d %H:%M"),
        cards="",
        sections="\n".join(filter(None, sections)),
    )


def _table(comparison: Comparison) -> str:
    titles = [f"{html.escape(c.label)} {'↓' if c.lower else '↑'}" for c in comparison.columns]
    forms = {"best": "<b>{}</b>", "second": "<u>{}</u>", "": "{}"}
    rows = [
        (html.escape(name), *(forms[place].format(html.escape(text)) for text, place in row))
        for name, row in cells(comparison)
    ]
    return table(("", *titles), rows)


def _distances(of: Mapping[str, float]) -> str:
    told = ", ".join(f"{html.escape(name)} {value:.3f}" for name, value in of.items())
    return f"Wasserstein-1 distance to the scores of the originals: {told}." if told else ""


def _sliders(comparison: Comparison, crops: Sequence[Crop]) -> str:
    left, right = (m.method.name for m in comparison.methods[:2])
    shown = []
    for image_id in list(dict.fromkeys(crop.image_id for crop in crops))[:MOST_SLIDERS]:
        pictures = {name: _png(image) for name, image in pictures_of(comparison, image_id).items()}
        shown.append(slider(image_id, pictures, left, right))
    return f'<div class="sliders">{"".join(shown)}</div>' if shown else ""


def _missing(comparison: Comparison) -> list[tuple[str, str]]:
    found = []
    for m in comparison.measured:
        for row in m.rows:
            for why in dict.fromkeys(row.missing.values()):
                names = ", ".join(name for name, reason in row.missing.items() if reason == why)
                found.append((f"{m.method.name}, {row.image_id}", f"{names}: {why}"))
    return found


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    data = [(m.method.name, f"{m.method.data.lq}, paired by {m.method.data.match}") for m in comparison.measured]
    first = comparison.measured[0].method.data
    ids = some(comparison.image_ids)
    told = [(TRUTH, str(first.gt)), ("pictures", f"{len(comparison.image_ids)}: {ids}")]
    return [*data, *told, *((f"version of {name}", number) for name, number in versions().items())]


def _png(image: Pixels) -> bytes:
    picture = Image.fromarray(image)
    picture.thumbnail((SLIDER_SIDE, SLIDER_SIDE), Image.Resampling.LANCZOS)
    return encoded(picture, "png")


def encoded(picture: Image.Image, form: str) -> bytes:
    """The bytes of a file of that form."""
    buffer = io.BytesIO()
    picture.save(buffer, form.upper(), dpi=(200, 200), **({"resolution": 200.0} if form == "pdf" else {}))
    return buffer.getvalue()


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
