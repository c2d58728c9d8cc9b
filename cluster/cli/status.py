"""`restorl status`: what a run is doing, in a terminal or for a program; the run itself isn't disturbed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.errors import SIGNALLED, UserMistake, guarded, status_of

if TYPE_CHECKING:
    from cluster.report.status import Status

TROUBLE_STATUS = 1


@guarded
def status(
    run: Annotated[str, typer.Argument(help="Folder of a run; with --address the id of one.", metavar="RUN")],
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster of a run whose folder isn't here: auto, host:port or ray://host:port."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again every few seconds, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks of --watch.", min=0.2)] = 3.0,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """What a run is doing: state, progress, phases, queue, reward, held-out figures, failures, processes, alarms.

    Of a running, finished, killed or damaged run; its folder may be read-only. Exit status 1 if it is stalled, dead or
    failed.

    restorl status runs/demo --watch

    restorl status demo-168a3026 --address 10.0.0.1:6379
    """
    from cluster.report.live import TROUBLE

    if address is None:
        from cluster.report.status import Watched

        state = _shown(Watched(Path(run)).status, watch, every, as_json)
    else:
        from cluster.jobs import ClusterSettings, connect
        from cluster.run.elsewhere import Elsewhere

        if address == "local":
            raise UserMistake("--address local is a cluster that ends with this command; name the one of the run")
        with connect(ClusterSettings(address)):
            state = _shown(Elsewhere(run).status, watch, every, as_json)
    raise typer.Exit(TROUBLE_STATUS if state in TROUBLE else 0)


def _shown(look: Callable[[], Status], watch: bool, every: float, as_json: bool) -> str:
    """Show what `look` finds, again and again if wanted; the last state."""
    from rich.console import Console
    from rich.live import Live

    from cluster.cli.status_text import render

    found = look()
    if as_json and not watch:
        print(json.dumps(asdict(found)))
        return found.state
    console = Console()
    plain = not (console.encoding or "").lower().startswith("utf")
    if not watch:
        console.print(render(found, plain))
        return found.state
    try:
        if as_json or not console.is_terminal:  # one after the other
            while True:
                print(json.dumps(asdict(found)), flush=True) if as_json else console.print(render(found, plain), "")
                time.sleep(every)
                found = look()
        with Live(render(found, plain), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(every)
                found = look()
                live.update(render(found, plain), refresh=True)
    except KeyboardInterrupt as stop:
        if status_of(stop) != SIGNALLED + SIGINT:
            raise
    return found.state
