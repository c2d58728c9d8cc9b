"""CSV and Label Studio, both ways, and what is wrong with files that people bring."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from reward_service.annotation.gathering import gather
from reward_service.annotation.label_studio import read_tasks, write_tasks
from reward_service.annotation.log import VoteLog
from reward_service.annotation.manifest import KINDS
from reward_service.annotation.table import answer_of, read_table, write_table
from reward_service.annotation.votes import Vote
from tests.reward_service.annotation.people import GOOD, answers, make_export

EXPORT = make_export()
VOTES = answers(EXPORT, (*GOOD,), missing=0.2)


def test_votes_come_back_from_a_table_as_they_were(tmp_path: Path) -> None:
    assert read_table(write_table(tmp_path / "v.csv", EXPORT, VOTES), EXPORT) == VOTES


def test_votes_come_back_from_label_studio_as_they_were_rated_or_compared(tmp_path: Path) -> None:
    tie = Vote("eve", next(t.name for t in EXPORT.tasks if t.kind == "pair"), "tie", 2.0)
    given = [*VOTES, tie]
    found: list[Vote] = []
    for kind in KINDS:
        file, config = write_tasks(tmp_path / f"{kind}.json", EXPORT, kind, given)
        ElementTree.parse(config)
        read = read_tasks(file, EXPORT)
        assert read.notes == []
        found += read.votes
    key = {(v.annotator, v.task): (v.answer, v.seconds) for v in found}
    assert key == {(v.annotator, v.task): (v.answer, v.seconds) for v in given} and len(found) == len(given)


def test_what_label_studio_is_given_shows_the_pictures_beside_each_other(tmp_path: Path) -> None:
    file, config = write_tasks(tmp_path / "pair.json", EXPORT, "pair", root="http://here/")
    tasks = json.loads(file.read_text())
    shown = {e.get("value", "").lstrip("$") for e in ElementTree.parse(config).iter("Image")}
    for row in tasks:
        assert shown == row["data"].keys() - {"export", "task"}
        task = EXPORT.task_of[row["data"]["task"]]
        assert row["data"]["left"] == f"http://here/images/{task.pictures[0]}.png"
        assert row["data"]["truth"] == f"http://here/images/{EXPORT.beside(task.pictures[0], 'truth')}.png"
    assert len(tasks) == sum(task.kind == "pair" for task in EXPORT.tasks)


def studio(tmp_path: Path, *annotations: dict[str, Any], task: str = "rs0o0", export: str = EXPORT.export) -> Path:
    """An export of Label Studio with one task, as the program writes it."""
    path = tmp_path / "studio.json"
    rows = [{"id": 7, "data": {"export": export, "task": task, "picture": "x"}, "annotations": list(annotations)}]
    path.write_text(json.dumps(rows))
    return path


def rated(level: object, who: object = 3, **more: Any) -> dict[str, Any]:
    result = {"id": "xyz", "from_name": "quality", "to_name": "picture", "type": "rating", "value": {"rating": level}}
    return {"id": 1, "completed_by": who, "was_cancelled": False, "lead_time": 2.5, "result": [result], **more}


def test_people_of_label_studio_are_known_by_address_or_number(tmp_path: Path) -> None:
    found = read_tasks(studio(tmp_path, rated(4), rated(2, {"id": 5, "email": "eve@x.org"})), EXPORT)
    assert found.votes == [Vote("user-3", "rs0o0", 4, 2.5), Vote("eve@x.org", "rs0o0", 2, 2.5)]


def test_what_label_studio_lost_cancelled_or_has_twice_is_told(tmp_path: Path) -> None:
    lost = rated(4, who=4) | {"result": []}
    later = rated(5, updated_at="2026-11-02T10:00:00Z")
    found = read_tasks(
        studio(tmp_path, later, rated(1, updated_at="2026-11-01T10:00:00Z"), lost, rated(3, was_cancelled=True)), EXPORT
    )
    assert [vote.answer for vote in found.votes] == [5]
    assert [note.split(": ", 1)[1].split(":")[0] for note in found.notes] == [
        "1 annotations hold no answer",
        "1 annotations were cancelled and are left out",
        "1 annotations were made again by the same annotator",
    ]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: studio(p, rated(4), export="other"), "task 0: of another export, other: this folder is"),
        (lambda p: studio(p, rated(4), task="t999"), "task 0: there is no task 't999'"),
        (lambda p: studio(p, rated(7)), "task 0: rs0o0: answer=7: choose a level"),
        (lambda p: studio(p, rated(2.5)), "the rating 2.5 is no whole level"),
        (lambda p: studio(p, rated("4")), "the rating '4' is no whole level"),
        (lambda p: studio(p, rated(4) | {"result": rated(4)["result"] * 2}), "an annotation with 2 answers, 4, 4"),
        (lambda p: studio(p, rated(4, who="a b")), "annotator='a b': a name has"),
        (lambda p: _file(p, "s.json", "{}"), "no export of Label Studio: it must be a list of tasks"),
        (lambda p: _file(p, "s.json", '[{"id": 1, "quality": 4}]'), "export as JSON"),
        (lambda p: _file(p, "s.json", "[{"), "not JSON"),
        (lambda p: _file(p, "s.csv", "annotator,task,answer\n"), "it has no column export"),
        (lambda p: _file(p, "s.csv", _row("other,anna,rs0o0,4")), "s.csv:2: of another export, other"),
        (lambda p: _file(p, "s.csv", _row("{export},anna,t999,4")), "s.csv:2: there is no task 't999'"),
        (lambda p: _file(p, "s.csv", _row("{export},anna,rs0o0,9")), "s.csv:2: the answer '9' is unknown"),
        (lambda p: _file(p, "s.csv", _row("{export},anna,rs0o0,")), "s.csv:2: the answer '' is unknown"),
        (lambda p: _file(p, "s.csv", _row("{export},anna,rs0o0,left")), "asks for a level, 1 to 5"),
        (lambda p: _file(p, "s.csv", _row("{export},,rs0o0,4")), "s.csv:2: annotator=''"),
        (lambda p: _file(p, "s.csv", _row("{export},anna,rs0o0,4,soon")), "seconds='soon' is no number"),
        (lambda p: _file(p, "s.txt", ""), r"votes are read from .jsonl"),
    ],
)
def test_a_file_that_holds_no_votes_on_this_export_is_refused_by_the_place(
    tmp_path: Path, make: Any, said: str
) -> None:
    with pytest.raises(ValueError) as caught:
        gather(tmp_path, EXPORT, [make(tmp_path)])
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in ("a.csv", "a.json", "a.jsonl"):
        with pytest.raises(FileNotFoundError, match=name):
            gather(tmp_path, EXPORT, [tmp_path / name])


def test_levels_may_be_words_in_a_table() -> None:
    assert [answer_of(text) for text in ("5", " Excellent", "bad", "LEFT", "tie")] == [5, 5, 1, "left", "tie"]


def test_votes_of_all_files_come_together_and_each_counts_once(tmp_path: Path) -> None:
    with VoteLog(tmp_path, EXPORT.export, "anna") as log:
        for vote in VOTES:
            if vote.annotator == "anna":
                log.append(vote)
    others = [vote for vote in VOTES if vote.annotator != "anna"]
    table = write_table(tmp_path / "v.csv", EXPORT, VOTES)
    found = gather(tmp_path, EXPORT, [table])
    assert len(found.votes) == len(VOTES) and set(found.votes) == set(VOTES)
    assert {v.annotator for v in gather(tmp_path, EXPORT).votes} == {"anna"} and others


def test_two_answers_of_one_annotator_to_one_task_are_refused(tmp_path: Path) -> None:
    a = write_table(tmp_path / "a.csv", EXPORT, [Vote("anna", "rs0o0", 2)])
    b = write_table(tmp_path / "b.csv", EXPORT, [Vote("anna", "rs0o0", 4)])
    with pytest.raises(ValueError, match=r"anna answers rs0o0 by 2 in .*a.csv and by 4 in .*b.csv; remove one"):
        gather(tmp_path, EXPORT, [a, b])


def test_a_log_with_a_vote_on_no_task_of_the_export_is_refused(tmp_path: Path) -> None:
    with VoteLog(tmp_path, EXPORT.export, "anna") as log:
        log.append(Vote("anna", "t999", 3))
    with pytest.raises(ValueError, match="anna.jsonl: there is no task 't999'"):
        gather(tmp_path, EXPORT)


def _file(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def _row(line: str) -> str:
    return "export,annotator,task,answer,seconds\n" + line.replace("{export}", EXPORT.export) + "\n"
