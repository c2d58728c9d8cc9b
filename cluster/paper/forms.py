"""A filled table as Markdown, LaTeX, CSV and JSON. Pure.

Below each row that the paper has stand its figures and ours minus its, so that columns stay the paper's. A figure that
is missing is a dash in tables, an empty field of CSV and null of JSON, never a number.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.latex import latex
from cluster.paper.arms import BASE
from cluster.paper.filled import BEST, SECOND, Column, Figure, Filled, shown
from cluster.paper.gains import Gain

MISSING = "–"
PAPER, DIFFERENCE = "paper", "ours - paper"


def as_markdown(filled: Filled) -> str:
    titles = [f"{column.title} {column.metric.title} {_arrow(column)}" for column in filled.columns]
    lines = [f"# Table {filled.table.number}: {_md(filled.table.title)}", ""]
    lines += [f"- {_md(text)}" for text in filled.head]
    lines += [
        "",
        f"Best **bold**, second <u>underlined</u>, {MISSING} is missing. Below: the paper's, and ours minus it.",
        "",
    ]
    lines += ["| | " + " | ".join(map(_md, titles)) + " |", "|-" + "|-:" * len(titles) + "|"]
    for title, cells in _rows(filled, _marked_md, lambda text: f"*{text}*"):
        lines.append("| " + " | ".join([title if title.startswith("*") else _md(title), *cells]) + " |")
    lines += ["", *(f"- {_md(text)}" for text in filled.notes)]
    lines += _gains_md(filled)
    return "\n".join(lines).rstrip() + "\n"


def as_latex(filled: Filled) -> str:
    """A table of booktabs; `\\usepackage{booktabs}` is all that it needs."""
    columns = filled.columns
    groups, rules, place = list[str](), list[str](), 2
    for title, count in filled.groups():
        groups.append(f"\\multicolumn{{{count}}}{{c}}{{{latex(title)}}}")
        rules.append(f"\\cmidrule(lr){{{place}-{place + count - 1}}}")
        place += count
    arrows = {True: "$\\uparrow$", False: "$\\downarrow$"}
    metrics = [f"{latex(c.metric.title)} {arrows[c.metric.more_is_better]}" for c in columns]
    lines = [f"% Table {filled.table.number}: {filled.table.title}"]
    lines += [f"% {text}" for text in (*filled.head, *filled.notes)]
    lines += [
        "\\begin{table}",
        "\\centering",
        "\\footnotesize",
        f"\\caption{{{latex(filled.table.title)}. Best bold, second underlined, -- is missing.}}",
        f"\\begin{{tabular}}{{l{'r' * len(columns)}}}",
        "\\toprule",
        f" & {' & '.join(groups)} \\\\",
        " ".join(rules),
        f" & {' & '.join(metrics)} \\\\",
        "\\midrule",
    ]
    model = None
    for line, figures in filled.rows:
        if model not in (None, line.model):
            lines.append("\\addlinespace")
        model = line.model
        lines.append(_tex_row(latex(line.title), [_marked_tex(f, c) for f, c in zip(figures, columns, strict=True)]))
        if any(f.paper is not None for f in figures):
            for title, of in ((PAPER, _paper), (DIFFERENCE, _difference)):
                cells = [latex(of(f, c)) for f, c in zip(figures, columns, strict=True)]
                lines.append(_tex_row(f"\\quad \\textit{{{latex(title)}}}", [f"\\textit{{{cell}}}" for cell in cells]))
    lines += ["\\bottomrule", "\\end{tabular}", "\\end{table}"]
    return "\n".join(lines) + "\n"


def as_csv(filled: Filled) -> str:
    """A line a row; of each column our figure, the paper's and the difference."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [f"{column.title} {column.metric.title}" for column in filled.columns]
    writer.writerow(["method", *(f"{name}{of}" for name in names for of in ("", f" {PAPER}", f" {DIFFERENCE}"))])
    for line, figures in filled.rows:
        cells: list[str] = []
        for figure, column in zip(figures, filled.columns, strict=True):
            for value in (figure.value, figure.paper, figure.difference):
                cells.append("" if value is None else f"{value:.{column.metric.digits + 2}f}")
        writer.writerow([line.title, *cells])
    return out.getvalue()


def as_json(filled: Filled) -> str:
    rows: list[dict[str, Any]] = []
    for line, figures in filled.rows:
        cells = [
            {
                "part": column.title,
                "set": None if column.part is None else column.part.set,
                "split": None if column.part is None else column.part.split,
                "metric": column.metric.name,
                "value": figure.value,
                "deviation": figure.deviation,
                "seeds": list(figure.seeds),
                "n": list(figure.n),
                "rank": figure.rank,
                "paper": figure.paper,
                "difference": figure.difference,
            }
            for figure, column in zip(figures, filled.columns, strict=True)
        ]
        rows.append({"method": line.title, "model": line.model, "arm": line.arm, "cells": cells})
    whole: dict[str, Any] = {"table": filled.table.number, "title": filled.table.title, "head": list(filled.head)}
    gains = [
        {
            "method": gain.line.title,
            "over": BASE,
            "part": gain.part.title,
            "metric": gain.metric.name,
            "difference": gain.paired.difference.mean,
            "interval": [gain.paired.difference.low, gain.paired.difference.high],
            "p": gain.paired.p,
            "n": gain.paired.n,
        }
        for gain in filled.gains
    ]
    whole |= {"rows": rows, "gains": gains, "notes": list(filled.notes)}
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"


FORMS: Mapping[str, tuple[str, Callable[[Filled], str]]] = {
    "markdown": ("md", as_markdown),
    "latex": ("tex", as_latex),
    "csv": ("csv", as_csv),
    "json": ("json", as_json),
}
"""Name of a form -> suffix of its file, and what makes it."""


def _gains_md(filled: Filled) -> list[str]:
    if not filled.gains:
        return []
    cells = {(g.line.title, g.part.title, g.metric.name): g for g in filled.gains}
    columns = list(dict.fromkeys((g.part.title, g.metric) for g in filled.gains))
    lines = ["", "## Gains over the base model", ""]
    lines += [
        "Paired by picture, seeds averaged: mean [95 % bootstrap interval over pictures], p of Wilcoxon's test.",
        "",
    ]
    lines += ["| | " + " | ".join(_md(f"{title} {metric.title}") for title, metric in columns) + " |"]
    lines += ["|-" * (len(columns) + 1) + "|"]
    for line in dict.fromkeys(g.line for g in filled.gains):
        found = [cells.get((line.title, title, metric.name)) for title, metric in columns]
        told = [MISSING if gain is None else _gain(gain) for gain in found]
        lines.append("| " + " | ".join([_md(line.title), *told]) + " |")
    return lines


def _gain(gain: Gain) -> str:
    digits, difference = gain.metric.digits + 1, gain.paired.difference
    mean, low, high = (f"{value:+.{digits}f}" for value in (difference.mean, difference.low, difference.high))
    return f"{mean} [{low}, {high}], p={gain.paired.p:.2g}"


def _rows(
    filled: Filled, marked: Callable[[Figure, Column], str], aside: Callable[[str], str]
) -> list[tuple[str, list[str]]]:
    found = []
    for line, figures in filled.rows:
        pairs = list(zip(figures, filled.columns, strict=True))
        found.append((line.title, [marked(figure, column) for figure, column in pairs]))
        if any(figure.paper is not None for figure in figures):
            for title, of in ((PAPER, _paper), (DIFFERENCE, _difference)):
                found.append((aside(title), [aside(of(figure, column)) for figure, column in pairs]))
    return found


def _value(figure: Figure, column: Column) -> str:
    return MISSING if figure.value is None else shown(figure.value, column.metric)


def _marked_md(figure: Figure, column: Column) -> str:
    text = _value(figure, column)
    behind = "" if figure.deviation is None else f" ± {shown(figure.deviation, column.metric)}"
    mark = {BEST: "**{}**", SECOND: "<u>{}</u>"}.get(figure.rank or 0, "{}")
    return mark.format(text) + behind


def _marked_tex(figure: Figure, column: Column) -> str:
    text = latex(_value(figure, column))
    behind = "" if figure.deviation is None else f" $\\pm$ {shown(figure.deviation, column.metric)}"
    mark = {BEST: "\\textbf{%s}", SECOND: "\\underline{%s}"}.get(figure.rank or 0, "%s")
    return mark % text + behind


def _paper(figure: Figure, column: Column) -> str:
    return MISSING if figure.paper is None else shown(figure.paper, column.metric)


def _difference(figure: Figure, column: Column) -> str:
    return MISSING if figure.difference is None else f"{figure.difference:+.{column.metric.digits}f}"


def _tex_row(title: str, cells: Sequence[str]) -> str:
    return f"{title} & {' & '.join(cells)} \\\\"


def _arrow(column: Column) -> str:
    return "↑" if column.metric.more_is_better else "↓"


def _md(text: str) -> str:
    for sign in "\\|*_<>`":
        text = text.replace(sign, f"\\{sign}")
    return text
