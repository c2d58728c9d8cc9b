"""Some processes at a time, each with a deadline and a log; one that fails costs those that need it, no other."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LOOK_S = 0.1
PATIENCE_S = 60.0  # that a process has to end by itself when it is asked to
KILLED_S = 20.0  # until a killed one is gone
LONGEST_CAUSE = 400


@dataclass(frozen=True)
class Task:
    """A process. `needs`: labels of tasks before it in the list, without which it can't be done."""

    label: str
    command: Sequence[str]
    log: Path
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """`cause`: why it failed; empty where it is done."""

    label: str
    log: Path
    cause: str = ""
    seconds: float = 0.0


@dataclass
class _Running:
    task: Task
    process: subprocess.Popen[bytes]
    began: float
    log_start: int
    asked: float | None = None  # when it was asked to end


OnChange = Callable[[Sequence[str], Sequence[Outcome]], None]


def side_by_side(
    tasks: Sequence[Task],
    jobs: int,
    deadline_s: float,
    on_change: OnChange | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[Outcome]:
    """Run all tasks, at most `jobs` at a time, in their order as far as what they need allows.

    A process has this one's end on its standard input (`lifeline.end_with_starter`). One that takes longer than
    `deadline_s` is ended. Whatever is raised in here, KeyboardInterrupt too, ends those that run first.

    Args:
        on_change: called with the labels that run and the outcomes so far, whenever these change.
        environment: of the processes; None: this one's.

    Raises:
        ValueError: jobs or deadline out of range, a task that needs one that isn't before it.
    """
    if jobs < 1 or not deadline_s > 0:
        raise ValueError(f"jobs={jobs}, deadline={deadline_s:g} s: at least 1, and above 0")
    _require_order(tasks)
    waiting, running, outcomes = list(tasks), list[_Running](), dict[str, Outcome]()
    try:
        while waiting or running:
            changed = False
            for run in list(running):
                if (outcome := _looked_at(run, deadline_s)) is not None:
                    running.remove(run)
                    outcomes[run.task.label] = outcome
                    changed = True
            for task in list(waiting):
                blocked = [label for label in task.needs if label not in outcomes]
                lost = [label for label in task.needs if label in outcomes and outcomes[label].cause]
                if lost:
                    waiting.remove(task)
                    outcomes[task.label] = Outcome(task.label, task.log, f"it needs {lost[0]}, which failed")
                    changed = True
                elif not blocked and len(running) < jobs:
                    waiting.remove(task)
                    try:
                        running.append(_started(task, environment))
                    except OSError as error:
                        outcomes[task.label] = Outcome(task.label, task.log, f"it can't be started: {error}")
                    changed = True
            if changed and on_change is not None:
                on_change([run.task.label for run in running], list(outcomes.values()))
            if running:
                time.sleep(LOOK_S)
    finally:
        _end([run.process for run in running])
    return [outcomes[task.label] for task in tasks]


def _require_order(tasks: Sequence[Task]) -> None:
    before = set[str]()
    for task in tasks:
        if absent := [label for label in task.needs if label not in before]:
            raise ValueError(f"{task.label} needs {absent[0]}, which isn't before it")
        before.add(task.label)


def _started(task: Task, environment: Mapping[str, str] | None) -> _Running:
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("ab") as output:
        start = output.seek(0, os.SEEK_END)
        # A session of its own: Ctrl-C is this process's to hand on.
        process = subprocess.Popen(
            list(task.command),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if environment is None else dict(environment),
            start_new_session=True,
        )
    return _Running(task, process, time.monotonic(), start)


def _looked_at(run: _Running, deadline_s: float) -> Outcome | None:
    """The outcome of one that has ended; one that is over its time is asked to end, and then killed."""
    now, status = time.monotonic(), run.process.poll()
    seconds, task = now - run.began, run.task
    if status is None:
        if run.asked is None and seconds > deadline_s:
            run.asked = now
            _signal(run.process, signal.SIGTERM)
        elif run.asked is not None and now - run.asked > PATIENCE_S:
            _signal(run.process, signal.SIGKILL)
        return None
    if run.process.stdin is not None:
        run.process.stdin.close()
    if run.asked is not None:
        return Outcome(task.label, task.log, f"it was ended after its {deadline_s / 3600:g} hours", seconds)
    return Outcome(task.label, task.log, _cause(status, task.log, run.log_start), seconds)


def _cause(status: int, log: Path, start: int) -> str:
    """What a process said last, of one that failed."""
    if status == 0:
        return ""
    ended = f"it was killed by signal {-status}" if status < 0 else f"it ended with status {status} without a word"
    with suppress(OSError), log.open("rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        if lines:
            said = lines[-1][:LONGEST_CAUSE]
            return f"{ended}, after {said!r}" if status < 0 else said
    return ended


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask all to end, then kill those that don't."""
    for number, patience in ((signal.SIGTERM, PATIENCE_S), (signal.SIGKILL, KILLED_S)):
        for process in processes:
            if process.poll() is None:
                _signal(process, number)
        ends = time.monotonic() + patience
        while any(process.poll() is None for process in processes) and time.monotonic() < ends:
            time.sleep(LOOK_S)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """SIGTERM to the process, which ends what it has started; SIGKILL to all of its group."""
    with suppress(ProcessLookupError, PermissionError):
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
