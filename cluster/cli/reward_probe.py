"""`restorl reward probe`: what a scorer gives to known pictures, stored beside its weights."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.cli.errors import as_mistake, guarded
from cluster.cli.scorer_text import named_scorer


@guarded
def reward_probe(
    scorer: Annotated[
        str, typer.Argument(help="Name of the scorer, or module:class; its settings behind commas.", metavar="SCORER")
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace other scores that are stored.")] = False,
) -> None:
    """Score known pictures and store the scores beside the weights; each replica of the reward is held to them.

    restorl reward probe deqa,weights=weights/DeQA-Score-Mix3,device=cuda
    """
    from reward_service.probe import Probe, write_probe

    name, params, made = named_scorer(scorer)
    with as_mistake(ValueError):
        probe = Probe(made, name, params)
        file, stored = write_probe(probe, force)
    print(f"{made.name}, version {made.version}: {', '.join(f'{s:.4f}' for s in stored.scores)}")
    print(f"tolerance {stored.tolerance:g}, in {file}")
