"""What a run is doing, from the files of its folder; nothing is written there, and nobody is asked.

Every part is looked at by itself: what is damaged is told in `Status.damage`, and the rest stands.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.files import FINISHED, IDENTITY_FILE, LEDGER_FILE, QUARANTINE_FILE
from cluster.report.duration import brief
from cluster.report.lines import Lines
from cluster.report.live import EVALUATING, RUNNING, UNDER_WAY, read_live, sign_of
from cluster.report.records import FILE_NAME, NEEDS, is_timing
from cluster.report.spans import EARLIER_SPANS_FILE, SPANS_FILE, Timeline, overlap, read_timeline, typical
from cluster.run.folder_lock import holder_of

RECENT = 20  # iterations that phases and pace are means of, as in `cluster.run.pace`
POINTS = 40  # of a course
MOST_ALARMS = 20
CONFIG_FILE = "config.yaml"
NO_PHASES = ("iteration", "elapsed")
LOOKS = ("brightness", "saturation", "laplacian")  # of which more is not better


@dataclass(frozen=True)
class Course:
    """A figure of the rollouts over the run.

    Attributes:
        course: at most `POINTS` means over equal parts of the run, oldest first.
    """

    first: float
    last: float
    course: tuple[float, ...] = ()


@dataclass(frozen=True)
class HeldOutFigure:
    """A mean over the held-out pictures; None where it wasn't measured."""

    name: str
    degraded: float | None
    base: float | None
    now: float | None
    averaged: float | None


@dataclass(frozen=True)
class Process:
    """A process of the run as the driver heard of it.

    Attributes:
        role: actor, rank or replica.
        where: host and process id, as far as it has told them.
        doing: such as "rollout for 3 s".
        heard_s: seconds since it was heard of last; None if it never was.
    """

    role: str
    name: str
    where: str
    doing: str
    heard_s: float | None = None


@dataclass(frozen=True)
class Checkpoint:
    iteration: int
    age_s: float


@dataclass(frozen=True)
class Status:
    """Of a run at one instant.

    Attributes:
        state: starting, running, evaluating, stopping, finished, stopped, failed, stalled or dead.
        why: how that is known, and what to do, where that needs words.
        iterations: of the whole run; None if its configuration can't be read.
        left: such as "about 14 min left".
        seconds: of all its parts together.
        silent_s: seconds since its last iteration or evaluation was recorded.
        phases: name -> mean seconds an iteration over the last ones; those of actors are sums over actors.
        overlap: share of the learner's busy time in which actors worked, too, in `overlap_of`, an iteration.
        waiting: groups that are published and not trained on yet; None if not known.
        rolling: groups that actors are rolling out.
        evaluation: what is evaluated at this moment.
        dropped: groups that came to the learner and weren't trained on, by reason, such as stale.
        quarantined: groups and pictures that can't be used, by reason.
        failed_calls: calls of actors that failed and were given out again since the driver started, by reason.
        not_written: files that are only looked at and couldn't be written, by kind.
        damage: what of the folder can't be read.
    """

    folder: str
    name: str
    run_id: str
    state: str
    why: str
    iteration: int
    iterations: int | None
    left: str = ""
    seconds: float | None = None
    peak_memory_mb: float | None = None
    silent_s: float | None = None
    phases: dict[str, float] = field(default_factory=dict)
    iteration_s: float | None = None
    overlap: float | None = None
    overlap_of: int | None = None
    waiting: int | None = None
    waiting_mb: float | None = None
    rolling: int | None = None
    evaluation: str = ""
    staleness_mean: float | None = None
    staleness_max: float | None = None
    reward: Course | None = None
    terms: dict[str, Course] = field(default_factory=dict)
    heldout_of: int | None = None
    heldout: tuple[HeldOutFigure, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)
    quarantined: dict[str, int] = field(default_factory=dict)
    failed_calls: dict[str, int] = field(default_factory=dict)
    not_written: dict[str, int] = field(default_factory=dict)
    processes: tuple[Process, ...] = ()
    checkpoint: Checkpoint | None = None
    alarms: tuple[str, ...] = ()
    clocks: tuple[str, ...] = ()
    damage: tuple[str, ...] = ()


class Watched:
    """A run folder that is looked at again and again: of its metrics only what is new is read.

    Raises:
        FileNotFoundError: it is no run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not any((self.folder / name).is_file() for name in (CONFIG_FILE, FILE_NAME, IDENTITY_FILE)):
            raise FileNotFoundError(f"{folder}: neither {CONFIG_FILE} nor {FILE_NAME} in it; give the folder of a run")
        self._spans: tuple[list[Any], Timeline] | None = None
        self._forget_metrics()
        self._forget_quarantine()
        self._metrics = Lines(self.folder / FILE_NAME, self._record, self._forget_metrics, NEEDS)
        bad = self.folder / QUARANTINE_FILE
        self._bad = Lines(bad, self._quarantine, self._forget_quarantine, ("what", "reason"))

    def status(self, now: float | None = None) -> Status:
        """Of this instant (`now`, in seconds since 1970)."""
        now = time.time() if now is None else now
        damage = [*self._metrics.read(), *self._bad.read()]
        config = _read(self.folder / CONFIG_FILE, damage)
        about = _read(self.folder / IDENTITY_FILE, damage)
        live, written, wrong = read_live(self.folder)
        damage += [wrong] if wrong else []
        total = config.get("iterations")
        iterations = total if isinstance(total, int) and not isinstance(total, bool) else None
        run_id = str(about.get("run_id") or live.get("run_id") or "")
        single = run_id.endswith("-single")
        resume = "" if single or not about else f"restorl train --resume {self.folder}"
        complete = self._is_complete(about, iterations, single)
        begun = bool(self._iteration or self._evaluations)
        sign = sign_of(live, written, holder_of(self.folder), complete, begun, now, resume)
        alive = sign.state in UNDER_WAY
        latest = self._latest[-1] if self._latest else {}
        timeline = self._timeline()
        damage += timeline.damage
        shown = typical(timeline)
        at_once = overlap(timeline.within(shown.start, shown.end), shown.start, shown.end) if shown else None
        pace = _mean([r.get("iteration_s") for r in self._latest])
        seen = live if alive else {}
        return Status(
            folder=str(self.folder),
            name=str(config.get("name") or run_id or self.folder.resolve().name),
            run_id=run_id,
            state=sign.state,
            why=sign.why,
            iteration=self._iteration,
            iterations=iterations,
            left=self._left(seen, iterations, pace) if sign.state in (RUNNING, EVALUATING) else "",
            seconds=_number(about.get("seconds")),
            peak_memory_mb=_number(about.get("peak_memory_mb")),
            silent_s=self._silent(now) if begun else None,
            phases=self._phases(),
            iteration_s=pace,
            overlap=at_once.share if at_once else None,
            overlap_of=shown.number if shown and at_once and at_once.share is not None else None,
            waiting=_whole(seen.get("waiting")),
            waiting_mb=_number(seen.get("waiting_mb")),
            rolling=_whole(seen.get("rolling")),
            evaluation=str(seen.get("evaluation") or ""),
            staleness_mean=_number(latest.get("staleness_mean")),
            staleness_max=_number(latest.get("staleness_max")),
            reward=_course(self._reward),
            terms={name: found for name, values in self._terms.items() if (found := _course(values))},
            heldout_of=max((i for who, (i, _) in self._evaluations.items() if who != "base"), default=None),
            heldout=self._heldout(),
            dropped=dict(self._dropped),
            quarantined=dict(self._bad_count) or _counts(about.get("dropped")),
            failed_calls=_counts(live.get("failed_calls")),
            not_written=_counts(about.get("not_written")),
            processes=_processes(seen, now),
            checkpoint=_checkpoint(self.folder / "checkpoints", now, damage),
            alarms=tuple(self._alarms),
            clocks=tuple(str(clock) for clock in timeline.clocks if clock.shift),
            damage=tuple(damage),
        )

    def _is_complete(self, about: dict[str, Any], iterations: int | None, single: bool) -> bool:
        """Whether the run has left what only one that has come to its end leaves."""
        if iterations is not None and self._iteration < iterations:
            return False  # it has been resumed for more
        if FINISHED not in about:  # of an earlier version, or of a single process, which writes run.json last
            return (self.folder / LEDGER_FILE).is_file() or (single and bool(about))
        done = _whole(about[FINISHED])  # the ledger may be that of an end before it was resumed
        return done is not None and (iterations is None or done >= iterations)

    # metrics.jsonl

    def _forget_metrics(self) -> None:
        self._iteration = 0
        self._latest: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self._reward: list[float] = []
        self._terms: dict[str, list[float]] = {}
        self._dropped: Counter[str] = Counter()
        self._evaluations: dict[str, tuple[int, dict[str, Any]]] = {}  # the last of each: base, now, ema
        self._alarms: deque[str] = deque(maxlen=MOST_ALARMS)

    def _record(self, row: dict[str, Any]) -> None:
        kind, iteration = row["kind"], int(row["iteration"])
        if kind == "train":
            self._iteration = iteration
            self._latest.append(row)
            if (reward := _number(row.get("reward_mean"))) is not None:
                self._reward.append(reward)
            for key, value in row.items():
                if key.startswith("term_") and key.endswith("_mean") and (mean := _number(value)) is not None:
                    self._terms.setdefault(key.removeprefix("term_").removesuffix("_mean"), []).append(mean)
                elif key.startswith("dropped:"):
                    self._dropped[key.removeprefix("dropped:")] += int(value)
        elif kind == "eval":
            self._evaluations[str(row.get("who"))] = (iteration, row)
        elif kind == "alarm":
            self._alarms.append(f"iteration {iteration}: {row['sign']}")

    def _phases(self) -> dict[str, float]:
        keys = dict.fromkeys(key for row in self._latest for key in row if is_timing(key))
        names = {
            key: key.removeprefix("seconds_").removesuffix("_s").replace("_", " ")
            for key in keys
            if not key.endswith(("_mb", "_per_s"))
        }
        means = {name: _mean([row.get(key) for row in self._latest]) for key, name in names.items()}
        return {name: mean for name, mean in means.items() if mean is not None and name not in NO_PHASES}

    def _left(self, live: dict[str, Any], iterations: int | None, pace: float | None) -> str:
        if told := str(live.get("left") or ""):
            return told
        if iterations is None or pace is None or self._iteration >= iterations:
            return ""
        return f"about {brief((iterations - self._iteration) * pace)} left, besides evaluations"

    def _silent(self, now: float) -> float | None:
        try:
            return max(0.0, now - (self.folder / FILE_NAME).stat().st_mtime)
        except OSError:
            return None

    def _heldout(self) -> tuple[HeldOutFigure, ...]:
        rows = {who: row for who, (_, row) in self._evaluations.items()}
        any_row = rows.get("now") or rows.get("base") or {}
        names = [
            n
            for n, value in any_row.items()
            if n not in (*NEEDS, "who", *LOOKS) and not n.startswith(("input_", "gt_")) and _number(value) is not None
        ]

        def of(who: str, name: str) -> float | None:
            return _number(rows.get(who, {}).get(name))

        return tuple(
            HeldOutFigure(n, of("base", f"input_{n}"), of("base", n), of("now", n), of("ema", n)) for n in names
        )

    # spans.jsonl

    def _timeline(self) -> Timeline:
        """Read again only where a file has changed."""
        stats = []
        for name in (EARLIER_SPANS_FILE, SPANS_FILE):
            with suppress(OSError):
                stat = (self.folder / name).stat()
                stats.append((name, stat.st_ino, stat.st_size, stat.st_mtime_ns))
        if self._spans is None or self._spans[0] != stats:
            self._spans = (stats, read_timeline(self.folder))
        return self._spans[1]

    # quarantine.jsonl

    def _forget_quarantine(self) -> None:
        self._bad_count: Counter[str] = Counter()

    def _quarantine(self, row: dict[str, Any]) -> None:
        self._bad_count[str(row["reason"])] += 1


def read_status(folder: Path, now: float | None = None) -> Status:
    """What the run in `folder` is doing; it may be running, killed, finished or damaged, and its folder read-only.

    Raises:
        FileNotFoundError: it is no run.
    """
    return Watched(folder).status(now)


def _read(path: Path, damage: list[str]) -> dict[str, Any]:
    """A JSON or YAML object; empty, and told, where it can't be read."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        if isinstance(found, dict):
            return found
        damage.append(f"{path.name} holds no object")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        damage.append(" ".join(f"{path.name} can't be read ({error})".split()))
    return {}


def _processes(live: dict[str, Any], now: float) -> tuple[Process, ...]:
    found = []
    for row in live.get("processes") or ():
        if isinstance(row, dict):
            heard = _number(row.get("heard"))
            doing = str(row.get("doing") or "")
            since = _number(row.get("since"))
            doing += f" for {brief(max(0.0, now - since))}" if doing and since is not None else ""
            role, name, where = (str(row.get(key) or "") for key in ("role", "name", "where"))
            heard_s = None if heard is None else max(0.0, now - heard)
            found.append(Process(role, name, where, doing, heard_s))
    return tuple(found)


def _checkpoint(root: Path, now: float, damage: list[str]) -> Checkpoint | None:
    from learner import checkpoint

    try:
        latest = checkpoint.latest(root)
        if latest is None:
            return None
        written = (latest / checkpoint.MANIFEST).stat().st_mtime
        return Checkpoint(checkpoint.step_of(latest), max(0.0, now - written))
    except OSError as error:
        damage.append(f"checkpoints can't be read ({error})")
        return None


def _course(values: list[float]) -> Course | None:
    if not values:
        return None
    count = min(POINTS, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    parts = [values[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    return Course(values[0], values[-1], tuple(math.fsum(part) / len(part) for part in parts))


def _number(value: Any) -> float | None:
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _whole(value: Any) -> int | None:
    return None if (found := _number(value)) is None else int(found)


def _mean(values: list[Any]) -> float | None:
    found = [v for value in values if (v := _number(value)) is not None]
    return math.fsum(found) / len(found) if found else None


def _counts(value: Any) -> dict[str, int]:
    """Reasons and numbers, of whatever a file says."""
    if not isinstance(value, dict):
        return {}
    return {str(key): count for key, found in value.items() if (count := _whole(found))}
