"""A folder to rate from: pictures, questions and a manifest, made from a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cluster.annotate.outputs import BASE, LATEST, Progress, figures_of, hardest, made, name_of, plainest
from cluster.annotate.picking import ExportSettings, Output, choose, tasks_of
from learner.checkpoint import CheckpointError, checkpoints, latest, step_of
from restoration.figures import ScoreFunction
from restoration.images import to_uint8, write_image
from reward_service.annotation import log, manifest
from reward_service.annotation.manifest import INPUT, OUTPUT, TRUTH, Manifest, Picture

if TYPE_CHECKING:
    from cluster.config.recipe import RunConfig

PICTURES = "images"


@dataclass(frozen=True)
class Exported:
    """The manifest that was written, and what a user should know, in words."""

    manifest: Manifest
    notes: tuple[str, ...]


def export(
    run: Path,
    config: RunConfig,
    out: Path,
    settings: ExportSettings,
    score: ScoreFunction,
    scorer: str,
    given: Sequence[str] = (BASE, LATEST),
    device: str = "cpu",
    progress: Progress = lambda what, done, total: None,
) -> Exported:
    """Make and pick outputs, and write them with their questions to `out`. The manifest is written last.

    Args:
        scorer: what `score` is called.
        given: checkpoints: base, latest, or iterations.

    Raises:
        FileExistsError: `out` holds something else.
        ConfigError, CheckpointError, DataError, ImageError: what the run or its data lack.
        ValueError: nothing can be restored, or nothing is there to ask.
        OSError: a file can't be written.
    """
    require_free(out)
    named = rounds_of(run, given)
    pairs = config.data.open(getattr(config.data, settings.split))
    rows = figures_of(run, config, pairs, settings, named[-1], device, progress)
    difficulty, notes = hardest(rows, settings.images)
    outputs: dict[str, Output] = {}
    pixels: dict[str, np.ndarray] = {}
    equal = 0
    for output, image in made(run, config, pairs, difficulty, named, settings, score, device, progress):
        equal += output.name in outputs
        outputs.setdefault(output.name, output)
        pixels.setdefault(output.name, image)
    if equal:
        notes.append(f"{equal} outputs equal others of theirs to the last bit and are asked about once")
    rng = np.random.default_rng(settings.seed)
    chosen = choose(list(outputs.values()), settings.outputs, settings.bins, rng)
    if len(chosen) < settings.outputs:
        notes.append(f"{len(chosen)} outputs are there, not {settings.outputs}: take more images, rollouts or steps")

    pictures: dict[str, Picture] = {}
    references: dict[str, tuple[str, str]] = {}
    questions = len(chosen) * len(settings.kinds)  # at most
    trapped = plainest(rows)[: max(2, round(questions * settings.traps)) if settings.traps else 0]
    for source in dict.fromkeys([*(o.source for o in chosen), *trapped]):
        lq, gt = (to_uint8(x[None])[0] for x in pairs.load(source))
        photograph = name_of("", TRUTH, gt)
        references[source] = (name_of(source, INPUT, lq), name_of(source, TRUTH, gt))
        for name, role, image in zip(references[source], (INPUT, TRUTH), (lq, gt), strict=True):
            pixels[name] = image
            pictures[name] = Picture("", "", source, photograph, role, difficulty=difficulty.get(source))
    for o in chosen:
        photograph = pictures[references[o.source][1]].photograph
        pictures[o.name] = Picture(
            *("", "", o.source, photograph, OUTPUT),
            **{name: getattr(o, name) for name in ("checkpoint", "step", "steps", "seed", "score", "difficulty")},
        )
    tasks = tasks_of(chosen, references, trapped, settings, rng)
    shown = {name for task in tasks for name in task.pictures}
    beside = {name for shown_one in shown for name in references[pictures[shown_one].source]}
    written = {
        name: _written(out, name, picture, pixels[name])
        for name, picture in sorted(pictures.items())
        if name in shown | beside
    }
    about = {
        "run": run.resolve().name,
        "run_id": _run_id(run),
        "scorer": scorer,
        "checkpoints": list(named),
        "settings": asdict(settings) | {"kinds": list(settings.kinds)},
    }
    whole = Manifest(written, tasks, about)
    manifest.write(out, whole)
    return Exported(whole, tuple(notes))


def rounds_of(run: Path, given: Sequence[str]) -> tuple[str, ...]:
    """The checkpoints that are meant, by name; "latest" becomes an iteration.

    Raises:
        CheckpointError: the run has no such one.
    """
    root = run / "checkpoints"
    there = [str(step_of(path)) for path in checkpoints(root)]
    newest = latest(root)
    named = []
    for name in given:
        if name == LATEST and newest is not None:
            name = str(step_of(newest))
        if name != BASE and name not in there:
            raise CheckpointError(
                f"{root}: no checkpoint {name!r}, there are {', '.join(there) or 'none'}; name those, latest or base"
            )
        named.append(name)
    return tuple(dict.fromkeys(named))


def require_free(out: Path) -> None:
    """Raises:
    FileExistsError: `out` is more than an export that was interrupted before its manifest.
    """
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - {PICTURES}):
        held = "holds an export already" if (out / manifest.FILE).exists() else "holds something else"
        rated = ", with ratings in it" if (out / log.FOLDER).exists() else ""
        raise FileExistsError(f"{out} {held}{rated}; give a new folder")


def _written(out: Path, name: str, picture: Picture, pixels: np.ndarray) -> Picture:
    file = f"{PICTURES}/{name}.png"
    write_image(out / file, pixels)
    digest = hashlib.sha256((out / file).read_bytes()).hexdigest()
    return Picture(**{**asdict(picture), "file": file, "sha256": digest})


def _run_id(run: Path) -> str | None:
    """As run.json has it; None where it has none, as of a run in one process."""
    path = run / "run.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["run_id"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} can't be read ({type(error).__name__}: {error}); put it back from a copy") from error
