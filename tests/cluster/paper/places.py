"""Sets and models so small that a table's jobs take moments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cluster.paper.cells import Folders, Measuring
from cluster.paper.places import Models, Roots
from cluster.paper.plan import Wanted
from cluster.paper.scales import SCALES
from cluster.paper.tables import tables_of
from restoration.backbones.restormer import Restormer, RestormerConfig
from restoration.base_models.diffbir import build_small
from restoration.datasets.make import make_set
from restoration.pretrain.vae import VaeRecipe, build_vae
from tests.restoration.small_sets import photos

SMALL = ("rollout.crop=32", "reward.scorer=tests.system.scorers:Contrast", "iterations=1")


def write_sets(folder: Path, names: Sequence[str]) -> Path:
    """`folder`/SET for each of the names, with a few pairs of 32 pixels a side."""
    pictures = photos(folder / "photos")
    for name in names:
        make_set(name, pictures, folder / name, side=32, train=2, test=2)
    return folder


def write_model(folder: Path) -> Path:
    """A DiffBIR of a few kilobytes."""
    torch.manual_seed(0)
    vae = build_vae(VaeRecipe(channels=(8, 16), latent_channels=4, crop=32)).eval()
    cleaner = Restormer(RestormerConfig(dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1))
    build_small(vae, cleaner, channels=(16, 32), head_channels=16).save(folder)
    return folder


def name_model(folder: Path, kind: str) -> Path:
    """What says that a folder is a model, and no weights: enough for a plan."""
    folder.mkdir(parents=True)
    (folder / "restorl_model.json").write_text(json.dumps({"kind": kind}))
    return folder


def wanted(table: str, out: Path, data: Sequence[Any], bases: Sequence[Any], /, **more: Any) -> Wanted:
    """Of `restorl paper run TABLE --scale tiny`."""
    roots, places = Roots.of([str(word) for word in data]), Models.of([str(word) for word in bases])
    given: dict[str, Any] = {"scale": SCALES["tiny"], "words": SMALL, "measuring": Measuring(device="cpu")}
    return Wanted(tables_of(table), Folders(out), roots, places, **given | more)
