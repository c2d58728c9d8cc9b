"""Merging blocks of several callers, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from reward_service import batching
from reward_service.batching import Batcher, BatchReport, Reply
from reward_service.errors import ScorerFailed, from_data
from tests.reward_service.fakes import NAN, RAISE, SLOW, Ordered, block


def score_all(scorer: Ordered, blocks: Sequence[object], budget_s: float = 30, **options: Any) -> list[Reply]:
    """Replies to blocks that callers submit at the same moment."""

    async def run() -> list[Reply]:
        batcher = Batcher(scorer, int(options.pop("max_batch", 64)), options.pop("max_wait_s", 0.05), **options)
        return list(await asyncio.gather(*(batcher.score(b, budget_s) for b in blocks)))

    return asyncio.run(run())


def test_blocks_of_several_callers_become_one_batch_and_each_gets_its_own_scores() -> None:
    scorer = Ordered()
    replies = score_all(scorer, [block([1, 2]), block([3]), block([4, 5, 6])])
    assert scorer.batches == [6]
    assert [r["scores"].tolist() for r in replies] == [[1, 2], [3], [4, 5, 6]]
    assert all(r["scores"].dtype == np.float32 and r["version"] == "ordered-1" for r in replies)


def test_a_batch_never_exceeds_max_batch_and_no_block_is_lost() -> None:
    scorer = Ordered()
    replies = score_all(scorer, [block([i] * 3) for i in range(7)], max_batch=8)
    assert max(scorer.batches) <= 8 and sum(scorer.batches) == 21
    assert [r["scores"][0] for r in replies] == list(range(7))


def test_a_block_larger_than_max_batch_is_scored_in_parts() -> None:
    scorer = Ordered()
    (reply,) = score_all(scorer, [block(list(range(10)))], max_batch=4)
    assert scorer.batches == [4, 4, 2]
    assert reply["scores"].tolist() == list(range(10))


def test_blocks_that_arrive_while_the_scorer_works_form_the_next_batch() -> None:
    scorer = Ordered(pause_s=0.1)

    async def run() -> None:
        batcher = Batcher(scorer, 64, 0.0)
        first = asyncio.create_task(batcher.score(block([1]), 30))
        await asyncio.sleep(0.05)
        await asyncio.gather(first, *(batcher.score(block([i]), 30) for i in range(5)))

    asyncio.run(run())
    assert scorer.batches == [1, 5]


def test_images_of_different_sizes_are_not_merged_but_all_scored() -> None:
    scorer = Ordered()
    replies = score_all(scorer, [block([1]), block([2], side=16), block([3])])
    assert sorted(scorer.batches) == [1, 2]
    assert [r["scores"].tolist() for r in replies] == [[1], [2], [3]]


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
        [[1]],
    ],
    ids=["float", "one image", "alpha", "empty", "list"],
)
def test_a_bad_block_is_refused_and_the_others_are_scored(bad: object) -> None:
    replies = score_all(Ordered(), [block([1]), bad, block([2])])
    assert replies[1]["error"] == "block"
    assert "uint8 array [N, H, W, 3]" in replies[1]["message"]
    assert [replies[0]["scores"][0], replies[2]["scores"][0]] == [1, 2]


def test_a_block_that_makes_the_scorer_raise_does_not_fail_the_batch_it_was_in() -> None:
    replies = score_all(Ordered(), [block([1]), block([2], RAISE), block([3])])
    error = from_data(replies[1])
    assert error.kind == "scorer"
    assert "ordered raised RuntimeError: ordered to raise" in str(error)
    assert [replies[0]["scores"][0], replies[2]["scores"][0]] == [1, 3]


def test_non_finite_rewards_are_an_error_that_names_the_images_of_that_block_only() -> None:
    replies = score_all(Ordered(), [block([1, 1]), block([2, 2, 2], NAN)])
    assert replies[0]["scores"].tolist() == [1, 1]
    assert replies[1]["error"] == "invalid"
    assert replies[1]["indexes"] == [0]


def test_a_scorer_that_returns_another_shape_failed() -> None:
    class Columns(Ordered):
        def score(self, images: np.ndarray) -> np.ndarray:
            return np.zeros((len(images), 1), np.float32)

    (reply,) = score_all(Columns(), [block([1, 2])])
    assert reply["error"] == "scorer"
    assert "shape [2, 1] for 2 images" in reply["message"]


def test_a_block_whose_deadline_passed_in_the_queue_is_not_scored() -> None:
    scorer = Ordered(slow_s=0.3)

    async def run() -> Reply:
        batcher = Batcher(scorer, 64, 0.0)
        slow = asyncio.create_task(batcher.score(block([1], SLOW), 30))
        await asyncio.sleep(0.05)
        reply = await batcher.score(block([2]), 0.1)
        await slow
        return reply

    assert asyncio.run(run())["error"] == "timeout"
    assert scorer.batches == [1]


def test_every_batch_is_reported_with_its_images_and_errors() -> None:
    reports: list[BatchReport] = []

    async def run() -> None:
        batcher = Batcher(Ordered(), 64, 0.05, reports.append)
        await asyncio.gather(batcher.score(block([1, 2]), 30), batcher.score(block([3], NAN), 30))

    asyncio.run(run())
    assert [(r.blocks, r.images, r.errors) for r in reports] == [(2, 3, ("invalid",))]
    assert reports[0].seconds > 0


def test_batches_under_load_are_full_whatever_the_sizes_of_the_blocks() -> None:
    reports: list[BatchReport] = []
    scorer = Ordered(pause_s=0.01)
    blocks = [block(list(range(n, n + size))) for n, size in enumerate([5, 3, 7, 1, 6, 4, 8, 2] * 4)]
    replies = score_all(scorer, blocks, max_batch=8, observe=reports.append)
    assert [r["scores"].tolist() for r in replies] == [list(range(n, n + len(b))) for n, b in enumerate(blocks)]
    assert scorer.batches == [8] * (sum(map(len, blocks)) // 8)
    assert all(r.images == r.limit == 8 for r in reports)


def test_a_block_that_is_cut_between_two_batches_waits_once_and_is_answered_once() -> None:
    reports: list[BatchReport] = []
    replies = score_all(Ordered(), [block([1] * 6), block([2] * 6)], max_batch=8, observe=reports.append)
    assert [r["scores"].tolist() for r in replies] == [[1] * 6, [2] * 6]
    assert [(r.blocks, r.images, len(r.queued_s)) for r in reports] == [(2, 8, 2), (1, 4, 0)]


def test_a_batch_of_one_size_is_filled_from_anywhere_in_the_queue_and_the_oldest_block_is_always_in_the_next() -> None:
    scorer = Sides()
    sides = [8, 16, 8, 8, 24, 16, 8, 8]
    replies = score_all(scorer, [block([n], side=side) for n, side in enumerate(sides)], max_batch=3)
    assert [r["scores"].tolist() for r in replies] == [[n] for n in range(len(sides))]
    assert scorer.seen == [(8, 3), (16, 2), (24, 1), (8, 2)]


def test_the_next_batch_is_put_together_while_the_scorer_works() -> None:
    scorer = Ordered(pause_s=0.3)

    async def run() -> None:
        batcher = Batcher(scorer, 4, 0.0)
        asking = [asyncio.ensure_future(batcher.score(block([i]), 30)) for i in range(12)]
        await asyncio.sleep(0.15)  # the first batch is at work
        assert len(batcher.running) == 2 and len(batcher.queue) == 4
        await asyncio.gather(*asking)
        assert batcher.ongoing["images"] == batcher.ongoing["requests"] == 0

    asyncio.run(run())
    assert scorer.batches == [4, 4, 4]


@pytest.mark.parametrize("kind", [MemoryError, type("OutOfMemoryError", (RuntimeError,), {})])
def test_a_scorer_out_of_memory_gets_half_as_many_images_of_that_size_and_says_so(
    kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    scorer = Narrow(kind, room=3 * 8 * 8)
    replies = score_all(scorer, [block(list(range(8))), block([9, 9], side=4), block([7] * 5)], max_batch=8)
    assert [r["scores"].tolist() for r in replies] == [list(range(8)), [9, 9], [7] * 5]
    assert scorer.batches == [8, 4, 2, 2, 2, 2, 2, 2, 2, 1]
    assert "out of memory with 8 images of 8x8: it gets 4 at once" in caplog.text
    (error,) = score_all(Narrow(kind, room=10), [block([1, 2])])
    assert error["error"] == "scorer" and "no memory for one image of 8x8" in error["message"]


def test_a_scorer_that_fails_at_its_probe_too_is_broken_and_no_block_is_blamed() -> None:
    async def run(broken: bool) -> list[Reply]:
        def probe() -> None:
            if broken:
                raise RuntimeError("weights are gone")

        batcher = Batcher(Ordered(), 64, 0.0, probe=probe)
        first = await batcher.score(block([1], RAISE), 30)
        return [first, await batcher.score(block([2]), 30)]

    failed, scored = asyncio.run(run(broken=False))
    assert failed["error"] == "scorer" and scored["scores"].tolist() == [2]
    failed, refused = asyncio.run(run(broken=True))
    assert failed["error"] == refused["error"] == "broken"
    assert "ordered to raise; it fails at its own probe, too: weights are gone" in refused["message"]


def test_a_probe_runs_between_batches_and_from_its_failure_on_nothing_is_scored() -> None:
    scorer = Ordered(pause_s=0.1)
    calls: list[int] = []

    def probe() -> None:
        calls.append(len(scorer.batches))
        raise RuntimeError("its answers changed")

    async def run() -> list[Reply]:
        batcher = Batcher(scorer, 1, 0.0, probe=probe)
        asking = [asyncio.ensure_future(batcher.score(block([i]), 30)) for i in range(4)]
        await asyncio.sleep(0.05)
        await batcher.check()
        return list(await asyncio.gather(*asking))

    replies = asyncio.run(run())
    assert calls == [2]  # behind the batch at work and the one that was ready
    assert [r.get("error") for r in replies] == [None, None, "broken", "broken"]


class Sides(Ordered):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []

    def score(self, images: np.ndarray) -> np.ndarray:
        self.seen.append((images.shape[1], len(images)))
        return super().score(images)


class Narrow(Ordered):
    """Has memory for `room` pixels."""

    def __init__(self, kind: type[Exception], room: int) -> None:
        super().__init__()
        self.kind, self.room = kind, room

    def score(self, images: np.ndarray) -> np.ndarray:
        scores = super().score(images)
        if images[..., 0].size > self.room:
            raise self.kind("no room")
        return scores


def test_a_probe_that_lacks_memory_or_a_connection_for_a_while_condemns_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    passing: list[Exception] = [OSError("the server restarts"), MemoryError("the learner holds it")]

    def probe() -> None:
        if passing:
            raise ScorerFailed("the probe raised") from passing[0]

    async def run() -> None:
        batcher = Batcher(Ordered(), 8, 0.0, probe=probe)
        while passing:
            await batcher.check()
            assert batcher.refused is None and "scores" in await batcher.score(block([1]), 5)
            passing.pop(0)
        await batcher.check()  # well again: the time starts anew
        passing.append(OSError("away for good"))
        await batcher.check()
        assert batcher.refused is None
        monkeypatch.setattr(batching, "PASSING_S", 0.0)
        await batcher.check()
        assert batcher.refused is not None and "the probe raised" in batcher.refused

    asyncio.run(run())


def test_how_long_the_scorer_has_been_at_one_call_is_known_from_outside() -> None:
    async def run() -> None:
        batcher = Batcher(Ordered(pause_s=0.5), 8, 0.0)
        assert batcher.busy_s() == 0
        waiting = asyncio.create_task(batcher.score(block([1]), 5))
        await asyncio.sleep(0.1)
        assert 0 < batcher.busy_s() < 5
        await waiting
        assert batcher.busy_s() == 0

    asyncio.run(run())
