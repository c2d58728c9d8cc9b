"""Held-out evaluations of a run: when they are due, what they leave in the run folder, what they warn of."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from actors.work import Quarantined
from cluster.config.recipe import RunConfig
from cluster.report.alarm import alarms
from cluster.report.records import MetricsLog, read_metrics
from cluster.report.strips import Strip, save_strips
from cluster.run.evaluations import Evaluation, EvaluationPart, Evaluations
from cluster.run.failures import Failure, Fatal, Kind
from cluster.run.learning import Learning
from cluster.run.progress import TrainingProgress
from restoration.base_models import describe
from restoration.datasets.paired import PairedFolder
from restoration.evaluate import Row, blocks, evenly, mean_values, read_csv, write_csv
from restoration.images import read_pixels, to_uint8, write_image


class HeldOut:
    """The held-out pictures of a run and their figures.

    An evaluation is of a checkpoint: it begins once that is on disk, and a run that is stopped meanwhile makes it
    when it goes on.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        data: PairedFolder,
        learning: Learning,
        log: MetricsLog,
        display: TrainingProgress,
    ) -> None:
        self.config, self.folder, self.data, self.learning = config, folder, data, learning
        self.log, self.display = log, display
        of = config.evaluation
        self.evaluations = Evaluations(
            data.image_ids, blocks(data, of.batch, of.pixels, of.limit, describe(config.model).size_multiple)
        )
        self.due: deque[int] = deque()  # iterations whose checkpoint isn't on disk yet
        self.base_rows: list[Row] = []
        self.now_rows: list[Row] = []
        self.base_images: dict[str, np.ndarray] = {}
        self.left_out: list[Quarantined] = []
        self.told: set[tuple[str, str]] = set()  # (image, figure) that the user knows to be missing
        self.made: set[tuple[int, str]] = set()  # (iteration, who) that an earlier part of the run has evaluated

    @property
    def backlog(self) -> int:
        return len(self.due) + len(self.evaluations)

    def parts_left(self, version: int) -> int:
        """Parts of evaluations that are under way, wait, or will be due after iteration `version`."""
        under_way = sum(len(e.waiting) + e.out for e in self.evaluations.queue)
        coming = sum(map(self._is_due, range(version + 1, self.config.iterations + 1))) + len(self.due)
        return under_way + coming * len(self.evaluations.blocks) * len(self._wanted)

    def begin(self, version: int) -> None:
        """Read what an earlier part of the run has evaluated, and queue what it has not."""
        base, rl = (self.folder / "evaluation" / f"{who}.csv" for who in ("base", "rl"))
        if base.exists():
            self.base_rows = self.now_rows = read_csv(base)
            kept = ((i, self.folder / "evaluation" / "base" / f"{i}.png") for i in self._strip_ids())
            self.base_images = {i: np.asarray(read_pixels(path)) for i, path in kept if path.exists()}
        else:
            self.evaluations.begin(0, "base", None, keep=self._strip_ids())
        if rl.exists():
            self.now_rows = read_csv(rl)
        if version:
            self.made = {(r["iteration"], r["who"]) for r in read_metrics(self.folder, "eval")}
        missing = (i for i in range(1, version + 1) if any((i, who) not in self.made for who in self._wanted))
        self.due.extend(i for i in missing if self._is_due(i))
        self.learning.protected.update(self.due)

    def learned(self, version: int) -> None:
        if self._is_due(version):
            self.due.append(version)

    def rewind(self, version: int) -> None:
        """The learner fell back: evaluations of later iterations will come again."""
        self.due = deque(i for i in self.due if i <= version)
        self.made = {(i, who) for i, who in self.made if i <= version}
        self.evaluations.forget_after(version)

    def advance(self) -> bool:
        """Begin what can be begun, record what is complete; whether nothing is left.

        Raises:
            Fatal: not one picture can be evaluated.
        """
        while self.due and self.due[0] <= self.learning.durable:
            self._begin(self.due.popleft())
        while (whole := self.evaluations.completed()) is not None:
            self._record(whole)
        return not self.backlog

    def failed(self, part: EvaluationPart, failure: Failure) -> None:
        """A part did not succeed: again, or without the picture that can't be evaluated."""
        if failure.kind is Kind.POISON:
            self.evaluations.poisoned(part, failure.reason, failure.detail)
        else:
            self.evaluations.again(part)

    @property
    def _wanted(self) -> tuple[str, ...]:
        return ("now", "ema") if self.config.optimiser.ema else ("now",)

    def _is_due(self, iteration: int) -> bool:
        return self.config.evaluation.due(iteration, self.config.iterations)

    def _begin(self, iteration: int) -> None:
        if iteration not in self.learning.on_disk():
            self.display.note(f"iteration {iteration} is not evaluated: its checkpoint is gone")
            self.learning.protected.discard(iteration)
            return
        without = {one.what for one in self.left_out}
        weights_of = self.learning.weights_of(iteration)
        for who, weights in ((w, m) for w, m in weights_of.items() if (iteration, w) not in self.made):
            self.evaluations.begin(iteration, who, weights, without, self._strip_ids() if who == "now" else ())

    def _record(self, whole: Evaluation) -> None:
        rows, where = whole.ordered_rows(), self.folder / "evaluation"
        for one in whole.left_out:
            self.left_out.append(one)
            self.display.note(f"held-out {one.what} is left out of evaluations ({one.reason}): {one.detail}")
        if not rows:
            reason = whole.left_out[0] if whole.left_out else Quarantined("", "batch", "there is none")
            raise Fatal("no held-out picture can be evaluated", Failure(Kind.FATAL, reason.reason, reason.detail))
        for row in rows:
            for name, why in row.missing.items():
                if (row.image_id, name) not in self.told:
                    self.told.add((row.image_id, name))
                    self.display.note(f"held-out {row.image_id} has no {name}, and means leave it out: {why}")
        # Under the same name: restore and report read the last evaluation of the trained and of the base model.
        write_csv(where / {"base": "base.csv", "now": "rl.csv", "ema": "ema.csv"}[whole.who], rows)
        for image_id, image in whole.images.items():
            path = where / ("base" if whole.who == "base" else "rl") / f"{image_id}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, image)
        means = mean_values(rows)
        self.log.append({"kind": "eval", "iteration": whole.iteration, "who": whole.who, **means})
        if whole.who == "base":
            self.base_rows = self.now_rows = rows
            self.base_images = whole.images
        elif whole.who == "now":
            self.now_rows = rows
            self._strips(whole.images, self.folder / "strips" / f"iter_{whole.iteration:06d}.png")
            # What nobody trains on, or only the ground truth can raise, isn't bought with anything.
            optimised = any(term.served for term in self.config.reward.resolved.trained)
            for sign in alarms(self.base_rows, rows) if optimised else ():
                self.log.append({"kind": "alarm", "iteration": whole.iteration, "sign": sign})
                self.display.note(f"ALARM: {sign}; look at the strips, and lower objective.rl_coef or optimiser.lr")
            self.display.update(max(whole.iteration, self.display.done), psnr=means["psnr"])
        if not any(e.iteration == whole.iteration for e in self.evaluations.queue):
            self.learning.protected.discard(whole.iteration)

    def _strip_ids(self) -> list[str]:
        ids = [pair.image_id for pair in evenly(self.data.pairs, self.config.evaluation.limit)]
        count = min(self.config.evaluation.strips, len(ids))
        return [ids[i * len(ids) // count] for i in range(count)]

    def _strips(self, now: dict[str, np.ndarray], path: Path) -> None:
        base, rows = {r.image_id: r for r in self.base_rows}, {r.image_id: r for r in self.now_rows}
        strips = []
        for image_id in (i for i in self._strip_ids() if i in now and i in self.base_images):
            lq, gt = (to_uint8(x[None])[0] for x in self.data.load(image_id))
            old, new = base[image_id].values, rows[image_id].values
            sides = ((old, "input_"), (old, ""), (new, ""))
            captions = ["  ".join((f"{v[f'{of}psnr']:.2f} dB", *_reward(v, of))) for v, of in sides]
            captions.append("".join(_reward(old, "gt_")))
            strips.append(Strip((lq, self.base_images[image_id], now[image_id], gt), captions=captions, title=image_id))
        if strips:  # evaluation.strips may be 0
            save_strips(path, strips)


def _reward(values: Mapping[str, float], of: str) -> tuple[str, ...]:
    """A caption; a reward that only compares with the ground truth is no figure of an evaluation."""
    value = values.get(f"{of}reward")
    return () if value is None else (f"reward {value:.2f}",)
