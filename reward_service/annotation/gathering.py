"""All votes on an export, from its own files and from others, each of which counts once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reward_service.annotation import log
from reward_service.annotation.label_studio import read_tasks
from reward_service.annotation.manifest import Manifest
from reward_service.annotation.table import read_table
from reward_service.annotation.votes import Vote


@dataclass(frozen=True)
class Gathered:
    """Votes, and what was found besides, in words."""

    votes: tuple[Vote, ...]
    notes: tuple[str, ...]


def gather(folder: Path, manifest: Manifest, files: Sequence[Path] = ()) -> Gathered:
    """The votes in the folder of an export, and those in `files` (.jsonl of ours, .json of Label Studio, .csv).

    Raises:
        FileNotFoundError: a file isn't there.
        ValueError: a file of another kind, a damaged one, one of another export, an answer that is none, or two answers
            of one annotator to one task; says where.
    """
    found: dict[tuple[str, str], tuple[Vote, Path]] = {}
    notes: list[str] = []
    for path in [*sorted((folder / log.FOLDER).glob(f"*{log.SUFFIX}")), *files]:
        votes, told = _votes_of(path, manifest)
        notes += told
        for vote in votes:
            other, where = found.setdefault((vote.annotator, vote.task), (vote, path))
            if other.answer != vote.answer:
                raise ValueError(
                    f"{vote.annotator} answers {vote.task} by {other.answer} in {where} and by {vote.answer} in "
                    f"{path}; remove one of them"
                )
    return Gathered(tuple(vote for vote, _ in found.values()), tuple(notes))


def _votes_of(path: Path, manifest: Manifest) -> tuple[list[Vote], list[str]]:
    if path.suffix == log.SUFFIX:
        votes = log.read_log(path, manifest.export)
        try:
            return [manifest.check(vote) for vote in votes], []
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if path.suffix == ".csv":
        return read_table(path, manifest), []
    if path.suffix == ".json":
        read = read_tasks(path, manifest)
        return read.votes, read.notes
    raise ValueError(f"{path}: votes are read from .jsonl (ours), .json (Label Studio) and .csv; convert it to one")
