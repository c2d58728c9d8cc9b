"""`restorl reward check`: whether the reward of a recipe can be trusted, tried on its own data and model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.errors import as_mistake, guarded
from cluster.cli.output import Counter


@guarded
def reward_check(
    config: Annotated[Path, typer.Argument(help="YAML recipe.", metavar="CONFIG")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Such as `reward.scorer=piqe`.", metavar="[KEY=VALUE]...")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default `runs/reward_checks/<name>-<key>`.")] = None,
    html: Annotated[bool, typer.Option("--html/--no-html", help="Write a page beside the JSON.")] = True,
    strict: Annotated[bool, typer.Option("--strict", help="Status 1 unless the reward can be trusted.")] = False,
    pictures: Annotated[int, typer.Option(help="Held-out pictures that are edited and restored.", min=2)] = 16,
    groups: Annotated[int, typer.Option(help="Pictures of these that are rolled out.", min=0)] = 8,
    rollouts: Annotated[int, typer.Option(help="Rollouts of each.", min=3)] = 8,
    seed: Annotated[int, typer.Option(help="Seed of crops and noise.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Can this reward be trusted for this task? Tried before a run: minutes that may save days.

    Scores ground truth, input and the base model's output; ladders of noise, blur, JPEG, over-smoothing and of the
    task's own damage; cheap tricks (sharper, more colour, brighter, more contrast); and whether it knows the better
    ones among the base model's rollouts. `restorl train` warns where nobody has done this.

    restorl reward check configs/demo.yaml

    restorl reward check configs/demo.yaml reward.scorer=piqe --strict
    """
    from cluster.config.configure import load_config
    from cluster.config.recipe import RunConfig
    from cluster.trust.check import check
    from cluster.trust.trial import Amount

    loaded = load_config(RunConfig, config, overrides or [])
    began = time.monotonic()
    with as_mistake(ValueError), Counter() as shown:
        amount = Amount(pictures, groups, rollouts, seed)
        checked = check(loaded, amount, device, out, html, shown)
    for verdict in checked.verdicts:
        print(f"{verdict.sentence}.")
    for finding in checked.verdicts[0].findings:
        print(f"  {finding.standing:5}  {finding.text}")
    print("\n".join(f"{file}" for file in checked.files))
    print(f"{time.monotonic() - began:.0f} s")
    raise typer.Exit(int(strict and checked.verdicts[0].word != "trust"))
