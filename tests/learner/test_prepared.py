"""What a rank fetches and checks before a step, beside the one that runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from learner.advantage import AdvantageSettings, RewardTracks
from learner.batch import BatchError, assemble
from learner.objective import ObjectiveSettings
from learner.prepared import Preparation, needed_groups, parts_of, works_of
from learner.settings import LearnerSettings
from restoration.base_models.networks.embeddings import PerImage
from tests.learner.fakes import SAMPLER, FakeModel, fake_pairs, roll_out_group, summary_of
from trajectories.errors import SchemaError
from trajectories.schema import Trajectories

SETTINGS = LearnerSettings(sampler=SAMPLER, micro_batch=4)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def records() -> list[Trajectories]:
    model = FakeModel()
    return [roll_out_group(model, f"image-{i}", seed=i, rollouts=2) for i in range(4)]


class Store:
    """Answers `fetch` and counts what it was asked for."""

    def __init__(self, records: Sequence[Trajectories]) -> None:
        self.records: dict[str, Trajectories | SchemaError] = {r.meta.group_id: r for r in records}
        self.fetched: list[str] = []

    def __call__(self, ids: Sequence[str]) -> list[Trajectories | SchemaError]:
        self.fetched += ids
        return [self.records[i] for i in ids]


def preparation(rank: int = 0, world: int = 1, pairs: Any = fake_pairs, **settings: Any) -> Preparation:
    model = FakeModel()
    chosen = replace(SETTINGS, **settings)
    return Preparation(chosen, model.schedule(SAMPLER), model.size_multiple, pairs, rank, world, CPU)


def ids_of(records: Sequence[Trajectories]) -> list[str]:
    return [r.meta.group_id for r in records]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("unscored", ["skip", "next"])
def test_summaries_alone_tell_which_groups_each_rank_needs(world: int, updates: int, unscored: Any) -> None:
    model = FakeModel()
    groups = [roll_out_group(model, f"i{j}", seed=j, rollouts=1 + j, unscored=(1,)) for j in range(3)]
    settings = replace(
        SETTINGS, advantage=AdvantageSettings(unscored=unscored), updates_per_batch=updates, inner_epochs=2
    )
    batch = assemble(groups, RewardTracks(settings.advantage), model.schedule(SAMPLER).fingerprint)
    for rank in range(world):
        used = {
            batch.groups[item.group].meta.group_id
            for work in works_of(batch, settings)
            for part in parts_of(work, rank, world, settings.micro_batch)
            for item in part.items
        }
        needed = needed_groups([summary_of(g) for g in reversed(groups)], settings, rank, world)
        assert [g.meta.group_id for g in needed] == sorted(used)


def test_a_rank_fetches_its_own_share_and_nothing_else(records: list[Trajectories]) -> None:
    fetched = []
    for rank in range(2):
        store, rank_s = Store(records), preparation(rank, world=2)
        assert rank_s.prepare([summary_of(r) for r in records], store) == []
        assert sorted(store.fetched) == sorted(rank_s.take(ids_of(records)))
        fetched.append(set(store.fetched))
    assert len(fetched[0]) < len(records) > len(fetched[1])
    assert fetched[0] | fetched[1] == set(ids_of(records))


def test_what_is_held_is_not_fetched_again(records: list[Trajectories]) -> None:
    store, ready = Store(records), preparation()
    ready.prepare([summary_of(r) for r in records[:3]], store)
    ready.prepare([summary_of(r) for r in records[1:]], store)
    assert sorted(store.fetched) == ids_of(records)
    assert sorted(ready.take(ids_of(records[1:]))) == ids_of(records[1:])
    with pytest.raises(BatchError, match="call prepare"):  # replaced: a group is trained on once
        ready.take(ids_of(records[:3]))


def test_the_next_batch_may_be_prepared_before_the_last_is_learned_from(records: list[Trajectories]) -> None:
    ready = preparation()
    for chosen in (records[:2], records[2:3], records[3:]):
        ready.prepare([summary_of(r) for r in chosen], Store(records))
    assert list(ready.take(ids_of(records[3:]))) and list(ready.take(ids_of(records[2:3])))
    with pytest.raises(BatchError):
        ready.take(ids_of(records[:2]))  # two newer ones are held
    ready.drop(ids_of(records[3:]))
    with pytest.raises(BatchError):
        ready.take(ids_of(records[3:]))


def missing(image_id: str) -> tuple[Tensor, Tensor]:
    if image_id == "image-1":
        raise FileNotFoundError(f"{image_id}.png")
    return fake_pairs(image_id)


def shrunk(image_id: str) -> tuple[Tensor, Tensor]:
    lq, gt = fake_pairs(image_id)
    return (lq[:, :8], gt) if image_id == "image-1" else (lq, gt)


def black(image_id: str) -> tuple[Tensor, Tensor]:
    lq, gt = fake_pairs(image_id)
    return lq, gt * (float("nan") if image_id == "image-1" else 1)


@pytest.mark.parametrize(
    ("pairs", "reason", "text"),
    [(missing, "picture", "image-1.png"), (shrunk, "crop", "leaves the image"), (black, "picture", "NaN")],
)
def test_a_picture_that_cannot_be_had_refuses_its_own_group_and_the_rest_is_ready(
    records: list[Trajectories], pairs: Any, reason: str, text: str
) -> None:
    ready, store = preparation(pairs=pairs), Store(records)
    refused = ready.prepare([summary_of(r) for r in records], store)
    assert [(r.group_id, r.reason) for r in refused] == [(records[1].meta.group_id, reason)]
    assert text in refused[0].detail
    good = [r for r in records if r is not records[1]]
    assert sorted(ready.take(ids_of(good))) == ids_of(good)
    count = len(store.fetched)
    assert ready.prepare([summary_of(r) for r in good], store) == [] and len(store.fetched) == count


def test_a_record_that_is_not_what_its_summary_says_or_not_readable_is_refused(records: list[Trajectories]) -> None:
    nan = replace(records[1], states=records[1].states * float("nan"))
    other = replace(records[1], trajectory_ids=["a", "b"])
    for record, text in ((SchemaError("truncated"), "truncated"), (nan, "states holds NaN"), (other, "not the one")):
        store, ready = Store(records), preparation()
        store.records[records[1].meta.group_id] = record
        refused = ready.prepare([summary_of(r) for r in records], store)
        assert [(r.group_id, r.reason) for r in refused] == [(records[1].meta.group_id, "schema")]
        assert text in refused[0].detail


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"error_l2": torch.tensor([1.0, float("nan")])}, "error_l2"),
        ({"step_index": torch.tensor([0, 1, 7], dtype=torch.int32)}, "no decisions"),
        ({"gt_reward": None}, "clamp_to_gt"),
        ({"rewards": torch.full((2, 3), float("inf"))}, "reward"),
    ],
)
def test_every_rank_refuses_what_a_summary_tells_before_anything_is_fetched(
    records: list[Trajectories], change: dict[str, Any], text: str
) -> None:
    given = [replace(records[0], **change), *records[1:]]
    for rank in range(2):
        store = Store(records)
        ready = preparation(rank, 2, advantage=AdvantageSettings(clamp_to_gt=True))
        refused = ready.prepare([summary_of(r) for r in given], store)
        assert [(r.group_id, r.reason) for r in refused] == [(records[0].meta.group_id, "batch")]
        assert text in refused[0].detail and records[0].meta.group_id not in store.fetched


def test_a_crop_that_the_model_cannot_take_is_refused(records: list[Trajectories]) -> None:
    odd = replace(records[0], meta=replace(records[0].meta, crop=(0, 0, 16, 18)))
    (refused,) = preparation().prepare([summary_of(odd)], Store([odd]))
    assert refused.reason == "crop" and "multiples of 4" in refused.detail


def test_a_failure_of_the_store_is_not_blamed_on_groups(records: list[Trajectories]) -> None:
    def down(ids: Sequence[str]) -> list[Trajectories | SchemaError]:
        raise ConnectionError("no answer")

    ready = preparation()
    with pytest.raises(ConnectionError):
        ready.prepare([summary_of(r) for r in records], down)
    assert ready.prepare([summary_of(r) for r in records], Store(records)) == []


def test_nothing_is_trained_so_nothing_is_fetched(records: list[Trajectories]) -> None:
    store, ready = Store(records), preparation(objective=ObjectiveSettings(recipe="base"))
    assert ready.prepare([summary_of(r) for r in records], store) == [] and store.fetched == []
    assert ready.take(ids_of(records)) == {}


def test_a_picture_without_its_embeddings_refuses_its_own_group(records: list[Trajectories], tmp_path: Path) -> None:
    for record in records[1:]:
        save_file({"text": torch.zeros(1, 2, 3)}, tmp_path / f"{record.meta.image_id}.safetensors")
    ready = preparation()
    ready.embeddings = PerImage(tmp_path)
    refused = ready.prepare([summary_of(r) for r in records], Store(records))
    assert [(r.group_id, r.reason) for r in refused] == [(records[0].meta.group_id, "picture")]
    assert "image-0.safetensors is missing" in refused[0].detail
