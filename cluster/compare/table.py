"""A comparison as a table of papers: Markdown, LaTeX for booktabs, CSV of every picture, JSON of everything."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from cluster.compare.columns import Column, Place, places
from cluster.compare.measured import Comparison, Difference
from cluster.latex import latex
from restoration.evaluate import MISSING
from restoration.metrics import protocol

LIBRARIES = ("restorl", "numpy", "torch", "scipy")
CORRECTED = "p values are of single tests, not corrected for their number"


def head(comparison: Comparison) -> list[str]:
    """What a table's figures are, a line each: protocols in words, pictures, what belongs to single columns."""
    lines = [f"protocol {name} ({protocol(name).told})" for name in comparison.protocols]
    return [*lines, f"means over {len(comparison.image_ids)} pictures", *comparison.notes()]


def cells(comparison: Comparison) -> list[tuple[str, list[tuple[str, Place]]]]:
    """(name of a method, [(figure, its place)]) of each row; the degraded pictures have no place."""
    measured, columns = comparison.measured, comparison.columns
    shown: list[list[tuple[str, Place]]] = [[] for _ in measured]
    for column in columns:
        values = [comparison.value(m, column) for m in measured]
        ranked = places([math.nan if m.method.is_input else v for m, v in zip(measured, values, strict=True)], column)
        for row, value, place in zip(shown, values, ranked, strict=True):
            row.append((column.text(value), place))
    return [(m.method.name, row) for m, row in zip(measured, shown, strict=True)]


def as_markdown(comparison: Comparison) -> str:
    """The table, best bold and second underlined, and the differences below."""
    arrows = [f"{column.label} {'↓' if column.lower else '↑'}" for column in comparison.columns]
    rows = [
        (_plain(name), *(_marked(text, place, "**{}**", "<u>{}</u>") for text, place in row))
        for name, row in cells(comparison)
    ]
    lines = [f"{line}  " for line in head(comparison)] + ["", *_markdown(("method", *map(_plain, arrows)), rows)]
    if differences := difference_rows(comparison.differences()):
        lines += ["", f"Differences, picture by picture; {CORRECTED}.", ""]
        lines += _markdown(DIFFERENCE_HEAD, [tuple(map(_plain, row)) for row in differences])
    if problems := comparison.problems():
        lines += ["", *(f"- {_plain(text)}" for text in problems)]
    return "\n".join(lines) + "\n"


def as_latex(comparison: Comparison) -> str:
    r"""A `tabular` for booktabs, best by \textbf, second by \underline; comments before it say what it is of."""
    columns = comparison.columns
    better = {True: r"$\downarrow$", False: r"$\uparrow$"}
    arrows = [f"{latex(column.label)} {better[column.lower]}" for column in columns]
    rows = [
        " & ".join([latex(name), *(_marked(text, place, r"\textbf{{{}}}", r"\underline{{{}}}") for text, place in row)])
        for name, row in cells(comparison)
    ]
    lines = [
        *(f"% {line}" for line in head(comparison)),
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(["Method", *arrows]) + r" \\",
        r"\midrule",
        *(rf"{row} \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def as_csv(comparison: Comparison) -> str:
    """One line a method and picture; a figure that is missing is an empty cell, the last column has the reasons."""
    text = io.StringIO()
    writer = csv.writer(text)
    keys = list(comparison.measured[0].rows[0].values)
    writer.writerow(["method", "image_id", *keys, MISSING])
    for measured in comparison.measured:
        for row in measured.rows:
            values = ["" if math.isnan(v := row.values[key]) else v for key in keys]
            why = json.dumps(row.missing, ensure_ascii=False) if row.missing else ""
            writer.writerow([measured.method.name, row.image_id, *values, why])
    return text.getvalue()


def as_json(comparison: Comparison, distances: dict[str, dict[str, float]]) -> str:
    """Everything that was found; a figure that can't be had is null.

    Args:
        distances: of each scorer, Wasserstein-1 of each method's scores to the originals'.
    """
    columns = comparison.columns
    return json.dumps(
        {
            "protocols": {name: protocol(name).told for name in comparison.protocols},
            "versions": versions(),
            "pictures": len(comparison.image_ids),
            "notes": comparison.notes(),
            "problems": comparison.problems(),
            "columns": [
                {"key": c.key, "better": "lower" if c.lower else "higher", "count": comparison.count(c)}
                for c in columns
            ],
            "methods": [
                {
                    "name": m.method.name,
                    "folder": str(m.method.data.lq),
                    "matched_by": m.method.data.match,
                    "figures": {c.key: _number(comparison.value(m, c)) for c in columns},
                    "missing": {row.image_id: row.missing for row in m.rows if row.missing},
                }
                for m in comparison.measured
            ],
            "differences": [_difference(d) for d in comparison.differences()],
            "wasserstein_1_to_originals": distances,
        },
        indent=1,
        ensure_ascii=False,
        allow_nan=False,
    )


DIFFERENCE_HEAD = ("figure", "methods", "difference", "95% interval", "p", "first higher in", "pictures")


def difference_rows(differences: Sequence[Difference]) -> list[tuple[str, ...]]:
    """Cells under `DIFFERENCE_HEAD`; of one that can't be had the reason."""
    rows: list[tuple[str, ...]] = []
    for d in differences:
        column, who = Column(d.key), f"{d.first} - {d.second}"
        if d.paired is None:
            rows.append((column.label, who, "-", d.why, "-", "-", "-"))
            continue
        form = f"{{:+.{column.digits + 1}f}}".format
        of = d.paired.difference
        interval = f"{form(of.low)} to {form(of.high)}"
        share, count = f"{d.paired.share:.0%}", f"{d.paired.n}"
        rows.append((column.label, who, form(of.mean), interval, p_text(d.paired.p), share, count))
    return rows


def versions() -> dict[str, str]:
    """Of what the figures are computed with."""
    return {name: version(name) for name in LIBRARIES}


def p_text(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def _difference(d: Difference) -> dict[str, Any]:
    found: dict[str, Any] = {"figure": d.key, "first": d.first, "second": d.second}
    if d.paired is None:
        return found | {"why": d.why}
    of = d.paired.difference
    return found | {
        "mean": of.mean,
        "low": of.low,
        "high": of.high,
        "p": d.paired.p,
        "share_first_higher": d.paired.share,
        "pictures": d.paired.n,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _marked(text: str, place: Place, best: str, second: str) -> str:
    form: Callable[..., str] = {"best": best, "second": second, "": "{}"}[place].format
    return form(text)


def _plain(text: str) -> str:
    """Text in a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines: list[Sequence[str]] = [titles, ["-"] * len(titles), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
