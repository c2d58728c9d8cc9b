"""What a run keeps on disk and shows: configuration, identity, metrics, evaluations, strips, report."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from actors.work import WorkReport, WorkSequence
from cluster.config.configure import ConfigError, save_config
from cluster.config.recipe import RunConfig
from cluster.config.resume import keep_config
from cluster.report.alarm import alarms
from cluster.report.records import MetricsLog, read_metrics
from cluster.report.report import write_report
from cluster.report.strips import Strip, save_strips
from cluster.run.memory import MemoryWatch
from cluster.run.progress import TrainingProgress
from cluster.run.topology import StepResult, Topology
from cluster.run.work_queue import WorkQueue
from restoration.evaluate import mean_values, read_csv, write_csv
from restoration.images import to_uint8

MAX_FAILED_ITEMS = 20  # rollout batches in a row without a single published group


class Interrupted(KeyboardInterrupt):
    """Ctrl-C: the run stopped between two steps and can be resumed."""

    def __init__(self, folder: Path, iteration: int) -> None:
        super().__init__(f"stopped after iteration {iteration}; go on with: restorl train --resume {folder}")


class RolloutsFail(RuntimeError):
    """No rollout gets through; the last reason is in the message."""


@dataclass(frozen=True)
class RunSummary:
    """What `restorl train` prints at the end."""

    folder: Path
    iterations: int
    seconds: float
    peak_memory_mb: float
    base: dict[str, float]
    rl: dict[str, float]
    report: Path


class RunState:
    """The run folder and everything the driver counts. Enter it before anything is started.

    Raises (on entry):
        ConfigError: the folder holds a run already and `resume` is False, or holds none and it is True.
    """

    def __init__(self, config: RunConfig, folder: Path, resume: bool) -> None:
        self.config, self.folder, self.resume = config, folder, resume
        self.interrupted = False
        self.failed_in_a_row = 0
        self.counts: dict[str, int] = {}
        self.warnings: list[str] = []  # about what a resumed run changes
        self.phase_s: dict[str, float] = {}  # seconds that actors spent since the last step
        self.exits = ExitStack()

    def __enter__(self) -> RunState:
        identity = self.folder / "run.json"
        if identity.exists() != self.resume:
            raise ConfigError.of(
                f"{self.folder} already holds a run; resume it with --resume {self.folder}, or give another folder"
                if not self.resume
                else f"{self.folder} holds no run to resume"
            )
        if self.resume:
            self.identity: dict[str, Any] = json.loads(identity.read_text())
            self.warnings = keep_config(self.folder, self.config)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_config(self.config, self.folder / "config.yaml")
            name = "".join(c if c.isalnum() or c in "._-" else "-" for c in self.config.name)
            self.identity = {"run_id": f"{name}-{uuid.uuid4().hex[:8]}", "seconds": 0.0, "peak_memory_mb": 0.0}
            self.identity["versions"] = {p: version(p) for p in ("torch", "ray", "diffusers", "deepspeed", "peft")}
            self._write_identity()
        self.began = time.monotonic()
        self.log = self.exits.enter_context(MetricsLog(self.folder))
        self.memory = self.exits.enter_context(MemoryWatch())
        previous = signal.signal(signal.SIGINT, self._on_interrupt)
        self.exits.callback(signal.signal, signal.SIGINT, previous)
        return self

    def __exit__(self, *_: object) -> None:
        self.identity["seconds"] += time.monotonic() - self.began
        self.identity["peak_memory_mb"] = max(self.identity["peak_memory_mb"], self.memory.peak / 2**20)
        self._write_identity()
        self.exits.close()

    @property
    def run_id(self) -> str:
        return str(self.identity["run_id"])

    def begin(self, parts: Topology) -> None:
        """Once everything runs: forget what lies behind the checkpoint, find out which work is already published."""
        self.parts = parts
        self.log.truncate_after(parts.version)
        sequence = WorkSequence(parts.train.image_ids, self.config.rollout.images_per_batch, self.config.seed)
        self.work = WorkQueue(sequence, (e.group_id for e in parts.stream.ledger().entries))
        self.display = self.exits.enter_context(TrainingProgress(self.config.iterations, parts.version))
        if parts.connection.dashboard_url:
            self.display.note(f"Ray dashboard: {parts.connection.dashboard_url}")
        for warning in self.warnings:
            self.display.note(warning)
        self.iteration_began = time.monotonic()
        shown = self._strip_ids()
        base_file = self.folder / "evaluation" / "base.csv"
        if base_file.exists():
            self.base_rows = read_csv(base_file)
            self.base_images = {i: _read_output(self.folder / "evaluation" / "base" / f"{i}.png") for i in shown}
        else:
            self.base_rows, self.base_images = parts.evaluate(None, keep=shown)
            for image_id, image in self.base_images.items():
                _write_output(self.folder / "evaluation" / "base" / f"{image_id}.png", image)
            write_csv(base_file, self.base_rows)
            self.log.append({"kind": "eval", "iteration": 0, "who": "base", **mean_values(self.base_rows)})
        self.now_rows = self.base_rows
        self.evaluate_if_due()  # of a run that was stopped between a step and its evaluation
        rl_file = self.folder / "evaluation" / "rl.csv"
        if rl_file.exists():
            self.now_rows = read_csv(rl_file)

    def rolled(self, report: WorkReport) -> None:
        """Count a finished rollout batch.

        Raises:
            RolloutsFail: too many in a row were dropped whole.
        """
        for reason, groups in report.dropped.items():
            self.counts[reason] = self.counts.get(reason, 0) + groups
            self.parts.metrics.dropped(reason, groups * self.config.rollout.rollouts_per_image)
        for phase, seconds in report.seconds.items():
            self.phase_s[f"{phase}_s"] = self.phase_s.get(f"{phase}_s", 0.0) + seconds
        self.failed_in_a_row = 0 if report.published else self.failed_in_a_row + 1
        if self.failed_in_a_row >= MAX_FAILED_ITEMS:
            raise RolloutsFail(
                f"the last {self.failed_in_a_row} rollout batches were all dropped ({', '.join(report.dropped)}): "
                f"{report.detail}; the run can be resumed once that is put right"
            )

    def learned(self, step: StepResult) -> None:
        """Record a learner step."""
        now = time.monotonic()
        record: dict[str, Any] = {"kind": "train", "iteration": step.version, **step.metrics}
        record |= {f"dropped:{reason}": count for reason, count in sorted(step.dropped.items())}
        record |= {**self.phase_s, "iteration_s": now - self.iteration_began}
        self.phase_s = {}
        depth = self.parts.stream.depth()
        self.iteration_began = now
        self.log.append(record)
        metrics = self.parts.metrics
        metrics.queue(depth.entries, depth.nbytes)
        metrics.in_flight(len(self.parts.rolling) * self.config.rollout.images_per_batch)
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

    def rewind(self, version: int) -> None:
        """The learner fell back to `version`."""
        self.log.truncate_after(version)
        self.display.note(f"a learner rank died; going on from the checkpoint of iteration {version}")

    def evaluate_if_due(self) -> None:
        """Held-out evaluation of the current weights, its record and strips."""
        parts = self.parts
        done = parts.version
        if not self.config.evaluation.due(done, self.config.iterations) or self._evaluated(done):
            return
        self.now_rows, images = parts.evaluate(parts.weights, known=self.base_rows, keep=self._strip_ids())
        means = mean_values(self.now_rows)
        write_csv(self.folder / "evaluation" / "rl.csv", self.now_rows)
        for image_id, image in images.items():
            _write_output(self.folder / "evaluation" / "rl" / f"{image_id}.png", image)
        self._strips(images, self.folder / "strips" / f"iter_{done:06d}.png")
        self.log.append({"kind": "eval", "iteration": done, "who": "now", **means})
        for sign in alarms(self.base_rows, self.now_rows):
            self.log.append({"kind": "alarm", "iteration": done, "sign": sign})
            self.display.note(f"ALARM: {sign}; look at the strips, and lower objective.rl_coef or optimiser.lr")
        if parts.averaged is not None:
            rows, _ = parts.evaluate(parts.averaged, known=self.base_rows)
            write_csv(self.folder / "evaluation" / "ema.csv", rows)
            self.log.append({"kind": "eval", "iteration": done, "who": "ema", **mean_values(rows)})
        self.display.update(done, psnr=means["psnr"])
        self.iteration_began = time.monotonic()

    def finish(self) -> RunSummary:
        """Ledger and report of a completed run."""
        parts = self.parts
        parts.stream.export_ledger(self.folder / "ledger.json")
        seconds = self.identity["seconds"] + time.monotonic() - self.began
        peak = max(self.identity["peak_memory_mb"], self.memory.peak / 2**20)
        self._write_identity(seconds=seconds, peak_memory_mb=peak, dropped=self.counts)
        self.display.note("writing the report")
        report = write_report(self.folder)
        return RunSummary(
            self.folder, parts.version, seconds, peak, mean_values(self.base_rows), mean_values(self.now_rows), report
        )

    def _evaluated(self, version: int) -> bool:
        return any(r["iteration"] == version and r["who"] == "now" for r in read_metrics(self.folder, "eval"))

    def _strip_ids(self) -> list[str]:
        ids = self.parts.heldout.image_ids
        count = min(self.config.evaluation.strips, len(ids))
        return [ids[i * len(ids) // count] for i in range(count)]

    def _strips(self, now: dict[str, np.ndarray], path: Path) -> None:
        base, rows = {r.image_id: r for r in self.base_rows}, {r.image_id: r for r in self.now_rows}
        strips = []
        for image_id, image in now.items():
            lq, gt = (to_uint8(x[None])[0] for x in self.parts.heldout.load(image_id))
            old, new = base[image_id].values, rows[image_id].values
            captions = [
                f"{psnr:.2f} dB  reward {reward:.2f}"
                for psnr, reward in (
                    (old["input_psnr"], old["input_reward"]),
                    (old["psnr"], old["reward"]),
                    (new["psnr"], new["reward"]),
                )
            ] + [f"reward {old['gt_reward']:.2f}"]
            strips.append(Strip((lq, self.base_images[image_id], image, gt), captions=captions, title=image_id))
        if strips:  # evaluation.strips may be 0
            save_strips(path, strips)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            signal.default_int_handler(number, frame)
        self.interrupted = True

    def _write_identity(self, **more: Any) -> None:
        temporary = self.folder / ".run.json.new"
        temporary.write_text(json.dumps(self.identity | more, indent=2) + "\n")
        os.replace(temporary, self.folder / "run.json")


def _write_output(path: Path, image: np.ndarray) -> None:
    from restoration.images import write_image

    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, image)


def _read_output(path: Path) -> np.ndarray:
    from restoration.images import read_pixels

    return np.asarray(read_pixels(path))
