from dataclasses import replace

import pytest
import torch

from learner.advantage import AdvantageSettings, RewardTracks
from learner.batch import BatchError, assemble, cut, make_work, plan_updates, share
from learner.objective import ObjectiveSettings
from tests.learner.fakes import SAMPLER, FakeModel, roll_out_group
from trajectories.schema import Trajectories

MODEL = FakeModel()
FINGERPRINT = MODEL.schedule(SAMPLER).fingerprint


def groups(count: int = 3, **options: object) -> list[Trajectories]:
    return [roll_out_group(MODEL, f"i{j}", seed=j, **options) for j in range(count)]  # type: ignore[arg-type]


def tracks() -> RewardTracks:
    return RewardTracks(AdvantageSettings())


def test_the_order_of_arrival_does_not_change_the_work() -> None:
    first, second = (assemble(order, tracks(), FINGERPRINT) for order in (groups(), groups()[::-1]))
    a, b = (make_work(batch, range(3), ObjectiveSettings(kl_beta=1.0)) for batch in (first, second))
    assert a.policy == b.policy and a.sft == b.sft and torch.equal(a.difficulty, b.difficulty)


def test_weights_are_those_of_equations_9_and_10_over_the_whole_batch() -> None:
    batch = assemble(groups(), tracks(), FINGERPRINT)
    work = make_work(batch, range(3), ObjectiveSettings(kl_beta=0.5))
    errors = torch.cat([g.error_l2 for g in batch.groups]).double()
    w = errors / errors.max()
    assert torch.allclose(work.difficulty, w)
    assert len(work.policy) == 6 * 3 and len(work.sft) == 6
    assert [i.weight for i in work.sft] == pytest.approx(((1 - w) / 6).tolist())
    assert sum(i.surrogate_weight for i in work.policy) == pytest.approx(float(w.mean()))
    assert sum(i.kl_weight for i in work.policy) == pytest.approx(0.5)


def test_each_trajectory_counts_once_however_many_of_its_steps_are_scored() -> None:
    sparse = [roll_out_group(MODEL, "a", 0, unscored=(0, 1)), roll_out_group(MODEL, "b", 1)]
    work = make_work(assemble(sparse, tracks(), FINGERPRINT), range(2), ObjectiveSettings(use_weights=False))
    per_row: dict[tuple[int, int], float] = {}
    for item in work.policy:
        per_row[item.group, item.row] = per_row.get((item.group, item.row), 0) + item.surrogate_weight
    assert list(per_row.values()) == pytest.approx([0.25] * 4)
    assert {i.position for i in work.policy if i.group == 0} == {2}


def test_recipes_without_rl_replay_nothing() -> None:
    batch = assemble(groups(), tracks(), FINGERPRINT)
    assert make_work(batch, range(3), ObjectiveSettings(recipe="diff_sft")).policy == ()
    nothing = make_work(batch, range(3), ObjectiveSettings(recipe="base"))
    assert nothing.policy == () and nothing.sft == ()


@pytest.mark.parametrize(("count", "world", "micro"), [(0, 2, 4), (1, 2, 4), (7, 3, 2), (12, 2, 3), (5, 8, 1)])
def test_every_item_is_shared_once_and_all_ranks_do_as_many_micro_batches(count: int, world: int, micro: int) -> None:
    items = list(range(count))
    shares = [share(items, rank, world, micro) for rank in range(world)]
    assert sorted(i for rank in shares for part in rank for i in part) == items
    assert len({len(rank) for rank in shares}) == 1
    assert all(len(part) <= micro for rank in shares for part in rank)


def test_updates_divide_the_groups_without_rest() -> None:
    batch = assemble(groups(5), tracks(), FINGERPRINT)
    for updates in (1, 2, 3, 5, 9):
        plan = plan_updates(batch, updates)
        assert sum(plan, []) == list(range(5)) and all(plan) and len(plan) == min(updates, 5)


def test_what_cannot_be_trained_together_is_refused() -> None:
    first, second = groups(2)
    older = replace(second, meta=replace(second.meta, reward_version="r0"))
    for bad, message in (
        ([], "no trajectories"),
        ([first, first], "twice"),
        ([first, older], r"versions \['r0', 'r1'\]"),
    ):
        with pytest.raises(BatchError, match=message):
            assemble(bad, tracks(), FINGERPRINT)
    with pytest.raises(BatchError, match="same sampler settings"):
        assemble([first], tracks(), "another")
    broken = replace(first, error_l2=first.error_l2 * float("nan"))
    with pytest.raises(BatchError, match="no norm"):
        make_work(assemble([broken], tracks(), FINGERPRINT), [0], ObjectiveSettings())


def test_a_crop_is_cut_then_mirrored() -> None:
    image = torch.arange(3 * 5 * 6).reshape(3, 5, 6)
    assert torch.equal(cut(image, (1, 2, 3, 4), False), image[:, 1:4, 2:6])
    assert torch.equal(cut(image, (1, 2, 3, 4), True), image[:, 1:4, 2:6].flip(2))
    with pytest.raises(BatchError, match="leaves the image"):
        cut(image, (3, 0, 3, 3), False)
