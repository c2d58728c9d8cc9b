"""What a run over two hosts, its store on a third, survives: each row of docs/faults.md, and the page made of them.

    python -m benchmarks.faults [--row NAME ...] [--again] [--list] [--page]

Needs root and iproute2: the hosts are network namespaces, which go with the end of each row, also after Ctrl-C. Rows
that have a good result are left out unless they are named or --again is given, so that the same command goes on where
it was interrupted. A row takes one to five minutes; its logs stay in --work. Status 1: not all
of them are good.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.faults.hosts import ROOT
from benchmarks.faults.measure import SETTING, failed, measure
from benchmarks.faults.page import rendered
from benchmarks.faults.rows import ROWS, Row
from benchmarks.faults.runs import RunProblem
from benchmarks.report import RESULTS, write

PAGE = ROOT / "docs" / "faults.md"
FAILURES = (*SETTING, RunProblem)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [row.name for row in ROWS]
    parser.add_argument("--row", action="append", choices=names, metavar="NAME", help="only this one")
    parser.add_argument("--again", action="store_true", help="also rows that have a good result")
    parser.add_argument("--list", action="store_true", help="only name the rows")
    parser.add_argument("--page", action="store_true", help="only make the page anew from the results")
    parser.add_argument("--output", type=Path, default=RESULTS / "faults.json")
    work = ROOT / "runs" / "faults"
    parser.add_argument("--work", type=Path, default=work, help="folder of what rows write; not in /tmp")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    if options.list:
        for row in ROWS:
            print(f"{row.name:20} {results.get(row.name, {}).get('outcome', '-'):8} {row.dies}")
        return 0
    wanted = [] if options.page else _wanted(options.row, options.again, results)
    work = options.work.resolve()
    for path in (work, ROOT, Path(sys.executable)):
        if wanted and path.is_relative_to("/tmp"):  # in its place each host has a folder of its own
            parser.error(f"{path} is in /tmp, which the hosts don't see; use another place")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    for row in wanted:
        print(f"{row.name}: {row.dies} ...", flush=True)
        try:
            results[row.name] = measure(row, work)
        except FAILURES as error:
            results[row.name] = failed(error)
        print(json.dumps(results[row.name], indent=1), flush=True)
        _keep(options.output, results)
    _keep(options.output, results)
    return int(any(results[row.name]["outcome"] != "ok" for row in wanted))


def _wanted(named: list[str] | None, again: bool, results: dict[str, Any]) -> list[Row]:
    if named:
        return [row for row in ROWS if row.name in named]
    return [row for row in ROWS if again or results.get(row.name, {}).get("outcome") != "ok"]


def _keep(output: Path, results: dict[str, Any]) -> None:
    """The results in the order of the rows; the page with them, if they are the committed ones."""
    ordered = {row.name: results[row.name] for row in ROWS if row.name in results}
    write(output, ordered)
    if output.resolve() == RESULTS / "faults.json":
        PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8"), ROWS, ordered), encoding="utf-8")


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on with the rows that have no good result")
