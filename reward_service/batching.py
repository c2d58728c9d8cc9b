"""Fills batches for one scorer with the images of several callers. No Ray in here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reward_service.errors import (
    InvalidBlock,
    InvalidReward,
    RewardError,
    RewardTimeout,
    ScorerBroken,
    ScorerFailed,
)
from reward_service.scorers.interface import Scorer, check_block

Reply = dict[str, Any]  # {"scores": float32 [N], "scorer": str, "version": str} or RewardError.to_data()
Shape = tuple[int, ...]  # of one image
PASSING_S = 300.0
AHEAD = 2  # batches that the scorer's thread has at most: one at work, one ready

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Waiting:
    """A block. Its images go into one batch or into several that follow one another."""

    images: np.ndarray
    expires: float  # on the event loop's clock
    reply: asyncio.Future[Reply]
    arrived: float  # time.perf_counter, which the scorer's thread shares
    scores: np.ndarray = field(init=False)
    taken: int = 0  # images that a batch has
    missing: int = field(init=False)  # images without a score

    def __post_init__(self) -> None:
        self.scores = np.empty(len(self.images), np.float32)
        self.missing = len(self.images)

    @property
    def shape(self) -> Shape:
        return self.images.shape[1:]


@dataclass(frozen=True)
class Part:
    """Images `start` to `stop` of a block, in a batch."""

    of: Waiting
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def images(self) -> np.ndarray:
        return self.of.images[self.start : self.stop]


@dataclass(frozen=True)
class BatchReport:
    """One batch, or what was refused without one.

    Attributes:
        blocks, images: how many it held; a block in two batches counts in both.
        seconds: in the scorer.
        errors: kinds of the errors that blocks ended in.
        limit: images that it could have held.
        queued_s: seconds that blocks waited for it, of each whose first images it has.
    """

    blocks: int
    images: int
    seconds: float
    errors: tuple[str, ...]
    limit: int = 0
    queued_s: tuple[float, ...] = ()


@dataclass(frozen=True)
class _Scored:
    """What came of a batch: for each part its scores or an error; when it began (perf_counter) and what it took."""

    parts: list[np.ndarray | RewardError]
    began: float
    seconds: float


def _ignore(report: BatchReport) -> None:
    pass


class Batcher:
    """Scores blocks in merged batches, one batch at a time, in a thread of its own.

    A batch holds images of one size: that of the oldest block, from anywhere in the queue, oldest first, up to
    `max_batch`. A block may be cut, so that batches are full whenever enough images wait. While the scorer works, the
    next full batch is put together in another thread. An idle scorer waits `max_wait_s` for more images.

    A scorer that runs out of memory gets half as many images of that size from then on; its log says so.

    Args:
        probe: raises if the scorer is broken. Called, in the scorer's thread, when everything in a batch failed: then
            its blocks are not to blame, and are answered as `ScorerBroken`, as all later ones are.
    """

    def __init__(
        self,
        scorer: Scorer,
        max_batch: int,
        max_wait_s: float,
        observe: Callable[[BatchReport], None] = _ignore,
        probe: Callable[[], None] | None = None,
    ) -> None:
        self.scorer, self.max_batch, self.max_wait_s, self.observe = scorer, max_batch, max_wait_s, observe
        self.probe = probe
        self.refused: str | None = None  # why nothing is scored any more
        self.probe_s = 0.0  # that the last probe took
        self._busy_since: float | None = None  # time.monotonic, in one call of the scorer or of the probe
        self._failed_since: float | None = None  # of probes that failed for want of memory or of a connection
        self.limits: dict[Shape, int] = {}  # where memory allows less than `max_batch`
        self.batches = 0  # that were answered
        self.ongoing: Counter[str] = Counter()  # "images" and "requests" (blocks) without an answer
        self.queue: list[Waiting] = []
        self.running: deque[asyncio.Task[None]] = deque()
        self.changed = asyncio.Event()
        self.gather_until = 0.0
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="scorer")
        self.hands = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self.worker: asyncio.Task[None] | None = None

    async def score(self, images: np.ndarray, budget_s: float) -> Reply:
        """Scores of a block, or an error as data; never raises for what is in the block or what the scorer does."""
        try:
            check_block(images)
        except ValueError as error:
            self.observe(BatchReport(1, 0, 0.0, (InvalidBlock.kind,)))
            return InvalidBlock(str(error)).to_data()
        loop = asyncio.get_running_loop()
        waiting = Waiting(images, loop.time() + budget_s, loop.create_future(), time.perf_counter())
        if not self.queue and not self.running:
            self.gather_until = loop.time() + self.max_wait_s
        self.queue.append(waiting)
        self.changed.set()
        if self.worker is None or self.worker.done():
            self.worker = loop.create_task(self._work())
        mine = Counter({"images": len(images), "requests": 1})
        self.ongoing += mine
        try:
            return await waiting.reply
        finally:
            self.ongoing -= mine

    async def check(self) -> None:
        """Probe the scorer, between two batches. If it fails, every block that has no scores yet is refused.

        The caller is to ask another replica.
        """
        await asyncio.get_running_loop().run_in_executor(self.thread, self._refuse_if_broken)
        self.changed.set()

    def busy_s(self) -> float:
        """For how long the scorer has been at the call that it is at; 0 if it is at none."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def limit(self, shape: Shape) -> int:
        """Images of that size that the scorer gets at once."""
        return self.limits.get(shape, self.max_batch)

    # in the event loop

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self.changed.clear()
            pause = self._pause(loop.time())
            if pause is None or pause > 0:
                await self._change(pause)
                continue
            parts = self._take(loop.time())
            if not parts:
                continue
            try:
                images = await loop.run_in_executor(self.hands, _joined, parts)
            except Exception as error:
                self._fail(parts, ScorerFailed(f"reward service: {error!r}"))
                continue
            self.running.append(loop.create_task(self._run(parts, images)))

    def _pause(self, now: float) -> float | None:
        """Seconds until a batch is to be made, 0 if that is now; None: not before something changes."""
        if not self.queue or len(self.running) >= AHEAD:
            return None
        if self.refused is not None or self._is_full():
            return 0.0
        if self.running:  # more may come while the scorer works
            return None
        return max(self.gather_until - now, 0.0)

    def _is_full(self) -> bool:
        shape = self.queue[0].shape
        limit, count = self.limit(shape), 0
        for waiting in self.queue:
            if waiting.shape == shape:
                count += len(waiting.images) - waiting.taken
                if count >= limit:
                    return True
        return False

    async def _change(self, within_s: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.changed.wait(), within_s)

    def _take(self, now: float) -> list[Part]:
        """The oldest images of the oldest block's size; answers blocks that are too late."""
        parts: list[Part] = []
        rest: list[Waiting] = []
        count = limit = 0
        for waiting in self.queue:
            if waiting.reply.done():  # its caller has gone, or another part of it failed
                continue
            if self.refused is not None:
                self._refuse(waiting, ScorerBroken(self.refused))
                continue
            if waiting.expires <= now:
                self._refuse(waiting, RewardTimeout("the deadline passed before the scorer came to it"))
                continue
            limit = limit or self.limit(waiting.shape)
            if count < limit and (not parts or waiting.shape == parts[0].of.shape):
                stop = min(len(waiting.images), waiting.taken + limit - count)
                parts.append(Part(waiting, waiting.taken, stop))
                count += stop - waiting.taken
                waiting.taken = stop
            if waiting.taken < len(waiting.images):
                rest.append(waiting)
        self.queue = rest
        return parts

    async def _run(self, parts: list[Part], images: np.ndarray) -> None:
        """The batch goes to the scorer's thread at once, behind the one that it works on."""
        limit = self.limit(images.shape[1:])
        try:
            # Not a task's await in `_work`: the thread goes from one batch to the next without the event loop.
            done = await asyncio.get_running_loop().run_in_executor(self.thread, self._score, parts, images)
        except Exception as error:  # a fault of this class must not leave callers waiting
            done = _Scored([ScorerFailed(f"reward service: {error!r}")] * len(parts), time.perf_counter(), 0.0)
        finally:
            self.running.popleft()
            self.changed.set()
        self.batches += 1
        errors = [kind for part, found in zip(parts, done.parts, strict=True) if (kind := self._settle(part, found))]
        queued = tuple(max(done.began - p.of.arrived, 0.0) for p in parts if p.start == 0)
        self.observe(BatchReport(len(parts), len(images), done.seconds, tuple(errors), limit, queued))

    def _settle(self, part: Part, found: np.ndarray | RewardError) -> str | None:
        """Note the scores of a part; answer its block once none is missing, or at its first error, whose kind it is."""
        waiting = part.of
        if waiting.reply.done():
            return None
        if isinstance(found, RewardError):
            waiting.reply.set_result(found.to_data())
            return found.kind
        waiting.scores[part.start : part.stop] = found
        waiting.missing -= len(part)
        if waiting.missing:
            return None
        bad = np.flatnonzero(~np.isfinite(waiting.scores))
        if len(bad):
            values = ", ".join(str(waiting.scores[i]) for i in bad[:3])
            message = f"scorer {self.scorer.name} gave {values} for {len(bad)} of {len(waiting.scores)} images"
            waiting.reply.set_result(InvalidReward(message, bad.tolist()).to_data())
            return InvalidReward.kind
        reply = {"scores": waiting.scores, "scorer": self.scorer.name, "version": self.scorer.version}
        waiting.reply.set_result(reply)
        return None

    def _refuse(self, waiting: Waiting, error: RewardError) -> None:
        waiting.reply.set_result(error.to_data())
        self.observe(BatchReport(1, 0, 0.0, (error.kind,)))

    def _fail(self, parts: Sequence[Part], error: RewardError) -> None:
        for part in parts:
            if not part.of.reply.done():
                self._refuse(part.of, error)

    # in the scorer's thread

    def _score(self, parts: list[Part], images: np.ndarray) -> _Scored:
        began = time.perf_counter()
        found: list[np.ndarray | RewardError]
        if self.refused is not None:
            return _Scored([ScorerBroken(self.refused)] * len(parts), began, 0.0)
        try:
            scores = self._call(images)
            found = [*np.split(scores, np.cumsum([len(p) for p in parts])[:-1])]
        except ScorerFailed as error:
            # One block may spoil a batch: find out which.
            found = [error] if len(parts) == 1 else [self._alone(part.images) for part in parts]
            if all(isinstance(each, RewardError) for each in found) and (why := self._broken()):
                self.refused = f"{found[0]}; it fails at its own probe, too: {why}"
                found = [ScorerBroken(self.refused)] * len(parts)
        return _Scored(found, began, time.perf_counter() - began)

    def _broken(self) -> str | None:
        """Why the scorer can't score even its probe; None if it can, if there is none, or if that may pass.

        Memory that others hold, or a server that is away, may come back within `PASSING_S`; other scores than the
        stored ones are wrong at once.
        """
        if self.probe is None:
            return None
        began = self._busy_since = time.monotonic()
        try:
            self.probe()
        except Exception as error:
            since = self._failed_since = self._failed_since or began
            passing = isinstance(cause := error.__cause__ or error, OSError) or is_out_of_memory(cause)
            if passing and time.monotonic() - since < PASSING_S:
                logger.warning("the probe of scorer %s failed, and is tried again: %s", self.scorer.name, error)
                return None
            return str(error)
        finally:
            self.probe_s, self._busy_since = time.monotonic() - began, None
        self._failed_since = None
        return None

    def _refuse_if_broken(self) -> None:
        if why := self._broken():  # noted in this thread, so that the batch behind gets no scores
            self.refused = why

    def _alone(self, images: np.ndarray) -> np.ndarray | RewardError:
        try:
            return self._call(images)
        except ScorerFailed as error:
            return error

    def _call(self, images: np.ndarray) -> np.ndarray:
        """float32 [N]. Raises ScorerFailed."""
        parts: list[np.ndarray] = []
        start = 0
        while start < len(images):
            part = images[start : start + self.limit(images.shape[1:])]
            scores = self._once(part)
            if scores is None:
                self._halve(part)
                continue
            parts.append(scores)
            start += len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _once(self, images: np.ndarray) -> np.ndarray | None:
        """float32 [N]; None if there was no memory for so many. Raises ScorerFailed."""
        self._busy_since = time.monotonic()
        try:
            scores = np.asarray(self.scorer.score(images), dtype=np.float32)
        except Exception as error:
            if is_out_of_memory(error) and len(images) > 1:
                return None
            raise ScorerFailed(
                f"scorer {self.scorer.name} raised {type(error).__name__}: {error}{_memory_advice(error, images)}"
            ) from error
        finally:
            self._busy_since = None
        if scores.shape != (len(images),):
            raise ScorerFailed(
                f"scorer {self.scorer.name} returned shape {list(scores.shape)} for {len(images)} images, not [N]"
            )
        return scores

    def _halve(self, images: np.ndarray) -> None:
        """Out of memory: fewer images of that size at once, from now on."""
        count, (height, width) = len(images), images.shape[1:3]
        self.limits[images.shape[1:]] = count // 2
        logger.warning(
            "scorer %s is out of memory with %d images of %dx%d: it gets %d at once from now on; lower "
            "reward.max_batch, or give it more memory",
            *(self.scorer.name, count, height, width, count // 2),
        )
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # what the failed batch left lies in pieces that a smaller one may not fit


def is_out_of_memory(error: BaseException) -> bool:
    """Of the host (MemoryError) or of a GPU (torch's OutOfMemoryError, known by its name: torch may be absent)."""
    return any(cls.__name__ in ("MemoryError", "OutOfMemoryError") for cls in type(error).__mro__)


def _memory_advice(error: Exception, images: np.ndarray) -> str:
    if not is_out_of_memory(error):
        return ""
    height, width = images.shape[1:3]
    return f"; there is no memory for one image of {height}x{width}: give the scorer more, or smaller images"


def _joined(parts: Sequence[Part]) -> np.ndarray:
    return parts[0].images if len(parts) == 1 else np.concatenate([part.images for part in parts])
