"""The table of docs/faults.md, as it follows from the results. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.faults.rights import acl_line
from benchmarks.faults.rows import Row

COMMAND = "python -m benchmarks.faults --row"
HEAD = "| what dies | what happened | lost | used twice | two more iterations | resumed | `--row` |"


def table(rows: Sequence[Row], results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of Markdown, a row each, in the order of `rows`."""
    return [HEAD, "|-" * (HEAD.count("|") - 1) + "|", *(_line(row, results.get(row.name)) for row in rows)]


def _line(row: Row, result: Mapping[str, Any] | None) -> str:
    name = f"`{row.name}`"
    if result is None:
        return _joined(row.dies, "not run yet", "", "", "", "", name)
    wrong = "; ".join(result.get("wrong", ()))
    if result["outcome"] == "not run":
        return _joined(row.dies, f"not run: {wrong}", "", "", "", "", name)
    told = result.get("happened", "")
    if result["outcome"] != "ok":
        told = f"**FAILED**: {'; '.join(filter(None, (told, wrong)))}"
    recovered = result.get("recovered_s")
    took = "" if recovered is None else f"{recovered:g} s, {result['recovered_iterations']:g} times one"
    resumed = {True: "yes", False: "no"}.get(result.get("resumed"), "")  # type: ignore[arg-type]
    return _joined(row.dies, told, str(result.get("lost", "")), str(result.get("used_twice", "")), took, resumed, name)


def _joined(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def where(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Of which day and machine the results are, and what the links were."""
    measured = [result for result in results.values() if "rate" in result]
    if not measured:
        return "Nothing is measured yet."
    dates = sorted({result["date"] for result in measured})
    loads = sorted(result["load_average"] for result in measured)
    days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    links = sorted({f"rate {result['rate']}, delay {result['delay']}" for result in measured})
    servers = sorted({result["server"] for result in measured})
    times = sorted(result["iteration_s"] for result in measured)
    load, time = f"{loads[0]:g} to {loads[-1]:g}", f"{times[0]:g} to {times[-1]:g}"
    return (
        f"Measured on {days} with {measured[0]['cpus']} cores, load average {load} at the start of a row; links: "
        f"{'; '.join(links)}; stores: {', '.join(servers)}. An undisturbed iteration took {time} s."
    )


def rendered(page: str, rows: Sequence[Row], results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with its blocks made anew.

    Raises:
        ValueError: the page lacks a block.
    """
    blocks = {
        "rows": [where(results), "", *table(rows, results)],
        "rights": ["```", acl_line("PASSWORD"), "```"],
    }
    for name, lines in blocks.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", flags=re.DOTALL)
        inner = "\n".join(lines) + "\n"
        found = list(pattern.finditer(page))
        if len(found) != 1:
            raise ValueError(f"the page has {len(found)} blocks <!-- {name} --> ... <!-- end of {name} -->, not one")
        page = page[: found[0].end(1)] + inner + page[found[0].start(2) :]
    return page
