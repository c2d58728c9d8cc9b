"""Held-out evaluations of a run: when they are due, what they leave in the run folder, what they warn of."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path

import numpy as np
import torch

from actors.work import Quarantined
from cluster.config.recipe import RunConfig
from cluster.metrics import RunMetrics
from cluster.report.alarm import alarms
from cluster.report.records import MetricsLog, read_metrics
from cluster.report.strips import Strip, save_strips
from cluster.run.evaluations import Evaluation, EvaluationPart, Evaluations
from cluster.run.failures import RESUME, Failure, Fatal, Kind
from cluster.run.learning import Learning
from cluster.run.looking import ForLooking
from cluster.run.progress import TrainingProgress
from restoration.base_models import describe
from restoration.datasets.paired import PairedFolder
from restoration.evaluate import Row, blocks, evenly, mean_values, read_csv, write_csv
from restoration.images import ImageError, read_pixels, to_float, to_uint8, write_image
from restoration.weights import WeightsMessage
from restoration.whole_files import naming
from reward_service.bounded import in_thread

BRIEF_S = 0.2  # that the driver waits for weights at a time: small ones are there by then


class HeldOut:
    """The held-out pictures of a run and their figures.

    An evaluation is of a checkpoint: it begins once that is on disk, and a run that is stopped meanwhile makes it
    when it goes on. Its line in the log is written last: what has one is complete.

    Args:
        looking: bears what goes wrong with strips.
        own: raises what ends the run when its folder isn't this process's to write to any more.
        metrics: where means of evaluations are exported.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        data: PairedFolder,
        learning: Learning,
        log: MetricsLog,
        display: TrainingProgress,
        looking: ForLooking,
        own: Callable[[], None],
        metrics: RunMetrics,
    ) -> None:
        self.config, self.folder, self.data, self.learning = config, folder, data, learning
        self.log, self.display, self.looking, self.own, self.metrics = log, display, looking, own, metrics
        of = config.evaluation
        self.evaluations = Evaluations(
            data.image_ids, blocks(data, of.batch, of.pixels, of.limit, describe(config.model).size_multiple)
        )
        self.due: deque[int] = deque()  # iterations whose checkpoint, or weights of it, aren't there yet
        self._reading: Future[dict[str, WeightsMessage]] | None = None  # of the first of them
        self.base_rows: list[Row] = []
        self.now_rows: list[Row] = []
        self.base_images: dict[str, np.ndarray] = {}
        self.left_out: list[Quarantined] = []
        self.told: set[tuple[str, str]] = set()  # (image, figure) that the user knows to be missing
        self.made: set[tuple[int, str]] = set()  # (iteration, who) that an earlier part of the run has evaluated
        self.logged: set[tuple[int, str]] = set()  # that have a line in the log

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
        self.logged = {(r["iteration"], r["who"]) for r in read_metrics(self.folder, "eval")}
        self.made = set(self.logged)
        if base := self._kept("base.csv"):
            self.base_rows = self.now_rows = base
            self.base_images = {i: image for i in self._strip_ids() if (image := self._base_image(i)) is not None}
            self._log(0, "base", base)  # unless the driver was killed between the file and its line, it is there
        else:
            self.evaluations.begin(0, "base", None, keep=self._strip_ids())
        if rl := self._kept("rl.csv"):
            self.now_rows = rl
            self.metrics.heldout("now", mean_values(rl))
            self._signs()
        else:  # the last one is made again, if there was one
            self.made.discard((max((i for i, who in self.made if who == "now"), default=0), "now"))
        missing = (i for i in range(1, version + 1) if any((i, who) not in self.made for who in self._wanted))
        self.due.extend(i for i in missing if self._is_due(i))
        self.learning.protected.update(self.due)

    def learned(self, version: int) -> None:
        if self._is_due(version):
            self.due.append(version)

    def rewind(self, version: int) -> None:
        """The learner fell back: evaluations of later iterations will come again."""
        self._reading = None
        self.due = deque(i for i in self.due if i <= version)
        self.made = {(i, who) for i, who in self.made if i <= version}
        self.logged = {(i, who) for i, who in self.logged if i <= version}
        self.evaluations.forget_after(version)
        begun = {*self.due, *(e.iteration for e in self.evaluations.queue)}
        lacks = any((version, who) not in self.made | self.logged for who in self._wanted)
        if version and self._is_due(version) and version not in begun and lacks:
            self.due.append(version)  # its step ended after it had been given up

    def advance(self) -> bool:
        """Begin what can be begun, record what is complete; whether nothing is left.

        Raises:
            Fatal: not one picture can be evaluated.
        """
        while self.due and self.due[0] <= self.learning.durable and self._begin(self.due[0]):
            self.due.popleft()
        while (whole := self.evaluations.completed()) is not None:
            self._record(whole)
        return not self.backlog

    def failed(self, part: EvaluationPart, failure: Failure) -> None:
        """A part did not succeed: again, or without the picture that can't be evaluated."""
        if failure.kind is Kind.POISON:
            self.evaluations.poisoned(part, failure.reason, failure.detail)
        else:
            self.evaluations.again(part)

    def _kept(self, name: str) -> list[Row]:
        """The rows of an earlier part of the run; none if there is no such file, or none that can be read."""
        try:
            return read_csv(self.folder / "evaluation" / name)
        except FileNotFoundError:
            return []
        except ValueError as error:
            self.display.note(f"WARNING: {error}; it is made again")
            return []

    def _base_image(self, image_id: str) -> np.ndarray | None:
        path = self.folder / "evaluation" / "base" / f"{image_id}.png"
        if path.exists():
            with self.looking.bearing("a strip"):
                return np.asarray(read_pixels(path))
        return None

    @property
    def _wanted(self) -> tuple[str, ...]:
        return ("now", "ema") if self.config.optimiser.ema else ("now",)

    def _is_due(self, iteration: int) -> bool:
        return self.config.evaluation.due(iteration, self.config.iterations)

    def _begin(self, iteration: int) -> bool:
        """Begin the evaluations of an iteration, once its weights are there; whether nothing is left to do for that.

        They are read beside the run, as a large checkpoint takes its time.

        Raises:
            CheckpointError: it is damaged.
        """
        if self._reading is None:
            if iteration not in self.learning.on_disk():
                self.display.note(f"iteration {iteration} is not evaluated: its checkpoint is gone")
                self.learning.protected.discard(iteration)
                return True
            self._reading = in_thread(partial(self.learning.weights_of, iteration))
        if not wait([self._reading], BRIEF_S).done:
            return False
        reading, self._reading = self._reading, None
        without = {one.what for one in self.left_out}
        for who, weights in ((w, m) for w, m in reading.result().items() if (iteration, w) not in self.made):
            self.evaluations.begin(iteration, who, weights, without, self._strip_ids() if who == "now" else ())
        return True

    def _record(self, whole: Evaluation) -> None:
        self.own()
        rows, where = whole.ordered_rows(), self.folder / "evaluation"
        for one in whole.left_out:
            self.left_out.append(one)
            self.display.note(f"held-out {one.what} is left out of evaluations ({one.reason}): {one.detail}")
        if not rows:
            reason = whole.left_out[0] if whole.left_out else Quarantined("", "batch", "there is none")
            remedy = f"mend the pictures, then {RESUME}"
            failure = Failure(Kind.FATAL, reason.reason, reason.detail, remedy)
            raise Fatal("no held-out picture can be evaluated", failure)
        for row in rows:
            for name, why in row.missing.items():
                if (row.image_id, name) not in self.told:
                    self.told.add((row.image_id, name))
                    self.display.note(f"held-out {row.image_id} has no {name}, and means leave it out: {why}")
        for image_id, image in whole.images.items():
            self._write_image(where / ("base" if whole.who == "base" else "rl") / f"{image_id}.png", image)
        # Under the same name: restore and report read the last evaluation of the trained and of the base model.
        write_csv(where / {"base": "base.csv", "now": "rl.csv", "ema": "ema.csv"}[whole.who], rows)
        if whole.who == "base":
            for image_id in whole.images:
                self._write_pair(image_id)
            self.base_rows = self.now_rows = rows
            self.base_images = whole.images
        elif whole.who == "now":
            self.now_rows = rows
            self._strips(whole.images, self.folder / "strips" / f"iter_{whole.iteration:06d}.png")
            self._alarms(whole.iteration)
            self.display.update(max(whole.iteration, self.display.done), psnr=mean_values(rows)["psnr"])
        self._log(whole.iteration, whole.who, rows)
        if not any(e.iteration == whole.iteration for e in self.evaluations.queue):
            self.learning.protected.discard(whole.iteration)

    def _log(self, iteration: int, who: str, rows: list[Row]) -> None:
        self.metrics.heldout(who, mean_values(rows))
        if (iteration, who) not in self.logged:
            self.log.append({"kind": "eval", "iteration": iteration, "who": who, **mean_values(rows)})
            self.logged.add((iteration, who))

    def _write_pair(self, image_id: str) -> None:
        """What base and RL stand between in the report's slider."""
        with self.looking.bearing("a picture of an evaluation"):
            # Not by `data.load`: what it remembers would hide a file that is damaged later.
            *views, gt = (to_float(reader.pixels(path)) for path, reader in self.data.pair(image_id).files)
            for who, image in (("input", torch.stack(views).mean(0)), ("gt", gt)):
                write_image(self.folder / "evaluation" / who / f"{image_id}.png", to_uint8(image))

    def _write_image(self, path: Path, image: np.ndarray) -> None:
        """One of a strip, of the report's slider, and of nothing else."""
        with self.looking.bearing("a picture of an evaluation"):
            write_image(path, image)

    def _signs(self) -> list[str]:
        """What got worse while the reward rose; how many of them is exported."""
        # What nobody trains on, or only the ground truth can raise, isn't bought with anything.
        judged = any(term.served for term in self.config.reward.resolved.trained)
        signs = alarms(self.base_rows, self.now_rows) if judged else []
        self.metrics.heldout_worse(len(signs))
        return signs

    def _alarms(self, iteration: int) -> None:
        logged = {r["sign"] for r in read_metrics(self.folder, "alarm", lambda r: r["iteration"] == iteration)}
        for sign in self._signs():
            if sign not in logged:  # by a driver that was killed before the evaluation's own line
                self.log.append({"kind": "alarm", "iteration": iteration, "sign": sign})
            self.display.note(f"ALARM: {sign}; look at the strips, and lower objective.rl_coef or optimiser.lr")

    def _strip_ids(self) -> list[str]:
        ids = [pair.image_id for pair in evenly(self.data.pairs, self.config.evaluation.limit)]
        count = min(self.config.evaluation.strips, len(ids))
        return [ids[i * len(ids) // count] for i in range(count)]

    def _strips(self, now: dict[str, np.ndarray], path: Path) -> None:
        base, rows = {r.image_id: r for r in self.base_rows}, {r.image_id: r for r in self.now_rows}
        strips = []
        for image_id in (
            i for i in self._strip_ids() if all(i in those for those in (now, self.base_images, base, rows))
        ):
            with self.looking.bearing("a strip"):  # of a picture that can't be read any more, or has another size
                strips.append(self._strip(image_id, base[image_id], rows[image_id], now[image_id]))
        if strips:  # evaluation.strips may be 0
            with self.looking.bearing("a strip"), naming(path):
                save_strips(path, strips)

    def _strip(self, image_id: str, base: Row, row: Row, now: np.ndarray) -> Strip:
        """Raises:
        ImageError: the pair can't be read, or is of another size than what was made of it.
        """
        lq, gt = (to_uint8(x[None])[0] for x in self.data.load(image_id))
        images = (lq, self.base_images[image_id], now, gt)
        if len({image.shape for image in images}) > 1:
            raise ImageError(f"{image_id}: its pictures have unequal sizes, {', '.join(str(i.shape) for i in images)}")
        sides = ((base.values, "input_"), (base.values, ""), (row.values, ""))
        captions = ["  ".join((f"{v[f'{of}psnr']:.2f} dB", *_reward(v, of))) for v, of in sides]
        captions.append("".join(_reward(base.values, "gt_")))
        return Strip(images, captions=captions, title=image_id)


def _reward(values: Mapping[str, float], of: str) -> tuple[str, ...]:
    """A caption; a reward that only compares with the ground truth is no figure of an evaluation."""
    value = values.get(f"{of}reward")
    return () if value is None else (f"reward {value:.2f}",)
