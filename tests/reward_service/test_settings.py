"""Settings and errors are plain values."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from reward_service.errors import InvalidReward, RewardTimeout, from_data
from reward_service.scorers import make_scorer
from reward_service.settings import RewardSettings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scorer", ""),
        ("replicas", 0),
        ("max_batch", 0),
        ("max_wait_s", -1.0),
        ("max_wait_s", float("nan")),
        ("deadline_s", 0.0),
        ("deadline_s", float("inf")),
        ("retries", -1),
        ("start_timeout_s", 0.0),
        ("health_check_timeout_s", float("nan")),
        ("threads", 0),
        ("num_gpus", -0.5),
        ("resources", {"reward": 0.0}),
        ("min_replicas", 1),
        ("ongoing_images", 0),
        ("scale_up_s", 0.0),
        ("scale_down_s", -1.0),
        ("probe_every_s", 0.0),
        ("picture_side", 0),
        ("app", "reward-of-a-run"),
        ("app", "two words"),
    ],
)
def test_settings_refuse_a_value_and_name_its_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        replace(RewardSettings(), **{field: value})


@pytest.mark.parametrize(("least", "most"), [(0, 1), (3, 2), (None, 2)])
def test_bounds_of_replicas_are_both_given_and_in_order(least: int | None, most: int) -> None:
    with pytest.raises(ValueError, match=f"min_replicas={least}, max_replicas={most}"):
        RewardSettings(min_replicas=least, max_replicas=most)
    assert (RewardSettings(min_replicas=2, max_replicas=3).at_first, RewardSettings(replicas=4).at_first) == (2, 4)
    assert (RewardSettings(max_batch=8).target_images, RewardSettings(ongoing_images=5).target_images) == (16, 5)


def test_code_version_ignores_what_may_change_under_running_replicas_and_nothing_else() -> None:
    base = RewardSettings()
    assert replace(base, replicas=5, deadline_s=1, retries=9, start_timeout_s=3).code_version == base.code_version
    between = replace(base, min_replicas=1, max_replicas=3, ongoing_images=7, scale_up_s=1, probe_every_s=1, app="iqa")
    assert between.code_version == base.code_version
    assert replace(base, params={"chunk": 2}).code_version != base.code_version
    assert replace(base, max_batch=2).code_version != base.code_version


def test_errors_survive_the_way_as_data_and_as_a_copy() -> None:
    error = InvalidReward("scorer x gave nan", [3, 5])
    for again in (from_data(error.to_data()), copy.deepcopy(error)):
        assert type(again) is InvalidReward
        assert (str(again), again.indexes, again.kind) == ("scorer x gave nan", (3, 5), "invalid")
    assert isinstance(from_data(RewardTimeout("late").to_data()), RewardTimeout)


def test_an_unknown_scorer_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match="no scorer named 'brisk'; there are .*lite0_levels"):
        make_scorer("brisk")


def test_a_parameter_that_a_scorer_does_not_take_is_refused_with_its_name() -> None:
    with pytest.raises(ValueError, match="chunks"):
        make_scorer("tests.reward_service.fakes:Ordered", chunks=2)


def test_any_class_is_a_scorer_by_module_and_name_if_it_has_the_interface() -> None:
    assert make_scorer("tests.reward_service.fakes:Ordered", slow_s=1).version == "ordered-1"
    with pytest.raises(ValueError, match="is no scorer"):
        make_scorer("collections:Counter")
    with pytest.raises(ValueError, match="cannot be imported"):
        make_scorer("tests.reward_service.fakes:Missing")
