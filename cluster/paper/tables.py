"""The paper's tables as data: their rows, sets and metrics, and the figures that it prints. Pure.

A row is a base model with what was done to it (`cluster.paper.arms`); a part is the test of a set, with a column for
each metric. Several parts may be measured with one training: the five deraining sets with one on Rain13K.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A figure of a column; `name` is that of `restorl evaluate`, `digits` as the paper rounds."""

    name: str
    title: str
    more_is_better: bool
    digits: int


@dataclass(frozen=True)
class Part:
    """The test of a public set; `set`, `split` and `trained_on` are names of `restoration.datasets.registry`."""

    title: str
    set: str
    trained_on: str
    split: str = "test"


@dataclass(frozen=True)
class Line:
    """A row: base model `model` (a recipe of configs/paper), treated by the arm of that name."""

    title: str
    model: str
    arm: str


@dataclass(frozen=True)
class Table:
    """
    Attributes:
        printed_as: titles of parts -> key of that part's figures in figures.json.
        mean: it ends with the unweighted mean over its parts, whatever the number of their pictures.
    """

    number: str
    title: str
    lines: tuple[Line, ...]
    parts: tuple[Part, ...]
    metrics: tuple[Metric, ...]
    printed_as: Mapping[str, str]
    mean: bool = False


PSNR, SSIM = Metric("psnr", "PSNR", True, 2), Metric("ssim", "SSIM", True, 3)
LPIPS, FID = Metric("lpips", "LPIPS", False, 4), Metric("fid", "FID", False, 2)
MEAN = "Mean"  # the title of the paper's last columns where a table has a mean

MODELS: Mapping[str, str] = {
    "diffbir": "DiffBIR",
    "stablesr": "StableSR",
    "pasd": "PASD",
    "xpsr": "XPSR",
    "tsdsr": "TSD-SR",
    "rap": "RAP",
    "faithdiff": "FaithDiff",
    "pisa": "Pixel",
}
"""Recipe of a base model -> its name in the paper, whose Pixel is PiSA-SR."""

TRAINING: Mapping[str, tuple[str, ...]] = {
    "sid": ("rollout.crop=512", "store.max_bytes=6000000000"),
    "smid": ("rollout.crop=512", "store.max_bytes=6000000000"),
    "rain13k": ("rollout.crop=256",),
    "gopro": ("rollout.crop=512", "store.max_bytes=6000000000"),
    "dpdd_single": ("rollout.crop=512", "store.max_bytes=6000000000"),
    "dpdd_dual": ("rollout.crop=512", "store.max_bytes=6000000000"),
}
"""What a recipe is given besides, by the set that is trained on (docs/paper.md)."""


def _lines(models: tuple[str, ...], arms: Mapping[str, str]) -> tuple[Line, ...]:
    return tuple(Line(f"{MODELS[model]}{behind}", model, arm) for model in models for arm, behind in arms.items())


def _table(
    number: str,
    title: str,
    lines: tuple[Line, ...],
    parts: tuple[Part, ...],
    metrics: tuple[Metric, ...],
    mean: bool = False,
) -> Table:
    titles = [*(part.title for part in parts), *([MEAN] if mean else [])]
    return Table(number, title, lines, parts, metrics, dict.fromkeys(titles, number), mean)


_THREE = {"base": "", "diff_sft": "+Diff.SFT", "ours": "+Our RL"}
_TWO = {"base": "", "ours": "+Ours"}
_LOL = (
    Part("LOL-real", "lol_v2_real", "lol_v2_real"),
    Part("LOL-synthetic", "lol_v2_synthetic", "lol_v2_synthetic"),
)
_RAIN = ("Test100", "Rain100H", "Rain100L", "Test2800", "Test1200")
_BLUR = ("GoPro", "HIDE", "RealBlur-R", "RealBlur-J")
_ABLATIONS = {
    "base": "Base",
    "diff_sft": "Base+Diff.SFT",
    "rec_reward": "with Rec.",
    "no_weights": "w/o w_i",
    "sampled_action": "with x_t-1",
    "reward_final": "Reward x_0",
    "norm_track": "Norm. from track",
    "qalign_reward": "with Q-align",
    "clip_iqa_reward": "with CLIP-IQA",
    "iterated": "with Iter. RL",
    "ours": "Original",
}

_EVERY = (
    _table("1", "Low light: LOL-v2", _lines(tuple(MODELS), _THREE), _LOL, (PSNR, SSIM, LPIPS, FID)),
    _table(
        "2",
        "Low light: SID and SMID",
        _lines(("diffbir", "stablesr", "pasd"), _THREE),
        (Part("SID", "sid", "sid"), Part("SMID", "smid", "smid")),
        (PSNR, SSIM, LPIPS, FID),
    ),
    _table(
        "3",
        "Deraining",
        _lines(("diffbir", "pasd"), _TWO),
        tuple(Part(name, name.lower(), "rain13k") for name in _RAIN),
        (PSNR, SSIM),
        mean=True,
    ),
    _table(
        "4",
        "Motion deblurring",
        _lines(("diffbir", "pasd"), _TWO),
        tuple(Part(name, name.lower().replace("-", "_"), "gopro") for name in _BLUR),
        (PSNR, SSIM),
    ),
    _table(
        "5",
        "Defocus deblurring: DPDD",
        _lines(("diffbir", "pasd"), _TWO),
        tuple(
            Part(f"DPDD {place} {views}", f"dpdd_{views}", f"dpdd_{views}", f"test/{place}")
            for views in ("single", "dual")
            for place in ("indoor", "outdoor")
        ),
        (PSNR, SSIM),
    ),
    Table(
        "6",
        "Ablations",
        tuple(Line(title, "diffbir", arm) for arm, title in _ABLATIONS.items()),
        _LOL,
        (PSNR, SSIM, LPIPS, FID),
        {part.title: f"6 {part.title}" for part in _LOL},
    ),
)  # fmt: skip
TABLES: Mapping[str, Table] = {table.number: table for table in _EVERY}
ALL = "all"


def tables_of(name: str) -> tuple[Table, ...]:
    """The table of that number, or `all`.

    Raises:
        ValueError: no such table.
    """
    if name == ALL:
        return _EVERY
    if name not in TABLES:
        raise ValueError(f"the paper has no table {name!r}; choose one of {', '.join(TABLES)}, or {ALL}")
    return (TABLES[name],)


def printed(table: Table) -> dict[tuple[str, str, str], float]:
    """What the paper prints: (title of the row, title of the part or `MEAN`, name of the metric) -> figure.

    Where it prints nothing that can be relied on there is no key.
    """
    names = {metric.title: metric.name for metric in table.metrics}
    found = {}
    for part, key in table.printed_as.items():
        block = _figures()[key]
        for row in block["rows"]:
            for (title, metric), value in zip(block["columns"], row["values"], strict=True):
                if title == part:
                    found[row["method"], title, names[metric]] = float(value)
    return found


def source() -> str:
    """Where the paper's figures come from."""
    return str(_figures()["source"])


@cache
def _figures() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files("cluster.paper").joinpath("figures.json").read_text(encoding="utf-8"))
    return found
