"""The file of an annotator's votes: nothing that was told to be kept is lost, and nothing damaged is believed."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reward_service.annotation.log import VoteLog, read_log
from reward_service.annotation.votes import Vote

EXPORT = "0123456789abcdef"


def vote(task: str, answer: int | str = 4) -> Vote:
    return Vote("anna", task, answer, 1.25, 1.75e9)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Of three votes."""
    with VoteLog(tmp_path, EXPORT, "anna") as log:
        for task, answer in (("t1", 4), ("t2", "left"), ("t3", 1)):
            log.append(vote(task, answer))
    return tmp_path / "ratings" / "anna.jsonl"


def test_votes_come_back_as_they_were_given(file: Path) -> None:
    assert read_log(file, EXPORT) == [vote("t1"), vote("t2", "left"), vote("t3", 1)]


def test_undo_and_another_answer_add_lines_and_remove_none(file: Path) -> None:
    before = file.read_bytes()
    with VoteLog(file.parent.parent, EXPORT, "anna") as log:
        assert log.undo() == vote("t3", 1)
        log.append(vote("t1", 2))
        assert list(log.votes) == ["t2", "t1"]
    assert file.read_bytes().startswith(before) and file.read_bytes().count(b"\n") == 5
    assert read_log(file, EXPORT) == [vote("t2", "left"), vote("t1", 2)]
    with VoteLog(file.parent.parent, EXPORT, "anna") as log:
        assert [log.undo(), log.undo(), log.undo()] == [vote("t1", 2), vote("t2", "left"), None]
    assert read_log(file, EXPORT) == []


@pytest.mark.parametrize("left", [1, 40, -2])
def test_a_line_that_a_crash_cut_off_is_no_vote_and_the_next_one_is_whole(file: Path, left: int) -> None:
    content = file.read_bytes()
    file.write_bytes(content + content.splitlines(keepends=True)[-1][:left])
    assert len(read_log(file, EXPORT)) == 3
    with VoteLog(file.parent.parent, EXPORT, "anna") as log:
        log.append(vote("t4"))
    assert [v.task for v in read_log(file, EXPORT)] == ["t1", "t2", "t3", "t4"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [lines[0].replace(b'"answer": 4', b'"answer": 5'), *lines[1:]],
        lambda lines: [lines[0], lines[2]],
        lambda lines: [lines[1], lines[0], lines[2]],
        lambda lines: [lines[0], b"\0" * 20 + b"\n", lines[2]],
        lambda lines: [lines[0], lines[1][:30] + lines[2]],
        lambda lines: [*lines, lines[0]],
    ],
    ids=["an answer changed", "a line is gone", "lines changed places", "zeros", "two lines in one", "a line twice"],
)
def test_a_file_that_is_not_as_it_was_written_is_refused_by_the_line(file: Path, damage: object) -> None:
    file.write_bytes(b"".join(damage(file.read_bytes().splitlines(keepends=True))))  # type: ignore[operator]
    for read in (lambda: read_log(file, EXPORT), lambda: VoteLog(file.parent.parent, EXPORT, "anna")):
        with pytest.raises(ValueError, match=r"anna.jsonl:\d: not as it was written .*put the file back from a copy"):
            read()


def test_a_full_disk_loses_no_vote_that_was_kept_and_keeps_none_by_half(file: Path) -> None:
    before = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with VoteLog(file.parent.parent, EXPORT, "anna") as log:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, limits[1]))  # room for half a line
        try:
            for _ in range(2):
                with pytest.raises(OSError, match="anna.jsonl"):
                    log.append(vote("t4"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert file.read_bytes() == before and "t4" not in log.votes
        log.append(vote("t4"))  # once there is room
    assert [v.task for v in read_log(file, EXPORT)] == ["t1", "t2", "t3", "t4"]


def test_what_could_not_be_taken_back_on_a_full_disk_is_before_the_next_vote(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with VoteLog(file.parent.parent, EXPORT, "anna") as log:
        with monkeypatch.context() as patched:
            patched.setattr("os.fsync", full)
            patched.setattr(VoteLog, "_cut", lambda self: None)
            with pytest.raises(OSError, match="No space left"):
                log.append(vote("t4"))
        log.append(vote("t5"))
    assert [v.task for v in read_log(file, EXPORT)] == ["t1", "t2", "t3", "t5"]


WRITER = """
import sys
from pathlib import Path
from reward_service.annotation.log import VoteLog
from reward_service.annotation.votes import Vote
with VoteLog(Path(sys.argv[1]), sys.argv[2], "anna") as log:
    for i in range(10**6):
        log.append(Vote("anna", f"t{i}", 1 + i % 5))
        print(i, flush=True)
"""


def test_after_kill_9_every_vote_is_there_that_was_told_to_be_kept(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), EXPORT], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(20)][-1]
    process.send_signal(signal.SIGKILL)
    told = max([told, *map(int, process.stdout.read().split("\n")[:-1])])
    process.stdout.close()
    assert process.wait(30) == -signal.SIGKILL
    votes = read_log(tmp_path / "ratings" / "anna.jsonl", EXPORT)
    assert [v.task for v in votes[: told + 1]] == [f"t{i}" for i in range(told + 1)] and len(votes) <= told + 2
    with VoteLog(tmp_path, EXPORT, "anna") as log:
        assert len(log.votes) == len(votes)


def test_a_file_is_written_by_one_process_at_a_time(file: Path) -> None:
    with VoteLog(file.parent.parent, EXPORT, "anna"):
        with pytest.raises(ValueError, match="another process writes the votes of anna"):
            VoteLog(file.parent.parent, EXPORT, "anna")
        with VoteLog(file.parent.parent, EXPORT, "ben") as other:
            other.append(Vote("ben", "t1", 3))
    with VoteLog(file.parent.parent, EXPORT, "anna") as log:
        assert len(log.votes) == 3


def test_votes_of_another_export_or_annotator_are_refused(file: Path) -> None:
    with pytest.raises(ValueError, match="anna.jsonl:1: of another export, 0123456789abcdef: this one is other"):
        read_log(file, "other")
    with pytest.raises(ValueError, match="of another export"):
        VoteLog(file.parent.parent, "other", "anna")
    (file.parent / "ben.jsonl").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="a vote of anna, in the file of ben"):
        VoteLog(file.parent.parent, EXPORT, "ben")
    with (
        VoteLog(file.parent.parent, EXPORT, "cy") as log,
        pytest.raises(ValueError, match="a vote of anna for the file"),
    ):
        log.append(vote("t1"))


@pytest.mark.parametrize("name", ["", "../anna", "a/b", ".hidden", "a b", "x" * 65, "a\n"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="a name has 1 to 64 letters"):
        VoteLog(tmp_path, EXPORT, name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answer", [0, 6, 3.0, True, "best", None, float("nan")])
def test_an_answer_that_is_none_is_no_vote(answer: object) -> None:
    with pytest.raises(ValueError, match="choose a level, 1 to 5, or left, right, tie"):
        Vote("anna", "t1", answer)  # type: ignore[arg-type]
