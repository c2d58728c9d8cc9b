"""Invented annotators with known tastes, and an export for them to rate."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from restoration.images import write_image
from reward_service.annotation import manifest as manifests
from reward_service.annotation.manifest import INPUT, OUTPUT, TRUTH, Manifest, Picture, Task
from reward_service.annotation.votes import Vote


@dataclass(frozen=True)
class Person:
    """Levels are quality plus bias plus noise, rounded; comparisons are by the same noise. A guesser ignores both."""

    name: str
    bias: float = 0.0
    noise: float = 0.3
    guesses: bool = False

    def level(self, quality: float, rng: np.random.Generator) -> int:
        if self.guesses:
            return int(rng.integers(1, 6))
        return int(np.clip(round(quality + self.bias + rng.normal(0, self.noise)), 1, 5))

    def side(self, left: float, right: float, rng: np.random.Generator) -> str:
        if self.guesses:
            return str(rng.choice(["left", "right", "tie"]))
        gap = left - right + rng.normal(0, self.noise * 2**0.5)
        return "left" if gap > 0 else "right"


GOOD = (Person("anna", 0.3), Person("ben", -0.3), Person("cy", 0.1, 0.5), Person("dora", -0.1, 0.4))
GUESSER = Person("guess", guesses=True)


def quality_of(manifest: Manifest, picture: str) -> float:
    """What everybody would like to say."""
    p = manifest.pictures[picture]
    return {INPUT: 1.0, TRUTH: 5.0}.get(p.role, 1.5 + 0.1 * float(p.score or 0))


def make_export(sources: int = 6, outputs: int = 4, traps: int = 4) -> Manifest:
    """Photographs with outputs of scores 0 to 30: every output is rated, neighbours are compared; repeats and traps."""
    pictures: dict[str, Picture] = {}
    tasks: list[Task] = []
    for s in range(sources):
        for role in (INPUT, TRUTH):
            pictures[f"{role}{s}"] = _picture(f"{role}{s}", f"photo{s}", role)
        names = [f"s{s}o{o}" for o in range(outputs)]
        for o, name in enumerate(names):
            score = float((7 * s + 11 * o) % 31)
            pictures[name] = _picture(name, f"photo{s}", OUTPUT, str(10 * (o % 2)) if o % 2 else "base", score)
        ranked = sorted(names, key=lambda name: pictures[name].score or 0)
        tasks += [Task(f"r{name}", "rate", (name,)) for name in names]
        tasks += [Task(f"p{a}{b}", "pair", (a, b)) for a, b in zip(ranked, ranked[1:], strict=False)]
    tasks += [Task("again1", "rate", ("s0o0",), "repeat", "rs0o0")]
    first = next(task for task in tasks if task.kind == "pair")
    tasks += [Task("again2", "pair", first.pictures[::-1], "repeat", first.name)]
    for t in range(traps):
        if t % 2:
            tasks.append(Task(f"trap{t}", "pair", (f"truth{t}", f"input{t}"), "trap", f"trap{t}"))
        else:
            tasks += [Task(f"trap{t}{role}", "rate", (f"{role}{t}",), "trap", f"trap{t}") for role in (INPUT, TRUTH)]
    return Manifest(pictures, tuple(tasks), {"run": "demo", "scorer": "lite0_levels"})


def answers(manifest: Manifest, people: Sequence[Person], seed: int = 0, missing: float = 0.0) -> list[Vote]:
    """Everybody's votes on everything, but for a share that is missing."""
    rng = np.random.default_rng(seed)
    votes = []
    for person in people:
        for task in manifest.tasks:
            values = [quality_of(manifest, picture) for picture in task.pictures]
            answer = person.level(values[0], rng) if task.kind == "rate" else person.side(values[0], values[1], rng)
            if rng.random() >= missing:
                votes.append(Vote(person.name, task.name, answer, 2.5, 1e9))
    return votes


def write_export(folder: Path, manifest: Manifest, side: int = 24) -> Manifest:
    """The same export with files, whose pixels are noise; the one that was written."""
    rng = np.random.default_rng(0)
    written = {}
    for name, picture in manifest.pictures.items():
        write_image(folder / picture.file, rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        digest = hashlib.sha256((folder / picture.file).read_bytes()).hexdigest()
        written[name] = Picture(**{**vars(picture), "sha256": digest})
    whole = Manifest(written, manifest.tasks, manifest.about)
    manifests.write(folder, whole)
    return whole


def _picture(name: str, source: str, role: str, checkpoint: str = "", score: float | None = None) -> Picture:
    return Picture(f"images/{name}.png", "", source, f"{source} clean", role, checkpoint, score=score)
