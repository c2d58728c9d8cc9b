import json
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import learner.advantage
from learner.advantage import AdvantageError, AdvantageSettings, RewardRow, RewardTracks, trained_steps
from learner.exact import Moments, mean_variance


def row(
    name: str, image: str, rewards: dict[int, float], gt: float | None = None, steps: tuple[int, ...] = (0, 1, 2)
) -> RewardRow:
    return RewardRow(name, image, steps, rewards, gt)


def only(name: str, image: str, reward: float, gt: float | None = None) -> RewardRow:
    return row(name, image, {0: reward}, gt, (0,))


def test_the_statistics_are_those_of_the_union_of_track_and_batch() -> None:
    tracks = RewardTracks(AdvantageSettings(eps=1e-8))
    tracks.advantages([only("a0", "a", 1.0), only("a1", "a", 3.0), only("b0", "b", 7.0)], "r1")
    found = tracks.advantages([only("a2", "a", 4.0), only("b1", "b", 0.0)], "r1")
    for advantage, reward, union in ((found[0][0], 4.0, [1, 3, 4, 0]), (found[1][0], 0.0, [7, 4, 0])):
        assert advantage == pytest.approx((reward - np.mean(union)) / math.sqrt(np.var(union) + 1e-8))


def test_steps_are_normalised_apart_or_together() -> None:
    rows = [row("a0", "a", {0: 0.0, 1: 10.0, 2: 20.0}), row("a1", "a", {0: 1.0, 1: 11.0, 2: 21.0})]
    apart = RewardTracks(AdvantageSettings()).advantages(rows, "r")
    assert apart[0] == pytest.approx({0: -1, 1: -1, 2: -1}) and apart[1] == pytest.approx({0: 1, 1: 1, 2: 1})
    together = RewardTracks(AdvantageSettings(per_step=False)).advantages(rows, "r")
    values = np.array([0, 10, 20, 1, 11, 21])
    assert together[1][2] == pytest.approx((21 - values.mean()) / values.std())


def test_same_image_scope_compares_only_rollouts_of_one_image() -> None:
    rows = [only("a0", "a", 1.0), only("a1", "a", 2.0), only("b0", "b", 50.0), only("b1", "b", 60.0)]
    found = RewardTracks(AdvantageSettings(stats="batch", batch_scope="same_image")).advantages(rows, "r")
    assert [v[0] for v in found] == pytest.approx([-1, 1, -1, 1])


def test_the_deviation_can_be_that_of_the_whole_batch() -> None:
    rows = [only("a0", "a", 1.0), only("a1", "a", 2.0), only("b0", "b", 50.0), only("b1", "b", 60.0)]
    settings = AdvantageSettings(stats="batch", batch_scope="same_image", deviation_of="batch")
    found = RewardTracks(settings).advantages(rows, "r")
    assert [v[0] for v in found] == pytest.approx(np.array([-0.5, 0.5, -5, 5]) / np.std([1, 2, 50, 60]))


def test_the_track_alone_is_used_once_it_is_long_enough() -> None:
    tracks = RewardTracks(AdvantageSettings(stats="track", min_count=3))
    first = tracks.advantages([only("a0", "a", 1.0), only("b0", "b", 3.0)], "r")
    assert [v[0] for v in first] == pytest.approx([-1, 1])  # too short: the batch's
    second = tracks.advantages([only("a1", "a", 2.0), only("a2", "a", 6.0), only("b1", "b", 100.0)], "r")
    kept = [1.0, 2.0, 6.0]
    assert second[1][0] == pytest.approx((6 - np.mean(kept)) / np.std(kept))


def test_a_track_forgets_its_oldest_rewards() -> None:
    tracks = RewardTracks(AdvantageSettings(track_length=2))
    for i in range(4):
        tracks.advantages([only(f"a{i}", "a", float(i))], "r")
    assert tracks.track("a", 0) == [2.0, 3.0]


def test_a_new_reward_version_starts_new_tracks() -> None:
    tracks = RewardTracks(AdvantageSettings())
    tracks.advantages([only("a0", "a", 1.0), only("b0", "b", 5.0)], "r1")
    tracks.advantages([only("a1", "a", 2.0)], "r2")
    assert tracks.track("a", 0) == [2.0] and tracks.track("b", 0) == [] and tracks.reward_version == "r2"


def test_equal_rewards_give_zero_and_outliers_are_clamped() -> None:
    tracks = RewardTracks(AdvantageSettings(clamp=2.0))
    assert [v[0] for v in tracks.advantages([only("a0", "a", 3.0), only("a1", "a", 3.0)], "r")] == [0.0, 0.0]
    rows = [only(f"b{i}", "b", 0.0) for i in range(99)] + [only("b99", "b", 1.0)]
    assert tracks.advantages(rows, "r")[-1][0] == 2.0


def test_rewards_above_the_ground_truth_are_cut_to_it() -> None:
    tracks = RewardTracks(AdvantageSettings(clamp_to_gt=True))
    found = tracks.advantages([only(f"a{i}", "a", reward, gt=4.0) for i, reward in enumerate((9.0, 5.0, 1.0))], "r")
    assert found[0] == found[1] and tracks.track("a", 0) == [4.0, 4.0, 1.0]
    with pytest.raises(ValueError, match="clamp_to_gt"):
        tracks.advantages([only("a3", "a", 1.0)], "r")


def test_unscored_steps_are_left_out_or_take_the_next_scored_ones() -> None:
    rows = [row("a0", "a", {1: 0.0}), row("a1", "a", {1: 2.0})]
    assert RewardTracks(AdvantageSettings()).advantages(rows, "r") == [pytest.approx({1: -1}), pytest.approx({1: 1})]
    following = RewardTracks(AdvantageSettings(unscored="next")).advantages(rows, "r")
    assert following == [pytest.approx({0: -1, 1: -1}), pytest.approx({0: 1, 1: 1})]


def test_the_order_of_arrival_changes_no_bit() -> None:
    generator = random.Random(3)
    rows = [
        row(f"{image}{k}", image, {s: generator.gauss(0, 1) for s in range(3)}) for image in "abcde" for k in range(7)
    ]
    expected_tracks = RewardTracks(AdvantageSettings(track_length=5))
    expected = dict(zip([r.trajectory_id for r in rows], expected_tracks.advantages(rows, "r"), strict=True))
    for _ in range(5):
        generator.shuffle(rows)
        tracks = RewardTracks(AdvantageSettings(track_length=5))
        found = tracks.advantages(rows, "r")
        assert dict(zip([r.trajectory_id for r in rows], found, strict=True)) == expected
        assert tracks.state_dict() == expected_tracks.state_dict()


def test_tracks_survive_json_exactly() -> None:
    tracks = RewardTracks(AdvantageSettings())
    tracks.advantages([row("a0", "a", {0: 0.1, 1: 1 / 3, 2: 2e-17}), row("b0", "b", {0: 1e30})], "r1")
    other = RewardTracks(AdvantageSettings())
    other.load_state_dict(json.loads(json.dumps(tracks.state_dict())))
    assert other.state_dict() == tracks.state_dict()
    later = [only("a1", "a", 0.7), only("b1", "b", 0.2)]
    assert other.advantages(later, "r1") == tracks.advantages(later, "r1")


def test_bad_rewards_are_refused_before_anything_is_kept() -> None:
    tracks = RewardTracks(AdvantageSettings())
    for bad, message in (
        ([only("a0", "a", float("nan"))], "nan"),
        ([only("a0", "a", 1.0), only("a0", "a", 2.0)], "twice"),
        ([row("a0", "a", {7: 1.0})], "never took"),
    ):
        with pytest.raises(ValueError, match=message):
            tracks.advantages(bad, "r")
    assert len(tracks) == 0


@pytest.mark.parametrize(
    "field",
    [
        {"stats": "all"},
        {"batch_scope": "x"},
        {"deviation_of": "x"},
        {"clamp": 0},
        {"min_count": 0},
        {"eps": 0.0},
        {"unscored": "x"},
    ],
)
def test_a_wrong_setting_is_named(field: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"advantage.{next(iter(field))}"):
        AdvantageSettings(**field)  # type: ignore[arg-type]


FINITE = st.floats(-1e150, 1e150)
NEAR = st.builds(lambda offset, spread: offset + spread, st.sampled_from([0.0, 1e8, -3e15, 2.0**60]), st.floats(-1, 1))


@settings(deadline=None)
@example([1e16, 1.0, -1e16], [1e-300])
@example([0.1] * 7, [0.1, 0.1])
@example([5e-324], [])
@given(st.lists(FINITE | NEAR, min_size=1), st.lists(FINITE | NEAR))
def test_statistics_of_two_parts_are_those_of_their_union(first: list[float], second: list[float]) -> None:
    mean, variance = Moments(first).mean_variance_with(second)
    expected_mean, expected_variance = mean_variance([*second, *first])
    assert mean == expected_mean  # bit for bit
    assert variance == pytest.approx(expected_variance, rel=1e-14, abs=1e-300)
    random.Random(0).shuffle(first)
    assert Moments(first).mean_variance_with(second[::-1]) == (mean, variance)


def as_written(rows: Sequence[RewardRow], past: RewardTracks, s: AdvantageSettings) -> list[dict[int, float]]:
    """Eq. 4 by its words: the whole pool is gathered for every image and step. For stats="track+batch"."""
    key = (lambda step: step) if s.per_step else (lambda step: -1)
    batch: dict[tuple[str, int], list[float]] = defaultdict(list)
    for r in rows:
        for step, reward in r.rewards.items():
            for scope in ("", r.image_id):
                batch[scope, key(step)].append(reward)
    result = []
    for r in rows:
        values = {}
        for step in [step for step in r.steps if step in r.rewards]:
            scope = r.image_id if s.batch_scope == "same_image" else ""
            mean, variance = mean_variance([*past.track(r.image_id, step), *batch[scope, key(step)]])
            if s.deviation_of == "batch":
                variance = mean_variance(batch["", key(step)])[1]
            scale = math.sqrt(variance + s.eps) if s.eps_at == "variance" else math.sqrt(variance) + s.eps
            values[step] = max(-s.clamp, min(s.clamp, (r.rewards[step] - mean) / scale))
        result.append(values)
    return result


@settings(deadline=None, max_examples=60)
@given(
    batches=st.lists(
        st.lists(
            st.tuples(st.sampled_from("abc"), st.dictionaries(st.integers(0, 2), st.floats(-1e6, 1e6))), max_size=12
        ),
        min_size=1,
        max_size=4,
    ),
    offset=st.sampled_from([0.0, 1e6, -1e12]),
    per_step=st.booleans(),
    batch_scope=st.sampled_from(["all", "same_image"]),
    deviation_of=st.sampled_from(["pool", "batch"]),
    eps_at=st.sampled_from(["variance", "deviation"]),
    track_length=st.sampled_from([3, 64]),
)
def test_advantages_are_those_of_the_equation_at_any_offset(
    batches: list[list[tuple[str, dict[int, float]]]], offset: float, **given_settings: Any
) -> None:
    s = AdvantageSettings(clamp=math.inf, **given_settings)
    tracks = RewardTracks(s)
    for b, batch in enumerate(batches):
        rows = [
            row(f"{b}/{i}", image, {step: offset + reward for step, reward in rewards.items()})
            for i, (image, rewards) in enumerate(batch)
        ]
        expected = as_written(rows, tracks, s)
        for found, wanted in zip(tracks.advantages(rows, "r"), expected, strict=True):
            assert found == pytest.approx(wanted, rel=1e-12, abs=0)


@pytest.mark.parametrize("stats", ["track+batch", "track", "batch"])
@pytest.mark.parametrize("deviation_of", ["pool", "batch"])
def test_each_reward_of_the_batch_is_summed_a_fixed_number_of_times(
    monkeypatch: pytest.MonkeyPatch, stats: Any, deviation_of: Any
) -> None:
    read = 0

    def counted(function: Any) -> Any:
        def count(values: Iterable[float]) -> Any:
            nonlocal read
            values = list(values)
            read += len(values)
            return function(values)

        return count

    monkeypatch.setattr(learner.advantage, "Moments", counted(Moments))
    monkeypatch.setattr(learner.advantage, "mean_variance", counted(mean_variance))
    for images in (4, 64):
        read = 0
        tracks = RewardTracks(AdvantageSettings(stats=stats, deviation_of=deviation_of))
        tracks.advantages([only(f"{i}/{k}", f"i{i}", float(i * k)) for i in range(images) for k in range(4)], "r")
        assert 0 < read <= 2 * images * 4


@pytest.mark.parametrize("version", ["r", "another"])
@pytest.mark.parametrize("stats", ["track+batch", "track"])
def test_a_failed_transaction_takes_everything_back(version: str, stats: Any) -> None:
    def filled() -> RewardTracks:
        tracks = RewardTracks(AdvantageSettings(stats=stats, track_length=2, min_count=1))
        tracks.advantages([only("a0", "a", 1.0), only("a1", "a", 2.0), only("b0", "b", 3.0)], "r")
        return tracks

    tracks, expected = filled(), filled()
    with pytest.raises(KeyboardInterrupt), tracks.transaction():
        tracks.advantages([only("a2", "a", 4.0), only("c0", "c", 5.0)], version)
        tracks.advantages([only("a3", "a", 6.0), row("b1", "b", {1: 7.0})], version)
        assert tracks.state_dict() != expected.state_dict()
        raise KeyboardInterrupt
    assert tracks.state_dict() == expected.state_dict() and len(tracks) == len(expected)
    later = [only("a4", "a", 8.0), only("b2", "b", 9.0)]
    with tracks.transaction():  # which succeeds, and stays
        found = tracks.advantages(later, "r")
    assert found == expected.advantages(later, "r") and tracks.state_dict() == expected.state_dict()


def test_a_transaction_copies_what_it_touches_and_nothing_else() -> None:
    tracks = RewardTracks(AdvantageSettings())
    tracks.advantages([only(f"{i}", f"i{i}", float(i)) for i in range(1000)], "r")
    with tracks.transaction():
        tracks.advantages([only("a", "i7", 1.0), only("b", "i9", 2.0)], "r")
        assert tracks._undo is not None and tracks._undo.images.keys() == {"i7", "i9"}
        with pytest.raises(RuntimeError, match="already open"), tracks.transaction():
            pass
    assert tracks.track("i7", 0) == [7.0, 1.0]


@given(st.lists(st.booleans(), min_size=1, max_size=6), st.sampled_from(["skip", "next"]))
def test_the_steps_to_train_are_known_without_the_rewards(scored: list[bool], unscored: Any) -> None:
    steps = tuple(range(3, 3 + len(scored)))
    rewards = {step: float(step) for step, has in zip(steps, scored, strict=True) if has}
    found = RewardTracks(AdvantageSettings(unscored=unscored)).advantages([row("a", "a", rewards, steps=steps)], "r")
    assert trained_steps(steps, scored, unscored) == list(found[0])


def test_all_bad_rows_of_a_batch_are_named_at_once() -> None:
    bad = [only("a0", "a", math.nan), only("a1", "a", 1.0), only("a2", "a", math.inf), only("a1", "a", 2.0)]
    with pytest.raises(AdvantageError, match="reward nan of a0") as error:
        RewardTracks(AdvantageSettings()).advantages(bad, "r")
    assert error.value.trajectory_ids == ("a0", "a2", "a1")


IMAGE_IDS = st.text(st.characters(), min_size=1, max_size=8)  # surrogates, as of undecodable file names, too
TRACKS = st.dictionaries(
    IMAGE_IDS,
    st.dictionaries(
        st.integers(-1, 2**31 - 1), st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=6)
    ),
    max_size=6,
)


@settings(deadline=None)
@given(TRACKS, st.none() | IMAGE_IDS)
def test_columns_hold_the_tracks_exactly(content: dict[str, dict[int, list[float]]], version: str | None) -> None:
    tracks = RewardTracks(AdvantageSettings())
    as_json = {image: {str(step): values for step, values in steps.items()} for image, steps in content.items()}
    tracks.load_state_dict({"reward_version": version, "tracks": as_json})
    stored = safetensors.torch.load(safetensors.torch.save(tracks.columns()))
    other = RewardTracks(AdvantageSettings())
    other.load_columns(stored)
    assert json.dumps(other.state_dict()) == json.dumps(tracks.state_dict())  # as text, so that -0.0 is not 0.0
    shorter = RewardTracks(AdvantageSettings(track_length=2))
    shorter.load_columns(stored)
    assert all(shorter.track(i, s) == values[-2:] for i, steps in content.items() for s, values in steps.items())


def test_columns_are_a_copy_of_the_moment() -> None:
    tracks = RewardTracks(AdvantageSettings())
    tracks.advantages([only("a0", "a", 1.0)], "r")
    columns = tracks.columns()
    tracks.advantages([only("a1", "a", 2.0)], "r")
    assert columns["values"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("column", "content", "message"),
    [
        ("values", None, "columns missing or unknown: values"),
        ("extra", torch.zeros(1), "columns missing or unknown: extra"),
        ("values", torch.zeros(5), r"column values is torch.float32 \[5\], wanted a vector of torch.float64"),
        ("steps", torch.zeros(3, 1, dtype=torch.int32), r"column steps is torch.int32 \[3, 1\]"),
        ("values", torch.tensor([1.0, 2, 3, 4], dtype=torch.float64), "column lengths .* the 4 values"),
        ("values", torch.tensor([1.0, 2, 3, 4, math.nan], dtype=torch.float64), "column values holds NaN"),
        ("lengths", torch.tensor([2, 0, 3], dtype=torch.int32), "column lengths must be 3 numbers above 0"),
        ("lengths", torch.tensor([2, 3], dtype=torch.int32), "column lengths must be 3 numbers"),
        ("steps", torch.tensor([0, -2, 0], dtype=torch.int32), "column steps holds -2"),
        ("steps", torch.tensor([1, 1, 0], dtype=torch.int32), "column steps has a step of image 'é' twice"),
        ("track_counts", torch.tensor([2, 2], dtype=torch.int32), "column track_counts adds up to 4"),
        ("track_counts", torch.tensor([4, -1], dtype=torch.int32), "column track_counts adds up to 3"),
        ("track_counts", torch.tensor([3], dtype=torch.int32), "column track_counts holds 1 images"),
        ("image_ends", torch.tensor([2, 9]), "column image_ends doesn't cut the 4 bytes"),
        ("image_ends", torch.tensor([5, 4]), "column image_ends doesn't cut the 4 bytes"),
        ("image_ends", torch.tensor([-1, 4]), "column image_ends doesn't cut the 4 bytes"),
        ("image_ends", torch.tensor([1, 4]), "column image_ids is not UTF-8"),
        ("image_ids", torch.tensor([195, 169, 195, 169], dtype=torch.uint8), "column image_ids holds 'é' twice"),
        ("reward_version", torch.tensor([255], dtype=torch.uint8), "column reward_version is not UTF-8"),
    ],
)
def test_damaged_columns_are_refused_by_name_and_change_nothing(
    column: str, content: torch.Tensor | None, message: str
) -> None:
    tracks = RewardTracks(AdvantageSettings())
    tracks.advantages([row("a0", "é", {0: 1.0, 1: 2.0}), row("b0", "ü", {0: 3.0}), row("a1", "é", {0: 4.0})], "r")
    tracks.advantages([row("b1", "ü", {0: 5.0})], "r")
    columns, before = tracks.columns(), tracks.state_dict()
    columns |= {} if content is None else {column: content}
    if content is None:
        del columns[column]
    with pytest.raises(ValueError, match=message):
        tracks.load_columns(columns)
    assert tracks.state_dict() == before
