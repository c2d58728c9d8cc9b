"""What the driver makes of failures: what comes back, what is quarantined, what ends the run."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from actors.work import Quarantined, WorkItem, WorkReport
from cluster.cli.output import summary_text
from cluster.config.configure import save_config
from cluster.config.recipe import RunConfig
from cluster.report.records import read_metrics
from cluster.run.actor_pool import Call
from cluster.run.driver_stream import DriverStream
from cluster.run.evaluations import EvaluationPart
from cluster.run.expected import Expected, Here
from cluster.run.failures import Failure, Fatal, Kind
from cluster.run.interrupts import Asked, Interrupts
from cluster.run.learning import StepResult
from cluster.run.machine import Machine
from cluster.run.pace import Pace
from cluster.run.state import MAX_FAILURES, MEASURE_S, MOST_DEATHS, RunState
from learner import checkpoint
from learner.batch import Refused
from learner.group import LearnerDied, LearnerFailed
from restoration.evaluate import Row
from tests.cluster.run.stand_ins import ended_with, with_stand_ins
from trajectories.errors import StaleEpoch


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunState]:
    monkeypatch.setattr("cluster.run.folder.save_config", lambda *_: None)  # it takes 0.2 s
    with RunState(RunConfig(model=tmp_path), tmp_path, resume=False) as made:
        yield with_stand_ins(made)


def late(reason: str = "reward:timeout") -> Failure:
    return Failure(Kind.TRANSIENT, reason, "no reply", "raise reward.deadline_s")


def test_an_item_whose_actor_died_is_rolled_out_again(state: RunState) -> None:
    item = state.work.take()
    state.ended(item, Failure(Kind.TRANSIENT, "process", "killed"))
    assert state.work.take() == item


def test_an_item_that_ends_one_actor_after_the_other_is_quarantined_though_others_succeed(state: RunState) -> None:
    died, bad, others = Failure(Kind.TRANSIENT, "process", "killed by signal 11"), state.work.take(), 0
    for n in range(1, MOST_DEATHS):
        state.ended(bad, died)
        state.ended(WorkItem(100 + n, ("a", "b")), died)  # once each: a node that was lost
        state.ended(WorkItem(100 + n, ("a", "b")), WorkReport(100 + n, 0, published=2))
        others += 1
    assert not state.counts and len(state.work.again) == 2 * others
    state.ended(bad, died)
    assert state.counts == {"process": 2} and "killed by signal 11" in state.notes[0]  # type: ignore[attr-defined]
    assert len(state.work.again) == 2 * others


def test_what_lost_nodes_had_is_given_out_again_at_once_and_never_taken_for_poison(state: RunState) -> None:
    lost = Failure(Kind.TRANSIENT, "node", "node 1f of an actor was lost")
    items = [state.work.take() for _ in range(12)]
    for _ in range(MOST_DEATHS + 1):
        for item in items:
            state.ended(item, lost)
        assert sorted(state.work.take().index for _ in items) == [item.index for item in items]
        state.patience[WorkItem].progressed()
    assert not state.counts


def test_how_many_failures_are_borne_follows_the_number_of_actors(state: RunState) -> None:
    state.crew = SimpleNamespace(tend=lambda: None)  # type: ignore[assignment]
    state.parts.actors = SimpleNamespace(wanted=50)  # type: ignore[assignment]
    state.tend_actors()
    for _ in range(100):  # of 50 actors, each with two items, on nodes that go at once
        state.ended(WorkItem(0, ("a", "b")), Failure(Kind.TRANSIENT, "node", "lost"))
    state.parts.actors.wanted = 1  # type: ignore[misc]
    state.tend_actors()
    state.ended(WorkItem(0, ("a", "b")), Failure(Kind.TRANSIENT, "node", "lost"))
    state.patience[WorkItem].progressed()
    state.tend_actors()
    assert state.patience[WorkItem].limit == MAX_FAILURES


def test_a_late_reward_is_borne_so_often_without_progress_and_ends_the_run_then(state: RunState) -> None:
    item = WorkItem(0, ("a", "b"))
    for _ in range(MAX_FAILURES):
        state.ended(item, late())
    state.ended(item, WorkReport(0, 0, published=2))
    for _ in range(MAX_FAILURES):
        state.ended(item, late())
    with pytest.raises(Fatal, match=r"rollouts failed 21 times without progress.*no reply; raise reward.deadline_s"):
        state.ended(item, late())


def test_work_of_an_epoch_that_is_over_comes_back_and_counts_as_no_failure(state: RunState) -> None:
    """One death of the learner with 20 items in flight ended the run."""
    for index in range(3 * MAX_FAILURES):
        state.ended(WorkItem(index, ("a", "b")), Failure(Kind.TRANSIENT, "epoch", "epoch 1 is over"))
    assert len(state.work.again) == 3 * MAX_FAILURES


def test_a_picture_that_cannot_be_used_is_written_down_once_told_and_counted(state: RunState, tmp_path: Path) -> None:
    for n in range(3):
        bad = Quarantined(f"{n:08d}-000", "picture", "a.png is cut off")
        state.ended(WorkItem(n, ("a", "b")), WorkReport(n, 0, published=1, quarantined=(bad,)))
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [line["what"] for line in lines] == ["00000000-000", "00000001-000", "00000002-000"]
    assert state.counts == {"picture": 3}
    assert len(state.notes) == 1 and "a.png is cut off" in state.notes[0]  # type: ignore[attr-defined]


def test_items_of_which_nothing_can_be_used_end_the_run_with_the_last_reason(state: RunState) -> None:
    with pytest.raises(Fatal, match="gave nan"):
        for n in range(MAX_FAILURES + 1):
            bad = tuple(Quarantined(g, "reward:invalid", "scorer gave nan") for g in WorkItem(n, ("a", "b")).group_ids)
            state.ended(WorkItem(n, ("a", "b")), WorkReport(n, 0, published=0, quarantined=bad))


def test_an_error_of_the_code_in_an_actor_ends_the_run_at_once(state: RunState) -> None:
    with pytest.raises(Fatal, match="KeyError"):
        state.ended(WorkItem(0, ("a",)), Failure(Kind.FATAL, "error", "KeyError: 'x'"))


def test_weights_that_were_lost_with_a_node_are_published_again(state: RunState) -> None:
    state.ended(WorkItem(0, ("a",)), Failure(Kind.TRANSIENT, "object", "lost"))
    assert state.parts.learning.republished == 1  # type: ignore[attr-defined]


def test_a_late_reward_in_an_evaluation_costs_one_more_try(state: RunState) -> None:
    part = EvaluationPart(1, ("x",), None)
    state.ended(part, late())
    assert state.heldout.rewinds[0][:2] == ("failed", part)  # type: ignore[attr-defined]


def test_a_dead_rank_brings_the_learner_back_and_a_step_renews_the_patience(state: RunState) -> None:
    for _ in range(3):
        state.learned(ended_with(LearnerDied(0, "SIGKILL")))
        state.learned(ended_with(step=StepResult(1, {})))
    assert state.parts.learning.recovered == 3  # type: ignore[attr-defined]
    with pytest.raises(Fatal, match="the learner failed 3 times without progress.*SIGKILL"):
        for _ in range(3):
            state.learned(ended_with(LearnerDied(0, "SIGKILL")))


def test_actors_that_wait_for_a_place_step_back_before_the_ranks_of_a_dead_learner_ask_for_one(state: RunState) -> None:
    seen: list[str] = []
    begin_again = state.parts.learning.begin_again
    state.parts.actors.step_back = lambda: seen.append("actors step back")  # type: ignore[method-assign]
    state.parts.learning.begin_again = lambda pause_s: (seen.append("ranks"), begin_again(pause_s))[1]  # type: ignore
    state.learned(ended_with(LearnerDied(0, "SIGKILL")))
    assert seen == ["actors step back", "ranks"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (LearnerFailed(0, "step", FloatingPointError("loss is nan")), "loss is nan; resume with a lower optimiser.lr"),
        (LearnerFailed(1, "prepare", RuntimeError("CUDA out of memory")), "CUDA out of memory; lower rollout"),
        (LearnerFailed(0, "step", KeyError("x")), "KeyError"),
        (StaleEpoch("this process was replaced and must stop"), "replaced"),
    ],
)
def test_what_would_fail_again_ends_the_run_with_its_cause(state: RunState, error: Exception, said: str) -> None:
    """A NaN loss was restarted for ever, its reason thrown away."""
    with pytest.raises(Fatal, match=said):
        state.learned(ended_with(error))
    assert state.parts.learning.recovered == 0  # type: ignore[attr-defined]


def test_groups_that_the_learner_refused_are_quarantined_with_the_step(state: RunState, tmp_path: Path) -> None:
    refused = [Refused("00000003-001", "picture", "b.png is gone")]
    state.learned(ended_with(step=StepResult(1, {"reward_mean": 1.0}, {"picture": 1}, refused)))
    assert json.loads((tmp_path / "quarantine.jsonl").read_text())["detail"] == "b.png is gone"
    assert read_metrics(tmp_path, "train")[0]["dropped:picture"] == 1


def test_a_step_and_work_that_ended_well_are_exported_and_a_failure_is_no_progress(state: RunState) -> None:
    told: list[tuple[Any, ...]] = []
    names = ("store", "step", "alive", "queue", "failed")
    state.parts.metrics = SimpleNamespace(  # type: ignore[assignment]
        **dict.fromkeys(("in_flight", "progress", "staleness", "consumed", "dropped"), lambda *_: None),
        **{name: lambda *of, name=name: told.append((name, *of)) for name in names},
    )
    state.ended(WorkItem(0, ("a", "b")), late())
    assert told == [("failed", "reward:timeout")]
    state.ended(WorkItem(0, ("a", "b")), WorkReport(0, 0, published=2, seconds={"rollout": 3.0}))
    assert told.pop() == ("alive",)
    state.iteration_began = time.monotonic() - 4.0
    state.learned(ended_with(step=StepResult(1, {"reward_mean": 1.0, "learn_s": 2.0})))
    queue, store, (_, record, overlap), alive = told[1:]
    assert queue == ("queue", 0, 0, state.config.store.max_bytes) and store == ("store", 1, 2) and alive == ("alive",)
    assert record["reward_mean"] == 1.0 and record["iteration_s"] == pytest.approx(4.0, abs=0.5)
    assert overlap == pytest.approx(0.5, abs=0.25)  # 3 and 2 s within 4


def test_what_the_store_holds_is_measured_while_a_step_takes_long_now_and_then(
    state: RunState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fills up just then, and an alert looks at the figure."""
    now, used, told = [1000.0], iter([10, 90, 95]), list[tuple[int, int]]()
    monkeypatch.setattr("cluster.run.state.time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda s: None))
    monkeypatch.setattr(state, "_seen", dict)
    state.parts.stream.memory = lambda: (next(used), 100)  # type: ignore[method-assign]
    state.parts.stream.depth = lambda: SimpleNamespace(entries=1, nbytes=7e6)  # type: ignore[method-assign,assignment,return-value]
    metrics = SimpleNamespace(queue=lambda *_: None, in_flight=lambda _: None, store=lambda *of: told.append(of))
    state.parts.metrics = metrics  # type: ignore[assignment]
    for _ in range(3):
        state.turn()
        now[0] += MEASURE_S / 3
    assert told == [(10, 100)] and state.stored_mb == 7.0
    state.turn()
    assert told == [(10, 100), (90, 100)]
    state.parts.version = state.config.iterations  # type: ignore[misc]
    now[0] += MEASURE_S
    state.turn()  # nothing is learned any more: nobody waits for the store
    assert len(told) == 2


def test_replays_outside_the_clip_before_any_update_are_told_once_and_logged(state: RunState, tmp_path: Path) -> None:
    for version in (1, 2, 3):
        state.learned(ended_with(step=StepResult(version, {"ratio_first": 0.003 if version < 3 else 1e-6})))
    assert [r["iteration"] for r in read_metrics(tmp_path, "alarm")] == [1, 2]
    (told,) = state.notes  # type: ignore[attr-defined]
    assert "differ by more than the clip (0.003 > objective.clip=0.0001)" in told


def test_after_the_first_iteration_of_this_start_and_only_then_a_note_says_how_long_the_run_will_take(
    state: RunState, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(1000.0 + 30.0 * n for n in range(100))
    monkeypatch.setattr("cluster.run.state.time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda s: None))
    state.began, state.iteration_began, state.pace = 940.0, 970.0, Pace(970.0, ahead=True)
    state.heldout.evaluations.begin(0, "base", None)
    part = state.heldout.evaluations.take()
    assert part is not None
    state.ended(part, ([], {}))  # 30 s, of which training had half
    state.heldout.evaluations.completed()
    for version in (41, 42):
        state.parts.version = version  # type: ignore[misc]
        state.learned(ended_with(step=StepResult(version, {"learn_s": 15.0})))
    # 60 s, less 15 of the evaluation and as many of a step that overlaps from here on; 9 x 30 s + 4 x 15 s
    assert state.display.beside == [  # type: ignore[attr-defined]
        "the first iteration took 60 s, the others will take about 30 s; about 6 min left of about 7 min"
    ]
    assert state.pace.iteration_s == pytest.approx(30.0)
    assert state._left() == "about 5 min left of about 7 min"  # 2 min so far, with the start


def test_a_run_that_will_take_far_longer_than_its_recipe_says_is_told_once_on_the_display(
    state: RunState, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.config = state.config.model_copy(update={"expected_minutes": 1.0, "iterations": 60})
    here = Here(Machine(), bf16=True, cores=99.0, others=0.0)
    state.expected = Expected(state.config, state.folder, 5.0, 1, 2, lambda: here)
    clock = iter(1000.0 + 30.0 * n for n in range(100))
    monkeypatch.setattr("cluster.run.state.time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda s: None))
    state.began, state.iteration_began, state.pace = 990.0, 970.0, Pace(970.0, ahead=False)
    state.heldout.parts_left = lambda version: 0
    for version in (1, 2, 3):
        state.parts.version = version  # type: ignore[misc]
        state.learned(ended_with(step=StepResult(version, {})))
    (told,) = state.notes  # type: ignore[attr-defined]
    assert told.startswith("WARNING: the whole run will take about 30 min, and its recipe says about 60 s")


def test_run_json_tells_what_a_run_has_counted_and_cost_also_when_its_driver_is_killed(
    state: RunState, tmp_path: Path
) -> None:
    state.began -= 100.0
    state.memory.peak = max(state.memory.peak, 5 << 20)
    state.ended(WorkItem(0, ("a", "b")), WorkReport(0, 0, 1, quarantined=(Quarantined("g1", "picture", "cut off"),)))
    state.looking.lack("a strip", OSError("full"))
    state.learned(ended_with(step=StepResult(1, {"reward_mean": 1.0}, {}, [Refused("g2", "batch", "unfit")])))
    told = json.loads((tmp_path / "run.json").read_text())
    assert told["dropped"] == {"picture": 1, "batch": 1} and told["not_written"] == {"a strip": 1}
    assert told["seconds"] >= 100.0 and told["peak_memory_mb"] >= 5
    state.disk._exits.close()  # as the kernel does
    save_config(state.config, tmp_path / "config.yaml")
    with RunState(RunConfig(model=tmp_path), tmp_path, resume=True) as resumed:
        assert resumed.counts == {"picture": 1, "batch": 1} and resumed.identity["seconds"] == told["seconds"]


def test_a_report_that_cannot_be_written_is_told_and_the_completed_run_stays_one(
    state: RunState, tmp_path: Path
) -> None:
    (tmp_path / "report.html").mkdir()
    row = Row("a", {"psnr": 1.0})
    state.heldout.base_rows = state.heldout.now_rows = [row]
    summary = state._summary(3, 1.0, 2.0)
    assert summary.report is None and summary.rl == {"psnr": 1.0} and state.looking.missing == {"report.html": 1}
    assert any("report.html is missing" in note for note in state.notes)  # type: ignore[attr-defined]
    assert "no report; restorl report" in summary_text(summary)


def test_what_the_loop_sees_is_told_to_whoever_looks_at_the_folder(state: RunState, tmp_path: Path) -> None:
    call = Call(0, WorkItem(8, ("a", "b")), time.monotonic())
    state.parts.actors = SimpleNamespace(calls={"ref": call}, members={0: None})  # type: ignore[assignment]
    state.parts.rewards = {}
    state.parts.stream.waiting = 6
    state.heldout.evaluations.begin(3, "now", None)
    state.timeline.failed["process"] = 2
    state.pace.learned(1.0)
    state.turn()
    state.pulse._beat()
    live = json.loads((tmp_path / "live.json").read_text())
    assert (live["state"], live["rolling"], live["waiting"], live["failed_calls"]) == ("running", 0, 6, {"process": 2})
    assert live["evaluation"] == "iteration 3 (now): 1 parts left" and "left" in live["left"]
    doing = {row["name"]: row.get("doing") for row in live["processes"]}
    assert doing == {"actor 0": "rollout 8", "rank 0": None}
    state.parts.version = state.config.iterations  # type: ignore[misc]
    state.turn()
    assert state.pulse.state == "evaluating"


def test_a_step_that_ended_after_it_had_been_given_up_has_its_line_of_metrics(state: RunState, tmp_path: Path) -> None:
    """What failed beside it was told first; the learner starts again from its checkpoint."""
    state.parts.version = 4
    state.learned(ended_with(LearnerDied(0, "its node was lost")))
    (row,) = read_metrics(tmp_path, "train")
    assert row["iteration"] == 4 and row["reward_mean"] == 2.5


def test_a_full_disk_under_the_ledger_is_told_as_the_file_s_and_not_as_the_store_s(state: RunState) -> None:
    def full(path: Path, epoch: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    state.parts.stream = DriverStream(cast(Any, SimpleNamespace(export_ledger=full)), Interrupts())
    with pytest.raises(OSError, match=r"No space left on device: '.*ledger\.json'"):
        state.finish()


def test_a_step_of_a_driver_that_was_replaced_is_not_recorded(state: RunState, tmp_path: Path) -> None:
    for _ in range(2):
        checkpoint.take_over(tmp_path / "checkpoints", itertools.count(1).__next__)
    with pytest.raises(Fatal, match="the run goes on in another process, in epoch 2"):
        state.learned(ended_with(step=StepResult(1, {"reward_mean": 1.0})))
    with pytest.raises(Fatal, match="in another process"):
        state._quarantine([Quarantined("g1", "picture", "cut off")])
    assert read_metrics(tmp_path) == [] and not (tmp_path / "quarantine.jsonl").exists()


@pytest.mark.parametrize("waits_for", ["the learner", "weights"])
def test_a_first_signal_is_noticed_while_the_driver_waits_for_what_was_lost(state: RunState, waits_for: str) -> None:
    """A learner that starts again takes minutes."""
    never: Future[Any] = Future()
    state.parts.learning.begin_again = lambda pause_s: never  # type: ignore[method-assign]
    state.parts.learning.publish_again = lambda: never.result(4)  # type: ignore[method-assign]
    threading.Timer(0.3, lambda: setattr(state.interrupts, "requested", signal.SIGTERM)).start()
    began = time.monotonic()
    with pytest.raises(Asked) as asked:
        if waits_for == "the learner":
            state.learned(ended_with(LearnerDied(0, "SIGKILL")))
        else:
            state.ended(WorkItem(0, ("a",)), Failure(Kind.TRANSIENT, "object", "lost"))
    never.cancel()
    assert time.monotonic() - began < 3.5 and asked.value.signal == signal.SIGTERM
