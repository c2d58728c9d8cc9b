import json
import math
import random

import numpy as np
import pytest

from learner.advantage import AdvantageSettings, RewardRow, RewardTracks


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
