"""The split over roles: as good as the best of all, never more GPUs than there are."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.plan.model import ACTORS, RANKS, REWARD, Costs, Counts, Loop, PlanError, iteration
from cluster.plan.search import Shares, Split, best, one_more

LOOP = Loop(groups=64, images=2, staleness=1, policy_rows=1024, sft_rows=0, micro_batch=8)
COSTS = Costs(rollout_s=4.0, score_s={REWARD: 1.0}, blocks=4, policy_s=0.4)
ONE = Shares(1.0, 1.0, {REWARD: 1.0})
GIVEN = Counts(1, 1, {REWARD: 1})


@settings(max_examples=12, deadline=None)
@given(st.floats(0.1, 8.0), st.floats(0.05, 8.0), st.floats(0.01, 1.0), st.integers(0, 2), st.integers(3, 14))
def test_the_split_is_as_good_as_the_best_of_all(
    rollout: float, score: float, policy: float, staleness: int, gpus: int
) -> None:
    loop, costs = replace(LOOP, staleness=staleness), Costs(rollout, score_s={REWARD: score}, blocks=4, policy_s=policy)
    found = best(loop, costs, ONE, gpus, GIVEN, range(1, gpus + 1))
    counts = range(1, gpus - 1)
    all_of_them = [
        iteration(loop, costs, Counts(a, n, {REWARD: r})).seconds
        for a, r, n in product(counts, counts, counts)
        if a + r + n <= gpus
    ]
    assert found.gpus == ONE.of(found.counts) <= gpus
    assert found.found.seconds <= min(all_of_them) * 1.011
    assert found.found == iteration(loop, costs, found.counts)


def test_more_gpus_never_make_the_plan_slower_and_those_that_bring_nothing_stay_unused() -> None:
    found = [best(LOOP, COSTS, ONE, gpus, GIVEN, range(1, gpus + 1)) for gpus in (3, 8, 32, 128, 4096)]
    seconds = [split.found.seconds for split in found]
    assert all(later <= earlier * 1.011 for earlier, later in zip(seconds, seconds[1:], strict=False))
    assert found[-1].gpus < 4096 and found[-1].counts.actors <= 2 * LOOP.items


def test_gpus_that_a_batch_can_feed_are_split_where_all_roles_end_together() -> None:
    loop = replace(LOOP, groups=1024, policy_rows=16384, staleness=3)
    found = best(loop, COSTS, ONE, 256, GIVEN, range(1, 257))
    parts = [found.found.parts[name] for name in (ACTORS, REWARD, RANKS)]
    assert found.gpus > 250 and min(parts) > 0.9 * max(parts)


def test_roles_on_parts_of_a_gpu_and_services_of_their_own_are_counted_as_they_reserve() -> None:
    shares = Shares(0.5, 1.0, {"sharp": 0.25, "true": 0.0})
    costs = Costs(4.0, score_s={"sharp": 1.0, "true": 0.1}, blocks=4, policy_s=0.4)
    given_counts = Counts(7, 1, {"sharp": 3, "true": 5})
    found = best(LOOP, costs, shares, 8, given_counts, range(1, 9))
    assert shares.of(found.counts) == found.gpus <= 8 and found.counts.replicas["true"] == 5
    fixed = best(LOOP, costs, replace(shares, actor=0.0), 8, given_counts, range(1, 9))
    assert fixed.counts.actors == 7


def test_the_services_of_several_terms_share_by_what_they_have_to_do() -> None:
    shares = Shares(1.0, 1.0, {"large": 1.0, "small": 1.0})
    costs = Costs(4.0, score_s={"large": 3.0, "small": 0.5}, blocks=8, policy_s=0.1)
    found = best(LOOP, costs, shares, 40, Counts(1, 1, {"large": 1, "small": 1}), range(1, 41))
    assert found.counts.replicas["large"] > 3 * found.counts.replicas["small"] >= 3


def test_only_numbers_of_ranks_that_can_be_are_chosen() -> None:
    found = best(LOOP, replace(COSTS, policy_s=0.001), ONE, 32, GIVEN, [6, 7, 9])
    assert found.counts.ranks == 6
    assert "ranks" in one_more(LOOP, COSTS, ONE, found, [6, 7, 9])


def test_one_more_process_is_told_by_what_it_brings() -> None:
    slow = replace(COSTS, rollout_s=40.0)
    counts = Counts(2, 2, {REWARD: 2})
    more = one_more(LOOP, slow, ONE, Split(counts, 6, iteration(LOOP, slow, counts)), [1, 2, 3])
    assert more[ACTORS] == pytest.approx(0.5) and more[RANKS] == more[REWARD] == 0


def test_too_few_gpus_are_told_with_what_is_needed() -> None:
    with pytest.raises(PlanError, match=r"^2 GPUs: .* reserve 3; give more"):
        best(LOOP, COSTS, ONE, 2, GIVEN, [1, 2])
    with pytest.raises(PlanError, match=r"^8 GPUs: .* 7 ranks reserve 9; "):
        best(LOOP, COSTS, ONE, 8, GIVEN, [7, 8])
