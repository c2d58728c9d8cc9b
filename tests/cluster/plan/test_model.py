"""The cost model: its limits, its units, and the loop as it goes event by event."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.plan.model import (
    ACTORS,
    ADMISSION,
    CHECKPOINTS,
    DRIVER,
    INTAKE,
    RANKS,
    REWARD,
    STORE,
    Costs,
    Counts,
    Loop,
    PlanError,
    iteration,
    step_s,
)
from tests.cluster.plan.simulation import steady_s

LOOP = Loop(groups=8, images=2, staleness=1, policy_rows=64, sft_rows=0, micro_batch=8)
COSTS = Costs(rollout_s=2.0, score_s={REWARD: 0.64}, blocks=2, policy_s=0.35)
SECONDS = st.floats(0.0, 3.0)


@st.composite
def loops(draw: st.DrawFn) -> Loop:
    images, items = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    return Loop(
        groups=images * items,
        images=images,
        staleness=draw(st.integers(0, 3)),
        policy_rows=draw(st.integers(0, 80)),
        sft_rows=draw(st.integers(0, 40)),
        micro_batch=draw(st.integers(1, 16)),
        updates=draw(st.integers(1, 3)),
        epochs=draw(st.integers(1, 2)),
    )


@st.composite
def costs(draw: st.DrawFn) -> Costs:
    return Costs(
        rollout_s=draw(st.floats(0.01, 3.0)),
        publish_s=draw(st.floats(0.0, 0.3)),
        score_s={REWARD: draw(SECONDS)},
        blocks=draw(st.integers(1, 6)),
        policy_s=draw(st.floats(0.0, 0.5)),
        sft_s=draw(st.floats(0.0, 0.5)),
        step_s=draw(st.floats(0.01, 3.0)),
        intake_s=draw(st.floats(0.0, 0.1)),
    )


@st.composite
def counts(draw: st.DrawFn) -> Counts:
    return Counts(draw(st.integers(1, 9)), draw(st.integers(1, 4)), {REWARD: draw(st.integers(1, 4))})


def of(actors: int, replicas: int, ranks: int) -> Counts:
    return Counts(actors, ranks, {REWARD: replicas})


def test_an_iteration_takes_what_its_busiest_part_takes() -> None:
    found = iteration(LOOP, COSTS, of(2, 1, 1))
    assert found.parts[ACTORS] == pytest.approx(4 * 2.0 / 2) and found.parts[REWARD] == pytest.approx(4 * 0.64)
    assert found.parts[RANKS] == pytest.approx(8 * 0.35)
    assert (found.bottleneck, found.seconds) == (ACTORS, pytest.approx(4.0))
    assert found.per_hour == pytest.approx(900.0)


def test_without_staleness_rollouts_and_step_follow_each_other() -> None:
    found = iteration(replace(LOOP, staleness=0), COSTS, of(4, 8, 1))
    assert found.bottleneck == ADMISSION
    assert found.seconds == pytest.approx(2.0 + 0.64 / 2 + 8 * 0.35) == pytest.approx(found.first_s)


@pytest.mark.parametrize(
    ("free", "bottleneck", "seconds"),
    [
        ({"rollout_s": 0.0}, RANKS, 2.8),
        ({"policy_s": 0.0}, ACTORS, 4.0),
        ({"score_s": {REWARD: 0.0}}, ACTORS, 4.0),
        ({"rollout_s": 0.0, "policy_s": 0.0}, REWARD, 2.56),
    ],
)
def test_a_role_that_takes_no_time_leaves_the_iteration_to_the_others(
    free: dict[str, float], bottleneck: str, seconds: float
) -> None:
    found = iteration(LOOP, replace(COSTS, **free), of(2, 1, 1))
    assert (found.bottleneck, found.seconds) == (bottleneck, pytest.approx(seconds))


def test_parts_that_no_gpu_makes_faster_are_bottlenecks_as_well() -> None:
    many = of(100, 100, 100)
    for name, slow in {STORE: "store_s", DRIVER: "driver_s", CHECKPOINTS: "checkpoint_s"}.items():
        assert iteration(LOOP, replace(COSTS, **{slow: 50.0}), many).bottleneck == name
    assert iteration(LOOP, replace(COSTS, intake_s=1.0), of(9, 9, 1)).parts[INTAKE] == pytest.approx(8.0)
    assert iteration(LOOP, replace(COSTS, intake_s=1.0), of(9, 9, 4)).parts[INTAKE] == pytest.approx(2.0)


def test_evaluations_and_weights_are_work_of_actors() -> None:
    plain, more = (iteration(LOOP, c, of(2, 9, 9)) for c in (COSTS, replace(COSTS, evaluation_s=6.0, weights_s=0.5)))
    assert more.parts[ACTORS] - plain.parts[ACTORS] == pytest.approx(6.0 / 2 + 0.5)
    idle = iteration(LOOP, replace(COSTS, weights_s=0.5), of(8, 9, 9))  # four of eight get an item
    assert idle.parts[ACTORS] == pytest.approx((4 * 2.0 + 4 * 0.5) / 8)


def test_a_run_takes_its_first_iteration_and_then_one_after_the_other() -> None:
    found = iteration(LOOP, COSTS, of(2, 1, 1))
    assert found.run_s(1) == found.first_s > found.seconds
    assert found.run_s(11) == pytest.approx(found.first_s + 10 * found.seconds)


def test_micro_batches_are_shared_by_ranks_and_rounded_up_for_each_update() -> None:
    loop = Loop(8, 2, 1, policy_rows=100, sft_rows=20, micro_batch=8, updates=2, epochs=3)
    assert loop.micros(1) == (3 * 2 * 7, 3 * 2 * 2) and loop.micros(4) == (3 * 2 * 2, 3 * 2 * 1)
    assert loop.micros(10**6) == (6, 6)
    several = replace(COSTS, reduce_s=0.5, condition_s=0.1)
    assert step_s(LOOP, several, 2) == pytest.approx(4 * 0.1 + 4 * 0.35 + 0.5)
    assert step_s(LOOP, several, 1) == pytest.approx(8 * 0.1 + 8 * 0.35)


@settings(max_examples=60, deadline=None)
@given(loops(), costs(), counts(), st.sampled_from((ACTORS, RANKS, REWARD)))
def test_one_more_process_never_makes_an_iteration_longer(loop: Loop, each: Costs, some: Counts, role: str) -> None:
    more = {
        ACTORS: replace(some, actors=some.actors + 1),
        RANKS: replace(some, ranks=some.ranks + 1),
        REWARD: replace(some, replicas={REWARD: some.replicas[REWARD] + 1}),
    }[role]
    assert iteration(loop, each, more).seconds <= iteration(loop, each, some).seconds * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(loops(), costs(), counts(), st.floats(0.1, 100.0))
def test_seconds_scale_with_the_unit_of_time(loop: Loop, each: Costs, some: Counts, unit: float) -> None:
    names = ("rollout_s", "publish_s", "policy_s", "sft_s", "step_s", "intake_s")
    scaled = replace(each, **{n: unit * getattr(each, n) for n in names}, score_s={REWARD: unit * each.score_s[REWARD]})
    one, other = iteration(loop, each, some), iteration(loop, scaled, some)
    assert other.seconds == pytest.approx(unit * one.seconds) and other.first_s == pytest.approx(unit * one.first_s)


@settings(max_examples=80, deadline=None, derandomize=True)  # bounds are of examples, so that they are the same ones
@given(loops(), costs(), counts())
def test_no_loop_is_faster_than_the_model_says_nor_much_slower(loop: Loop, each: Costs, some: Counts) -> None:
    found = iteration(loop, each, some)
    took = steady_s(loop, each, some)
    assert found.seconds * 0.95 <= took <= found.seconds * 1.3


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (lambda: replace(COSTS, rollout_s=-1.0), "rollout_s=-1.0"),
        (lambda: replace(COSTS, score_s={"sharp": float("nan")}), r"score_s\[sharp\]=nan"),
        (lambda: replace(COSTS, blocks=0), "blocks=0"),
        (lambda: Counts(0, 1), "actors=0"),
        (lambda: Counts(1, 1, {"sharp": 0}), "sharp=0"),
        (lambda: replace(LOOP, groups=9), "groups=9"),
        (lambda: replace(LOOP, micro_batch=0), "micro_batch=0"),
        (lambda: replace(LOOP, staleness=-1), "staleness=-1"),
        (lambda: iteration(LOOP, COSTS, Counts(1, 1)), "reward: no number of replicas"),
    ],
)
def test_what_is_no_number_of_processes_or_seconds_is_refused(bad: object, told: str) -> None:
    with pytest.raises(PlanError, match=told):
        bad()  # type: ignore[operator]
