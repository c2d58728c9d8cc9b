"""A resumed run whose store has lost it: known by the run folder, told, and given back what the folder knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.work import WorkSequence
from cluster.config.recipe import RunConfig
from cluster.files import LEDGER_FILE
from cluster.run.driver_stream import DriverStream
from cluster.run.interrupts import Interrupts
from cluster.run.store_mark import MARK_FILE, StoreMark, find_again, note_epoch
from cluster.run.work_queue import WorkQueue
from tests.conftest import OpenStream
from tests.trajectories.records import make_record
from tests.trajectories.test_stream import ids
from trajectories.errors import StoreError
from trajectories.settings import StoreSettings
from trajectories.stream import TrajectoryStream


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig.model_validate(
        {"model": tmp_path, "source": {"groups_per_step": 4}, "rollout": {"images_per_batch": 2}}
    )


def ran(stream: TrajectoryStream, folder: Path, config: RunConfig, groups: int) -> int:
    """A run that has published so many groups and consumed all but the last two; the epoch it is in."""
    epoch = stream.begin_epoch()
    note_epoch(config.store, folder, stream.run_id, epoch)
    for n in range(groups):
        name = f"{n // 2:08d}-{n % 2:03d}"
        stream.publish(make_record(name, run_id=stream.run_id, epoch=epoch))
    read = stream.read("learner-1", groups - 2, epoch=epoch)
    stream.settle(ids(read), "consumed:step=1", token="step=1", epoch=epoch)
    return epoch


def lose(stream: TrajectoryStream) -> None:
    """All keys of the run, as FLUSHALL does; a new process connects."""
    everything = stream.client.redis.keys(stream.keys.entries.removesuffix("entries") + "*")
    stream.client.redis.delete(*everything)  # type: ignore[misc]
    stream.client.redis.xgroup_create(stream.keys.entries, "learner", id="0", mkstream=True)


def next_batch(stream: TrajectoryStream, mark: StoreMark) -> int:
    """The index of the batch that a resumed driver hands out first."""
    of_driver = DriverStream(stream, Interrupts())
    of_driver.assumed = mark.groups(images_per_batch=2)
    return WorkQueue(WorkSequence(list("abcdef"), 2, seed=0), of_driver.published_groups()).take().index


def test_a_store_that_knows_the_run_is_left_alone(open_stream: OpenStream, tmp_path: Path, config: RunConfig) -> None:
    stream = open_stream()
    assert find_again(config, tmp_path, stream.run_id, stream, 0) == (StoreMark(stream.run_id), [])  # never begun
    epoch = ran(stream, tmp_path, config, 10)
    before = stream.ledger()
    mark, told = find_again(config, tmp_path, stream.run_id, stream, 2)
    assert told == [] and (mark.epoch, mark.batches, mark.store) == (epoch, 0, "embedded")
    assert stream.ledger() == before and next_batch(stream, mark) == 5


@pytest.mark.parametrize("with_mark", [True, False])
def test_a_store_that_came_back_empty_is_told_and_what_was_used_is_not_rolled_out_again(
    open_stream: OpenStream, tmp_path: Path, config: RunConfig, with_mark: bool
) -> None:
    stream = open_stream()
    epoch = ran(stream, tmp_path, config, 10)
    if not with_mark:
        (tmp_path / MARK_FILE).unlink()  # of a run that an older release began: its checkpoint says enough
    lose(stream)
    mark, told = find_again(config, tmp_path, stream.run_id, stream, 2)
    said = " ".join(told)
    assert f"the store (embedded) has nothing of this run, which was in epoch {epoch}" in said
    assert "if it is another one, stop and give the right store.url" in said
    assert "the first 4 rollout batches, as many as 2 iterations use, count as done" in said
    assert f"of their 8 groups the ledger has 0, as {tmp_path} has no ledger.json" in said
    assert next_batch(stream, mark) == 4
    # And it stays so, without being told again.
    note_epoch(config.store, tmp_path, stream.run_id, stream.begin_epoch())
    later, told = find_again(config, tmp_path, stream.run_id, stream, 2)
    assert told == [] and later.batches == 4 and later.epoch == epoch + 1


def test_what_the_folder_has_of_the_ledger_is_given_back_to_the_store(
    open_stream: OpenStream, tmp_path: Path, config: RunConfig
) -> None:
    stream = open_stream()
    epoch = ran(stream, tmp_path, config, 10)
    stream.export_ledger(tmp_path / LEDGER_FILE, epoch)
    lose(stream)
    mark, told = find_again(config, tmp_path, stream.run_id, stream, 2)
    assert "of their 8 groups the ledger has 8, from ledger.json" in told[1]
    assert stream.audit().ok and stream.audit().consumed == 8 and stream.begin_epoch() == epoch + 1
    assert next_batch(stream, mark) == 4  # batch 4 waited unsettled, and was lost


def test_a_server_that_came_back_with_an_older_copy_of_the_same_epoch_does_not_end_every_resume(
    open_stream: OpenStream, tmp_path: Path, config: RunConfig
) -> None:
    stream = open_stream()
    epoch = ran(stream, tmp_path, config, 10)
    used = {entry.entry_id: 2 for entry in stream.ledger().entries[4:8]}  # of the checkpoint, whose settling was lost
    assert find_again(config, tmp_path, stream.run_id, stream, 2, used)[1] == []
    stream.client.redis.hdel(stream.keys.published, *used)  # type: ignore[misc]
    mark, told = find_again(config, tmp_path, stream.run_id, stream, 2, used)
    assert f"has an older copy of epoch {epoch} of this run" in told[0] and mark.batches == 4
    assert next_batch(stream, mark) >= 4 and stream.known(used) == set()
    assert find_again(config, tmp_path, stream.run_id, stream, 2, used)[1] == []


def test_a_damaged_ledger_of_the_folder_is_told_with_the_loss(
    open_stream: OpenStream, tmp_path: Path, config: RunConfig
) -> None:
    stream = open_stream()
    ran(stream, tmp_path, config, 10)
    (tmp_path / LEDGER_FILE).write_text("{")
    lose(stream)
    told = find_again(config, tmp_path, stream.run_id, stream, 2)[1]
    assert "ledger.json: no readable ledger" in told[0] and "of their 8 groups the ledger has 0" in told[-1]


def test_another_server_at_the_address_is_named_with_the_one_before(
    open_stream: OpenStream, tmp_path: Path, config: RunConfig
) -> None:
    stream = open_stream()
    old = StoreSettings(url="redis://user:secret@one.example:6379")
    note_epoch(old, tmp_path, stream.run_id, 3)
    now = config.model_copy(update={"store": StoreSettings(url="redis://:secret@two.example:6379")})
    mark, told = find_again(now, tmp_path, stream.run_id, stream, 0)
    assert (
        "the store (redis://two.example:6379) has nothing of this run, which was in epoch 3 at redis://one" in told[0]
    )
    assert told[1] == "what waited in the lost store is rolled out again" and mark.batches == 0
    assert "secret" not in " ".join(told) + (tmp_path / MARK_FILE).read_text()


def test_a_mark_of_another_run_counts_for_nothing_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    note_epoch(StoreSettings(), tmp_path, "another", 3)
    assert StoreMark.read(tmp_path, "run") == StoreMark("run")
    (tmp_path / MARK_FILE).write_text("{")
    with pytest.raises(StoreError, match=f"{MARK_FILE}: not readable .*; remove it"):
        StoreMark.read(tmp_path, "run")
