import copy
import gc
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.advantage import AdvantageSettings, RewardTracks
from learner.batch import (
    BatchError,
    SftItem,
    assemble,
    cut,
    filler,
    groups_of_rank,
    make_work,
    plan_updates,
    preview,
    share,
)
from learner.objective import ObjectiveSettings
from tests.learner.fakes import SAMPLER, FakeModel, roll_out_group
from tests.trajectories.records import make_record
from trajectories.schema import Summary, Trajectories, decode_summary, encode_summary

MODEL = FakeModel()
FINGERPRINT = MODEL.schedule(SAMPLER).fingerprint


def groups(count: int = 3, **options: object) -> list[Trajectories]:
    return [roll_out_group(MODEL, f"i{j}", seed=j, **options) for j in range(count)]  # type: ignore[arg-type]


def resized(group: Trajectories, size: int) -> Trajectories:
    """The same group on a crop of another size."""
    new = {name: getattr(group, name)[..., :1, :1].expand(-1, -1, -1, size, size) for name in ("states", "targets")}
    return replace(
        group, meta=replace(group.meta, crop=(0, 0, 4 * size, 4 * size)), latent=(group.latent[0], size, size), **new
    )  # type: ignore[arg-type]


def summary_of(group: Trajectories) -> Summary:
    """A record without its tensors of latent size."""
    return decode_summary(encode_summary(group))


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


@pytest.mark.parametrize("before", [True, False])
def test_items_are_made_without_a_collection_and_the_collector_is_left_as_it_was(before: bool) -> None:
    shape = 64, 60
    scores = {"scored": torch.ones(shape, dtype=torch.bool), "rewards": torch.ones(shape)}
    record = make_record(shape=(*shape, 2, 4, 4), **scores)
    batch = preview([record], AdvantageSettings())
    collections: list[str] = []
    try:
        gc.callbacks.append(lambda phase, _: collections.append(phase))
        gc.enable() if before else gc.disable()
        items = len(make_work(batch, [0], ObjectiveSettings()).policy)
        found = [*collections]
        assert gc.isenabled() == before
    finally:
        gc.callbacks.pop()
        gc.enable()
    # One may come before and one behind, of two phases; the items alone would cause one for each `threshold`.
    assert items == 64 * 60 > 5 * gc.get_threshold()[0] and len(found) <= 4


SMALL, LARGE, TALL = (4, 8, 8, 64, 64), (4, 16, 16, 128, 128), (4, 16, 8, 128, 64)


def items_of(*runs: tuple[tuple[int, ...], int]) -> list[SftItem]:
    """Items numbered over all `runs` of (shape, count); a group holds at most five."""
    items: list[SftItem] = []
    for run, (shape, count) in enumerate(runs):
        items += [SftItem(100 * run + i // 5, len(items) + i, 1.0, shape) for i in range(count)]
    return items


@pytest.mark.parametrize(("count", "world", "micro"), [(0, 2, 4), (1, 2, 4), (7, 3, 2), (12, 2, 3), (5, 8, 1)])
def test_every_item_is_shared_once_and_all_ranks_do_as_many_micro_batches(count: int, world: int, micro: int) -> None:
    items = items_of((SMALL, count))
    shares = [share(items, rank, world, micro) for rank in range(world)]
    assert [i for rank in shares for part in rank for i in part] == items
    assert len({len(rank) for rank in shares}) == 1
    assert all(len(part) <= micro for rank in shares for part in rank)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([SMALL, LARGE, TALL]), st.integers(0, 30)), max_size=6),
    st.integers(1, 5),
    st.integers(1, 7),
)
def test_micro_batches_of_any_mixture_hold_one_shape_each(
    runs: list[tuple[tuple[int, ...], int]], world: int, micro: int
) -> None:
    items = items_of(*runs)
    shares = [share(items, rank, world, micro) for rank in range(world)]
    assert [i for rank in shares for part in rank for i in part] == items
    assert len({len(rank) for rank in shares}) == 1
    assert all(len(part) <= micro and len({i.shape for i in part}) <= 1 for rank in shares for part in rank)

    def area(rank: int) -> int:
        return sum(i.shape[1] * i.shape[2] for part in shares[rank] for i in part)

    # Ranks compute on equal areas, but for the items that lie across a border.
    largest = max((i.shape[1] * i.shape[2] for i in items), default=0)
    assert all(abs(area(rank) - sum(map(area, range(world))) / world) <= largest for rank in range(world))
    if items:
        for rank in range(world):
            own = [i for part in shares[rank] for i in part]
            assert filler(items, rank, world) == (own or items)[0]


def test_pictures_of_unequal_size_are_replayed_in_micro_batches_of_their_own() -> None:
    """Batches of one image have latents as large as it is; they can't be stacked with others."""
    mixed = [resized(g, size) for g, size in zip(groups(4), (4, 6, 4, 2), strict=True)]
    batch = assemble(mixed, tracks(), FINGERPRINT)
    work = make_work(batch, range(4), ObjectiveSettings())
    assert len(work.policy) == 4 * 6 and len(work.sft) == 4 * 2
    for world in (1, 2, 3):
        for rank in range(world):
            for part in [*share(work.policy, rank, world, 5), *share(work.sft, rank, world, 5)]:
                assert len({batch.groups[i.group].states.shape[2:] for i in part}) <= 1
    # Whatever the order of the items, noise and difficulty keep to the place in the batch.
    assert sorted(i.index for i in work.sft) == list(range(8))
    assert all(i.weight == pytest.approx((1 - float(work.difficulty[i.index])) / 8) for i in work.sft)


def test_equal_latents_of_unequal_crops_are_not_mixed_as_their_conditions_cannot_be_stacked() -> None:
    first, second = groups(2)
    padded = replace(second, meta=replace(second.meta, crop=(4, 0, 15, 16)))
    work = make_work(assemble([first, padded], tracks(), FINGERPRINT), range(2), ObjectiveSettings())
    assert [{i.group for i in part} for part in share(work.sft, 0, 1, 8)] == [{0}, {1}]


def test_a_rank_knows_the_groups_it_needs_before_the_rewards_are_normalised() -> None:
    sparse = [roll_out_group(MODEL, "a", 0, unscored=(0, 1)), *groups(3), roll_out_group(MODEL, "b", 1, unscored=(2,))]
    mixed = [resized(g, size) for g, size in zip(sparse, (4, 6, 4, 2, 6), strict=True)]
    for unscored in ("skip", "next"):
        advantage = AdvantageSettings(unscored=unscored)  # type: ignore[arg-type]
        early = preview([summary_of(g) for g in mixed[::-1]], advantage)  # type: ignore[misc]
        batch = assemble(mixed, RewardTracks(advantage), FINGERPRINT)
        assert [[list(row) for row in g] for g in early.advantages] == [[list(r) for r in g] for g in batch.advantages]
        for chosen in plan_updates(batch, 2):
            plan, work = (make_work(b, chosen, ObjectiveSettings(kl_beta=0.1)) for b in (early, batch))
            assert [i[:3] for i in plan.policy] == [i[:3] for i in work.policy] and plan.sft == work.sft
            for rank in range(3):
                needed = groups_of_rank(plan, rank, 3, 2)
                used = {i.group for items in (work.policy, work.sft) for p in share(items, rank, 3, 2) for i in p}
                assert used <= set(needed) and len(set(needed)) == len(needed)
                for items in (work.policy, work.sft):
                    assert filler(items, rank, 3).group in needed or all(share(items, rank, 3, 2))


def test_a_rank_without_items_needs_the_group_of_its_filler_only() -> None:
    batch = assemble(groups(2, rollouts=1), tracks(), FINGERPRINT)
    work = make_work(batch, range(2), ObjectiveSettings(recipe="diff_sft"))
    assert [groups_of_rank(work, rank, 4, 8) for rank in range(4)] == [[0], [0], [1], [0]]


def test_updates_divide_the_groups_without_rest() -> None:
    batch = assemble(groups(5), tracks(), FINGERPRINT)
    for updates in (1, 2, 3, 5, 9):
        plan = plan_updates(batch, updates)
        assert sum(plan, []) == list(range(5)) and all(plan) and len(plan) == min(updates, 5)


def refusal(bad: list[Trajectories], fingerprint: str = FINGERPRINT, past: RewardTracks | None = None) -> BatchError:
    with pytest.raises(BatchError) as raised:
        make_work(assemble(bad, tracks() if past is None else past, fingerprint), range(len(bad)), ObjectiveSettings())
    return raised.value


def test_what_cannot_be_trained_together_is_refused_and_the_groups_to_blame_are_named() -> None:
    first, second, third = groups(3)
    ids = [g.meta.group_id for g in (first, second, third)]

    def broken(group: Trajectories, **changes: object) -> Trajectories:
        return replace(group, **changes)  # type: ignore[arg-type]

    error = refusal([])
    assert "no trajectories" in str(error) and error.groups == ()
    error = refusal([second, first, second, third, third])
    assert f"twice: {ids[1]}, {ids[2]};" in str(error) and error.groups == (ids[1], ids[2])
    foreign = replace(second, meta=replace(second.meta, scheduler_fingerprint="another"))
    error = refusal([first, foreign, third])
    assert "another" in str(error) and "same sampler settings" in str(error) and error.groups == (ids[1],)
    error = refusal(
        [first, broken(second, error_l2=second.error_l2 * float("nan")), broken(third, error_l2=-third.error_l2)]
    )
    assert "no norm" in str(error) and error.groups == (ids[1], ids[2])
    nan = torch.full_like(first.rewards, float("nan"))
    error = refusal([broken(first, rewards=nan), second, broken(third, rewards=nan)])
    assert "reward nan" in str(error) and error.groups == (ids[0], ids[2])
    assert copy.copy(error).groups == error.groups  # as it crosses to another process


def test_of_mixed_rewards_those_of_another_version_than_the_tracks_are_to_blame() -> None:
    first, second, third = groups(3)
    other = replace(second, meta=replace(second.meta, reward_version="r2"))
    error = refusal([first, other, third])
    assert "['r1', 'r2']" in str(error) and "not of r1" in str(error) and error.groups == (second.meta.group_id,)
    past = tracks()
    past.reward_version = "r2"
    assert refusal([first, other, third], past=past).groups == (first.meta.group_id, third.meta.group_id)


def test_a_refused_batch_leaves_the_tracks_as_they_were() -> None:
    past = tracks()
    assemble(groups(2), past, FINGERPRINT)
    before = past.state_dict()
    first, second = groups(2)
    refusal([first, replace(second, rewards=torch.full_like(second.rewards, float("inf")))], past=past)
    assert past.state_dict() == before


def test_a_crop_is_cut_then_mirrored() -> None:
    image = torch.arange(3 * 5 * 6).reshape(3, 5, 6)
    assert torch.equal(cut(image, (1, 2, 3, 4), False), image[:, 1:4, 2:6])
    assert torch.equal(cut(image, (1, 2, 3, 4), True), image[:, 1:4, 2:6].flip(2))
    with pytest.raises(BatchError, match="leaves the image"):
        cut(image, (3, 0, 3, 3), False)
