"""Merges the blocks of several callers into batches for one scorer. No Ray in here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from reward_service.errors import InvalidBlock, InvalidReward, RewardError, RewardTimeout, ScorerFailed
from reward_service.scorers.interface import Scorer, check_block

Reply = dict[str, Any]  # {"scores": float32 [N], "scorer": str, "version": str} or RewardError.to_data()


@dataclass
class Waiting:
    images: np.ndarray
    expires: float  # on the event loop's clock
    reply: asyncio.Future[Reply]


@dataclass(frozen=True)
class BatchReport:
    """One merged batch: its blocks, images and time in the scorer, and the errors it ended in."""

    blocks: int
    images: int
    seconds: float
    errors: tuple[str, ...]


def _ignore(report: BatchReport) -> None:
    pass


class Batcher:
    """Scores blocks in merged batches, one batch at a time, in its own thread.

    A block stays whole unless it alone exceeds `max_batch`. While the scorer works, blocks gather; an idle scorer
    waits `max_wait_s` for more. Blocks of different image sizes are never merged.
    """

    def __init__(
        self,
        scorer: Scorer,
        max_batch: int,
        max_wait_s: float,
        observe: Callable[[BatchReport], None] = _ignore,
    ) -> None:
        self.scorer, self.max_batch, self.max_wait_s, self.observe = scorer, max_batch, max_wait_s, observe
        self.queue: list[Waiting] = []
        self.arrived = asyncio.Event()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="scorer")
        self.worker: asyncio.Task[None] | None = None

    async def score(self, images: np.ndarray, budget_s: float) -> Reply:
        """Scores of a block, or an error as data; never raises for what is in the block or what the scorer does."""
        try:
            check_block(images)
        except ValueError as error:
            self.observe(BatchReport(1, 0, 0.0, (InvalidBlock.kind,)))
            return InvalidBlock(str(error)).to_data()
        loop = asyncio.get_running_loop()
        waiting = Waiting(images, loop.time() + budget_s, loop.create_future())
        self.queue.append(waiting)
        self.arrived.set()
        if self.worker is None or self.worker.done():
            self.worker = loop.create_task(self._work())
        return await waiting.reply

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self.queue:
                self.arrived.clear()
                await self.arrived.wait()
                await self._gather(loop.time() + self.max_wait_s)
            batch = self._take(loop.time())
            if not batch:
                continue
            blocks = [w.images for w in batch]
            try:
                replies = await loop.run_in_executor(self.thread, self._score_merged, blocks)
            except Exception as error:  # a fault of this class must not leave callers waiting
                replies = [ScorerFailed(f"reward service: {error!r}").to_data()] * len(batch)
            for waiting, reply in zip(batch, replies, strict=True):
                if not waiting.reply.done():
                    waiting.reply.set_result(reply)

    async def _gather(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        while sum(len(w.images) for w in self.queue) < self.max_batch and (left := until - loop.time()) > 0:
            self.arrived.clear()
            try:
                await asyncio.wait_for(self.arrived.wait(), left)
            except TimeoutError:
                return

    def _take(self, now: float) -> list[Waiting]:
        """The oldest blocks of one image size, up to `max_batch` images; answers those that are too late."""
        batch: list[Waiting] = []
        rest: list[Waiting] = []
        count = 0
        for waiting in self.queue:
            if waiting.reply.done():  # its caller has gone
                continue
            if waiting.expires <= now:
                waiting.reply.set_result(RewardTimeout("the deadline passed before the scorer came to it").to_data())
                self.observe(BatchReport(1, 0, 0.0, (RewardTimeout.kind,)))
                continue
            size = len(waiting.images)
            same = not batch or waiting.images.shape[1:] == batch[0].images.shape[1:]
            if same and (not batch or count + size <= self.max_batch):
                batch.append(waiting)
                count += size
            else:
                rest.append(waiting)
        self.queue = rest
        return batch

    def _score_merged(self, blocks: list[np.ndarray]) -> list[Reply]:
        started = time.perf_counter()
        try:
            scores = self._call(blocks[0] if len(blocks) == 1 else np.concatenate(blocks))
            parts: list[np.ndarray | RewardError] = [*np.split(scores, np.cumsum([len(b) for b in blocks])[:-1])]
        except ScorerFailed as error:
            # One block may spoil a batch: find out which.
            parts = [error] if len(blocks) == 1 else [self._alone(block) for block in blocks]
        replies, errors = [], []
        for part in parts:
            if isinstance(part, np.ndarray) and not np.isfinite(part).all():
                bad = np.flatnonzero(~np.isfinite(part))
                values = ", ".join(str(part[i]) for i in bad[:3])
                message = f"scorer {self.scorer.name} gave {values} for {len(bad)} of {len(part)} images"
                part = InvalidReward(message, bad.tolist())
            if isinstance(part, RewardError):
                errors.append(part.kind)
                replies.append(part.to_data())
            else:
                # A copy: a slice would keep the whole batch's scores alive.
                replies.append({"scores": part.copy(), "scorer": self.scorer.name, "version": self.scorer.version})
        images = sum(len(b) for b in blocks)
        self.observe(BatchReport(len(blocks), images, time.perf_counter() - started, tuple(errors)))
        return replies

    def _alone(self, block: np.ndarray) -> np.ndarray | RewardError:
        try:
            return self._call(block)
        except ScorerFailed as error:
            return error

    def _call(self, images: np.ndarray) -> np.ndarray:
        """float32 [N]. Raises ScorerFailed."""
        parts = []
        for start in range(0, len(images), self.max_batch):
            part = images[start : start + self.max_batch]
            try:
                scores = np.asarray(self.scorer.score(part), dtype=np.float32)
            except Exception as error:
                raise ScorerFailed(f"scorer {self.scorer.name} raised {type(error).__name__}: {error}") from error
            if scores.shape != (len(part),):
                raise ScorerFailed(
                    f"scorer {self.scorer.name} returned shape {list(scores.shape)} for {len(part)} images, not [N]"
                )
            parts.append(scores)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
