"""Which rollout batch is next, what was lost and must be done again, what a resumed run need not repeat."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

from actors.work import WorkItem, WorkSequence


class WorkQueue:
    """Hands out the work items of a sequence once each, lost ones again first.

    Args:
        sequence: the endless sequence of batches.
        published: ids ("<index>-<place>") of groups that an earlier part of the run published already; an item is
            skipped when all its groups are among them, and what lies before the first gap is not looked at again.
    """

    def __init__(self, sequence: WorkSequence, published: Iterable[str] = ()) -> None:
        self.sequence = sequence
        self.done: dict[int, int] = {}  # index -> groups published
        for group_id in published:
            index = int(group_id.split("-")[0])
            self.done[index] = self.done.get(index, 0) + 1
        self.next_index = 0
        self.again: deque[tuple[float, WorkItem]] = deque()  # (not before, item)

    def peek(self) -> WorkItem:
        if self._due():
            return self.again[0][1]
        while self.done.get(self.next_index, 0) >= self.sequence.images_per_batch:
            self.done.pop(self.next_index)
            self.next_index += 1
        return self.sequence.item(self.next_index)

    def take(self) -> WorkItem:
        item = self.peek()
        if self._due():
            return self.again.popleft()[1]
        self.next_index += 1
        return item

    def put_back(self, item: WorkItem, pause_s: float = 0.0) -> None:
        """Again, as soon as `pause_s` has passed."""
        self.again.append((time.monotonic() + pause_s, item))

    def _due(self) -> bool:
        # Others wait behind one that isn't due: the order of the sequence is kept as far as can be.
        return bool(self.again) and self.again[0][0] <= time.monotonic()
