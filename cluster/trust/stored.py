"""Where the result of a reward check lies, so that a run finds the one of its own reward, data and model."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.files import write_text

if TYPE_CHECKING:
    from cluster.config.recipe import RunConfig

CHECKS = Path("runs") / "reward_checks"
FILE = "check.json"
FORMAT = 1


@dataclass(frozen=True)
class Found:
    """The verdict of an earlier check, and its file."""

    file: Path
    word: str
    sentence: str


def key_of(config: RunConfig, heldout: Sequence[str]) -> str:
    """Twelve hexadecimal digits of what a verdict depends on: reward, data, model and chain.

    Args:
        heldout: ids of the held-out pictures.
    """
    reward, terms = config.reward, config.reward.resolved.trained
    said = {
        "reward": [asdict(term) for term in terms],
        "params": [reward.services[term.name].params for term in terms if term.served],
        "combine": reward.combine,
        "crop": config.rollout.crop,
        "data": [str(config.data.root), config.data.heldout, *sorted(heldout)],
        "model": _files(config.model),
        "sampler": asdict(config.sampler),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=_plain).encode()).hexdigest()[:12]


def folder_of(name: str, key: str) -> Path:
    """The folder of a check: `runs/reward_checks/<name>-<key>`."""
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in name) or "run"
    return CHECKS / f"{safe}-{key}"


def write(folder: Path, result: dict[str, Any]) -> Path:
    """Write `check.json`; what is no number there is null."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILE
    write_text(file, json.dumps({"format": FORMAT, **_numbers(result)}, indent=1) + "\n")
    return file


def find(key: str) -> Found | None:
    """The newest check of that key; None if there is none, or none that can be read."""
    files = sorted(CHECKS.glob(f"*-{key}/{FILE}"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["format"] == FORMAT and content["key"] == key:
                first = content["rewards"][0]
                return Found(file, str(first["word"]), str(first["sentence"]))
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            continue
    return None


def _files(model: Path) -> list[Any]:
    """Names and sizes of a model's files, and what its descriptions say: copies of a model are one model."""
    found: list[Any] = []
    for file in sorted(p for p in Path(model).rglob("*") if p.is_file()):
        name = file.relative_to(model).as_posix()
        described = hashlib.sha256(file.read_bytes()).hexdigest() if file.suffix == ".json" else ""
        found.append([name, file.stat().st_size, described])
    return found


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else str(value)


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _numbers(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
