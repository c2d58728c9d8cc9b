"""The sign of life of a run's driver."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.report.live import LIVE_FILE
from cluster.run.looking import ForLooking
from cluster.run.pulse import KIND, Pulse

FACTS = {"run_id": "demo-1", "iterations": 9}


def live(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / LIVE_FILE).read_text())
    return found


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_beats_whatever_the_loop_waits_for_and_says_when_that_went_round_last(tmp_path: Path) -> None:
    with Pulse(tmp_path, ForLooking(print), lambda: True, FACTS, every_s=0.02) as pulse:
        begun = live(tmp_path)
        assert (begun["state"], begun["run_id"], begun["pid"], begun["turned"]) == (
            "starting",
            "demo-1",
            os.getpid(),
            None,
        )
        pulse.state = "running"
        pulse.turned(lambda: {"rolling": 4})
        turned = time.time()
        until(lambda: live(tmp_path).get("rolling") == 4)
        first = live(tmp_path)["time"]
        until(lambda: live(tmp_path)["time"] > first)  # without another turn
        assert live(tmp_path)["turned"] <= turned and live(tmp_path)["state"] == "running"
        looked: list[int] = []
        pulse.turned(lambda: looked.append(1) or {})  # type: ignore[func-returns-value]
        assert not looked  # a second has not passed
    assert live(tmp_path)["state"] == "finished"


@pytest.mark.parametrize(
    ("error", "state", "why"),
    [
        (KeyboardInterrupt("stopped after iteration 3"), "stopped", "stopped after iteration 3"),
        (ValueError("no reward"), "failed", "ValueError: no reward"),
    ],
)
def test_its_last_beat_says_how_the_run_ended(error: BaseException, state: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), Pulse(tmp_path, ForLooking(print), lambda: True, FACTS):
        raise error
    assert (live(tmp_path)["state"], live(tmp_path)["doing"]) == (state, why)


def test_a_run_that_was_asked_to_end_is_stopping(tmp_path: Path) -> None:
    asked = threading.Event()
    with Pulse(tmp_path, ForLooking(print), lambda: True, FACTS, asked.is_set, every_s=0.02) as pulse:
        pulse.state = "running"
        asked.set()
        until(lambda: live(tmp_path)["state"] == "stopping")
    assert live(tmp_path)["state"] == "finished"


def test_a_folder_that_is_anothers_gets_no_beat_and_one_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    with Pulse(tmp_path, ForLooking(print), lambda: False, FACTS):
        pass
    assert list(tmp_path.iterdir()) == []
    told: list[str] = []
    (tmp_path / LIVE_FILE).mkdir()
    looking = ForLooking(told.append)
    with Pulse(tmp_path, looking, lambda: True, FACTS, every_s=0.02):
        until(lambda: looking.missing[KIND] > 2)
    assert len(told) == 1 and "the pulse (live.json) is missing, and the run goes on" in told[0]
    assert [p.name for p in tmp_path.iterdir()] == [LIVE_FILE]  # no leftovers
