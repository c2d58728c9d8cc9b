"""A rank's own share of a batch in host memory, fetched and checked before the step that learns from it.

Nothing here touches the model's networks, the reward tracks or torch.distributed, so it may run in a thread beside a
step. Whatever data can do wrong shows here, as a refusal of single groups: in the middle of a step a failure on one
rank would leave the others waiting in a collective.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.batch import (
    BatchError,
    GlobalBatch,
    Item,
    PairLoader,
    PolicyItem,
    Refused,
    SftItem,
    Work,
    cut,
    filler,
    groups_of_rank,
    make_work,
    plan_updates,
    preview,
    share,
)
from learner.settings import LearnerSettings
from restoration.transition import Schedule
from trajectories.errors import SchemaError
from trajectories.schema import Summary, Trajectories

Fetch = Callable[[Sequence[str]], Sequence[Trajectories | SchemaError]]
"""Group ids -> their records, or why one can't be read, in the same order."""

PictureKey = tuple[str, tuple[int, int, int, int], bool]  # image id, crop (y, x, h, w), mirrored

_AT_A_TIME = 8  # groups of one fetch, so that at most so many lie in memory twice while they are pinned
_LISTS = 2  # batches held: the one that is learned from and the next


@dataclass(frozen=True, eq=False)
class Held:
    """A group as the replay needs it, on the host (pinned for a CUDA device).

    Attributes:
        states, targets: [K, S, C, h, w] in the record's dtype.
        log_probs: float32 [K, S].
        steps: index into the schedule of each position.
        lq, gt: the crop, float32 [3, H, W] in [0, 1]; the same tensors for groups of the same `picture`.
    """

    states: Tensor
    targets: Tensor
    log_probs: Tensor
    steps: tuple[int, ...]
    picture: PictureKey
    lq: Tensor
    gt: Tensor


@dataclass(frozen=True)
class Part:
    """The items of one micro-batch; a filler has one whose weight counts as 0."""

    items: tuple[PolicyItem | SftItem, ...]
    filler: bool


def works_of(batch: GlobalBatch, settings: LearnerSettings) -> list[Work]:
    """The work of each optimiser step of an iteration, in order; inner epochs repeat the objects.

    Raises:
        BatchError: an error norm that is none.
    """
    works = [make_work(batch, chosen, settings.objective) for chosen in plan_updates(batch, settings.updates_per_batch)]
    return works * settings.inner_epochs


def parts_of(work: Work, rank: int, world: int, micro: int) -> list[Part]:
    """This rank's micro-batches: as many, of the same kinds and in the same order (RL, then SFT), on every rank."""
    return [*_parts(work.policy, rank, world, micro), *_parts(work.sft, rank, world, micro)]


def _parts(items: Sequence[Item], rank: int, world: int, micro: int) -> Iterator[Part]:
    for part in share(items, rank, world, micro):
        yield Part(tuple(part), False) if part else Part((filler(items, rank, world),), True)


def needed_groups(summaries: Sequence[Summary], settings: LearnerSettings, rank: int, world: int) -> list[Summary]:
    """The groups that a rank needs to learn from these, by group id; rewards' values make no difference."""
    if not summaries:
        return []
    batch = preview(summaries, settings.advantage)
    works = works_of(batch, settings)
    works = works[: len(works) // settings.inner_epochs]
    indexes = {g for work in works for g in groups_of_rank(work, rank, world, settings.micro_batch)}
    return [batch.groups[i] for i in sorted(indexes)]


class Preparation:
    """The groups that a rank holds, of at most two batches. Its methods may be called from any thread."""

    def __init__(
        self,
        settings: LearnerSettings,
        schedule: Schedule,
        size_multiple: int,
        pairs: PairLoader,
        rank: int,
        world: int,
        device: torch.device,
        embeddings: Callable[[Sequence[str]], object] | None = None,
    ) -> None:
        """`device` is where the model computes; for CUDA what is held is pinned.

        `embeddings` of image ids are read once here, so that a missing one refuses its group (`BaseModel.per_image`).
        """
        self.settings, self.schedule, self.size_multiple, self.pairs = settings, schedule, size_multiple, pairs
        self.rank, self.world, self.device, self.embeddings = rank, world, device, embeddings
        self._preparing = threading.Lock()
        self._guard = threading.Lock()
        self._lists: dict[frozenset[str], dict[str, Held]] = {}

    def prepare(self, summaries: Sequence[Summary], fetch: Fetch) -> list[Refused]:
        """Fetch and check this rank's share of the groups; returns those that can't be trained on, with a reason.

        What was held already is not fetched again. Whatever is not refused is kept, under the ids of all groups that
        are not, until `drop`, a list that shares a group with it, or two newer lists.

        Raises:
            Whatever `fetch` raises: then nothing is known of the groups.
        """
        with self._preparing:
            refused = [r for s in summaries if (r := self._refusal(s)) is not None]
            bad = {r.group_id for r in refused}
            good = [s for s in summaries if s.meta.group_id not in bad]
            needed = needed_groups(good, self.settings, self.rank, self.world)
            with self._guard:
                known = {name: held for groups in self._lists.values() for name, held in groups.items()}
            found = {s.meta.group_id: known[s.meta.group_id] for s in needed if s.meta.group_id in known}
            missing = [s for s in needed if s.meta.group_id not in known]
            pictures = {held.picture: (held.lq, held.gt) for held in found.values()}
            for first in range(0, len(missing), _AT_A_TIME):
                chunk = missing[first : first + _AT_A_TIME]
                records = fetch([s.meta.group_id for s in chunk])
                for summary, record in zip(chunk, records, strict=True):
                    one = self._hold(summary, record, pictures)
                    if isinstance(one, Refused):
                        refused.append(one)
                    else:
                        found[summary.meta.group_id] = one
            bad = {r.group_id for r in refused}
            self._keep(frozenset(s.meta.group_id for s in good if s.meta.group_id not in bad), found)
            return refused

    def take(self, group_ids: Iterable[str]) -> dict[str, Held]:
        """What was prepared of a batch of these groups, by group id; it stays held until `drop`.

        Raises:
            BatchError: it was not prepared, or two other batches were since.
        """
        with self._guard:
            found = self._lists.get(frozenset(group_ids))
        if found is None:
            raise BatchError(f"rank {self.rank} holds no batch of these groups: call prepare with the same list first")
        return dict(found)

    def drop(self, group_ids: Iterable[str]) -> None:
        """Forget a batch, once it was learned from."""
        with self._guard:
            self._lists.pop(frozenset(group_ids), None)

    def _keep(self, ids: frozenset[str], groups: Mapping[str, Held]) -> None:
        with self._guard:
            self._lists = {key: value for key, value in self._lists.items() if not key & ids}
            if ids:
                self._lists[ids] = {name: held for name, held in groups.items() if name in ids}
            while len(self._lists) > _LISTS:
                del self._lists[next(iter(self._lists))]

    def _refusal(self, summary: Summary) -> Refused | None:
        """What is wrong with a group as far as its summary tells; the same on every rank."""
        meta = summary.meta
        wrong = self._wrong(summary)
        if wrong:
            return Refused(meta.group_id, "batch", wrong)
        if any(side < 1 or side % self.size_multiple for side in meta.crop[2:]):
            detail = f"crop {meta.crop} has sides that are no multiples of {self.size_multiple}, as the model needs"
            return Refused(meta.group_id, "crop", detail)
        return None

    def _wrong(self, summary: Summary) -> str | None:
        if summary.meta.scheduler_fingerprint != self.schedule.fingerprint:
            return (
                f"rolled out with schedule {summary.meta.scheduler_fingerprint}, the learner replays "
                f"{self.schedule.fingerprint}: give actors and learner the same sampler settings"
            )
        decisions = {s.index for s in self.schedule.decisions}
        if odd := sorted({int(s) for s in summary.step_index} - decisions):
            return f"steps {odd[:4]} are no decisions of the schedule"
        for name in ("error_l1", "error_l2"):
            if not all(math.isfinite(e) and e >= 0 for e in getattr(summary, name).tolist()):
                return f"{name} holds values that are no norms"
        if not bool(summary.rewards[summary.scored].isfinite().all()):
            return "a reward is not finite"
        gt = summary.gt_reward
        if self.settings.advantage.clamp_to_gt and (gt is None or not math.isfinite(gt)):
            return f"advantage.clamp_to_gt, but its ground truth has score {gt}"
        return None

    def _hold(
        self,
        summary: Summary,
        record: Trajectories | SchemaError,
        pictures: dict[PictureKey, tuple[Tensor, Tensor]],
    ) -> Held | Refused:
        meta = summary.meta
        if isinstance(record, SchemaError):
            return Refused(meta.group_id, "schema", str(record))
        same = record.meta == meta and record.trajectory_ids == summary.trajectory_ids
        if not same or record.step_index.tolist() != summary.step_index.tolist():
            return Refused(meta.group_id, "schema", "the stored record is not the one that its summary describes")
        for name in ("states", "targets", "log_probs"):
            if not bool(getattr(record, name).isfinite().all()):
                return Refused(meta.group_id, "schema", f"{name} holds NaN or infinity")
        key = (meta.image_id, meta.crop, meta.flip)
        if key not in pictures:
            try:
                pair = self.pairs(meta.image_id)
                if self.embeddings is not None:
                    self.embeddings([meta.image_id])
            except MemoryError:
                raise
            # A data set is anybody's code: whatever it raises means that this picture can't be had.
            except Exception as error:
                return Refused(meta.group_id, "picture", f"{meta.image_id}: {type(error).__name__}: {error}")
            try:
                lq, gt = (cut(image, meta.crop, meta.flip).float().contiguous() for image in pair)
            except BatchError as error:
                return Refused(meta.group_id, "crop", f"{meta.image_id}: {error}")
            for what, image in (("input", lq), ("ground truth", gt)):
                if not bool(image.isfinite().all()):
                    return Refused(meta.group_id, "picture", f"{meta.image_id}: its {what} holds NaN or infinity")
            pictures[key] = (self._pinned(lq), self._pinned(gt))
        states, targets, log_probs = (self._pinned(getattr(record, n)) for n in ("states", "targets", "log_probs"))
        return Held(states, targets, log_probs, tuple(record.step_index.tolist()), key, *pictures[key])

    def _pinned(self, tensor: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return tensor
        torch.cuda.set_device(self.device)  # a thread's own setting; pinning takes the context of that device
        return tensor.pin_memory()
