"""`restorl actors scale`: the rollout actors of a run, while it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.errors import UserMistake, guarded

actors_app = typer.Typer(help="Look after the rollout actors of a run.", no_args_is_help=True)


@actors_app.command("scale")
@guarded
def scale(
    count: Annotated[int, typer.Argument(help="Actors wanted.", metavar="N", min=1)],
    run: Annotated[Path | None, typer.Option(help="Folder of the run; else give --address.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster, when no --run is given: auto, host:port or ray://host:port.")
    ] = None,
    run_id: Annotated[
        str | None, typer.Option("--id", help="Of the run at --address, where several are there.", metavar="ID")
    ] = None,
) -> None:
    """Change the number of rollout actors while the run goes on.

    New ones start beside the others, and wait for a node if there is no room. Surplus ones end after the work they
    have. A run that is resumed begins with actors.count again.

    restorl actors scale 8 --run runs/mine

    restorl actors scale 8 --address 10.0.0.1:6379 --id mine-1a2b3c4d
    """
    if (run is None) == (address is None) or (run is not None and run_id is not None):
        raise UserMistake("which run? give either --run RUN, or --address with --id where several runs are there")
    from cluster.jobs import ClusterSettings, attach, connect

    wanted = _id_of(run) if run is not None else run_id
    with attach(run) if run is not None else connect(ClusterSettings(address or "auto")):
        from cluster.run import wishes

        there = wishes.crews()
        if wanted is None and len(there) == 1:
            wanted = next(iter(there))
        if wanted not in there:
            known = ", ".join(sorted(there)) or "none"
            which = "which run? name it by --id" if wanted is None else f"run {wanted} isn't there, or is starting yet"
            raise UserMistake(f"{which}; there are: {known}")
        print(f"actors: {wishes.ask(wanted, count)}")


def _id_of(run: Path) -> str:
    try:
        return str(json.loads((run / "run.json").read_text(encoding="utf-8"))["run_id"])
    except (FileNotFoundError, NotADirectoryError):
        raise UserMistake(f"{run}: no run.json, so no run is there") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserMistake(f"{run / 'run.json'} can't be read ({error})") from error
