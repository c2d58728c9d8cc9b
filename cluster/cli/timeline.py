"""`restorl timeline`: who did what when in a run, for a trace viewer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.errors import UserMistake, guarded, say


@guarded
def timeline(
    run: Annotated[Path, typer.Argument(help="Folder of a run, running or not.")],
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("trace.json"),
    iteration: Annotated[int | None, typer.Option(help="Only what reaches into this one.")] = None,
) -> None:
    """Write who was busy with what, and when, as a chrome trace: open it in ui.perfetto.dev or chrome://tracing.

    restorl timeline runs/demo --out trace.json

    restorl timeline runs/demo --iteration 12 --out iteration12.json
    """
    from cluster.files import write_text
    from cluster.report.chrome_trace import chrome_trace
    from cluster.report.duration import brief
    from cluster.report.spans import SPANS_FILE, overlap, read_timeline

    if not run.is_dir():
        raise UserMistake(f"{run}: no such folder; give the folder of a run")
    found = read_timeline(run)
    for told in found.damage:
        say(f"warning: {told}")
    if not found.spans and not found.iterations:
        raise UserMistake(f"{run}: no spans in {SPANS_FILE}; runs have them from their first iteration on")
    spans, windows = list(found.spans), list(found.iterations)
    if iteration is not None:
        windows = [i for i in found.iterations if i.number == iteration][-1:]  # the last, of one that was repeated
        if not windows:
            kept = sorted({i.number for i in found.iterations})
            there = f"{kept[0]} to {kept[-1]}" if kept else "none"
            raise UserMistake(f"--iteration {iteration}: its spans are not there; kept are {there}")
        spans = found.within(windows[0].start, windows[0].end)
    write_text(out, json.dumps(chrome_trace(found, spans, windows)))
    for clock in found.clocks:
        say(str(clock))
    for window in windows if iteration is not None else ():
        at_once = overlap(spans, window.start, window.end)
        share = "" if at_once.share is None else f", {100 * at_once.share:.0f} % of that beside rollouts"
        say(f"iteration {window.number}: {brief(at_once.seconds)}; the learner works {brief(at_once.learner_s)}{share}")
    print(out)
