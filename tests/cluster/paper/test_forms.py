from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace

import pytest

from cluster.latex import latex
from cluster.paper.filled import Filled, fill
from cluster.paper.forms import FORMS, MISSING, as_csv, as_json, as_latex, as_markdown
from cluster.paper.tables import TABLES
from tests.cluster.paper.results import made


def some(number: str) -> Filled:
    """A table with half of its cells, of two seeds."""
    table = TABLES[number]
    rows = [
        made(line, part, seed, psnr=20.0 + i + seed, ssim=0.5 + i / 100, lpips=0.2 - i / 100)
        for i, line in enumerate(table.lines[::2])
        for part in table.parts[: 1 if number != "3" else 5]
        for seed in (0, 1)
    ]
    return fill(table, rows)


def cells_of(row: str) -> int:
    """Columns that a row of a tabular takes."""
    spans = [int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", row)]
    return len(re.findall(r"(?<!\\)&", row)) + 1 + sum(spans) - len(spans)


def parsed(text: str) -> list[str]:
    """The rows of the tabular of a LaTeX text that is well formed, as far as one can see without TeX."""
    body = re.sub(r"(?<!\\)%.*", "", text)
    stack: list[str] = []
    for what, name in re.findall(r"\\(begin|end)\{(\w+)\}", body):
        if what == "begin":
            stack.append(name)
        else:
            assert stack and stack.pop() == name
    assert stack == []
    depth = 0
    for sign in re.sub(r"\\[\\{}]", "", body):
        depth += (sign == "{") - (sign == "}")
        assert depth >= 0
    assert depth == 0
    assert len(re.findall(r"(?<!\\)\$", body)) % 2 == 0
    assert not re.search(r"(?<!\\)[_^#~]", re.sub(r"(?<!\\)\$[^$]*\$", "", body))
    assert body.isascii()
    known = {
        *("begin", "end", "centering", "footnotesize", "caption", "toprule", "midrule", "bottomrule", "cmidrule"),
        *("multicolumn", "textbf", "underline", "textit", "quad", "addlinespace", "pm", "uparrow", "downarrow"),
    }
    assert {*re.findall(r"\\([a-zA-Z]+)", body)} <= known
    (columns, inside) = re.search(r"\\begin\{tabular\}\{(\w+)\}(.*)\\end\{tabular\}", body, re.DOTALL).groups()  # type: ignore[union-attr]
    ruled = re.sub(r"\\(toprule|midrule|bottomrule|addlinespace)|\\cmidrule\(lr\)\{(\d+)-(\d+)\}", "", inside)
    for first, last in re.findall(r"\\cmidrule\(lr\)\{(\d+)-(\d+)\}", inside):
        assert 1 < int(first) <= int(last) <= len(columns)
    rows = [row.strip() for row in ruled.split("\\\\") if row.strip()]
    assert {cells_of(row) for row in rows} == {len(columns)}
    return rows


@pytest.mark.parametrize("number", TABLES)
def test_the_latex_of_every_table_is_well_formed_with_rows_of_equal_columns(number: str) -> None:
    filled = some(number)
    rows = parsed(as_latex(filled))
    printed = sum(any(figure.paper is not None for figure in figures) for _, figures in filled.rows)
    assert len(rows) == 2 + len(filled.rows) + 2 * printed
    assert sum("textbf" in row for row in rows) and sum("underline" in row for row in rows)


def test_the_check_of_latex_sees_what_is_wrong() -> None:
    good = as_latex(some("1"))
    parsed(good)
    for wrong in (
        good.replace("\\end{table}", ""),
        good.replace(" & ", " & & ", 1).replace("\\midrule", "x & y \\\\ \\midrule"),
        good.replace("LOL-real", "LOL_real"),
        good.replace("PSNR $", "PSNR ", 1),
        good.replace("\\caption{", "\\caption{{", 1),
        good.replace("--", MISSING, 1),
    ):
        assert wrong != good
        with pytest.raises(AssertionError):
            parsed(wrong)


def test_signs_of_latex_in_names_are_printed_and_not_obeyed() -> None:
    assert latex("w/o w_i & 50% of #1 {a} ~^ $x$ \\") == (
        r"w/o w\_i \& 50\% of \#1 \{a\} \textasciitilde{}\textasciicircum{} \$x\$ \textbackslash{}"
    )
    rows = parsed(as_latex(some("6")))
    assert any(row.startswith(r"with x\_t-1 &") for row in rows)


@pytest.mark.parametrize("number", TABLES)
def test_the_markdown_has_rows_of_equal_columns_and_the_papers_figures_below_ours(number: str) -> None:
    filled = some(number)
    lines = [line for line in as_markdown(filled).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(filled.columns) + 2}
    ours, paper, difference = lines[2:5]
    first = filled.rows[0][1][0]
    assert f"{first.value:.2f}" in ours and f"± {first.deviation:.2f}" in ours
    assert paper.startswith("| *paper* | ") and f"*{first.paper:.2f}*" in paper
    assert difference.startswith("| *ours - paper* | ") and f"*{first.difference:+.2f}*" in difference
    assert any("**" in line for line in lines) and any("<u>" in line for line in lines)


def test_a_missing_figure_is_a_dash_an_empty_field_and_null_and_never_a_number() -> None:
    filled = some("1")
    assert filled.rows[1][1][0].value is None
    row = next(line for line in as_markdown(filled).splitlines() if line.startswith("| DiffBIR+Diff.SFT"))
    assert row.split(" | ")[1:] == [MISSING] * 7 + [f"{MISSING} |"]
    row = next(row for row in parsed(as_latex(filled)) if row.startswith("DiffBIR+Diff.SFT"))
    assert row.split(" & ")[1:] == ["--"] * 8
    table = list(csv.DictReader(io.StringIO(as_csv(filled))))
    assert table[1]["LOL-real PSNR"] == "" and table[1]["LOL-real PSNR paper"] == "17.3500"
    assert table[1]["LOL-real PSNR ours - paper"] == ""
    found = json.loads(as_json(filled))["rows"][1]["cells"][0]
    assert found["value"] is None and found["difference"] is None and found["paper"] == 17.35 and found["seeds"] == []


def test_csv_and_json_say_the_same() -> None:
    filled = some("3")
    table, whole = list(csv.DictReader(io.StringIO(as_csv(filled)))), json.loads(as_json(filled))
    assert [row["method"] for row in table] == [row["method"] for row in whole["rows"]]
    for row, of in zip(table, whole["rows"], strict=True):
        for cell in of["cells"]:
            told = row[f"{cell['part']} {cell['metric'].upper()}"]
            assert (float(told) if told else None) == (cell["value"] and pytest.approx(cell["value"], abs=1e-4))
    assert whole["table"] == "3" and whole["head"] == list(filled.head)
    assert whole["rows"][0]["cells"][-1]["part"] == "Mean" and whole["rows"][0]["cells"][-1]["set"] is None


def test_every_form_is_made_of_a_table_without_a_figure() -> None:
    empty = fill(TABLES["1"], [])
    for name, (suffix, form) in FORMS.items():
        assert form(empty) and suffix, name
    parsed(as_latex(empty))


def test_a_title_with_signs_of_markdown_stays_one_cell() -> None:
    table = TABLES["4"]
    odd = replace(table, lines=(replace(table.lines[0], title="a|b_c*"),))
    rows = as_markdown(fill(odd, [made(odd.lines[0], odd.parts[0], psnr=1.0)])).splitlines()
    assert any(row.startswith("| a\\|b\\_c\\* | 1.00 |") for row in rows)
