"""Every registered scorer, made of what is shipped or of tiny weights; a new one needs an entry here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from reward_service.scorers import Scorer, make_scorer
from tests.reward_service.owl2_folders import golden, write_full
from tests.reward_service.test_clip_iqa import released
from tests.reward_service.vlm_folders import write_qwen


def _shipped(folder: Path) -> dict[str, Any]:
    return {}


def _clip(folder: Path) -> dict[str, Any]:
    file = folder / "RN50.safetensors"
    if not file.exists():
        save_file(released(), file)
    return {"model": str(file)}


def _owl2(folder: Path) -> dict[str, Any]:
    if not (folder / "owl2").exists():
        source = golden()
        write_full(folder / "owl2", source.state("model"), source)
    return {"weights": str(folder / "owl2"), "dtype": "float32"}


def _vlm(folder: Path) -> dict[str, Any]:
    if not (folder / "vlm").exists():
        write_qwen(folder / "vlm")
    return {"weights": str(folder / "vlm"), "dtype": "float32"}


PARAMS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "brisque": _shipped,
    "clip_iqa": _clip,
    "deqa": _owl2,
    "level_tokens": _vlm,
    "lite0_levels": _shipped,
    "niqe": _shipped,
    "piqe": _shipped,
    "qalign": _owl2,
}
"""name -> a function that writes tiny weights to a folder, if they aren't there, and gives the scorer's parameters."""

SHIPPED = sorted(name for name, params in PARAMS.items() if params is _shipped)
"""Those that need no file of the user's."""

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "clip_iqa": [{"batch": 3}],
    "deqa": [{"batch": 3}, {"batch": 4, "deterministic": True}, {"batch": 3, "dtype": "bfloat16"}],
    "level_tokens": [{"batch": 3}, {"batch": 4, "deterministic": True}],
    "qalign": [{"batch": 4, "deterministic": True}],
}
"""Settings in which a scorer adds up in another way, beside its defaults."""


def made(name: str, folder: Path, **settings: Any) -> Scorer:
    return make_scorer(name, "cpu", **(PARAMS[name](folder) | settings))
