"""Tasks and votes as Label Studio has them: two projects, one that rates and one that compares.

Its exports hold no pictures, and annotations without an answer occur in them: such ones are counted and told, and the
pictures stay in the folder of the export.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restoration.whole_files import written_whole
from reward_service.annotation.manifest import INPUT, TRUTH, Kind, Manifest, Task
from reward_service.annotation.votes import BEST, TIE, Vote

ROOT = "/data/local-files/?d="
"""Before a path, where Label Studio serves files of its own machine."""
RATING = f"""<View>
  <Header value="How good is the picture in the middle?"/>
  <View style="display: flex">
    <Image name="input" value="$input"/>
    <Image name="picture" value="$picture"/>
    <Image name="truth" value="$truth"/>
  </View>
  <Rating name="quality" toName="picture" maxRating="{BEST}" required="true"/>
</View>
"""
PAIRWISE = f"""<View>
  <Header value="Which of the two is better?"/>
  <Pairwise name="better" toName="left,right"/>
  <View style="display: flex">
    <Image name="left" value="$left"/>
    <Image name="right" value="$right"/>
  </View>
  <Choices name="neither" toName="left" choice="single-radio">
    <Choice value="{TIE}"/>
  </Choices>
  <View style="display: flex">
    <Image name="input" value="$input"/>
    <Image name="truth" value="$truth"/>
  </View>
</View>
"""
CONFIGS: dict[Kind, str] = {"rate": RATING, "pair": PAIRWISE}


@dataclass
class Read:
    """What an export of Label Studio holds.

    Attributes:
        votes: one for each annotator and task, the latest.
        notes: what it holds besides, and what it lacks, in words.
    """

    votes: list[Vote] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write_tasks(path: Path, manifest: Manifest, kind: Kind, votes: Iterable[Vote] = (), root: str = ROOT) -> list[Path]:
    """The tasks of a kind as JSON to import, with the votes as annotations, and beside it the labelling configuration.

    Args:
        root: stands before the path of a picture.

    Raises:
        ValueError: the export has no task of that kind.
        OSError: a file can't be written.
    """
    tasks = [task for task in manifest.tasks if task.kind == kind]
    if not tasks:
        raise ValueError(f"export {manifest.export} has no task of kind {kind!r}")
    given: dict[str, list[Vote]] = {task.name: [] for task in tasks}
    for vote in votes:
        if vote.task in given:
            given[vote.task].append(vote)
    rows = [
        {"data": _data(manifest, task, root), "annotations": [_annotation(vote) for vote in given[task.name]]}
        for task in tasks
    ]
    config = path.with_suffix(".xml")
    path.parent.mkdir(parents=True, exist_ok=True)
    for file, text in ((path, json.dumps(rows, indent=1) + "\n"), (config, CONFIGS[kind])):
        with written_whole(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [path, config]


def read_tasks(path: Path, manifest: Manifest) -> Read:
    """The votes in an export of Label Studio, in its format JSON (not JSON-MIN or CSV).

    An annotator is called by the address, else user-<id>.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such export; a task of another export of ours, or an answer that is none to it; names the place.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("data"), dict) for row in rows
    ):
        raise ValueError(f"{path}: no export of Label Studio: it must be a list of tasks with `data`; export as JSON")
    latest: dict[tuple[str, str], tuple[str, Vote]] = {}
    empty = cancelled = twice = 0
    for place, row in enumerate(rows):
        where = f"{path}: task {place}"
        try:
            manifest.check_export(row["data"].get("export"))
            task = row["data"].get("task")
            for annotation in _annotations(row):
                if annotation.get("was_cancelled"):
                    cancelled += 1
                    continue
                answer = _answer(annotation.get("result"))
                if answer is None:
                    empty += 1
                    continue
                vote = manifest.check(Vote(_annotator(annotation), task, answer, _seconds(annotation)))
                changed = str(annotation.get("updated_at") or annotation.get("created_at") or "")
                twice += (key := (vote.annotator, vote.task)) in latest
                if key not in latest or changed >= latest[key][0]:
                    latest[key] = (changed, vote)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: {error}") from None
    told = {
        "annotations hold no answer: if people did answer, Label Studio lost it; look there": empty,
        "annotations were cancelled and are left out": cancelled,
        "annotations were made again by the same annotator: the latest counts": twice,
    }
    notes = [f"{path}: {count} {what}" for what, count in told.items() if count]
    return Read([vote for _, vote in latest.values()], notes)


def _data(manifest: Manifest, task: Task, root: str) -> dict[str, str]:
    def url(picture: str) -> str:
        return root + manifest.pictures[picture].file

    shown = (
        {"picture": task.pictures[0]}
        if task.kind == "rate"
        else dict(zip(("left", "right"), task.pictures, strict=True))
    )
    beside = {role: manifest.beside(task.pictures[0], role) for role in (INPUT, TRUTH)}
    data = {"export": manifest.export, "task": task.name}
    return data | {name: url(picture) for name, picture in (shown | beside).items() if picture is not None}


def _annotation(vote: Vote) -> dict[str, Any]:
    if isinstance(vote.answer, int):
        result = {"from_name": "quality", "to_name": "picture", "type": "rating", "value": {"rating": vote.answer}}
    elif vote.answer == TIE:
        result = {"from_name": "neither", "to_name": "left", "type": "choices", "value": {"choices": [TIE]}}
    else:
        result = {"from_name": "better", "to_name": "left", "type": "pairwise", "value": {"selected": vote.answer}}
    return {"completed_by": {"email": vote.annotator}, "lead_time": vote.seconds, "result": [result]}


def _annotations(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = row.get("annotations", [])
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError("its annotations are no list of objects; export as JSON, not as JSON-MIN")
    return found


def _answer(result: object) -> int | str | None:
    """The answer in an annotation's result; None where it holds none.

    Raises:
        ValueError: several answers, or one of another form.
    """
    if not isinstance(result, list):
        return None
    found: list[int | str] = []
    for part in result:
        kind, value = (part.get("type"), part.get("value")) if isinstance(part, dict) else (None, None)
        if not isinstance(value, dict):
            continue
        if kind == "rating":
            rating = value.get("rating")
            if not isinstance(rating, int | float) or rating != int(rating):
                raise ValueError(f"the rating {rating!r} is no whole level, 1 to {BEST}")
            found.append(int(rating))
        elif kind == "pairwise":
            found.append(str(value.get("selected")))
        elif kind == "choices":
            found += [str(choice) for choice in value.get("choices", [])]
    if len(found) > 1:
        raise ValueError(f"an annotation with {len(found)} answers, {', '.join(map(str, found))}; choose one there")
    return found[0] if found else None


def _annotator(annotation: Mapping[str, Any]) -> str:
    who = annotation.get("completed_by")
    if who is None:
        raise ValueError("an annotation of nobody (it has no completed_by); export with the annotators")
    if isinstance(who, dict):
        return str(who.get("email") or f"user-{who.get('id')}")
    return f"user-{who}" if isinstance(who, int) else str(who)


def _seconds(annotation: Mapping[str, Any]) -> float | None:
    lead = annotation.get("lead_time")
    return float(lead) if isinstance(lead, int | float) and lead >= 0 else None
