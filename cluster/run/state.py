"""What the driver of an open run counts and records: failures, steps, evaluations, its summary."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from actors.work import Quarantined, WorkItem, WorkReport, WorkSequence
from cluster.config.recipe import RunConfig
from cluster.files import LEDGER_FILE, QUARANTINE_FILE
from cluster.report.figures import load_libraries
from cluster.report.live import EVALUATING, RUNNING, STOPPING
from cluster.report.records import read_metrics
from cluster.report.report import write_report
from cluster.run.checks.resources import reserved
from cluster.run.crew import CrewWatch
from cluster.run.elsewhere import announce
from cluster.run.evaluations import EvaluationPart
from cluster.run.expected import Expected, Here
from cluster.run.failures import Failure, Fatal, Kind, Patience, classify
from cluster.run.flow import groups_in_flight
from cluster.run.heldout import HeldOut
from cluster.run.interrupts import Stopped
from cluster.run.learning import StepResult
from cluster.run.load import Load, usable_cores
from cluster.run.machine import this_machine
from cluster.run.open_run import OpenRun
from cluster.run.pace import Pace, about, overlap
from cluster.run.progress import TrainingProgress
from cluster.run.replicas import Replicas
from cluster.run.topology import Topology
from cluster.run.work_queue import WorkQueue
from learner.objective import ratio_alarm
from restoration.evaluate import mean_values
from restoration.precision import has_bf16_instructions
from restoration.whole_files import naming

MAX_FAILURES = 20  # of rollouts or of parts of evaluations, in a row; more where there are many actors
LOST = ("process", "node")  # of what an actor had when it went: others do it at once
DEADLY = ("process", "timeout", "memory")
MOST_DEATHS = 5  # of the actors that an item was given to, one after the other
MEASURE_S = 15.0  # between two looks at what the store holds


class Interrupted(Stopped):
    """A signal: the run stopped between two steps and can be resumed."""

    def __init__(self, folder: Path, iteration: int, number: int) -> None:
        super().__init__(f"stopped after iteration {iteration}; go on with: restorl train --resume {folder}", number)


@dataclass(frozen=True)
class RunSummary:
    """What `restorl train` prints at the end."""

    folder: Path
    iterations: int
    seconds: float
    peak_memory_mb: float
    base: dict[str, float]
    rl: dict[str, float]
    report: Path | None  # None: it could not be written, as was told


class RunState(OpenRun):
    """The run, open, and what the driver counts and records of it. Enter it before anything is started."""

    def __init__(self, config: RunConfig, folder: Path, resume: bool) -> None:
        super().__init__(config, folder, resume)
        self.told_ratio = False
        self.measured_at = float("-inf")
        self.stored_mb: float | None = None  # of trajectories, when that was measured last
        self.expected: Expected | None = None  # of a new run whose recipe says how long it takes
        self.reporting = False  # whether the report's libraries are being loaded
        self.replicas = Replicas()
        self.phase_s: dict[str, float] = {}  # seconds that actors spent since the last step
        limit = _most_failures(config.actors.count)
        self.deaths: Counter[int] = Counter()  # by item
        self.patience = {
            kind: Patience(name, limit) for kind, name in ((WorkItem, "rollouts"), (EvaluationPart, "evaluation"))
        }

    def begin(self, parts: Topology) -> None:
        """Once everything runs: forget what lies behind the checkpoint, find out which work is already published."""
        self.parts = parts
        self.interrupts.defer()
        self.log.truncate_after(parts.version)
        self._restore_record(parts.version)
        sequence = WorkSequence(parts.train.image_ids, self.config.rollout.images_per_batch, self.config.seed)
        self.work = WorkQueue(sequence, parts.stream.published_groups())
        self.display = self.exits.enter_context(
            TrainingProgress(self.config.iterations, parts.version, left=self._left)
        )
        parts.connection.open_dashboard(self.display.note)
        if parts.connection.logs:
            self.display.note(f"logs of its processes: {parts.connection.logs}")
        for warning in (*self.warnings, *parts.warnings):
            self.display.note(f"WARNING: {warning}")
        self.iteration_began = time.monotonic()
        self.heldout = HeldOut(
            self.config,
            self.folder,
            parts.heldout,
            parts.learning,
            self.log,
            self.display,
            self.looking,
            self._own,
            parts.metrics,
        )
        self.heldout.begin(parts.version)
        self.pace = Pace(self.iteration_began, ahead=self.config.source.max_staleness > 0)
        fed = groups_in_flight(self.config) // self.config.rollout.images_per_batch
        each = reserved(self.config.actors)
        self.crew = CrewWatch(parts.actors, parts.desk, fed, each, self.display.note)
        of = self.config
        parts.metrics.begin(parts.version, of.iterations, of.stall_timeout_s, of.objective.clip)
        if self.config.expected_minutes is not None and not self.resume:
            blocks, load = self.heldout.evaluations.blocks, Load()
            self.expected = Expected(
                self.config,
                self.folder,
                self.iteration_began - self.began,
                len(blocks),
                sum(map(len, blocks)),
                lambda: Here(this_machine(), has_bf16_instructions(), usable_cores(), load.others()),
            )
        if not parts.connection.local:  # else nobody on another machine can ask for it
            self._announce()

    def _announce(self) -> None:
        try:
            self.interrupts.beside(partial(announce, self.run_id, self.folder))
        except Exception as error:  # whatever Ray's head says: only who looks from elsewhere misses it
            self.looking.lack("the note by which `restorl status --address` finds this run", error)

    # what is looked at

    def turn(self) -> None:
        """The driver's loop goes round: for `restorl status`."""
        self.timeline.look()
        trained = self.parts.version >= self.config.iterations
        if not trained and (now := time.monotonic()) - self.measured_at >= MEASURE_S:
            self._measure(now)
        self.pulse.turned(self._seen)
        self.pulse.state = EVALUATING if trained and self._evaluating else RUNNING

    def _seen(self) -> dict[str, Any]:
        """Of this instant, as JSON has it."""
        parts, evaluations = self.parts, self.heldout.evaluations.queue
        present = parts.actors.members
        under_way = [f"iteration {e.iteration} ({e.who}): {len(e.waiting) + e.out} parts left" for e in evaluations]
        return {
            "left": self._left(),
            "rolling": len(parts.rolling()),
            "waiting": parts.stream.waiting,
            "waiting_mb": self.stored_mb,
            "evaluation": ", ".join(under_way),
            "failed_calls": dict(self.timeline.failed),
            "processes": [
                *self.timeline.processes(present, parts.actors.calls.values(), self.config.ranks.count),
                *self.replicas.look({app.name: term for term, app in parts.rewards.items()}),
            ],
        }

    def _measure(self, now: float) -> None:
        """Export what the store holds, which fills up also while a step takes long.

        Raises:
            Fatal, Asked: see `DriverStream`.
        """
        self.measured_at = now
        depth, metrics = self.parts.stream.depth(), self.parts.metrics
        self.stored_mb = depth.nbytes / 1e6
        metrics.queue(depth.entries, depth.nbytes, self.config.store.max_bytes)
        metrics.store(*self.parts.stream.memory())
        metrics.in_flight(len(self.parts.rolling()))

    def tend_actors(self) -> None:
        """Have as many actors as somebody wants, and tell who of them lacks."""
        self.crew.tend()
        for patience in self.patience.values():
            borne = patience.limit if patience.in_a_row else 0  # fewer actors don't make too many of those there were
            patience.limit = max(_most_failures(self.parts.actors.wanted), borne)

    # what actors and the learner have done

    def ended(self, task: WorkItem | EvaluationPart, result: Any) -> None:
        """A call of an actor has ended, well or (a `Failure`) badly.

        Raises:
            Fatal: a fatal failure, or too many without progress.
        """
        self.pace.passed(time.monotonic(), self._evaluating)
        if isinstance(result, Failure):
            self._failed(task, result)
            return
        self.parts.metrics.alive()
        if isinstance(task, EvaluationPart):
            self.pace.evaluated()
            self.patience[EvaluationPart].progressed()
            self.heldout.evaluations.done(task, *result[:2])
        else:
            self._rolled(result)

    def _rolled(self, report: WorkReport) -> None:
        self.deaths.pop(report.index, None)
        self._quarantine(report.quarantined)
        for phase, seconds in report.seconds.items():
            self.phase_s[f"{phase}_s"] = self.phase_s.get(f"{phase}_s", 0.0) + seconds
        if report.published or not report.quarantined:
            self.patience[WorkItem].progressed()
        else:
            last = report.quarantined[-1]
            self.patience[WorkItem].failed(Failure(Kind.POISON, last.reason, last.detail))

    def _failed(self, task: WorkItem | EvaluationPart, failure: Failure) -> None:
        # Work of an epoch that is over comes back in numbers when the learner was replaced: that is no failure.
        pause = 0.0 if failure.reason == "epoch" else self.patience[type(task)].failed(failure)
        if failure.reason in LOST:
            pause = 0.0
        self.parts.metrics.failed(failure.reason)
        if isinstance(task, EvaluationPart):
            self.heldout.failed(task, failure)
        elif failure.kind is Kind.POISON or self._kills_actors(task, failure):
            self._quarantine(Quarantined(g, failure.reason, failure.detail) for g in task.group_ids)
        else:
            self.work.put_back(task, pause)
            if failure.reason == "object":  # the weights were lost with a node
                self.interrupts.beside(self.parts.learning.publish_again)

    def _kills_actors(self, item: WorkItem, failure: Failure) -> bool:
        """Whether one actor after the other has died or hung over this item: it would go on so for ever."""
        if failure.reason not in DEADLY:
            return False
        self.deaths[item.index] += 1
        if self.deaths[item.index] < MOST_DEATHS:
            return False
        del self.deaths[item.index]
        return True

    def learned(self, learning: Future[StepResult | None]) -> None:
        """Record a learner step, or start the learner again if it died.

        Raises:
            Fatal: the learner can't go on.
        """
        try:
            step = learning.result()
        except Exception as error:
            failure = classify(error)
            if failure.kind is not Kind.TRANSIENT or failure.reason == "epoch":
                raise Fatal("the learner", failure) from error
            pause = self.parts.learning.patience.failed(failure)
            self.display.note(f"{failure}; starting again from the last checkpoint")
            self.pulse.doing = f"the learner starts again: {failure}"
            self.parts.actors.step_back()  # else one that waits for a place takes that of the ranks
            self.interrupts.result(self.parts.learning.begin_again(pause))
            self.pulse.doing = ""
            self.parts.event = time.monotonic()
            self._own()
            self.log.truncate_after(self.parts.version)
            self._restore_record(self.parts.version)  # of a step that ended after it had been given up
            self.heldout.rewind(self.parts.version)
            self.pace.interrupted(time.monotonic())
            return
        if step is not None:
            if not self.reporting:  # here, so that the start waits for it no more than the end
                self.reporting = True
                threading.Thread(target=load_libraries, name="report", daemon=True).start()
            self._own()
            self.parts.learning.patience.progressed()
            self.heldout.learned(step.version)
            self._record(step)

    def _own(self) -> None:
        """Raises:
        Fatal: the folder isn't this process's to write to any more.
        """
        self.disk.require(self.parts.learning.epoch)

    def _record(self, step: StepResult) -> None:
        now = time.monotonic()
        first = self.pace.iteration_s is None
        self.pace.passed(now, self._evaluating)
        self.pace.learned(step.metrics.get("learn_s"))
        record: dict[str, Any] = {"kind": "train", "iteration": step.version, **step.metrics}
        record |= {f"dropped:{reason}": count for reason, count in sorted(step.dropped.items())}
        record |= {**self.phase_s, "iteration_s": now - self.iteration_began}
        self.phase_s = {}
        self.timeline.learner(self.parts.learning.spans.take(), self.parts.learning.group)
        self.timeline.iteration(step.version, self.iteration_began)
        self.iteration_began = now
        self._quarantine(Quarantined(r.group_id, r.reason, r.detail) for r in step.refused)
        self.log.append(record)
        self.disk.save(**self._totals(now))  # here, too, for a driver that is killed
        if (sign := ratio_alarm(step.metrics.get("ratio_first"), self.config.objective.clip)) is not None:
            self.log.append({"kind": "alarm", "iteration": step.version, "sign": sign})
            if not self.told_ratio:
                self.display.note(f"ALARM: {sign}")
            self.told_ratio = True
        self._measure(now)
        metrics = self.parts.metrics
        rolling_s = record.get("rollout_s", 0.0) / self.parts.actors.wanted
        metrics.step(record, overlap(rolling_s, step.metrics.get("learn_s"), record["iteration_s"]))
        metrics.alive()
        metrics.progress(step.version, step.version, step.metrics.get("reward_mean"))
        metrics.staleness(int(step.metrics.get("staleness_max") or 0))
        metrics.consumed(int(step.metrics.get("trajectories") or 0))
        for reason, groups in step.dropped.items():
            metrics.dropped(reason, groups * self.config.rollout.rollouts_per_image)
        self.display.update(
            step.version,
            reward=step.metrics.get("reward_mean"),
            staleness=step.metrics.get("staleness_mean"),
            throughput=(step.metrics.get("trajectories") or 0) / max(record["iteration_s"], 1e-9),
        )
        if first and (left := self._left()):
            took, each = record["iteration_s"], about(self.pace.iteration_s or 0.0)
            self.display.note_beside(f"the first iteration took {took:.0f} s, the others will take {each}; {left}")
        if self.expected is not None and (far := self.expected.after(step.version, self._whole_s, self.pace)):
            self.display.note(far)

    @property
    def _evaluating(self) -> bool:
        return len(self.heldout.evaluations) > 0

    def _left(self) -> str:
        left, whole = self.pace.left(*self._to_do), self._whole_s
        return f"{left} of {about(whole)}" if left and whole is not None else left

    @property
    def _to_do(self) -> tuple[int, int]:
        """Iterations, and parts of evaluations."""
        version = self.parts.version
        return self.config.iterations - version, self.heldout.parts_left(version)

    @property
    def _whole_s(self) -> float | None:
        """Seconds that the whole run will have taken, its earlier parts included, as of the last iteration."""
        left = self.pace.left_s(*self._to_do)
        return None if left is None else self.identity["seconds"] + self.iteration_began - self.began + left

    def _quarantine(self, found: Any) -> None:
        """Write down what can't be used and why; told once a reason."""
        lines = list(found)
        if lines:
            self._own()
        for one in self.disk.quarantine(lines):
            if one.reason not in self.counts:
                self.display.note(f"quarantined {one.what} ({one.reason}): {one.detail}; all are in {QUARANTINE_FILE}")
            self.counts[one.reason] = self.counts.get(one.reason, 0) + 1
            self.parts.metrics.dropped(one.reason, self.config.rollout.rollouts_per_image)

    # end

    def finish(self) -> Future[RunSummary]:
        """Ledger of a completed run; its report is written beside what follows, the end of its processes."""
        parts = self.parts
        self._own()
        with naming(ledger := self.folder / LEDGER_FILE):
            parts.stream.export_ledger(ledger, parts.learning.epoch)
        totals = self._totals(time.monotonic())
        self.disk.save(**totals)
        self.finished = True
        self.timeline.close(parts.learning.spans.take(), parts.learning.group)
        self.pulse.state, self.pulse.doing = STOPPING, "ending, and writing the report"
        self.display.note(self.pulse.doing)
        pool = self.exits.enter_context(ThreadPoolExecutor(1, "report"))
        return pool.submit(self._summary, parts.version, totals["seconds"], totals["peak_memory_mb"])

    def _summary(self, version: int, seconds: float, peak: float) -> RunSummary:
        report: Path | None = None
        with self.looking.bearing("report.html"):
            report = write_report(self.folder)
        base, now = (mean_values(rows) for rows in (self.heldout.base_rows, self.heldout.now_rows))
        return RunSummary(self.folder, version, seconds, peak, base, now, report)

    def _restore_record(self, version: int) -> None:
        """The line of metrics of a step whose checkpoint is there, and which the driver did not see the end of."""
        if not version or any(r["iteration"] == version for r in read_metrics(self.folder, "train")):
            return
        if recorded := self.parts.learning.recorded_metrics():
            self.log.append({"kind": "train", "iteration": version, **recorded})


def _most_failures(actors: int) -> int:
    """In a row that are borne: a lost node takes all that its actors had."""
    return max(MAX_FAILURES, 4 * actors)
