"""What the run folder knows of its store, so that one that has lost the run is told from one that is new to it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from actors.work import WorkItem
from cluster.config.recipe import RunConfig
from cluster.files import LEDGER_FILE, write_text
from trajectories.audit import Ledger
from trajectories.consumer import lost_epoch
from trajectories.errors import CAUSES_OF_LOSS, StoreError
from trajectories.settings import StoreAddress, StoreSettings
from trajectories.stream import TrajectoryStream

MARK_FILE = "stream.json"


@dataclass(frozen=True)
class StoreMark:
    """Kept in the run folder.

    Attributes:
        epoch: the last one that the run has begun, which its store knows, too; 0 before the first.
        store: where it was then, without a password.
        batches: so many rollout batches, from the first on, count as done though the store knows nothing of them.
    """

    run_id: str
    epoch: int = 0
    store: str = ""
    batches: int = 0

    def write(self, folder: Path) -> None:
        """Raises:
        OSError: it can't be written; what was there stays.
        """
        write_text(folder / MARK_FILE, json.dumps(asdict(self)) + "\n")

    @classmethod
    def read(cls, folder: Path, run_id: str) -> StoreMark:
        """That of this run; an empty one if there is none yet.

        Raises:
            StoreError: it can't be read.
        """
        path = folder / MARK_FILE
        try:
            mark = cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls(run_id)
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(
                f"{path}: not readable ({error}); remove it, and a store that has lost the run is known by its "
                "checkpoint alone"
            ) from error
        return mark if mark.run_id == run_id else cls(run_id)

    def groups(self, images_per_batch: int) -> set[str]:
        """Ids of the groups of the batches that count as done."""
        places = ("",) * images_per_batch
        return {group_id for index in range(self.batches) for group_id in WorkItem(index, places).group_ids}


def note_epoch(settings: StoreSettings, folder: Path, run_id: str, epoch: int) -> StoreMark:
    """An epoch has begun; the mark with it."""
    mark = replace(StoreMark.read(folder, run_id), epoch=epoch, store=_shown(settings))
    mark.write(folder)
    return mark


def find_again(
    config: RunConfig,
    folder: Path,
    run_id: str,
    stream: TrajectoryStream,
    iteration: int,
    used: Collection[str] = (),
) -> tuple[StoreMark, list[str]]:
    """Before a run is resumed: does its store know it? If not, it gets back what the folder knows.

    Args:
        iteration: of the last checkpoint; 0 if there is none.
        used: entries that the checkpoint rests on and that may not be settled yet. A server that came back with an
            older copy of its data has the epoch, and not them.

    Returns:
        The mark, and what is to be told.

    Raises:
        StoreError: the store or the mark can't be read.
    """
    mark, epoch = StoreMark.read(folder, run_id), stream.epoch()
    groups = iteration * config.source.groups_per_step
    forgives = mark.batches * config.rollout.images_per_batch >= groups
    expected = mark.epoch or int(iteration > 0)
    if epoch >= expected and (forgives or stream.known(used) == set(used)):
        return mark, []
    ledger, told = None, list[str]()
    if (folder / LEDGER_FILE).is_file():
        try:
            ledger = Ledger.read(folder / LEDGER_FILE)
        except StoreError as error:
            told.append(str(error))
    entries = ledger.entries if ledger is not None and ledger.run_id == run_id else ()
    before = mark.store
    mark = replace(mark, batches=max(mark.batches, groups // config.rollout.images_per_batch))
    mark.write(folder)  # first, as the store is known again from here on
    restored = stream.restore(entries, max(epoch, expected))
    where = _shown(config.store)
    moved = f" at {before}" if before not in ("", where) else ""
    older = f"an older copy of epoch {epoch}" if epoch >= expected else lost_epoch(epoch)
    told += [
        f"the store ({where}) has {older} of this run, which was in epoch {expected}{moved}: "
        f"{CAUSES_OF_LOSS}; if it is another one, stop and give the right store.url",
        "what waited in the lost store is rolled out again",
    ]
    if mark.batches:
        source = f"from {LEDGER_FILE}" if restored else f"as {folder} has no {LEDGER_FILE} that names more"
        told[-1] += (
            f"; the first {mark.batches} rollout batches, as many as {iteration} iterations use, count as done; of "
            f"their {groups} groups the ledger has {restored}, {source}"
        )
    return mark, told


def _shown(settings: StoreSettings) -> str:
    return settings.url if settings.is_embedded else StoreAddress.from_url(settings.url).url
