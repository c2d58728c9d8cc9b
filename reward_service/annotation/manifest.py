"""What is to be rated: the pictures of an export with their hashes and origins, and the tasks, in order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from restoration.whole_files import written_whole
from reward_service.annotation.votes import SIDES, Vote

FILE = "manifest.json"
FORMAT = "restorl-annotation-1"
Kind = Literal["rate", "pair"]
KINDS: tuple[Kind, ...] = ("rate", "pair")
OUTPUT, INPUT, TRUTH = "output", "input", "truth"
PLAIN, REPEAT, TRAP = "plain", "repeat", "trap"


@dataclass(frozen=True)
class Picture:
    """A file of an export.

    Attributes:
        file: its path below the folder of the export; its name tells nobody where it comes from.
        sha256: of the file.
        source: the image id of the pair that it belongs to.
        photograph: digest of the ground truth, which several pairs may share: labels are split by it.
        role: output, input (degraded) or truth (ground truth).
        checkpoint: that made an output: base, or an iteration.
        step, steps: of an output, the denoising step whose clean estimate it is, of so many; the last is the result.
        seed: of the output's noise.
        score: by the run's scorer.
        difficulty: of the photograph, 0 to 1 (the hardest).
    """

    file: str
    sha256: str
    source: str
    photograph: str
    role: str
    checkpoint: str = ""
    step: int | None = None
    steps: int | None = None
    seed: int | None = None
    score: float | None = None
    difficulty: float | None = None


@dataclass(frozen=True)
class Task:
    """A question: how good is a picture, or which of two is better.

    Attributes:
        name: unique in the export.
        kind: rate or pair.
        pictures: one, or the left and the right one.
        role: plain; repeat, the same as the task `of` once more; or trap, of which the answer is known. `of` then
            names the trap, which of ratings has two tasks.
    """

    name: str
    kind: Kind
    pictures: tuple[str, ...]
    role: str = PLAIN
    of: str = ""


@dataclass(frozen=True)
class Manifest:
    """An export.

    Attributes:
        pictures: by their names.
        tasks: in the order in which they are shown.
        about: where it comes from: run, scorer, settings.
    """

    pictures: Mapping[str, Picture]
    tasks: tuple[Task, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def export(self) -> str:
        """A digest of pictures and tasks: votes carry it, so that those of another export are known."""
        content = {
            "pictures": {k: asdict(v) for k, v in self.pictures.items()},
            "tasks": [asdict(t) for t in self.tasks],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def task_of(self) -> dict[str, Task]:
        """The tasks by their names."""
        return {task.name: task for task in self.tasks}

    def beside(self, picture: str, role: str) -> str | None:
        """The input or the truth of the pair that a picture belongs to, by name; None where there is none."""
        source = self.pictures[picture].source
        return self._references.get((source, role))

    @cached_property
    def _references(self) -> dict[tuple[str, str], str]:
        return {(p.source, p.role): name for name, p in self.pictures.items() if p.role != OUTPUT}

    def check(self, vote: Vote) -> Vote:
        """The vote, if it answers one of the tasks.

        Raises:
            ValueError: no such task, or an answer to a question of the other kind.
        """
        task = self.task_of.get(vote.task)
        if task is None:
            raise ValueError(f"there is no task {vote.task!r} in export {self.export}")
        if (task.kind == "pair") != (vote.answer in SIDES):
            wanted = ", ".join(SIDES) if task.kind == "pair" else "a level, 1 to 5"
            raise ValueError(f"{vote.task} asks for {wanted}, and not for {vote.answer!r}")
        return vote

    def check_export(self, export: object) -> None:
        """Raises:
        ValueError: `export` names another one.
        """
        if export != self.export:
            raise ValueError(
                f"of another export, {export}: this folder is {self.export}; take the folder it was made for"
            )


def write(folder: Path, manifest: Manifest) -> Path:
    """Write the manifest of an export whose pictures are there.

    Raises:
        OSError: it can't be written.
    """
    path = folder / FILE
    content = {
        "format": FORMAT,
        "export": manifest.export,
        "about": dict(manifest.about),
        "pictures": {name: asdict(picture) for name, picture in manifest.pictures.items()},
        "tasks": [asdict(task) for task in manifest.tasks],
    }
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def read(folder: Path) -> Manifest:
    """The manifest of the export in `folder`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: of another format, damaged, or changed since it was written.
    """
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no export: there is no {FILE}; make one by `restorl annotate export`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            raise ValueError(f"its format is {found!r}, not {FORMAT}")
        manifest = Manifest(
            {str(name): _made(Picture, picture) for name, picture in content["pictures"].items()},
            tuple(_made(Task, task | {"pictures": tuple(task["pictures"])}) for task in content["tasks"]),
            dict(content["about"]),
        )
        _require_sound(manifest)
        if manifest.export != content["export"]:
            raise ValueError(f"its pictures and tasks have the digest {manifest.export}, not {content['export']}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} can't be taken: {what}; put it back from a copy, or export again") from error
    return manifest


def verify(folder: Path, manifest: Manifest) -> None:
    """Hold the files against their hashes: a label of a picture that was changed is a label of another.

    Raises:
        FileNotFoundError: one is gone.
        ValueError: one was changed.
    """
    for picture in manifest.pictures.values():
        path = folder / picture.file
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} is gone, which people rated; put it back from a copy") from None
        if digest != picture.sha256:
            raise ValueError(
                f"{path} isn't the picture that people rated (its SHA-256 differs); put it back from a copy"
            )


def _made(kind: Any, given: Mapping[str, Any]) -> Any:
    """A dataclass of its JSON form. Raises ValueError for unknown names, TypeError for missing ones."""
    if unknown := sorted(given.keys() - {f.name for f in fields(kind)}):
        raise ValueError(f"a {kind.__name__.lower()} has no {unknown[0]!r}")
    return kind(**given)


def _require_sound(manifest: Manifest) -> None:
    for picture in manifest.pictures.values():
        if Path(picture.file).is_absolute() or ".." in Path(picture.file).parts:
            raise ValueError(f"{picture.file!r} lies outside the export")
    if len(manifest.task_of) < len(manifest.tasks):
        raise ValueError("two tasks have one name")
    for task in manifest.tasks:
        if task.kind not in KINDS or len(task.pictures) != 1 + (task.kind == "pair"):
            raise ValueError(f"task {task.name!r} is {task.kind!r} of {len(task.pictures)} pictures")
        if absent := [name for name in task.pictures if name not in manifest.pictures]:
            raise ValueError(f"task {task.name!r} shows {absent[0]!r}, which is no picture of it")
