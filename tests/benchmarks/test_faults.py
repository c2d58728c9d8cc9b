"""The matrix of faults, but for its hosts: what an audit means, when a run has recovered, the page of the results."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.page import rendered, table, where
from benchmarks.faults.rows import ROWS
from benchmarks.faults.verdict import Account, Moment, account, gaps, happened, recovered_s, usual_s
from trajectories.audit import Ledger, LedgerEntry, audit

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "faults.json", ROOT / "docs" / "faults.md"
GOOD: dict[str, Any] = {
    "date": "2026-01-02",
    "cpus": 2,
    "load_average": 1.5,
    "rate": "200mbit (tbf)",
    "delay": "not applied: this kernel has no netem",
    "server": "valkey 9",
    "outcome": "ok",
    "happened": "the run went on",
    "wrong": [],
    "lost": 0,
    "used_twice": 0,
    "iteration_s": 0.8,
    "recovered_s": 4.0,
    "recovered_iterations": 5.0,
    "resumed": False,
}


def entry(number: int, *outcomes: str, group: str = "", **fields: Any) -> LedgerEntry:
    return LedgerEntry(f"{number}-0", group or f"g{number}", 2, 100, 1, outcomes, **fields)


def judged(*entries: LedgerEntry, wanted: int, held: int = 0) -> Account:
    """As `restorl audit --json` tells it."""
    report = audit(Ledger("run", 1, entries, held_bytes=held))
    return account(json.loads(json.dumps({"source": "store", "ok": report.ok, **asdict(report)})), wanted)


def test_a_complete_run_whose_groups_were_each_used_once_has_a_clean_account() -> None:
    found = judged(entry(1, "consumed:step=1"), entry(2, "dropped:stale"), entry(3, "consumed:step=2"), wanted=2)
    assert found == Account(0, 0) and found.ok


def test_what_an_audit_finds_is_counted_as_lost_used_twice_or_told() -> None:
    assert judged(entry(1, "consumed:step=1", "consumed:step=2"), wanted=1).used_twice == 1
    again = judged(entry(1, "consumed:step=1", group="g"), entry(2, "consumed:step=2", group="g"), wanted=2)
    assert again.used_twice == 1 and not again.ok
    vanished = judged(entry(1), wanted=0, held=100)
    assert vanished.lost == 1 and vanished.other == ("1 groups are pending though the run is complete",)
    damaged = judged(entry(1, in_stream=True, payload_bytes=60), wanted=0, held=100)
    assert damaged.lost == 1
    left = judged(entry(1, "consumed:step=1", in_stream=True), wanted=1)
    assert (left.lost, left.used_twice) == (0, 0) and "still in the stream" in left.other[0] and not left.ok


def test_groups_that_a_complete_run_has_not_used_are_lost_and_those_beyond_it_are_told() -> None:
    once = entry(1, "consumed:step=1")
    assert judged(once, wanted=4) == Account(3, 0)
    assert judged(once, wanted=0).other == ("1 groups were used, 1 more than the run has",)
    assert Account(1, 2, ("a",)) + Account(3, 4, ("b",)) == Account(4, 6, ("a", "b"))


def test_a_run_has_recovered_with_the_second_iteration_behind_the_fault() -> None:
    moments = [Moment(1.0, 3), Moment(2.0, 4), Moment(3.0, 5), Moment(9.0, 4), Moment(10.0, 5), Moment(11.5, 6)]
    assert recovered_s(moments, 2.5, 4) == 9.0  # it went back to iteration 4 between
    assert recovered_s(moments[:-1], 2.5, 4) is None


def test_an_undisturbed_iteration_is_the_median_of_those_before_the_fault_but_the_first() -> None:
    rows: list[dict[str, Any]] = [{"iteration": n, "iteration_s": s} for n, s in enumerate((30, 1, 2, 3, 50), 1)]
    assert usual_s(rows, 4) == 2
    with pytest.raises(ValueError, match="no iteration between 2 and 1"):
        usual_s(rows, 1)


def test_an_iteration_that_is_missing_or_recorded_twice_is_told() -> None:
    assert gaps([{"iteration": 1}, {"iteration": 2}], 2) == ""
    assert gaps([{"iteration": 1}, {"iteration": 1}, {"iteration": 2}], 2) == "iterations recorded: [1, 1, 2]"
    assert gaps([{"iteration": 1}], 2)


def test_what_happened_is_told_from_how_the_drivers_processes_ended() -> None:
    note = "learner rank 0 died: x; starting again from the last checkpoint"
    assert happened([0], "", [], "") == "the run went on"
    assert happened([0], "", [note], "healed") == (
        "healed; the run went on; the learner started again from the last checkpoint"
    )
    assert happened([-9, 0], "step 3", [], "") == "the run ended by signal 9; resumed, it completed"
    assert happened([2, 0], "no room", [], "") == "the run ended with status 2 (no room); resumed, it completed"
    assert happened([2, 1], "no room", [], "").endswith("resumed, it ended with status 1")


def test_every_row_has_a_line_also_without_a_result_and_a_failure_is_not_hidden() -> None:
    bad = GOOD | {"outcome": "failed", "lost": 1, "wrong": ["run1 ended | badly"]}
    lacking = {"date": "2026-01-02", "outcome": "not run", "wrong": ["NoPackage: none"]}
    lines = table(ROWS, {ROWS[0].name: GOOD, ROWS[1].name: bad, ROWS[2].name: lacking})[2:]
    assert len(lines) == len(ROWS) and all(f"`{row.name}`" in line for row, line in zip(ROWS, lines, strict=True))
    assert lines[0] == "| nothing | the run went on | 0 | 0 | 4 s, 5 times one | no | `undisturbed` |"
    assert "**FAILED**: the run went on; run1 ended \\| badly | 1 |" in lines[1]
    assert "not run: NoPackage: none" in lines[2] and "not run yet" in lines[3]
    assert len({re.sub(r"\\\|", "", line).count("|") for line in lines}) == 1


def test_what_the_links_lack_is_told_above_the_table() -> None:
    assert "delay not applied: this kernel has no netem" in where({"undisturbed": GOOD})
    assert where({}) == "Nothing is measured yet."


def test_names_of_rows_are_distinct_and_no_folder_that_rows_share() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names) and not {"model", "packages"} & set(names)


def test_the_page_says_what_the_results_say() -> None:
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    page = PAGE.read_text(encoding="utf-8")
    assert rendered(page, ROWS, results) == page
    assert set(results) <= {row.name for row in ROWS}
    assert rendered(page, ROWS, {ROWS[0].name: GOOD | {"lost": 7}}) != page
    with pytest.raises(ValueError, match="has 0 blocks <!-- rows -->"):
        rendered("", ROWS, {})
